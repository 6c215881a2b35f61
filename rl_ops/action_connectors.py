"""Action connectors: what is done to actions between the module and the environment.

A connector is a frozen value that treats the leaves of its kind and lets others pass, so trees
need nothing of their own. `__call__` and `inverse` take the space on the environment's side.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box, Discrete, MultiDiscrete, Space

from rl_ops.connectors import pipeline_from_json, pipeline_to_json
from rl_ops.errors import SpecError
from rl_ops.spaces import codec_for
from rl_ops.tree import Tree, brief, space_leaves, space_map, tree_map_spaces

Array = npt.NDArray[Any]


class ActionConnector(Protocol):
    """A frozen dataclass that makes environment actions of module actions."""

    def input_space(self, space: Space) -> Space:
        """The space the module acts in, where the environment acts in `space`."""
        ...

    def __call__(self, action: Tree, space: Space) -> Tree:
        """The batch tree [B, ...] of `space` for one of `input_space(space)`."""
        ...

    def inverse(self, action: Tree, space: Space) -> Tree:
        """A module action that gives this action of `space`; NotImplementedError for none."""
        ...


@dataclass(frozen=True)
class ClipAction:
    """Box leaves clipped to their bounds and cast to their dtype.

    The module acts in an unbounded Box, of float32 for a float one. The inverse is the action
    itself, one of many that clip to it.
    """

    def input_space(self, space: Space) -> Space:
        def unbounded(leaf: Space) -> Space:
            if is_float(leaf):
                return Box(-np.inf, np.inf, leaf.shape, np.float32)
            if _is_integer(leaf):
                limits = np.iinfo(leaf.dtype)
                return Box(limits.min, limits.max, leaf.shape, leaf.dtype.type)
            return leaf

        return space_map(unbounded, space)

    def __call__(self, action: Tree, space: Space) -> Tree:
        def clip(leaf: Space, batch: Array) -> Array:
            if not (is_float(leaf) or _is_integer(leaf)):
                return batch
            return batch.clip(leaf.low, leaf.high).astype(leaf.dtype, copy=False)

        return tree_map_spaces(clip, space, action)

    def inverse(self, action: Tree, space: Space) -> Tree:
        def cast(leaf: Space, batch: Array) -> Array:
            return batch.astype(np.float32, copy=False) if is_float(leaf) else batch

        return tree_map_spaces(cast, space, action)


@dataclass(frozen=True)
class RescaleAction:
    """Float Box leaves from the module's [-1, 1] to [low, high]; what lies outside is clipped."""

    def input_space(self, space: Space) -> Space:
        def unit(leaf: Space) -> Space:
            if not is_float(leaf):
                return leaf
            if not (np.isfinite(leaf.low).all() and np.isfinite(leaf.high).all()):
                raise SpecError(
                    f"RescaleAction: {brief(leaf)} has infinite bounds. Give the environment "
                    "finite ones (gymnasium.wrappers.RescaleAction), or clip instead."
                )
            return Box(-1.0, 1.0, leaf.shape, np.float32)

        return space_map(unit, space)

    def __call__(self, action: Tree, space: Space) -> Tree:
        def rescale(leaf: Space, batch: Array) -> Array:
            if not is_float(leaf):
                return batch
            middle, half = middle_and_half(leaf)
            scaled: Array = (middle + batch * half).clip(leaf.low, leaf.high)
            return scaled.astype(leaf.dtype)

        return tree_map_spaces(rescale, space, action)

    def inverse(self, action: Tree, space: Space) -> Tree:
        def unscale(leaf: Space, batch: Array) -> Array:
            if not is_float(leaf):
                return batch
            middle, half = middle_and_half(leaf)
            # A dimension with low == high has one action, whatever the module says.
            unit: Array = (batch - middle) / np.where(half == 0, 1.0, half)
            return unit.clip(-1.0, 1.0).astype(np.float32)

        return tree_map_spaces(unscale, space, action)


