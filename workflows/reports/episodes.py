"""The data of a report's trace browser: all episodes in a list, some with every step."""

import base64
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from offline.errors import LakeError
from offline.traces import (
    EpisodeRow,
    Trace,
    ending_of,
    find_episode,
    is_frame,
    numbers_of,
    read_traces,
)
from rl_ops import columns as c
from workflows.plots import header
from workflows.reports.blocks import Traces, rounded, text
from workflows.reports.curves import numbers
from workflows.reports.run_tables import Rows
from workflows.trace_tables import flags, short

if TYPE_CHECKING:
    from gymnasium.spaces import Space

MAX_LISTED: Final = 20_000
"""Episodes in the list; of more those that are chosen, and of the others every n-th."""
_MAX_OBS: Final = 12
"""Numbers of an observation or action that are drawn."""
_COLUMNS: Final = ("episode", "run", "kind", "return", "length", "ended", "version")


@dataclass
class Budget:
    """What traces may take in a page.

    Attributes:
        numbers: of observations, actions, rewards and so on.
        frame_bytes: of frames, compressed.
        steps: of one episode.
    """

    numbers: int = 400_000
    frame_bytes: int = 2_500_000
    steps: int = 5_000
    left_out: list[str] = field(default_factory=list)


def traces_of(rows: Rows, *, count: int, named: Sequence[str] = (), storage: str) -> Traces | None:
    """The browser's data; None where the runs have no episodes in the lake.

    Args:
        rows: of the runs.
        count: episodes that get their steps, beside those that are named: the best, the worst,
            the middle, the longest, the first and the last, aborted ones, the rest evenly over
            the run.
        named: episodes that are wanted for certain, by id or its beginning.
        storage: as commands are given it.

    Raises:
        LakeError: a named episode is not there, or of another run.
    """
    table = rows(_LISTED).to_pydict()
    telling = [table["episode_id"][i] for i in choose(table, count)]
    index = {episode: i for i, episode in enumerate(table["episode_id"])}
    wanted = [_named(rows, name) for name in named]
    for row in wanted:
        if row.episode_id not in index:  # nobody saw it end
            index[row.episode_id] = len(index)
            known = _listed(row)
            for name, column in table.items():
                column.append(known[name])
    if not index:
        return None
    chosen = [*(row.episode_id for row in wanted), *telling]
    budget, read, traces = Budget(), dict[str, Trace](), dict[str, Any]()
    for run_id in dict.fromkeys(table["run_id"][index[name]] for name in chosen):
        ids = [name for name in chosen if table["run_id"][index[name]] == run_id]
        try:
            read |= read_traces(rows.lake, run_id, ids)
        except LakeError as error:
            # The rest of the report can be read all the same; the page says what could not.
            budget.left_out.append(str(error))
    for episode_id in (name for name in dict.fromkeys(chosen) if name in read):
        found = _trace(read[episode_id], budget)
        if found is not None:
            traces[text(episode_id)] = found
    shown = _thinned(len(index), [index[name] for name in chosen])
    left_out = 1 if len(rows.run_ids) == 1 else None  # one run's name on every line says nothing

    def row_at(i: int) -> list[Any]:
        return _row({name: column[i] for name, column in table.items()})

    data = {
        "columns": [name for k, name in enumerate(_COLUMNS) if k != left_out],
        "rows": [[x for k, x in enumerate(row_at(i)) if k != left_out] for i in shown],
        "traces": traces,
        "first": next(iter(traces), None),
        "command": _command(rows.run_ids, storage),
        "note": _note(len(index), len(shown), len(traces), budget),
    }
    return Traces(data)


def one_trace(trace: Trace, budget: Budget, *, storage: str) -> Traces:
    """The browser's data of one episode alone."""
    name = text(trace.episode.episode_id)
    found = _trace(trace, budget)
    return Traces(
        {
            "columns": _COLUMNS,
            "rows": [_row(_listed(trace.episode))],
            "traces": {} if found is None else {name: found},
            "first": name,
            "command": _command([trace.episode.run_id], storage),
            "note": "; ".join(budget.left_out),
        }
    )


_LISTED: Final = """
    SELECT episode_id, run_id, kind, "return", length, coalesce(aborted, false) AS aborted,
        terminated, truncated, policy_version_last AS version
    FROM episodes WHERE run_id IN {runs} ORDER BY ended_at, episode_id"""


