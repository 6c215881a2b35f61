"""Rows of rollouts, literally: what is a transition, where values bootstrap, whose episode."""

import dataclasses
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from rl_ops import columns as c
from rl_ops.connectors import FlattenObs, FrameStackObs
from rl_ops.envs import EnvSpec
from rl_ops.errors import SpecError
from rl_ops.exploration import Act, AddNoise, EpsilonGreedy, Greedy, RandomFirst, Sample
from rl_ops.model_spec import QSpec
from rl_ops.models import build_model
from rl_ops.policy import PolicySpec, Weights
from rl_ops.rollout import Rollout, RolloutSpec
from rl_ops.spaces import codec_for
from tests.envs import SEEN
from tests.rollout_kit import (
    by_env,
    column,
    env_spec,
    fragments,
    linear_weights,
    make_rollout,
    policy_spec,
    random_weights,
    timeless,
)

V = (100.0, 1.0)
"""V(obs) = 100 episode + t + 0.5, of observations (episode, t)."""

MODES: dict[str, dict[str, Any]] = {
    "sync": {"name": "count", "vectorization": "sync"},
    "async": {"name": "count", "vectorization": "async"},
    "native_next_step": {"name": "tests.envs:tests/Count-v0"},
    "native_next_step_noisy": {"name": "tests.envs:tests/Count-v0", "noisy_reset": True},
    "native_same_step": {"name": "tests.envs:tests/Count-v0", "same_step": True},
}
SHORT = {"lengths": (2, 3, 1), "ends": ("terminated", "truncated")}


def spec_of(mode: str, **kwargs: Any) -> EnvSpec:
    return env_spec(**MODES[mode], **{**SHORT, **kwargs})


def test_rows_of_two_fragments_literally() -> None:
    rollout = make_rollout(env_spec("count", **SHORT), steps=4, value=V, run_id="r")
    first, second = fragments(rollout, 2)
    nan = None
    expected = {
        c.OBS: [[0, 0], [0, 1], [1, 0], [1, 1]],
        c.REWARD: [0, 1, 0, 1],
        c.TERMINATED: [False, True, False, False],
        c.TRUNCATED: [False] * 4,
        c.IS_LAST: [False, True, False, True],
        c.ABORTED: [False] * 4,
        c.VALUE: [0.5, 1.5, 100.5, 101.5],
        # terminated bootstraps nothing; the end of the fragment from the row after it
        c.FINAL_VALUE: [0, 0, 0, 102.5],
        c.EPISODE_ID: ["r/00000.0/0000000"] * 2 + ["r/00000.0/0000001"] * 2,
        c.T: [0, 1, 0, 1],
        c.ENV_ID: [0] * 4,
        c.EPISODE_RETURN: [nan, 1, nan, nan],
        c.EPISODE_LENGTH: [nan, 2, nan, nan],
        c.FRAGMENT_ID: [0] * 4,
        c.POLICY_VERSION: [0] * 4,
        c.WORKER_ID: [0] * 4,
    }
    assert {name: column(first, name) for name in expected} == expected
    expected = {
        c.OBS: [[1, 2], [2, 0], [3, 0], [3, 1]],
        c.REWARD: [2, 0, 0, 1],
        c.TERMINATED: [False, True, False, False],
        c.TRUNCATED: [True, False, False, True],
        c.IS_LAST: [True, True, False, True],
        c.VALUE: [102.5, 200.5, 300.5, 301.5],
        # truncated bootstraps from its own final observation, not from the next episode's first
        c.FINAL_VALUE: [103.5, 0, 0, 302.5],
        c.EPISODE_ID: [f"r/00000.0/000000{k}" for k in (1, 2, 3, 3)],
        c.T: [2, 0, 0, 1],
        # the return and length of an episode that began in the fragment before
        c.EPISODE_RETURN: [3, 0, nan, 1],
        c.EPISODE_LENGTH: [3, 1, nan, 2],
        c.FRAGMENT_ID: [1] * 4,
    }
    assert {name: column(second, name) for name in expected} == expected


def test_a_table_carries_the_columns_that_the_plan_was_told() -> None:
    for extra in ({}, {"keep": frozenset({c.OBS, c.FINAL_OBS})}, {"normalize_reward": True}):
        rollout = make_rollout(env_spec("count"), **extra)
        assert tuple(fragments(rollout)[0].column_names) == rollout.spec.adds


