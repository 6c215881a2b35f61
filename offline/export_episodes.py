"""Whole episodes of a lake, some thousand rows at a time, in the order they were sampled."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from offline import schemas as s
from offline.errors import LakeError
from offline.exchange import Episode, Spaces
from offline.lake import Lake
from offline.selection import Selection
from offline.space_codec import SpaceCodec
from offline.spaces import spaces_of
from rl_ops import columns as c
from rl_ops.tree import Tree, tree_take

_GROUP_ROWS: Final = 65_536
_GROUP_BYTES: Final = 64 << 20
_STEP_COLUMNS: Final = (
    *(c.EPISODE_ID, c.T, s.SPACE, c.OBS, s.OBS_BYTES, c.ACTION, s.ACTION_BYTES, c.REWARD),
    *(c.TERMINATED, c.TRUNCATED, c.ABORTED, c.FINAL_OBS, s.FINAL_OBS_BYTES, c.LOGP),
)
_EPISODE_COLUMNS: Final = (
    *(c.RUN_ID, s.SESSION, c.EPISODE_ID, s.SEED, s.LENGTH, s.FRAGMENT_FIRST, s.FRAGMENT_LAST),
    *(c.WORKER_ID, c.ENV_ID),
)


@dataclass(frozen=True)
class EpisodeQuery:
    """Which episodes.

    Attributes:
        runs: ids; empty for all.
        where: conditions on columns of `episodes`: (column, operator, value).
        versions: of the tables `episodes` and `steps`; the newest where not named.
        limit: at most so many.
    """

    runs: tuple[str, ...] = ()
    where: tuple[tuple[str, str, Any], ...] = ()
    versions: Mapping[str, int] = field(default_factory=dict)
    limit: int | None = None


@dataclass
class LakeEpisodes:
    """The episodes of a query; iterating reads them.

    Attributes:
        incomplete: episodes met so far of which steps are missing.
    """

    lake: Lake
    query: EpisodeQuery
    incomplete: int = 0

    def __post_init__(self) -> None:
        foreign = self.query.versions.keys() - {s.STEPS.name, s.EPISODES.name}
        if foreign:
            raise LakeError(f"--version {min(foreign)}: versions are of steps and of episodes")

    @cached_property
    def _episodes(self) -> Selection:
        version = self.query.versions.get(s.EPISODES.name)
        where: list[tuple[str, str, Any]] = list(self.query.where)
        if self.query.runs:
            where.append((c.RUN_ID, "in", list(self.query.runs)))
        return self.lake.table(s.EPISODES.name, version=version, where=where or None)

    @cached_property
    def _steps(self) -> Selection:
        version = self.query.versions.get(s.STEPS.name)
        return self.lake.table(s.STEPS.name, version=version, columns=list(_STEP_COLUMNS))

    @property
    def versions(self) -> dict[str, int]:
        """The versions that are read."""
        return {s.EPISODES.name: self._episodes.version, s.STEPS.name: self._steps.version}

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of `episodes`, in the order of their runs, sessions and fragments."""
        found = self._episodes.to_arrow().select(list(_EPISODE_COLUMNS))
        order = [c.RUN_ID, s.SESSION, s.FRAGMENT_FIRST, c.WORKER_ID, c.ENV_ID]
        table = found.sort_by([(name, "ascending") for name in order])
        if self.query.limit is not None:
            table = table.slice(0, self.query.limit)
        if not table.num_rows:
            raise LakeError(f"no episode matches; {self._there()}")
        return table.to_pylist()  # type: ignore[no-any-return]

    def _there(self) -> str:
        runs = self.lake.episodes(columns=[c.RUN_ID]).to_arrow().column(c.RUN_ID)
        counts = pc.value_counts(runs).to_pylist()
        text = ", ".join(f"{one['values']} ({one['counts']:,})" for one in counts[:20])
        return f"runs with episodes are: {text}" if text else "the lake has no episodes"

    @cached_property
    def spaces(self) -> Spaces:
        """Of all the episodes.

        Raises:
            LakeError: no steps are in the lake.
        """
        key = self._key
        obs, action = self._codecs
        return Spaces(obs.space, action.space, f"the lake, space {key}")

    @cached_property
    def _key(self) -> str:
        for row in self.rows:
            table = self._read([row]).column(s.SPACE)
            if len(table):
                return str(table[0].as_py())
        raise LakeError(
            f"the lake has no steps of the {len(self.rows):,} episodes selected; was the run "
            "traced with steps, and is --version steps=N recent enough?"
        )

    @cached_property
    def _codecs(self) -> tuple[SpaceCodec, SpaceCodec]:
        return spaces_of(self.lake.storage, self._key)

    def __iter__(self) -> Iterator[Episode]:
        many_runs = len({row[c.RUN_ID] for row in self.rows}) > 1
        for group in self._groups():
            for row, steps in self._split(group):
                episode = self._episode(row, steps, many_runs=many_runs)
                if episode is None:
                    self.incomplete += 1
                else:
                    yield episode

    def _groups(self) -> Iterator[list[dict[str, Any]]]:
        """Episodes of one session that are read at once."""
        obs, action = self._codecs
        row_bytes = 8 * (obs.num_values + action.num_values) + obs.num_bytes + action.num_bytes
        most = max(1, min(_GROUP_ROWS, _GROUP_BYTES // max(row_bytes, 1)))
        group: list[dict[str, Any]] = []
        size = 0
        for row in self.rows:
            length = row[s.LENGTH] or 0
            same = group and all(group[0][name] == row[name] for name in (c.RUN_ID, s.SESSION))
            if group and (not same or size + length > most):
                yield group
                group, size = [], 0
            group.append(row)
            size += length
        if group:
            yield group

    def _read(self, group: Sequence[Mapping[str, Any]]) -> pa.Table:
        first = [row[s.FRAGMENT_FIRST] for row in group]
        last = [row[s.FRAGMENT_LAST] for row in group]
        where = [
            (c.RUN_ID, "==", group[0][c.RUN_ID]),
            (s.SESSION, "==", group[0][s.SESSION]),
            (c.EPISODE_ID, "in", [row[c.EPISODE_ID] for row in group]),
        ]
        if None not in first and None not in last:
            # Files' minima and maxima of fragments leave most of the table unread.
            where += [(c.FRAGMENT_ID, ">=", min(first)), (c.FRAGMENT_ID, "<=", max(last))]
        steps = self.lake.steps(
            version=self._steps.version, where=where, columns=list(_STEP_COLUMNS)
        ).to_arrow()
        return steps.sort_by([(c.EPISODE_ID, "ascending"), (c.T, "ascending")])

    def _split(self, group: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], pa.Table]]:
        table = self._read(group)
        ids = table.column(c.EPISODE_ID).combine_chunks()
        counts = {one["values"]: one["counts"] for one in pc.value_counts(ids).to_pylist()}
        start = dict(
            zip(sorted(counts), _starts([counts[name] for name in sorted(counts)]), strict=True)
        )
        for row in group:
            name = row[c.EPISODE_ID]
            yield row, table.slice(start.get(name, 0), counts.get(name, 0))

    def _episode(
        self, row: Mapping[str, Any], steps: pa.Table, *, many_runs: bool
    ) -> Episode | None:
        """The episode; None where steps of it, or what truncation bootstraps from, are missing."""
        rows = steps.num_rows
        times = steps.column(c.T).to_numpy()
        if rows == 0 or rows != row[s.LENGTH] or (times != np.arange(rows)).any():
            return None
        self._require_space(steps, row)
        obs, action = self._codecs
        if _is_null(steps, c.OBS, obs):
            raise LakeError(
                f"steps of run {row[c.RUN_ID]!r} were logged without observations; there is "
                "nothing to export"
            )
        last = steps.slice(rows - 1, 1)
        final = None if _is_null(last, c.FINAL_OBS, obs) else _tree(last, c.FINAL_OBS, obs)
        terminated = bool(last.column(c.TERMINATED)[0].as_py())
        # An end that nobody chose is a truncation, whatever cut it.
        truncated = bool(last.column(c.TRUNCATED)[0].as_py()) or not terminated
        if final is None and not terminated:
            return None
        logp = steps.column(c.LOGP)
        name = row[c.EPISODE_ID]
        return Episode(
            episode_id=f"{row[c.RUN_ID]}/{name}" if many_runs else name,
            obs=_tree(steps, c.OBS, obs),
            action=_tree(steps, c.ACTION, action),
            reward=steps.column(c.REWARD).to_numpy(),
            terminated=terminated,
            truncated=truncated,
            final_obs=final,
            logp=None if logp.null_count else logp.to_numpy().astype(np.float64),
            seed=row[s.SEED],
        )

    def _require_space(self, steps: pa.Table, row: Mapping[str, Any]) -> None:
        keys = set(pc.unique(steps.column(s.SPACE)).to_pylist())
        if keys != {self._key}:
            raise LakeError(
                f"episode {row[c.EPISODE_ID]!r} of run {row[c.RUN_ID]!r} has other observation or "
                "action spaces than the first selected; export them apart, by --run"
            )


def _starts(counts: Sequence[int]) -> list[int]:
    return [0, *np.cumsum(counts).tolist()][: len(counts)]


def _is_null(steps: pa.Table, column: str, codec: SpaceCodec) -> bool:
    name = column if codec.num_values else f"{column}_bytes"
    return bool(steps.column(name).null_count)


def _tree(steps: pa.Table, column: str, codec: SpaceCodec) -> Tree:
    tree = codec.tree(steps.column(column), steps.column(f"{column}_bytes"), column=column)
    return tree_take(tree, slice(None))
