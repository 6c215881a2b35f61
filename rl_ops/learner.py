"""The learner: everything that is trained, its loss, its update, and its complete state.

Legend: B rows, D features.
"""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from rl_ops.batch import Batch
from rl_ops.moments import RunningMoments
from rl_ops.optim import FlatOptimizer
from rl_ops.policy import PolicySpec, Weights
from rl_ops.schedules import Schedule, value_at

C = TypeVar("C")
T = TypeVar("T")
Metrics = dict[str, float]


class NonFiniteError(RuntimeError):
    """A loss or gradient was NaN or Inf and the configuration says to stop."""


@dataclass(frozen=True)
class World:
    """This learner's place among the data-parallel ranks.

    Attributes:
        rank, size: of this process, and how many there are.
        device: where tensors live.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def average(self, gradient: torch.Tensor) -> None:
        """Replace `gradient` by its mean over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(gradient)
            gradient.div_(self.size)

    def gather(self, values: torch.Tensor) -> list[torch.Tensor]:
        """The tensors of all ranks, by rank; shapes must agree."""
        if self.size == 1:
            return [values]
        values = values.contiguous().to(self.device)  # nccl takes nothing else
        parts = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(parts, values)
        return [part.cpu() for part in parts]

    def gather_objects(self, value: T) -> list[T]:
        """Small picklable values of all ranks, by rank."""
        if self.size == 1:
            return [value]
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, value)
        return parts

    def synchronize(self, modules: "Modules") -> None:
        """Give every rank rank 0's nets and statistics; optimisers stay."""
        if self.size > 1:
            state = modules.state()
            for tensor in state["modules"].values():
                sent = tensor.to(self.device)
                dist.broadcast(sent, src=0)
                tensor.copy_(sent)
            modules.load(state)  # statistics came as copies


@dataclass
class Modules:
    """All that a learner trains: nets, targets, optimisers, statistics, as fields of a subclass.

    A checkpoint iterates the fields, so that nothing can be left out.
    """

    def state(self) -> dict[str, dict[str, torch.Tensor]]:
        """{"modules" | "optimizers": {"field.name": tensor}}.

        Nets and optimisers share memory with theirs; of statistics they are copies.
        """
        groups: dict[str, dict[str, torch.Tensor]] = {"modules": {}, "optimizers": {}}
        for f in dataclasses.fields(self):
            group, tensors = _tensors(f.name, getattr(self, f.name))
            groups[group] |= {f"{f.name}.{name}": tensor for name, tensor in tensors.items()}
        return groups

    def load(self, state: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """The inverse of `state`.

        Raises:
            ValueError: keys or shapes differ; the message lists them, and nothing was loaded.
        """
        own = {k: v for group in self.state().values() for k, v in group.items()}
        given = {k: v for group in state.values() for k, v in group.items()}
        check_tensors(own, given, what="the checkpoint")
        for f in dataclasses.fields(self):
            value, prefix = getattr(self, f.name), f"{f.name}."
            group = _tensors(f.name, value)[0]
            tensors = {k[len(prefix) :]: v for k, v in state[group].items() if k.startswith(prefix)}
            if isinstance(value, nn.Module):
                value.load_state_dict(tensors)
            elif isinstance(value, FlatOptimizer):
                value.load(tensors)
            elif isinstance(value, RunningMoments):
                loaded = RunningMoments.from_state({k: v.numpy() for k, v in tensors.items()})
                setattr(self, f.name, loaded)


def _tensors(name: str, value: Any) -> tuple[str, dict[str, torch.Tensor]]:
    if value is None:
        return "modules", {}
    if isinstance(value, nn.Module):
        return "modules", dict(value.state_dict())
    if isinstance(value, FlatOptimizer):
        return "optimizers", value.state()
    if isinstance(value, RunningMoments):
        state = value.state()
        return "modules", {k: torch.from_numpy(np.array(v)) for k, v in state.items()}
    raise TypeError(f"Modules.{name} is a {type(value).__name__}; expected a module or optimizer")


def check_tensors(
    own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], *, what: str
) -> None:
    """Refuse tensors of other names or shapes than our own: torch would load what fits.

    Raises:
        ValueError: `what` is of another architecture; lists every key that differs.
    """
    problems = [f"missing {name}" for name in sorted(own.keys() - state.keys())]
    problems += [f"unexpected {name}" for name in sorted(state.keys() - own.keys())]
    problems += [
        f"{name}: got {tuple(state[name].shape)}, here {tuple(own[name].shape)}"
        for name in sorted(own.keys() & state.keys())
        if own[name].shape != state[name].shape
    ]
    if problems:
        raise ValueError(f"{what} is of another architecture: " + "; ".join(problems))


def load_arrays(module: nn.Module, arrays: Mapping[str, Any]) -> None:
    """Replace a module's tensors by arrays of the same names.

    Raises:
        ValueError: names or shapes differ; the message lists them, and nothing was loaded.
    """
    tensors = {name: torch.from_numpy(np.array(x)) for name, x in arrays.items()}
    check_tensors(module.state_dict(), tensors, what="a policy with these weights")
    module.load_state_dict(tensors)


