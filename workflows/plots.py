"""An episode in a terminal: what is known of it, and its numbers drawn over time."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from offline.traces import EpisodeRow

Array = npt.NDArray[Any]

_BLOCKS: Final = "▁▂▃▄▅▆▇█"
_ASCII: Final = "_.-=+*%#"


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
