"""Batch-constrained deep Q-learning for discrete actions (Fujimoto et al. 2019, arXiv:1910.01708).

A double DQN whose best action, in acting and in targets, is the best of those that the data's
policy would likely take, as a network trained to imitate it says.

Legend: B rows, A actions.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn
from torch.nn.functional import cross_entropy

from pipelines.config import ModelConfig
from pipelines.config_base import PositiveInt, Schedule
from pipelines.dataflow import Dataflow
from pipelines.logged import LoggedConfig, logged
from pipelines.off_policy import TRANSITION, Follower, Learned, ReplayLearner, follower_of
from pipelines.specs import PolicyKind
from pipelines.statistics import new_moments
from rl_ops.batch import Batch
from rl_ops.constrained_q import ConstrainedQ
from rl_ops.exploration import EpsilonGreedy
from rl_ops.learner import Loss, Modules
from rl_ops.losses import huber
from rl_ops.model_spec import QSpec
from rl_ops.models import build_model
from rl_ops.moments import RunningMoments
from rl_ops.optim import FlatOptimizer
from rl_ops.q_losses import double_q_value, taken, td_target

_MODEL = ModelConfig(
    kind="custom",
    factory="rl_ops.constrained_q:ConstrainedQ",
    hidden=(256, 256),
    activation="relu",
)


class BCQConfig(LoggedConfig):
    """Discrete BCQ."""

    algo: Literal["bcq"] = "bcq"
    """Name of the algorithm."""
    threshold: float = Field(default=0.3, ge=0, lt=1)
    """How likely an action must be beside the likeliest: 0 allows all, as DQN does; towards 1
    acting is imitation."""
    logit_coef: float = Field(default=0.01, ge=0)
    """Weight of the squared logits of the imitation in the loss."""
    huber_delta: float | None = Field(default=1.0, gt=0)
    """|td_error| beyond which the loss grows linearly; None is the squared error."""
    epsilon: Schedule = 0.001
    """Probability of a uniform action where it explores."""
    model: ModelConfig = _MODEL
    """`shared` for one trunk of Q and imitation; convolutions of images are those of the DQN of
    2015."""
    minibatch_rows: PositiveInt = 64
    """Rows drawn for a gradient step, on each learner rank."""

    @model_validator(mode="after")
    def _keeps_the_network(self) -> Self:
        wrong = [
            x for x in ("kind", "factory", "conv") if getattr(self.model, x) != getattr(_MODEL, x)
        ]
        if wrong:
            raise ValueError(f"bcq has a network of its own: leave model.{wrong[0]} out")
        return self


@dataclass
class BCQModules(Modules):
    """Q and imitation, their slow copy, an optimiser, input statistics."""

    model: nn.Module
    target: nn.Module
    optimizer: FlatOptimizer
    obs_moments: RunningMoments | None
    reward_moments: RunningMoments | None


class BCQLearner(ReplayLearner[BCQConfig]):
    """One step of values and of imitation on each minibatch drawn."""

    reads: ClassVar[tuple[str, ...]] = TRANSITION
    modules: BCQModules

    def build(self) -> BCQModules:
        """See `Learner.build`."""
        torch.manual_seed(self.config.seed)
        model = build_model(self.policy.model).to(self.world.device)
        assert isinstance(model, ConstrainedQ)  # the configuration takes no other
        model.threshold.fill_(self.config.threshold)
        self.network, target = model, follower_of(model)
        optimizer = self.optimizer(model)
        self._follower = Follower(target, optimizer, self.config.target)
        return BCQModules(model, target, optimizer, *new_moments(self.config, self.policy))

    def learn(self, batch: Batch) -> Learned:
        """See `ReplayLearner.learn`."""
        loss, td_error_B = self.loss(batch)
        modules = self.modules
        noted = self.step(modules.optimizer, loss, lr=self.at(self.config.optim.lr))
        self._follower.follow(self.updates)
        return Learned({**noted, **loss.metrics}, td_error_B.abs())

    def loss(self, batch: Batch) -> tuple[Loss, torch.Tensor]:
        """The authors' code's: Huber of the td error, -log G(a|x), and the size of G's logits.

        Returns:
            The loss, and the td error [B], detached.
        """
        config, weight_B = self.config, batch.is_weight
        with torch.no_grad():
            target: ConstrainedQ = self.modules.target  # type: ignore[assignment]
            allowed_q_BA = self.network(batch.bootstrap_obs)[0]
            next_value_B = double_q_value(target.values(batch.bootstrap_obs), allowed_q_BA)
            target_B = td_target(batch.return_n, batch.bootstrap_discount, next_value_B)
        q_BA, logits_BA = self.network.both(batch.obs)
        q_B = taken(q_BA, batch.action)
        td_error_B = target_B - q_B
        imitation_B = cross_entropy(logits_BA, batch.action, reduction="none")
        size_B = logits_BA.square().mean(1)
        terms = {
            "q_loss": (weight_B * huber(td_error_B, delta=config.huber_delta)).mean(),
            "imitation_loss": (weight_B * imitation_B).mean(),
            "logit_loss": config.logit_coef * (weight_B * size_B).mean(),
        }
        return Loss(terms, {"q_mean": q_B.detach().mean()}), td_error_B.detach()


def dataflow(config: BCQConfig) -> Dataflow:
    """Logged transitions → discrete BCQ."""
    # how many actions there are is filled in once the environment is known
    policy = PolicyKind(head="q", q=QSpec(num_actions=0))
    return logged(config, BCQLearner, policy=policy, act=EpsilonGreedy(config.epsilon))
