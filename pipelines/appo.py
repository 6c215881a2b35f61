"""Asynchronous PPO with a target network and reuse: IMPACT (Luo et al. 2020, arXiv:1912.00167).

Legend: B rows.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field

from pipelines.config import OnPolicyConfig, OptimConfig, RolloutConfig, TargetConfig
from pipelines.config_base import PositiveInt
from pipelines.dataflow import Dataflow, Rollouts
from pipelines.off_policy import Follower, follower_of
from pipelines.on_policy import SEGMENTS, ActorCritic, ActorCriticLearner, discounts
from rl_ops import columns as c
from rl_ops.batch import Batch
from rl_ops.circular_buffer import CircularBuffer
from rl_ops.learner import Averages, Loss, Metrics, World
from rl_ops.losses import approx_kl, explained_variance, impact_surrogate, value_loss
from rl_ops.policy import PolicySpec


class APPOConfig(OnPolicyConfig):
    """APPO: rollouts run ahead, versions are used several times, a target network holds still."""

    algo: Literal["appo"] = "appo"
    """Name of the algorithm."""
    gae_lambda: float = Field(default=1.0, ge=0, le=1)
    """Decay of V-trace's traces."""
    clip_eps: float = Field(default=0.2, gt=0)
    """Limit of the probability ratio's distance from 1."""
    ratio_clip: float = Field(default=2.0, gt=0)
    """Limit of the acting policy's probability over the target's."""
    num_passes: PositiveInt = 2
    """How often each version's rows are used."""
    buffer_versions: PositiveInt = 2
    """Newest versions among which the uses are spread."""
    minibatch_rows: PositiveInt = 512
    """Rows of a minibatch, at most."""
    target: TargetConfig = TargetConfig(tau=1.0, period_updates=8)
    normalize_advantage: bool = True
    """Shift and scale the advantages of each minibatch to mean 0 and deviation 1."""
    rollout: RolloutConfig = RolloutConfig(num_envs=32, fragment_steps=32, max_policy_lag=2)
    optim: OptimConfig = OptimConfig(lr=1e-3, max_grad_norm=10.0)


class APPOLearner(ActorCriticLearner[APPOConfig]):
    """Clipped steps on rows of the newest versions, towards what the target network values."""

    reads: ClassVar[tuple[str, ...]] = SEGMENTS

    def __init__(self, config: APPOConfig, policy: PolicySpec, *, world: World | None = None):
        super().__init__(config, policy, world=world)
        self.memory = CircularBuffer(config.buffer_versions, device=self.world.device)

    def build(self) -> ActorCritic:
        """See `Learner.build`."""
        modules = super().build()
        modules.target = self._target = follower_of(modules.model)
        self._follower = Follower(self._target, modules.optimizer, self.config.target)
        return modules

    def loss(self, batch: Batch) -> Loss:
        """IMPACT's surrogate, value and entropy terms, of rows with `target_logp` and targets."""
        config, entropy_coef = self.config, self.entropy_coef()
        logp_B, entropy_B, value_B = self.evaluate(batch, entropy=entropy_coef != 0)
        policy_B = impact_surrogate(
            logp_B,
            batch.logp,
            batch.target_logp,
            self.standardized(batch.advantage),
            clip_eps=config.clip_eps,
            ratio_clip=config.ratio_clip,
        )
        terms = {
            "policy_loss": policy_B.mean(),
            "value_loss": config.value_coef * value_loss(value_B, batch.value_target).mean(),
        }
        if entropy_B is not None:
            terms["entropy_loss"] = -entropy_coef * entropy_B.mean()
        return Loss(terms, {"approx_kl": approx_kl(logp_B, batch.logp).mean()})

    @torch.no_grad()
    def targets(self, batch: Batch) -> Batch:
        """Rows with advantages and value targets, as the target network sees them now."""
        network = self._target
        params_BP, value_B = network(batch.obs)
        logp_B = self.distribution.logp(params_BP, batch.action)
        trace = self.vtrace(
            batch,
            log_rho=logp_B - batch.logp,
            value=value_B,
            final_value=self.final_value(network, batch),
        )
        made = {c.ADVANTAGE: trace.advantage, c.VALUE_TARGET: trace.target, "target_logp": logp_B}
        return batch.select([c.OBS, c.ACTION, c.LOGP]).with_columns(**made)

    def update(self, batch: Batch) -> Metrics:
        """`num_passes` over versions of the buffer, in turn."""
        averages = Averages()
        self.memory.add(self.prepare(batch).select([c.OBS, *self.reads]))
        for _ in range(self.config.num_passes):
            made = self.targets(self.memory.next())
            averages.add(self._descend_all(made))
        return averages.means()

    def _descend_all(self, made: Batch) -> Metrics:
        averages, rows = Averages(), self.config.minibatch_rows
        count = self.num_minibatches(made, max_rows=rows)
        for minibatch in made.minibatches(rows, generator=self.generator, min_count=count):
            loss = self.loss(minibatch)
            averages.add(self.descend(loss))
            averages.add(loss.metrics)
            self._follower.follow(self.grad_steps)
        value_B = made.value_target - made.advantage  # of the target network, but for rho
        figures = {"explained_variance": explained_variance(value_B, made.value_target)}
        return averages.means() | {name: float(x) for name, x in figures.items()}


def dataflow(config: APPOConfig) -> Dataflow:
    """Rollouts, some versions behind → discounts → APPO, which uses each version several times."""
    return Dataflow(
        source=Rollouts(then=discounts(config)),
        learner=APPOLearner,
        fragments_per_version=config.fragments_per_version,
        max_policy_lag=config.rollout.max_policy_lag,
    )
