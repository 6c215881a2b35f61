"""Single checks of the data contract: structure, shapes, dtypes, values, lengths and order."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box, Space

from rl_ops.spaces import leaf_bounds
from rl_ops.tree import Tree, brief, tree_leaves, zip_spaces

Array = npt.NDArray[Any]

_NUMBER: Final = Box(-np.inf, np.inf, (), np.float64)


@dataclass
class Breach(Exception):  # noqa: N818 - becomes a Violation
    """A check that failed, and the first step at fault."""

    reason: str
    message: str
    index: int = 0


def fit(space: Space, tree: Tree, where: str) -> Tree:
    """The tree with the space's order, shapes and dtypes; no value changes but by rounding."""
    children = getattr(space, "spaces", None)
    if isinstance(children, tuple):
        if not isinstance(tree, tuple | list) or len(tree) != len(children):
            raise Breach("wrong_structure", f"{where} is not {len(children)} entries")
        pairs = enumerate(zip(children, tree, strict=True))
        return tuple(fit(child, part, f"{where}[{i}]") for i, (child, part) in pairs)
    if children is not None:
        if not isinstance(tree, dict) or tree.keys() != children.keys():
            got = sorted(tree) if isinstance(tree, dict) else type(tree).__name__
            expected = f"{where} has {got}, expected entries {sorted(children)}"
            raise Breach("wrong_structure", expected)
        return {k: fit(child, tree[k], f"{where}[{k!r}]") for k, child in children.items()}
    if isinstance(tree, dict | tuple):
        raise Breach("wrong_structure", f"{where} has entries, expected {brief(space)}")
    return _fit_leaf(space, np.asarray(tree), where)


def _fit_leaf(space: Space, values: Array, where: str) -> Array:
    dtype, shape = np.dtype(space.dtype), tuple(space.shape)
    if values.dtype.kind not in "biuf":
        raise Breach("wrong_dtype", f"{where} is {values.dtype}, expected {dtype}")
    if values.shape[1:] != shape:
        if values[:1].size != 1 or shape not in ((), (1,)):
            got = ", ".join(["T", *map(str, values.shape[1:])])
            expected = ", ".join(["T", *map(str, shape)])
            raise Breach("wrong_shape", f"{where} is [{got}], expected [{expected}]")
        values = values.reshape(len(values), *shape)
    if values.dtype == dtype:
        return values
    with np.errstate(all="ignore"):
        cast = values.astype(dtype)
    if dtype.kind == "f" and values.dtype.kind == "f":
        lost = np.isfinite(values) & ~np.isfinite(cast)
    else:
        # An unsigned 200 is an int8 -56 and back 200; the signs tell them apart.
        lost = (cast.astype(values.dtype) != values) | ((cast < 0) != (values < 0))
        lost |= ~np.isfinite(values)
    _refuse(lost, values, "wrong_dtype", f"{where} is no {dtype}")
    return cast


def check_values(space: Space, tree: Tree, where: str, *, bounds: bool) -> None:
    """Refuse what is not finite or, where wanted, outside the space."""
    for leaf_space, leaf in zip_spaces(space, tree):
        if leaf.dtype.kind == "f":
            _refuse(~np.isfinite(leaf), leaf, "not_finite", f"{where} is not finite")
        # Observations stray from a Box by rounding; an index that strays has no meaning.
        if bounds and (where == "action" or not isinstance(leaf_space, Box)):
            low, high = leaf_bounds(leaf_space)
            outside = (leaf < low) | (leaf > high)
            hint = " (--bounds ignore takes it)" if isinstance(leaf_space, Box) else ""
            what = f"{where} is outside {brief(leaf_space)}{hint}"
            _refuse(outside, leaf, "out_of_bounds", what)


def _refuse(bad: Array, values: Array, reason: str, what: str) -> None:
    if not bad.any():
        return
    rows = np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1))
    first = values[rows[0]].reshape(-1)[np.argmax(bad[rows[0]].reshape(-1))]
    count = f", in {len(rows)} rows of the episode" if len(rows) > 1 else ""
    raise Breach(reason, f"{what}: {first}{count}", int(rows[0]))


def fit_numbers(values: Any, name: str, breaches: list[Breach]) -> Array | None:
    """A column of plain numbers as float64; None, and a breach, where it is none."""
    try:
        array = _fit_leaf(_NUMBER, np.asarray(values), name)
        _refuse(~np.isfinite(array), array, "not_finite", f"{name} is not finite")
    except Breach as breach:
        breaches.append(breach)
        return None
    return array


def is_unknown(logp: Any) -> bool:
    """Whether no log-probability is known."""
    if logp is None:
        return True
    values = np.asarray(logp)
    return values.dtype.kind == "f" and bool(np.isnan(values).all())


def flags(values: Any, rows: int, name: str) -> npt.NDArray[np.bool_]:
    """A column of ends as bools."""
    if values is None:
        return np.zeros(rows, np.bool_)
    array = np.asarray(values).reshape(rows)
    if array.dtype.kind not in "biuf":
        raise Breach("wrong_dtype", f"{name} is {array.dtype}, expected true or false")
    _refuse((array != 0) & (array != 1), array, "wrong_dtype", f"{name} is neither true nor false")
    return array.astype(np.bool_)


def rows_of(columns: Mapping[str, Tree]) -> int:
    """The number of rows, which all columns that are there have in common."""
    lengths: dict[str, int] = {}
    for name, tree in columns.items():
        if tree is not None:
            found = {_length(leaf) for leaf in tree_leaves(tree)}
            lengths[name] = found.pop() if len(found) == 1 else -1
    if len(set(lengths.values())) != 1:
        text = ", ".join(f"{name} {'mixed' if n < 0 else n}" for name, n in lengths.items())
        raise Breach("lengths_differ", f"columns differ in length: {text}")
    rows = next(iter(lengths.values()))
    if rows <= 0:
        raise Breach("empty_episode", "the episode has no steps")
    return rows


def _length(values: Any) -> int:
    array = np.asarray(values)
    return len(array) if array.ndim else -1


def t_breaches(t: Any) -> Iterator[Breach]:
    """Times that do not count from 0."""
    if t is None:
        return
    values = np.asarray(t)
    wrong = np.flatnonzero(values != np.arange(len(values)))
    if wrong.size:
        index = int(wrong[0])
        what = f"t is {values[index]}, expected {index}: rows are missing, twice or not in order"
        hint = "; if t counts otherwise, leave it out: --map t=" if index == 0 else ""
        yield Breach("t_order", what + hint, index)


def next_breaches(obs: Tree, following: Tree) -> Iterator[Breach]:
    """Next observations that another row does not have."""
    pairs = zip(tree_leaves(obs), tree_leaves(following), strict=True)
    differ = [(now[1:] != before[:-1]) for now, before in pairs]
    rows = [part.any(axis=tuple(range(1, part.ndim))) for part in differ]
    wrong = np.flatnonzero(np.logical_or.reduce(rows))
    if wrong.size:
        what = "the next observation is not the next row's observation: a row is missing between"
        text = f"{what}, in {len(wrong)} places (--next-obs ignore takes the row's)"
        yield Breach("next_obs_differs", text, int(wrong[0]))
