"""Confidence intervals of estimators: bootstrap over episodes, and Student's t.

Legend: E episodes, R resamples.
"""

import math
from statistics import NormalDist
from typing import Final, Literal, NamedTuple

import numpy as np

from offline.ope.terms import Floats, Terms

Method = Literal["bca", "percentile", "t"]
METHODS: Final[tuple[Method, ...]] = ("bca", "percentile", "t")
_NORMAL: Final = NormalDist()
_MANY: Final = 10_000
"""Degrees of freedom from which t is normal to 1e-4."""


class Interval(NamedTuple):
    """Two-sided; NaN where it cannot be known."""

    low: float
    high: float


def interval(
    terms: Terms,
    method: Method,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    rng: np.random.Generator,
) -> Interval:
    """A confidence interval for an estimator's value.

    Args:
        terms: of E >= 2 episodes.
        method: "bca" or "percentile" for the bootstrap over episodes, "t" for Student's.
        level: of confidence, as 0.95.
        resamples: R, of a bootstrap.
        rng: what it draws with.

    Raises:
        ValueError: fewer than two episodes, a level outside (0, 1), or no resamples.
    """
    if terms.num_episodes < 2:
        raise ValueError("an interval needs two episodes or more")
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"level is {level} and resamples {resamples}; expected 0 < level < 1 <= R")
    if method == "t":
        return student_t(terms, level=level)
    replicates = terms.resampled(rng, resamples)
    replicates = replicates[np.isfinite(replicates)]
    if not len(replicates) or not math.isfinite(terms.estimate):
        return Interval(math.nan, math.nan)
    if method == "percentile":
        return percentile(replicates, level=level)
    return bca(replicates, terms.estimate, terms.left_out(), level=level)


def student_t(terms: Terms, *, level: float) -> Interval:
    """Estimate ± t_{E-1} s / sqrt(E), with s of the influences: of a mean the usual one.

    Source: Student 1908; of a sum of ratios by the delta method, as Owen 2013, Monte Carlo
    theory, methods and examples, eq. 2.30.
    """
    episodes = terms.num_episodes
    error = float(terms.influence().std(ddof=1)) / math.sqrt(episodes)
    half = t_quantile((1 + level) / 2, episodes - 1) * error
    return Interval(terms.estimate - half, terms.estimate + half)


def percentile(replicates: Floats, *, level: float) -> Interval:
    """The middle `level` of bootstrap replicates [R].

    Source: Efron 1979; Efron & Tibshirani 1993, eq. 13.4.
    """
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def bca(replicates: Floats, estimate: float, left_out: Floats, *, level: float) -> Interval:
    """Bias-corrected and accelerated bootstrap: right to second order where the mean is skewed.

        z0 = Phi^-1(share of replicates below the estimate)
        a  = sum (m - j_e)^3 / 6 (sum (m - j_e)^2)^1.5,  m the mean of the jackknife's j_e
        ends at Phi(z0 + (z0 + z) / (1 - a (z0 + z))) of the replicates, z = Phi^-1((1 ± level)/2)

    Args:
        replicates: [R] bootstrap values, finite.
        estimate: on all episodes.
        left_out: [E] values without each episode.
        level: of confidence.

    Source: Efron 1987, JASA 82(397), eq. 2.3 and 6.6; Efron & Tibshirani 1993, chapter 14.3.
    """
    # Half of the ties, and never 0 or 1, so that z0 stays finite.
    below = ((replicates < estimate).sum() + 0.5 * (replicates == estimate).sum()) / len(replicates)
    bound = 0.5 / len(replicates)
    z0 = _NORMAL.inv_cdf(min(max(float(below), bound), 1 - bound))
    away = np.nanmean(left_out) - left_out[np.isfinite(left_out)]
    spread = float(np.square(away).sum()) ** 1.5
    acceleration = float((away**3).sum()) / (6 * spread) if spread > 0 else 0.0

    def end(share: float) -> float:
        z = z0 + _NORMAL.inv_cdf(share)
        # Beyond the pole of a very skewed sample the formula turns back; the pole is the limit.
        scale = 1 - acceleration * z
        return _NORMAL.cdf(z0 + z / scale) if scale > 0 else float(z > 0)

    shares = [end((1 - level) / 2), end((1 + level) / 2)]
    low, high = np.quantile(replicates, shares)
    return Interval(float(low), float(high))


def t_quantile(share: float, degrees: int) -> float:
    """The value that Student's t with `degrees` of freedom is below with probability `share`."""
    if degrees < 1:
        raise ValueError(f"t needs a degree of freedom, got {degrees}")
    z = _NORMAL.inv_cdf(share)
    if degrees > _MANY:
        return z + (z**3 + z) / (4 * degrees)  # Abramowitz & Stegun 26.7.5
    # In the angle, where the line ends.
    low, high = -math.pi / 2, math.pi / 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_cdf(middle, degrees) < share else (low, middle)
    return math.tan((low + high) / 2) * math.sqrt(degrees)


def _t_cdf(angle: float, degrees: int) -> float:
    """P(T < tan(angle) sqrt(degrees)), a finite sum; Abramowitz & Stegun 26.7.3, 26.7.4."""
    odd, terms = degrees % 2, degrees // 2
    k = np.arange(1, terms)
    factors = np.cumprod(np.append(1.0, (2 * k - 1 + odd) / (2 * k + odd)))[:terms]
    powers = math.cos(angle) ** (2.0 * np.arange(terms) + odd)
    series = math.sin(angle) * float((factors * powers).sum())
    return 0.5 + ((angle + series) / math.pi if odd else series / 2)
