"""Curves over runs: interquartile means and intervals against their definition."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflows.reports.curves import Curve, band, bootstrap_iqm, iqm, numbers, thinned


def slow_iqm(values):
    """Agarwal et al. 2021: the mean of the middle half."""
    ordered = sorted(values)
    cut = math.floor(0.25 * len(ordered))
    middle = ordered[cut : len(ordered) - cut]
    return sum(middle) / len(middle)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=12))
def test_the_interquartile_mean_is_its_definition(values):
    assert float(iqm(np.asarray(values))) == pytest.approx(slow_iqm(values), abs=1e-9)


def test_an_outlying_seed_moves_it_no_further_than_its_rank():
    assert float(iqm(np.array([1.0, 2.0, 3.0, 4.0]))) == 2.5
    assert float(iqm(np.array([1.0, 2.0, 3.0, 4e6]))) == 2.5


def test_intervals_cover_at_about_their_level():
    rng = np.random.default_rng(0)
    truth, covered = 0.0, 0
    for repetition in range(300):
        values = rng.standard_normal((10, 1))
        low, high = bootstrap_iqm(values, seed=repetition, resamples=400)
        covered += int(low[0] <= truth <= high[0])
    # A percentile bootstrap of ten is a little narrow: 0.95 is never reached, 0.85 always.
    assert 0.85 <= covered / 300 <= 0.98


def test_a_resample_draws_whole_runs():
    # Two runs that cross: pointwise draws would reach 0 and 2 at once, whole ones cannot differ.
    values = np.array([[0.0, 2.0], [2.0, 0.0]])
    low, high = bootstrap_iqm(values)
    assert low.tolist() == [0.0, 0.0]
    assert high.tolist() == [2.0, 2.0]
    assert bootstrap_iqm(values[:1])[0].tolist() == [0.0, 2.0]


def test_a_band_is_where_every_run_has_values():
    one = Curve(np.array([0.0, 10.0]), np.array([0.0, 10.0]))
    other = Curve(np.array([5.0, 15.0, 20.0]), np.array([1.0, np.nan, 4.0]))
    found = band([one, other], points=6)
    assert found is not None
    assert (found.x[0], found.x[-1]) == (5.0, 10.0)
    # Between 5 and 20 the second goes from 1 to 4, past the point that has no number.
    assert found.y[-1] == pytest.approx((10.0 + 2.0) / 2)
    assert (found.low <= found.y).all()
    assert (found.y <= found.high).all()


def test_runs_without_a_common_x_have_no_band():
    one = Curve(np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    assert band([one, Curve(one.x + 5, one.y)]) is None
    assert band([one, Curve(one.x, one.y * np.nan)]) is None
    assert band([]) is None


def test_thinning_keeps_mean_and_range():
    curve = Curve(np.arange(10.0), np.array([0, 1, 2, 3, 4, np.nan, 6, 7, 8, 9.0]))
    found = thinned(curve, points=2)
    assert found.x.tolist() == [4.0, 9.0]
    assert found.y.tolist() == [2.0, 7.5]
    assert (found.low.tolist(), found.high.tolist()) == ([0.0, 6.0], [4.0, 9.0])
    assert thinned(curve, points=10).y is curve.y


def test_numbers_are_what_json_has():
    assert numbers(np.array([1.0, np.nan, np.inf, 1 / 3])) == [1.0, None, None, 0.33333]
