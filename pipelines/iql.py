"""Implicit Q-learning (Kostrikov et al. 2021, arXiv:2110.06169).

No action that was not logged is ever valued: V is an upper expectile of Q over logged actions, Q
learns from V, and the policy is regressed on logged actions by their advantage.

Legend: B rows, K critics.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from pipelines.config_base import PositiveInt, Schedule
from pipelines.dataflow import Dataflow
from pipelines.logged import Critics, LoggedConfig, logged, state_values
from pipelines.off_policy import (
    TRANSITION,
    Follower,
    Learned,
    ReplayLearner,
    follower_of,
    noted_steps,
)
from pipelines.specs import PolicyKind
from pipelines.statistics import new_moments
from rl_ops import columns as c
from rl_ops.batch import Batch
from rl_ops.learner import Loss, Modules
from rl_ops.models import build_model
from rl_ops.moments import RunningMoments
from rl_ops.offline_losses import advantage_weight, expectile_loss
from rl_ops.optim import FlatOptimizer
from rl_ops.q_losses import td_target


class IQLConfig(LoggedConfig):
    """IQL."""

    algo: Literal["iql"] = "iql"
    """Name of the algorithm."""
    expectile: float = Field(default=0.7, gt=0, lt=1)
    """Of Q over logged actions: 0.5 is their mean, towards 1 their best."""
    temperature: float = Field(default=3.0, ge=0)
    """Inverse: actions are weighted by exp(temperature * advantage); 0 clones all."""
    max_weight: float = Field(default=100.0, gt=0)
    """Limit of those weights."""
    num_critics: PositiveInt = 2
    """Critics, of which the least value counts."""
    actor_lr: Schedule | None = None
    """Learning rate of the actor; None is optim.lr."""


@dataclass
class IQLModules(Modules):
    """Actor, critics and their slow copy, state values, an optimiser each, input statistics."""

    model: nn.Module
    critics: nn.Module
    target: nn.Module
    value: nn.Module
    actor_optimizer: FlatOptimizer
    critic_optimizer: FlatOptimizer
    value_optimizer: FlatOptimizer
    obs_moments: RunningMoments | None
    reward_moments: RunningMoments | None


class IQLLearner(ReplayLearner[IQLConfig]):
    """A step of V, of the actor and of the critics on each minibatch drawn."""

    reads: ClassVar[tuple[str, ...]] = TRANSITION
    modules: IQLModules

    def build(self) -> IQLModules:
        """See `Learner.build`."""
        torch.manual_seed(self.config.seed)
        self.distribution = self.policy.distribution
        model = build_model(self.policy.model).to(self.world.device)
        self.q = Critics(self, num_critics=self.config.num_critics)
        critics, value = self.q.network, state_values(self)
        critic_optimizer, target = self.optimizer(critics), follower_of(critics)
        self._follower = Follower(target, critic_optimizer, self.config.target)
        optimizers = self.optimizer(model), critic_optimizer, self.optimizer(value)
        moments = new_moments(self.config, self.policy)
        return IQLModules(model, critics, target, value, *optimizers, *moments)

    def learn(self, batch: Batch) -> Learned:
        """See `ReplayLearner.learn`; the order of steps is that of the authors' code."""
        modules, config = self.modules, self.config
        lr = self.at(config.optim.lr)
        actor_lr = lr if config.actor_lr is None else self.at(config.actor_lr)
        value_loss, advantage_B = self.value_loss(batch)
        noted = self.step(modules.value_optimizer, value_loss, lr=lr)
        actor_loss = self.actor_loss(batch, advantage_B)
        noted = noted_steps(noted, self.step(modules.actor_optimizer, actor_loss, lr=actor_lr))
        critic_loss, td_error_KB = self.critic_loss(batch)
        noted = noted_steps(noted, self.step(modules.critic_optimizer, critic_loss, lr=lr))
        self._follower.follow(self.updates)
        noted[c.ADVANTAGE] = advantage_B.mean()
        return Learned(noted, td_error_KB.abs().mean(0))

    def value_loss(self, batch: Batch) -> tuple[Loss, torch.Tensor]:
        """The expectile of target Q over logged actions (eq. 5), and Q - V [B], detached."""
        with torch.no_grad():
            q_B = self.q(self.modules.target, batch.obs, batch.action).amin(0)
        advantage_B = q_B - self.modules.value(batch.obs)[0, :, 0]
        loss_B = expectile_loss(advantage_B, expectile=self.config.expectile)
        return Loss({"value_loss": (batch.is_weight * loss_B).mean()}, {}), advantage_B.detach()

    def actor_loss(self, batch: Batch, advantage_B: torch.Tensor) -> Loss:
        """Advantage-weighted regression on logged actions (eq. 7)."""
        config = self.config
        weight_B = advantage_weight(
            advantage_B, temperature=config.temperature, max_weight=config.max_weight
        )
        logp_B = self.distribution.logp(self.modules.model(batch.obs)[0], batch.action)
        return Loss({"actor_loss": -(batch.is_weight * weight_B * logp_B).mean()}, {})

    def critic_loss(self, batch: Batch) -> tuple[Loss, torch.Tensor]:
        """Squared td error against V of the next observation (eq. 6), and the td error [K, B]."""
        with torch.no_grad():
            next_value_B = self.modules.value(batch.bootstrap_obs)[0, :, 0]
            target_B = td_target(batch.return_n, batch.bootstrap_discount, next_value_B)
        td_error_KB = target_B - self.q(self.modules.critics, batch.obs, batch.action)
        loss = (batch.is_weight * td_error_KB.square()).mean(1).sum()
        return Loss({"critic_loss": loss}, {}), td_error_KB.detach()


def dataflow(config: IQLConfig) -> Dataflow:
    """Logged transitions → IQL."""
    return logged(config, IQLLearner, policy=PolicyKind(head="actor"))
