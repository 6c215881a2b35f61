"""Whether what an environment emits is what its space declares: structure, shape and dtype."""

from typing import Any

import numpy as np
from gymnasium.spaces import Dict, Discrete, Space, Tuple

from rl_ops.errors import SpecError
from rl_ops.tree import brief


class ObsCheck:
    """Refuses observations that a vector environment would cast or broadcast without a word.

    A dtype passes when every value of it fits the space's, as in `Space.contains`. Values are
    `Codec.check`'s business, a fragment at a time.

    Args:
        space: of one observation.
        name: of the environment, for messages.
        batch: shape in front of the space's own; (N,) for a vector environment.
    """

    def __init__(self, space: Space[Any], *, name: str, batch: tuple[int, ...] = ()) -> None:
        self._space, self._name, self._batch = space, name, batch
        is_leaf = not isinstance(space, Dict | Tuple)
        self._shape = (*batch, *space.shape) if is_leaf else None
        self._dtype = space.dtype

    def __call__(self, obs: Any, method: str) -> None:
        """Check what `method` returned.

        Raises:
            SpecError: names the environment, the leaf, what came and what was declared.
        """
        if type(obs) is np.ndarray and obs.shape == self._shape and obs.dtype == self._dtype:
            return  # nearly every call, in a fraction of a microsecond
        self._walk(self._space, obs, f"{self._name}.{method}: obs")

    def _walk(self, space: Space[Any], obs: Any, where: str) -> None:
        if isinstance(space, Dict):
            if not isinstance(obs, dict) or obs.keys() != space.spaces.keys():
                got = f"keys {sorted(obs)}" if isinstance(obs, dict) else type(obs).__name__
                raise SpecError(f"{where} is {got}; expected a dict with {list(space.spaces)}.")
            for key, child in space.spaces.items():
                self._walk(child, obs[key], f"{where}[{key!r}]")
        elif isinstance(space, Tuple):
            if not isinstance(obs, tuple) or len(obs) != len(space.spaces):
                got = f"{len(obs)} entries" if isinstance(obs, tuple) else type(obs).__name__
                raise SpecError(f"{where} is {got}; expected a tuple of {len(space.spaces)}.")
            for i, child in enumerate(space.spaces):
                self._walk(child, obs[i], f"{where}[{i}]")
        else:
            self._leaf(space, obs, where)

    def _leaf(self, space: Space[Any], obs: Any, where: str) -> None:
        expected = (*self._batch, *space.shape)
        if isinstance(obs, int | float) and expected == ():
            # A Python number has no dtype of its own; only a fraction may not become an integer.
            fits = isinstance(obs, int) or np.dtype(space.dtype).kind == "f"
            obs = np.asarray(obs, dtype=space.dtype) if fits else np.asarray(obs)
        if not isinstance(obs, np.ndarray | np.generic):
            raise SpecError(f"{where} is a {type(obs).__name__}; {brief(space)} is an array.")
        if obs.shape != expected:
            raise SpecError(f"{where} has shape {obs.shape}; {brief(space)} needs {expected}.")
        # Any integer may name a choice; whether it is one of them shows in the values.
        is_choice = isinstance(space, Discrete) and obs.dtype.kind in "iu"
        if not is_choice and not np.can_cast(obs.dtype, space.dtype):
            raise SpecError(
                f"{where} has dtype {obs.dtype}; {brief(space)} needs {space.dtype}. "
                "Cast it where the environment makes it, or declare that dtype."
            )
