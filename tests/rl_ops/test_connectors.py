"""Observation connectors."""

import json
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Text, Tuple
from gymnasium.spaces.utils import flatten, flatten_space
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_ops.connectors import (
    FlattenObs,
    FrameStackObs,
    GrayscaleObs,
    ObsConnectors,
    OneHotObs,
    ResizeObs,
    StatefulObsConnector,
    default_obs_connectors,
)
from rl_ops.errors import SpecError
from rl_ops.spaces import codec_for, flat_size
from rl_ops.tree import tree_leaves, tree_map, tree_map_spaces

RGB = Box(0, 255, (210, 160, 3), np.uint8)
MIXED = Dict(
    [
        ("z", Discrete(3, start=1)),
        ("a", Tuple([Box(-1, 1, (2, 2), np.float64), MultiBinary(2)])),
        ("m", MultiDiscrete([[2, 3], [1, 4]], start=[[0, 5], [1, 2]], dtype=np.uint8)),
        ("image", Box(0, 255, (2, 2, 3), np.uint8)),
    ]
)


def samples_of(space, rows, seed=0):
    space.seed(seed)
    samples = [space.sample() for _ in range(rows)]
    batch = tree_map(lambda *items: np.stack(items), *samples)
    return samples, tree_map_spaces(lambda leaf, x: x.astype(leaf.dtype), space, batch)


def apply(connector, space, batch):
    """The connector alone, its output checked against its output space."""
    pipeline = ObsConnectors((connector,), space)
    out = pipeline.step(batch, np.ones(len(next(tree_leaves(batch))), np.bool_), pipeline.start(1))
    codec_for(pipeline.output_space).check(out, where="out")
    return out


@pytest.mark.parametrize(
    "space",
    [
        MIXED,
        Discrete(4, start=-2),
        MultiDiscrete([2, 3]),
        MultiBinary((2, 2)),
        Box(-1, 1, (), np.float32),
        Box(-5, 5, (2, 2), np.int64),
        Tuple([Discrete(2), Dict(x=Discrete(3))]),
    ],
    ids=str,
)
def test_flatten_is_gymnasiums_flatten_row_by_row(space):
    samples, batch = samples_of(space, 5)
    out = apply(FlattenObs(), space, batch)
    expected = np.stack([flatten(space, sample) for sample in samples])
    np.testing.assert_allclose(out, expected, rtol=1e-6)
    assert out.dtype == np.float32
    assert out.shape == (5, flat_size(space))
    flat_space = FlattenObs().output_space(space)
    np.testing.assert_allclose(flat_space.low, flatten_space(space).low)
    np.testing.assert_allclose(flat_space.high, flatten_space(space).high)


@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning:gymnasium")
def test_flatten_accepts_bounds_above_float32():
    space = Box(-1e308, 1e308, (2,), np.float64)
    assert np.isposinf(FlattenObs().output_space(space).high).all()


def test_one_hot_turns_categories_only():
    space = Dict({"a": Discrete(3, start=1), "b": Box(0, 1, (2,))})
    batch = {"a": np.array([1, 3]), "b": np.zeros((2, 2), np.float32)}
    out = apply(OneHotObs(), space, batch)
    np.testing.assert_array_equal(out["a"], [[1, 0, 0], [0, 0, 1]])
    assert out["b"] is batch["b"]


@pytest.mark.parametrize("value", [0, 4, -1])
def test_a_category_outside_the_space_is_refused(value):
    with pytest.raises(SpecError, match=rf"got values from {min(1, value)} .*Discrete\(3, start=1"):
        OneHotObs()(np.array([1, value]), Discrete(3, start=1))


def test_gray_of_a_grey_is_itself_and_of_a_colour_its_rounded_luma():
    levels = np.arange(256, dtype=np.uint8)
    grey = np.broadcast_to(levels[None, None, :, None], (1, 1, 256, 3))
    space = Box(0, 255, (1, 256, 3), np.uint8)
    np.testing.assert_array_equal(apply(GrayscaleObs(), space, grey)[0, 0, :, 0], levels)
    rgb = np.random.default_rng(0).integers(0, 256, (4, 1, 256, 3), dtype=np.uint8)
    luma = rgb @ np.array([0.299, 0.587, 0.114])
    assert np.abs(apply(GrayscaleObs(), space, rgb)[..., 0] - luma).max() <= 0.51


