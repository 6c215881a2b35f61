"""A policy as one torch module, connectors and statistics within it: what is exported to serve.

Legend: B rows.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import numpy as np
import torch
from gymnasium.spaces import Dict, Space, Tuple
from torch import nn

from rl_ops import columns as c
from rl_ops.action_connectors import ClipAction, RescaleAction, ShiftDiscrete
from rl_ops.connectors import FlattenObs, FrameStackObs, OneHotObs
from rl_ops.errors import SpecError
from rl_ops.image_connectors import GrayscaleObs, ResizeObs
from rl_ops.models import build_model
from rl_ops.moments import normalize
from rl_ops.policy import PolicySpec, Weights
from rl_ops.torch_connectors import (
    clipped,
    flattened,
    gray,
    one_hot,
    pushed,
    rescaled,
    resized,
    shifted,
    torch_dtype,
)
from rl_ops.tree import Tree, space_leaves, tree_concat, tree_leaves, tree_map_spaces

_OBS: Final[Mapping[type, Callable[..., Tree]]] = {
    FlattenObs: flattened,
    OneHotObs: one_hot,
    GrayscaleObs: gray,
    ResizeObs: resized,
}
_ACTION: Final[Mapping[type, Callable[..., Tree]]] = {
    ClipAction: clipped,
    RescaleAction: rescaled,
    ShiftDiscrete: shifted,
}


class ServedPolicy(nn.Module):
    """Observations of an environment to the actions that `Policy.act` gives, without exploring.

    Args:
        spec: what the policy is.
        weights: its parameters and statistics.

    Attributes:
        inputs: names of `forward`'s arguments: the leaves of the observation in the order of its
            space; where frames are stacked, `is_first` and the leaves of each stack.
        outputs: names of what it returns: the leaves of the action, then the new stacks.

    Raises:
        SpecError: a connector is the user's own, or the network remembers a sequence.
    """

    def __init__(self, spec: PolicySpec, weights: Weights) -> None:
        super().__init__()
        self.spec = spec
        connectors = (*spec.obs_connectors.steps, *spec.action_connectors.steps)
        known = {*_OBS, *_ACTION, FrameStackObs}
        unknown = [step for step in connectors if type(step) not in known]
        if unknown:
            raise SpecError(
                f"{unknown[0]!r} has no torch form, so a policy with it cannot be exported; serve "
                "it by load_policy, which needs neither Ray nor torch"
            )
        if spec.model.sequence is not None:
            raise SpecError(
                "a policy that acts on a sequence of steps cannot be exported; serve it by "
                "load_policy, whose state holds them"
            )
        self.network = build_model(spec.model).eval()
        arrays = {name: torch.from_numpy(np.array(x)) for name, x in weights.module.items()}
        self.network.load_state_dict(arrays)
        self._is_normalised = weights.obs_mean is not None and weights.obs_std is not None
        if self._is_normalised:
            for name, values in (("obs_mean", weights.obs_mean), ("obs_std", weights.obs_std)):
                self.register_buffer(name, torch.from_numpy(np.array(values)))
        self.inputs = [*names_of(c.OBS, spec.obs_space)]
        self.outputs = [*names_of(c.ACTION, spec.action_space)]
        stacks = [
            f"{name}_{i}" for i, space in self._stacked() for name in names_of("stack", space)
        ]
        if stacks:
            self.inputs += ["is_first", *stacks]
            self.outputs += [f"next_{name}" for name in stacks]

    def _stacked(self) -> list[tuple[int, Space[Any]]]:
        """Place and output space of each connector that remembers frames."""
        connectors = self.spec.obs_connectors
        return [
            (i, space)
            for i, (step, space) in enumerate(
                zip(connectors.steps, connectors.spaces[1:], strict=True)
            )
            if isinstance(step, FrameStackObs)
        ]

    def example(self, rows: int = 2) -> tuple[torch.Tensor, ...]:
        """Arguments of `forward`: observations drawn from the space, each an episode's first."""
        space = self.spec.obs_space
        space.seed(0)
        tensors = [torch.from_numpy(leaf) for leaf in tree_leaves(drawn(space, rows))]
        if not self._stacked():
            return tuple(tensors)
        stacks = [
            torch.zeros((rows, *leaf.shape), dtype=torch_dtype(leaf))
            for _, stacked in self._stacked()
            for leaf in space_leaves(stacked)
        ]
        return (*tensors, torch.ones(rows, dtype=torch.bool), *stacks)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """See `inputs` and `outputs`; every tensor has rows [B, ...] of its space's dtype."""
        if len(inputs) != len(self.inputs):
            raise SpecError(f"got {len(inputs)} tensors, expected {', '.join(self.inputs)}")
        connectors, left = self.spec.obs_connectors, iter(inputs)
        obs = _tree_of(connectors.input_space, left)
        is_first = next(left, None)
        stacks: list[torch.Tensor] = []
        sides = zip(connectors.spaces, connectors.spaces[1:], strict=False)
        for step, (space, output) in zip(connectors.steps, sides, strict=True):
            if isinstance(step, FrameStackObs):
                stack = _tree_of(output, left)
                obs = pushed(obs, stack, is_first, num_frames=step.num_frames)
                stacks += tree_leaves(obs)
            else:
                obs = _OBS[type(step)](step, obs, space)
        if self._is_normalised:
            obs = normalize(obs, mean=self.obs_mean, std=self.obs_std, clip=self.spec.obs_clip)
        action = self.spec.distribution.mode(self.network(obs)[0])
        actions = self.spec.action_connectors
        for each, side in zip(actions.steps, actions.spaces[1:], strict=True):
            action = _ACTION[type(each)](each, action, side)
        return (*tree_leaves(action), *stacks)


def names_of(name: str, space: Space[Any]) -> list[str]:
    """A name for each leaf of a space, of letters, digits and underscores."""
    children = getattr(space, "spaces", None)
    if children is None:
        return [name]
    pairs = children.items() if isinstance(children, Mapping) else enumerate(children)
    return [
        found
        for key, child in pairs
        for found in names_of(f"{name}_{re.sub('[^A-Za-z0-9]', '_', str(key))}", child)
    ]


def _tree_of(space: Space[Any], leaves: Iterator[torch.Tensor]) -> Tree:
    """The next tensors, in the order of a space's leaves, as its tree."""
    if isinstance(space, Dict):
        return {key: _tree_of(child, leaves) for key, child in space.spaces.items()}
    if isinstance(space, Tuple):
        return tuple(_tree_of(child, leaves) for child in space.spaces)
    return next(leaves)


def drawn(space: Space[Any], rows: int) -> Tree:
    """A batch tree of observations drawn from a space, as its seed has it."""
    return tree_concat(
        [
            tree_map_spaces(lambda leaf, x: np.asarray(x, leaf.dtype)[None], space, space.sample())
            for _ in range(rows)
        ]
    )
