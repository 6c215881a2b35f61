"""Soft actor-critic, for continuous and for discrete actions.

Haarnoja et al. 2018, arXiv:1812.05905 (two critics, the temperature learned); Christodoulou 2019,
arXiv:1910.07207 (discrete actions).

Legend: B rows, A actions, K critics.
"""

from typing import Any, ClassVar, Literal

import torch

from pipelines.config import ModelConfig, OffPolicyConfig, OptimConfig, RolloutConfig
from pipelines.config_base import PositiveInt, Schedule
from pipelines.dataflow import Dataflow, Rollouts, source_of
from pipelines.noise_config import NoiseConfig
from pipelines.off_policy import (
    TRANSITION,
    Learned,
    ReplayLearner,
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
from pipelines.soft_nets import soft_nets
from pipelines.specs import PolicyKind
from rl_ops.batch import Batch
from rl_ops.distributions import Categorical, SquashedGaussian
from rl_ops.errors import SpecError
from rl_ops.exploration import RandomFirst, Sample
from rl_ops.learner import Loss
from rl_ops.q_losses import taken, td_target
from rl_ops.soft_losses import (
    soft_next_value,
    soft_next_value_discrete,
    soft_policy_loss_discrete,
)


class SACConfig(OffPolicyConfig):
    """SAC with two critics and a learned temperature."""

    algo: Literal["sac"] = "sac"
    """Name of the algorithm."""
    temperature: TemperatureConfig = TemperatureConfig()
    noise: NoiseConfig | None = None
    """Gather data by the policy's mode with this noise, instead of by sampling: where a reward is
    found only by pushing one way for long, as Ornstein-Uhlenbeck noise does."""
    num_critics: PositiveInt = 2
    """Critics, of which the least value counts."""
    actor_lr: Schedule | None = None
    """Learning rate of the actor; None is optim.lr."""
    model: ModelConfig = ModelConfig(hidden=(256, 256), activation="relu")
    rollout: RolloutConfig = RolloutConfig(num_envs=1, fragment_steps=16)
    optim: OptimConfig = OptimConfig(lr=3e-4, eps=1e-8, max_grad_norm=None)


class SACLearner(ReplayLearner[SACConfig]):
    """A step of the critics, of the actor and of the temperature on each minibatch drawn."""

    reads: ClassVar[tuple[str, ...]] = TRANSITION
    modules: SoftModules

    def build(self) -> SoftModules:
        """See `Learner.build`."""
        self.distribution = distribution = self.policy.distribution
        if isinstance(distribution, Categorical):
            inputs, outputs = 0, distribution.num_actions
        elif isinstance(distribution, SquashedGaussian):
            inputs, outputs = distribution.size, 1
        else:
            raise SpecError(f"sac acts in one Box or one Discrete space, got {distribution}")
        wanted = self.config.temperature.target_entropy
        self.target_entropy = target_entropy(wanted, distribution)
        modules, self._follower = build_soft(
            self, num_critics=self.config.num_critics, inputs=inputs, outputs=outputs
        )
        self.nets = soft_nets(self, modules) if inputs else None
        return modules

    def learn(self, batch: Batch) -> Learned:
        """See `ReplayLearner.learn`."""
        modules, config = self.modules, self.config
        alpha = modules.alpha
        lr = self.at(config.optim.lr)
        actor_lr = lr if config.actor_lr is None else self.at(config.actor_lr)
        td_error_KB, q_KB = self.critic_gradient(batch, alpha)
        critic_loss = 0.5 * (batch.is_weight * td_error_KB.square()).mean(1).sum()
        norm = modules.critic_optimizer.descend(lr=lr)
        critic_step = self.checked({"critic_loss": critic_loss}, norm)
        if self.nets is None:
            actor_loss, entropy_B = self.actor_loss(batch, alpha)
            actor_step = self.step(modules.actor_optimizer, actor_loss, lr=actor_lr)
        else:
            actor_loss, entropy_B = self.nets.actor_loss(batch, alpha)
            norm = modules.actor_optimizer.descend(lr=actor_lr)
            actor_step = self.checked(actor_loss.terms, norm)
        noted: dict[str, Any] = {**noted_steps(critic_step, actor_step)}
        noted |= temper(self, entropy_B, self.target_entropy, is_weight=batch.is_weight)
        self._follower.follow(self.updates)
        noted |= {"alpha": alpha, "entropy": entropy_B.mean(), "q_mean": q_KB.mean()}
        return Learned(noted, td_error_KB.abs().mean(0))

    def critic_gradient(
        self, batch: Batch, alpha: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Leave the gradient of half the squared td error, summed over critics (eq. 5).

        Returns:
            Without gradient the rows' td error and Q, [K, B] each.
        """
        modules, nets = self.modules, self.nets
        if nets is None:
            next_value_B = self.next_value(batch.bootstrap_obs, alpha)
            q_KB = torch.stack([taken(q_BA, batch.action) for q_BA in modules.critics(batch.obs)])
        else:
            next_action, next_logp_B = sample(self, nets.params(batch)[batch.rows :])
            next_q_KB = nets.target_q(batch.bootstrap_obs, next_action)
            next_value_B = soft_next_value(next_q_KB, next_logp_B, alpha)
            q_KB = nets.q(batch.obs, batch.action)
        target_B = td_target(batch.return_n, batch.bootstrap_discount, next_value_B)
        td_error_KB = target_B - q_KB.detach()
        slope_KB = batch.is_weight * td_error_KB * (-1 / batch.rows)
        if nets is None:
            modules.critic_optimizer.differentiate(q_KB, slope_KB)
        else:
            nets.descend(slope_KB)
        return td_error_KB, q_KB.detach()

    @torch.no_grad()
    def next_value(self, obs: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        """Discrete actions: the soft value [B], by the target critics and the policy of now."""
        params_BP = self.modules.model(obs)[0]
        return soft_next_value_discrete(self.modules.target(obs), params_BP, alpha)

    def actor_loss(self, batch: Batch, alpha: torch.Tensor) -> tuple[Loss, torch.Tensor]:
        """Discrete actions: the actor's loss (eq. 7), and the entropy [B] of each row."""
        params_BP = self.modules.model(batch.obs)[0]
        with torch.no_grad():
            q_KBA = self.modules.critics(batch.obs)
        loss_B = soft_policy_loss_discrete(q_KBA, params_BP, alpha)
        entropy_B = self.distribution.entropy(params_BP)
        return Loss({"actor_loss": (batch.is_weight * loss_B).mean()}, {}), entropy_B.detach()


def dataflow(config: SACConfig) -> Dataflow:
    """Rollouts, at first uniform → n-step returns → replay → SAC."""
    act = Sample() if config.noise is None else config.noise.act()
    return Dataflow(
        source=source_of(
            config,
            Rollouts(act=RandomFirst(config.learning_starts_rows, act), then=transitions(config)),
        ),
        policy=PolicyKind(head="actor", squash=True),
        replay=replayed(config),
        learner=SACLearner,
        fragments_per_version=config.fragments_per_version,
        max_policy_lag=config.rollout.max_policy_lag,
    )