def slow_area_average(image, height, width):
    """Mean over the exact rectangle each pixel covers, in fractions; halves round up."""
    rows, cols, channels = image.shape
    out = np.zeros((height, width, channels), np.uint8)

    def weights(i, old, new):
        low, high = Fraction(i * old, new), Fraction((i + 1) * old, new)
        pairs = ((j, min(high, j + 1) - max(low, j)) for j in range(old))
        return [(j, w) for j, w in pairs if w > 0]

    for i in range(height):
        for j in range(width):
            for c in range(channels):
                total = sum(
                    wy * wx * int(image[y, x, c])
                    for y, wy in weights(i, rows, height)
                    for x, wx in weights(j, cols, width)
                )
                mean = total / (Fraction(rows, height) * Fraction(cols, width))
                out[i, j, c] = int(mean + Fraction(1, 2))
    return out


@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    new=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    channels=st.integers(1, 3),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=40, deadline=None)
def test_resize_is_the_exact_area_average(size, new, channels, seed):
    images = np.random.default_rng(seed).integers(0, 256, (2, *size, channels), dtype=np.uint8)
    out = apply(ResizeObs(*new), Box(0, 255, images.shape[1:], np.uint8), images)
    for got, image in zip(out, images, strict=True):
        np.testing.assert_array_equal(got, slow_area_average(image, *new))


