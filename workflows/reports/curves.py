"""Learning curves of several runs as one: interquartile means with bootstrap intervals.

Shapes: R runs, X points of a curve, S resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

RESAMPLES: Final = 2000
LEVEL: Final = 0.95
POINTS: Final = 200
"""Of a curve over several runs."""


@dataclass(frozen=True)
class Curve:
    """A number of a run over its steps.

    Attributes:
        x: [X] ascending.
        y: [X] NaN where there is none.
    """

    x: Array
    y: Array

    def known(self) -> "Curve":
        """Without the points of which there is no number."""
        finite = np.isfinite(self.y)
        return Curve(self.x[finite], self.y[finite])


@dataclass(frozen=True)
class Band:
    """A curve over runs.

    Attributes:
        x, y: [X].
        low, high: [X] of the interval.
    """

    x: Array
    y: Array
    low: Array
    high: Array


def iqm(values: Array, axis: int = 0) -> Array:
    """Interquartile mean: of the values without the lowest and the highest quarter.

    With fewer than four values nothing is left out, and it is the mean.

    Args:
        values: any shape.
        axis: over which.
    Source: Agarwal et al. 2021, arXiv:2108.13264, section 4.3; floor(n / 4) values are cut at
        each end, as by scipy.stats.trim_mean(values, 0.25).
    """
    n = values.shape[axis]
    cut = n // 4
    kept = np.sort(values, axis=axis).take(range(cut, n - cut), axis=axis)
    return np.asarray(kept.mean(axis=axis))


def bootstrap_iqm(
    values: Array, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[Array, Array]:
    """Percentile interval of the interquartile mean at each point, runs drawn with replacement.

    A run is drawn whole, so that all points of a resample are of the same runs.

    Args:
        values: [R, X].
        level: of confidence.
        resamples: how many.
        seed: of the draws.

    Returns:
        low [X], high [X]; both the value itself where there is one run.
    Source: Agarwal et al. 2021, arXiv:2108.13264, section 4.1 (one task: one stratum).
    """
    n = len(values)
    if n == 1:
        return values[0], values[0]
    drawn = np.random.default_rng(seed).integers(n, size=(resamples, n))
    means = iqm(values[drawn], axis=1)
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return low, high


def band(curves: Sequence[Curve], *, points: int = POINTS) -> Band | None:
    """The interquartile mean of runs, where all of them have values.

    Args:
        curves: of runs; between their points a value is interpolated.
        points: of the result at most.

    Returns:
        None where there is no x at which every run has a value.
    """
    whole = [curve.known() for curve in curves]
    if not whole or any(len(curve.x) == 0 for curve in whole):
        return None
    start, end = max(curve.x[0] for curve in whole), min(curve.x[-1] for curve in whole)
    if end < start:
        return None
    x = np.linspace(start, end, points if end > start else 1)
    values = np.stack([np.interp(x, curve.x, curve.y) for curve in whole])
    low, high = bootstrap_iqm(values)
    return Band(x, iqm(values), low, high)


def thinned(curve: Curve, *, points: int) -> Band:
    """A long curve in few points: the mean of neighbours, with their range around it.

    Args:
        curve: of any length.
        points: at most.
    """
    if len(curve.x) <= points:
        return Band(curve.x, curve.y, curve.y, curve.y)
    starts = np.linspace(0, len(curve.x), points + 1).astype(int)
    parts = [(curve.x[a:b], curve.y[a:b]) for a, b in pairwise(starts)]
    known = [(x, y[np.isfinite(y)]) for x, y in parts]
    made: list[tuple[Any, ...]] = [
        (x[-1], y.mean(), y.min(), y.max()) if len(y) else (x[-1], np.nan, np.nan, np.nan)
        for x, y in known
    ]
    columns = np.asarray(made, dtype=np.float64).T
    return Band(columns[0], columns[1], columns[2], columns[3])


def numbers(values: Array, *, digits: int = 5) -> list[float | None]:
    """As JSON has them: a few digits each, None where there is no finite number."""
    finite = np.isfinite(values)
    return [
        float(f"{value:.{digits}g}") if is_known else None
        for value, is_known in zip(values.tolist(), finite.tolist(), strict=True)
    ]
