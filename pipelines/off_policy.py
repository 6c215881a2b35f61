"""What learners share that draw their minibatches from a replay memory.

Legend: B rows.
"""

import copy
import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import nn

from pipelines.config import OffPolicyConfig, TargetConfig
from pipelines.dataflow import Replayed, learner_reward
from pipelines.held_out import held_out_losses
from pipelines.statistics import HasMoments, acting_weights, normalized, observe
from rl_ops import columns as c
from rl_ops.batch import Batch
from rl_ops.learner import Averages, Learner, Metrics, World, load_arrays
from rl_ops.operators import AddTDPriority, NStep, Operator
from rl_ops.optim import FlatOptimizer, flatten_parameters
from rl_ops.policy import PolicySpec, Weights
from rl_ops.replay import Replay, ReplaySpec
from rl_ops.stream_data import StreamData

C = TypeVar("C", bound=OffPolicyConfig)

TRANSITION = (c.ACTION, c.RETURN_N, c.BOOTSTRAP_OBS, c.BOOTSTRAP_DISCOUNT)
"""What one-step and n-step targets are made of, besides the observation."""


def transitions(config: OffPolicyConfig) -> tuple[Operator, ...]:
    """The operators that turn rewards into n-step returns, in the rollout worker."""
    before, reward = learner_reward(config)
    return (*before, NStep(config.n_step, config.gamma, reward=reward))


def initial_priorities(config: OffPolicyConfig) -> Operator:
    """The operator that says how surprising each row is to the network that acted."""
    return AddTDPriority(config.n_step, config.gamma, reward=learner_reward(config)[1])


def replayed(config: OffPolicyConfig) -> Replayed:
    """The memory that a configuration asks for."""
    replay = config.replay
    return Replayed(
        memory=ReplaySpec(
            capacity_rows=replay.capacity_rows,
            prioritized=replay.prioritized,
            priority_alpha=replay.alpha,
            priority_eps=replay.eps,
        ),
        minibatch_rows=config.minibatch_rows,
        updates_per_row=config.updates_per_row,
        starts_rows=config.learning_starts_rows,
    )


class Learned(NamedTuple):
    """What one gradient step gives.

    Attributes:
        metrics: name → scalar.
        priority: [B] |td_error| of the rows drawn; None where nobody asks.
    """

    metrics: Mapping[str, torch.Tensor | float]
    priority: torch.Tensor | None


