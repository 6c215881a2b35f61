"""Behaviour cloning: the policy under which the logged actions are most likely.

Pomerleau 1991, Neural Computation 3(1).

Legend: B rows, P distribution parameters.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from pipelines.dataflow import Dataflow
from pipelines.logged import LoggedConfig, logged
from pipelines.off_policy import Learned, ReplayLearner
from pipelines.specs import PolicyKind
from pipelines.statistics import new_moments
from rl_ops import columns as c
from rl_ops.batch import Batch
from rl_ops.learner import Loss, Modules
from rl_ops.models import build_model
from rl_ops.moments import RunningMoments
from rl_ops.optim import FlatOptimizer
from rl_ops.written_actor import WrittenActor


class BCConfig(LoggedConfig):
    """Behaviour cloning."""

    algo: Literal["bc"] = "bc"
    """Name of the algorithm."""


@dataclass
class BCModules(Modules):
    """An actor, its optimiser, input statistics."""

    model: nn.Module
    optimizer: FlatOptimizer
    obs_moments: RunningMoments | None
    reward_moments: RunningMoments | None


class BCLearner(ReplayLearner[BCConfig]):
    """One step of maximum likelihood on each minibatch drawn."""

    reads: ClassVar[tuple[str, ...]] = (c.ACTION,)
    modules: BCModules

    def build(self) -> BCModules:
        """See `Learner.build`."""
        torch.manual_seed(self.config.seed)
        self.distribution = self.policy.distribution
        model = build_model(self.policy.model).to(self.world.device)
        optimizer = self.optimizer(model)
        self.written = WrittenActor.of(model, self.distribution)
        return BCModules(model, optimizer, *new_moments(self.config, self.policy))

    def learn(self, batch: Batch) -> Learned:
        """See `ReplayLearner.learn`."""
        optimizer, lr = self.modules.optimizer, self.at(self.config.optim.lr)
        if self.written is None:
            loss, logp_B = self.loss(batch)
            return Learned({**self.step(optimizer, loss, lr=lr), c.LOGP: logp_B.mean()}, None)
        loss, logp_B = self.written_loss(self.written, batch)
        noted = self.checked(loss.terms, optimizer.descend(lr=lr))
        return Learned({**noted, c.LOGP: logp_B.mean()}, None)

    def loss(self, batch: Batch) -> tuple[Loss, torch.Tensor]:
        """Minus the mean logp of logged actions, and it [B], detached."""
        params_BP = self.modules.model(batch.obs)[0]
        logp_B = self.distribution.logp(params_BP, batch.action)
        return Loss({"bc_loss": -(batch.is_weight * logp_B).mean()}, {}), logp_B.detach()

    @torch.no_grad()
    def written_loss(self, written: WrittenActor, batch: Batch) -> tuple[Loss, torch.Tensor]:
        """As `loss`, leaving its gradient."""
        logp_B = written.forward(batch.obs, batch.action)
        written.backward(batch.is_weight / -batch.rows)
        return Loss({"bc_loss": -(batch.is_weight * logp_B).mean()}, {}), logp_B


def dataflow(config: BCConfig) -> Dataflow:
    """Logged actions → BC."""
    return logged(config, BCLearner, policy=PolicyKind(head="actor"))