def choose(table: Mapping[str, Sequence[Any]], count: int) -> list[int]:
    """Which episodes are worth reading step by step, the most telling first.

    Args:
        table: columns of `episodes` in order of time.
        count: at most.

    Returns:
        Indices, each once. Evaluations are none: of them no steps are kept.
    """
    trained = [i for i, kind in enumerate(table["kind"]) if kind != "evaluation"]
    whole = [i for i in trained if not table["aborted"][i] and table["return"][i] is not None]
    if not trained or count < 1:
        return []
    by_return = sorted(whole, key=lambda i: table["return"][i])
    telling = [
        *([by_return[-1], by_return[0], by_return[len(by_return) // 2]] if whole else []),
        trained[-1],
        trained[0],
        max(trained, key=lambda i: table["length"][i]),
        *[i for i in reversed(trained) if table["aborted"][i]][: max(count // 4, 1)],
    ]
    spread = np.linspace(0, len(trained) - 1, count).astype(int).tolist()
    found = dict.fromkeys([*telling, *(trained[k] for k in spread)])
    return list(islice(found, count))


def _thinned(total: int, certain: Sequence[int]) -> list[int]:
    """Which episodes are listed."""
    if total <= MAX_LISTED:
        return list(range(total))
    spread = np.linspace(0, total - 1, MAX_LISTED - len(set(certain))).astype(int).tolist()
    return sorted({*spread, *certain})


def _row(known: Mapping[str, Any]) -> list[Any]:
    """Of an episode, by the names that `_LISTED` has: what the list shows."""
    return [
        text(known["episode_id"]),
        text(known["run_id"]),
        text(known["kind"]),
        rounded(known["return"]),
        known["length"],
        ending_of(known[c.ABORTED], known[c.TERMINATED], known[c.TRUNCATED]),
        known["version"],
    ]


def _listed(row: EpisodeRow) -> dict[str, Any]:
    """An episode by the names that `_LISTED` has."""
    return {**vars(row), "return": row.return_, "version": row.policy_version_last}


def _named(rows: Rows, given: str) -> EpisodeRow:
    """An episode that is wanted, of one of the runs.

    Raises:
        LakeError: there is none, or it is another run's.
    """
    row = find_episode(rows.lake, given)
    if row.run_id not in rows.run_ids:
        raise LakeError(
            f"episode {row.episode_id!r} is of run {row.run_id!r}, which is not in this report"
        )
    return row


def _trace(trace: Trace, budget: Budget) -> dict[str, Any] | None:
    """The steps of an episode; None where there is no room for them."""
    length = min(len(trace), budget.steps)
    panels = [
        {"title": title, "series": [{"name": text(name), "y": y} for name, y in series]}
        for title, series in _panels(trace, length)
        if series
    ]
    drawn = sum(len(panel["series"]) for panel in panels)
    if (drawn + 8) * length > budget.numbers:
        budget.left_out.append(f"no room for the {length:,} steps of {trace.episode.episode_id}")
        return None
    budget.numbers -= (drawn + 8) * length
    columns = {
        name: numbers(trace.column(name)[:length].astype(float))
        for name in (c.REWARD, c.VALUE, c.LOGP, c.POLICY_VERSION)
    }
    actions = [text(short(trace.action, i), limit=60) for i in range(length)]
    table = [
        {"name": "t", "values": trace.column(c.T)[:length].tolist()},
        {
            "name": "obs",
            "values": [text(short(trace.obs, i), limit=80) for i in range(length)],
        },
        {"name": "action", "values": actions},
        *({"name": name, "values": columns[name]} for name in (c.REWARD, c.VALUE, c.LOGP)),
        {"name": "version", "values": columns[c.POLICY_VERSION]},
        {"name": "flags", "values": [" ".join(flags(trace, i)) for i in range(length)]},
    ]
    facts = [[name, text(value, limit=200)] for name, value in header(trace.episode)]
    if length < len(trace):
        facts.append(["shown", f"the first {length:,} steps"])
    return {
        "facts": facts,
        "length": length,
        "t": table[0]["values"],
        "reward": columns[c.REWARD],
        "action": actions,
        "panels": panels,
        "table": table,
        "frames": _frames(trace, length, budget),
    }


def _panels(trace: Trace, length: int) -> list[tuple[str, list[tuple[str, list[float | None]]]]]:
    reward = trace.column(c.REWARD)[:length].astype(float)
    values = trace.column(c.VALUE)[:length].astype(float)
    to_go = np.cumsum(reward[::-1])[::-1]
    value = [("value", numbers(values))] if np.isfinite(values).any() else []
    spaces = (
        ("action", trace.action_space, trace.action),
        ("observation", trace.obs_space, trace.obs),
    )
    return [
        ("reward", [("reward", numbers(reward))]),
        ("value and return to go", [*value, ("return to go", numbers(to_go))]),
        *(
            (title, [(name, numbers(y[:length])) for name, y in _first(title, space, tree)])
            for title, space, tree in spaces
        ),
    ]


def _first(title: str, space: "Space[Any]", tree: Any) -> list[tuple[str, Any]]:
    short_name = "obs" if title == "observation" else title
    return [] if tree is None else list(islice(numbers_of(short_name, space, tree), _MAX_OBS))


def _frames(trace: Trace, length: int, budget: Budget) -> dict[str, Any] | None:
    """Pictures among the observations, compressed; the browser inflates and draws them."""
    if trace.obs is None or not is_frame(trace.obs_space):
        return None
    frames = trace.obs[:length]
    if frames.ndim == 3:
        frames = frames[..., None]
    elif frames.shape[-1] not in (1, 3):
        # Frames on each other: first the axis of the fewest, then its newest.
        axis = 1 if frames.shape[1] <= 4 else 3
        frames = np.moveaxis(frames, axis, -1)[..., -1:]
    for every in (1, 2, 4, 8, 16):
        data = zlib.compress(np.ascontiguousarray(frames[::every]).tobytes(), 6)
        if len(data) <= budget.frame_bytes:
            budget.frame_bytes -= len(data)
            encoded = base64.b64encode(data).decode()
            return {"shape": list(frames.shape[1:]), "every": every, "data": encoded}
    budget.left_out.append(f"no room for the frames of {trace.episode.episode_id}")
    return None


def _command(run_ids: Sequence[str], storage: str) -> str:
    import shlex

    where = f"--storage {shlex.quote(storage)}"
    runs = " ".join(shlex.quote(name) for name in run_ids[:3])
    return f"millrace traces show EPISODE {where}\nmillrace report {runs} --episode EPISODE {where}"


def _note(total: int, shown: int, traced: int, budget: Budget) -> str:
    parts = [f"{traced:,} of {total:,} episodes have their steps here"]
    if shown < total:
        parts.append(f"{shown:,} are listed")
    reasons = list(dict.fromkeys(budget.left_out))
    return "; ".join([*parts, *(text(reason, limit=200) for reason in reasons[:3])])
