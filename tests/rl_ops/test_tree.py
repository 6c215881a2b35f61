"""Batch trees."""

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, Tuple

from rl_ops.errors import SpecError
from rl_ops.tree import space_leaves, space_map, tree_leaves, tree_map, tree_set, tree_take


def test_map_applies_to_every_leaf_and_keeps_the_structure():
    tree = {"a": np.arange(3), "b": (np.ones(3), {"c": np.zeros(3)})}
    doubled = tree_map(lambda x, y: x + y, tree, tree)
    assert list(doubled) == ["a", "b"]
    assert isinstance(doubled["b"], tuple)
    np.testing.assert_array_equal(doubled["a"], [0, 2, 4])
    assert len(list(tree_leaves(doubled))) == 3


def test_trees_of_different_structure_are_refused():
    with pytest.raises(ValueError, match=r"keys \['a'\] and \['a', 'b'\]"):
        tree_map(lambda x, _: x, {"a": 1}, {"a": 1, "b": 2})
    with pytest.raises(ValueError, match="shorter"):
        tree_map(lambda x, _: x, (1, 2), (1,))


def test_take_and_set_are_inverse_on_the_rows_they_name():
    tree = {"a": np.zeros((4, 2)), "b": (np.zeros(4, np.int64),)}
    rows = np.array([1, 3])
    values = {"a": np.ones((2, 2)), "b": (np.array([7, 8]),)}
    tree_set(tree, rows, values)
    np.testing.assert_array_equal(tree_take(tree, rows)["b"][0], [7, 8])
    np.testing.assert_array_equal(tree["a"][[0, 2]], np.zeros((2, 2)))


@pytest.mark.parametrize(
    "value",
    [np.ones((2, 1), np.uint8), np.ones((2, 4), np.float32), np.ones((2, 4), np.int64)],
    ids=["broadcast", "float_to_uint8", "int64_to_uint8"],
)
def test_set_refuses_what_numpy_would_broadcast_or_truncate(value):
    with pytest.raises(SpecError, match=r"for a place of uint8 \(2, 4\)"):
        tree_set(np.zeros((3, 4), np.uint8), slice(0, 2), value)


def test_space_map_keeps_an_order_that_is_not_sorted():
    space = Dict([("z", Discrete(2)), ("a", Tuple([Discrete(3), Box(0, 1, (2,))]))])
    mapped = space_map(lambda leaf: Discrete(9) if isinstance(leaf, Discrete) else leaf, space)
    assert list(mapped.spaces) == ["z", "a"]
    assert [str(leaf) for leaf in space_leaves(mapped)][:2] == ["Discrete(9)", "Discrete(9)"]
