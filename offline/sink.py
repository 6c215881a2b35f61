"""The transactional sink: what a learner rank consumes, on its way into the lake."""

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from offline import schemas as s
from offline.background import BackgroundWriter, Batch, WritePolicy
from offline.episodes import EpisodeTracker
from offline.steps import StepEncoder, StepFormat, constant, table_of
from offline.storage import Storage
from rl_ops import columns as c


class _Used(NamedTuple):
    """Fragments, and what the learner did with them; the versions are None where nothing."""

    tables: Sequence[pa.Table]
    learner_version: int | None
    grad_steps: int
    at_us: int
    rejected: pa.Table | None = None


class TraceSink:
    """Logs the fragments of one learner rank: their steps, their episodes, their use.

    The learner's own process writes, because it holds what it trains on: a row is logged exactly
    if it was handed to the learner, however often a rollout worker died on the way, and a file
    holds a hundred fragments instead of one.

    Args:
        storage: of the lake, whose tables exist.
        form: which rows and columns.
        rank: of the learner.
        policy: when and how batches are written.
    """

    def __init__(
        self, storage: Storage, form: StepFormat, *, rank: int, policy: WritePolicy
    ) -> None:
        self._form, self._rank = form, rank
        self._encoder = StepEncoder(form)
        self._episodes = EpisodeTracker(form.run_id, form.session)
        self._writer = BackgroundWriter[_Used](
            storage, f"{form.run_id}/{rank}", make=self._batch, policy=policy
        )
        self._closing = False

    def used(self, tables: Sequence[pa.Table], *, learner_version: int, grad_steps: int) -> None:
        """Log fragments that took the learner from `learner_version` to the next.

        Args:
            tables: fragments, those of each worker in the order of their ids.
            learner_version: before the update.
            grad_steps: of the learner, after it.

        Raises:
            LakeError: an earlier batch could not be written.
        """
        self._put(_Used(tables, learner_version, grad_steps, time.time_ns() // 1000))

    def unused(self, tables: Sequence[pa.Table]) -> None:
        """Log fragments that were sampled and that no update used."""
        self._put(_Used(tables, None, 0, time.time_ns() // 1000))

    def rejected(self, rows: pa.Table) -> None:
        """Log rows of table `rejected`: of logged data that was not taken."""
        self._put(_Used((), None, 0, time.time_ns() // 1000, rows))

    def flush(self) -> dict[str, int]:
        """Wait until all of it is in the lake; table → version that holds it."""
        return self._writer.flush()

    def versions(self) -> dict[str, int]:
        """Table → newest version written so far."""
        return self._writer.versions()

    def close(self) -> None:
        """Log the episodes still open as aborted, write what is left, and end."""
        self._closing = True
        self._put(_Used((), None, 0, time.time_ns() // 1000))
        self._writer.close()

    def _put(self, used: _Used) -> None:
        rows = sum(table.num_rows for table in used.tables)
        num_bytes = sum(table.nbytes for table in used.tables)
        self._writer.put(used, rows=rows, num_bytes=num_bytes)

    def _batch(self, items: Sequence[_Used]) -> Batch:
        """Called in the writer's thread."""
        tables = [table for used in items for table in used.tables]
        found: dict[str, pa.Table] = {}
        if tables:
            found[s.STEPS.name] = self._encoder.encode(tables)
            found[s.EPISODES.name] = self._episodes.track(tables)
            found[s.CONSUMPTION.name] = self._consumption(items)
        refused = [used.rejected for used in items if used.rejected is not None]
        if refused:
            found[s.REJECTED.name] = pa.concat_tables(refused)
        if self._closing and not items[-1].tables:
            rest = self._episodes.close()
            ended = found.get(s.EPISODES.name)
            found[s.EPISODES.name] = rest if ended is None else pa.concat_tables([ended, rest])
        fragments = [_first(table, c.FRAGMENT_ID) for table in tables]
        return Batch(found, fragments)

    def _consumption(self, items: Sequence[_Used]) -> pa.Table:
        rows = [
            (used, table)
            for used in items
            if used.learner_version is not None
            for table in used.tables
        ]
        count = len(rows)
        versions = np.array([_first(table, c.POLICY_VERSION) for _, table in rows], np.int64)
        learner = np.array([used.learner_version for used, _ in rows], np.int64)
        arrays = {
            c.RUN_ID: constant(self._form.run_id, count),
            s.SESSION: pa.array(np.full(count, self._form.session, np.int32)),
            c.FRAGMENT_ID: pa.array(
                [_first(table, c.FRAGMENT_ID) for _, table in rows], pa.int64()
            ),
            s.RANK: pa.array(np.full(count, self._rank, np.int32)),
            s.ROWS: pa.array([table.num_rows for _, table in rows], pa.int64()),
            c.POLICY_VERSION: pa.array(versions),
            s.LEARNER_VERSION: pa.array(learner),
            s.LAG: pa.array(learner - versions),
            s.GRAD_STEPS: pa.array([used.grad_steps for used, _ in rows], pa.int64()),
            s.AT: pa.array([used.at_us for used, _ in rows], pa.int64()),
        }
        return table_of(arrays, s.CONSUMPTION.schema, rows=count)


def _first(table: pa.Table, name: str) -> int:
    value: int = table.column(name)[0].as_py()
    return value
