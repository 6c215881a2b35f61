"""Rows of a table, in any number of batches, grouped into episodes.

Rows of different episodes may be mixed, as parallel environments write them: an episode is
complete at its end flag. Without flags its rows have to be next to each other.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from offline.exchange import Fault, Origin, RawEpisode
from rl_ops.tree import Tree, tree_concat, tree_leaves, tree_map, tree_take

Array = npt.NDArray[Any]

_MAX_OPEN_BYTES: Final = 256 << 20
"""Of rows held back; beyond it the episode that waited longest is given out as it is."""


@dataclass(frozen=True)
class Rows:
    """A batch of rows.

    Attributes:
        file, numbers, unit: where they come from, [B].
        obs, action: trees [B, ...].
        reward, terminated, truncated, t, logp, seed: [B], or None where there is no such column.
        episode_ids: [B] of str, or None.
        next_obs: tree [B, ...], or None.
        final_obs: tree [B, ...] with its rows that hold one, or None.
        faults: what could not be read, by row of this batch.
    """

    file: str
    numbers: Array
    obs: Tree
    action: Tree
    reward: Any
    terminated: Any = None
    truncated: Any = None
    episode_ids: Any = None
    t: Any = None
    logp: Any = None
    seed: Any = None
    next_obs: Tree = None
    final_obs: tuple[Tree, Array] | None = None
    faults: tuple[Fault, ...] = ()
    unit: str = "row"

    def __len__(self) -> int:
        return len(self.numbers)


_COLUMNS: Final = (
    *("obs", "action", "reward", "terminated", "truncated"),
    *("t", "logp", "next_obs"),
)


@dataclass
class _Open:
    """An episode whose end has not come."""

    file: str
    unit: str
    parts: list[dict[str, Any]] = field(default_factory=list)
    numbers: list[Array] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    final_obs: Tree = None
    seed: int | None = None
    rows: int = 0
    bytes_: int = 0


class RowGrouper:
    """Collects rows by episode and gives each out when it ends.

    Args:
        max_open_bytes: of rows that are held back.
    """

    def __init__(self, *, max_open_bytes: int = _MAX_OPEN_BYTES) -> None:
        self._open: OrderedDict[str, _Open] = OrderedDict()
        self._max_open_bytes = max_open_bytes
        self._bytes = 0
        self._given = 0

    def add(self, rows: Rows) -> Iterator[RawEpisode]:
        """The episodes that these rows complete."""
        if not len(rows):
            return
        has_flags = rows.terminated is not None or rows.truncated is not None
        last = ends_of(rows)
        starts = last.copy()
        starts[-1] = True
        if rows.episode_ids is not None:
            starts[:-1] |= rows.episode_ids[1:] != rows.episode_ids[:-1]
        begin = 0
        for stop in (np.flatnonzero(starts) + 1).tolist():
            name = str(self._given if rows.episode_ids is None else rows.episode_ids[begin])
            if not has_flags and rows.episode_ids is not None:
                # Nothing but the next id tells that an episode is over.
                yield from self._close_all(but=name)
            self._append(name, rows, begin, stop)
            if last[stop - 1]:
                yield self._close(name)
            begin = stop
        yield from self._evict()

    def finish(self) -> Iterator[RawEpisode]:
        """The episodes whose end never came."""
        yield from self._close_all()

    def _append(self, name: str, rows: Rows, begin: int, stop: int) -> None:
        episode = self._open.setdefault(name, _Open(rows.file, rows.unit))
        self._open.move_to_end(name)
        part = slice(begin, stop)
        # A copy, as a view would keep the whole batch for the sake of a few rows.
        found = {
            column: tree_map(lambda leaf: np.array(np.asarray(leaf)[part]), values)
            for column in _COLUMNS
            if (values := getattr(rows, column)) is not None
        }
        episode.parts.append(found)
        episode.numbers.append(rows.numbers[part])
        shift = episode.rows - begin
        episode.faults += [
            Fault(f.index + shift, f.reason, f.message)
            for f in rows.faults
            if begin <= f.index < stop
        ]
        if rows.final_obs is not None and rows.final_obs[1][stop - 1]:
            episode.final_obs = tree_take(rows.final_obs[0], slice(stop - 1, stop))
        if rows.seed is not None and np.isfinite(rows.seed[begin]):
            episode.seed = int(rows.seed[begin])
        episode.rows += stop - begin
        size = sum(leaf.nbytes for tree in found.values() for leaf in tree_leaves(tree))
        episode.bytes_ += size
        self._bytes += size

    def _evict(self) -> Iterator[RawEpisode]:
        while self._bytes > self._max_open_bytes and len(self._open) > 1:
            yield self._close(next(iter(self._open)))

    def _close_all(self, *, but: str | None = None) -> Iterator[RawEpisode]:
        for name in [name for name in self._open if name != but]:
            yield self._close(name)

    def _close(self, name: str) -> RawEpisode:
        episode = self._open.pop(name)
        self._bytes -= episode.bytes_
        self._given += 1
        columns, faults = _joined(episode)
        return RawEpisode(
            episode_id=name,
            origin=Origin(episode.file, np.concatenate(episode.numbers), episode.unit),
            final_obs=episode.final_obs,
            seed=episode.seed,
            faults=tuple(faults),
            **columns,
        )


def _joined(episode: _Open) -> tuple[dict[str, Any], list[Fault]]:
    faults = list(episode.faults)
    if len(episode.parts) == 1:
        return episode.parts[0], faults
    first = episode.parts[0]
    try:
        trees: Mapping[str, Tree] = {
            name: tree_concat([part[name] for part in episode.parts]) for name in first
        }
    except (ValueError, KeyError) as error:
        # The parts differ in shape or in columns, as two files may.
        what = f"the episode's rows differ from batch to batch in shape or columns: {error}"
        faults.append(Fault(len(episode.numbers[0]), "mixed_lengths", what))
        return first, faults
    return dict(trees), faults


def ends_of(rows: Rows) -> npt.NDArray[np.bool_]:
    """Which rows end their episode."""
    last = np.zeros(len(rows), np.bool_)
    for flags in (rows.terminated, rows.truncated):
        if flags is not None:
            values = np.asarray(flags)
            if values.dtype.kind in "biuf" and values.shape == last.shape:
                last |= values == 1
    return last
