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
        return BCModules(model, self.optimizer(model), *new_moments(self.config, self.policy))

    def learn(self, batch: Batch) -> Learned:
        """See `ReplayLearner.learn`."""
        params_BP = self.modules.model(batch.obs)[0]
        logp_B = self.distribution.logp(params_BP, batch.action)
        loss = Loss({"bc_loss": -(batch.is_weight * logp_B).mean()}, {})
        noted = self.step(self.modules.optimizer, loss, lr=self.at(self.config.optim.lr))
        return Learned({**noted, c.LOGP: logp_B.detach().mean()}, None)


def dataflow(config: BCConfig) -> Dataflow:
    """Logged actions → BC."""
    return logged(config, BCLearner, policy=PolicyKind(head="actor"))
