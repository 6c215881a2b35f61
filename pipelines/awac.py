"""Advantage-weighted actor-critic (Nair et al. 2020, arXiv:2006.09359).

Critics learn what the policy of now is worth; the policy is regressed on logged actions by their
advantage over its own. With offline.frac below 1 it goes on with rollouts, as in the paper.

Legend: B rows, A actions, K critics, P distribution parameters.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from pipelines.config import ModelConfig
from pipelines.config_base import PositiveInt, Schedule
from pipelines.dataflow import Dataflow
from pipelines.logged import Critics, LoggedConfig, logged
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
from rl_ops.batch import Batch
from rl_ops.learner import Loss, Modules
from rl_ops.models import build_model
from rl_ops.moments import RunningMoments
from rl_ops.offline_losses import normalized_advantage_weight
from rl_ops.optim import FlatOptimizer
from rl_ops.q_losses import td_target
from rl_ops.soft_losses import clipped_double_q, soft_next_value_discrete


class AWACConfig(LoggedConfig):
    """AWAC."""

    algo: Literal["awac"] = "awac"
    """Name of the algorithm."""
    temperature: float = Field(default=1.0, ge=0)
    """Inverse, 1 / lambda of the paper: actions are weighted by exp(temperature * advantage), whose
    mean over a minibatch is 1; 0 clones all."""
    num_critics: PositiveInt = 2
    """Critics, of which the least value counts."""
    actor_lr: Schedule | None = None
    """Learning rate of the actor; None is optim.lr."""
    actor_weight_decay: float = Field(default=1e-4, ge=0)
    """Of the actor; critics have optim.weight_decay."""
    minibatch_rows: PositiveInt = 1024
    """Rows drawn for a gradient step, on each learner rank."""
    model: ModelConfig = ModelConfig(hidden=(256, 256, 256, 256), activation="relu")


@dataclass
class AWACModules(Modules):
    """Actor, critics and their slow copy, an optimiser each, input statistics."""

    model: nn.Module
    critics: nn.Module
    target: nn.Module
    actor_optimizer: FlatOptimizer
    critic_optimizer: FlatOptimizer
    obs_moments: RunningMoments | None
    reward_moments: RunningMoments | None


class AWACLearner(ReplayLearner[AWACConfig]):
    """A step of the actor and of the critics on each minibatch drawn."""

    reads: ClassVar[tuple[str, ...]] = TRANSITION
    modules: AWACModules

    def build(self) -> AWACModules:
        """See `Learner.build`."""
        torch.manual_seed(self.config.seed)
        self.distribution = self.policy.distribution
        model = build_model(self.policy.model).to(self.world.device)
        self.q = Critics(self, num_critics=self.config.num_critics)
        critics = self.q.network
        critic_optimizer, target = self.optimizer(critics), follower_of(critics)
        self._follower = Follower(target, critic_optimizer, self.config.target)
        decayed = dataclasses.replace(
            self.config.optim.spec(), weight_decay=self.config.actor_weight_decay
        )
        actor_optimizer = FlatOptimizer([model], decayed, reduce_gradient=self.world.average)
        moments = new_moments(self.config, self.policy)
        return AWACModules(model, critics, target, actor_optimizer, critic_optimizer, *moments)

    def learn(self, batch: Batch) -> Learned:
        """See `ReplayLearner.learn`; both losses are of the networks as they were before it."""
        modules, config = self.modules, self.config
        lr = self.at(config.optim.lr)
        actor_lr = lr if config.actor_lr is None else self.at(config.actor_lr)
        critic_loss, td_error_KB, q_KB = self.critic_loss(batch)
        actor_loss, advantage_B = self.actor_loss(batch, q_KB)
        critic_step = self.step(modules.critic_optimizer, critic_loss, lr=lr)
        actor_step = self.step(modules.actor_optimizer, actor_loss, lr=actor_lr)
        self._follower.follow(self.updates)
        noted: dict[str, Any] = {**noted_steps(critic_step, actor_step)}
        noted |= {"advantage_mean": advantage_B.mean(), "q_mean": q_KB.mean()}
        return Learned(noted, td_error_KB.abs().mean(0))

    def critic_loss(self, batch: Batch) -> tuple[Loss, torch.Tensor, torch.Tensor]:
        """Squared td error against the policy's own next action (algorithm 1), summed over critics.

        Returns:
            The loss, and without gradient the rows' td error and Q, [K, B] each.
        """
        with torch.no_grad():
            params_BP = self.modules.model(batch.bootstrap_obs)[0]
            next_value_B = self.value(self.modules.target, batch.bootstrap_obs, params_BP)
            target_B = td_target(batch.return_n, batch.bootstrap_discount, next_value_B)
        q_KB = self.q(self.modules.critics, batch.obs, batch.action)
        td_error_KB = target_B - q_KB
        loss = (batch.is_weight * td_error_KB.square()).mean(1).sum()
        return Loss({"critic_loss": loss}, {}), td_error_KB.detach(), q_KB.detach()

    def actor_loss(self, batch: Batch, q_KB: torch.Tensor) -> tuple[Loss, torch.Tensor]:
        """Advantage-weighted regression on logged actions (algorithm 1), and the advantage [B].

        Args:
            batch: rows.
            q_KB: [K, B] of their actions, by the critics of now.
        """
        params_BP = self.modules.model(batch.obs)[0]
        value_B = self.value(self.modules.critics, batch.obs, params_BP.detach())
        advantage_B = clipped_double_q(q_KB) - value_B
        weight_B = normalized_advantage_weight(
            advantage_B, temperature=self.config.temperature, is_weight=batch.is_weight
        )
        logp_B = self.distribution.logp(params_BP, batch.action)
        loss = Loss({"actor_loss": -(batch.is_weight * weight_B * logp_B).mean()}, {})
        return loss, advantage_B

    @torch.no_grad()
    def value(self, critics: Any, obs: torch.Tensor, params_BP: torch.Tensor) -> torch.Tensor:
        """V [B] of a policy's params: of one action drawn, or in expectation over a few."""
        if self.q.is_discrete:
            return soft_next_value_discrete(critics(obs), params_BP, 0.0)
        noise = torch.randn(len(params_BP), self.distribution.noise_size, generator=self.generator)
        action = self.distribution.sample(params_BP, noise.to(params_BP.device))
        return clipped_double_q(self.q(critics, obs, action))


def dataflow(config: AWACConfig) -> Dataflow:
    """Logged transitions → AWAC."""
    return logged(config, AWACLearner, policy=PolicyKind(head="actor"))
