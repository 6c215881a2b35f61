"""Truncated quantile critics (Kuznetsov et al. 2020, arXiv:2005.04269).

SAC whose critics give quantiles of the return; the highest of all critics' quantiles, pooled, are
dropped from the target, which holds overestimation down by as much as one chooses.

Legend: B rows, K critics, N quantiles.
"""

from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator

from pipelines.config import ModelConfig, OffPolicyConfig, OptimConfig, RolloutConfig
from pipelines.config_base import PositiveInt
from pipelines.dataflow import Dataflow, Rollouts, source_of
from pipelines.off_policy import (
    TRANSITION,
    Learned,
    ReplayLearner,
    frozen,
    noted_steps,
    replayed,
    transitions,
)
from pipelines.soft_actor import (
    SoftModules,
    TemperatureConfig,
    build_soft,
    sample,
    target_entropy,
    temper,
)
from pipelines.specs import PolicyKind
from rl_ops.batch import Batch
from rl_ops.distributions import SquashedGaussian
from rl_ops.errors import SpecError
from rl_ops.exploration import RandomFirst, Sample
from rl_ops.learner import Loss
from rl_ops.q_losses import quantile_huber_loss
from rl_ops.soft_losses import soft_policy_loss, tqc_targets


class TQCConfig(OffPolicyConfig):
    """TQC with a learned temperature."""

    algo: Literal["tqc"] = "tqc"
    """Name of the algorithm."""
    temperature: TemperatureConfig = TemperatureConfig()
    num_critics: PositiveInt = 2
    """Critics whose quantiles are pooled."""
    num_quantiles: PositiveInt = 25
    """Of each critic."""
    drop_per_critic: int = Field(default=2, ge=0)
    """Highest quantiles left out of the target, times the number of critics."""
    model: ModelConfig = ModelConfig(hidden=(256, 256), activation="relu")
    rollout: RolloutConfig = RolloutConfig(num_envs=1, fragment_steps=16)
    optim: OptimConfig = OptimConfig(lr=3e-4, eps=1e-8, max_grad_norm=None)

    @model_validator(mode="after")
    def _some_are_left(self) -> Self:
        if self.drop_per_critic >= self.num_quantiles:
            raise ValueError(
                f"drop_per_critic={self.drop_per_critic} leaves none of "
                f"num_quantiles={self.num_quantiles}"
            )
        return self


class TQCLearner(ReplayLearner[TQCConfig]):
    """A step of the critics, of the actor and of the temperature on each minibatch drawn."""

    reads: ClassVar[tuple[str, ...]] = TRANSITION
    modules: SoftModules

    def build(self) -> SoftModules:
        """See `Learner.build`."""
        config, distribution = self.config, self.policy.distribution
        if not isinstance(distribution, SquashedGaussian):
            raise SpecError(f"tqc acts in one Box, got {distribution}; sac takes Discrete, too")
        self.target_entropy = target_entropy(config.temperature.target_entropy, distribution)
        modules, self._follower = build_soft(
            self,
            num_critics=config.num_critics,
            inputs=distribution.size,
            outputs=config.num_quantiles,
        )
        return modules

    def learn(self, batch: Batch) -> Learned:
        """See `ReplayLearner.learn`."""
        modules, lr = self.modules, self.at(self.config.optim.lr)
        alpha = modules.alpha
        critic_loss, td_error_B, q = self.critic_loss(batch, alpha)
        critic_step = self.step(modules.critic_optimizer, critic_loss, lr=lr)
        actor_loss, entropy_B = self.actor_loss(batch, alpha)
        actor_step = self.step(modules.actor_optimizer, actor_loss, lr=lr)
        noted: dict[str, Any] = {**noted_steps(critic_step, actor_step)}
        noted |= temper(self, entropy_B, self.target_entropy, is_weight=batch.is_weight)
        self._follower.follow(self.updates)
        noted |= {"alpha": alpha, "entropy": entropy_B.mean(), "q_mean": q}
        return Learned(noted, td_error_B.abs())

    def critic_loss(
        self, batch: Batch, alpha: torch.Tensor
    ) -> tuple[Loss, torch.Tensor, torch.Tensor]:
        """Quantile regression of every critic on the pooled targets (eq. 10-12).

        Returns:
            The loss, the td error [B] of the means, and the mean value.
        """
        modules, config = self.modules, self.config
        with torch.no_grad():
            action, logp_B = sample(self, modules.model(batch.bootstrap_obs)[0])
            target_BM = tqc_targets(
                modules.target(batch.bootstrap_obs, action),
                logp_B,
                batch.return_n,
                batch.bootstrap_discount,
                alpha=alpha,
                drop_per_net=config.drop_per_critic,
            )
        quantile_KBN = modules.critics(batch.obs, batch.action)
        # The critics as more rows: one call, and a row's weight counts in each.
        count, rows, atoms = quantile_KBN.shape
        loss_B = quantile_huber_loss(
            quantile_KBN.reshape(count * rows, atoms), target_BM.repeat(count, 1)
        )
        loss = (batch.is_weight * loss_B.view(count, rows)).mean(1).sum() / atoms
        q_B = quantile_KBN.detach().mean((0, 2))
        return Loss({"critic_loss": loss}, {}), target_BM.mean(1) - q_B, q_B.mean()

    def actor_loss(self, batch: Batch, alpha: torch.Tensor) -> tuple[Loss, torch.Tensor]:
        """The actor's loss by the mean of all quantiles (eq. 13), and a sample's entropy [B]."""
        critics = self.modules.critics
        action, logp_B = sample(self, self.modules.model(batch.obs)[0])
        with frozen(critics):
            q_1B = critics(batch.obs, action).mean((0, 2)).unsqueeze(0)
        loss_B = soft_policy_loss(q_1B, logp_B, alpha)
        return Loss({"actor_loss": (batch.is_weight * loss_B).mean()}, {}), -logp_B.detach()


def dataflow(config: TQCConfig) -> Dataflow:
    """Rollouts, at first uniform → n-step returns → replay → TQC."""
    return Dataflow(
        source=source_of(
            config,
            Rollouts(
                act=RandomFirst(config.learning_starts_rows, Sample()), then=transitions(config)
            ),
        ),
        policy=PolicyKind(head="actor", squash=True),
        replay=replayed(config),
        learner=TQCLearner,
        fragments_per_version=config.fragments_per_version,
        max_policy_lag=config.rollout.max_policy_lag,
    )
