"""Action connectors."""

import json

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Text, Tuple
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_ops.action_connectors import (
    ACTION_CONNECTORS,
    ActionConnectors,
    ClipAction,
    RescaleAction,
    ShiftDiscrete,
    default_action_connectors,
)
from rl_ops.errors import SpecError
from rl_ops.spaces import codec_for
from rl_ops.tree import tree_take

SHIFTED = Discrete(3, start=2)
BOUNDED = Box(-2, 6, (2,), np.float32)


@pytest.mark.parametrize(
    ("space", "squash", "steps"),
    [
        (Discrete(4), False, ()),
        (Discrete(4), True, ()),
        (SHIFTED, False, (ShiftDiscrete(),)),
        (Discrete(3, dtype=np.int32), False, (ShiftDiscrete(),)),
        (MultiDiscrete([2, 3], start=[0, 1]), False, (ShiftDiscrete(),)),
        (MultiBinary(3), False, ()),
        (BOUNDED, False, (ClipAction(),)),
        (BOUNDED, True, (RescaleAction(),)),
        (Box(-np.inf, np.inf, (2,)), False, (ClipAction(),)),
        (Tuple([SHIFTED, BOUNDED]), True, (ShiftDiscrete(), RescaleAction())),
        (Dict(a=Discrete(2), b=Tuple([BOUNDED])), False, (ClipAction(),)),
    ],
    ids=str,
)
def test_default_action_connectors(space, squash, steps):
    connectors = default_action_connectors(space, squash=squash)
    assert connectors.steps == steps
    assert connectors.is_identity is (steps == ())
    assert connectors.output_space is space


@pytest.mark.parametrize(
    ("space", "message"),
    [(Box(-np.inf, 1, (2,)), "infinite bounds"), (Text(3), "space is Text")],
    ids=str,
)
def test_default_action_connectors_refuse_what_cannot_be_squashed(space, message):
    with pytest.raises(SpecError, match=message):
        default_action_connectors(space, squash=True)


def test_clip_bounds_the_action_and_takes_the_spaces_dtype():
    space = Box(np.array([-1.0, 0.0]), np.array([1.0, np.inf]), dtype=np.float64)
    connectors = ActionConnectors((ClipAction(),), space)
    assert connectors.input_space == Box(-np.inf, np.inf, (2,), np.float32)
    out = connectors(np.array([[-3, -3], [0.5, 9]], np.float32))
    np.testing.assert_array_equal(out, [[-1, 0], [0.5, 9]])
    assert out.dtype == np.float64
    assert connectors.inverse(out).dtype == np.float32
    np.testing.assert_array_equal(connectors(connectors.inverse(out)), out)


def test_clip_bounds_integers_and_passes_flags():
    space = Tuple([Box(-2, 3, (1,), np.int8), Box(0, 1, (1,), np.bool_)])
    connectors = default_action_connectors(space, squash=False)
    action = (np.array([[-100], [9]], np.int8), np.array([[True], [False]]))
    codec_for(connectors.input_space).check(action, where="action")
    out = connectors(action)
    np.testing.assert_array_equal(out[0], [[-2], [3]])
    assert out[1] is action[1]


def test_rescale_reaches_both_bounds_exactly_and_no_further():
    space = Box(np.array([-0.1, 3.0, -3e38], np.float32), np.array([0.7, 3.0, 3e38], np.float32))
    connectors = ActionConnectors((RescaleAction(),), space)
    unit = np.array([[-1], [1], [-2], [2]], np.float32) * np.ones(3, np.float32)
    expected = [space.low, space.high, space.low, space.high]
    np.testing.assert_array_equal(connectors(unit), expected)
    np.testing.assert_allclose(connectors(np.zeros((1, 3), np.float32)), [[0.3, 3, 0]], rtol=1e-6)


@given(
    low=st.floats(-100, 100, width=32),
    width=st.floats(0.125, 100, width=32),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=60, deadline=None)
def test_rescale_and_its_inverse_undo_each_other(low, width, seed):
    space = Box(low, low + width, (3,), np.float64)
    connectors = ActionConnectors((RescaleAction(),), space)
    unit = np.random.default_rng(seed).uniform(-1, 1, (20, 3)).astype(np.float32)
    env = connectors(unit)
    codec_for(space).check(env, where="env action")
    back = connectors.inverse(env)
    codec_for(connectors.input_space).check(back, where="module action")
    np.testing.assert_allclose(back, unit, atol=1e-6)
    np.testing.assert_allclose(connectors(back), env, atol=1e-6 * width)


@pytest.mark.parametrize(
    "space",
    [
        Discrete(4, start=-2),
        Discrete(3, start=253, dtype=np.uint8),
        MultiDiscrete([[2, 3]], start=[[5, -1]], dtype=np.int16),
    ],
    ids=str,
)
def test_shift_and_its_inverse_undo_each_other(space):
    connectors = ActionConnectors((ShiftDiscrete(),), space)
    space.seed(0)
    env = np.stack([space.sample() for _ in range(20)]).astype(space.dtype)
    module = connectors.inverse(env)
    codec_for(connectors.input_space).check(module, where="module action")
    assert module.min() >= 0
    again = connectors(module)
    assert again.dtype == space.dtype
    np.testing.assert_array_equal(again, env)


def test_a_tree_of_actions_is_connected_leaf_by_leaf():
    space = Dict(a=SHIFTED, b=Tuple([BOUNDED, MultiBinary(2)]))
    connectors = default_action_connectors(space, squash=True)
    assert connectors.input_space["a"] == Discrete(3)
    assert connectors.input_space["b"][0] == Box(-1, 1, (2,), np.float32)
    action = {
        "a": np.array([0, 2]),
        "b": (np.array([[-1, 1], [0, 0.5]], np.float32), np.array([[0, 1], [1, 1]], np.int8)),
    }
    codec_for(connectors.input_space).check(action, where="action")
    out = connectors(action)
    codec_for(space).check(out, where="env action")
    np.testing.assert_array_equal(out["a"], [2, 4])
    np.testing.assert_array_equal(out["b"][0], [[-2, 6], [2, 4]])
    back = connectors.inverse(out)
    np.testing.assert_array_equal(back["a"], action["a"])
    np.testing.assert_allclose(back["b"][0], action["b"][0], atol=1e-6)
    np.testing.assert_array_equal(tree_take(back, 0)["b"][1], [0, 1])


@pytest.mark.parametrize(
    "connectors",
    [
        default_action_connectors(Discrete(3), squash=False),
        default_action_connectors(Tuple([SHIFTED, BOUNDED]), squash=True),
        ActionConnectors((ClipAction(),), Box(-np.inf, 1, (2,), np.float64)),
    ],
    ids=str,
)
def test_an_action_pipeline_comes_back_from_json(connectors):
    data = json.loads(json.dumps(connectors.to_json(), allow_nan=False))
    again = ActionConnectors.from_json(data)
    assert again == connectors
    assert again.input_space == connectors.input_space
    assert {step["kind"] for step in data["steps"]} <= set(ACTION_CONNECTORS)
