"""What code for numpy arrays and torch tensors alike needs; torch itself is never imported here."""

import sys
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

ArrayT = TypeVar("ArrayT", "npt.NDArray[Any]", "torch.Tensor")


def array_namespace(array: object) -> Any:
    """The module, numpy or torch, whose functions apply to `array`.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(array, np.ndarray):
        return np
    torch = sys.modules.get("torch")  # if it is a tensor, torch is loaded
    if torch is not None and isinstance(array, torch.Tensor):
        return torch
    raise TypeError(f"expected a numpy array or a torch tensor, got {type(array).__qualname__}")


def require_shape(name: str, array: ArrayT, shape: tuple[int, ...]) -> None:
    """Refuse what would broadcast: a [B, 1] beside a [B] makes a [B, B].

    Raises:
        ValueError: `array`, called `name`, has another shape.
    """
    if array.shape != shape:
        raise ValueError(f"{name} has shape {tuple(array.shape)}, expected {shape}")


def split_columns(array: ArrayT, sizes: Sequence[int]) -> Sequence[ArrayT]:
    """Consecutive columns of [B, sum(sizes)], as views [B, size]."""
    if not isinstance(array, np.ndarray):
        views: Sequence[ArrayT] = array_namespace(array).split(array, list(sizes), 1)
        return views
    return [array[:, end - size : end] for size, end in zip(sizes, accumulate(sizes), strict=True)]
