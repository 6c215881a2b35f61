"""Numbers brought to one size before a network sees them."""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def standardised(x: Array, like: Array) -> Array:
    """Each feature less its mean and over its deviation among the rows of another array.

    Args:
        x: [rows, *S].
        like: [N, *S]; a feature that is constant there is only shifted.

    Returns:
        float32 [rows, *S].
    """
    mean = np.asarray(like.mean(0, dtype=np.float64))
    std = np.asarray(like.std(0, dtype=np.float64))
    scaled: Array = ((x - mean) / np.where(std > 1e-8, std, 1.0)).astype(np.float32)
    return scaled
