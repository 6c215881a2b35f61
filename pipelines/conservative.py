"""What CQL's two heads share: the weight of their term, fixed or learned; and sampled actions.

Legend: B rows, P distribution parameters, D features of an action, N samples.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import nn

from pipelines.config_base import Group, PositiveInt, Schedule
from pipelines.off_policy import ReplayLearner
from pipelines.soft_actor import Temperature
from rl_ops.conservative_losses import lagrange_loss
from rl_ops.learner import Loss, Modules
from rl_ops.moments import RunningMoments
from rl_ops.optim import FlatOptimizer
from rl_ops.q_models import CriticEnsemble


class ConservativeConfig(Group):
    """How values of actions are pushed down where none of the kind was logged.

    The gap is the log of the summed (or integrated) exponentials of all actions' values, less the
    logged action's value.
    """

    weight: float | None = Field(default=None, gt=0)
    """Of the gap in the loss, and where a learned weight starts; None is 5 for continuous actions
    and 1 for discrete ones, as the authors have them."""
    lagrange: bool = False
    """Learn the weight, so that the gap comes to target_gap."""
    target_gap: float = 5.0
    """What a learned weight brings the gap to, in units of the return."""
    lr: Schedule | None = None
    """Learning rate of a learned weight; None is optim.lr."""
    num_samples: PositiveInt = 10
    """Continuous actions drawn for each row from each of three: uniformly, from the policy, and
    from the policy at the next observation."""
    gradient_samples: PositiveInt | None = 8
    """Continuous actions of each row that the gradient goes through, of all 3 * num_samples that
    are drawn: the heavy ones, and some of the light ones in place of all, so that it is right on
    average. An update takes two thirds of the time. None is all, as in the paper."""


class GapWeight(nn.Module):
    """The weight of the gap, positive by construction."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.log_weight = nn.Parameter(torch.tensor(weight).log())

    @property
    def value(self) -> torch.Tensor:
        """The weight now, a constant to losses; at most 1e6, as in the authors' code."""
        return self.log_weight.detach().exp().clamp(max=1e6)


@dataclass
class QModules(Modules):
    """Discrete actions: Q and its slow copy, the gap's weight, optimisers, input statistics."""

    model: nn.Module
    target: nn.Module
    gap_weight: GapWeight
    optimizer: FlatOptimizer
    gap_optimizer: FlatOptimizer
    obs_moments: RunningMoments | None
    reward_moments: RunningMoments | None


@dataclass
class CQLModules(Modules):
    """Actor, critics and their slow copy, two weights, an optimiser each, input statistics."""

    model: nn.Module
    critics: CriticEnsemble
    target: nn.Module
    temperature: Temperature
    gap_weight: GapWeight
    actor_optimizer: FlatOptimizer
    critic_optimizer: FlatOptimizer
    alpha_optimizer: FlatOptimizer
    gap_optimizer: FlatOptimizer
    obs_moments: RunningMoments | None
    reward_moments: RunningMoments | None

    @property
    def alpha(self) -> torch.Tensor:
        """The temperature now, a constant to losses."""
        return self.temperature.log_alpha.detach().exp()


def gap_weight(learner: ReplayLearner[Any], *, default: float) -> GapWeight:
    """The weight that a learner starts with."""
    given: ConservativeConfig = learner.config.conservative
    weight = GapWeight(default if given.weight is None else given.weight)
    return weight.to(learner.world.device)


def weigh(
    learner: ReplayLearner[Any], gap: torch.Tensor, *, is_weight: torch.Tensor
) -> dict[str, torch.Tensor | float]:
    """A step of a learned weight towards the gap that is wanted; what to note of it.

    Args:
        learner: whose modules have `gap_weight` and `gap_optimizer`.
        gap: [B], or [K, B] of several critics; none is evaluated anew.
        is_weight: [B].
    """
    given: ConservativeConfig = learner.config.conservative
    noted: dict[str, torch.Tensor | float] = {"gap": gap.mean()}
    if not given.lagrange:
        return noted
    modules: Any = learner.modules
    loss = lagrange_loss(modules.gap_weight.log_weight, gap, given.target_gap)
    terms = {"gap_weight_loss": (is_weight * loss).mean()}
    lr = learner.at(learner.config.optim.lr if given.lr is None else given.lr)
    step = learner.step(modules.gap_optimizer, Loss(terms, {}), lr=lr)
    return {**noted, **{name: step[name] for name in terms}, "gap_weight": modules.gap_weight.value}


@torch.no_grad()
def sampled_actions(
    learner: ReplayLearner[Any], params_2BP: torch.Tensor, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Actions that values are pushed down at, a third from each of three densities.

    Args:
        learner: whose distribution and generator are used.
        params_2BP: [2B, P] at observations, then at those that follow them.
        count: N of each density.

    Returns:
        [B, 3N, D] in [-1, 1], and the log density [B, 3N] of each, in nats.

    Source: Kumar et al. 2020, arXiv:2006.04779, appendix F; the policy at the next observation is
    from the authors' code.
    """
    distribution: Any = learner.policy.distribution
    rows, size, device = len(params_2BP) // 2, distribution.size, params_2BP.device
    noise = torch.randn(2 * rows * count, size, generator=learner.generator).to(device)
    uniform = torch.rand(rows, count, size, generator=learner.generator).to(device) * 2 - 1
    action, logp = distribution.sample_logp(params_2BP.repeat_interleave(count, 0), noise)
    here, after = action.reshape(2, rows, count, size)
    logp_here, logp_after = logp.view(2, rows, count)
    log_uniform = torch.full_like(logp_here, -size * math.log(2.0))
    actions = torch.cat([uniform, here, after], 1)
    return actions, torch.cat([log_uniform, logp_here, logp_after], 1)
