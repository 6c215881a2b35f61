"""Acts: how often each action comes, with which logp, on which schedule, and as JSON."""

import json
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from rl_ops import columns as c
from rl_ops.categorical import Categorical, MultiCategorical
from rl_ops.deterministic import Deterministic
from rl_ops.distributions import distribution_for
from rl_ops.errors import SpecError
from rl_ops.exploration import (
    Act,
    AddNoise,
    EpsilonGreedy,
    Greedy,
    Moment,
    RandomFirst,
    Sample,
    act_from_json,
    act_to_json,
)
from rl_ops.gaussian import Gaussian, SquashedGaussian

NO_CARRY = None
LADDER = EpsilonGreedy(0.4, ladder_alpha=7.0, num_envs=8)


def moment(act: Act, distribution: Any, rows: int, *, env_steps: int = 0, seed: int = 0) -> Moment:
    """A step of `rows` environments in the middle of their episodes."""
    noise = act.noise(distribution, np.random.default_rng(seed), rows)
    carry = act.start(distribution, rows)
    levels = act.levels(env_steps, np.arange(rows))
    return Moment(noise, levels, np.zeros(rows, bool), carry)


def shares(actions: np.ndarray, count: int) -> np.ndarray:
    return np.bincount(actions, minlength=count) / len(actions)


def assert_shares(actions: np.ndarray, expected: list[float]) -> None:
    """Frequencies within five deviations of what is expected of them."""
    p = np.array(expected)
    five = 5 * np.sqrt(p * (1 - p) / len(actions))
    assert (np.abs(shares(actions, len(p)) - p) <= five).all()


# --- epsilon-greedy ---


def test_the_ladder_is_the_papers_power_of_epsilon_over_all_environments_of_the_run() -> None:
    expected = [0.4 ** (1 + 7 * i / 7) for i in range(8)]
    first, second = (LADDER.levels(0, ids)[c.EPSILON] for ids in (np.arange(4), np.arange(4, 8)))
    np.testing.assert_allclose([*first, *second], expected, rtol=1e-6)
    assert first.dtype == np.float32
    # ids beyond N, as evaluation may have, go round
    np.testing.assert_array_equal(LADDER.levels(0, np.arange(8, 12))[c.EPSILON], first)


def test_without_a_ladder_and_alone_every_environment_has_the_schedules_epsilon() -> None:
    falling = EpsilonGreedy(((0, 1.0), (100, 0.5)))
    assert falling.levels(50, np.arange(3))[c.EPSILON].tolist() == [0.75] * 3
    assert falling.levels(1000, np.arange(3))[c.EPSILON].tolist() == [0.5] * 3
    alone = EpsilonGreedy(0.25, ladder_alpha=7.0, num_envs=1)
    assert alone.levels(0, np.arange(1))[c.EPSILON].tolist() == [0.25]


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0])
def test_epsilon_greedy_frequencies_are_the_probabilities_of_its_logp(epsilon: float) -> None:
    act, distribution, rows = EpsilonGreedy(epsilon), Categorical(4), 40_000
    q = np.tile(np.array([[0.1, 3.0, -2.0, 2.9]], np.float32), (rows, 1))
    now = moment(act, distribution, rows, seed=3)
    actions = act.choose(distribution, q, now)
    expected = [epsilon / 4 + (1 - epsilon) * (a == 1) for a in range(4)]
    assert_shares(actions, expected)
    logp = act.logp(distribution, q, actions, now.levels)
    np.testing.assert_allclose(np.exp(logp), np.array(expected)[actions], rtol=1e-5)
    assert (actions.dtype, logp.dtype) == (np.int64, np.float32)


@given(
    epsilons=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=4),
    q=st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=6),
)
def test_probabilities_of_all_actions_sum_to_one(epsilons: list[float], q: list[float]) -> None:
    act, count = EpsilonGreedy(0.5), len(q)
    levels = {c.EPSILON: np.array(epsilons, np.float32)}
    params = np.tile(np.array([q], np.float32), (len(epsilons), 1))
    total = sum(
        np.exp(act.logp(Categorical(count), params, np.full(len(epsilons), a), levels))
        for a in range(count)
    )
    np.testing.assert_allclose(total, 1.0, rtol=1e-5)


