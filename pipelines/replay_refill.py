"""The rows of a replay memory, read back from the lake bit for bit and in their order."""

import logging
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs

from offline import schemas as s
from offline.errors import LakeError, LakeStorageError
from offline.lake import Lake
from offline.selection import Selection
from offline.spaces import SpaceCodec, describe_spaces
from offline.storage import Storage
from pipelines.config import AlgorithmConfig
from pipelines.config_errors import Problem
from pipelines.errors import CheckpointError
from rl_ops import columns as c
from rl_ops.connectors import ObsConnectors, ObsState, StatefulObsConnector
from rl_ops.rollout import RolloutSpec
from rl_ops.spaces import codec_for
from rl_ops.tree import Tree, tree_concat, tree_set, tree_take

if TYPE_CHECKING:
    import pyarrow.dataset as pds

Array = npt.NDArray[Any]

log = logging.getLogger(__name__)

_SCALARS: Final = (
    *(c.REWARD, c.TERMINATED, c.TRUNCATED, c.IS_LAST, c.ABORTED, c.T, c.ENV_ID, c.FRAGMENT_ID),
)
_PROGRESS: Final = (c.EPISODE_ID, c.T, c.TERMINATED, c.TRUNCATED)
_BATCH_BYTES: Final = 8 * 2**20
_BATCH_ROWS: Final = 16_384
_CONNECTOR_ROWS: Final = 256
"""Rows that stateless connectors see at a time: a frame's luma is computed in 32 bits a pixel."""
_FIRST_SPAN: Final = 64
"""Fragments in which the beginning of an episode is first looked for."""


@dataclass(frozen=True)
class Segment:
    """Fragments first <= k < end of a session of a run.

    Raises:
        ValueError: the numbers are no such range.
    """

    run_id: str
    session: int
    first: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.first <= self.end:
            raise ValueError(f"{self}: expected 0 <= first <= end.")

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Segment":
        """The segment that `to_json` described.

        Raises:
            CheckpointError: it is no such object.
        """
        try:
            return cls(**data)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{data!r} names no fragments of a run: {error}") from error


def refill_problems(config: AlgorithmConfig) -> tuple[Problem, ...]:
    """Why a replay memory could not be refilled from what the configuration logs; empty if it can.

    Normalised observations are no obstacle: their statistics are the learner's. A scaled reward
    is: what it was divided by is not in the lake.
    """
    trace, found = config.trace, []
    why = "a replay memory is refilled from the lake"
    if not trace.enabled:
        return (Problem("trace.enabled", f"got false; {why}", "set it to true"),)
    if trace.episode_frac < 1.0:
        what = f"got {trace.episode_frac}; {why}, which needs every step"
        found.append(Problem("trace.episode_frac", what, "set it to 1.0"))
    lost = [name for name in (c.OBS, c.FINAL_OBS) if name not in trace.columns]
    if lost:
        what = f"got {list(trace.columns)}; {why}"
        found.append(Problem("trace.columns", what, f"add {' and '.join(lost)}"))
    if config.connectors.normalize_reward:
        what = f"got true; {why}, which has rewards as they were"
        found.append(Problem("connectors.normalize_reward", what, "use connectors.clip_reward"))
    return tuple(found)


def stored_fragments(
    lake: Lake | Storage,
    *,
    version: int | None,
    segments: Sequence[Segment],
    spec: RolloutSpec,
    rank: int,
    ranks: int,
    rows: int,
) -> Iterator[pa.Table]:
    """The newest fragments that hold the last `rows` rows of a rank, oldest first.

    Each is a table as the rollout emitted it, without columns of its making (episode, policy,
    worker, time, logp, values). Fragments are whole, because operators such as n-step look across
    their rows: the first may hold more rows than are wanted, which the caller drops after those.
    Connectors act on the logged observations again; those that remember are led through the
    earlier rows of the episodes in progress.

    Memory holds a fragment, a row group or two, and what files have out of order.

    Args:
        lake: with the runs' steps.
        version: of table `steps`; the newest is read where vacuum took files of it, because steps
            are only added, and named by their fragment.
        segments: oldest first, earlier sessions before later ones. Ids of all their rows are
            read, so let them begin about where the memory does.
        spec: of the rollout, as it was when the rows were made.
        rank: whose rows: those of fragments k with k % ranks == rank.
        ranks: how many there are.
        rows: what the rank's memory held.

    Raises:
        ValueError: rank or rows are out of range.
        LakeError: rows are missing, doubled, of other spaces, or cannot be read; at once where
            fragments are missing, else when they are reached.
    """
    if not 0 <= rank < ranks or rows < 0:
        raise ValueError(f"got rank={rank}, ranks={ranks}, rows={rows}; expected rank < ranks.")
    lake = lake if isinstance(lake, Lake) else Lake(lake)
    steps = _Steps(lake, _readable_version(lake, version, segments) if rows else 0)
    parts = steps.newest(segments, rank=rank, ranks=ranks, rows=rows)
    return _tables(steps, spec, parts)


