"""Minari 0.5's folder: metadata.json, a numbered folder per episode, spaces as its JSON."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple

from offline.errors import ImportDataError
from rl_ops.tree import brief

METADATA: Final = "metadata.json"
DATA: Final = "data"
HDF5_FILE: Final = "main_data.hdf5"
OBSERVATIONS: Final = "observations"
ACTIONS: Final = "actions"
REWARDS: Final = "rewards"
TERMINATIONS: Final = "terminations"
TRUNCATIONS: Final = "truncations"
INFOS: Final = "infos"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a file.

    Raises:
        ImportDataError: it cannot be read, or is none.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ImportDataError(f"{path} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise ImportDataError(f"{path} is no JSON object")
    return data


def space_to_minari(space: Space) -> dict[str, Any]:
    """The space as Minari writes it.

    Raises:
        ImportDataError: Minari has no form for it.
    """
    if isinstance(space, Dict):
        subspaces = {name: space_to_minari(child) for name, child in space.spaces.items()}
        return {"type": "Dict", "subspaces": subspaces}
    if isinstance(space, Tuple):
        return {"type": "Tuple", "subspaces": [space_to_minari(child) for child in space.spaces]}
    if isinstance(space, Box):
        return {
            "type": "Box",
            "dtype": str(space.dtype),
            "shape": list(space.shape),
            "low": space.low.tolist(),
            "high": space.high.tolist(),
        }
    if isinstance(space, Discrete):
        dtype = str(np.dtype(space.dtype))
        return {"type": "Discrete", "dtype": dtype, "start": int(space.start), "n": int(space.n)}
    if isinstance(space, MultiDiscrete):
        nvec, start = space.nvec.tolist(), space.start.tolist()
        return {"type": "MultiDiscrete", "dtype": str(space.dtype), "nvec": nvec, "start": start}
    if isinstance(space, MultiBinary):
        n = space.n if isinstance(space.n, int) else [int(size) for size in space.n]
        return {"type": "MultiBinary", "n": n}
    raise ImportDataError(f"Minari has no form for {brief(space)}")


def space_from_minari(data: Any, *, where: str) -> Space:
    """The space that Minari wrote.

    Raises:
        ImportDataError: a kind that cannot be imported, or not of its form.
    """
    try:
        if isinstance(data, str):
            data = json.loads(data)
        return _space(data, where)
    except (ValueError, KeyError, TypeError, AssertionError, RecursionError) as error:
        if isinstance(error, ImportDataError):
            raise
        raise ImportDataError(f"{where} is no space of Minari: {error}") from error


def _space(data: Mapping[str, Any], where: str) -> Space:
    kind = data["type"]
    if kind == "Dict":
        return Dict([(name, _space(child, where)) for name, child in data["subspaces"].items()])
    if kind == "Tuple":
        return Tuple([_space(child, where) for child in data["subspaces"]])
    if kind == "Discrete":
        dtype = np.dtype(data.get("dtype", "int64"))
        # Older gymnasium has no `dtype` argument, and no other dtype than int64.
        other = {} if dtype == np.int64 else {"dtype": dtype.type}
        return Discrete(data["n"], start=data["start"], **other)
    if kind == "MultiDiscrete":
        dtype = np.dtype(data.get("dtype", "int64"))
        return MultiDiscrete(data["nvec"], start=data.get("start"), dtype=dtype.type)
    if kind == "MultiBinary":
        return MultiBinary(data["n"])
    if kind == "Box":
        dtype, shape = np.dtype(data["dtype"]), tuple(data["shape"])
        low, high = (np.asarray(data[bound]).astype(dtype) for bound in ("low", "high"))
        return Box(low.reshape(shape), high.reshape(shape), shape=shape, dtype=dtype.type)
    raise ImportDataError(
        f"{where} is a {kind} space; Box, Discrete, MultiDiscrete, MultiBinary, and Dict or Tuple "
        "of them can be imported"
    )
