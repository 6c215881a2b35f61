"""Callbacks: a user's own code, told of a run's moments in the process where they happen."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipelines.config_errors import ConfigError, Problem
from pipelines.errors import CallbackError
from rl_ops import columns as c
from rl_ops.object_path import load_object

if TYPE_CHECKING:
    from pipelines.pipeline import Pipeline
    from pipelines.result import Result

Figures = Mapping[str, float] | None


class StopTraining(Exception):  # noqa: N818 - an ordinary end, not an error
    """Raised in `Callbacks.on_result`: the run ends as if a stop criterion held.

    Args:
        reason: what the result has as `stopped_by`.
    """


@dataclass(frozen=True)
class EpisodeEnd:
    """An episode that ended in a rollout worker.

    Attributes:
        episode_id: as in the lake.
        return_: undiscounted, of the environment's own rewards.
        length: in env steps.
        terminated, truncated: how it ended.
        worker_id, env_id: where.
        policy_version: that acted last.
        steps: rows of its last fragment, in order; of a longer episode the earlier ones are gone.
    """

    episode_id: str
    return_: float
    length: int
    terminated: bool
    truncated: bool
    worker_id: int
    env_id: int
    policy_version: int
    steps: pa.Table


class Callbacks:
    """What a run tells of itself; a subclass overrides the moments that it wants.

    Named in a configuration by path, `callbacks: ["my_module:MyCallbacks"]`. Each process makes
    its own instance: each rollout worker one for the first two moments, the driver one for the
    others. Figures that are returned become part of results as `custom/NAME`: those of rollout
    workers as `_mean`, `_min` and `_max` of the latest reporting.window_episodes values. What a
    callback raises ends the run, but for `StopTraining`.
    """

    def on_episode_end(self, episode: EpisodeEnd) -> Figures:
        """In a rollout worker: an episode ended, and was not aborted."""

    def on_fragment(self, fragment: pa.Table) -> Figures:
        """In a rollout worker: a fragment is complete, with all that operators added to it."""

    def on_start(self, pipeline: "Pipeline") -> None:
        """In the driver: the run is ready, and nothing was sampled yet."""

    def on_result(self, pipeline: "Pipeline", result: "Result") -> Figures:
        """In the driver: an iteration ended.

        Its evaluation, if it has one, is in the result; its checkpoint is yet to be written.

        Raises:
            StopTraining: the run is to end. A learner that is ahead ends with the iteration that
                it is at, whose result then has the reason.
        """

    def on_evaluation(self, pipeline: "Pipeline", evaluation: Mapping[str, float]) -> Figures:
        """In the driver: an evaluation ended; its figures, and `policy_version`."""

    def on_checkpoint(self, pipeline: "Pipeline", path: Path) -> None:
        """In the driver: a checkpoint is whole and noted in the lake."""

    def on_failure(self, pipeline: "Pipeline", failure: Mapping[str, Any]) -> None:
        """In the driver: something failed and was survived; a row of table `failures`."""

    def on_end(self, pipeline: "Pipeline", status: str, message: str | None) -> None:
        """In the driver: the run was closed; finished, stopped or failed, and then why."""


@dataclass(frozen=True)
class CallbackSpec:
    """How a process makes its callbacks.

    Attributes:
        path: "module:Class".
        kwargs: of the class.
        where: in the configuration.
    """

    path: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    where: str = "callbacks"

    def kind(self) -> type[Callbacks]:
        """The class.

        Raises:
            ConfigError: there is no such class, or it is none of callbacks.
        """
        try:
            kind = load_object(self.path)
        except ValueError as error:
            raise self._refused(str(error)) from error
        if not (isinstance(kind, type) and issubclass(kind, Callbacks)):
            raise self._refused(
                f"{self.path!r} is no subclass of pipelines.callbacks.Callbacks, which has every "
                "moment as a method to override"
            )
        return kind

    def make(self) -> Callbacks:
        """A new instance.

        Raises:
            ConfigError: as `kind`, or the class refuses its arguments.
        """
        try:
            return self.kind()(**self.kwargs)
        except TypeError as error:
            raise self._refused(f"{self.path!r} cannot be made: {error}") from error

    def _refused(self, what: str) -> ConfigError:
        fix = "name a class as module:Class, from the working directory or an installed package"
        return ConfigError(Problem(self.where, what, fix))


def overrides(kind: type[Callbacks], moment: str) -> bool:
    """Whether a moment is one that callbacks of a class want."""
    return getattr(kind, moment) is not getattr(Callbacks, moment)


def observers(specs: Sequence[CallbackSpec]) -> "tuple[Observe, ...]":
    """The operator for rollout workers; none where nobody wants their moments.

    Raises:
        ConfigError: a class is not there.
    """
    moments = ("on_episode_end", "on_fragment")
    wanted = tuple(spec for spec in specs if any(overrides(spec.kind(), m) for m in moments))
    return (Observe(wanted),) if wanted else ()


@dataclass(frozen=True)
class Observe:
    """Tells callbacks of fragments and of the episodes that end in them; changes no row.

    What they return goes to the learner with the fragment's first row, as JSON.
    """

    callbacks: tuple[CallbackSpec, ...]
    reads = (c.EPISODE_ID, c.EPISODE_RETURN, c.EPISODE_LENGTH, c.TERMINATED, c.TRUNCATED)
    adds = (c.CUSTOM_METRICS,)

    def __repr__(self) -> str:
        return f"Observe({', '.join(spec.path for spec in self.callbacks)})"

    @cached_property
    def _made(self) -> list[tuple[str, Callbacks]]:
        return [(spec.path, spec.make()) for spec in self.callbacks]

    def __getstate__(self) -> dict[str, Any]:
        # Instances are of one process.
        return {"callbacks": self.callbacks}

    def __call__(self, table: pa.Table) -> pa.Table:
        """See `Operator`."""
        found: list[dict[str, float]] = []
        for path, callbacks in self._made:
            if overrides(type(callbacks), "on_episode_end"):
                for episode in ended_episodes(table):
                    given = _told(path, "on_episode_end", callbacks.on_episode_end, episode)
                    found += [given] if given else []
            if overrides(type(callbacks), "on_fragment"):
                given = _told(path, "on_fragment", callbacks.on_fragment, table)
                found += [given] if given else []
        values: list[str | None] = [None] * table.num_rows
        if found and values:
            values[0] = json.dumps(found)
        return table.append_column(c.CUSTOM_METRICS, pa.array(values, pa.string()))


def ended_episodes(table: pa.Table) -> Iterator[EpisodeEnd]:
    """Episodes whose last row is in a fragment, in its order; aborted ones are left out."""
    returns = table.column(c.EPISODE_RETURN)
    ends = np.flatnonzero(returns.is_valid().to_numpy())
    if not len(ends):
        return
    ids = table.column(c.EPISODE_ID).to_numpy()
    # Rows are env-major: those of an episode lie together.
    starts = np.flatnonzero(np.append(True, ids[1:] != ids[:-1]))
    names = (c.EPISODE_LENGTH, c.TERMINATED, c.TRUNCATED, c.WORKER_ID, c.ENV_ID, c.POLICY_VERSION)
    for end in ends.tolist():
        start = int(starts[np.searchsorted(starts, end, side="right") - 1])
        length, terminated, truncated, worker, env, version = (
            table.column(name)[end].as_py() for name in names
        )
        yield EpisodeEnd(
            episode_id=str(ids[end]),
            return_=float(returns[end].as_py()),
            length=int(length),
            terminated=bool(terminated),
            truncated=bool(truncated),
            worker_id=int(worker),
            env_id=int(env),
            policy_version=int(version),
            steps=table.slice(start, end + 1 - start),
        )


def read_figures(table: pa.Table) -> list[dict[str, float]]:
    """What callbacks said of a fragment; nothing where there are none."""
    if c.CUSTOM_METRICS not in table.column_names:
        return []
    told = table.column(c.CUSTOM_METRICS)[0].as_py() if table.num_rows else None
    return [] if told is None else json.loads(told)


class DriverCallbacks:
    """The callbacks of a run's driver.

    Args:
        specs: of the configuration.

    Raises:
        ConfigError: one cannot be made.
    """

    def __init__(self, specs: Sequence[CallbackSpec]) -> None:
        self._made = [(spec.path, spec.make()) for spec in specs]

    def tell(self, moment: str, *arguments: Any) -> dict[str, float]:
        """Tell all who want to know; the figures that they gave.

        Raises:
            StopTraining: one asks for the end; after all were told.
            CallbackError: one raised something else.
        """
        figures: dict[str, float] = {}
        stop: StopTraining | None = None
        for path, callbacks in self._made:
            if not overrides(type(callbacks), moment):
                continue
            try:
                figures |= _told(path, moment, getattr(callbacks, moment), *arguments)
            except StopTraining as error:
                stop = stop or error
        if stop is not None:
            raise stop
        return figures


def _told(path: str, moment: str, call: Any, *arguments: Any) -> dict[str, float]:
    try:
        given = call(*arguments)
    except StopTraining:
        if moment == "on_result":
            raise
        raise CallbackError(
            f"callbacks {path!r}, {moment}: StopTraining can be raised in on_result only"
        ) from None
    except Exception as error:
        raise CallbackError(
            f"callbacks {path!r}, {moment}: {type(error).__name__}: {error}"
        ) from error
    if given is None:
        return {}
    try:
        return {str(name): float(value) for name, value in given.items()}
    except (AttributeError, TypeError, ValueError):
        raise CallbackError(
            f"callbacks {path!r}, {moment}: returned {given!r}; expected nothing, or a dict of "
            "names and numbers"
        ) from None


@dataclass
class FigureWindow:
    """The latest values of figures that callbacks gave in rollout workers.

    Args:
        size: how many of each.
    """

    size: int
    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, figures: Sequence[Mapping[str, float]]) -> None:
        """Note what was said."""
        for each in figures:
            for name, value in each.items():
                kept = self.values.setdefault(name, [])
                kept.append(value)
                del kept[: -self.size]

    def figures(self) -> dict[str, float]:
        """Mean, least and greatest of each, as results have them."""
        found: dict[str, float] = {}
        for name, values in self.values.items():
            for of, value in (
                ("mean", np.mean(values)),
                ("min", min(values)),
                ("max", max(values)),
            ):
                found[f"custom/{name}_{of}"] = float(value)
        return found
