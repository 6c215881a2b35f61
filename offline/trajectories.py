"""Logged steps in memory, episode by episode: what offline learning and evaluation are made of.

Legend: N rows, F final observations, E episodes.
"""

import dataclasses
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from gymnasium.spaces import Space

from offline import schemas as s
from offline.errors import LakeError, NoRowsError
from offline.filters import Where
from offline.lake import Lake
from offline.selection import Selection
from offline.space_codec import SpaceCodec
from offline.spaces import spaces_of
from rl_ops import columns as c
from rl_ops.tree import Tree, tree_take

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

EPISODE_KEY: Final = (c.RUN_ID, s.SESSION, c.EPISODE_ID, c.AGENT_ID)
"""What tells episodes apart: ids begin again in each session of a run."""
NUMBERS: Final = (
    *(c.LOGP, c.VALUE, c.POLICY_VERSION, c.EPSILON, c.NOISE_SCALE, c.FRAGMENT_ID, c.WORKER_ID),
)
"""Columns of numbers that can be read beside what every use needs."""
_VALUES: Final = (c.OBS, s.OBS_BYTES, c.ACTION, s.ACTION_BYTES, c.FINAL_OBS, s.FINAL_OBS_BYTES)
_FLAGS: Final = (c.TERMINATED, c.TRUNCATED, c.ABORTED)
_SPLIT_BITS: Final = 2**32


@dataclass(frozen=True)
class DataSpec:
    """Which logged steps.

    Attributes:
        version: of table `steps`; None is the newest when it is opened.
        timestamp: instead of a version: as of when, ISO 8601.
        where: which rows; None for all.
        columns: of `NUMBERS`, to be read as well.
        split: share of the episodes in the part "train", chosen by the episode's name.
        part: "train", or the "rest", for validation.
    """

    version: int | None = None
    timestamp: datetime | str | None = None
    where: Where | None = None
    columns: tuple[str, ...] = ()
    split: float = 1.0
    part: Literal["train", "rest"] = "train"


@dataclass(frozen=True, eq=False)
class Trajectories:
    """Rows sorted by run, session, episode, agent and t, whatever files they were in.

    Attributes:
        obs: batch tree [N, ...] of obs_space: as the environment emitted it.
        action: batch tree [N, ...] of action_space: as the policy chose it.
        reward: [N] float64, as the environment gave it.
        terminated, truncated: [N] bool; an aborted episode's last row is truncated.
        t: [N] int64 step of the episode.
        episode: [N] int64 in 0..E-1, ascending.
        final_obs: batch tree [F, ...]: observations after rows, where they were logged.
        final_index: [N] int64 into final_obs, -1 where none was logged.
        columns: name → [N] of `NUMBERS`; NaN where a float is null, -1 where an integer is.
        names: [E] rows of `EPISODE_KEY`.
        obs_space, action_space: of obs and action.
        version: of table `steps` that they were read from.
        uri: of the lake.
    """

    obs: Tree
    action: Tree
    reward: npt.NDArray[np.float64]
    terminated: Mask
    truncated: Mask
    t: Ints
    episode: Ints
    final_obs: Tree
    final_index: Ints
    columns: Mapping[str, Array]
    names: pa.Table
    obs_space: Space[Any]
    action_space: Space[Any]
    version: int
    uri: str

    @property
    def rows(self) -> int:
        """N."""
        return len(self.reward)

    @property
    def num_episodes(self) -> int:
        """E; one of which a filter left some rows counts."""
        return int(self.names.num_rows)

    @property
    def starts(self) -> Ints:
        """[E] where each episode's rows begin."""
        return np.flatnonzero(np.diff(self.episode, prepend=-1))

    @property
    def has_next(self) -> Mask:
        """[N] whether row i + 1 is the step after row i."""
        follows = np.zeros(self.rows, np.bool_)
        same = self.episode[1:] == self.episode[:-1]
        follows[:-1] = same & (self.t[1:] == self.t[:-1] + 1)
        return follows & ~self.terminated & ~self.truncated

    @property
    def is_last(self) -> Mask:
        """[N] the episode's end, the log's, or a gap: cuts every recursion."""
        return ~self.has_next

    @property
    def is_usable(self) -> Mask:
        """[N] whether what comes after the row is known, or nothing does."""
        return self.has_next | self.terminated | (self.final_index >= 0)

    def name(self, episode: int) -> str:
        """An episode as messages call it."""
        row = {key: self.names.column(key)[episode].as_py() for key in EPISODE_KEY}
        session = f" session {row[s.SESSION]}" if row[s.SESSION] else ""
        return f"{row[c.EPISODE_ID]} of {row[c.RUN_ID]}{session}"

    def returns(self) -> npt.NDArray[np.float64]:
        """[E] undiscounted sum of the rewards that are here."""
        return np.add.reduceat(self.reward, self.starts) if self.rows else np.zeros(0)

    def is_whole(self) -> Mask:
        """[E] whether an episode is here from its first step to its end, without a gap."""
        if not self.rows:
            return np.zeros(0, np.bool_)
        starts = self.starts
        lasts = np.append(starts[1:], self.rows) - 1
        cuts = np.add.reduceat(self.is_last.astype(np.int64), starts)
        ended = self.terminated[lasts] | self.truncated[lasts]
        whole: Mask = (self.t[starts] == 0) & ended & (cuts == 1)
        return whole

    def take(self, keep: Mask) -> "Trajectories":
        """Some of the rows [N] bool; episodes of which none is left are gone."""
        index = np.flatnonzero(keep)
        is_first = np.diff(self.episode[index], prepend=-1) > 0
        kept = self.episode[index][is_first]
        finals = self.final_index[index]
        has_final = finals >= 0
        numbered = np.full(len(index), -1, np.int64)
        numbered[has_final] = np.arange(int(has_final.sum()))
        return dataclasses.replace(
            self,
            obs=tree_take(self.obs, index),
            action=tree_take(self.action, index),
            reward=self.reward[index],
            terminated=self.terminated[index],
            truncated=self.truncated[index],
            t=self.t[index],
            episode=np.cumsum(is_first) - 1,
            final_obs=tree_take(self.final_obs, finals[has_final]),
            final_index=numbered,
            columns={name: array[index] for name, array in self.columns.items()},
            names=self.names.take(pa.array(kept)),
        )


