"""Intervals: quantiles of tables, the bootstrap and the jackknife as loops, and coverage."""

import math

import numpy as np
import pytest

from offline.ope import estimators as est
from offline.ope.intervals import METHODS, bca, interval, percentile, student_t, t_quantile
from offline.ope.terms import Terms, draw_counts
from tests.offline.ope_kit import GAMMA, STEPS, Process, TableTarget, policy_of


@pytest.mark.parametrize(
    ("share", "degrees", "expected"),
    [
        (0.975, 1, 12.7062047362),
        (0.975, 2, 4.3026527297),
        (0.975, 4, 2.7764451052),
        (0.995, 9, 3.2498355416),
        (0.95, 30, 1.6972608866),
        (0.975, 1000, 1.9623390808),
        (0.025, 7, -2.3646242516),
        (0.975, 50_000, 1.9600114),
    ],
)
def test_t_has_the_quantiles_of_the_tables(share: float, degrees: int, expected: float) -> None:
    assert t_quantile(share, degrees) == pytest.approx(expected, abs=1e-6)


def test_students_interval_of_a_mean_is_the_textbooks() -> None:
    value = np.array([1.0, 2.0, 4.0, 9.0])
    half = 3.1824463053 * value.std(ddof=1) / 2
    assert student_t(Terms.mean(value), level=0.95) == pytest.approx((4.0 - half, 4.0 + half))


def ratio_terms(episodes: int = 12) -> Terms:
    rng = np.random.default_rng(3)
    weight = rng.exponential(size=(episodes, 3))
    return Terms(weight * rng.normal(1.0, 1.0, (episodes, 3)), weight)


def test_the_jackknife_leaves_one_episode_out() -> None:
    terms = ratio_terms()
    for e, found in enumerate(terms.left_out()):
        rest = Terms(np.delete(terms.numerator, e, 0), np.delete(terms.weight, e, 0))
        assert found == pytest.approx(rest.estimate)


def test_influence_is_the_slope_in_an_episodes_weight() -> None:
    terms, step = ratio_terms(), 1e-6
    for e, found in enumerate(terms.influence()):
        more = np.ones(terms.num_episodes)
        more[e] += step
        moved = Terms(terms.numerator * more[:, None], terms.weight * more[:, None]).estimate
        slope = (moved - terms.estimate) / step
        assert found == pytest.approx(terms.num_episodes * slope, abs=1e-4)
    assert terms.influence().sum() == pytest.approx(0.0, abs=1e-9)


def test_a_resample_is_the_estimate_on_the_episodes_drawn() -> None:
    terms = ratio_terms(5)
    counts = np.concatenate(list(draw_counts(np.random.default_rng(8), 5, 40)))
    assert (counts.sum(1) == 5).all()
    for drawn, found in zip(counts, terms.resampled(np.random.default_rng(8), 40), strict=True):
        index = np.repeat(np.arange(5), drawn.astype(int))
        assert found == pytest.approx(Terms(terms.numerator[index], terms.weight[index]).estimate)


def test_resamples_do_not_depend_on_how_many_are_drawn_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terms = ratio_terms(10)
    whole = terms.resampled(np.random.default_rng(1), 50)
    monkeypatch.setattr("offline.ope.terms._CHUNK", 30)
    assert terms.resampled(np.random.default_rng(1), 50) == pytest.approx(whole)


def test_bca_without_bias_or_skew_is_the_percentile_interval() -> None:
    replicates = np.arange(-500.0, 501.0)
    flat = bca(replicates, 0.0, np.array([-1.0, 0.0, 1.0]), level=0.9)
    assert flat == pytest.approx(percentile(replicates, level=0.9), abs=1e-6)


