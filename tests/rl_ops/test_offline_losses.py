"""Losses of learning from logged actions, against the papers' formulas row by row.

Legend: B rows.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rl_ops.offline_losses import (
    advantage_weight,
    expectile_loss,
    moving_square,
    normalized_advantage_weight,
    scaled_advantage_weight,
)

ROWS = 7


def normal(*size, seed=0, scale=1.0):
    return scale * torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def assert_close(found, expected):
    torch.testing.assert_close(found, torch.as_tensor(expected), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("expectile", [0.1, 0.5, 0.9])
def test_expectile_loss_weighs_the_signs_apart(expectile):
    u_B = normal(ROWS)
    slow = [abs(expectile - (u < 0)) * u * u for u in u_B.tolist()]
    assert_close(expectile_loss(u_B, expectile=expectile), slow)


@pytest.mark.parametrize("expectile", [0.3, 0.5, 0.8])
def test_the_expectile_losss_minimiser_is_the_expectile(expectile):
    # where the weighted deviations to both sides balance: Newey & Powell 1987
    x_B = normal(501)
    fit = torch.zeros(1, requires_grad=True)
    for _ in range(300):
        (grad,) = torch.autograd.grad(expectile_loss(x_B - fit, expectile=expectile).mean(), fit)
        fit = (fit - 0.5 * grad).detach().requires_grad_(True)
    above, below = (x_B - fit).clamp(min=0).sum(), (fit - x_B).clamp(min=0).sum()
    assert float(expectile * above) == pytest.approx(float((1 - expectile) * below), rel=1e-4)


def test_an_expectile_outside_its_range_is_refused():
    with pytest.raises(ValueError, match="between 0 and 1, got 1"):
        expectile_loss(normal(ROWS), expectile=1.0)


@pytest.mark.parametrize(("temperature", "limit"), [(3.0, 100.0), (0.0, 100.0), (10.0, math.inf)])
def test_advantage_weights_are_limited_exponentials(temperature, limit):
    a_B = normal(ROWS)
    slow = [min(math.exp(temperature * a), limit) for a in a_B.tolist()]
    assert_close(advantage_weight(a_B, temperature=temperature, max_weight=limit), slow)
    huge = advantage_weight(torch.tensor([1e4]), temperature=3.0, max_weight=100.0)
    assert_close(huge, [100.0])


@pytest.mark.parametrize("temperature", [0.0, 0.3, 2.0])
def test_normalized_weights_divide_by_their_weighted_mean(temperature):
    a_B, u_B = normal(ROWS), torch.linspace(0.1, 1.0, ROWS)
    exps = [math.exp(temperature * a) for a in a_B.tolist()]
    z = sum(u * e for u, e in zip(u_B.tolist(), exps, strict=True)) / float(u_B.sum())
    found = normalized_advantage_weight(a_B, temperature=temperature, is_weight=u_B)
    assert_close(found, [e / z for e in exps])
    plain = normalized_advantage_weight(a_B, temperature=temperature)
    assert_close(plain, [e / (sum(exps) / ROWS) for e in exps])
    even = normalized_advantage_weight(a_B, temperature=temperature, is_weight=torch.ones(ROWS))
    assert_close(plain, even)


@given(
    advantage=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=8),
    shift=st.floats(-1e3, 1e3, width=32),
    temperature=st.floats(0, 10),
)
def test_normalized_weights_have_mean_one_and_stay_finite(advantage, shift, temperature):
    a_B = torch.tensor(advantage, dtype=torch.float64)
    u_B = torch.linspace(0.5, 1.0, len(a_B), dtype=torch.float64)
    found = normalized_advantage_weight(a_B, temperature=temperature, is_weight=u_B)
    assert float((u_B * found).sum() / u_B.sum()) == pytest.approx(1.0)
    shifted = normalized_advantage_weight(a_B + shift, temperature=temperature, is_weight=u_B)
    torch.testing.assert_close(found, shifted, rtol=1e-5, atol=1e-5)


def test_weights_of_other_rows_are_refused():
    with pytest.raises(ValueError, match="is_weight has shape"):
        normalized_advantage_weight(normal(3), temperature=1.0, is_weight=torch.ones(3, 1))


def test_marwils_scale_moves_by_its_rate_and_its_root_divides():
    a_B, average, rate = normal(ROWS, scale=5.0), torch.tensor(100.0), 0.25
    mean = sum(a * a for a in a_B.tolist()) / ROWS
    moved = moving_square(average, a_B, rate=rate)
    assert_close(moved, 100.0 + rate * (mean - 100.0))
    assert_close(moving_square(average, a_B, rate=0.0), 100.0)
    slow = [math.exp(1.7 * a / math.sqrt(float(moved))) for a in a_B.tolist()]
    assert_close(scaled_advantage_weight(a_B, moved, beta=1.7), slow)
    assert_close(scaled_advantage_weight(a_B, moved, beta=0.0), [1.0] * ROWS)


def test_no_weight_has_a_gradient():
    a_B = normal(ROWS).requires_grad_(True)
    average = torch.tensor(4.0)
    found = (
        advantage_weight(a_B, temperature=1.0),
        normalized_advantage_weight(a_B, temperature=1.0),
        moving_square(average, a_B, rate=0.5),
        scaled_advantage_weight(a_B, average, beta=1.0),
    )
    assert not any(x.requires_grad for x in found)