def test_rows_are_env_major_and_ids_name_worker_and_environment() -> None:
    rollout = make_rollout(
        env_spec("count", lengths=(2,)), num_envs=2, steps=3, worker_id=3, incarnation=4, run_id="x"
    )
    table = fragments(rollout)[0]
    assert column(table, c.ENV_ID) == [6, 6, 6, 7, 7, 7]
    assert column(table, c.T) == [0, 1, 0, 0, 1, 0]
    assert column(table, c.WORKER_ID) == [3] * 6
    names = ["x/00006.4/0000000", "x/00006.4/0000001", "x/00007.4/0000000", "x/00007.4/0000001"]
    assert column(table, c.EPISODE_ID) == [names[i] for i in (0, 0, 1, 2, 2, 3)]


ROW = [c.OBS, c.REWARD, c.TERMINATED, c.TRUNCATED, c.T, c.EPISODE_RETURN, c.EPISODE_LENGTH]


@pytest.mark.parametrize("mode", list(MODES))
def test_every_autoreset_mode_gives_the_same_transitions(mode: str) -> None:
    tables = fragments(make_rollout(spec_of(mode), num_envs=2, steps=6, value=V), 3)
    expected = []
    for episode in range(10):
        length = (2, 3, 1)[episode % 3]
        for t in range(length):
            last = t == length - 1
            ends = (last and episode % 2 == 0, last and episode % 2 == 1)
            total = (float(sum(range(length))), length) if last else (None, None)
            expected.append(([episode, t], float(t), *ends, t, *total))
    for rows in by_env(tables, ROW).values():
        assert rows == expected[: len(rows)]
        # SAME_STEP loses no step to resets; of NEXT_STEP's 18, one in three or so is a reset
        assert len(rows) == 18 if "next" not in mode else 11 <= len(rows) < 15
    for table in tables:
        final_value = []
        for (episode, t), terminated, is_last in zip(
            column(table, c.OBS), column(table, c.TERMINATED), column(table, c.IS_LAST), strict=True
        ):
            final_value.append(100 * episode + t + 1.5 if is_last and not terminated else 0.0)
        assert column(table, c.FINAL_VALUE) == final_value


@pytest.mark.parametrize("mode", list(MODES))
def test_the_last_row_of_each_environment_is_last(mode: str) -> None:
    for steps in (1, 2, 5):
        for table in fragments(make_rollout(spec_of(mode), num_envs=2, steps=steps), 3):
            env, is_last = column(table, c.ENV_ID), column(table, c.IS_LAST)
            assert all(
                is_last[i] for i in range(len(env)) if i + 1 == len(env) or env[i] != env[i + 1]
            )


def test_a_step_spent_on_a_reset_changes_no_return() -> None:
    quiet, noisy = (
        fragments(make_rollout(spec_of(mode), steps=9, normalize_reward=True))[0]
        for mode in ("native_next_step", "native_next_step_noisy")
    )
    assert timeless(noisy).equals(timeless(quiet))


def test_no_fragment_is_empty_even_where_its_only_step_is_a_reset() -> None:
    rollout = make_rollout(spec_of("native_next_step", lengths=(1,)), steps=1)
    tables = fragments(rollout, 4)
    assert [column(table, c.OBS) for table in tables] == [[[k, 0]] for k in range(4)]
    assert [column(table, c.FRAGMENT_ID) for table in tables] == [[0], [1], [2], [3]]


def test_environments_that_reuse_their_array_give_the_same_rows() -> None:
    for vectorization in ("sync", "async"):
        tables = [
            fragments(
                make_rollout(
                    env_spec("count", vectorization=vectorization, in_place=in_place, **SHORT),
                    steps=9,
                    value=V,
                    keep=frozenset({c.FINAL_OBS}),
                )
            )[0]
            for in_place in (False, True)
        ]
        assert timeless(tables[0]).equals(timeless(tables[1]))


def test_final_obs_is_the_true_successor_and_only_where_last() -> None:
    keep = frozenset({c.FINAL_OBS})
    for mode in MODES:
        (table,) = fragments(make_rollout(spec_of(mode), steps=7, value=V, keep=keep))
        for (episode, t), is_last, final in zip(
            column(table, c.OBS), column(table, c.IS_LAST), column(table, c.FINAL_OBS), strict=True
        ):
            assert final == ([episode, t + 1] if is_last else None)
        (plain,) = fragments(make_rollout(spec_of(mode), steps=7, value=V))
        plain = timeless(plain)
        assert plain.equals(table.select(plain.column_names)), "it changes nothing else"


def test_an_episode_that_is_terminated_and_truncated_bootstraps_nothing() -> None:
    env = env_spec("count", lengths=(2,), ends=("terminated truncated",))
    (table,) = fragments(make_rollout(env, steps=3, value=V, keep=frozenset({c.FINAL_OBS})))
    assert column(table, c.TERMINATED) == column(table, c.TRUNCATED) == [False, True, False]
    assert column(table, c.FINAL_VALUE) == [0, 0, 101.5]
    assert column(table, c.EPISODE_RETURN) == [None, 1, None]


