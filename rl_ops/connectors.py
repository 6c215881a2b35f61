"""Observation connectors: what is done to observations between the environment and the module.

A connector is a frozen value; `ObsConnectors` applies several in order. Rollout, evaluation and
serving run the same object on numpy batches.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete, Space

from rl_ops.errors import SpecError
from rl_ops.image_connectors import GrayscaleObs as GrayscaleObs
from rl_ops.image_connectors import ResizeObs as ResizeObs
from rl_ops.object_path import load_object, object_path
from rl_ops.spaces import codec_for, flat_size, leaf_bounds, space_from_json, space_to_json
from rl_ops.tree import (
    Tree,
    brief,
    space_leaves,
    space_map,
    tree_leaves,
    tree_map,
    tree_map_spaces,
    tree_take,
    zip_spaces,
)

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]


class StatelessObsConnector(Protocol):
    """A frozen dataclass whose output depends on the one observation only."""

    def output_space(self, space: Space) -> Space:
        """The space of the output; raises SpecError for a space it cannot take."""
        ...

    def __call__(self, obs: Tree, space: Space) -> Tree:
        """The batch tree of `output_space(space)` for a batch tree [B, ...] of `space`."""
        ...


@runtime_checkable
class StatefulObsConnector(Protocol):
    """A frozen dataclass that remembers earlier observations of each environment.

    The memory is a batch tree [num_envs, ...] that `step` replaces and does not write to, so
    that peeking at a step is taking it and dropping the new memory.
    """

    def output_space(self, space: Space) -> Space: ...

    def start(self, num_envs: int, space: Space) -> Tree:
        """The memory before any observation."""
        ...

    def step(self, obs: Tree, is_first: Mask, memory: Tree) -> tuple[Tree, Tree]:
        """The output for obs [num_envs, ...] and the new memory; is_first starts an episode."""
        ...


ObsConnector = StatelessObsConnector | StatefulObsConnector
ObsState = list[Tree]
"""The memory of each connector in order; None for stateless ones."""


@dataclass(frozen=True)
class FlattenObs:
    """Any space to one float32 vector: Discrete and MultiDiscrete one-hot, Dict and Tuple joined.

    The order is that of `gymnasium.spaces.flatten`.
    """

    def output_space(self, space: Space) -> Space:
        codec_for(space)  # refuses what has no fixed size
        bounds = [_flat_bounds(leaf) for leaf in space_leaves(space)]
        low, high = (np.concatenate(side) for side in zip(*bounds, strict=True))
        return Box(low, high, dtype=np.float32)

    def __call__(self, obs: Tree, space: Space) -> Array:
        parts = [_flatten(leaf, batch) for leaf, batch in zip_spaces(space, obs)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


@dataclass(frozen=True)
class OneHotObs:
    """Discrete and MultiDiscrete leaves to one-hot float32 vectors; other leaves pass."""

    def output_space(self, space: Space) -> Space:
        if not any(isinstance(leaf, Discrete | MultiDiscrete) for leaf in space_leaves(space)):
            raise SpecError(f"OneHotObs: {brief(space)} has no Discrete or MultiDiscrete.")

        def one_hot(leaf: Space) -> Space:
            is_categorical = isinstance(leaf, Discrete | MultiDiscrete)
            return Box(0.0, 1.0, (flat_size(leaf),), np.float32) if is_categorical else leaf

        return space_map(one_hot, space)

    def __call__(self, obs: Tree, space: Space) -> Tree:
        def one_hot(leaf: Space, batch: Array) -> Array:
            is_categorical = isinstance(leaf, Discrete | MultiDiscrete)
            return _one_hot(leaf, batch) if is_categorical else batch

        return tree_map_spaces(one_hot, space, obs)


@dataclass(frozen=True)
class FrameStackObs:
    """The last `num_frames` observations of the episode, oldest first, along the last axis.

    Vectors and [H, W, C] images are joined on their last axis; scalars and [H, W] images get
    one. The first observation of an episode fills the whole stack.
    """

    num_frames: int

    def __post_init__(self) -> None:
        if self.num_frames < 1:
            raise ValueError(f"FrameStackObs: num_frames is {self.num_frames}, expected >= 1.")

    def output_space(self, space: Space) -> Space:
        def stacked(leaf: Space) -> Space:
            if not isinstance(leaf, Box | MultiBinary):
                raise SpecError(
                    f"FrameStackObs cannot stack {brief(leaf)}; put OneHotObs or FlattenObs first."
                )
            low, high = (self._tile(_as_frames(bound[None]))[0] for bound in leaf_bounds(leaf))
            return Box(low, high, dtype=np.dtype(leaf.dtype).type)

        return space_map(stacked, space)

    def start(self, num_envs: int, space: Space) -> Tree:
        return codec_for(self.output_space(space)).empty(num_envs)

    def step(self, obs: Tree, is_first: Mask, memory: Tree) -> tuple[Tree, Tree]:
        def push(batch: Array, stack: Array) -> Array:
            frame = _as_frames(batch)
            pushed = np.concatenate([stack[..., frame.shape[-1] :], frame], axis=-1)
            if is_first.any():
                pushed[is_first] = self._tile(frame[is_first])
            return pushed

        stacks = tree_map(push, obs, memory)
        return stacks, stacks

    def _tile(self, frame: Array) -> Array:
        return np.concatenate([frame] * self.num_frames, axis=-1)


OBS_CONNECTORS: Final[Mapping[str, type[Any]]] = {
    "FlattenObs": FlattenObs,
    "OneHotObs": OneHotObs,
    "GrayscaleObs": GrayscaleObs,
    "ResizeObs": ResizeObs,
    "FrameStackObs": FrameStackObs,
}
"""The kinds that a pipeline's JSON may name."""


