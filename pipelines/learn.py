"""The learner's loop: fragments in, versions out. The same with Ray and without."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np
import pyarrow as pa

from offline.errors import LakeError
from pipelines.callbacks import FigureWindow, read_figures
from pipelines.config import StopConfig
from pipelines.coordinator import END, Command, GoAhead
from pipelines.memory_state import Origins
from rl_ops import columns as c
from rl_ops.batch import Batch
from rl_ops.learner import Learner
from rl_ops.policy import Weights

log = logging.getLogger(__name__)


class Flow(Protocol):
    """How the learner speaks with the rest of the run."""

    def advance(self, version: int, weights: Weights, result: dict[str, Any] | None) -> GoAhead:
        """Publish a version; wait while paused; commands to run, none to go on."""

    def proceed(self) -> GoAhead:
        """After commands: wait while paused; more commands, none to go on."""

    def replace_weights(self, version: int, weights: Weights) -> None:
        """Publish weights that no update made."""

    def finish(self, command: Command, output: Any) -> None:
        """Hand in a command's output; an exception is raised at the caller."""


class Sink(Protocol):
    """Where fragments are logged; see `offline.sink.TraceSink`."""

    def used(self, tables: Sequence[pa.Table], *, learner_version: int, grad_steps: int) -> None:
        """Log fragments that an update consumed."""

    def unused(self, tables: Sequence[pa.Table]) -> None:
        """Log fragments that no update will consume."""

    def rejected(self, rows: pa.Table) -> None:
        """Log what of logged data was not taken, as rows of table `rejected`."""

    def flush(self) -> dict[str, int]:
        """Wait until all of it is in the lake; table → version."""

    def versions(self) -> dict[str, int]:
        """Table → newest version written, without waiting."""

    def close(self) -> None:
        """Write what is left, and end."""


class Stopped(Exception):  # noqa: N818 - an ordinary end, not an error
    """The run was told to end.

    Args:
        outstanding: ids of fragments that rollout workers were granted and that may yet come.
    """

    def __init__(self, outstanding: Sequence[int] = ()) -> None:
        super().__init__()
        self.outstanding = outstanding


@dataclass
class EpisodeWindow:
    """Returns and lengths of the latest training episodes."""

    size: int
    returns: deque[float] = field(init=False)
    lengths: deque[float] = field(init=False)
    count: int = 0

    def __post_init__(self) -> None:
        self.returns, self.lengths = deque(maxlen=self.size), deque(maxlen=self.size)

    def add(self, returns: Sequence[float], lengths: Sequence[int]) -> None:
        """Note episodes that ended."""
        self.count += len(returns)
        self.returns.extend(returns)
        self.lengths.extend(lengths)

    def figures(self) -> dict[str, float | int | None]:
        """The result's keys about episodes; None before the first one ends."""
        returns, lengths = list(self.returns), list(self.lengths)
        return {
            "episodes": self.count,
            "episode_return_mean": float(np.mean(returns)) if returns else None,
            "episode_return_min": min(returns, default=None),
            "episode_return_max": max(returns, default=None),
            "episode_length_mean": float(np.mean(lengths)) if lengths else None,
        }


@dataclass(frozen=True)
class Share:
    """What one rank's part of an update says for the result."""

    rows: int
    lags: list[int]
    returns: list[float]
    lengths: list[int]
    metrics: dict[str, float]
    custom: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def of(cls, tables: Sequence[pa.Table], metrics: dict[str, float], *, version: int) -> Self:
        """From the rows consumed at `version` and what the update returned."""
        returns, lengths = (
            [x for table in tables for x in table.column(name).drop_null().to_pylist()]
            for name in (c.EPISODE_RETURN, c.EPISODE_LENGTH)
        )
        lags = [version - table.column(c.POLICY_VERSION)[0].as_py() for table in tables]
        custom = [figures for table in tables for figures in read_figures(table)]
        rows = sum(table.num_rows for table in tables)
        return cls(rows, lags, returns, lengths, metrics, custom)


def joined(shares: Sequence[Share]) -> Share:
    """The shares of all ranks as one; metrics are their means."""
    metrics = {
        name: float(np.mean([share.metrics[name] for share in shares]))
        for name in shares[0].metrics
    }
    lags, returns, lengths = (
        [x for share in shares for x in getattr(share, name)]
        for name in ("lags", "returns", "lengths")
    )
    custom = [figures for share in shares for figures in share.custom]
    return Share(sum(share.rows for share in shares), lags, returns, lengths, metrics, custom)


@dataclass(frozen=True)
class Reached:
    """Tests a result against the stop criteria."""

    stop: StopConfig

    def __call__(self, result: dict[str, Any]) -> str | None:
        """The first criterion that holds, as "key >= bound", or None."""
        for key in type(self.stop).model_fields:
            bound, value = getattr(self.stop, key), result.get(key)
            if bound is not None and value is not None and value >= bound:
                return f"{key} {value:.6g} >= {bound:.6g}"
        return None