def test_kept_obs_is_what_the_environment_emitted() -> None:
    env = env_spec("spaces_env", obs="dict")
    rollout = make_rollout(env, keep=frozenset({c.OBS, c.FINAL_OBS}), steps=5, num_envs=2)
    (table,) = fragments(rollout)
    codec = codec_for(rollout.spec.policy.obs_space)
    raw = codec.decode(table.column(c.OBS))
    flat = codec_for(rollout.spec.policy.obs_connectors.output_space).decode(
        table.column(c.MODEL_OBS)
    )
    np.testing.assert_array_equal(FlattenObs()(raw, rollout.spec.policy.obs_space), flat)
    finals = column(table, c.FINAL_OBS)
    assert [final is not None for final in finals] == column(table, c.IS_LAST)
    assert finals[2]["inner"]["0"] in (1, 2, 3)


@pytest.mark.parametrize("obs", ["tuple", "multi_discrete", "discrete", "vector", "image"])
@pytest.mark.parametrize("action", ["multi_discrete", "multi_binary", "dict", "tuple"])
def test_all_spaces_roll_out(obs: str, action: str) -> None:
    connectors = (FlattenObs(),) if obs == "image" else None
    env = env_spec("spaces_env", obs=obs, action=action)
    policy = policy_spec(env, connectors=connectors)
    (table,) = fragments(make_rollout(env, num_envs=2, steps=4, policy=policy, gain=0.001))
    assert table.num_rows == 8
    codec = codec_for(policy.action_connectors.input_space)
    codec.check(codec.decode(table.column(c.ACTION)), where="action")
    assert np.isfinite(column(table, c.LOGP)).all()


def test_two_short_fragments_are_one_long_one() -> None:
    env = env_spec("count", tagged=True, lengths=(3, 5), ends=("truncated", "terminated"))
    names = [c.OBS, c.ACTION, c.REWARD, c.TERMINATED, c.TRUNCATED, c.T, c.EPISODE_ID]
    names += [c.EPISODE_RETURN, c.EPISODE_LENGTH, c.LOGP, c.VALUE, c.RUNNING_RETURN]
    policy = policy_spec(env, hidden=(8,))
    options = {"num_envs": 3, "policy": policy, "normalize_reward": True, "seed": 5}
    weights = random_weights(policy)
    short = fragments(make_rollout(env, steps=7, weights=weights, **options), 2)
    long = fragments(make_rollout(env, steps=14, weights=weights, **options))
    for env_id, rows in by_env(long, names).items():
        for one, other in zip(by_env(short, names)[env_id], rows, strict=True):
            assert one[:-3] == other[:-3]
            assert one[-3:] == pytest.approx(other[-3:], rel=1e-6)


def test_workers_with_few_environments_are_one_worker_with_many() -> None:
    env = env_spec("count", tagged=True, lengths=(3, 5), vectorization="sync")
    names = [c.OBS, c.ACTION, c.REWARD, c.T, c.EPISODE_ID, c.EPISODE_RETURN]
    many = by_env(fragments(make_rollout(env, num_envs=4, steps=8), 2), names)
    few: dict[int, Any] = {}
    for worker_id in (0, 1):
        few |= by_env(
            fragments(make_rollout(env, num_envs=2, steps=8, worker_id=worker_id), 2), names
        )
    assert few == many
    assert len({rows[0][0][2] for rows in many.values()}) == 4, "each environment has its own seed"


def test_a_seed_repeats_a_run_and_another_does_not() -> None:
    env = env_spec("count", tagged=True)

    def run(**options: Any) -> pa.Table:
        rollout = make_rollout(env, num_envs=2, steps=8, gain=0.0, **options)
        return pa.concat_tables(fragments(rollout, 2))

    assert timeless(run(seed=1)).equals(timeless(run(seed=1)))
    for other in (run(seed=2), run(seed=1, incarnation=1), run(seed=1, worker_id=1)):
        for name in (c.OBS, c.ACTION):
            assert column(other, name) != column(run(seed=1), name)
    ids = set(column(run(seed=1), c.EPISODE_ID))
    assert ids.isdisjoint(column(run(seed=1, incarnation=1), c.EPISODE_ID))