def test_bca_is_efrons_formula() -> None:
    rng = np.random.default_rng(0)
    terms = Terms.mean(rng.exponential(size=30))
    replicates = terms.resampled(rng, 4000)
    found = bca(replicates, terms.estimate, terms.left_out(), level=0.9)
    from statistics import NormalDist

    phi = NormalDist()
    z0 = phi.inv_cdf((replicates < terms.estimate).mean())
    away = terms.left_out().mean() - terms.left_out()
    a = (away**3).sum() / (6 * (away**2).sum() ** 1.5)
    for got, share in zip(found, (0.05, 0.95), strict=True):
        z = z0 + phi.inv_cdf(share)
        expected = np.quantile(replicates, phi.cdf(z0 + z / (1 - a * z)))
        assert got == pytest.approx(expected, rel=1e-9)
    # To the right of the percentile interval, as the mean of a right-skewed sample needs it.
    assert found.high > percentile(replicates, level=0.9).high


def test_one_episode_has_no_interval() -> None:
    with pytest.raises(ValueError, match="two episodes"):
        interval(Terms.mean(np.ones(1)), "t", rng=np.random.default_rng(0))


def test_without_any_weight_there_is_no_interval() -> None:
    terms = Terms(np.zeros((3, 1)), np.zeros((3, 1)))
    for method in METHODS:
        found = interval(terms, method, rng=np.random.default_rng(0), resamples=100)
        assert all(map(math.isnan, found)) or method == "t"


NAMES = ("is", "wis", "pdis", "cwpdis", "dr", "wdr")


def terms_of(name: str, process: Process, behavior, target, episodes: int, rng) -> Terms:
    """One estimator on fresh episodes; DR with a model that is wrong by a third."""
    data = process.episodes(behavior, episodes, rng)
    table = TableTarget(target)
    state, rows = data.obs.argmax(1), data.rows
    log_ratio = table.logp(table.policy[state], data.action) - data.columns["logp"]
    padded = [est.by_episode(x, data.episode) for x in (log_ratio, data.reward)]
    if name in ("dr", "wdr"):
        q, value = (x * 0.67 for x in process.values(target))
        following = np.append(value[state[1:]], 0.0)
        following = np.where(data.terminated, 0.0, following)
        model = (q[state, data.action], value[state], following)
        padded += [est.by_episode(x, data.episode) for x in model]
    of = {
        "is": est.importance_sampling,
        "wis": est.weighted_importance_sampling,
        "pdis": est.per_decision,
        "cwpdis": est.weighted_per_decision,
        "dr": est.doubly_robust,
        "wdr": est.weighted_doubly_robust,
    }
    assert rows == len(log_ratio)
    assert padded[0].shape[1] == STEPS
    return of[name](*padded, gamma=GAMMA)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NAMES)
def test_intervals_of_95_percent_cover_the_value_of_linear_algebra(name: str, method: str) -> None:
    process, behavior, target = Process.random(1), policy_of(2), policy_of(3)
    truth, rng = process.value(target), np.random.default_rng(4)
    covered = 0
    for _ in range(100):
        terms = terms_of(name, process, behavior, target, 200, rng)
        low, high = interval(terms, method, resamples=400, rng=rng)
        covered += low <= truth <= high
    # Binomial(100, 0.95) is in 88..100 but for 1 in 700.
    assert 88 <= covered <= 100


def test_an_interval_is_no_wider_than_it_has_to_be() -> None:
    process, behavior, target = Process.random(1), policy_of(2), policy_of(3)
    truth, rng = process.value(target), np.random.default_rng(5)
    hits = 0
    for _ in range(100):
        terms = terms_of("dr", process, behavior, target, 200, rng)
        low, high = interval(terms, "bca", level=0.5, resamples=400, rng=rng)
        hits += low <= truth <= high
    assert 34 <= hits <= 66  # 50 ± 3.3 deviations


def test_weighting_and_models_bring_the_error_down() -> None:
    process, behavior, target = Process.random(1), policy_of(2), policy_of(3, sharpness=2.0)
    truth = process.value(target)

    def error(name: str) -> float:
        rng = np.random.default_rng(6)
        found = [terms_of(name, process, behavior, target, 100, rng).estimate for _ in range(100)]
        return float(np.sqrt(np.mean((np.array(found) - truth) ** 2)))

    errors = {name: error(name) for name in NAMES}
    for better in ("wis", "cwpdis", "dr", "wdr"):
        assert errors[better] < 0.8 * errors["is"], errors