def _readable_version(lake: Lake, version: int | None, segments: Sequence[Segment]) -> int:
    """`version`, or the newest where it is no more."""
    newest = int(lake.steps().version)
    if version is None or version == newest:
        return newest
    runs = sorted({segment.run_id for segment in segments})
    try:
        chosen = lake.steps(version=version, where=[(c.RUN_ID, "in", runs)])
        paths = [file.path for file in chosen.files()]
        found = lake.storage.filesystem(s.STEPS.name).get_file_info(paths)
        lost = [info.path for info in found if info.type == fs.FileType.NotFound]
        reason = f"its file {lost[0]} is gone" if lost else None
    except LakeStorageError:
        raise
    except LakeError as error:
        reason = str(error)
    if reason is None:
        return version
    log.info("version %d of steps is no more (%s); reading version %d", version, reason, newest)
    return newest


class _RowGroup(NamedTuple):
    """Part of a data file, and how many of its rows are of which fragment."""

    source: "pds.ParquetFileFragment"
    counts: Mapping[int, int]


@dataclass(frozen=True)
class _Part:
    """Fragments of a segment, ascending, and where their rows are."""

    segment: Segment
    selection: Selection
    groups: Sequence[_RowGroup]
    counts: Mapping[int, int]
    fragments: Sequence[int]

    @classmethod
    def of(cls, segment: Segment, selection: Selection) -> "_Part":
        """All fragments of a selection; reads which rows are whose, and no other column."""
        groups: list[_RowGroup] = []
        total = Counter[int]()
        for file in selection.files():
            try:
                sources = file.split_by_row_group(selection.where, schema=selection.schema)
            except (OSError, pa.ArrowException) as error:
                raise selection.explained(error) from None
            for source in sources:
                counts = Counter[int]()
                for batch in _scan(selection, source, [c.FRAGMENT_ID], rows=_BATCH_ROWS):
                    ids, rows = np.unique(batch.column(0).to_numpy(), return_counts=True)
                    counts.update(dict(zip(ids.tolist(), rows.tolist(), strict=True)))
                groups.append(_RowGroup(source, counts))
                total.update(counts)
        return cls(segment, selection, groups, total, sorted(total))

    def tables(self, columns: Sequence[str], *, row_bytes: int) -> Iterator[pa.Table]:
        """The rows of each fragment, env-major, whatever file they are in; reads each once."""
        left = {k: self.counts[k] for k in self.fragments}
        due, held = deque(self.fragments), defaultdict[int, list[pa.RecordBatch]](list)
        needed = [group for group in self.groups if left.keys() & group.counts.keys()]
        wanted = pc.field(c.FRAGMENT_ID).isin(pa.array(self.fragments, pa.int64()))
        size = min(max(_BATCH_BYTES // row_bytes, 64), _BATCH_ROWS)
        # Files of a compaction, or of several ranks, have fragments in no order.
        for group in sorted(needed, key=lambda group: min(left.keys() & group.counts.keys())):
            for batch in _scan(self.selection, group.source, columns, rows=size, also=wanted):
                ids = batch.column(c.FRAGMENT_ID).to_numpy()
                starts = _starts(ids)
                for start, end in zip(starts, [*starts, len(ids)][1:], strict=True):
                    k = int(ids[start])
                    held[k].append(batch.slice(start, end - start))
                    left[k] -= int(end - start)
                while due and left[due[0]] == 0:
                    yield _env_major(pa.Table.from_batches(held.pop(due.popleft())))
        assert not due, "rows were counted in files that do not change"


def _scan(
    selection: Selection,
    source: "pds.ParquetFileFragment",
    columns: Sequence[str],
    *,
    rows: int,
    also: pc.Expression | None = None,
) -> Iterator[pa.RecordBatch]:
    where = selection.where if also is None else selection.where & also
    try:
        yield from source.to_batches(
            schema=selection.schema,
            columns=list(columns),
            filter=where,
            batch_size=rows,
            batch_readahead=1,
        )
    except (OSError, pa.ArrowException) as error:
        raise selection.explained(error) from None


def _starts(values: Array) -> Array:
    """Where runs of equal values begin."""
    return np.flatnonzero(np.diff(values, prepend=values[:1] - 1)) if len(values) else values


def _env_major(rows: pa.Table) -> pa.Table:
    """A fragment's rows as the rollout ordered them; episodes past 9 999 999 have longer names."""
    keys = rows.select([c.ENV_ID, c.EPISODE_ID, c.T])
    keys = keys.append_column(s.LENGTH, pc.utf8_length(keys.column(c.EPISODE_ID)))
    order = [(name, "ascending") for name in (c.ENV_ID, s.LENGTH, c.EPISODE_ID, c.T)]
    index = pc.sort_indices(keys, sort_keys=order)
    is_sorted = bool((np.diff(index.to_numpy()) == 1).all())
    return (rows if is_sorted else rows.take(index)).combine_chunks()


@dataclass(frozen=True)
class _Steps:
    """Table `steps` as of one version."""

    lake: Lake
    version: int

    def select(self, segment: Segment, *conditions: tuple[str, str, Any]) -> Selection:
        """Rows of a segment for which all `conditions` hold."""
        where: list[tuple[str, str, Any]] = [(c.RUN_ID, "=", segment.run_id)]
        where += [(s.SESSION, "=", segment.session), (c.FRAGMENT_ID, ">=", segment.first)]
        where += [(c.FRAGMENT_ID, "<", segment.end), *conditions]
        selection: Selection = self.lake.steps(version=self.version, where=where)
        return selection

    def newest(
        self, segments: Sequence[Segment], *, rank: int, ranks: int, rows: int
    ) -> list[_Part]:
        """The fragments that hold a rank's last `rows` rows, oldest first."""
        parts: list[_Part] = []
        left = rows
        for segment in reversed(segments):
            if left <= 0:
                break
            part, kept = _Part.of(segment, self.select(segment)), deque[int]()
            last = segment.end - 1 - (segment.end - 1 - rank) % ranks
            for k in range(last, segment.first - 1, -ranks):
                if left <= 0:
                    break
                if k not in part.counts:
                    raise self._missing(f"fragment {k} of {segment} is not there", rows, left)
                kept.appendleft(k)
                left -= part.counts[k]
            parts.append(replace(part, fragments=kept))
        if left > 0:
            raise self._missing(f"there are no more in {list(segments)}", rows, left)
        return parts[::-1]

    def _missing(self, what: str, rows: int, left: int) -> LakeError:
        return LakeError(
            f"the replay memory held {rows} rows, and only the newest {rows - left} of them are in "
            f"version {self.version} of table {s.STEPS.name} at {self.lake.storage.uri}: {what}. "
            "Restore the lake from a copy (`millrace lake doctor` tells what it lost), or resume "
            "from a checkpoint whose rows are there."
        )

    def earlier(self, segment: Segment, fragment: int, episodes: Sequence[str]) -> _Part:
        """The rows before `fragment` of episodes that go on in it."""
        chosen, span = (c.EPISODE_ID, "in", episodes), _FIRST_SPAN
        first, begun = fragment, 0
        # Going back by growing steps reads little where episodes are short, and all if need be.
        while begun < len(episodes) and first > 0:
            first, span = max(0, fragment - span), 4 * span
            before = Segment(segment.run_id, segment.session, first, fragment)
            begun = self.select(before, chosen, (c.T, "=", 0)).count()
        before = Segment(segment.run_id, segment.session, first, fragment)
        return _Part.of(before, self.select(before, chosen))


class _Memory:
    """What connectors remember of the episodes in progress.

    Source of every step: `ObsConnectors.step`, as the rollout calls it, so that bits are equal.
    """

    def __init__(self, connectors: ObsConnectors) -> None:
        self._connectors = connectors
        self._remembers = any(isinstance(x, StatefulObsConnector) for x in connectors.steps)
        self._open: dict[str, tuple[int, ObsState]] = {}

    def lacking(self, rows: pa.Table) -> list[str]:
        """Episodes in a fragment whose rows before it have not been seen."""
        if not self._remembers:
            return []
        t, episode = rows.column(c.T).to_numpy(), rows.column(c.EPISODE_ID)
        starts = _starts(rows.column(c.ENV_ID).to_numpy())
        first = [(episode[i].as_py(), int(t[i])) for i in starts if t[i]]
        return [name for name, at in first if name not in self._open or self._open[name][0] != at]

    def walk(self, rows: pa.Table, obs: Tree) -> Iterator[tuple[Array, Tree, ObsState]]:
        """Which rows, what the module was fed there, and what is remembered after them."""
        t = rows.column(c.T).to_numpy()
        if not self._remembers:
            for low in range(0, len(t), _CONNECTOR_ROWS):
                index = np.arange(low, min(low + _CONNECTOR_ROWS, len(t)))
                state = self._connectors.start(len(index))
                fed = self._connectors.step(tree_take(obs, index), t[index] == 0, state)
                yield index, fed, state
            return
        starts = _starts(rows.column(c.ENV_ID).to_numpy())
        lengths = np.diff(starts, append=len(t))
        order = np.argsort(-lengths, kind="stable")
        starts, lengths = starts[order], lengths[order]
        state = self._recalled(rows, starts)
        for i in range(int(lengths[0])):
            going = int(np.count_nonzero(lengths > i))
            index = starts[:going] + i
            state = _some(state, slice(0, going))
            fed = self._connectors.step(tree_take(obs, index), t[index] == 0, state)
            yield index, fed, state
            self._keep(rows, index, state, np.flatnonzero(lengths[:going] == i + 1))

    def _recalled(self, rows: pa.Table, firsts: Array) -> ObsState:
        """The state of the sub-environments whose rows begin at `firsts`."""
        episode, fresh = rows.column(c.EPISODE_ID), self._connectors.start(1)
        states = [self._open.pop(episode[i].as_py(), (0, fresh))[1] for i in firsts]
        parts = zip(*states, strict=True)
        return [None if part[0] is None else tree_concat(part) for part in parts]

    def _keep(self, rows: pa.Table, index: Array, state: ObsState, done: Array) -> None:
        """Remember episodes that go on after the last rows of sub-environments `done`."""
        for i in done.tolist():
            row = {name: rows.column(name)[int(index[i])].as_py() for name in _PROGRESS}
            if not (row[c.TERMINATED] or row[c.TRUNCATED]):
                self._open[row[c.EPISODE_ID]] = (row[c.T] + 1, _some(state, slice(i, i + 1)))


def _some(state: ObsState, index: slice) -> ObsState:
    return [None if memory is None else tree_take(memory, index) for memory in state]


class _Decoder:
    """From a fragment's rows in the lake to the table that the rollout emitted."""

    def __init__(self, spec: RolloutSpec) -> None:
        policy = spec.policy
        spaces = (policy.obs_space, policy.action_connectors.input_space)
        self._spec, self._connectors = spec, policy.obs_connectors
        self._space, _ = describe_spaces(*spaces)
        self._obs, self._action = (SpaceCodec(space) for space in spaces)
        self._model_codec = codec_for(policy.obs_connectors.output_space)
        self._action_codec = codec_for(policy.action_connectors.input_space)
        self._has_final = c.FINAL_MODEL_OBS in spec.keep
        self.row_bytes = 8 * self._obs.num_values + self._obs.num_bytes
        self.obs_columns = (*_SCALARS, s.SPACE, c.EPISODE_ID, c.OBS, s.OBS_BYTES)
        finals = (c.FINAL_OBS, s.FINAL_OBS_BYTES) if self._has_final else ()
        self.columns = (*self.obs_columns, c.ACTION, s.ACTION_BYTES, *finals)

    def obs(self, rows: pa.Table) -> Tree:
        """Observations as the environment emitted them."""
        spaces = pc.unique(rows.column(s.SPACE)).to_pylist()
        if spaces != [self._space]:
            raise LakeError(
                f"{_place(rows)} holds observations or actions of spaces {spaces}; those of "
                f"{self._spec.env.id} are {self._space!r}. The environment has changed since."
            )
        return self._logged(rows, c.OBS, np.ones(rows.num_rows, np.bool_))

    def _logged(self, rows: pa.Table, name: str, needed: Array) -> Tree:
        """Column obs or final_obs, which must be there where `needed`."""
        columns = [rows.column(name), rows.column(f"{name}_bytes")]
        there = columns[0 if self._obs.num_values else 1].is_valid().to_numpy()
        if (needed & ~there).any():
            raise LakeError(
                f"{_place(rows)} lacks {name} in {np.count_nonzero(needed & ~there)} rows that "
                f"need it; a run whose trace.columns have no {name!r} cannot refill its memory."
            )
        return self._obs.tree(*columns, column=name)

    def table(self, rows: pa.Table, memory: _Memory) -> pa.Table:
        """The fragment as it was emitted."""
        count, obs = rows.num_rows, self.obs(rows)
        flags = [rows.column(name).to_numpy() for name in (c.IS_LAST, c.TERMINATED)]
        is_final = flags[0] & ~flags[1] & self._has_final
        final_obs = self._logged(rows, c.FINAL_OBS, is_final) if self._has_final else None
        fed, final = self._model_codec.empty(count), self._model_codec.empty(count)
        for index, seen, state in memory.walk(rows, obs):
            tree_set(fed, index, seen)
            at = np.flatnonzero(is_final[index])
            if at.size:
                last = tree_take(final_obs, index[at])
                tree_set(final, index[at], self._connectors.peek(last, state, at))
        action = self._action.tree(
            rows.column(c.ACTION), rows.column(s.ACTION_BYTES), column=c.ACTION
        )
        arrays = {name: rows.column(name) for name in _SCALARS}
        arrays[self._spec.obs_column] = self._model_codec.encode(fed)
        arrays[c.ACTION] = self._action_codec.encode(action)
        if self._has_final:
            arrays[c.FINAL_MODEL_OBS] = self._model_codec.encode(final)
        return pa.table({name: arrays[name] for name in self._spec.adds if name in arrays})


def _tables(steps: _Steps, spec: RolloutSpec, parts: Sequence[_Part]) -> Iterator[pa.Table]:
    """The fragments of `parts` as they were emitted."""
    decoder = _Decoder(spec)
    for part in parts:
        memory = _Memory(spec.policy.obs_connectors)
        for rows in part.tables(decoder.columns, row_bytes=decoder.row_bytes):
            _require_whole(rows)
            lacking = memory.lacking(rows)
            if lacking:
                fragment = rows.column(c.FRAGMENT_ID)[0].as_py()
                before = steps.earlier(part.segment, fragment, lacking)
                for earlier in before.tables(decoder.obs_columns, row_bytes=decoder.row_bytes):
                    _require_whole(earlier)
                    _require_known(earlier, memory)
                    deque(memory.walk(earlier, decoder.obs(earlier)), maxlen=0)
                _require_known(rows, memory)
            yield decoder.table(rows, memory)


def _require_whole(rows: pa.Table) -> None:
    """Refuse a fragment whose rows do not follow each other as steps do."""
    env, t = rows.column(c.ENV_ID).to_numpy(), rows.column(c.T).to_numpy()
    is_last, episode = rows.column(c.IS_LAST).to_numpy(), rows.column(c.EPISODE_ID)
    is_same = pc.equal(episode[1:], episode[:-1]).to_numpy()
    begins = is_last[:-1] & ((t[1:] == 0) | (env[1:] != env[:-1]))
    follows = np.append(np.where(is_same, t[1:] == t[:-1] + 1, begins), is_last[-1])
    if not follows.all():
        i = int(follows.argmin())
        raise LakeError(
            f"{_place(rows)} is not what a rollout emits after t={t[i]} of {episode[i]}: rows are "
            "missing or doubled. `millrace lake doctor` tells what is wrong with the lake."
        )


def _require_known(rows: pa.Table, memory: _Memory) -> None:
    """Refuse episodes whose earlier rows were looked for and not found."""
    lacking = memory.lacking(rows)
    if lacking:
        raise LakeError(
            f"{_place(rows)} goes on with {len(lacking)} episodes (the first is {lacking[0]}) "
            "whose earlier rows the lake does not have, and connectors that remember need them. "
            "`millrace lake doctor` tells what it lost."
        )


def _place(rows: pa.Table) -> str:
    return f"fragment {rows.column(c.FRAGMENT_ID)[0]} of table {s.STEPS.name}"
