"""Importance-weighted actor-learner architecture (Espeholt et al. 2018, arXiv:1802.01561).

Legend: B rows.
"""

from typing import ClassVar, Literal

from pydantic import Field

from pipelines.config import OnPolicyConfig, OptimConfig, RolloutConfig
from pipelines.config_base import Schedule
from pipelines.dataflow import Dataflow, Rollouts
from pipelines.on_policy import SEGMENTS, ActorCriticLearner, discounts
from rl_ops.batch import Batch
from rl_ops.learner import Averages, Loss, Metrics
from rl_ops.losses import explained_variance, policy_gradient, value_loss


class IMPALAConfig(OnPolicyConfig):
    """IMPALA: rollouts run ahead, and V-trace corrects for it."""

    algo: Literal["impala"] = "impala"
    """Name of the algorithm."""
    gae_lambda: float = Field(default=1.0, ge=0, le=1)
    """Decay of V-trace's traces."""
    rho_bar: float = Field(default=1.0, gt=0)
    """Limit of the importance weight in temporal differences: which policy is valued."""
    c_bar: float = Field(default=1.0, gt=0)
    """Limit of the importance weight in traces: how fast it is."""
    entropy_coef: Schedule = 0.01
    """Weight of the entropy bonus: a number, or [[env_steps, value], ...]."""
    rollout: RolloutConfig = RolloutConfig(num_envs=32, fragment_steps=32, max_policy_lag=2)
    optim: OptimConfig = OptimConfig(lr=1e-3, max_grad_norm=40.0)


class IMPALALearner(ActorCriticLearner[IMPALAConfig]):
    """One step on each version's rows, weighted by how far the policy has moved since."""

    reads: ClassVar[tuple[str, ...]] = SEGMENTS

    def loss(self, batch: Batch) -> Loss:
        """Policy gradient along V-trace's advantages, value and entropy terms (section 4.2)."""
        config, entropy_coef = self.config, self.entropy_coef()
        logp_B, entropy_B, value_B = self.evaluate(batch)
        trace = self.vtrace(
            batch,
            log_rho=logp_B.detach() - batch.logp,
            value=value_B.detach(),
            final_value=self.final_value(self.modules.model, batch),
            rho_bar=config.rho_bar,
            c_bar=config.c_bar,
        )
        policy_B = policy_gradient(logp_B, self.standardized(trace.advantage))
        terms = {
            "policy_loss": policy_B.mean(),
            "value_loss": config.value_coef * value_loss(value_B, trace.target).mean(),
        }
        if entropy_coef:
            terms["entropy_loss"] = -entropy_coef * entropy_B.mean()
        figures = {
            "entropy": entropy_B.detach().mean(),
            "rho_mean": (logp_B.detach() - batch.logp).exp().mean(),
            "explained_variance": explained_variance(value_B, trace.target),
        }
        return Loss(terms, figures)

    def update(self, batch: Batch) -> Metrics:
        """One step."""
        averages = Averages()
        loss = self.loss(self.prepare(batch))
        averages.add(self.descend(loss))
        averages.add(loss.metrics)
        return averages.means()


def dataflow(config: IMPALAConfig) -> Dataflow:
    """Rollouts, some versions behind → discounts → IMPALA."""
    return Dataflow(
        source=Rollouts(then=discounts(config)),
        learner=IMPALALearner,
        fragments_per_version=config.fragments_per_version,
        max_policy_lag=config.rollout.max_policy_lag,
    )
