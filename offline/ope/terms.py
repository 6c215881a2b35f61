"""What every estimator comes down to: a sum of ratios of sums over episodes.

Legend: E episodes, K ratios, R resamples.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_CHUNK: Final = 2**22
"""Counts of a bootstrap that are drawn at once."""


@dataclass(frozen=True, eq=False)
class Terms:
    """An estimator's point value and all that resampling its episodes needs.

        estimate = sum_k  (sum_e numerator_ek) / (sum_e weight_ek)

    A mean over episodes is one ratio whose weights are 1; a self-normalised estimator has one
    ratio, or one for each step. A ratio of which no episode has any weight counts 0; where that
    is all of them there is no estimate, and it is NaN.

    Attributes:
        numerator: [E, K] in units of the return, times the weight.
        weight: [E, K] not negative; any factor that is common to a column cancels.
    """

    numerator: Floats
    weight: Floats

    @classmethod
    def mean(cls, value: Floats) -> "Terms":
        """The mean of one value for each episode [E]."""
        return cls(value[:, None], np.ones((len(value), 1)))

    @property
    def num_episodes(self) -> int:
        """E."""
        return len(self.numerator)

    @property
    def estimate(self) -> float:
        """The value on all episodes."""
        return float(_sum_of_ratios(self.numerator.sum(0), self.weight.sum(0)))

    def resampled(self, rng: np.random.Generator, resamples: int) -> Floats:
        """The value on episodes drawn with replacement, [R]; NaN where none drawn has weight.

        Source: Efron 1979; of self-normalised estimators the ratio is resampled as a whole, as in
        Thomas, Theocharous & Ghavamzadeh 2015, AAAI.
        """
        found = [
            _sum_of_ratios(counts @ self.numerator, counts @ self.weight)
            for counts in draw_counts(rng, self.num_episodes, resamples)
        ]
        return np.concatenate(found)

    def left_out(self) -> Floats:
        """The value without each of the episodes, [E]: the jackknife's."""
        rest = self.numerator.sum(0) - self.numerator
        return _sum_of_ratios(rest, (self.weight.sum(0) - self.weight).clip(0.0))

    def influence(self) -> Floats:
        """How much each episode moves the value, [E]; the mean is 0.

            psi_e = E sum_k (numerator_ek - theta_k weight_ek) / sum_e weight_ek

        Their variance over E is that of the estimate, to first order (the delta method).
        """
        total = self.weight.sum(0)
        has_weight = total > 0
        safe = np.where(has_weight, total, 1.0)
        theta = np.where(has_weight, self.numerator.sum(0) / safe, 0.0)
        moved = (self.numerator - theta * self.weight) / safe * has_weight
        psi: Floats = self.num_episodes * moved.sum(1)
        return psi


def draw_counts(rng: np.random.Generator, episodes: int, resamples: int) -> Iterator[Floats]:
    """How often each episode was drawn in each resample: [some, E], R rows in all."""
    chunk = max(1, _CHUNK // max(1, episodes))
    for first in range(0, resamples, chunk):
        rows = min(chunk, resamples - first)
        drawn = rng.integers(episodes, size=(rows, episodes))
        drawn += np.arange(rows)[:, None] * episodes
        counts = np.bincount(drawn.reshape(-1), minlength=rows * episodes)
        yield counts.reshape(rows, episodes).astype(np.float64)


def _sum_of_ratios(numerator: Floats, weight: Floats) -> Floats:
    """Over the last axis."""
    has_weight = weight > 0
    ratio = np.divide(numerator, weight, out=np.zeros_like(numerator), where=has_weight)
    return np.where(has_weight.any(-1), ratio.sum(-1), np.nan)