def test_frames_stack_within_episodes_and_final_values_peek_one_further() -> None:
    env = env_spec("count", **SHORT)
    policy = policy_spec(env, connectors=(FrameStackObs(2),))
    rollout = make_rollout(env, policy=policy, steps=4, value=(0, 10, 100, 1))
    first, second = fragments(rollout, 2)
    assert column(first, c.MODEL_OBS) == [[0, 0, 0, 0], [0, 0, 0, 1], [1, 0, 1, 0], [1, 0, 1, 1]]
    assert column(first, c.FINAL_VALUE) == [0, 0, 0, 10 + 102.5]
    # the stack goes on across the fragment's border, as if it had not been peeked at
    assert column(second, c.MODEL_OBS) == [[1, 1, 1, 2], [2, 0, 2, 0], [3, 0, 3, 0], [3, 0, 3, 1]]
    assert column(second, c.FINAL_VALUE) == [20 + 103.5, 0, 0, 10 + 302.5]


@pytest.mark.parametrize("mode", ["native_next_step", "native_same_step", "async"])
def test_frames_stack_alike_in_every_autoreset_mode(mode: str) -> None:
    def rows(mode: str) -> list[tuple[Any, ...]]:
        env = spec_of(mode)
        policy = policy_spec(env, connectors=(FrameStackObs(3),))
        tables = fragments(make_rollout(env, policy=policy, steps=9), 2)
        return by_env(tables, [c.MODEL_OBS, c.T])[0]

    found = rows(mode)
    assert found == rows("sync")[: len(found)]
    assert len(found) > 8


def test_a_shared_trunk_gives_the_values_of_separate_calls() -> None:
    env = env_spec("count", **SHORT)
    policy = policy_spec(env, hidden=(8,), shared=True)
    weights = random_weights(policy)
    rollout = make_rollout(env, policy=policy, weights=weights, steps=9, num_envs=2)
    (table,) = fragments(rollout)
    obs = np.array(column(table, c.OBS), np.float32)
    assert rollout.policy.inference.computes_value
    expected = rollout.policy.forward(obs)[1]
    np.testing.assert_allclose(column(table, c.VALUE), expected, rtol=1e-5)
    nexts = rollout.policy.forward(obs + [[0, 1]] * len(obs))[1]
    bootstraps = np.array(column(table, c.IS_LAST)) & ~np.array(column(table, c.TERMINATED))
    expected = np.where(bootstraps, nexts, 0)
    np.testing.assert_allclose(column(table, c.FINAL_VALUE), expected, rtol=1e-5)


def test_rewards_are_scaled_by_the_deviation_of_running_returns() -> None:
    env = env_spec("count", lengths=(4, 2))
    policy = policy_spec(env)
    weights = linear_weights(policy)
    rollout = make_rollout(
        env, policy=policy, weights=weights, steps=6, normalize_reward=True, gamma=0.5
    )
    (table,) = fragments(rollout)
    assert column(table, c.REWARD) == [0, 1, 2, 3, 0, 1]
    assert column(table, c.RUNNING_RETURN) == [0, 1, 2.5, 4.25, 0, 1]
    assert column(table, c.SCALED_REWARD) == [0, 1, 2, 3, 0, 1], "nothing to scale by yet"
    rollout = make_rollout(
        env,
        policy=policy,
        weights=Weights(weights.module, reward_std=0.25),
        steps=6,
        normalize_reward=True,
    )
    assert column(fragments(rollout)[0], c.SCALED_REWARD) == [0, 4, 8, 10, 0, 4], "limited to 10"


def test_the_module_is_fed_normalised_observations_and_rows_keep_them_as_they_were() -> None:
    env = env_spec("count", lengths=(9,))
    policy = policy_spec(env)
    module = linear_weights(policy, value=(0.0, 1.0)).module
    mean, std = np.array([0, 1], np.float32), np.array([1, 2], np.float32)
    rollout = make_rollout(env, policy=policy, weights=Weights(module, mean, std), steps=3)
    (table,) = fragments(rollout)
    assert column(table, c.OBS) == [[0, 0], [0, 1], [0, 2]]
    assert column(table, c.VALUE) == [0.0, 0.5, 1.0]
    assert column(table, c.FINAL_VALUE) == [0, 0, 1.5]


def test_greedy_takes_the_mode_and_needs_no_seed() -> None:
    env = env_spec("count", lengths=(50,))
    policy = policy_spec(env)
    weights = linear_weights(policy, seed=3)
    (table,) = fragments(
        make_rollout(
            env, policy=dataclasses.replace(policy, act=Greedy()), weights=weights, steps=8, seed=9
        )
    )
    logits = np.array(column(table, c.OBS)) @ weights.module["actor_head.weight"].T
    assert column(table, c.ACTION) == logits.argmax(1).tolist()