class ReplayLearner(Learner[C]):
    """Learns from minibatches of rows that it did not sample just now.

    Of rollouts it stores what it consumes, and takes `updates_per_row` gradient steps for each row.
    Of a data set it takes as many as it is told to. With both, each minibatch has a share of each.

    A subclass gives `build` and `learn`; its modules have `model`, which acts, and statistics.

    Attributes:
        replay: this rank's memory of rollouts; of no use where nothing rolls out.
        updates: minibatches learned from so far, by which `updates_per_row` is kept.
        held_out: minibatches that are never learned from, whose losses are reported.
    """

    def __init__(self, config: C, policy: PolicySpec, *, world: World | None = None) -> None:
        super().__init__(config, policy, world=world)
        self.on_nonfinite = config.faults.on_nonfinite_loss
        self.replay = Replay(replayed(config).memory, device=self.world.device)
        self.memory = None if config.is_offline else self.replay
        self.updates = 0
        self.held_out: Sequence[Batch] = ()
        self._ones = torch.ones(config.minibatch_rows, device=self.world.device)

    @property
    def progress(self) -> int:
        """Where schedules are: env steps, or gradient steps where nothing rolls out."""
        return self.updates if self.config.is_offline else self.env_steps

    @abstractmethod
    def learn(self, batch: Batch) -> Learned:
        """One gradient step on rows drawn, whose weights in the loss are `batch.is_weight`."""

    def update(self, batch: Batch) -> Metrics:
        """Store a version's rows; learn from as many draws as they are worth."""
        config, averages = self.config, Averages()
        observe(self._statistics, batch, self.world)
        priority = batch.priority if c.PRIORITY in batch else None
        self.replay.add(batch.select([c.OBS, *self.reads]), priority=priority)
        count, logged_rows = self._due(batch.rows), self._logged_rows()
        draws = self.replay.minibatches(
            count,
            config.minibatch_rows - logged_rows,
            generator=self.generator,
            beta=self.at(config.replay.beta),
        )
        logged: Iterator[Batch] = iter(())
        if self.data is not None:
            logged = self.data.minibatches(count, logged_rows, generator=self.generator)
        for drawn in draws:
            self.updates += 1
            own = self._prepared(drawn.batch, drawn.is_weight)
            other = next(logged, None)
            learned = self.learn(own if other is None else _joined(own, self._prepared(other)))
            averages.add(learned.metrics)
            if config.replay.prioritized and learned.priority is not None:
                priority = learned.priority[: len(drawn.index)]
                self.replay.update_priorities(drawn.index, priority)
        figures = averages.means() | {"replay_rows": float(self.replay.rows)}
        return figures | self._validated()

    def update_logged(self, count: int) -> Metrics:
        """`count` gradient steps on logged rows alone; returns means as `update` does."""
        assert self.data is not None  # the loop has attached it
        averages, rows = Averages(), self.config.minibatch_rows
        for batch in self.data.minibatches(count, rows, generator=self.generator):
            self.updates += 1
            averages.add(self.learn(self._prepared(batch)).metrics)
        return averages.means() | self._validated()

    def _validated(self) -> Metrics:
        """Losses on what is held out; nothing where nothing is."""
        if not self.held_out:
            return {}
        return held_out_losses(self, (self._prepared(batch) for batch in self.held_out))

    def _logged_rows(self) -> int:
        """How many rows of each minibatch are logged ones, where others are rollouts'."""
        rows, offline = self.config.minibatch_rows, self.config.offline
        return 0 if offline is None else min(max(1, round(rows * offline.frac)), rows - 1)

    def _due(self, rows: int) -> int:
        """Gradient steps for `rows` more rows on this rank; the same number on every rank."""
        seen = self.env_steps + sum(self.world.gather_objects(rows))
        worth = max(0, seen - self.config.learning_starts_rows) * self.config.updates_per_row
        # Rounded first, because 0.29 x 100 is 28.999999999999996. None are due for a while where a
        # run goes on with fewer updates a row.
        return max(0, math.floor(round(worth, 6)) - self.updates)

    def _prepared(self, batch: Batch, is_weight: torch.Tensor | None = None) -> Batch:
        if is_weight is None:
            is_weight = self._ones[: batch.rows]
        clip, statistics = self.config.connectors.obs_clip, self._statistics
        if statistics.obs_moments is None:
            return batch.with_columns(is_weight=is_weight)
        names = [name for name in (c.OBS, c.BOOTSTRAP_OBS) if name in batch]
        fed = {name: normalized(statistics, getattr(batch, name), clip=clip) for name in names}
        return batch.with_columns(is_weight=is_weight, **fed)

    @property
    def _statistics(self) -> HasMoments:
        return cast(HasMoments, self.modules)

    @property
    def _model(self) -> nn.Module:
        return cast(nn.Module, getattr(self.modules, "model"))  # noqa: B009 - each subclass's

    def optimizer(self, *modules: nn.Module) -> FlatOptimizer:
        """An optimiser of the configuration's kind."""
        spec = self.config.optim.spec()
        return FlatOptimizer(list(modules), spec, reduce_gradient=self.world.average)

    def weights(self) -> Weights:
        """See `Learner.weights`."""
        return acting_weights(self._statistics, self._model, env_steps=self.env_steps)

    def set_weights(self, weights: Weights) -> None:
        """See `Learner.set_weights`; target networks follow at their own pace."""
        load_arrays(self._model, weights.module)
        self.world.synchronize(self.modules)

    def state(self) -> dict[str, Any]:
        """See `Learner.state`."""
        state = {**super().state(), "updates": self.updates}
        return state | ({"data": self.data.state()} if isinstance(self.data, StreamData) else {})

    def load_state(self, state: Mapping[str, Any]) -> None:
        """See `Learner.load_state`."""
        super().load_state(state)
        self.updates = state["updates"]
        if "data" in state and isinstance(self.data, StreamData):
            self.data.load_state(state["data"])


def _joined(own: Batch, logged: Batch) -> Batch:
    """The rows of both, of the first one's columns."""
    return Batch(
        {name: torch.cat([getattr(own, name), getattr(logged, name)]) for name in own.names}
    )


class Follower:
    """Moves a copy of networks behind them: by tau every period, or wholly with tau 1.

        target = (1 - tau) target + tau network

    Args:
        target: `follower_of` the optimiser's modules.
        optimizer: of the networks.
        config: by how much, and how often.

    Source: Mnih et al. 2015 (hard, tau 1); Lillicrap et al. 2016, arXiv:1509.02971 (soft).
    """

    def __init__(self, target: nn.Module, optimizer: FlatOptimizer, config: TargetConfig) -> None:
        self._flat = flatten_parameters(list(target.parameters()))
        self._source = optimizer.flat
        if self._flat.shape != self._source.shape:
            raise ValueError(
                f"Follower: the copy has {len(self._flat)} numbers, its network trains "
                f"{len(self._source)}; a network with a slow copy must train all its parameters"
            )
        self._tau, self._period = config.tau, config.period_updates

    @torch.no_grad()
    def follow(self, updates: int) -> None:
        """Move if this is the time: after `updates` gradient steps, counted from 1."""
        if updates % self._period == 0:
            if self._tau == 1.0:
                self._flat.copy_(self._source)
            else:
                self._flat.lerp_(self._source, self._tau)


def noted_steps(
    critic: Mapping[str, torch.Tensor | float], actor: Mapping[str, torch.Tensor | float]
) -> dict[str, torch.Tensor | float]:
    """What `Learner.step` notes of two optimisers, none hiding the other's norm or refusal."""
    norms = {"grad_norm": critic["grad_norm"], "actor_grad_norm": actor["grad_norm"]}
    skipped = max(float(critic["skipped"]), float(actor["skipped"]))
    return {**critic, **actor, **norms, "skipped": skipped}


def follower_of(module: nn.Module) -> nn.Module:
    """A copy of `module` that nothing trains."""
    return copy.deepcopy(module).requires_grad_(False)


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Gradients pass through `modules` and are not made for them."""
    parameters = [p for module in modules for p in module.parameters()]
    for parameter in parameters:
        parameter.requires_grad = False
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad = True
