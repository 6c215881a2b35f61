"""Resampling: which samples stay for certain, and that sums over the others stay on average."""

import numpy as np
import pytest
import torch

from rl_ops.resampling import resample

ROWS = {
    "even": [1.0] * 6,
    "one": [0.0, 0.0, 0.0, 0.0, 0.0, 1.0],
    "two": [0.0, 0.7, 0.0, 0.0, 0.3, 0.0],
    "three": [0.2, 0.0, 0.5, 0.0, 0.3, 0.0],
    "steep": [0.9, 0.05, 0.03, 0.01, 0.007, 0.003],
    "flat": [0.3, 0.25, 0.2, 0.1, 0.1, 0.05],
    "tiny": [1e-30, 1.0, 1e-20, 1e-38, 0.0, 1e-7],
}


def slow_keeping(weights, count):
    """p_i = min(w_i / c, 1) with sum p = M, c by bisection."""
    low, high = 0.0, sum(weights)
    for _ in range(200):
        c = (low + high) / 2
        if sum(min(w / c, 1.0) for w in weights) > count:
            low = c
        else:
            high = c
    return [min(w / high, 1.0) for w in weights]


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_each_is_kept_as_often_as_it_is_heavy_and_its_weight_is_right_on_average(name, count):
    weights, draws = ROWS[name], 4000
    offset = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws  # a grid: a quadrature
    given = torch.tensor(weights, dtype=torch.float64).repeat(draws, 1)
    which, kept = resample(given, count, offset)
    assert which.shape == kept.shape == (draws, count)
    mean, times = np.zeros(6), np.zeros(6)
    np.add.at(mean, which.numpy().ravel(), kept.numpy().ravel() / draws)
    np.add.at(times, which.numpy()[kept.numpy() > 0], 1 / draws)
    np.testing.assert_allclose(mean, weights, atol=2e-3 * max(weights))
    if sum(w > 0 for w in weights) > count:
        np.testing.assert_allclose(times, slow_keeping(weights, count), atol=2e-3)


@pytest.mark.parametrize("name", ROWS)
def test_heavy_ones_stay_as_they_are_and_none_stays_twice(name):
    weights = torch.tensor([ROWS[name]]).repeat(500, 1)
    which, kept = resample(weights, 3, torch.rand(500, generator=torch.Generator().manual_seed(0)))
    for row, weight in zip(which.tolist(), kept.tolist(), strict=True):
        used = [i for i, w in zip(row, weight, strict=True) if w > 0]
        assert len(set(used)) == len(used)
        for i, w in zip(row, weight, strict=True):
            assert w == 0 or w >= ROWS[name][i] * (1 - 1e-6)
    heavy = [i for i, p in enumerate(slow_keeping(ROWS[name], 3)) if p == 1.0 and ROWS[name][i] > 0]
    for i in heavy:
        assert (which == i).any(1).all()


def test_rows_do_not_touch_each_other():
    weights = torch.tensor([ROWS["steep"], ROWS["flat"]])
    offset = torch.tensor([0.25, 0.75])
    both = resample(weights, 2, offset)
    for b in range(2):
        alone = resample(weights[b : b + 1], 2, offset[b : b + 1])
        for one, many in zip(alone, both, strict=True):
            assert torch.equal(one[0], many[b])


def test_what_is_no_number_is_passed_on():
    which, kept = resample(torch.full((1, 5), torch.nan), 2, torch.tensor([0.5]))
    assert which.min() >= 0
    assert which.max() < 5
    assert kept.isnan().all()