def selection_of(lake: Lake, spec: DataSpec) -> Selection:
    """The rows and columns that a spec names, nothing read yet.

    Raises:
        LakeError: there is no such version or column, or the version expired.
    """
    unknown = sorted(set(spec.columns) - set(NUMBERS))
    if unknown:
        raise LakeError(f"offline.columns has {unknown}; it may have {', '.join(NUMBERS)}.")
    columns = (*EPISODE_KEY, c.T, s.SPACE, c.REWARD, *_FLAGS, *_VALUES, *spec.columns)
    chosen: Selection = lake.steps(
        version=spec.version, timestamp=spec.timestamp, where=spec.where, columns=columns
    )
    return chosen


def load_trajectories(lake: Lake, spec: DataSpec) -> Trajectories:
    """Read logged steps into memory.

    Raises:
        LakeError: there are none, they are of several spaces, or cannot be read.
    """
    rows, version = read_rows(lake, spec)
    if not rows.num_rows:
        raise no_rows(lake, version)
    obs_codec, action_codec = spaces_in(lake, rows, version)
    return trajectories_of(rows, obs_codec, action_codec, version=version, uri=lake.storage.uri)


def no_rows(lake: Lake, version: int) -> NoRowsError:
    """What is said where a spec leaves nothing."""
    return NoRowsError(
        f"version {version} of steps at {lake.storage.uri} has no rows that offline.where and "
        "offline.split leave; `millrace lake history --table steps` lists versions, and `SELECT "
        "run_id, count(*) FROM steps GROUP BY ALL` what there is."
    )


def read_rows(lake: Lake, spec: DataSpec) -> tuple[pa.Table, int]:
    """The rows that a spec names, in no order and unchecked, and the version they are of.

    Raises:
        LakeError: there is no such version or column, or a file cannot be read.
    """
    selection = selection_of(lake, spec)
    rows = selection.to_arrow()
    if spec.split < 1.0:
        rows = rows.filter(in_part(rows.column(c.EPISODE_ID), spec.split, spec.part))
    return rows, selection.version


def trajectories_of(
    rows: pa.Table, obs: SpaceCodec, action: SpaceCodec, *, version: int, uri: str
) -> Trajectories:
    """Rows of table `steps` in any order, as trajectories; doubled rows stay side by side.

    Args:
        rows: with the columns that `selection_of` asks for.
        obs: codec of the observations' space.
        action: codec of the actions' space.
        version: of the table.
        uri: of the lake.

    Raises:
        LakeError: an observation or action is missing or not of its space, or t is.
    """
    _refuse_missing(rows, {c.OBS: obs, c.ACTION: action})
    episode, names = episodes_of(rows)
    t = rows.column(c.T).to_numpy().astype(np.int64)
    key = episode * (int(t.max(initial=0)) + 1) + t
    # Sorted once decoded: Arrow takes rows of lists several times as slowly.
    order = None if (np.diff(key) >= 0).all() else np.argsort(key, kind="stable")
    finals = rows.column(c.FINAL_OBS if obs.num_values else s.FINAL_OBS_BYTES).is_valid()
    final_rows = np.flatnonzero(_in_order(finals.to_numpy(), order))
    final_index = np.full(rows.num_rows, -1, np.int64)
    final_index[final_rows] = np.arange(len(final_rows))
    final = rows.select([c.FINAL_OBS, s.FINAL_OBS_BYTES]).take(
        pa.array(final_rows if order is None else order[final_rows])
    )
    flags = {name: _in_order(_flag(rows, name), order) for name in _FLAGS}
    numbers = {name: _numbers(rows, name) for name in NUMBERS if name in rows.column_names}
    return Trajectories(
        obs=_in_order(_tree(obs, rows, c.OBS), order),
        action=_in_order(_tree(action, rows, c.ACTION), order),
        reward=_in_order(rows.column(c.REWARD).to_numpy().astype(np.float64), order),
        terminated=flags[c.TERMINATED] & ~flags[c.ABORTED],
        truncated=flags[c.TRUNCATED] | flags[c.ABORTED],
        t=_in_order(t, order),
        episode=_in_order(episode, order),
        final_obs=_tree(obs, final, c.FINAL_OBS),
        final_index=final_index,
        columns=_in_order(numbers, order),
        names=names,
        obs_space=obs.space,
        action_space=action.space,
        version=version,
        uri=uri,
    )