def roll_spaces(**kwargs: Any) -> tuple[np.ndarray, list[Any]]:
    """Module actions in the rows, and what the environment got for them."""
    squash = kwargs.pop("squash", False)
    key = f"roll_spaces {kwargs} {squash}"
    env = env_spec("spaces_env", key=key, **kwargs)
    policy = policy_spec(env, squash=squash)
    (table,) = fragments(make_rollout(env, policy=policy, steps=12))
    return np.array(column(table, c.ACTION)), SEEN[key]


def test_discrete_actions_count_from_zero_in_rows_and_from_start_in_the_environment() -> None:
    rows, seen = roll_spaces(action="shifted")
    assert set(rows.tolist()) <= {0, 1, 2}
    assert [int(a) for a in seen] == (rows + 5).tolist()


def test_box_actions_are_clipped_for_the_environment_but_not_in_rows() -> None:
    rows, seen = roll_spaces(action="narrow_box")
    assert np.abs(rows).max() > 0.1, "a deviation of 1 leaves [-0.1, 0.1]"
    np.testing.assert_array_equal(np.stack(seen), rows.clip(-0.1, 0.1).astype(np.float32))


def test_squashed_actions_are_rescaled_for_the_environment() -> None:
    rows, seen = roll_spaces(action="wide_box", squash=True)
    assert np.abs(rows).max() < 1
    np.testing.assert_allclose(np.stack(seen), 5 + 5 * rows, rtol=1e-6)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("nan_obs", "obs has NaN in 1 of 4 rows"),
        ("inf_obs", "obs has Inf in 1 of 4 rows"),
        ("far_obs", "obs has values out of bounds in 1 of 4 rows"),
        ("nan_reward", "reward is nan in environment 0 at t=1"),
        ("inf_reward", "reward is -inf in environment 0 at t=1"),
        ("dtype", "obs has dtype float64; Box"),
        ("shape", r"obs has shape \(1,\); Box"),
        ("list", "obs is a list; Box"),
    ],
)
def test_what_breaks_the_space_is_refused_by_name(fault: str, words: str) -> None:
    env = env_spec("faulty", fault=fault, key=f"rollout {fault}")
    match = rf"tests.envs:faulty.step.*{words}"
    with pytest.raises(SpecError, match=match), np.errstate(invalid="ignore"):
        fragments(make_rollout(env, seed=11))


@pytest.mark.parametrize("fault", ["nan_obs", "inf_obs", "far_obs"])
@pytest.mark.parametrize("steps", [5, 2])
def test_a_broken_final_observation_is_refused(fault: str, steps: int) -> None:
    # at=4 breaks the truncated episode's last observation; at=1 that behind the fragment's end
    env = env_spec("faulty", fault=fault, key=f"final {fault} {steps}", at=steps - 1, times=1)
    with pytest.raises(SpecError, match=r"faulty.step \(seed 0\): final obs has"):
        fragments(make_rollout(env, steps=steps))


def test_a_broken_terminal_observation_is_refused_only_where_it_is_kept() -> None:
    env = env_spec(
        "faulty", fault="nan_obs", key="terminal", at=2, lengths=(3,), ends=("terminated",)
    )
    assert fragments(make_rollout(env, steps=3))[0].num_rows == 3
    with pytest.raises(SpecError, match="final obs has NaN"):
        fragments(make_rollout(env, steps=3, keep=frozenset({c.FINAL_OBS})))


def test_a_native_environment_must_keep_its_dtype() -> None:
    env = env_spec("tests.envs:tests/Count-v0", dtype="float64")
    with pytest.raises(SpecError, match=r"reset: obs has dtype float64; Box\(.*needs float32"):
        make_rollout(env)


def test_a_step_that_raises_once_aborts_one_episode_and_goes_on() -> None:
    env = env_spec("faulty", fault="step", key="once", at=2, times=1)
    rollout = make_rollout(env, steps=8, value=V)
    (table,) = fragments(rollout)
    # the rebuilt environment counts its episodes from 0 again
    assert column(table, c.OBS) == [[0, t] for t in (0, 1, 2, 0, 1, 2, 3, 4)]
    assert column(table, c.T) == [0, 1, 2, 0, 1, 2, 3, 4]
    assert column(table, c.ABORTED) == [False, False, True] + [False] * 5
    assert column(table, c.TRUNCATED) == [False, False, True] + [False] * 4 + [True]
    assert column(table, c.TERMINATED) == [False] * 8
    assert column(table, c.REWARD) == [0, 1, 0, 0, 1, 2, 3, 4]
    # the last observation stands in for the one that never came
    assert column(table, c.FINAL_VALUE) == [0, 0, 2.5, 0, 0, 0, 0, 5.5]
    # an aborted episode has no return of its own: it would drag the mean down
    assert column(table, c.EPISODE_RETURN) == [None] * 7 + [10]
    assert column(table, c.EPISODE_LENGTH) == [None] * 7 + [5]
    assert len(set(column(table, c.EPISODE_ID))) == 2
    assert rollout.counters.aborted_episodes == 1
    failures = rollout.take_failures()
    assert {failure.message for failure in failures} == {"RuntimeError: no step today"}
    assert rollout.take_failures() == []