@dataclass(frozen=True)
class ObsConnectors:
    """Connectors applied in order, bound to the environment's observation space.

    Raises:
        SpecError: a connector cannot take the space it would get.
    """

    steps: tuple[ObsConnector, ...]
    input_space: Space
    _spaces: tuple[Space, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        spaces = [self.input_space]
        for step in self.steps:
            spaces.append(step.output_space(spaces[-1]))
        object.__setattr__(self, "_spaces", tuple(spaces))

    @property
    def spaces(self) -> tuple[Space, ...]:
        """Before the first step, between steps, and after the last."""
        return self._spaces

    @property
    def output_space(self) -> Space:
        return self._spaces[-1]

    @property
    def is_identity(self) -> bool:
        return not self.steps

    def start(self, num_envs: int) -> ObsState:
        """The state before the first observations, which must come with is_first all True."""
        return [
            step.start(num_envs, space) if isinstance(step, StatefulObsConnector) else None
            for step, space in zip(self.steps, self._spaces, strict=False)
        ]

    def step(self, obs: Tree, is_first: Mask, state: ObsState) -> Tree:
        """What the module is fed for observations of all environments; updates `state`.

        Args:
            obs: batch tree [num_envs, ...] of the input space.
            is_first: [num_envs] bool, True where obs is the first of its episode.
            state: of `start`.

        Returns:
            Batch tree of the output space; may share memory with obs and state, do not write.
        """
        for i, step in enumerate(self.steps):
            if isinstance(step, StatefulObsConnector):
                obs, state[i] = step.step(obs, is_first, state[i])
            else:
                obs = step(obs, self._spaces[i])
        return obs

    def peek(self, obs: Tree, state: ObsState, rows: Any) -> Tree:
        """What `step` would give where the episode goes on, leaving `state` as it is.

        Args:
            obs: batch tree [R, ...], the final observations of the environments in `rows`.
            state: as it is after the step that acted.
            rows: R environment numbers, or a mask [num_envs] with R True.
        """
        states = [None if memory is None else tree_take(memory, rows) for memory in state]
        num_rows = len(next(tree_leaves(obs)))
        return self.step(obs, np.zeros(num_rows, np.bool_), states)

    def to_json(self) -> dict[str, Any]:
        return pipeline_to_json(self.steps, self.input_space)

    @classmethod
    def from_json(
        cls, data: Mapping[str, Any], kinds: Mapping[str, type[Any]] = OBS_CONNECTORS
    ) -> "ObsConnectors":
        """The pipeline that `to_json` described.

        Raises:
            SpecError: a kind is not in `kinds`, or its fields or space do not fit.
        """
        return cls(*pipeline_from_json(data, kinds))


def default_obs_connectors(space: Space) -> ObsConnectors:
    """Nothing for float vectors and images, one-hot for Discrete, flatten for all else.

    An image is a Box [H, W, C] of any dtype or a uint8 [H, W].
    """
    if isinstance(space, Discrete):
        return ObsConnectors((OneHotObs(),), space)
    if isinstance(space, Box):
        ndim, dtype = len(space.shape), np.dtype(space.dtype)
        if ndim == 3 or (ndim == 2 and dtype == np.uint8) or (ndim == 1 and dtype.kind == "f"):
            return ObsConnectors((), space)
    return ObsConnectors((FlattenObs(),), space)


def pipeline_to_json(steps: Iterable[object], space: Space) -> dict[str, Any]:
    """The environment's space, and each connector as its class name and its fields."""
    described = []
    for step in steps:
        if not is_dataclass(step) or isinstance(step, type):
            raise SpecError(f"connector {step!r} has no JSON form; make it a frozen dataclass.")
        kind = type(step)
        name = kind.__name__ if kind.__module__.startswith("rl_ops.") else object_path(kind)
        described.append({"kind": name, **asdict(step)})
    return {"space": space_to_json(space), "steps": described}


def pipeline_from_json(
    data: Mapping[str, Any], kinds: Mapping[str, type[Any]]
) -> tuple[tuple[Any, ...], Space]:
    """The connectors and the space that `pipeline_to_json` described."""
    try:
        space, steps = space_from_json(data["space"]), [dict(step) for step in data["steps"]]
    except (KeyError, TypeError) as error:
        raise SpecError(f"connectors' JSON lacks its space or steps: {error!r}") from error
    made = []
    for fields in steps:
        name = fields.pop("kind", None)
        kind = _kind(name, kinds)
        try:
            made.append(kind(**fields))
        except (TypeError, ValueError) as error:
            raise SpecError(f"connector {name} cannot be made of {fields}: {error}") from error
    return tuple(made), space


def _kind(name: Any, kinds: Mapping[str, type[Any]]) -> type[Any]:
    """A connector's class: one of `kinds`, or one of the user's own by its path."""
    if isinstance(name, str) and name in kinds:
        return kinds[name]
    if isinstance(name, str) and ":" in name:
        try:
            kind = load_object(name)
        except ValueError as error:
            raise SpecError(f"connector kind {error}") from error
        if isinstance(kind, type) and is_dataclass(kind):
            return kind
        raise SpecError(f"connector kind {name!r} is {kind!r}; expected a frozen dataclass.")
    raise SpecError(
        f"connector kind {name!r} is unknown; kinds are {', '.join(kinds)}, or 'module:Class' for "
        "one of your own."
    )


def _as_frames(batch: Array) -> Array:
    """The batch with an axis to stack along last."""
    return batch[..., None] if batch.ndim in (1, 3) else batch


def _one_hot(space: Space, batch: Array) -> Array:
    """[B, sum of counts], one 1 for each category of a Discrete or MultiDiscrete."""
    low, high = (bound.reshape(-1).astype(np.int64) for bound in leaf_bounds(space))
    values = batch.reshape(len(batch), low.size).astype(np.int64)
    if ((values < low) | (values > high)).any():
        raise SpecError(
            f"one-hot: got values from {values.min()} to {values.max()}; "
            f"expected those of {brief(space)}."
        )
    count = high - low + 1
    offsets = np.cumsum(count) - count
    out = np.zeros((len(batch), int(count.sum())), np.float32)
    out[np.arange(len(batch))[:, None], offsets + values - low] = 1.0
    return out


def _flatten(space: Space, batch: Array) -> Array:
    if isinstance(space, Discrete | MultiDiscrete):
        return _one_hot(space, batch)
    return batch.reshape(len(batch), flat_size(space)).astype(np.float32, copy=False)


def _flat_bounds(space: Space) -> tuple[Array, Array]:
    if isinstance(space, Discrete | MultiDiscrete):
        size = flat_size(space)
        return np.zeros(size, np.float32), np.ones(size, np.float32)
    low, high = (bound.reshape(-1) for bound in leaf_bounds(space))
    with np.errstate(over="ignore"):  # a float64 bound above float32's range becomes inf
        return low.astype(np.float32), high.astype(np.float32)
