"""From the lines a contestant reports to the figures that are compared; runs nothing."""

import itertools
import json
import math
import statistics
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.processes import Sample

WARMUP_STRETCHES = 5
WARMUP_FRAC = 0.2


@dataclass(frozen=True)
class Iteration:
    """One reported training iteration; wall_s counts from the start of the contestant's process."""

    env_steps: int
    wall_s: float
    episode_return_mean: float | None
    stages_s: Mapping[str, float]


@dataclass(frozen=True)
class Steady:
    """Figures after warm-up: the median stretch, and the whole window with its hiccups."""

    median_steps_per_s: float
    window_steps_per_s: float
    cpu_s_per_100k_steps: float


@dataclass(frozen=True)
class Spread:
    """A median with its range over repeats; `missing` repeats never got there."""

    median: float
    low: float
    high: float
    num: int
    missing: int = 0


def parse_iterations(lines: Iterable[str]) -> list[Iteration]:
    """The JSON lines among what a contestant printed; `time_s` is Millrace's name for wall_s.

    Raises:
        ValueError: a JSON line lacks env_steps or its time, or env_steps does not grow.
    """
    found: list[Iteration] = []
    for number, line in enumerate(lines, start=1):
        if not line.lstrip().startswith("{"):
            continue
        row: dict[str, Any] = json.loads(line)
        wall_s = row.get("wall_s", row.get("time_s"))
        if "env_steps" not in row or wall_s is None:
            raise ValueError(f"line {number} lacks env_steps or wall_s/time_s; it has {list(row)}.")
        if found and row["env_steps"] <= found[-1].env_steps:
            raise ValueError(f"line {number}: env_steps {row['env_steps']} does not grow.")
        stages = {k[5:-2]: v for k, v in row.items() if k.startswith("time/") and k.endswith("_s")}
        mean = row.get("episode_return_mean")
        mean = None if mean is None or not math.isfinite(mean) else float(mean)
        found.append(Iteration(int(row["env_steps"]), float(wall_s), mean, stages))
    return found


def steady(
    iterations: Sequence[Iteration],
    samples: Sequence[Sample],
    *,
    warmup_env_steps: int = 0,
    stretch_env_steps: int = 1,
) -> Steady:
    """Rates over stretches of a run after its first fifth, five stretches at least.

    Contestants report every few or every few thousand steps; stretches of about one length make
    their medians comparable.

    Raises:
        ValueError: fewer than three stretches are left after warm-up.
    """
    ends = thinned(iterations, stretch_env_steps)
    early = sum(end.env_steps < warmup_env_steps for end in ends) + 1
    skipped = max(WARMUP_STRETCHES, math.ceil(WARMUP_FRAC * len(ends)), early)
    window = ends[skipped - 1 :]
    if len(window) < 4:
        raise ValueError(
            f"{len(ends)} stretches of {stretch_env_steps} env steps leave too few after "
            f"{skipped} of warm-up; raise --env-steps."
        )
    rates = [
        (after.env_steps - before.env_steps) / (after.wall_s - before.wall_s)
        for before, after in itertools.pairwise(window)
    ]
    first, last = window[0], window[-1]
    steps = last.env_steps - first.env_steps
    cpu_s = cpu_at(samples, last.wall_s) - cpu_at(samples, first.wall_s)
    return Steady(
        median_steps_per_s=statistics.median(rates),
        window_steps_per_s=steps / (last.wall_s - first.wall_s),
        cpu_s_per_100k_steps=100_000 * cpu_s / steps,
    )


def thinned(iterations: Sequence[Iteration], stretch_env_steps: int) -> list[Iteration]:
    """The first iteration, and then each that ends a stretch of so many env steps or more."""
    kept = list(iterations[:1])
    for iteration in iterations[1:]:
        if iteration.env_steps - kept[-1].env_steps >= stretch_env_steps:
            kept.append(iteration)
    return kept


def cpu_at(samples: Sequence[Sample], wall_s: float) -> float:
    """The tree's CPU seconds at a moment, linear between samples, constant beyond them."""
    index = bisect_left([s.wall_s for s in samples], wall_s)
    if index == 0:
        return samples[0].cpu_s
    if index == len(samples):
        return samples[-1].cpu_s
    before, after = samples[index - 1], samples[index]
    share = (wall_s - before.wall_s) / (after.wall_s - before.wall_s)
    return before.cpu_s + share * (after.cpu_s - before.cpu_s)


def time_to_return_s(iterations: Iterable[Iteration], target: float) -> float | None:
    """Seconds from process start to the first iteration at the target return; None if never."""
    for iteration in iterations:
        mean = iteration.episode_return_mean
        if mean is not None and mean >= target:
            return iteration.wall_s
    return None


def spread(values: Iterable[float | None]) -> Spread | None:
    """Median and range of the values that exist; a repeat without one counts as worst.

    With missing repeats the median is over all of them, the missing ones at infinity.
    """
    given = list(values)
    known = sorted(value for value in given if value is not None)
    if not known:
        return None
    missing = len(given) - len(known)
    median = statistics.median(known + [math.inf] * missing)
    return Spread(median, known[0], known[-1], len(given), missing)


def percentile(values: Sequence[float], q_frac: float) -> float:
    """The value below which q_frac of the values lie, linear between ranks.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("percentile of no values.")
    ordered = sorted(values)
    position = q_frac * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])
