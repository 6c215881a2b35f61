"""Twin delayed deep deterministic policy gradient (Fujimoto et al. 2018, arXiv:1802.09477).

DDPG (Lillicrap et al. 2016, arXiv:1509.02971) is num_critics=1, policy_delay=1,
target_noise_scale=0, and noise.process=ou.

Legend: B rows, K critics.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from pipelines.config import ModelConfig, OffPolicyConfig, OptimConfig, RolloutConfig
from pipelines.config_base import PositiveInt
from pipelines.dataflow import Dataflow, Rollouts, source_of
from pipelines.noise_config import NoiseConfig
from pipelines.off_policy import (
    TRANSITION,
    Follower,
    Learned,
    ReplayLearner,
    follower_of,
    frozen,
    noted_steps,
    replayed,
    transitions,
)
from pipelines.specs import PolicyKind
from pipelines.statistics import new_moments
from rl_ops.batch import Batch
from rl_ops.deterministic import Deterministic
from rl_ops.exploration import RandomFirst
from rl_ops.learner import Loss, Modules
from rl_ops.models import build_model
from rl_ops.moments import RunningMoments
from rl_ops.optim import FlatOptimizer
from rl_ops.q_losses import td_target
from rl_ops.q_models import CriticEnsemble
from rl_ops.soft_losses import clipped_double_q, smoothed_action


class TD3Config(OffPolicyConfig):
    """TD3."""

    algo: Literal["td3"] = "td3"
    """Name of the algorithm."""
    noise: NoiseConfig = NoiseConfig()
    num_critics: PositiveInt = 2
    """Critics, of which the least value counts."""
    policy_delay: PositiveInt = 2
    """Gradient steps of the critics to one of the actor and of the targets."""
    target_noise_scale: float = Field(default=0.2, ge=0)
    """Deviation of the noise on actions in targets, which smooths the critics."""
    target_noise_clip: float = Field(default=0.5, ge=0)
    """Limit of that noise."""
    model: ModelConfig = ModelConfig(hidden=(256, 256), activation="relu")
    rollout: RolloutConfig = RolloutConfig(num_envs=1, fragment_steps=16)
    optim: OptimConfig = OptimConfig(lr=1e-3, eps=1e-8, max_grad_norm=None)


@dataclass
class TD3Modules(Modules):
    """Actor and critics, their slow copies, an optimiser each, input statistics."""

    model: nn.Module
    critics: CriticEnsemble
    actor_target: nn.Module
    critic_target: nn.Module
    actor_optimizer: FlatOptimizer
    critic_optimizer: FlatOptimizer
    obs_moments: RunningMoments | None
    reward_moments: RunningMoments | None


class TD3Learner(ReplayLearner[TD3Config]):
    """A step of the critics on each minibatch drawn, and now and then one of the actor."""

    reads: ClassVar[tuple[str, ...]] = TRANSITION
    modules: TD3Modules

    def build(self) -> TD3Modules:
        """See `Learner.build`."""
        config, spec, device = self.config, self.policy.model, self.world.device
        torch.manual_seed(config.seed)
        distribution = self.policy.distribution
        assert isinstance(distribution, Deterministic)  # the dataflow's policy is
        self.distribution = distribution
        model = build_model(spec).to(device)
        critics = CriticEnsemble(
            spec, num_critics=config.num_critics, inputs=distribution.size, outputs=1
        ).to(device)
        targets = follower_of(model), follower_of(critics)
        optimizers = self.optimizer(model), self.optimizer(critics)
        self._followers = [
            Follower(target, optimizer, config.target)
            for target, optimizer in zip(targets, optimizers, strict=True)
        ]
        moments = new_moments(config, self.policy)
        return TD3Modules(model, critics, *targets, *optimizers, *moments)

    def learn(self, batch: Batch) -> Learned:
        """See `ReplayLearner.learn`."""
        modules, config = self.modules, self.config
        lr = self.at(config.optim.lr)
        loss, td_error_KB, q = self.critic_loss(batch)
        noted: dict[str, Any] = {**self.step(modules.critic_optimizer, loss, lr=lr)}
        acts, rest = divmod(self.updates, config.policy_delay)
        if rest == 0:
            step = self.step(modules.actor_optimizer, self.actor_loss(batch), lr=lr)
            noted = noted_steps(noted, step)
            for follower in self._followers:
                follower.follow(acts)
        return Learned({**noted, "q_mean": q}, td_error_KB.abs().mean(0))

    def critic_loss(self, batch: Batch) -> tuple[Loss, torch.Tensor, torch.Tensor]:
        """Squared td error, summed over critics (algorithm 1); td error [K, B]; the mean value."""
        config, modules, obs = self.config, self.modules, batch.bootstrap_obs
        with torch.no_grad():
            action = self.distribution.mode(modules.actor_target(obs)[0])
            noise = torch.randn(batch.rows, self.distribution.size, generator=self.generator)
            action_BD = smoothed_action(
                action.reshape(batch.rows, -1),
                noise.to(action.device),
                noise_scale=config.target_noise_scale,
                noise_clip=config.target_noise_clip,
            )
            next_q_KB = modules.critic_target(obs, action_BD)[..., 0]
            target_B = td_target(
                batch.return_n, batch.bootstrap_discount, clipped_double_q(next_q_KB)
            )
        q_KB = modules.critics(batch.obs, batch.action)[..., 0]
        td_error_KB = target_B - q_KB
        loss = (batch.is_weight * td_error_KB.square()).mean(1).sum()
        return Loss({"critic_loss": loss}, {}), td_error_KB.detach(), q_KB.detach().mean()

    def actor_loss(self, batch: Batch) -> Loss:
        """Minus the first critic's value of the actor's own actions (algorithm 1)."""
        critics = self.modules.critics
        action = self.distribution.mode(self.modules.model(batch.obs)[0])
        with frozen(critics):
            q_B = critics(batch.obs, action)[0, :, 0]
        return Loss({"actor_loss": -(batch.is_weight * q_B).mean()}, {})


def dataflow(config: TD3Config) -> Dataflow:
    """Rollouts, at first uniform, then with noise → n-step returns → replay → TD3."""
    return Dataflow(
        source=source_of(
            config,
            Rollouts(
                act=RandomFirst(config.learning_starts_rows, config.noise.act()),
                then=transitions(config),
            ),
        ),
        policy=PolicyKind(head="actor", deterministic=True),
        replay=replayed(config),
        learner=TD3Learner,
        fragments_per_version=config.fragments_per_version,
        max_policy_lag=config.rollout.max_policy_lag,
    )