def in_part(
    episodes: pa.ChunkedArray, split: float, part: Literal["train", "rest"]
) -> pa.ChunkedArray:
    """Which rows are of a part; an episode's part depends on its name alone, in every version."""
    encoded = episodes.combine_chunks().dictionary_encode(null_encoding="encode")
    bound = int(split * _SPLIT_BITS)
    # Not the sink's own hash of a name, which chose what to log.
    hashes = [zlib.crc32(b"split:" + str(x).encode()) for x in encoded.dictionary.to_pylist()]
    chosen = pa.array([(x < bound) == (part == "train") for x in hashes], pa.bool_())
    return pa.chunked_array([chosen.take(encoded.indices)])


def spaces_in(lake: Lake, rows: pa.Table, version: int) -> tuple[SpaceCodec, SpaceCodec]:
    """The codecs of observations and actions of rows of table `steps`.

    Raises:
        LakeError: they are of several spaces.
    """
    keys = pc.unique(rows.column(s.SPACE)).to_pylist()
    if len(keys) > 1:
        counts = rows.group_by([s.SPACE, c.RUN_ID]).aggregate([]).to_pylist()
        named = ", ".join(f"{x[c.RUN_ID]} has {x[s.SPACE]}" for x in counts[:6])
        raise LakeError(
            f"version {version} of steps has rows of {len(keys)} pairs of spaces where "
            f"offline.where holds ({named}); a learner takes one. Choose by run_id or space."
        )
    return spaces_of(lake.storage, keys[0])


def _refuse_missing(rows: pa.Table, codecs: Mapping[str, SpaceCodec]) -> None:
    """A null would be read as zeros, which no learner can tell from data."""
    for name, codec in codecs.items():
        column = name if codec.num_values else f"{name}_bytes"
        count = rows.column(column).null_count
        if count:
            raise LakeError(
                f"column {column} is null in {count:,} of {rows.num_rows:,} rows; log it "
                "(trace.columns), or leave those runs out by offline.where."
            )
    t = rows.column(c.T)
    if t.null_count or (len(t) and pc.min(t).as_py() < 0):
        raise LakeError(
            f"column {c.T} is null or below 0 in some rows; `millrace validate` names them."
        )


def episodes_of(rows: pa.Table) -> tuple[Ints, pa.Table]:
    """[N] number of each row's episode, by the order of their keys, and the keys [E]."""
    code = np.zeros(rows.num_rows, np.int64)
    parts: list[tuple[str, pa.Array, int]] = []
    for name in EPISODE_KEY:
        column = rows.column(name).combine_chunks()
        if not pa.types.is_dictionary(column.type):
            column = column.dictionary_encode(null_encoding="encode")
        values = column.dictionary
        order = pc.sort_indices(values).to_numpy()
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        code = code * max(1, len(order)) + rank[column.indices.to_numpy()]
        parts.append((name, values.take(pa.array(order)), max(1, len(order))))
    found, episode = np.unique(code, return_inverse=True)
    names = {}
    for name, values, size in reversed(parts):
        found, rank = np.divmod(found, size)
        names[name] = values.take(pa.array(rank))
    table = pa.table({name: names[name] for name in EPISODE_KEY})
    return episode.reshape(-1).astype(np.int64), table


def _tree(codec: SpaceCodec, rows: pa.Table, name: str) -> Tree:
    return codec.tree(rows.column(name), rows.column(f"{name}_bytes"), column=name)


def _in_order(tree: Tree, order: Ints | None) -> Any:
    return tree if order is None else tree_take(tree, order)


def _flag(rows: pa.Table, name: str) -> Mask:
    flag: Mask = rows.column(name).fill_null(False).to_numpy().astype(np.bool_)
    return flag


def _numbers(rows: pa.Table, name: str) -> Array:
    column = rows.column(name)
    missing = np.nan if pa.types.is_floating(column.type) else -1
    numbers: Array = column.fill_null(missing).to_numpy()
    return numbers