def test_counters_count() -> None:
    rollout = make_rollout(env_spec("count", lengths=(2,)), num_envs=2, steps=5)
    fragments(rollout, 2)
    counters = rollout.counters
    assert (counters.env_steps, counters.episodes, counters.aborted_episodes) == (20, 10, 0)
    assert 0 < counters.env_s < counters.rollout_s


def test_weights_and_version_change_between_fragments() -> None:
    env = env_spec("count", lengths=(9,))
    rollout = make_rollout(env, steps=2, value=V)
    rollout.fragment(0)
    rollout.load(linear_weights(rollout.spec.policy, value=(0.0, 0.0), bias=-1.0), version=7)
    (table,) = fragments(rollout)
    assert column(table, c.VALUE) == [-1, -1]
    assert column(table, c.POLICY_VERSION) == [7, 7]


def test_a_rollout_without_weights_says_so() -> None:
    env = env_spec("count")
    rollout = Rollout(RolloutSpec(env, policy_spec(env), 1, 2))
    with pytest.raises(ValueError, match="has no weights yet"):
        rollout.fragment(0)


def test_an_environment_of_other_spaces_than_the_policy_is_refused() -> None:
    policy = policy_spec(env_spec("count", tagged=True))
    with pytest.raises(SpecError, match=r"tests.envs:count: the observation space is Box.*\(2,\)"):
        make_rollout(env_spec("count"), policy=policy)


def test_logp_is_that_of_the_actions_in_the_rows() -> None:
    env = env_spec("count", lengths=(4,))
    policy = policy_spec(env, hidden=(8,))
    rollout = make_rollout(env, policy=policy, weights=random_weights(policy), steps=8)
    (table,) = fragments(rollout)
    logits = rollout.policy.forward(np.array(column(table, c.OBS), np.float32))[0]
    for row, action, logp in zip(
        logits, column(table, c.ACTION), column(table, c.LOGP), strict=True
    ):
        total = sum(math.exp(x) for x in row)
        assert logp == pytest.approx(math.log(math.exp(row[action]) / total), rel=1e-5)


# --- final module observations ---

OPEN_ENDS = {"keep": frozenset({c.FINAL_MODEL_OBS})}


def test_final_model_obs_is_the_successor_where_a_segment_is_cut_and_zeros_elsewhere() -> None:
    first, second = fragments(make_rollout(env_spec("count", **SHORT), steps=4, **OPEN_ENDS), 2)
    assert column(first, c.OBS) == [[0, 0], [0, 1], [1, 0], [1, 1]]
    # row 1 terminates, row 3 ends the fragment in the middle of an episode
    assert column(first, c.FINAL_MODEL_OBS) == [[0, 0], [0, 0], [0, 0], [1, 2]]
    assert column(second, c.OBS) == [[1, 2], [2, 0], [3, 0], [3, 1]]
    # row 0 and row 3 truncate, row 1 terminates
    assert column(second, c.FINAL_MODEL_OBS) == [[1, 3], [0, 0], [0, 0], [3, 2]]


@pytest.mark.parametrize("keep_final", [False, True])
@pytest.mark.parametrize("mode", list(MODES))
def test_final_model_obs_is_the_same_in_every_autoreset_mode(mode: str, keep_final: bool) -> None:
    keep = frozenset({c.FINAL_MODEL_OBS} | ({c.FINAL_OBS} if keep_final else set()))
    names = [c.OBS, c.IS_LAST, c.TERMINATED, c.FINAL_MODEL_OBS]
    for table in fragments(make_rollout(spec_of(mode), num_envs=2, steps=7, keep=keep), 2):
        rows = zip(*(column(table, name) for name in names), strict=True)
        for (episode, t), is_last, terminated, final in rows:
            assert final == ([episode, t + 1] if is_last and not terminated else [0, 0])
        plain = fragments(make_rollout(spec_of(mode), num_envs=2, steps=7))[0]
        assert set(table.column_names) == set(plain.column_names) | keep


