"""An episode drawn over time: in a terminal, and as an HTML page that needs nothing else."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from offline.traces import EpisodeRow, Trace

Array = npt.NDArray[Any]

_BLOCKS: Final = "▁▂▃▄▅▆▇█"
_ASCII: Final = "_.-=+*%#"
_MAX_OBS: Final = 8
"""Numbers of the observations on a page."""

_STYLE: Final = (
    "body{font:14px system-ui,sans-serif;margin:2em;max-width:72em}"
    "th{text-align:left;padding-right:1.5em;font-weight:600}td{font-family:monospace}"
)


def sparkline(values: Array, *, width: int = 60, ascii_only: bool = False) -> str:
    """Values as a line of blocks, as high as they are; parts of many values show their mean.

    Values that are not finite are gaps.
    """
    levels = _ASCII if ascii_only else _BLOCKS
    parts = np.array_split(values.astype(np.float64), min(width, len(values)))
    means = [_mean(part) for part in parts]
    finite = [mean for mean in means if mean is not None]
    if not finite:
        return " " * len(means)
    low, high = min(finite), max(finite)
    # Halves, because the difference of two large numbers may be infinite.
    span = high / 2 - low / 2
    top = len(levels) - 1

    def block(mean: float | None) -> str:
        if mean is None:
            return " "
        share = (mean / 2 - low / 2) / span if span > 0 else 0.5
        return levels[round(share * top)]

    return "".join(map(block, means))


def _mean(part: Array) -> float | None:
    finite = part[np.isfinite(part)]
    # Divided first: a sum may overflow.
    return float((finite / len(finite)).sum()) if len(finite) else None


def terminal_plot(
    series: Mapping[str, Array], *, width: int = 60, ascii_only: bool = False
) -> list[str]:
    """A line for each series: name, course, least and greatest value."""
    if not series:
        return []
    names = max(map(len, series))
    drawn = {
        name: sparkline(values, width=width, ascii_only=ascii_only)
        for name, values in series.items()
    }
    return [f"{name:<{names}}  {drawn[name]}  {_range(series[name])}" for name in series]


def _range(values: Array) -> str:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return "no numbers"
    low, high = float(finite.min()), float(finite.max())
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"


def html_page(trace: "Trace", *, max_obs: int = _MAX_OBS) -> str:
    """A whole page with the episode's reward, value, actions and observations over t.

    plotly's script is in it (4 MB), so it opens without a network. Whatever the lake says is
    text there, not markup.
    """
    import plotly.graph_objects as go  # type: ignore[import-untyped]
    from plotly.subplots import make_subplots  # type: ignore[import-untyped]

    rows = _panels(trace, max_obs=max_obs)
    figure = make_subplots(rows=len(rows), cols=1, shared_xaxes=True, vertical_spacing=0.03)
    t = trace.column("t").tolist()
    for number, (title, series) in enumerate(rows.items(), start=1):
        for name, values in series.items():
            line = go.Scatter(x=t, y=_numbers(values), name=html.escape(name), mode="lines")
            figure.add_trace(line, row=number, col=1)
        figure.update_yaxes(title_text=html.escape(title), row=number, col=1)
    figure.update_xaxes(title_text="t", row=len(rows), col=1)
    figure.update_layout(height=220 * len(rows) + 80, template="plotly_white", hovermode="x")
    # plotly writes <, > and / inside strings as escapes, so no string ends its script.
    chart = figure.to_html(full_html=False, include_plotlyjs=True)
    title = html.escape(f"episode {trace.episode.episode_id}")
    return (
        "<!DOCTYPE html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>{title}</h1>\n"
        f"{_table(header(trace.episode))}\n{chart}\n</body></html>\n"
    )


def header(episode: "EpisodeRow") -> list[tuple[str, str]]:
    """What is known of an episode, as names and texts; not escaped."""
    env = episode.env or "unknown"
    if episode.env_id is not None:
        env += f", environment {episode.env_id} of worker {episode.worker_id}"
    session = "" if episode.session is None else f", session {episode.session}"
    lines = [
        ("episode", episode.episode_id),
        ("run", episode.run_id + session),
        ("env", env),
        ("kind", episode.kind or "unknown"),
        ("seed", _seed(episode)),
        ("policy", versions(episode)),
        ("return", "-" if episode.return_ is None else f"{episode.return_:.10g}"),
        ("length", f"{episode.length:,} steps, {episode.ending}"),
    ]
    if episode.checkpoint is not None:
        lines.insert(4, ("checkpoint", episode.checkpoint))
    if episode.started_at is not None and episode.ended_at is not None:
        times = (episode.started_at, episode.ended_at)
        start, end = (at.isoformat(sep=" ", timespec="milliseconds") for at in times)
        lines.append(("time", f"{start} to {end}"))
    return lines


def _seed(episode: "EpisodeRow") -> str:
    if episode.seed is not None:
        return str(episode.seed)
    return "-" if episode.run_seed is None else f"{episode.run_seed} of the run"


def versions(episode: "EpisodeRow") -> str:
    """The policy versions that acted."""
    first, last = episode.policy_version_first, episode.policy_version_last
    if first is None or last is None:
        return "-"
    return f"version {first}" if first == last else f"versions {first} to {last}"


def _panels(trace: "Trace", *, max_obs: int) -> dict[str, dict[str, Array]]:
    from offline.traces import numbers_of

    series = trace.series(max_obs=max_obs)
    found = {
        "reward": {"reward": series["reward"], "return so far": np.cumsum(series["reward"])},
        "value": {name: series[name] for name in ("value",) if name in series},
        "action": dict(numbers_of("action", trace.action_space, trace.action))
        if trace.action is not None
        else {},
        "obs": {name: values for name, values in series.items() if name.startswith("obs")},
    }
    return {title: panel for title, panel in found.items() if panel}


def _numbers(values: Array) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values.astype(float).tolist()]


def _table(lines: Sequence[tuple[str, str]]) -> str:
    rows = (
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>" for name, text in lines
    )
    return f"<table>{''.join(rows)}</table>"
