"""Connectors in torch, for policies that are exported: the same numbers as the numpy ones.

Each takes the connector, a batch tree [B, ...] and, of observations the space on its input side,
of actions that on the environment's.

Legend: B rows.
"""

from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete, Space

from rl_ops.action_connectors import (
    ClipAction,
    RescaleAction,
    ShiftDiscrete,
    is_float,
    middle_and_half,
)
from rl_ops.connectors import FlattenObs, OneHotObs
from rl_ops.image_connectors import (
    LUMA,
    GrayscaleObs,
    ResizeObs,
    is_image,
    is_rgb,
    overlaps,
)
from rl_ops.spaces import flat_size, leaf_bounds
from rl_ops.tree import Tree, tree_map, tree_map_spaces, zip_spaces

Tensor = torch.Tensor


def flattened(_: FlattenObs, obs: Tree, space: Space[Any]) -> Tensor:
    """See `FlattenObs`."""
    parts = [_flat(leaf, batch) for leaf, batch in zip_spaces(space, obs)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def one_hot(_: OneHotObs, obs: Tree, space: Space[Any]) -> Tree:
    """See `OneHotObs`; what is no category of the space gives no 1, where that raises."""
    return tree_map_spaces(
        lambda leaf, batch: _one_hot(leaf, batch) if _is_categorical(leaf) else batch, space, obs
    )


def gray(_: GrayscaleObs, obs: Tree, space: Space[Any]) -> Tree:
    """See `GrayscaleObs`."""

    def luma(leaf: Space[Any], rgb: Tensor) -> Tensor:
        if not is_rgb(leaf):
            return rgb
        weighted = rgb.to(torch.int32) * torch.tensor(LUMA, dtype=torch.int32)
        # Of numbers that are not negative a quotient is a shift.
        rounded = torch.div(
            weighted.sum(-1, dtype=torch.int32) + (1 << 14), 1 << 15, rounding_mode="floor"
        )
        return rounded.to(torch.uint8).unsqueeze(-1)

    return tree_map_spaces(luma, space, obs)


def resized(step: ResizeObs, obs: Tree, space: Space[Any]) -> Tree:
    """See `ResizeObs`."""

    def by_area(leaf: Space[Any], images: Tensor) -> Tensor:
        if not is_image(leaf):
            return images
        height, width = leaf.shape[:2]
        over_h, over_w = overlaps(height, step.height), overlaps(width, step.width)
        area = over_h.total * over_w.total
        sums = _summed(_summed(images.to(torch.int64), over_h, dim=1), over_w, dim=2)
        rounded = torch.div(sums + area // 2, area, rounding_mode="floor")
        return rounded.to(torch.uint8)

    return tree_map_spaces(by_area, space, obs)


def pushed(obs: Tree, stack: Tree, is_first: Tensor | None, *, num_frames: int) -> Tree:
    """See `FrameStackObs.step`: the new stacks."""
    assert is_first is not None

    def push(batch: Tensor, frames: Tensor) -> Tensor:
        frame = batch.unsqueeze(-1) if batch.ndim in (1, 3) else batch
        moved = torch.cat([frames[..., frame.shape[-1] :], frame], -1)
        filled = torch.cat([frame] * num_frames, -1)
        begins = is_first.reshape(-1, *[1] * (frame.ndim - 1))
        return torch.where(begins, filled, moved)

    return tree_map(push, obs, stack)


def clipped(_: ClipAction, action: Tree, space: Space[Any]) -> Tree:
    """See `ClipAction`."""

    def clip(leaf: Space[Any], batch: Tensor) -> Tensor:
        if not isinstance(leaf, Box):
            return batch
        return _bounded(batch, leaf)

    return tree_map_spaces(clip, space, action)


def rescaled(_: RescaleAction, action: Tree, space: Space[Any]) -> Tree:
    """See `RescaleAction`."""

    def rescale(leaf: Space[Any], batch: Tensor) -> Tensor:
        if not is_float(leaf):
            return batch
        middle, half = (torch.from_numpy(x) for x in middle_and_half(leaf))
        return _bounded(middle + batch.to(torch.float64) * half, leaf)

    return tree_map_spaces(rescale, space, action)


def shifted(_: ShiftDiscrete, action: Tree, space: Space[Any]) -> Tree:
    """See `ShiftDiscrete`."""

    def shift(leaf: Space[Any], batch: Tensor) -> Tensor:
        if not isinstance(leaf, Discrete | MultiDiscrete):
            return batch
        start = torch.from_numpy(np.array(leaf.start).astype(np.int64))
        return (batch + start).to(torch_dtype(leaf))

    return tree_map_spaces(shift, space, action)


def torch_dtype(leaf: Space[Any]) -> torch.dtype:
    """The dtype of a leaf's tensors."""
    return torch.from_numpy(np.zeros(1, leaf.dtype)).dtype


def _bounded(batch: Tensor, leaf: Box) -> Tensor:
    """Within the leaf's bounds and of its dtype; clipped in the wider of both, as numpy does."""
    low, high = (torch.from_numpy(np.array(bound)) for bound in (leaf.low, leaf.high))
    wide = torch.promote_types(batch.dtype, low.dtype)
    within = torch.maximum(torch.minimum(batch.to(wide), high.to(wide)), low.to(wide))
    return within.to(low.dtype)


def _is_categorical(leaf: Space[Any]) -> bool:
    return isinstance(leaf, Discrete | MultiDiscrete)


def _flat(leaf: Space[Any], batch: Tensor) -> Tensor:
    if _is_categorical(leaf):
        return _one_hot(leaf, batch)
    return batch.reshape(-1, flat_size(leaf)).to(torch.float32)


def _one_hot(leaf: Space[Any], batch: Tensor) -> Tensor:
    low, high = (bound.reshape(-1).astype(np.int64) for bound in leaf_bounds(leaf))
    values = batch.reshape(-1, low.size).to(torch.int64)
    parts = [
        (values[:, k : k + 1] == torch.arange(int(low[k]), int(high[k]) + 1)).to(torch.float32)
        for k in range(low.size)
    ]
    return torch.cat(parts, 1)


def _summed(images: Tensor, over: Any, *, dim: int) -> Tensor:
    """Weighted sums of the old pixels that each new one covers along an axis."""
    total = None
    for index, weight in zip(over.index, over.weight, strict=True):
        taken = images.index_select(dim, torch.from_numpy(np.array(index)))
        shape = [1] * images.ndim
        shape[dim] = len(weight)
        part = taken * torch.from_numpy(weight.astype(np.int64)).reshape(shape)
        total = part if total is None else total + part
    assert total is not None
    return total
