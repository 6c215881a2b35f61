"""Episodes of a lake: listing them, finding one by its id, and reading its steps."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from offline import schemas as s
from offline.errors import LakeError
from offline.spaces import spaces_of
from rl_ops import columns as c
from rl_ops.tree import Tree, zip_spaces

if TYPE_CHECKING:
    from gymnasium.spaces import Space

    from offline.lake import Lake

Array = npt.NDArray[Any]

SORTS: Final = ("ended_at", "return", "length")
"""By what episodes are listed, the greatest first."""

_RUNS: Final = "(SELECT run_id, max(env) AS env, max(seed) AS run_seed FROM runs GROUP BY run_id)"
_EPISODES: Final = (
    f"SELECT e.*, r.env, r.run_seed FROM episodes e LEFT JOIN {_RUNS} r USING (run_id)"
)
_SHOWN: Final = 5


@dataclass(frozen=True)
class EpisodeRow:
    """An episode as table `episodes` has it; None where it does not say.

    Attributes:
        kind: train, evaluation or import; None for an episode of which there are steps only.
        checkpoint: whose policy was evaluated.
        return_: undiscounted.
        seed: of the episode alone, where it had one.
        env, run_seed: of the run, as configured.
    """

    episode_id: str
    run_id: str
    session: int | None
    kind: str | None
    checkpoint: str | None
    worker_id: int | None
    env_id: int | None
    seed: int | None
    return_: float | None
    length: int
    terminated: bool | None
    truncated: bool | None
    aborted: bool | None
    policy_version_first: int | None
    policy_version_last: int | None
    fragment_first: int | None
    fragment_last: int | None
    started_at: datetime | None
    ended_at: datetime | None
    env: str | None
    run_seed: int | None

    @property
    def ending(self) -> str:
        """How it ended, in one word or two."""
        return ending_of(self.aborted, self.terminated, self.truncated)


def ending_of(aborted: bool | None, terminated: bool | None, truncated: bool | None) -> str:
    """How an episode ended; of evaluations no more is kept than that it did."""
    if aborted:
        return "aborted"
    if terminated is None and truncated is None:
        return "ended"
    ends = {c.TERMINATED: terminated, c.TRUNCATED: truncated}
    return " ".join(name for name, did in ends.items() if did) or "unfinished"


@dataclass(frozen=True)
class Trace:
    """The steps of one episode, in order.

    Attributes:
        episode: whose.
        rows: columns of table `steps`, by t.
        obs, action: trees [T, ...] with the spaces' dtypes; None where they were not logged.
        obs_space, action_space: of them.
    """

    episode: EpisodeRow
    rows: pa.Table
    obs: Tree | None
    action: Tree | None
    obs_space: "Space[Any]"
    action_space: "Space[Any]"

    def column(self, name: str) -> Array:
        """A column of numbers or flags; NaN or None where it is null."""
        values: Array = self.rows.column(name).to_numpy()
        return values

    def series(self, *, max_obs: int = 4) -> dict[str, Array]:
        """What can be drawn over t: reward, value, and the first numbers of the observations.

        Args:
            max_obs: how many numbers of the observations; frames are none.
        """
        found = {c.REWARD: self.column(c.REWARD)}
        if self.rows.column(c.VALUE).null_count < len(self):
            found[c.VALUE] = self.column(c.VALUE).astype(np.float64)
        if self.obs is not None:
            numbers = numbers_of(c.OBS, self.obs_space, self.obs)
            found |= dict(islice(numbers, max_obs))
        return found

    def __len__(self) -> int:
        return int(self.rows.num_rows)


def list_episodes(
    lake: "Lake",
    *,
    run_id: str | None = None,
    kind: str | None = None,
    aborted: bool = False,
    sort: str = "ended_at",
    limit: int = 20,
) -> list[EpisodeRow]:
    """Episodes, the greatest of `sort` first.

    Args:
        lake: where.
        run_id: of this run only.
        kind: train, evaluation or import only.
        aborted: only those that a failure or the run's end cut off.
        sort: one of `SORTS`.
        limit: how many at most.

    Raises:
        LakeError: there is no such run in the lake; names the nearest.
        ValueError: `sort` is none of `SORTS`.
    """
    if sort not in SORTS:
        raise ValueError(f"episodes cannot be sorted by {sort!r}; choose {', '.join(SORTS)}")
    conditions, values = ["true"], list[Any]()
    if run_id is not None:
        conditions.append("run_id = ?")
        values.append(run_id)
    if kind is not None:
        conditions.append("kind = ?")
        values.append(kind)
    if aborted:
        conditions.append("aborted")
    query = (
        f"{_EPISODES} WHERE {' AND '.join(conditions)} "
        f'ORDER BY "{sort}" DESC NULLS LAST, episode_id LIMIT ?'
    )
    found = _rows(lake, query, [*values, limit])
    if not found and run_id is not None:
        _refuse_unknown_run(lake, run_id)
    return found


def find_episode(lake: "Lake", given: str, *, run_id: str | None = None) -> EpisodeRow:
    """The episode of an id, or of the beginning of one if no other begins so.

    An episode that nobody saw end, because its run was killed, is found by its whole id: of it
    there are steps only.

    Args:
        lake: where.
        given: the id, or its beginning.
        run_id: of which run, where runs that were imported have the same ids.

    Raises:
        LakeError: there is none, or several; names the nearest or the first of them.
    """
    of_run, values = ("", []) if run_id is None else ("AND run_id = ?", [run_id])
    whole = _rows(lake, f"{_EPISODES} WHERE episode_id = ? {of_run} LIMIT 9", [given, *values])
    found = whole or _of_steps(lake, given, run_id)
    if not found:
        query = f"{_EPISODES} WHERE starts_with(episode_id, ?) {of_run} ORDER BY episode_id LIMIT ?"
        found = _rows(lake, query, [given, *values, _SHOWN + 1])
    if not found:
        raise LakeError(_nothing_like(lake, given, run_id))
    if len(found) > 1:
        names = [f"{row.episode_id!r} of run {row.run_id!r}" for row in found[:_SHOWN]]
        more = ", ..." if len(found) > _SHOWN else ""
        raise LakeError(f"{given!r} is several episodes: {', '.join(names)}{more}; give more of it")
    return found[0]


def read_trace(lake: "Lake", episode: EpisodeRow, *, agent_id: str | None = None) -> Trace:
    """The steps of an episode.

    Args:
        lake: where.
        episode: which.
        agent_id: whose steps, where several agents acted.

    Raises:
        LakeError: there are no steps of it, or those of several agents.
    """
    where: list[tuple[str, str, Any]] = [
        (c.RUN_ID, "=", episode.run_id),
        (c.EPISODE_ID, "=", episode.episode_id),
    ]
    if episode.fragment_first is not None and episode.fragment_last is not None:
        # The narrower, the more files are skipped.
        where += [(c.FRAGMENT_ID, ">=", episode.fragment_first)]
        where += [(c.FRAGMENT_ID, "<=", episode.fragment_last)]
    if agent_id is not None:
        where.append((c.AGENT_ID, "=", agent_id))
    rows = lake.steps(where=where).to_arrow().sort_by(c.T)
    if rows.num_rows == 0:
        agent = f" by agent {agent_id!r}" if agent_id is not None else ""
        raise LakeError(
            f"the lake has no steps of episode {episode.episode_id!r}{agent}; its run logged a "
            "part of the episodes only, or it is an episode of which no steps are kept"
        )
    agents = _agents(rows)
    if len(agents) > 1:
        raise LakeError(
            f"in episode {episode.episode_id!r} several agents act: {', '.join(agents)}; choose one"
        )
    return _trace(lake, episode, rows)


def read_traces(lake: "Lake", run_id: str, ids: Sequence[str]) -> dict[str, Trace]:
    """The steps of several episodes of one run, each data file read once.

    Args:
        lake: where.
        run_id: the run.
        ids: of the episodes, whole.

    Returns:
        Id → trace, in the order of `ids`; those without steps, or with steps of several agents,
        are left out.
    """
    listed = _rows(
        lake,
        f"{_EPISODES} WHERE run_id = ? AND list_contains(?, episode_id)",
        [run_id, list(ids)],
    )
    episodes = {row.episode_id: row for row in listed}
    for name in (name for name in dict.fromkeys(ids) if name not in episodes):
        episodes |= {row.episode_id: row for row in _of_steps(lake, name, run_id)}
    where = [(c.RUN_ID, "=", run_id), (c.EPISODE_ID, "in", list(episodes))]
    rows = (
        lake.steps(where=where)
        .to_arrow()
        .sort_by([(c.EPISODE_ID, "ascending"), (c.T, "ascending")])
    )
    names = rows.column(c.EPISODE_ID).to_numpy()
    found: dict[str, Trace] = {}
    for name in (name for name in dict.fromkeys(ids) if name in episodes):
        start, end = np.searchsorted(names, [name, name + "\0"]) if len(names) else (0, 0)
        part = rows.slice(start, end - start)
        if part.num_rows and len(_agents(part)) == 1:
            found[name] = _trace(lake, episodes[name], part)
    return found


def _agents(rows: pa.Table) -> list[str]:
    return sorted({str(name) for name in rows.column(c.AGENT_ID).to_pylist()})


def _trace(lake: "Lake", episode: EpisodeRow, rows: pa.Table) -> Trace:
    obs_codec, action_codec = spaces_of(lake.storage, rows.column(s.SPACE)[0].as_py())
    return Trace(
        episode=episode,
        rows=rows,
        obs=_tree(obs_codec, rows, c.OBS, s.OBS_BYTES),
        action=_tree(action_codec, rows, c.ACTION, s.ACTION_BYTES),
        obs_space=obs_codec.space,
        action_space=action_codec.space,
    )


def numbers_of(name: str, space: "Space[Any]", tree: Tree) -> Iterator[tuple[str, Array]]:
    """Every number of a batch over its rows, called as Python would get it; no frames."""
    paths = _paths(name, space)
    for path, (leaf, batch) in zip(paths, zip_spaces(space, tree), strict=True):
        if batch.ndim == 1:
            yield path, batch.astype(np.float64)
        elif not is_frame(leaf):
            flat = batch.reshape(len(batch), -1)
            for i in range(flat.shape[1]):
                index = ", ".join(str(k) for k in np.unravel_index(i, batch.shape[1:]))
                yield f"{path}[{index}]", flat[:, i].astype(np.float64)


def is_frame(leaf: "Space[Any]") -> bool:
    """Whether a leaf space is shown as a picture rather than as numbers."""
    return bool(leaf.dtype == np.uint8) and leaf.shape is not None and len(leaf.shape) >= 2


def _paths(name: str, space: "Space[Any]") -> list[str]:
    children = getattr(space, "spaces", None)
    if children is None:
        return [name]
    pairs = children.items() if isinstance(children, Mapping) else enumerate(children)
    return [path for key, child in pairs for path in _paths(f"{name}[{key!r}]", child)]


def _tree(codec: Any, rows: pa.Table, values: str, bytes_: str) -> Tree | None:
    columns = rows.column(values), rows.column(bytes_)
    if all(column.null_count for column in columns):
        return None
    return codec.tree(*columns, column=values)


def _rows(lake: "Lake", query: str, values: list[Any]) -> list[EpisodeRow]:
    names = [field for field in EpisodeRow.__dataclass_fields__ if field != "return_"]
    return [
        EpisodeRow(return_=row[s.RETURN], **{name: row[name] for name in names})
        for row in lake.sql(query, values).to_pylist()
    ]


def _of_steps(lake: "Lake", given: str, run_id: str | None) -> list[EpisodeRow]:
    run = run_id if run_id is not None else given.partition("/")[0]
    query = f"""
        SELECT e.*, r.env, r.run_seed FROM (
            SELECT run_id, session, episode_id, worker_id, env_id, sum(reward) AS "return",
                count(*) AS length, bool_or(terminated) AS terminated,
                bool_or(truncated) AS truncated, bool_or(coalesce(aborted, false)) AS aborted,
                min(policy_version) AS policy_version_first,
                max(policy_version) AS policy_version_last,
                min(fragment_id) AS fragment_first, max(fragment_id) AS fragment_last,
                min(sampled_at) AS started_at, max(sampled_at) AS ended_at,
                NULL AS kind, NULL AS checkpoint, NULL AS seed
            FROM steps WHERE episode_id = ? AND run_id = ?
            GROUP BY run_id, session, episode_id, worker_id, env_id
        ) e LEFT JOIN {_RUNS} r USING (run_id)"""
    return _rows(lake, query, [given, run])


def _nothing_like(lake: "Lake", given: str, run_id: str | None) -> str:
    of_run, values = ("", []) if run_id is None else ("WHERE run_id = ?", [run_id])
    nearest = lake.sql(
        f"SELECT episode_id FROM episodes {of_run} "
        "ORDER BY jaro_winkler_similarity(episode_id, ?) DESC, episode_id LIMIT 3",
        [*values, given],
    )
    names = [repr(row[c.EPISODE_ID]) for row in nearest.to_pylist()]
    hint = f"the nearest are {', '.join(names)}" if names else "the lake has no episodes"
    return f"no episode {given!r}; {hint}"


def _refuse_unknown_run(lake: "Lake", run_id: str) -> None:
    # difflib only here: it is not needed on the way that works.
    from difflib import get_close_matches

    query = "SELECT DISTINCT run_id FROM runs UNION SELECT DISTINCT run_id FROM episodes"
    runs = sorted(row[c.RUN_ID] for row in lake.sql(query).to_pylist())
    if run_id in runs:
        return
    close = get_close_matches(run_id, runs, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]!r}?" if close else f"it has {len(runs)} runs"
    raise LakeError(f"no run {run_id!r} in the lake; {hint}")
