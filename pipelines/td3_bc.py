"""TD3+BC: TD3 whose actor also imitates (Fujimoto & Gu 2021, arXiv:2106.06860).

Legend: B rows, D features of an action, K critics.
"""

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from pipelines.config import ConnectorsConfig
from pipelines.config_base import PositiveInt
from pipelines.dataflow import Dataflow
from pipelines.logged import Critics, LoggedConfig, logged
from pipelines.noise_config import NoiseConfig
from pipelines.off_policy import (
    TRANSITION,
    Follower,
    Learned,
    ReplayLearner,
    follower_of,
    frozen,
    noted_steps,
)
from pipelines.specs import PolicyKind
from pipelines.statistics import new_moments
from pipelines.td3 import TD3Modules
from rl_ops.batch import Batch
from rl_ops.conservative_losses import td3_bc_loss, value_scale
from rl_ops.deterministic import Deterministic
from rl_ops.learner import Loss
from rl_ops.models import build_model
from rl_ops.q_losses import td_target
from rl_ops.soft_losses import clipped_double_q, smoothed_action


class TD3BCConfig(LoggedConfig):
    """TD3+BC, with observations normalised as the authors have them."""

    algo: Literal["td3_bc"] = "td3_bc"
    """Name of the algorithm."""
    alpha: float = Field(default=2.5, ge=0)
    """Weight of values, as a multiple of their mean size, against imitation."""
    noise: NoiseConfig = NoiseConfig()
    num_critics: PositiveInt = 2
    """Critics, of which the least value counts."""
    policy_delay: PositiveInt = 2
    """Gradient steps of the critics to one of the actor and of the targets."""
    target_noise_scale: float = Field(default=0.2, ge=0)
    """Deviation of the noise on actions in targets, which smooths the critics."""
    target_noise_clip: float = Field(default=0.5, ge=0)
    """Limit of that noise."""
    connectors: ConnectorsConfig = ConnectorsConfig(normalize_obs=True)


class TD3BCLearner(ReplayLearner[TD3BCConfig]):
    """A step of the critics on each minibatch drawn, and now and then one of the actor."""

    reads: ClassVar[tuple[str, ...]] = TRANSITION
    modules: TD3Modules

    def build(self) -> TD3Modules:
        """See `Learner.build`."""
        torch.manual_seed(self.config.seed)
        distribution = self.policy.distribution
        assert isinstance(distribution, Deterministic)  # the dataflow's policy is
        self.distribution = distribution
        model = build_model(self.policy.model).to(self.world.device)
        critics = Critics(self, num_critics=self.config.num_critics).network
        targets = follower_of(model), follower_of(critics)
        optimizers = self.optimizer(model), self.optimizer(critics)
        self._followers = [
            Follower(target, optimizer, self.config.target)
            for target, optimizer in zip(targets, optimizers, strict=True)
        ]
        moments = new_moments(self.config, self.policy)
        return TD3Modules(model, critics, *targets, *optimizers, *moments)

    def learn(self, batch: Batch) -> Learned:
        """See `ReplayLearner.learn`."""
        modules, lr = self.modules, self.at(self.config.optim.lr)
        loss, td_error_KB = self.critic_loss(batch)
        noted: dict[str, Any] = {**self.step(modules.critic_optimizer, loss, lr=lr)}
        acts, rest = divmod(self.updates, self.config.policy_delay)
        if rest == 0:
            step = self.step(modules.actor_optimizer, self.actor_loss(batch), lr=lr)
            noted = noted_steps(noted, step)
            for follower in self._followers:
                follower.follow(acts)
        return Learned({**noted, **loss.metrics}, td_error_KB.abs().mean(0))

    def critic_loss(self, batch: Batch) -> tuple[Loss, torch.Tensor]:
        """TD3's: the squared td error, summed over critics; and the td error [K, B], detached."""
        config, modules, obs = self.config, self.modules, batch.bootstrap_obs
        with torch.no_grad():
            action_BD = self.distribution.mode(modules.actor_target(obs)[0]).flatten(1)
            noise_BD = torch.randn(action_BD.shape, generator=self.generator)
            next_BD = smoothed_action(
                action_BD,
                noise_BD.to(action_BD.device),
                noise_scale=config.target_noise_scale,
                noise_clip=config.target_noise_clip,
            )
            next_value_B = clipped_double_q(modules.critic_target(obs, next_BD)[..., 0])
            target_B = td_target(batch.return_n, batch.bootstrap_discount, next_value_B)
        q_KB = modules.critics(batch.obs, batch.action)[..., 0]
        td_error_KB = target_B - q_KB
        loss = (batch.is_weight * td_error_KB.square()).mean(1).sum()
        metrics = {"q_mean": q_KB.detach().mean()}
        return Loss({"critic_loss": loss}, metrics), td_error_KB.detach()

    def actor_loss(self, batch: Batch) -> Loss:
        """The first critic's scaled value of the actor's actions against imitation (eq. 3)."""
        critics = self.modules.critics
        action = self.distribution.mode(self.modules.model(batch.obs)[0])
        with frozen(critics):
            q_B = critics(batch.obs, action)[0, :, 0]
        scale = value_scale(q_B, alpha=self.config.alpha)
        loss_B = td3_bc_loss(q_B, action.flatten(1), batch.action.flatten(1), scale)
        return Loss({"actor_loss": (batch.is_weight * loss_B).mean()}, {})


def dataflow(config: TD3BCConfig) -> Dataflow:
    """Logged transitions → TD3+BC."""
    policy = PolicyKind(head="actor", deterministic=True)
    return logged(config, TD3BCLearner, policy=policy, act=config.noise.act())