def test_an_action_that_epsilon_zero_never_takes_has_a_finite_tiny_probability() -> None:
    act, q = EpsilonGreedy(0.0), np.array([[1.0, 0.0]], np.float32)
    levels = act.levels(0, np.arange(1))
    assert act.logp(Categorical(2), q, np.array([0]), levels).tolist() == [0.0]
    assert -90 < act.logp(Categorical(2), q, np.array([1]), levels)[0] < -80


@given(count=st.integers(1, 2**20))
def test_the_largest_random_number_is_still_an_action(count: int) -> None:
    below_one = np.nextafter(np.float32(1), np.float32(0))
    noise = np.array([[0.0, 0.0], [0.0, below_one]], np.float32)
    q = np.zeros((2, count), np.float32)
    levels = {c.EPSILON: np.ones(2, np.float32)}
    now = Moment(noise, levels, np.zeros(2, bool), NO_CARRY)
    low, high = EpsilonGreedy(1.0).choose(Categorical(count), q, now)
    assert low == 0
    # of many actions float32 cannot tell the last ones apart
    assert count - 1 - count // 2**20 <= high <= count - 1


# --- noise on actions ---


def test_gaussian_noise_is_added_to_the_mode_and_clipped_to_the_bounds() -> None:
    act, distribution = AddNoise(0.5), Deterministic(2)
    params = np.arctanh(np.array([[0.2, -0.9], [0.0, 0.9]])).astype(np.float32)
    noise = np.array([[1.0, -1.0], [0.5, 0.1]], np.float32)
    now = Moment(noise, act.levels(0, np.arange(2)), np.ones(2, bool), act.start(distribution, 2))
    actions = act.choose(distribution, params, now)
    np.testing.assert_allclose(actions, [[0.7, -1.0], [0.25, 0.95]], rtol=1e-6)


def test_noise_follows_its_schedule_and_the_shape_of_actions() -> None:
    act, distribution = AddNoise(((0, 1.0), (10, 0.0))), Deterministic(4, shape=(2, 2))
    params = np.zeros((3, 4), np.float32)
    loud, silent = (moment(act, distribution, 3, env_steps=n) for n in (0, 10))
    actions = act.choose(distribution, params, loud)
    np.testing.assert_array_equal(actions, loud.noise.reshape(3, 2, 2).clip(-1, 1))
    assert not act.choose(distribution, params, silent).any()


def test_ornstein_uhlenbeck_noise_is_the_papers_recursion_and_begins_anew_with_episodes() -> None:
    scale, theta, dt, steps, envs = 0.3, 0.6, 0.25, 30, 3
    act = AddNoise(scale, process="ou", theta=theta, dt=dt)
    distribution, rng = Deterministic(2), np.random.default_rng(0)
    is_first = rng.random((steps, envs)) < 0.2
    e = rng.standard_normal((steps, envs, 2)).astype(np.float32)
    params = rng.standard_normal((steps, envs, 2)).astype(np.float32)
    levels, carry = act.levels(0, np.arange(envs)), act.start(distribution, envs)
    found = [
        act.choose(distribution, params[t], Moment(e[t], levels, is_first[t], carry))
        for t in range(steps)
    ]
    for env in range(envs):
        x = np.zeros(2)
        for t in range(steps):
            if is_first[t, env]:
                x = np.zeros(2)
            x = x - theta * x * dt + dt**0.5 * e[t, env]
            expected = np.clip(np.tanh(params[t, env]) + scale * x, -1, 1)
            np.testing.assert_allclose(found[t][env], expected, rtol=0, atol=1e-6)
    assert is_first[1:].any()
    assert not act.start(distribution, envs).any(), "each start has a carry of its own"


# --- random at first ---


def test_random_first_is_uniform_until_the_learner_has_consumed_its_steps() -> None:
    act = RandomFirst(100, AddNoise(0.1))
    ids = np.arange(2)
    assert act.columns == (c.EPSILON, c.NOISE_SCALE)
    for env_steps, epsilon in ((0, 1), (99, 1), (100, 0), (1000, 0)):
        levels = act.levels(env_steps, ids)
        assert levels[c.EPSILON].tolist() == [epsilon] * 2
        np.testing.assert_allclose(levels[c.NOISE_SCALE], 0.1)


