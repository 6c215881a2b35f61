"""The spaces of data from outside: stated as JSON, asked of an environment, or inferred."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple

from offline.errors import ImportDataError
from offline.exchange import RawEpisode, Record, Spaces
from rl_ops.spaces import space_from_json, space_to_json
from rl_ops.tree import Tree

Array = npt.NDArray[Any]

SPACES_FILE: Final = "spaces.json"
"""Beside exported files: {"obs": space, "action": space}, which imports take as stated."""


def spaces_to_json(spaces: Spaces) -> dict[str, Any]:
    """Both spaces as JSON."""
    return {"obs": space_to_json(spaces.obs), "action": space_to_json(spaces.action)}


def spaces_from_text(text: str, *, origin: str) -> Spaces:
    """Spaces from JSON, as `spaces_to_json` makes it.

    Raises:
        ImportDataError: it is not JSON, or not of that form.
    """
    try:
        data = json.loads(text)
        return Spaces(space_from_json(data["obs"]), space_from_json(data["action"]), origin)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ImportDataError(
            f'{origin} does not describe spaces: {error}. Expected {{"obs": SPACE, "action": '
            'SPACE}, a SPACE as {"kind": "Discrete", "n": 2, "start": 0, "dtype": "int64"} or '
            '{"kind": "Box", "dtype": "float32", "shape": [4], "low": "-inf", "high": "inf"}.'
        ) from error


def spaces_beside(files: Iterable[str]) -> Spaces | None:
    """The spaces of a spaces.json in the folder of the first file."""
    for file in files:
        path = Path(file).parent / SPACES_FILE
        if path.is_file():
            return spaces_from_text(path.read_text(encoding="utf-8"), origin=str(path))
        return None
    return None


def spaces_of_env(env_id: str) -> Spaces:
    """The spaces of a Gymnasium environment.

    Raises:
        UnknownEnvError: there is no such environment.
    """
    from rl_ops.envs import EnvSpec, make_env

    env = make_env(EnvSpec(env_id))
    try:
        return Spaces(env.observation_space, env.action_space, f"--env {env_id}")
    finally:
        env.close()


def infer_spaces(records: Iterable[Record], *, untyped: bool) -> Spaces:
    """Spaces that hold all of the data: Box bounds are infinite, a Discrete's n is max + 1.

    Args:
        records: of a source, all of it.
        untyped: numbers have no dtypes, so that an action of 1.0 is an integer.

    Raises:
        ImportDataError: there is no episode to infer from, or none whose values are numbers.
    """
    obs, action = _Seen(indices=False), _Seen(indices=True)
    for record in records:
        if isinstance(record, RawEpisode):
            obs.add(record.obs)
            action.add(record.action)
    if obs.is_empty or action.is_empty:
        raise ImportDataError(
            "no episode to infer spaces from; check the files, or state the spaces by --env ID "
            "or --spaces FILE"
        )
    return Spaces(obs.space(untyped), action.space(untyped), "inferred from the data")


class _Seen:
    """What the values of one column had in common so far."""

    def __init__(self, *, indices: bool) -> None:
        self.is_empty = True
        self._indices = indices
        self._children: dict[str, _Seen] | None = None
        self._is_tuple = False
        self._shape: tuple[int, ...] = ()
        self._dtype: np.dtype[Any] | None = None
        self._low: Array = np.zeros(0)
        self._high: Array = np.zeros(0)
        self._is_integral = True
        self._is_float32 = True

    def add(self, tree: Tree) -> None:
        if isinstance(tree, dict | tuple):
            children = tree if isinstance(tree, dict) else {str(i): x for i, x in enumerate(tree)}
            if self._children is None and self.is_empty:
                self._is_tuple = isinstance(tree, tuple)
                self._children = {name: _Seen(indices=self._indices) for name in children}
            if self._children is not None and self._children.keys() == children.keys():
                for name, child in children.items():
                    self._children[name].add(child)
                self.is_empty = any(child.is_empty for child in self._children.values())
        else:
            self._add_leaf(np.asarray(tree))

    def _add_leaf(self, values: Array) -> None:
        if self._children is not None or values.dtype.kind not in "biuf" or not values.size:
            return
        if self.is_empty:
            self.is_empty, self._shape, self._dtype = False, values.shape[1:], values.dtype
            self._low = self._high = values[0].astype(np.float64)
        # The contract reports what differs from the first; min and max of it would mislead.
        if values.shape[1:] != self._shape or self._dtype is None:
            return
        self._dtype = np.promote_types(self._dtype, values.dtype)
        values = values[np.isfinite(values).reshape(len(values), -1).all(axis=1)]
        if not len(values):
            return
        self._low = np.minimum(self._low, values.min(axis=0))
        self._high = np.maximum(self._high, values.max(axis=0))
        if values.dtype.kind == "f":
            self._is_integral &= bool((values == np.rint(values)).all())
            with np.errstate(over="ignore"):
                self._is_float32 &= bool((values.astype(np.float32) == values).all())

    def space(self, untyped: bool) -> Space:
        if self._children is not None:
            spaces = {name: child.space(untyped) for name, child in self._children.items()}
            return Tuple(list(spaces.values())) if self._is_tuple else Dict(list(spaces.items()))
        if self._dtype is None:
            raise ImportDataError("a column has no numbers; state the spaces by --env or --spaces")
        low = self._low.min() if self._low.size else 0
        kind = self._dtype.kind
        if kind == "b":
            return MultiBinary(list(self._shape)) if self._shape else Discrete(2)
        if kind == "f" and not (untyped and self._is_integral and self._counts(low)):
            dtype = np.float32 if self._is_float32 else np.float64
            return Box(-np.inf, np.inf, self._shape, dtype)
        return self._integers(low)

    def _counts(self, low: Any) -> bool:
        """Whether whole numbers are more likely indices than measurements."""
        return bool(low >= 0) and (self._indices or not self._shape)

    def _integers(self, low: Any) -> Space:
        high = int(self._high.max())
        is_frame = len(self._shape) >= 2 and low >= 0 and high <= 255
        if not self._indices and (self._dtype == np.uint8 or is_frame) and self._shape:
            return Box(0, 255, self._shape, np.uint8)
        if not self._counts(low):
            return Box(-np.inf, np.inf, self._shape, np.int64)
        if not self._shape:
            return Discrete(high + 1)
        return MultiDiscrete(self._high.astype(np.int64) + 1)
