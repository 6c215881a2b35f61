"""Rows of the table `episodes`, followed from fragment to fragment as steps stream by."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from offline import schemas as s
from offline.steps import constant, table_of
from rl_ops import columns as c

Array = npt.NDArray[Any]
TRAIN = "train"
_CUT_OFF = {c.TERMINATED: False, c.TRUNCATED: False, c.ABORTED: True}


@dataclass
class _Open:
    """An episode that has not ended yet."""

    episode_id: str
    worker_id: int
    return_: float
    length: int
    version_first: int
    version_last: int
    fragment_first: int
    fragment_last: int
    started_us: int
    ended_us: int


class EpisodeTracker:
    """Turns the step rows of one learner rank into a row per episode that ended.

    An episode that another one of its sub-environment cuts off, because its worker died, and one
    that is open when the run ends, is aborted: truncated by nobody's decision.

    Args:
        run_id: of the run.
        session: of the run.
    """

    def __init__(self, run_id: str, session: int) -> None:
        self._run_id = run_id
        self._session = session
        self._open: dict[int, _Open] = {}

    def track(self, tables: Sequence[pa.Table]) -> pa.Table:
        """Episodes that ended in these fragments.

        Args:
            tables: fragments as rollouts emit them, those of each worker in the order of their ids.

        Returns:
            Rows of `schemas.EPISODES`.
        """
        rows = _Rows(tables)
        segments = _segments(rows)
        ended: list[tuple[_Open, dict[str, bool]]] = []
        for i in np.flatnonzero(~segments.is_whole):
            ended += self._follow(rows, segments, int(i))
        cut = pa.Table.from_pylist([self._row(*each) for each in ended], schema=s.EPISODES.schema)
        return pa.concat_tables([self._whole(rows, segments), cut])

    def close(self) -> pa.Table:
        """The episodes still open, as aborted; forgets them."""
        rows = [self._row(episode, _CUT_OFF) for episode in self._open.values()]
        self._open.clear()
        return pa.Table.from_pylist(rows, schema=s.EPISODES.schema)

    def _whole(self, rows: "_Rows", segments: "_Segments") -> pa.Table:
        """Episodes that began and ended in these fragments: most of them, so without a loop."""
        chosen = segments.is_whole
        first, last = segments.first[chosen], segments.last[chosen]
        count = len(first)
        columns: dict[str, Any] = {
            c.RUN_ID: constant(self._run_id, count),
            s.SESSION: np.full(count, self._session, np.int32),
            c.EPISODE_ID: rows.episode_ids(last),
            s.KIND: constant(TRAIN, count),
            c.WORKER_ID: rows.worker[last],
            c.ENV_ID: rows.env[last],
            s.RETURN: np.where(
                np.isnan(rows.episode_return[last]),
                segments.returns[chosen],
                rows.episode_return[last],
            ),
            s.LENGTH: rows.t[last].astype(np.int64) + 1,
            c.TERMINATED: rows.terminated[last],
            c.TRUNCATED: rows.truncated[last],
            c.ABORTED: rows.aborted[last],
            s.POLICY_VERSION_FIRST: rows.version[first],
            s.POLICY_VERSION_LAST: rows.version[last],
            s.FRAGMENT_FIRST: rows.fragment[first],
            s.FRAGMENT_LAST: rows.fragment[last],
            s.STARTED_AT: rows.sampled_us[first],
            s.ENDED_AT: rows.sampled_us[last],
        }
        arrays = {name: pa.array(values) for name, values in columns.items()}
        return table_of(arrays, s.EPISODES.schema, rows=count)

    def _follow(
        self, rows: "_Rows", segments: "_Segments", i: int
    ) -> list[tuple[_Open, dict[str, bool]]]:
        """Take in a part of an episode; what it shows to have ended."""
        first, last = int(segments.first[i]), int(segments.last[i])
        env, found = int(rows.env[first]), []
        before = self._open.pop(env, None)
        (episode_id,) = rows.episode_ids(np.array([first])).to_pylist()
        if before is not None and before.episode_id != episode_id:
            found.append((before, _CUT_OFF))
            before = None
        episode = _Open(
            episode_id=episode_id,
            worker_id=int(rows.worker[last]),
            return_=(before.return_ if before else 0.0) + float(segments.returns[i]),
            length=int(rows.t[last]) + 1,
            version_first=before.version_first if before else int(rows.version[first]),
            version_last=int(rows.version[last]),
            fragment_first=before.fragment_first if before else int(rows.fragment[first]),
            fragment_last=int(rows.fragment[last]),
            started_us=before.started_us
            if before
            else int(rows.sampled_us[first].astype(np.int64)),
            ended_us=int(rows.sampled_us[last].astype(np.int64)),
        )
        if not (rows.terminated[last] or rows.truncated[last]):
            self._open[env] = episode
            return found
        if not np.isnan(rows.episode_return[last]):
            episode.return_ = float(rows.episode_return[last])
        names = (c.TERMINATED, c.TRUNCATED, c.ABORTED)
        flags = {name: bool(getattr(rows, name)[last]) for name in names}
        return [*found, (episode, flags)]

    def _row(self, episode: _Open, flags: dict[str, bool]) -> dict[str, Any]:
        # "<run>/<env>.<incarnation>/<number>", as the rollout names episodes
        env = int(episode.episode_id.rsplit("/", 2)[1].partition(".")[0])
        return {
            c.RUN_ID: self._run_id,
            s.SESSION: self._session,
            c.EPISODE_ID: episode.episode_id,
            s.KIND: TRAIN,
            c.WORKER_ID: episode.worker_id,
            c.ENV_ID: env,
            s.RETURN: episode.return_,
            s.LENGTH: episode.length,
            **flags,
            s.POLICY_VERSION_FIRST: episode.version_first,
            s.POLICY_VERSION_LAST: episode.version_last,
            s.FRAGMENT_FIRST: episode.fragment_first,
            s.FRAGMENT_LAST: episode.fragment_last,
            s.STARTED_AT: episode.started_us,
            s.ENDED_AT: episode.ended_us,
        }


class _Rows:
    """Columns of several fragments, by sub-environment and then in time."""

    def __init__(self, tables: Sequence[pa.Table]) -> None:
        names = [c.ENV_ID, c.EPISODE_ID, c.T, c.REWARD, c.TERMINATED, c.TRUNCATED, c.ABORTED]
        names += [c.POLICY_VERSION, c.FRAGMENT_ID, c.WORKER_ID, c.EPISODE_RETURN, c.SAMPLED_AT]
        table = pa.concat_tables([t.select(names) for t in tables])
        order = np.argsort(table.column(c.ENV_ID).to_numpy(), kind="stable")
        ids = table.column(c.EPISODE_ID)
        if pa.types.is_dictionary(ids.type):  # one chunk: a take over many costs 0.2 ms each
            ids = ids.unify_dictionaries()
        self._ids, self._order = ids.combine_chunks(), order
        self.env, self.t, self.reward = (self._take(table, n) for n in (c.ENV_ID, c.T, c.REWARD))
        self.terminated, self.truncated, self.aborted = (
            self._take(table, n) for n in (c.TERMINATED, c.TRUNCATED, c.ABORTED)
        )
        self.version, self.fragment = (
            self._take(table, n) for n in (c.POLICY_VERSION, c.FRAGMENT_ID)
        )
        self.worker = self._take(table, c.WORKER_ID)
        self.episode_return = self._take(table, c.EPISODE_RETURN)  # NaN where null
        self.sampled_us = self._take(table, c.SAMPLED_AT).astype("datetime64[us]")

    def _take(self, table: pa.Table, name: str) -> Array:
        array: Array = table.column(name).to_numpy()[self._order]
        return array

    def episode_ids(self, rows: Array) -> pa.Array:
        """Ids of the episodes of some rows."""
        return self._ids.take(pa.array(self._order[rows])).cast(pa.string())


@dataclass(frozen=True)
class _Segments:
    """Runs of rows of one episode within some fragments.

    Attributes:
        first, last: row of each.
        returns: sum of its rewards.
        is_whole: it is a whole episode, and follows none that was cut off.
    """

    first: Array
    last: Array
    returns: Array
    is_whole: Array


def _segments(rows: _Rows) -> _Segments:
    ended = rows.terminated | rows.truncated
    is_first = np.ones(len(rows.env), dtype=bool)
    is_first[1:] = (rows.env[1:] != rows.env[:-1]) | (rows.t[1:] == 0) | ended[:-1]
    first = np.flatnonzero(is_first)
    last = np.append(first[1:] - 1, len(rows.env) - 1)
    # What comes first of its sub-environment may go on, or cut off, an open one.
    new_env = np.ones(len(first), dtype=bool)
    new_env[1:] = rows.env[first[1:]] != rows.env[first[:-1]]
    after_open = np.zeros(len(first), dtype=bool)
    after_open[1:] = ~ended[last[:-1]] & ~new_env[1:]
    is_whole = (rows.t[first] == 0) & ended[last] & ~new_env & ~after_open
    returns = np.add.reduceat(rows.reward, first) if len(first) else np.empty(0)
    return _Segments(first, last, returns, is_whole)
