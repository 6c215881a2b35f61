"""Which columns of a flat table hold what: names for export, and their recognition for import."""

import difflib
import re
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Dict, Space, Tuple

from offline.errors import ImportDataError
from offline.exchange import Spaces
from rl_ops.tree import Tree

Array = npt.NDArray[Any]

DEFAULTS: Final[Mapping[str, tuple[str, ...]]] = {
    "obs": ("obs", "observation", "observations", "state"),
    "action": ("action", "actions"),
    "reward": ("reward", "rewards"),
    "terminated": ("terminated", "terminateds", "termination", "terminations", "terminals"),
    "truncated": ("truncated", "truncateds", "truncation", "truncations", "timeouts"),
    "episode_id": ("episode_id", "eps_id", "episode", "trajectory_id", "traj_id"),
    "t": ("t", "timestep", "step"),
    "next_obs": ("next_obs", "new_obs", "next_observation", "next_observations"),
    "final_obs": ("final_obs", "final_observation"),
    "logp": ("logp", "action_logp", "log_prob"),
    "seed": ("seed",),
}
"""What can be mapped → column names it is found by, the first that is there."""

TREES: Final = frozenset({"obs", "action", "next_obs", "final_obs"})
_DONE: Final = ("done", "dones", "is_done", "terminal")


def leaf_names(space: Space, name: str) -> list[str]:
    """The flat columns of a space: `obs`, `obs_0`, `obs.camera_0`, in the space's order."""
    if isinstance(space, Dict):
        return [n for k, child in space.spaces.items() for n in leaf_names(child, f"{name}.{k}")]
    if isinstance(space, Tuple):
        return [n for i, child in enumerate(space.spaces) for n in leaf_names(child, f"{name}.{i}")]
    return [f"{name}_{i}" for i in range(prod(space.shape))] if space.shape else [name]


def flat_columns(arrays: Sequence[Array], space: Space, name: str) -> Tree:
    """Columns of single numbers as a tree of the space; the reverse of `leaf_names`.

    Raises:
        ImportDataError: there are more or fewer of them than the space has numbers.
    """
    wanted = len(leaf_names(space, name))
    if len(arrays) != wanted:
        raise ImportDataError(
            f"{name} is mapped to {len(arrays)} columns, and {space} has {wanted} numbers"
        )
    left = list(arrays)

    def build(part: Space) -> Tree:
        if isinstance(part, Dict):
            return {key: build(child) for key, child in part.spaces.items()}
        if isinstance(part, Tuple):
            return tuple(build(child) for child in part.spaces)
        if not part.shape:
            return left.pop(0)
        taken = [left.pop(0) for _ in range(prod(part.shape))]
        return np.stack(taken, axis=1).reshape(-1, *part.shape)

    return build(space)


def find_columns(
    there: Sequence[str],
    mapping: Mapping[str, tuple[str, ...]],
    spaces: Spaces | None,
    *,
    where: str,
) -> dict[str, tuple[str, ...]]:
    """What is in which columns of a table.

    Args:
        there: the table's columns.
        mapping: what the user says; an empty tuple leaves a name out.
        spaces: for the columns of a space's leaves, where known.
        where: the file, for messages.

    Raises:
        ImportDataError: a mapped column is not there, or a `done` does not say which end it is.
    """
    found: dict[str, tuple[str, ...]] = {}
    for name in DEFAULTS:
        if name in mapping:
            _require(mapping[name], there, name, where)
            columns = mapping[name]
        else:
            columns = _default(name, there, spaces)
        if columns:
            found[name] = columns
    done = [column for column in _DONE if column in there]
    if done and "terminated" not in found and "terminated" not in mapping:
        raise ImportDataError(
            f"{where} has a column {done[0]!r}, which does not say whether an episode terminated "
            f"or was cut by a time limit: --map terminated={done[0]} or --map "
            f"truncated={done[0]}, or --map terminated= to leave it out"
        )
    return found


def _require(columns: tuple[str, ...], there: Sequence[str], name: str, where: str) -> None:
    for column in columns:
        if column not in there:
            close = difflib.get_close_matches(column, there, n=1, cutoff=0.5)
            meant = f"; did you mean {close[0]}?" if close else ""
            raise ImportDataError(
                f"--map {name}={','.join(columns)}: {where} has no column {column!r}{meant} "
                f"Its columns are {', '.join(there)}."
            )


def _default(name: str, there: Sequence[str], spaces: Spaces | None) -> tuple[str, ...]:
    for column in DEFAULTS[name]:
        if column in there:
            return (column,)
        if name not in TREES:
            continue
        if spaces is not None:
            leaves = leaf_names(spaces.action if name == "action" else spaces.obs, column)
            if set(leaves) <= set(there):
                return tuple(leaves)
        numbered = _numbered(column, there)
        if numbered:
            return numbered
    return ()


def _numbered(prefix: str, there: Sequence[str]) -> tuple[str, ...]:
    """prefix_0, prefix_1, ... as far as they go."""
    pattern = re.compile(rf"{re.escape(prefix)}_\d+")
    count = sum(bool(pattern.fullmatch(column)) for column in there)
    names = tuple(f"{prefix}_{i}" for i in range(count))
    return names if count and set(names) <= set(there) else ()
