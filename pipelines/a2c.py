"""Advantage actor-critic, the synchronous form of A3C (Mnih et al. 2016, arXiv:1602.01783).

Legend: B rows.
"""

from typing import ClassVar, Literal

from pipelines.config import OnPolicyConfig, OptimConfig, RolloutConfig
from pipelines.config_base import Fraction
from pipelines.dataflow import Dataflow, Rollouts
from pipelines.on_policy import ActorCriticLearner, advantages
from rl_ops import columns as c
from rl_ops.batch import Batch
from rl_ops.learner import Averages, Loss, Metrics
from rl_ops.losses import explained_variance, policy_gradient, value_loss


class A2CConfig(OnPolicyConfig):
    """A2C: one step on each version's rows."""

    algo: Literal["a2c"] = "a2c"
    """Name of the algorithm."""
    gae_lambda: Fraction = 1.0
    """1 is the Monte-Carlo return, 0 one-step TD."""
    rollout: RolloutConfig = RolloutConfig(num_envs=16, fragment_steps=5)
    """How experience is gathered."""
    optim: OptimConfig = OptimConfig(kind="rmsprop", lr=7e-4)
    """The optimiser."""


class A2CLearner(ActorCriticLearner[A2CConfig]):
    """One descent step on each version's rows, all at once."""

    reads: ClassVar[tuple[str, ...]] = (c.ACTION, c.VALUE, c.ADVANTAGE, c.VALUE_TARGET)

    def loss(self, batch: Batch) -> Loss:
        """Policy gradient, value and entropy terms (section 4, A3C's without the threads)."""
        logp_B, entropy_B, value_B = self.evaluate(batch)
        value_coef, entropy_coef = self.config.value_coef, self.entropy_coef()
        terms = {
            "policy_loss": policy_gradient(logp_B, self.standardized(batch.advantage)).mean(),
            "value_loss": value_coef * value_loss(value_B, batch.value_target).mean(),
        }
        if entropy_coef:
            terms["entropy_loss"] = -entropy_coef * entropy_B.mean()
        return Loss(terms, {"entropy": entropy_B.detach().mean()})

    def update(self, batch: Batch) -> Metrics:
        """One step."""
        averages = Averages()
        loss = self.loss(self.prepare(batch))
        averages.add(self.descend(loss))
        averages.add(loss.metrics)
        variance = explained_variance(batch.value, batch.value_target)
        return averages.means() | {"explained_variance": float(variance)}


def dataflow(config: A2CConfig) -> Dataflow:
    """Rollouts → advantages → A2C."""
    return Dataflow(
        source=Rollouts(then=advantages(config)),
        learner=A2CLearner,
        fragments_per_version=config.fragments_per_version,
        max_policy_lag=config.rollout.max_policy_lag,
    )
