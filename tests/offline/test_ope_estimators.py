"""Estimators against the papers' formulas as loops, and against values worked out by hand."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offline.ope import estimators as est

GAMMA = 0.9
EPISODES = [
    # (pi/mu, reward, Q, V, next V) of each step
    [(2.0, 1.0, 0.5, 0.7, 0.4), (0.5, 2.0, 1.5, 0.4, 0.9), (1.5, -1.0, 0.2, 0.9, 0.0)],
    [(0.25, 3.0, 1.0, 1.1, 0.0)],
    [(1.0, 0.5, 0.3, 0.2, 0.6), (3.0, 4.0, 2.0, 0.6, 0.8)],
]


def padded(field: int) -> Any:
    episode = [e for e, steps in enumerate(EPISODES) for _ in steps]
    return est.by_episode(
        np.array([step[field] for steps in EPISODES for step in steps]), np.array(episode)
    )


RATIO, REWARD, Q, V, NEXT = (padded(i) for i in range(5))
LOG_RATIO = np.log(np.where(RATIO == 0, 1.0, RATIO))


def rho(episode: int, t: int) -> float:
    """rho_{0:t}; behind an episode's end its last."""
    return math.prod(step[0] for step in EPISODES[episode][: t + 1])


def returned(episode: int) -> float:
    return sum(GAMMA**t * step[1] for t, step in enumerate(EPISODES[episode]))


def test_steps_are_padded_with_zeros_behind_an_episodes_end() -> None:
    assert REWARD.tolist() == [[1.0, 2.0, -1.0], [3.0, 0.0, 0.0], [0.5, 4.0, 0.0]]


def test_importance_sampling_is_the_mean_of_weighted_returns() -> None:
    expected = sum(rho(e, 9) * returned(e) for e in range(3)) / 3
    found = est.importance_sampling(LOG_RATIO, REWARD, gamma=GAMMA).estimate
    assert found == pytest.approx(expected, abs=1e-12)
    # 1.5 * (1 + 1.8 - 0.81) + 0.25 * 3 + 3 * (0.5 + 3.6), over 3
    assert found == pytest.approx((1.5 * 1.99 + 0.75 + 12.3) / 3, abs=1e-6)


def test_weighted_importance_sampling_divides_by_the_weights() -> None:
    found = est.weighted_importance_sampling(LOG_RATIO, REWARD, gamma=GAMMA).estimate
    assert found == pytest.approx((1.5 * 1.99 + 0.75 + 12.3) / (1.5 + 0.25 + 3.0), abs=1e-6)


def test_per_decision_weights_a_reward_by_what_led_to_it() -> None:
    expected = np.mean(
        [
            sum(GAMMA**t * rho(e, t) * step[1] for t, step in enumerate(EPISODES[e]))
            for e in range(3)
        ]
    )
    found = est.per_decision(LOG_RATIO, REWARD, gamma=GAMMA).estimate
    assert found == pytest.approx(expected, abs=1e-12)
    # (2 + 0.9 * 1 * 2 - 0.81 * 1.5) + 0.75 + (0.5 + 0.9 * 3 * 4), over 3
    assert found == pytest.approx((2.585 + 0.75 + 11.3) / 3, abs=1e-6)


def test_weighted_per_decision_divides_by_the_weights_of_each_step() -> None:
    expected = 0.0
    for t in range(3):
        weights = [rho(e, t) for e in range(3)]  # an episode that ended keeps its last
        rewards = [EPISODES[e][t][1] if t < len(EPISODES[e]) else 0.0 for e in range(3)]
        expected += GAMMA**t * np.dot(weights, rewards) / sum(weights)
    found = est.weighted_per_decision(LOG_RATIO, REWARD, gamma=GAMMA).estimate
    assert found == pytest.approx(expected, abs=1e-12)
    by_hand = 3.25 / 3.25 + 0.9 * 14 / 4.25 - 0.81 * 1.5 / 4.75
    assert found == pytest.approx(by_hand, abs=1e-6)


def test_doubly_robust_is_the_papers_recursion() -> None:
    values = []
    for steps in EPISODES:
        later = 0.0
        if steps[-1][4] != 0.0:  # truncated: begins with V of the final observation
            later = steps[-1][4]
        for ratio, reward, q, v, _ in reversed(steps):
            later = v + ratio * (reward + GAMMA * later - q)
        values.append(later)
    found = est.doubly_robust(LOG_RATIO, REWARD, Q, V, NEXT, gamma=GAMMA)
    assert found.numerator[:, 0] == pytest.approx(values, abs=1e-12)
    assert found.estimate == pytest.approx(np.mean(values), abs=1e-6)


