"""Batch trees: an array [B, ...], a dict of trees or a tuple of trees, shaped like their space."""

import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from gymnasium.spaces import Dict, Space, Tuple

from rl_ops.errors import SpecError

# Any rather than the recursive union: whoever holds a tree knows its shape from the space, and
# narrowing at every access would check nothing that `Codec.check` does not.
Tree: TypeAlias = Any


def tree_map(fn: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
    """Apply `fn` leaf by leaf to trees of one structure.

    Raises:
        ValueError: the trees differ in keys or length.
    """
    if isinstance(tree, dict):
        for other in rest:
            if other.keys() != tree.keys():
                raise ValueError(f"trees differ: keys {sorted(tree)} and {sorted(other)}.")
        return {key: tree_map(fn, tree[key], *(other[key] for other in rest)) for key in tree}
    if isinstance(tree, tuple):
        return tuple(tree_map(fn, *children) for children in zip(tree, *rest, strict=True))
    return fn(tree, *rest)


def tree_leaves(tree: Tree) -> Iterator[Any]:
    """The leaves in the order of the tree's keys."""
    if isinstance(tree, dict):
        tree = tuple(tree.values())
    if isinstance(tree, tuple):
        for child in tree:
            yield from tree_leaves(child)
    else:
        yield tree


def tree_take(tree: Tree, index: Any) -> Tree:
    """`leaf[index]` of every leaf: a view or a copy as numpy has it."""
    return tree_map(lambda leaf: leaf[index], tree)


def tree_set(tree: Tree, index: Any, values: Tree) -> None:
    """`leaf[index] = value` in place, refusing what numpy would silently cast or broadcast.

    Raises:
        SpecError: a value has another shape, or a dtype that is not of the leaf's kind.
        ValueError: the trees differ in keys or length.
    """

    def assign(leaf: Any, value: Any) -> None:
        target_shape = leaf[index].shape
        if value.shape != target_shape or not np.can_cast(value.dtype, leaf.dtype, "same_kind"):
            raise SpecError(
                f"tree_set: got {value.dtype} {value.shape} for a place of "
                f"{leaf.dtype} {target_shape}."
            )
        leaf[index] = value

    tree_map(assign, tree, values)


def space_map(fn: Callable[[Space], Space], space: Space) -> Space:
    """Apply `fn` to the leaf spaces of a Dict or Tuple, or to the space itself."""
    if isinstance(space, Dict):
        # A list of pairs keeps the order; a mapping would be sorted.
        return Dict([(name, space_map(fn, child)) for name, child in space.spaces.items()])
    if isinstance(space, Tuple):
        return Tuple([space_map(fn, child) for child in space.spaces])
    return fn(space)


def space_leaves(space: Space) -> Iterator[Space]:
    """The leaf spaces, in the order of the space's fields."""
    if isinstance(space, Dict | Tuple):
        children = space.spaces.values() if isinstance(space, Dict) else space.spaces
        for child in children:
            yield from space_leaves(child)
    else:
        yield space


def zip_spaces(space: Space, tree: Tree) -> Iterator[tuple[Space, Any]]:
    """Each leaf space with its leaf, in the order of the space's fields."""
    if isinstance(space, Dict):
        for name, child in space.spaces.items():
            yield from zip_spaces(child, tree[name])
    elif isinstance(space, Tuple):
        for child, child_tree in zip(space.spaces, tree, strict=True):
            yield from zip_spaces(child, child_tree)
    else:
        yield space, tree


def tree_map_spaces(fn: Callable[[Space, Any], Any], space: Space, tree: Tree) -> Tree:
    """Apply `fn(leaf space, leaf)` leaf by leaf."""
    if isinstance(space, Dict):
        return {k: tree_map_spaces(fn, child, tree[k]) for k, child in space.spaces.items()}
    if isinstance(space, Tuple):
        pairs = zip(space.spaces, tree, strict=True)
        return tuple(tree_map_spaces(fn, child, leaf) for child, leaf in pairs)
    return fn(space, tree)


def brief(space: Space) -> str:
    """The space's repr, on one line and short enough for an error message."""
    return textwrap.shorten(repr(space), 120, placeholder=" ...")


def tree_concat(trees: Sequence[Tree]) -> Tree:
    """The rows of trees of one structure, one after the other."""
    return tree_map(lambda *leaves: np.concatenate(leaves), *trees)