@dataclass(frozen=True)
class ShiftDiscrete:
    """Discrete and MultiDiscrete leaves from the module's 0..n-1 (int64) to start..start+n-1."""

    def input_space(self, space: Space) -> Space:
        def from_zero(leaf: Space) -> Space:
            if isinstance(leaf, Discrete):
                return Discrete(int(leaf.n))
            return MultiDiscrete(leaf.nvec) if isinstance(leaf, MultiDiscrete) else leaf

        return space_map(from_zero, space)

    def __call__(self, action: Tree, space: Space) -> Tree:
        def shift(leaf: Space, batch: Array) -> Array:
            if not isinstance(leaf, Discrete | MultiDiscrete):
                return batch
            shifted: Array = batch + leaf.start.astype(np.int64)
            return shifted.astype(leaf.dtype, copy=False)

        return tree_map_spaces(shift, space, action)

    def inverse(self, action: Tree, space: Space) -> Tree:
        def unshift(leaf: Space, batch: Array) -> Array:
            if not isinstance(leaf, Discrete | MultiDiscrete):
                return batch
            unshifted: Array = batch.astype(np.int64) - leaf.start.astype(np.int64)
            return unshifted

        return tree_map_spaces(unshift, space, action)


ACTION_CONNECTORS: Final[Mapping[str, type[Any]]] = {
    "ClipAction": ClipAction,
    "RescaleAction": RescaleAction,
    "ShiftDiscrete": ShiftDiscrete,
}
"""The kinds that a pipeline's JSON may name."""


@dataclass(frozen=True)
class ActionConnectors:
    """Connectors applied in order, the last one's output going to the environment.

    Raises:
        SpecError: a connector cannot give the space it would have to.
    """

    steps: tuple[ActionConnector, ...]
    output_space: Space
    _spaces: tuple[Space, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        spaces = [self.output_space]
        for step in reversed(self.steps):
            spaces.insert(0, step.input_space(spaces[0]))
        object.__setattr__(self, "_spaces", tuple(spaces))

    @property
    def spaces(self) -> tuple[Space, ...]:
        """Before the first step, between steps, and after the last."""
        return self._spaces

    @property
    def input_space(self) -> Space:
        """What the module acts in: the space of the `action` column."""
        return self._spaces[0]

    @property
    def is_identity(self) -> bool:
        return not self.steps

    def __call__(self, action: Tree) -> Tree:
        """The environment's actions for the module's, batch trees [B, ...]."""
        for step, space in zip(self.steps, self._spaces[1:], strict=True):
            action = step(action, space)
        return action

    def inverse(self, action: Tree) -> Tree:
        """Module actions that give these environment actions, as for data of other agents."""
        for step, space in zip(reversed(self.steps), reversed(self._spaces[1:]), strict=True):
            action = step.inverse(action, space)
        return action

    def to_json(self) -> dict[str, Any]:
        return pipeline_to_json(self.steps, self.output_space)

    @classmethod
    def from_json(
        cls, data: Mapping[str, Any], kinds: Mapping[str, type[Any]] = ACTION_CONNECTORS
    ) -> "ActionConnectors":
        """The pipeline that `to_json` described.

        Raises:
            SpecError: a kind is not in `kinds`, or its fields or space do not fit.
        """
        return cls(*pipeline_from_json(data, kinds))


def default_action_connectors(space: Space, *, squash: bool) -> ActionConnectors:
    """Shift what does not start at 0, then bring Boxes into bounds, by rescaling where squashed.

    Args:
        space: the environment's action space, a leaf or a tree.
        squash: the module's float actions lie in [-1, 1] already, as after tanh.

    Raises:
        SpecError: the space is not supported, or squash and a Box without finite bounds.
    """
    codec_for(space)
    leaves = list(space_leaves(space))
    steps: list[ActionConnector] = []
    if any(isinstance(leaf, Discrete | MultiDiscrete) and _is_shifted(leaf) for leaf in leaves):
        steps.append(ShiftDiscrete())
    if squash and any(map(is_float, leaves)):
        steps.append(RescaleAction())
    elif any(isinstance(leaf, Box) for leaf in leaves):
        steps.append(ClipAction())
    return ActionConnectors(tuple(steps), space)


def is_float(space: Space) -> bool:
    """Whether a leaf is a Box of floats."""
    return isinstance(space, Box) and np.dtype(space.dtype).kind == "f"


def _is_integer(space: Space) -> bool:
    return isinstance(space, Box) and np.dtype(space.dtype).kind in "iu"


def _is_shifted(space: Space) -> bool:
    return bool(np.any(space.start != 0)) or space.dtype != np.int64


def middle_and_half(space: Space) -> tuple[Array, Array]:
    """Centre and half-width [*S] in float64, halved before they are added: no overflow."""
    low, high = space.low.astype(np.float64) / 2, space.high.astype(np.float64) / 2
    return low + high, high - low
