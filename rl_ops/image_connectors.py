"""Observation connectors for uint8 images, [H, W] or [H, W, C] per environment."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import gcd, prod
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box, Space

from rl_ops.errors import SpecError
from rl_ops.tree import Tree, brief, space_leaves, space_map, tree_map_spaces

Array = npt.NDArray[Any]

# ITU-R BT.601 luma in 15-bit fixed point; they sum to 1 << 15, so greys stay what they are.
LUMA = _LUMA_RED, _LUMA_GREEN, _LUMA_BLUE = 9798, 19235, 3735


def is_image(space: Space) -> bool:
    """Whether a leaf holds uint8 images [H, W] or [H, W, C]."""
    return isinstance(space, Box) and space.dtype == np.uint8 and len(space.shape) in (2, 3)


def is_rgb(space: Space) -> bool:
    """Whether a leaf holds uint8 images [H, W, 3]."""
    return is_image(space) and len(space.shape) == 3 and space.shape[2] == 3


def _map_images(
    space: Space, *, takes: Callable[[Space], bool], shape: Callable[[Space], tuple[int, ...]]
) -> Space:
    def image(leaf: Space) -> Space:
        return Box(0, 255, shape(leaf), np.uint8) if takes(leaf) else leaf

    return space_map(image, space)


@dataclass(frozen=True)
class GrayscaleObs:
    """RGB images [H, W, 3] to luma [H, W, 1], rounded; other leaves pass."""

    def output_space(self, space: Space) -> Space:
        if not any(map(is_rgb, space_leaves(space))):
            raise SpecError(f"GrayscaleObs: {brief(space)} has no uint8 image [H, W, 3].")
        return _map_images(space, takes=is_rgb, shape=lambda leaf: (*leaf.shape[:2], 1))

    def __call__(self, obs: Tree, space: Space) -> Tree:
        def gray(leaf: Space, rgb: Array) -> Array:
            if not is_rgb(leaf):
                return rgb
            luma = rgb[..., 0] * np.uint32(_LUMA_RED)
            luma += rgb[..., 1] * np.uint32(_LUMA_GREEN)
            luma += rgb[..., 2] * np.uint32(_LUMA_BLUE)
            return ((luma + np.uint32(1 << 14)) >> np.uint32(15)).astype(np.uint8)[..., None]

        return tree_map_spaces(gray, space, obs)


@dataclass(frozen=True)
class ResizeObs:
    """Images [H, W, ...] to [height, width, ...] by area; other leaves pass.

        out[i, j] = round(mean of the image over the rectangle that pixel (i, j) covers)

    Overlaps are counted in integer units and halves round up, so all of it is exact. Each output
    row takes few input rows: gathers of those cost less than matrix products, and wake no BLAS
    threads beside the rollout workers.
    """

    height: int
    width: int

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(f"ResizeObs: {self.height} x {self.width} is not a size.")

    def output_space(self, space: Space) -> Space:
        if not any(map(is_image, space_leaves(space))):
            raise SpecError(f"ResizeObs: {brief(space)} has no uint8 image [H, W] or [H, W, C].")
        size = (self.height, self.width)
        return _map_images(space, takes=is_image, shape=lambda leaf: (*size, *leaf.shape[2:]))

    def __call__(self, obs: Tree, space: Space) -> Tree:
        def resize(leaf: Space, images: Array) -> Array:
            return self._resize(images) if is_image(leaf) else images

        return tree_map_spaces(resize, space, obs)

    def _resize(self, images: Array) -> Array:
        rows, height, width = images.shape[:3]
        over_h, over_w = overlaps(height, self.height), overlaps(width, self.width)
        area = over_h.total * over_w.total
        dtype = np.dtype(np.uint32 if 256 * area < 1 << 32 else np.uint64)
        channels = prod(images.shape[3:])
        tall = over_h.sums(images.reshape(rows, height, width * channels), dtype)
        tall = tall.reshape(rows * self.height, width, channels)
        sums = over_w.sums(tall, dtype)
        sums += dtype.type(area // 2)
        sums //= dtype.type(area)
        return sums.astype(np.uint8).reshape(rows, self.height, self.width, *images.shape[3:])


@dataclass(frozen=True, eq=False)
class _Overlaps:
    """The old pixels each new one touches along a line, [K taps, new], and how much of each."""

    index: Array
    weight: Array
    total: int

    def sums(self, x: Array, dtype: np.dtype[Any]) -> Array:
        """[N, old, M] to the weighted sums [N, new, M]."""
        weight = self.weight.astype(dtype)[..., None]
        total: Array = x[:, self.index[0]] * weight[0]
        for index, tap_weight in zip(self.index[1:], weight[1:], strict=True):
            total += x[:, index] * tap_weight
        return total


@cache
def overlaps(old: int, new: int) -> _Overlaps:
    """What pixels of a line made `new` from `old` cover.

    Both lines are lcm(old, new) units long, so that every overlap is a whole number.
    """
    unit = gcd(old, new)
    old_size, new_size = new // unit, old // unit
    start = np.arange(new) * new_size
    end = start + new_size
    first, last = start // old_size, (end - 1) // old_size
    index = first + np.arange((last - first).max() + 1)[:, None]
    covered = np.minimum((index + 1) * old_size, end) - np.maximum(index * old_size, start)
    return _Overlaps(np.minimum(index, old - 1), np.maximum(covered, 0), new_size)