def test_random_boxes_fill_their_bounds_whatever_the_network_says() -> None:
    act, rows = RandomFirst(1, Sample()), 20_000
    distribution = SquashedGaussian(2, shape=(1, 2))
    params = np.full((rows, 4), 7.0, np.float32)
    now = moment(act, distribution, rows)
    actions = act.choose(distribution, params, now)
    assert actions.shape == (rows, 1, 2)
    assert np.abs(actions).max() <= 1
    for x in actions.reshape(rows, 2).T:
        assert_shares(((x + 1) * 5).astype(int).clip(0, 9), [0.1] * 10)
    logp = act.logp(distribution, params, actions, now.levels)
    np.testing.assert_allclose(logp, -2 * np.log(2), rtol=1e-6)


def test_random_choices_are_even_and_their_logp_is_uniform() -> None:
    act, rows = RandomFirst(1, Sample()), 20_000
    one, several = Categorical(5), MultiCategorical((2, 3))
    for distribution, nvec in ((one, [5]), (several, [2, 3])):
        params = np.tile(np.arange(distribution.param_size, dtype=np.float32), (rows, 1))
        now = moment(act, distribution, rows)
        actions = act.choose(distribution, params, now)
        for x, n in zip(actions.reshape(rows, -1).T, nvec, strict=True):
            assert_shares(x, [1 / n] * n)
        logp = act.logp(distribution, params, actions, now.levels)
        np.testing.assert_allclose(logp, -np.log(nvec).sum(), rtol=1e-6)


@pytest.mark.parametrize("then", [Sample(), AddNoise(0.2), AddNoise(0.2, process="ou")])
def test_afterwards_it_is_the_other_act_with_that_acts_own_noise(then: Act) -> None:
    act, distribution, rows = RandomFirst(5, then), SquashedGaussian(2), 6
    params = np.random.default_rng(1).standard_normal((rows, 4)).astype(np.float32)
    late = moment(act, distribution, rows, env_steps=5)
    alone = late._replace(noise=late.noise[:, :2], carry=then.start(distribution, rows))
    found = act.choose(distribution, params, late)
    np.testing.assert_array_equal(found, then.choose(distribution, params, alone))
    assert act.has_logp == then.has_logp
    if act.has_logp:
        logp = act.logp(distribution, params, found, late.levels)
        np.testing.assert_array_equal(logp, then.logp(distribution, params, found, {}))


def test_a_fragment_without_rows_has_no_logp_and_no_error() -> None:
    act, distribution = RandomFirst(5, Sample()), Categorical(3)
    none, levels = np.zeros((0, 3), np.float32), {c.EPSILON: np.zeros(0, np.float32)}
    assert act.logp(distribution, none, np.zeros(0, np.int64), levels).shape == (0,)


# --- all acts ---

ACTS: dict[str, tuple[Act, Any]] = {
    "sample": (Sample(), Categorical(3)),
    "greedy": (Greedy(), Gaussian(2)),
    "epsilon": (EpsilonGreedy(((0, 1.0), (20_000, 0.05))), Categorical(3)),
    "ladder": (LADDER, Categorical(3)),
    "gaussian": (AddNoise(0.1), Deterministic(2)),
    "ou": (AddNoise(((0, 0.5), (9, 0.1)), process="ou", theta=0.3, dt=0.1), SquashedGaussian(2)),
    "random_sample": (RandomFirst(1000, Sample()), SquashedGaussian(2)),
    "random_noise": (RandomFirst(10, AddNoise(((0, 0.5), (9, 0.1)), dt=0.5)), Deterministic(2)),
}
in_each_act = pytest.mark.parametrize("name", list(ACTS))


@in_each_act
def test_an_act_survives_json(name: str) -> None:
    act, distribution = ACTS[name]
    act.check(distribution)
    again = act_from_json(json.loads(json.dumps(act_to_json(act), allow_nan=False)))
    assert again == act
    assert type(again) is type(act)