class Loss(NamedTuple):
    """A loss by terms; what is minimised is their sum.

    Attributes:
        terms: name → scalar with gradient, weighted by its coefficient already.
        metrics: name → detached scalar, for the log only.
    """

    terms: dict[str, torch.Tensor]
    metrics: dict[str, torch.Tensor]

    @property
    def total(self) -> torch.Tensor:
        """The sum of all terms."""
        first, *rest = self.terms.values()
        return sum(rest, first)


class Averages:
    """Means of scalars over an update; tensors are kept as tensors until read."""

    def __init__(self) -> None:
        self._values: dict[str, list[torch.Tensor | float]] = {}

    def add(self, values: Mapping[str, torch.Tensor | float]) -> None:
        """Note one value each."""
        for name, value in values.items():
            noted = value.detach() if isinstance(value, torch.Tensor) else value
            self._values.setdefault(name, []).append(noted)

    def means(self) -> Metrics:
        """The mean of each name's values."""
        return {name: sum(map(float, v)) / len(v) for name, v in self._values.items()}


class Learner(ABC, Generic[C]):
    """Base of every algorithm's learner.

    Args:
        config: the algorithm's configuration.
        policy: what acts; its model is what `build` trains.
        world: this process among the data-parallel ranks.

    Attributes:
        env_steps: rows consumed so far, over all ranks.
        grad_steps: optimiser steps so far.
        version: of the policy that `weights` gives; 0 before the first update.
        memory: what it remembers of rows beside its modules, with `state`, `contents` and `load`,
            so that checkpoints can keep it; None for nothing.
        data: logged rows that it draws from; None where there are none.
        on_nonfinite: what a gradient that is NaN or Inf does: stop the run, or skip its step.
    """

    reads: ClassVar[tuple[str, ...]]
    """Columns that `update` needs, besides the module's observations."""

    def __init__(self, config: C, policy: PolicySpec, *, world: World | None = None) -> None:
        self.config = config
        self.policy = policy
        self.world = world if world is not None else World()
        self.env_steps = 0
        self.grad_steps = 0
        self.version = 0
        self.memory: Any = None
        self.data: Any = None
        self.on_nonfinite: Literal["stop", "skip"] = "stop"
        self.generator = torch.Generator()
        self.modules = self.build()
        self.world.synchronize(self.modules)

    @abstractmethod
    def build(self) -> Modules:
        """Make nets, optimisers and statistics; called once."""

    @abstractmethod
    def update(self, batch: Batch) -> Metrics:
        """Learn from one version's rows; returns means of loss terms and diagnostics."""

    def update_logged(self, count: int) -> Metrics:
        """Take `count` gradient steps on logged rows; returns what `update` does."""
        raise NotImplementedError(f"{type(self).__name__} learns from rollouts alone")

    @abstractmethod
    def weights(self) -> Weights:
        """What rollout workers act with, as arrays of their own."""

    @abstractmethod
    def set_weights(self, weights: Weights) -> None:
        """Replace what `weights` gives; optimiser state and statistics stay."""

    @property
    def progress(self) -> int:
        """Where schedules are: env steps."""
        return self.env_steps

    def at(self, schedule: Schedule) -> float:
        """A schedule's value now."""
        return value_at(schedule, self.progress)

    def step(
        self, optimizer: FlatOptimizer, loss: Loss, *, lr: float
    ) -> Mapping[str, torch.Tensor | float]:
        """One optimiser step; returns the loss's terms and the gradient norm.

        Raises:
            NonFiniteError: the gradient was not finite and `on_nonfinite` is "stop". The weights
                are as they were before the step.
        """
        return self.checked(loss.terms, optimizer.step(loss.total, lr=lr))

    def checked(
        self, terms: Mapping[str, torch.Tensor], norm: float
    ) -> Mapping[str, torch.Tensor | float]:
        """Count a step by its gradient norm, or refuse it; returns what is noted of it."""
        finite = math.isfinite(norm)
        if not finite and self.on_nonfinite == "stop":
            values = {name: float(term.detach()) for name, term in terms.items()}
            raise NonFiniteError(
                f"gradient norm {norm} at grad step {self.grad_steps}, loss terms {values}; "
                "lower optim.lr, normalise observations, or set faults.on_nonfinite_loss to skip"
            )
        self.grad_steps += finite
        return {**terms, "grad_norm": norm, "skipped": float(not finite)}

    def seed(self, seed: int) -> None:
        """Seed the learner's own randomness: shuffles."""
        self.generator.manual_seed(seed + 7919 * self.world.rank)

    def state(self) -> dict[str, Any]:
        """Counters and random state, JSON-able; tensors are in `modules.state()`."""
        return {
            "env_steps": self.env_steps,
            "grad_steps": self.grad_steps,
            "version": self.version,
            "generator": self.generator.get_state().numpy().tobytes().hex(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        self.env_steps = state["env_steps"]
        self.grad_steps = state["grad_steps"]
        self.version = state["version"]
        raw = np.frombuffer(bytes.fromhex(state["generator"]), dtype=np.uint8).copy()
        self.generator.set_state(torch.from_numpy(raw))
