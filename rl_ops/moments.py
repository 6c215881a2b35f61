"""Running mean and variance of what streams by, and normalisation with them."""

import sys
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from rl_ops.errors import SpecError

FloatArray = npt.NDArray[np.float64]


class RunningMoments:
    """Count, mean and summed squared deviation, kept in float64 and updated in place.

        delta = mean_b - mean_a;  n = n_a + n_b
        mean  = mean_a + delta * n_b / n
        m2    = m2_a + m2_b + delta**2 * n_a * n_b / n

    Args:
        shape: of one item; () for rewards.

    Source: Chan, Golub & LeVeque 1979, STAN-CS-79-773, eq. 2.1. Differs: none.
    """

    def __init__(self, shape: tuple[int, ...] = ()) -> None:
        self.count: FloatArray = np.zeros((), np.float64)
        self.mean: FloatArray = np.zeros(shape, np.float64)
        self.m2: FloatArray = np.zeros(shape, np.float64)

    @property
    def variance(self) -> FloatArray:
        """Population variance; 1 before the first item, so that normalising changes nothing."""
        if self.count == 0:
            return np.ones_like(self.m2)
        return np.asarray(self.m2 / self.count)

    def std(self, eps: float = 1e-8) -> FloatArray:
        """sqrt(variance + eps): a divisor that a constant feature cannot make zero."""
        return np.sqrt(self.variance + eps)

    def update(self, batch: npt.ArrayLike) -> None:
        """Take in items [..., *shape]; any leading axes, also of length 0.

        Raises:
            SpecError: the trailing shape is not `shape`, or an item is NaN or Inf.
        """
        items = np.asarray(batch)
        shape = self.mean.shape
        if items.ndim < len(shape) or items.shape[items.ndim - len(shape) :] != shape:
            raise SpecError(
                f"RunningMoments.update got {items.shape}; expected [..., {shape}] "
                "of the shape it was made for."
            )
        items = items.reshape(-1, *shape)
        if len(items) == 0:
            return
        mean = np.asarray(items.mean(axis=0, dtype=np.float64))
        if not np.isfinite(mean).all():
            # One NaN would stay in the statistics, and in every later observation, for ever.
            raise SpecError("RunningMoments.update got NaN or Inf; drop those rows first.")
        self._merge(len(items), mean, np.square(items - mean).sum(axis=0))

    def merge(self, other: "RunningMoments") -> None:
        """Take in another's items, as if their batches had come here.

        Raises:
            SpecError: the shapes differ.
        """
        if other.mean.shape != self.mean.shape:
            raise SpecError(
                f"RunningMoments.merge: got shape {other.mean.shape}, expected {self.mean.shape}."
            )
        if other.count > 0:
            self._merge(float(other.count), other.mean, other.m2)

    def _merge(self, count: float, mean: FloatArray, m2: FloatArray) -> None:
        total = self.count + count
        delta = mean - self.mean
        self.mean = np.asarray(self.mean + delta * (count / total))
        self.m2 = np.asarray(self.m2 + m2 + np.square(delta) * (self.count * count / total))
        self.count = np.asarray(total)

    def state(self) -> dict[str, FloatArray]:
        """Copies of count, mean and m2, for a checkpoint or another process."""
        return {"count": self.count.copy(), "mean": self.mean.copy(), "m2": self.m2.copy()}

    @classmethod
    def from_state(cls, state: Mapping[str, npt.NDArray[Any]]) -> Self:
        """The moments that `state()` described.

        Raises:
            SpecError: a key is missing, or the arrays cannot be anyone's moments.
        """
        if state.keys() != {"count", "mean", "m2"}:
            raise SpecError(
                f"RunningMoments.from_state got keys {sorted(state)}; expected count, m2, mean."
            )
        count, mean, m2 = (np.array(state[key], np.float64) for key in ("count", "mean", "m2"))
        if count.shape != () or mean.shape != m2.shape:
            raise SpecError(
                f"RunningMoments.from_state got shapes count {count.shape}, mean {mean.shape}, "
                f"m2 {m2.shape}; expected (), S, S."
            )
        is_finite = all(np.isfinite(value).all() for value in (count, mean, m2))
        if not is_finite or count < 0 or (m2 < 0).any():
            raise SpecError("RunningMoments.from_state got NaN, Inf or a negative count or m2.")
        moments = cls(mean.shape)
        moments.count, moments.mean, moments.m2 = count, mean, m2
        return moments


def normalize(x: Any, *, mean: Any, std: Any, clip: float = 10.0) -> Any:
    """clip((x - mean) / std, -clip, clip), with the same bits from numpy and from torch.

    Args:
        x: [..., *S] numpy array or torch tensor; integers become float32.
        mean: [*S], cast to the dtype and device of x before use, as is std.
        std: [*S], positive.
        clip: bound of the result in standard deviations; inf for none.

    Returns:
        What x is, array or tensor, of its shape and of a floating dtype.
    """
    # The caller's own library: if x is a tensor, torch is loaded, and is not imported here.
    xp: Any = sys.modules[type(x).__module__.partition(".")[0]]
    if "float" not in str(x.dtype):
        x = xp.asarray(x, dtype=xp.float32)
    mean, std = (xp.asarray(value, dtype=x.dtype, device=x.device) for value in (mean, std))
    return xp.clip((x - mean) / std, -clip, clip)
