"""MARWIL (Wang et al. 2018): imitation weighted by exp of the advantage over logged returns.

"Exponentially Weighted Imitation Learning for Batched Historical Data", NeurIPS. Values are learned
from returns to the episode's end, with a bootstrap where it was truncated; with beta 0 it is
behaviour cloning.

Legend: B rows, P distribution parameters.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from pipelines.config import ModelConfig, OptimConfig
from pipelines.config_base import PositiveInt
from pipelines.dataflow import Dataflow
from pipelines.logged import LoggedConfig, logged
from pipelines.off_policy import TRANSITION, Learned, ReplayLearner
from pipelines.specs import PolicyKind
from pipelines.statistics import new_moments
from rl_ops.batch import Batch
from rl_ops.learner import Loss, Modules
from rl_ops.models import build_model
from rl_ops.moments import RunningMoments
from rl_ops.offline_losses import moving_square, scaled_advantage_weight
from rl_ops.optim import FlatOptimizer
from rl_ops.q_losses import td_target


class MARWILConfig(LoggedConfig):
    """MARWIL."""

    algo: Literal["marwil"] = "marwil"
    """Name of the algorithm."""
    beta: float = Field(default=1.0, ge=0)
    """Actions are weighted by exp(beta * advantage / c), c the root of the moving mean of squared
    advantages; 0 clones all."""
    value_coef: float = Field(default=1.0, ge=0)
    """Weight of the value term in the loss."""
    square_init: float = Field(default=100.0, gt=0)
    """Where c^2 starts, in squared units of the return; with the authors' rate it stays there."""
    square_rate: float = Field(default=1e-8, ge=0, le=1)
    """Share of each minibatch's mean squared advantage in c^2."""
    n_step: PositiveInt | None = None  # type: ignore[assignment]
    """Rewards summed before bootstrapping; None sums all to the episode's end, which takes logged
    rows alone."""
    minibatch_rows: PositiveInt = 2000
    """Rows drawn for a gradient step, on each learner rank."""
    model: ModelConfig = ModelConfig(hidden=(256, 256))
    optim: OptimConfig = OptimConfig(lr=1e-4, eps=1e-8, max_grad_norm=None)

    @model_validator(mode="after")
    def _windows_fit(self) -> Self:
        if not self.is_offline and self.n_step is None:
            raise ValueError(
                "n_step=None sums rewards to the episode's end, which rollouts' fragments do not "
                f"reach; with offline.frac={self.offline.frac:g} set n_step, to 32 for instance"
            )
        fitting: Self = super()._windows_fit()  # type: ignore[operator]
        return fitting


class Square(nn.Module):
    """c^2: the moving mean of squared advantages."""

    average: torch.Tensor

    def __init__(self, init: float) -> None:
        super().__init__()
        self.register_buffer("average", torch.tensor(init))


@dataclass
class MARWILModules(Modules):
    """An actor-critic, its optimiser, the scale of advantages, input statistics."""

    model: nn.Module
    square: Square
    optimizer: FlatOptimizer
    obs_moments: RunningMoments | None
    reward_moments: RunningMoments | None


class MARWILLearner(ReplayLearner[MARWILConfig]):
    """One step of actor and value on each minibatch drawn."""

    reads: ClassVar[tuple[str, ...]] = TRANSITION
    modules: MARWILModules

    def build(self) -> MARWILModules:
        """See `Learner.build`."""
        torch.manual_seed(self.config.seed)
        self.distribution = self.policy.distribution
        model = build_model(self.policy.model).to(self.world.device)
        square = Square(self.config.square_init).to(self.world.device)
        moments = new_moments(self.config, self.policy)
        return MARWILModules(model, square, self.optimizer(model), *moments)

    def learn(self, batch: Batch) -> Learned:
        """See `ReplayLearner.learn`."""
        loss, advantage_B = self.loss(batch)
        noted = self.step(self.modules.optimizer, loss, lr=self.at(self.config.optim.lr))
        figures = {
            "advantage_mean": advantage_B.mean(),
            "square": self.modules.square.average.clone(),
        }
        return Learned({**noted, **figures}, advantage_B.abs())

    def loss(self, batch: Batch) -> tuple[Loss, torch.Tensor]:
        """Weighted imitation and half the squared advantage (algorithm 1); the advantage [B].

        c^2 has taken in this minibatch before it scales it, as in RLlib.
        """
        config, modules = self.config, self.modules
        params_BP, value_B = modules.model(batch.obs)
        logp_B = self.distribution.logp(params_BP, batch.action)
        advantage_B = self.returns(batch) - value_B
        if config.beta == 0:
            return Loss(
                {"policy_loss": -(batch.is_weight * logp_B).mean()}, {}
            ), advantage_B.detach()
        square = modules.square.average
        square.copy_(moving_square(square, advantage_B, rate=config.square_rate))
        self.world.average(square)  # ranks differ in rows, and would drift apart
        weight_B = scaled_advantage_weight(advantage_B, square, beta=config.beta)
        value_loss = 0.5 * (batch.is_weight * advantage_B.square()).mean()
        terms = {
            "policy_loss": -(batch.is_weight * weight_B * logp_B).mean(),
            "value_loss": config.value_coef * value_loss,
        }
        return Loss(terms, {}), advantage_B.detach()

    @torch.no_grad()
    def returns(self, batch: Batch) -> torch.Tensor:
        """[B] discounted rewards to the episode's end, and V of now where that was cut off."""
        next_value_B = self.modules.model(batch.bootstrap_obs)[1]
        return td_target(batch.return_n, batch.bootstrap_discount, next_value_B)


def dataflow(config: MARWILConfig) -> Dataflow:
    """Logged returns → MARWIL."""
    return logged(config, MARWILLearner, policy=PolicyKind(head="actor_critic"))