@in_each_act
def test_levels_are_the_columns_that_were_announced(name: str) -> None:
    act, _ = ACTS[name]
    levels = act.levels(7, np.arange(5))
    assert tuple(levels) == act.columns
    for level in levels.values():
        assert (level.shape, level.dtype) == ((5,), np.float32)


@pytest.mark.parametrize("name", ["sample", "greedy", "epsilon", "ladder", "gaussian", "ou"])
def test_noise_drawn_in_two_goes_is_the_noise_drawn_at_once(name: str) -> None:
    act, distribution = ACTS[name]
    whole = act.noise(distribution, np.random.default_rng(4), 12)
    rng = np.random.default_rng(4)
    parts = [act.noise(distribution, rng, n) for n in (5, 7)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert whole.dtype == np.float32


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"kind": "boltzmann"}, "kinds are sample, greedy, epsilon_greedy, add_noise, random_f"),
        ({}, "kinds are sample"),
        ({"kind": "epsilon_greedy", "epsilon": 0.1, "epsilno": 1}, "'epsilno'"),
        ({"kind": "add_noise"}, "missing .* 'scale'"),
        ({"kind": "random_first", "env_steps": 3, "then": {"kind": "?"}}, r"act \{'kind': '\?'\}"),
    ],
)
def test_json_of_no_act_is_refused_by_name(data: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        act_from_json(data)


@pytest.mark.parametrize(
    ("act", "space", "kind", "words"),
    [
        (EpsilonGreedy(0.1), spaces.Box(-1, 1, (2,)), {}, "one of some actions; the policy's are"),
        (EpsilonGreedy(0.1), spaces.MultiDiscrete([2, 3]), {}, "EpsilonGreedy chooses one"),
        (AddNoise(0.1), spaces.Discrete(3), {}, r"AddNoise needs actions in \[-1, 1\]"),
        (AddNoise(0.1), spaces.Box(-1, 1, (2,)), {}, "AddNoise needs actions"),
        (Sample(), spaces.Box(-1, 1, (2,)), {"deterministic": True}, "nothing to sample"),
        (Greedy(), spaces.Box(-1, 1, (2,)), {"deterministic": True}, "no logp; use AddNoise"),
        (RandomFirst(9, Sample()), spaces.Box(-1, 1, (2,)), {}, "no uniform action of Gaussian"),
        (RandomFirst(9, AddNoise(0.1)), spaces.Discrete(3), {}, "AddNoise needs actions"),
        (RandomFirst(9, EpsilonGreedy(0.1)), spaces.Discrete(3), {}, "an epsilon of its own"),
        (
            RandomFirst(9, RandomFirst(3, Sample())),
            spaces.Discrete(3),
            {},
            "an epsilon of its own; put it there",
        ),
    ],
)
def test_an_act_that_cannot_act_by_the_distribution_says_why(
    act: Act, space: Any, kind: dict[str, bool], words: str
) -> None:
    with pytest.raises(SpecError, match=words):
        act.check(distribution_for(space, **kind))


# --- the deterministic policy ---


def test_a_deterministic_policy_acts_by_tanh_and_has_no_density() -> None:
    distribution = Deterministic(4, shape=(2, 2))
    params = np.array([[0.0, 1.0, -1.0, 50.0]], np.float32)
    expected = np.tanh(params).reshape(1, 2, 2)
    np.testing.assert_allclose(distribution.mode(params), expected, rtol=1e-6)
    sampled = distribution.sample(params, distribution.noise(np.random.default_rng(0), 1))
    np.testing.assert_array_equal(sampled, distribution.mode(params))
    assert (distribution.param_size, distribution.noise_size) == (4, 0)
    for refused in (
        lambda: distribution.logp(params, sampled),
        lambda: distribution.entropy(params),
        lambda: distribution.logp_entropy(params, sampled),
        lambda: distribution.sample_logp(params, params),
        lambda: distribution.kl(params, params),
    ):
        with pytest.raises(ValueError, match="a deterministic policy has no"):
            refused()


def test_a_deterministic_policy_refuses_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"shape \(3,\) does not hold size 4"):
        Deterministic(4, shape=(3,))
    with pytest.raises(ValueError, match="params"):
        Deterministic(4).mode(np.zeros((2, 3), np.float32))