def test_weighted_doubly_robust_is_the_papers_sum() -> None:
    def weight(e: int, t: int) -> float:
        return 1 / 3 if t < 0 else rho(e, t) / sum(rho(other, t) for other in range(3))

    expected = 0.0
    for e, steps in enumerate(EPISODES):
        for t, (_, reward, q, v, _) in enumerate(steps):
            expected += GAMMA**t * weight(e, t) * reward
            expected -= GAMMA**t * (weight(e, t) * q - weight(e, t - 1) * v)
        # The value behind a truncation is the absorbing state's one reward.
        expected += GAMMA ** len(steps) * weight(e, len(steps) - 1) * steps[-1][4]
    found = est.weighted_doubly_robust(LOG_RATIO, REWARD, Q, V, NEXT, gamma=GAMMA).estimate
    assert found == pytest.approx(expected, abs=1e-6)


def test_the_direct_method_is_the_mean_of_first_values() -> None:
    assert est.direct_method(V[:, 0]).estimate == pytest.approx((0.7 + 1.1 + 0.2) / 3)


def test_a_truncation_bootstraps_and_a_termination_does_not() -> None:
    reward, zero = np.ones((1, 1)), np.zeros((1, 1))
    q, v = np.full((1, 1), 4.0), np.full((1, 1), 4.0)
    for of in (est.doubly_robust, est.weighted_doubly_robust):
        ended = of(zero, reward, q, v, zero, gamma=0.5).estimate
        cut = of(zero, reward, q, v, np.full((1, 1), 6.0), gamma=0.5).estimate
        assert (ended, cut) == (1.0, 1.0 + 0.5 * 6.0)


def test_equal_policies_give_the_mean_return_by_every_weighting() -> None:
    same = np.zeros_like(REWARD)
    expected = est.mean_return(REWARD, gamma=GAMMA).estimate
    assert expected == pytest.approx(np.mean([returned(e) for e in range(3)]))
    for of in (
        est.importance_sampling,
        est.weighted_importance_sampling,
        est.per_decision,
        est.weighted_per_decision,
    ):
        assert of(same, REWARD, gamma=GAMMA).estimate == pytest.approx(expected)


@given(st.floats(-900, 900))
def test_self_normalised_weights_survive_any_common_factor(shift: float) -> None:
    moved = LOG_RATIO.copy()
    moved[:, 0] += shift
    for of in (est.weighted_importance_sampling, est.weighted_per_decision):
        here, there = (of(x, REWARD, gamma=GAMMA).estimate for x in (LOG_RATIO, moved))
        assert there == pytest.approx(here, rel=1e-9)
    here, there = (
        est.weighted_doubly_robust(x, REWARD, Q, V, NEXT, gamma=GAMMA).estimate
        for x in (LOG_RATIO, moved)
    )
    assert there == pytest.approx(here, rel=1e-9)


def test_weights_too_large_for_a_number_stay_finite() -> None:
    huge = np.full((2, 3), 500.0)
    assert math.isfinite(est.importance_sampling(huge, REWARD[:2], gamma=GAMMA).estimate)


def test_an_action_that_the_target_never_takes_has_no_weight() -> None:
    never = LOG_RATIO.copy()
    never[0, 1] = -np.inf
    found = est.weighted_importance_sampling(never, REWARD, gamma=GAMMA).estimate
    assert found == pytest.approx((0.75 + 12.3) / 3.25)
    never[:, 0] = -np.inf
    assert math.isnan(est.weighted_importance_sampling(never, REWARD, gamma=GAMMA).estimate)
    assert est.importance_sampling(never, REWARD, gamma=GAMMA).estimate == 0.0


def test_a_bound_of_weights_is_off_unless_asked_for() -> None:
    found = est.importance_sampling(LOG_RATIO, REWARD, gamma=GAMMA, max_weight=1.0).estimate
    assert found == pytest.approx((1.99 + 0.75 + 4.1) / 3)
    with pytest.raises(ValueError, match="max_weight is 0"):
        est.log_weights(LOG_RATIO, max_weight=0.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_behaviour_that_could_not_have_acted_so_is_an_error(bad: float) -> None:
    with pytest.raises(ValueError, match="NaN"):
        est.log_weights(np.array([[bad]]))


def test_effective_sample_size_counts_equal_weights() -> None:
    ess = est.effective_sample_size
    assert ess(np.full(7, -300.0)) == pytest.approx(7)
    assert ess(np.log([1.0, 1.0, 2.0])) == pytest.approx(16 / 6)
    assert ess(np.array([0.0, -800.0, -800.0])) == pytest.approx(1)
    assert ess(np.full(3, -np.inf)) == 0
    assert ess(np.log([[1.0, 1.0], [1.0, 3.0]])) == pytest.approx([2.0, 1.6])