@dataclass
class LearnLoop:
    """Runs a learner over a stream of fragments until it is told to stop.

    Args:
        learner: to update.
        flow: to the rest of the run.
        to_batch: tables of one version → the learner's batch.
        ids: fragment ids of this rank for a version, ascending.
        reached: stop criteria.
        window: latest episodes.
        save: writes a checkpoint to a folder.
        sink: logs what is consumed; None nothing.
        started_at: epoch seconds at which the driver's process started.
        incarnation: how often the run was resumed.
        time_before_s: seconds that the run took before it was resumed.
        iteration: versions published, over all resumes.
        duplicates: fragments that came again and were dropped.
        origins: which fragments a replay memory's rows are of; None without one.
        origin: lake, run and session of the fragments consumed.
        worker: of this process, where learners roll out by themselves.
    """

    learner: Learner[Any]
    flow: Flow
    to_batch: Callable[[Sequence[pa.Table]], Batch]
    ids: Callable[[int], Sequence[int]]
    reached: Reached
    window: EpisodeWindow
    save: Callable[["LearnLoop", str], Any]
    started_at: float
    sink: Sink | None = None
    incarnation: int = 0
    time_before_s: float = 0.0
    iteration: int = 0
    duplicates: int = 0
    origins: Origins | None = None
    origin: tuple[str | None, str, int] = (None, "", 0)
    worker: Any = None
    _pending: dict[int, pa.Table] = field(default_factory=dict)
    _clock: float = 0.0
    _grad_steps: int = 0
    _custom: FigureWindow = field(init=False)

    def __post_init__(self) -> None:
        self._custom = FigureWindow(self.window.size)

    def run(self, fragments: Iterator[pa.Table]) -> None:
        """Consume `fragments` in the order of their ids; returns when told to stop.

        Raises:
            RuntimeError: the stream ended before that.
        """
        try:
            self.start()
            for table in fragments:
                self.feed(table)
        except Stopped as stopped:
            self._drain(fragments, stopped.outstanding)
            self.close()
            return
        except BaseException:
            self._close_after_failure()
            raise
        self.close()
        raise RuntimeError(f"the stream of fragments ended at version {self.learner.version}")

    def close(self) -> None:
        """Log what was sampled and not used, and end the log.

        Raises:
            LakeError: it cannot be written.
        """
        if self.sink is not None:
            self.sink.unused(list(self._pending.values()))
            self._pending.clear()
            self.sink.close()

    def _close_after_failure(self) -> None:
        """Log what there is; the failure that ended the run is what its user has to hear of."""
        try:
            self.close()
        except LakeError as error:
            log.error("after a failure: %s", error)

    def _drain(self, fragments: Iterator[pa.Table], outstanding: Sequence[int]) -> None:
        """Wait for fragments that were being made when the run ended: they were sampled, too."""
        if self.sink is None:
            return
        first = self.ids(self.learner.version)[0]
        coming = {k for k in outstanding if k >= first} - self._pending.keys()
        ended: set[int] = set()
        workers = self.learner.config.num_rollouts // self.learner.world.size
        while coming and len(ended) < workers:
            table = next(fragments, None)
            if table is None:
                return
            fragment = table.column(c.FRAGMENT_ID)[0].as_py()
            if fragment == END:
                ended.add(table.column(c.WORKER_ID)[0].as_py())
            elif fragment in coming:
                coming.remove(fragment)
                self._pending[fragment] = table

    def logged(self) -> dict[str, int]:
        """Wait until all that any rank consumed is in the lake; table → version that holds it."""
        if self.sink is None:
            return {}
        merged: dict[str, int] = {}
        for versions in self.learner.world.gather_objects(self.sink.flush()):
            merged |= {k: max(v, merged.get(k, 0)) for k, v in versions.items()}
        return merged

    def start(self) -> None:
        """Publish the weights that the first fragments act with."""
        self._handle(self.flow.advance(self.learner.version, self.learner.weights(), None))
        self._clock, self._grad_steps = time.perf_counter(), self.learner.grad_steps

    def feed(self, table: pa.Table) -> None:
        """Take one fragment, and make every version whose fragments are now complete."""
        self._take(table)
        while (tables := self._ready()) is not None:
            self._iterate(tables)

    def state(self) -> dict[str, Any]:
        """What the loop counts, JSON-able."""
        return {
            "iteration": self.iteration,
            "incarnation": self.incarnation,
            "time_s": time.time() - self.started_at + self.time_before_s,
            "duplicates": self.duplicates,
            "episodes": self.window.count,
            "returns": list(self.window.returns),
            "lengths": list(self.window.lengths),
            "custom": self._custom.values,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.iteration, self.time_before_s = state["iteration"], state["time_s"]
        self.duplicates, self.window.count = state["duplicates"], state["episodes"]
        self.window.returns.extend(state["returns"])
        self.window.lengths.extend(state["lengths"])
        self._custom.values.update(state.get("custom", {}))  # not there before there were callbacks

    def _take(self, table: pa.Table) -> None:
        fragment = table.column(c.FRAGMENT_ID)[0].as_py()
        if fragment == END:
            if self.learner.world.size > 1:
                # Others may be in an update that waits for this rank: only an error ends them, too.
                raise RuntimeError("rollouts of this rank ended")
            raise Stopped
        if fragment < self.ids(self.learner.version)[0] or fragment in self._pending:
            self.duplicates += 1
            log.info("fragment %d came again after a retry; dropped", fragment)
            return
        self._pending[fragment] = table

    def _ready(self) -> list[pa.Table] | None:
        ids = self.ids(self.learner.version)
        if any(k not in self._pending for k in ids):
            return None
        return [self._pending[k] for k in ids]

    def _iterate(self, tables: list[pa.Table]) -> None:
        got = time.perf_counter()
        metrics = self.learner.update(self.to_batch(tables))
        for k in self.ids(self.learner.version):  # not before: what fails is logged as unused
            del self._pending[k]
        if self.origins is not None:
            self.origins.consumed(self.origin, tables)
        if self.sink is not None:
            self.sink.used(
                tables, learner_version=self.learner.version, grad_steps=self.learner.grad_steps
            )
        self._conclude(Share.of(tables, metrics, version=self.learner.version), got=got)

    def run_logged(self, updates: int) -> None:
        """Learn from logged rows until told to stop, `updates` gradient steps an iteration."""
        try:
            self.start()
            while True:
                self.iterate_logged(updates)
        except Stopped:
            self.close()
        except BaseException:
            self._close_after_failure()
            raise

    def iterate_logged(self, updates: int) -> None:
        """One iteration of `run_logged`."""
        got = time.perf_counter()
        metrics = self.learner.update_logged(updates)
        self._conclude(Share(0, [0], [], [], metrics), got=got)

    def _conclude(self, mine: Share, *, got: float) -> None:
        """Count what was learned since `got`, publish it, and do what is asked for meanwhile."""
        before = self._clock
        share = joined(self.learner.world.gather_objects(mine))
        self.learner.env_steps += share.rows
        self.learner.version += 1
        self.iteration += 1
        self.window.add(share.returns, share.lengths)
        self._custom.add(share.custom)
        updated = time.perf_counter()
        result: dict[str, Any] = {
            "training_iteration": self.iteration,
            "env_steps": self.learner.env_steps,
            "grad_steps": self.learner.grad_steps,
            **self.window.figures(),
            "policy_version": self.learner.version,
            "policy_lag_mean": float(np.mean(share.lags)),
            "policy_lag_max": max(share.lags),
            **{f"learner/{name}": value for name, value in share.metrics.items()},
            **self._custom.figures(),
            "time_s": time.time() - self.started_at + self.time_before_s,
            "time/wait_s": got - before,
            "time/update_s": updated - got,
            "time/iteration_s": updated - before,
            "env_steps_per_s": share.rows / (updated - before),
            "grad_steps_per_s": (self.learner.grad_steps - self._grad_steps) / (updated - before),
            "faults/duplicate_fragments": self.duplicates,
        }
        if self.sink is not None:
            result |= {f"lake/{k}_version": v for k, v in self.sink.versions().items()}
        self._grad_steps = self.learner.grad_steps
        result["stopped_by"] = self.reached(result)
        weights = self.learner.weights()
        paused_s = self._handle(self.flow.advance(self.learner.version, weights, result))
        # Publishing counts as part of the next iteration; being paused does not.
        self._clock = updated + paused_s

    def _handle(self, go: GoAhead) -> float:
        """Run commands until there are none; returns the seconds spent on them and paused."""
        paused_s, start = go.paused_s, time.perf_counter()
        if not go.commands:
            return paused_s
        while go.commands:
            for command in go.commands:
                self._execute(command)
            go = self.flow.proceed()
        return paused_s + time.perf_counter() - start

    def _execute(self, command: Command) -> None:
        if command.name == "stop":
            raise Stopped(command.payload)
        try:
            output = self.output(command)
        except Exception as error:  # noqa: BLE001 - raised again at the driver, which asked
            output = error
        self.flow.finish(command, output)

    def output(self, command: Command) -> Any:
        """Run one command; its errors are the caller's."""
        if command.name == "save":
            return self.save(self, command.payload)
        if command.name == "set_weights":
            self.learner.set_weights(command.payload)
            self.flow.replace_weights(self.learner.version, self.learner.weights())
            return None
        if command.name == "call_workers":
            self.worker.rollout.load(self.learner.weights(), self.learner.version)
            # Packed: raised on one rank alone, an error would leave the others waiting.
            return self.learner.world.gather_objects(self.worker.call(command.payload))
        raise ValueError(f"unknown command {command.name!r}")
