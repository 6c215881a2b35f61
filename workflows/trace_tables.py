"""Episodes and their steps as lines for a terminal and as records for programs."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pipelines.config_errors import printable
from rl_ops import columns as c
from rl_ops.tree import brief, tree_map_spaces
from workflows.plots import header, terminal_plot, versions

if TYPE_CHECKING:
    from offline.traces import EpisodeRow, Trace

_MAX_CELL = 48
_LONG = 8
"""Numbers in a row of the table; longer arrays are shown by their shape."""


def episode_lines(found: Sequence["EpisodeRow"]) -> list[str]:
    """A table of episodes; text of unknown origin is made printable."""
    if not found:
        return ["no such episodes"]
    head = ("episode", "run", "return", "length", "ended", "versions", "kind", "env")
    rows = [
        (
            row.episode_id,
            row.run_id,
            "-" if row.return_ is None else f"{row.return_:.6g}",
            f"{row.length:,}",
            row.ending,
            versions(row).removeprefix("version ").removeprefix("versions "),
            row.kind or "-",
            row.env or "-",
        )
        for row in found
    ]
    return aligned([head, *rows], right={2, 3}, limits={0: 120, 1: 60})


def aligned(
    rows: Sequence[Sequence[str]], *, right: set[int], limits: dict[int, int] | None = None
) -> list[str]:
    """Rows as lines with their columns below each other.

    Args:
        rows: the first is the head.
        right: columns that are aligned right.
        limits: characters of a column, other than the usual.
    """
    limits = limits or {}
    cells = [
        [printable(text, limit=limits.get(i, _MAX_CELL)) for i, text in enumerate(row)]
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            text.rjust(width) if i in right else text.ljust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def episode_json(row: "EpisodeRow") -> dict[str, Any]:
    """An episode as it is printed for programs."""
    record = asdict(row)
    record["return"] = record.pop("return_")
    times = {
        name: None if record[name] is None else record[name].isoformat()
        for name in ("started_at", "ended_at")
    }
    return record | times | {"ending": row.ending}


def shown_lines(trace: "Trace", count: int, *, ascii_only: bool = False) -> Iterator[str]:
    """Header, drawing and the first `count` steps."""
    for name, text in header(trace.episode):
        yield f"{name:<10}  {printable(text, limit=200)}"
    for name, space in (("obs", trace.obs_space), ("action", trace.action_space)):
        yield f"{name:<10}  {printable(brief(space), limit=200)}"
    yield ""
    drawn = terminal_plot(trace.series(max_obs=3), ascii_only=ascii_only)
    yield from (printable(line, limit=400) for line in drawn)
    yield ""
    if count:
        yield from step_lines(trace, count)
    if count < len(trace):
        yield f"... {len(trace) - count:,} of {len(trace):,} steps more; --all shows them"


def step_lines(trace: "Trace", count: int) -> list[str]:
    """The first `count` steps as a table."""
    head = ("t", "obs", "action", "reward", "value", "logp", "version", "flags")
    rows = trace.rows.slice(0, count)
    columns = {
        name: rows.column(name).to_pylist()
        for name in (c.T, c.REWARD, c.VALUE, c.LOGP, c.POLICY_VERSION)
    }
    cells = [
        (
            str(columns[c.T][i]),
            short(trace.obs, i),
            short(trace.action, i),
            _number(columns[c.REWARD][i]),
            _number(columns[c.VALUE][i]),
            _number(columns[c.LOGP][i]),
            "-" if columns[c.POLICY_VERSION][i] is None else str(columns[c.POLICY_VERSION][i]),
            " ".join(flags(trace, i)),
        )
        for i in range(count)
    ]
    return aligned([head, *cells], right={0, 3, 4, 5, 6}, limits={1: 60})


def flags(trace: "Trace", i: int) -> list[str]:
    """What is special about step `i`: how the episode ended there, or that its fragment did."""
    row = {
        name: trace.rows.column(name)[i].as_py()
        for name in (c.TERMINATED, c.TRUNCATED, c.ABORTED, c.IS_LAST)
    }
    found = [name for name in (c.TERMINATED, c.TRUNCATED, c.ABORTED) if row[name]]
    return found or (["fragment end"] if row[c.IS_LAST] else [])


def short(tree: Any, i: int) -> str:
    """Row `i` of a batch in a few characters: numbers as they are, more than that by shape."""
    if tree is None:
        return "-"
    if isinstance(tree, dict):
        return "{" + ", ".join(f"{key}: {short(child, i)}" for key, child in tree.items()) + "}"
    if isinstance(tree, tuple):
        return "(" + ", ".join(short(child, i) for child in tree) + ")"
    row = tree[i]
    if row.ndim == 0:
        return _number(row.item())
    if row.ndim > 1 or row.size > _LONG:
        return f"{row.dtype}{list(row.shape)}"
    return "[" + " ".join(_number(value) for value in row.tolist()) + "]"


def _number(value: Any) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def step_records(trace: "Trace", count: int) -> Iterator[dict[str, Any]]:
    """The first `count` steps for programs; frames by shape."""
    names = [c.T, c.REWARD, c.VALUE, c.LOGP, c.POLICY_VERSION, c.FRAGMENT_ID]
    names += [c.TERMINATED, c.TRUNCATED, c.ABORTED, c.IS_LAST]
    for i, row in enumerate(trace.rows.slice(0, count).select(names).to_pylist()):
        obs = _values(trace.obs_space, trace.obs, i)
        action = _values(trace.action_space, trace.action, i)
        yield {**row, c.OBS: obs, c.ACTION: action}


def _values(space: Any, tree: Any, i: int) -> Any:
    from offline.traces import is_frame

    def value(leaf: Any, batch: Any) -> Any:
        if is_frame(leaf):
            return {"dtype": batch.dtype.name, "shape": list(batch.shape[1:])}
        return batch[i].tolist()

    return None if tree is None else tree_map_spaces(value, space, tree)