def test_resize_by_an_integer_factor_is_the_rounded_block_mean():
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 6), dtype=np.uint8)
    blocks = images.reshape(3, 4, 2, 2, 3).sum(axis=(2, 4), dtype=np.int64)
    out = apply(ResizeObs(4, 2), Box(0, 255, (8, 6), np.uint8), images)
    np.testing.assert_array_equal(out, (blocks + 3) // 6)


def test_resize_to_the_same_size_and_of_one_colour_change_nothing():
    images = np.random.default_rng(0).integers(0, 256, (1, 210, 160, 3), dtype=np.uint8)
    np.testing.assert_array_equal(apply(ResizeObs(210, 160), RGB, images), images)
    white = np.full((1, 210, 160, 3), 255, np.uint8)
    assert (apply(ResizeObs(84, 84), RGB, white) == 255).all()
    large = Box(0, 255, (4099, 4111), np.uint8)
    white = np.full((1, 4099, 4111), 255, np.uint8)
    assert (apply(ResizeObs(3, 2), large, white) == 255).all()


@pytest.mark.parametrize(
    ("steps", "shape"),
    [
        ((ResizeObs(84, 84),), (84, 84, 3)),
        ((GrayscaleObs(), ResizeObs(84, 84)), (84, 84, 1)),
        ((GrayscaleObs(), ResizeObs(84, 84), FrameStackObs(4)), (84, 84, 4)),
        ((ResizeObs(84, 84), FrameStackObs(4)), (84, 84, 12)),
    ],
    ids=str,
)
def test_atari_frames_become_what_rllib_users_expect(steps, shape):
    connectors = ObsConnectors(steps, RGB)
    assert connectors.output_space == Box(0, 255, shape, np.uint8)
    frames = np.random.default_rng(0).integers(0, 256, (2, *RGB.shape), dtype=np.uint8)
    out = connectors.step(frames, np.ones(2, np.bool_), connectors.start(2))
    codec_for(connectors.output_space).check(out, where="out")


@pytest.mark.parametrize(
    ("connector", "space", "message"),
    [
        (GrayscaleObs(), Box(0, 255, (8, 8, 4), np.uint8), r"no uint8 image \[H, W, 3\]"),
        (GrayscaleObs(), Box(0, 1, (8, 8, 3), np.float32), "no uint8 image"),
        (ResizeObs(4, 4), Box(0, 255, (8,), np.uint8), "no uint8 image"),
        (OneHotObs(), Box(0, 1, (8,)), "no Discrete"),
        (FrameStackObs(2), Discrete(3), "put OneHotObs or FlattenObs first"),
        (FlattenObs(), Dict(t=Text(3)), r"space\['t'\] is Text"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_connector_refuses_a_space_it_cannot_take_when_built(connector, space, message):
    with pytest.raises(SpecError, match=message):
        ObsConnectors((connector,), space)


def test_frames_stack_within_an_episode_and_start_anew_after_it():
    connectors = ObsConnectors((FrameStackObs(3),), Box(-99, 99, (1,), np.float32))
    state = connectors.start(2)
    rows = [
        # obs of env 0 and 1; first?; expected stacks, oldest first
        ([1, 10], [1, 1], [[1, 1, 1], [10, 10, 10]]),
        ([2, 11], [0, 0], [[1, 1, 2], [10, 10, 11]]),
        ([3, 20], [0, 1], [[1, 2, 3], [20, 20, 20]]),
        ([4, 21], [0, 0], [[2, 3, 4], [20, 20, 21]]),
        ([5, 22], [1, 0], [[5, 5, 5], [20, 21, 22]]),
    ]
    seen = []
    for obs, first, expected in rows:
        batch = np.array(obs, np.float32)[:, None]
        seen.append(connectors.step(batch, np.array(first, np.bool_), state))
        np.testing.assert_array_equal(seen[-1], expected)
    for out, (_, _, expected) in zip(seen, rows, strict=True):
        np.testing.assert_array_equal(out, expected, "a later step wrote into an earlier one")


@pytest.mark.parametrize(
    ("shape", "stacked"),
    [((), (3,)), ((2,), (6,)), ((4, 5), (4, 5, 3)), ((4, 5, 2), (4, 5, 6))],
    ids=str,
)
def test_frames_lie_along_the_last_axis_with_the_newest_last(shape, stacked):
    space = Box(0, 255, shape, np.uint8)
    connectors = ObsConnectors((FrameStackObs(3),), space)
    assert connectors.output_space == Box(0, 255, stacked, np.uint8)
    state, width = connectors.start(1), stacked[-1] // 3
    for value in (7, 8, 9):
        batch = np.full((1, *shape), value, np.uint8)
        out = connectors.step(batch, np.array([value == 7]), state)
    assert out.shape == (1, *stacked)
    for i, value in enumerate((7, 8, 9)):
        assert (out[..., i * width : (i + 1) * width] == value).all()


def test_frames_stack_in_every_leaf_of_a_tree():
    space = Dict(a=Box(0, 9, (2,), np.float32), b=Tuple([MultiBinary(2)]))
    connectors = ObsConnectors((FrameStackObs(2),), space)
    _, batch = samples_of(space, 3)
    out = connectors.step(batch, np.ones(3, np.bool_), connectors.start(3))
    codec_for(connectors.output_space).check(out, where="out")
    np.testing.assert_array_equal(out["b"][0], np.tile(batch["b"][0], 2))


@given(seed=st.integers(0, 2**32), num_envs=st.integers(1, 5), as_mask=st.booleans())
@settings(max_examples=40, deadline=None)
def test_peek_is_what_step_would_give_and_leaves_the_state(seed, num_envs, as_mask):
    rng = np.random.default_rng(seed)
    space = Box(0, 255, (6, 4, 3), np.uint8)
    connectors = ObsConnectors((GrayscaleObs(), ResizeObs(3, 2), FrameStackObs(3)), space)
    state = connectors.start(num_envs)

    def frames():
        return rng.integers(0, 256, (num_envs, *space.shape), dtype=np.uint8)

    for t in range(4):
        is_first = (rng.random(num_envs) < 0.3) | (t == 0)
        connectors.step(frames(), is_first, state)
        final, chosen = frames(), rng.random(num_envs) < 0.5
        rows = chosen if as_mask else np.flatnonzero(chosen)
        peeked = connectors.peek(final[chosen], state, rows)
        again = connectors.peek(final[chosen], state, rows)
        np.testing.assert_array_equal(peeked, again)
        copy = [memory if memory is None else memory.copy() for memory in state]
        stepped = connectors.step(final, np.zeros(num_envs, np.bool_), copy)
        np.testing.assert_array_equal(peeked, stepped[chosen])


def test_two_vector_environments_do_not_share_a_state():
    connectors = ObsConnectors((FrameStackObs(2),), Box(0, 9, (1,), np.float32))
    one, other = connectors.start(1), connectors.start(1)
    connectors.step(np.ones((1, 1), np.float32), np.array([True]), one)
    out = connectors.step(np.full((1, 1), 5, np.float32), np.array([True]), other)
    np.testing.assert_array_equal(out, [[5, 5]])
    np.testing.assert_array_equal(one[0], [[1, 1]])


@dataclass(frozen=True)
class Scale:
    factor: float

    def output_space(self, space):
        return Box(space.low * self.factor, space.high * self.factor, dtype=space.dtype.type)

    def __call__(self, obs, space):
        return (obs * self.factor).astype(space.dtype)


@dataclass(frozen=True)
class Delta:
    """What changed since the last observation; zeros on the first."""

    def output_space(self, space):
        return Box(-np.inf, np.inf, space.shape, np.float32)

    def start(self, num_envs, space):
        return np.zeros((num_envs, *space.shape), np.float32)

    def step(self, obs, is_first, memory):
        return np.where(is_first[:, None], 0, obs - memory), obs


def test_custom_connectors_fit_by_their_methods_alone():
    connectors = ObsConnectors((Scale(2.0), Delta()), Box(0, 9, (1,), np.float32))
    assert isinstance(Delta(), StatefulObsConnector)
    assert not isinstance(Scale(2.0), StatefulObsConnector)
    state = connectors.start(2)
    connectors.step(np.array([[1], [2]], np.float32), np.ones(2, np.bool_), state)
    final = np.array([[5]], np.float32)
    np.testing.assert_array_equal(connectors.peek(final, state, [1]), [[6]])
    out = connectors.step(np.array([[4], [4]], np.float32), np.array([False, True]), state)
    np.testing.assert_array_equal(out, [[6], [0]])


@pytest.mark.parametrize(
    "connectors",
    [
        ObsConnectors((GrayscaleObs(), ResizeObs(84, 84), FrameStackObs(4)), RGB),
        ObsConnectors((FlattenObs(),), MIXED),
        ObsConnectors((OneHotObs(), FlattenObs(), FrameStackObs(2)), Discrete(3, start=2)),
        ObsConnectors((), Box(-np.inf, 1, (2,))),
    ],
    ids=str,
)
def test_an_obs_pipeline_comes_back_from_json(connectors):
    data = json.loads(json.dumps(connectors.to_json(), allow_nan=False))
    again = ObsConnectors.from_json(data)
    assert again == connectors
    assert again.output_space == connectors.output_space
    assert again.to_json() == connectors.to_json()


def test_connectors_of_the_users_own_are_named_by_their_path():
    connectors = ObsConnectors((Scale(0.5), Delta()), Box(0, 9, (1,), np.float32))
    data = json.loads(json.dumps(connectors.to_json()))
    assert [step["kind"] for step in data["steps"]] == [f"{__name__}:Scale", f"{__name__}:Delta"]
    assert ObsConnectors.from_json(data) == connectors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": [{"kind": "os.system"}]}, "kind 'os.system' is unknown"),
        ({"steps": [{"kind": "os:system"}]}, "expected a frozen dataclass"),
        ({"steps": [{"kind": "nosuch:Kind"}]}, "no module 'nosuch'"),
        ({"steps": [{}]}, "kind None is unknown"),
        ({"steps": [{"kind": ["FlattenObs"]}]}, "is unknown"),
        ({"steps": [{"kind": "FrameStackObs", "num_frames": 0}]}, "cannot be made of"),
        ({"steps": [{"kind": "FrameStackObs", "num_frames": "2"}]}, "cannot be made of"),
        ({"steps": [{"kind": "ResizeObs", "size": 4}]}, "cannot be made of"),
        ({"steps": [{"kind": "OneHotObs"}]}, "no Discrete"),
        ({"steps": None}, "lacks its space or steps"),
        ({"space": {"kind": "Text"}}, "'Text' is unknown"),
    ],
    ids=str,
)
def test_json_that_is_no_pipeline_is_refused(change, message):
    good = ObsConnectors((), Box(0, 1, (2,))).to_json()
    with pytest.raises(SpecError, match=message):
        ObsConnectors.from_json(good | change)


@pytest.mark.parametrize(
    ("steps", "space"),
    [
        ((GrayscaleObs(), ResizeObs(84, 84), FrameStackObs(4)), RGB),
        ((FlattenObs(), FrameStackObs(2)), MIXED),
        ((OneHotObs(),), Discrete(3)),
    ],
    ids=str,
)
def test_no_rows_come_out_where_none_go_in(steps, space):
    connectors = ObsConnectors(steps, space)
    state, nobody = connectors.start(0), np.zeros(0, np.bool_)
    out = connectors.step(codec_for(space).empty(0), nobody, state)
    assert out.shape == (0, *connectors.output_space.shape)


@pytest.mark.parametrize(
    ("space", "steps"),
    [
        (Box(-1, 1, (4,), np.float32), ()),
        (Box(-1, 1, (17,), np.float64), ()),
        (RGB, ()),
        (Box(0, 255, (84, 84), np.uint8), ()),
        (Box(0, 1, (10, 10, 4), np.bool_), ()),
        (Discrete(16), (OneHotObs(),)),
        (MultiDiscrete([2, 3]), (FlattenObs(),)),
        (MultiBinary(3), (FlattenObs(),)),
        (Box(0, 255, (128,), np.uint8), (FlattenObs(),)),
        (Box(-1, 1, (), np.float32), (FlattenObs(),)),
        (Box(-1, 1, (5, 5), np.float32), (FlattenObs(),)),
        (MIXED, (FlattenObs(),)),
    ],
    ids=lambda value: str(value)[:50],
)
def test_default_obs_connectors(space, steps):
    connectors = default_obs_connectors(space)
    assert connectors.steps == steps
    assert connectors.is_identity is (steps == ())
    assert connectors.input_space is space