def test_final_model_obs_went_through_the_connectors_without_moving_them() -> None:
    env = env_spec("count", **SHORT)
    policy = policy_spec(env, connectors=(FrameStackObs(2),))
    first, second = fragments(make_rollout(env, policy=policy, steps=4, **OPEN_ENDS), 2)
    assert column(first, c.FINAL_MODEL_OBS)[3] == [1, 1, 1, 2]
    assert column(second, c.MODEL_OBS)[0] == [1, 1, 1, 2]
    assert column(second, c.FINAL_MODEL_OBS)[0] == [1, 2, 1, 3]


# --- acts of every kind in rows ---


def module_weights(spec: PolicySpec, *, env_steps: int = 0) -> Weights:
    torch.manual_seed(1)
    module = build_model(spec.model)
    for parameter in module.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    arrays = {name: x.numpy() for name, x in module.state_dict().items()}
    return Weights(arrays, env_steps=env_steps)


def q_policy(env: EnvSpec, act: Act, **q: Any) -> PolicySpec:
    spec = policy_spec(env, hidden=(8,), head="q", q=QSpec(2, **q))
    return dataclasses.replace(spec, act=act)


def deterministic_policy(env: EnvSpec, act: Act) -> PolicySpec:
    spec = policy_spec(env, squash=True, hidden=(8,), head="actor")
    model = dataclasses.replace(spec.model, param_size=spec.model.param_size // 2)
    return dataclasses.replace(spec, model=model, act=act, squash=False, deterministic=True)


TAGGED = env_spec("count", tagged=True, lengths=(3, 5), vectorization="sync")
BOX = EnvSpec("Pendulum-v1", {}, "sync", max_episode_steps=5)
LADDER = EpsilonGreedy(0.8, ladder_alpha=3.0, num_envs=4)

SPLIT: dict[str, tuple[EnvSpec, PolicySpec]] = {
    "ladder": (TAGGED, q_policy(TAGGED, LADDER)),
    "epsilon": (TAGGED, q_policy(TAGGED, EpsilonGreedy(0.5), dueling=True)),
    "gaussian": (BOX, deterministic_policy(BOX, AddNoise(0.3))),
    "ou": (BOX, deterministic_policy(BOX, AddNoise(0.3, process="ou", dt=0.5))),
    "random_first": (BOX, deterministic_policy(BOX, RandomFirst(9, AddNoise(0.3)))),
}


@pytest.mark.parametrize("name", list(SPLIT))
def test_rows_do_not_depend_on_how_environments_are_split_over_workers(name: str) -> None:
    env, policy = SPLIT[name]
    names = [c.ACTION, c.OBS, c.T, *policy.act.columns]

    def rows(num_envs: int, workers: int) -> dict[int, list[tuple[Any, ...]]]:
        found: dict[int, list[tuple[Any, ...]]] = {}
        for worker_id in range(workers):
            made = make_rollout(
                env,
                policy=policy,
                weights=module_weights(policy),
                num_envs=num_envs,
                steps=8,
                worker_id=worker_id,
            )
            found |= by_env(fragments(made, 2), names)
        return found

    many, few = rows(4, 1), rows(2, 2)
    assert many.keys() == few.keys() == set(range(4))
    for env_id, expected in many.items():
        for one, other in zip(few[env_id], expected, strict=True):
            # a product of two rows may round otherwise than one of four
            np.testing.assert_allclose(one[0], other[0], rtol=0, atol=1e-5)
            np.testing.assert_allclose(one[1], other[1], rtol=0, atol=1e-5)
            assert one[2:] == other[2:]
    assert len({str([row[0] for row in rows]) for rows in many.values()}) == 4


def test_each_environments_epsilon_and_its_logp_stand_in_its_rows() -> None:
    policy = q_policy(TAGGED, LADDER)
    made = make_rollout(
        TAGGED, policy=policy, weights=module_weights(policy), num_envs=2, steps=6, worker_id=1
    )
    (table,) = fragments(made)
    env_id, epsilon = column(table, c.ENV_ID), column(table, c.EPSILON)
    np.testing.assert_allclose(epsilon, [0.8 ** (1 + 3 * k / 3) for k in env_id], rtol=1e-6)
    q = made.policy.q_values(np.array(column(table, c.OBS), np.float32))
    for row, action, e, logp in zip(
        q, column(table, c.ACTION), epsilon, column(table, c.LOGP), strict=True
    ):
        expected = e / 2 + (1 - e) * (action == row.argmax())
        assert math.exp(logp) == pytest.approx(expected, rel=1e-5)


def test_q_value_is_of_the_action_taken_and_value_of_the_best() -> None:
    policy = q_policy(TAGGED, EpsilonGreedy(1.0))
    keep = frozenset({c.Q_VALUE, c.FINAL_OBS})
    made = make_rollout(
        TAGGED, policy=policy, weights=module_weights(policy), num_envs=2, steps=6, keep=keep
    )
    (table,) = fragments(made)
    action = np.array(column(table, c.ACTION))
    q = made.policy.q_values(np.array(column(table, c.OBS), np.float32))
    taken = q[np.arange(len(q)), action]
    np.testing.assert_allclose(column(table, c.Q_VALUE), taken, rtol=1e-5)
    np.testing.assert_allclose(column(table, c.VALUE), q.max(1), rtol=1e-5)
    assert (taken < q.max(1)).any(), "epsilon 1 takes others, too"
    finals = column(table, c.FINAL_OBS)
    for terminated, final, value in zip(
        column(table, c.TERMINATED), finals, column(table, c.FINAL_VALUE), strict=True
    ):
        if final is None or terminated:
            assert value == 0
        else:
            best = made.policy.value(np.array([final], np.float32))[0]
            assert value == pytest.approx(best, rel=1e-5)


def test_rows_of_an_actor_alone_have_neither_values_nor_the_logp_of_noise() -> None:
    policy = deterministic_policy(BOX, AddNoise(0.3))
    (table,) = fragments(make_rollout(BOX, policy=policy, weights=module_weights(policy)))
    assert not {c.LOGP, c.VALUE, c.FINAL_VALUE} & set(table.column_names)
    np.testing.assert_allclose(column(table, c.NOISE_SCALE), 0.3, rtol=1e-6)
    spec = policy_spec(BOX, squash=True, hidden=(8,), head="actor")
    soft = dataclasses.replace(spec, act=RandomFirst(9, Sample()))
    made = make_rollout(BOX, policy=soft, weights=module_weights(soft, env_steps=9))
    assert c.LOGP in fragments(made)[0].column_names
    assert not {c.VALUE, c.FINAL_VALUE} & set(made.spec.adds)


def test_exploration_follows_the_env_steps_of_the_weights_it_was_given() -> None:
    policy = q_policy(TAGGED, EpsilonGreedy(((0, 1.0), (100, 0.0))))
    made = make_rollout(TAGGED, policy=policy, weights=module_weights(policy))
    found = [made.fragment(0)]
    made.load(module_weights(policy, env_steps=75), version=1)
    found += fragments(made)
    assert [set(column(table, c.EPSILON)) for table in found] == [{1.0}, {0.25}]


def test_whole_episodes_keep_each_environments_epsilon() -> None:
    env = env_spec("count", tagged=True, lengths=(2, 5, 3), vectorization="sync")
    policy = q_policy(env, LADDER)
    made = make_rollout(
        env,
        policy=policy,
        weights=module_weights(policy),
        num_envs=3,
        steps=4,
        batch_mode="complete_episodes",
    )
    for table in fragments(made, 2):
        expected = [0.8 ** (1 + k) for k in column(table, c.ENV_ID)]
        np.testing.assert_allclose(column(table, c.EPSILON), expected, rtol=1e-6)
        assert np.isfinite(column(table, c.LOGP)).all()


def test_noise_on_weights_stays_for_a_fragment_and_changes_with_the_next() -> None:
    env = env_spec("count", lengths=(50,))
    policy = q_policy(env, EpsilonGreedy(0.0), noisy=True)
    made = make_rollout(env, policy=policy, weights=module_weights(policy), steps=4, num_envs=2)
    values = [column(table, c.VALUE) for table in fragments(made, 2)]
    for table_values in values:  # both environments are in the same state at each step
        assert table_values[:4] == pytest.approx(table_values[4:], rel=1e-6)
    means = Rollout(made.spec).policy
    means.set_weights(module_weights(policy))
    obs = np.array([[0, t] for t in range(4)], np.float32)
    gaps = [
        np.array(v[:4]) - means.value(obs + np.float32([0, 4 * i])) for i, v in enumerate(values)
    ]
    assert all(np.abs(gap).max() > 1e-3 for gap in gaps)
    assert np.abs(gaps[0] - gaps[1]).max() > 1e-3


def test_an_mlp_rollout_never_imports_torch() -> None:
    script = (
        "import sys, rl_ops.rollout, rl_ops.operators, rl_ops.acting\n"
        "from tests.rollout_kit import env_spec, fragments, make_rollout, policy_spec\n"
        "fragments(make_rollout(env_spec('CartPole-v1'), num_envs=2))\n"
        "print(sorted(m for m in sys.modules if m.partition('.')[0] in ('torch', 'ray')))"
    ).replace(", rl_ops.acting", "")
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
