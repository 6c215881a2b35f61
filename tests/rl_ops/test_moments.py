"""Running moments and normalisation."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_ops.errors import SpecError
from rl_ops.moments import RunningMoments, normalize


def moments_of(items, shape):
    moments = RunningMoments(shape)
    moments.update(items)
    return moments


@given(
    sizes=st.lists(st.integers(0, 6), min_size=1, max_size=6),
    shape=st.sampled_from([(), (3,), (2, 2)]),
    offset=st.sampled_from([0.0, -5.0, 1e6]),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=80, deadline=None)
def test_merging_any_parts_gives_the_moments_of_the_whole(sizes, shape, offset, seed):
    rng = np.random.default_rng(seed)
    parts = [rng.normal(offset, 2.0, (size, *shape)) for size in sizes]
    whole = np.concatenate(parts)
    updated, merged = RunningMoments(shape), RunningMoments(shape)
    for part in parts:
        updated.update(part)
        merged.merge(moments_of(part, shape))
    for moments in (updated, merged):
        assert moments.count == len(whole)
        if len(whole):
            np.testing.assert_allclose(moments.mean, whole.mean(axis=0), rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(moments.variance, whole.var(axis=0), rtol=1e-7, atol=1e-12)


def test_a_large_offset_does_not_cancel_the_variance():
    items = (1e6 + np.random.default_rng(0).normal(0, 0.5, 10_000)).astype(np.float32)
    moments = RunningMoments()
    for part in np.array_split(items, 37):
        moments.update(part)
    np.testing.assert_allclose(moments.variance, items.astype(np.float64).var(), rtol=1e-9)


def test_before_the_first_item_normalising_changes_nothing():
    moments = RunningMoments((2,))
    moments.update(np.zeros((0, 2)))
    x = np.array([[1.0, -2.0]], np.float32)
    unchanged = normalize(x, mean=moments.mean, std=moments.std())
    np.testing.assert_array_equal(unchanged, x)


def test_leading_axes_are_all_items():
    batch = np.random.default_rng(0).normal(size=(5, 4, 3))
    together, flat = moments_of(batch, (3,)), moments_of(batch.reshape(20, 3), (3,))
    assert together.count == 20
    np.testing.assert_array_equal(together.m2, flat.m2)


def test_scalars_and_constants_have_a_finite_divisor():
    moments = moments_of([3.0, 3.0, 3.0], ())
    assert moments.mean.shape == ()
    assert moments.variance == 0.0
    np.testing.assert_allclose(normalize(np.float32([3.0]), mean=3.0, std=moments.std()), [0.0])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_items_that_are_not_finite_are_refused_and_leave_the_moments(value):
    moments = moments_of(np.ones((2, 2)), (2,))
    with pytest.raises(SpecError, match="NaN or Inf"):
        moments.update(np.array([[0.0, value]]))
    assert moments.count == 2
    np.testing.assert_array_equal(moments.mean, [1, 1])


@pytest.mark.parametrize("batch", [np.ones((4, 3)), np.ones(3), np.ones(())], ids=str)
def test_items_of_another_shape_are_refused(batch):
    with pytest.raises(SpecError, match=r"expected \[\.\.\., \(2,\)\]"):
        RunningMoments((2,)).update(batch)
    with pytest.raises(SpecError, match=r"got shape \(3,\), expected \(2,\)"):
        RunningMoments((2,)).merge(RunningMoments((3,)))


def test_state_is_a_copy_and_comes_back_bit_for_bit():
    moments = moments_of(np.random.default_rng(0).normal(size=(7, 3)), (3,))
    state = moments.state()
    again = RunningMoments.from_state(state)
    moments.update(np.ones((5, 3)))
    assert again.count == 7
    again.update(np.ones((5, 3)))
    for name, value in moments.state().items():
        assert value.dtype == np.float64
        assert value.tobytes() == again.state()[name].tobytes()
    assert state["count"] == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": np.ones(2)}, r"count \(2,\)"),
        ({"mean": np.ones(3)}, r"mean \(3,\), m2 \(2,\)"),
        ({"m2": np.array([-1.0, 0.0])}, "negative"),
        ({"count": np.array(-1.0)}, "negative"),
        ({"mean": np.array([np.nan, 0.0])}, "NaN"),
        ({"extra": np.ones(1)}, "got keys"),
    ],
    ids=str,
)
def test_a_state_nobody_can_have_is_refused(change, message):
    with pytest.raises(SpecError, match=message):
        RunningMoments.from_state(RunningMoments((2,)).state() | change)


@given(seed=st.integers(0, 2**32), clip=st.sampled_from([0.5, 10.0, np.inf]))
@settings(max_examples=40, deadline=None)
def test_numpy_and_torch_normalise_to_the_same_bits(seed, clip):
    rng = np.random.default_rng(seed)
    moments = moments_of(rng.normal(3, 2, (50, 7)), (7,))
    x = rng.normal(3, 4, (33, 7)).astype(np.float32)
    arrays = normalize(x, mean=moments.mean, std=moments.std(), clip=clip)
    tensors = normalize(torch.from_numpy(x), mean=moments.mean, std=moments.std(), clip=clip)
    assert arrays.dtype == np.float32
    assert arrays.tobytes() == tensors.numpy().tobytes()
    assert np.abs(arrays).max() <= clip


def test_normalising_is_the_formula():
    x = np.array([[1.0, 8.0], [5.0, -40.0]])
    got = normalize(x, mean=np.array([1.0, 2.0]), std=np.array([2.0, 3.0]), clip=4.0)
    np.testing.assert_allclose(got, [[0.0, 2.0], [2.0, -4.0]])


def test_integers_become_float32_in_both_libraries():
    x = np.array([[0, 255]], np.uint8)
    arrays = normalize(x, mean=np.float64(127.5), std=np.float64(73.6))
    tensors = normalize(torch.from_numpy(x), mean=np.float64(127.5), std=np.float64(73.6))
    assert arrays.dtype == np.float32
    assert tensors.dtype == torch.float32
    assert arrays.tobytes() == tensors.numpy().tobytes()


def test_gradients_pass_through_where_nothing_is_clipped():
    x = torch.tensor([1.0, 100.0], requires_grad=True)
    normalize(x, mean=0.0, std=2.0).sum().backward()
    np.testing.assert_allclose(x.grad, [0.5, 0.0])
