"""Sums over blocks: draws against a cumulative sum, updates against a plain list."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_ops.sum_tree import SumTree

CPU = torch.device("cpu")
CAPACITIES = [1, 5, 64, 65, 2048, 2049, 5000, 140_000]
"""One level up to 2048, two up to 131 072, then three."""


@pytest.fixture(params=["numpy", "torch"], autouse=True)
def kernels(request, monkeypatch):
    """Every test runs with the CPU's kernels, and with those of any other device."""
    if request.param == "torch":
        init = SumTree.__init__

        def without_arrays(self, capacity, *, device):
            init(self, capacity, device=device)
            self._arrays = None

        monkeypatch.setattr(SumTree, "__init__", without_arrays)


def law(**strategies):
    return lambda test: settings(deadline=None, max_examples=50)(given(**strategies)(test))


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def make(values):
    tree = SumTree(len(values), device=CPU)
    tree.set(torch.arange(len(values)), torch.as_tensor(values))
    return tree


def everything(tree):
    return tree[torch.arange(tree.capacity)]


def sparse_values(rng, capacity):
    """Values of many magnitudes, a third of them 0, in runs and alone."""
    values = rng.random(capacity) * 10.0 ** rng.integers(-6, 4, capacity)
    values[rng.random(capacity) < 0.2] = 0.0
    low, high = np.sort(rng.integers(0, capacity + 1, 2))
    values[low : low + (high - low) // 3] = 0.0
    values[rng.integers(capacity)] = 1.0
    return values


def test_literal():
    tree = make(f64(1.0, 0.0, 2.0, 4.0))
    assert tree.total == 7.0
    assert tree.find(f64(0.0, 0.999, 1.0, 2.5, 3.0, 6.999)).tolist() == [0, 0, 2, 2, 3, 3]
    tree.set(torch.tensor([3, 0]), f64(0.0, 0.5))
    assert tree.total == 2.5
    assert tree[torch.tensor([0, 1, 2, 3])].tolist() == [0.5, 0.0, 2.0, 0.0]
    assert tree.find(f64(0.25, 0.5, 2.4)).tolist() == [0, 2, 2]


@pytest.mark.parametrize("capacity", CAPACITIES)
def test_find_is_a_search_in_the_cumulative_sum(capacity):
    rng = np.random.default_rng(capacity)
    values = rng.integers(0, 4, capacity).astype(float)  # whole numbers: sums are exact
    values[rng.integers(capacity)] = 3.0
    tree, cumulative = make(values), values.cumsum()
    assert tree.total == cumulative[-1]
    mass = np.concatenate([rng.random(500) * cumulative[-1], cumulative[:-1][:500], [0.0]])
    expected = cumulative.searchsorted(mass, "right")
    expected = np.minimum(expected, values.nonzero()[0].max())
    assert tree.find(torch.from_numpy(mass)).tolist() == expected.tolist()


@law(seed=st.integers(0, 2**32 - 1), capacity=st.sampled_from(CAPACITIES[:-1]))
def test_an_index_without_value_is_never_found(seed, capacity):
    rng = np.random.default_rng(seed)
    values = sparse_values(rng, capacity)
    tree, cumulative = make(values), values.cumsum()
    total = tree.total
    near = np.concatenate([cumulative, np.nextafter(cumulative, 0), np.nextafter(cumulative, 1e9)])
    edges = [0.0, -0.0, -1.0, total, np.nextafter(total, 0), 2 * total, 5e-324]
    found = tree.find(torch.from_numpy(np.concatenate([near, rng.random(50) * total, edges])))
    assert (values[found.numpy()] > 0).all()


@law(seed=st.integers(0, 2**32 - 1), capacity=st.sampled_from(CAPACITIES[:-1]))
def test_find_differs_from_a_cumulative_sum_by_rounding_only(seed, capacity):
    rng = np.random.default_rng(seed)
    values = sparse_values(rng, capacity)
    tree, cumulative = make(values), values.cumsum()
    mass = rng.random(100) * cumulative[-1]
    found = tree.find(torch.from_numpy(mass)).numpy()
    slack = 1e-12 * cumulative[-1]
    assert (cumulative[found] > mass - slack).all()
    assert (cumulative[found] - values[found] <= mass + slack).all()


def test_mass_at_the_total_gives_the_last_index_with_a_value():
    values = np.zeros(5000)
    values[[7, 3000]] = 0.1, 0.2
    tree = make(values)
    assert tree.find(f64(tree.total, np.inf, 0.0, -3.0)).tolist() == [3000, 3000, 7, 7]


def test_where_an_index_comes_twice_its_last_value_stays():
    tree = SumTree(5000, device=CPU)
    index = torch.tensor([70, 3, 70, 70, 3])
    tree.set(index, f64(1.0, 2.0, 3.0, 4.0, 5.0))
    assert tree[torch.tensor([70, 3])].tolist() == [4.0, 5.0]
    assert tree.total == 9.0
    tree.check_valid()


@law(
    seed=st.integers(0, 2**32 - 1),
    capacity=st.sampled_from(CAPACITIES[:-1]),
    sizes=st.lists(st.integers(0, 200), max_size=20),
)
def test_sums_after_any_updates_are_those_of_a_new_tree(seed, capacity, sizes):
    rng = np.random.default_rng(seed)
    tree, model = SumTree(capacity, device=CPU), np.zeros(capacity)
    for size in sizes:
        index = rng.integers(0, capacity, size)
        value = rng.random(size) * 10.0 ** rng.integers(-6, 6, size)
        tree.set(torch.from_numpy(index), torch.from_numpy(value))
        for i, v in zip(index, value, strict=True):
            model[i] = v
        tree.check_valid()
    assert everything(tree).tolist() == model.tolist()
    assert tree.total == make(model).total, "no drift, to the last bit"


def test_float32_values_are_kept_exactly():
    values = torch.rand(300, generator=torch.Generator().manual_seed(0))
    assert torch.equal(everything(make(values)), values.double())


@pytest.mark.parametrize("value", [-1.0, -1e-300, np.nan, np.inf])
def test_refuses_a_value_that_is_negative_or_not_finite(value):
    tree = make(f64(1.0, 2.0))
    with pytest.raises(ValueError, match="expected finite ones that are not negative"):
        tree.set(torch.tensor([0, 1]), f64(5.0, value))
    assert everything(tree).tolist() == [1.0, 2.0]
    assert tree.total == 3.0


@pytest.mark.parametrize("index", [-1, 5, 64])
def test_refuses_an_index_outside(index):
    with pytest.raises(ValueError, match="expected 0 to 4"):
        SumTree(5, device=CPU).set(torch.tensor([0, index]), f64(1.0, 1.0))


def test_refuses_shapes_that_disagree():
    with pytest.raises(ValueError, match=r"index has shape \(2,\), value \(1,\)"):
        SumTree(5, device=CPU).set(torch.tensor([0, 1]), f64(1.0))


def test_refuses_to_draw_where_there_is_nothing():
    tree = SumTree(5, device=CPU)
    assert tree.total == 0.0
    with pytest.raises(ValueError, match="all values are 0"):
        tree.find(f64(0.0))


def test_refuses_no_capacity():
    with pytest.raises(ValueError, match="at least 1 value, got 0"):
        SumTree(0, device=CPU)


def test_a_wrong_sum_or_value_is_noticed():
    def spoilt(level, place, value):
        tree = make(torch.ones(2100, dtype=torch.float64))
        tree.check_valid()
        tree._levels[level][place] = value
        return tree

    with pytest.raises(RuntimeError, match="node 3 of level 1 is 63.5, its children sum to 64.0"):
        spoilt(1, 3, 63.5).check_valid()
    with pytest.raises(RuntimeError, match=r"node 0 of level 1 is 64.0, its children sum to 65.0"):
        spoilt(0, 5, 2.0).check_valid()
    with pytest.raises(RuntimeError, match="node 50 of level 1 is 1.0"):
        spoilt(1, 50, 1.0).check_valid()
    with pytest.raises(RuntimeError, match="beyond the capacity of 2100"):
        spoilt(0, 2105, 1.0).check_valid()
    with pytest.raises(RuntimeError, match="negative, NaN or Inf"):
        spoilt(0, 5, np.nan).check_valid()
