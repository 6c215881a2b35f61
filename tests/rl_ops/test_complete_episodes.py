"""Fragments of whole episodes: which episodes they hold, and that they favour none."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_ops import columns as c
from rl_ops import complete_episodes
from rl_ops.complete_episodes import only
from rl_ops.connectors import FrameStackObs
from rl_ops.env_step import EnvStep
from rl_ops.envs import EnvSpec
from rl_ops.errors import EnvError
from rl_ops.operators import AddGAE
from rl_ops.rollout import Rollout
from tests.envs import SEEN, chance
from tests.rollout_kit import (
    by_env,
    column,
    env_spec,
    fragments,
    make_rollout,
    policy_spec,
    random_weights,
    timeless,
)

SHORT = {"lengths": (2, 3, 1), "ends": ("terminated", "truncated")}
NATIVE = "tests.envs:tests/Count-v0"


CHANCE: dict[str, dict[str, Any]] = {
    "sync": {"name": "chance", "vectorization": "sync"},
    "native_next_step": {"name": "tests.envs:tests/Chance-v0"},
    "native_same_step": {"name": "tests.envs:tests/Chance-v0", "same_step": True},
}


def chance_spec(mode: str, lengths: tuple[int, ...], key: str = "chance") -> EnvSpec:
    return env_spec(**CHANCE[mode], key=key, lengths=lengths)


def complete(env: Any, **options: Any) -> Rollout:
    return make_rollout(env, batch_mode="complete_episodes", **options)


ROW = [c.OBS, c.REWARD, c.TERMINATED, c.TRUNCATED, c.IS_LAST, c.T]
ROW += [c.EPISODE_RETURN, c.EPISODE_LENGTH, c.EPISODE_ID]


def plain(seeds: list[int], lengths: tuple[int, ...], *, min_rows: int, env_id: int) -> list[Any]:
    """By fragment, the rows of one environment that is run on its own."""
    found, number = [], 0
    for seed in seeds:
        env, rows, is_first = chance("plain", lengths), [], True
        while len(rows) < min_rows:
            obs, _ = env.reset(seed=seed if is_first else None)
            is_first, name = False, f"run/{env_id:05d}.0/{number:07d}"
            number, total, ended, t = number + 1, 0.0, False, 0
            while not ended:
                successor, reward, terminated, truncated, _ = env.step(0)
                total, ended = total + reward, terminated or truncated
                whole = (total, t + 1) if ended else (None, None)
                rows.append((obs.tolist(), reward, terminated, truncated, ended, t, *whole, name))
                obs, t = successor, t + 1
        found.append(rows)
    return found


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple),
    steps=st.integers(1, 6),
    num_envs=st.integers(1, 4),
    count=st.integers(1, 3),
    mode=st.sampled_from(sorted(CHANCE)),
)
def test_each_environment_gives_what_it_would_alone_run_until_it_has_its_rows(
    lengths: tuple[int, ...], steps: int, num_envs: int, count: int, mode: str
) -> None:
    SEEN["law"].clear()
    rollout = complete(chance_spec(mode, lengths, "law"), num_envs=num_envs, steps=steps)
    tables = fragments(rollout, count)
    seeds = np.array(SEEN["law"]).reshape(count, num_envs)
    assert len(np.unique(seeds)) == seeds.size
    assert all(column(table, c.ENV_ID) == sorted(column(table, c.ENV_ID)) for table in tables)
    for env_id in range(num_envs):
        expected = plain(seeds[:, env_id].tolist(), lengths, min_rows=steps, env_id=env_id)
        assert [by_env([table], ROW)[env_id] for table in tables] == expected


def test_long_episodes_are_as_frequent_as_they_are_in_the_environment() -> None:
    env = chance_spec("sync", (1, 19))
    tables = fragments(complete(env, num_envs=16, steps=8), 40)
    lengths = [n for table in tables for n in column(table, c.EPISODE_LENGTH) if n is not None]
    assert len(lengths) > 1000
    share = lengths.count(19) / len(lengths)
    assert share == pytest.approx(0.5, abs=2 / len(lengths) ** 0.5)  # four standard deviations
    # nobody finishes one of 19 steps in the 8 of a fragment: whoever ends in time is short


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_rows_of_two_fragments_literally(vectorization: str) -> None:
    env = env_spec("count", vectorization=vectorization, **SHORT)
    rollout = complete(env, steps=4, value=(100.0, 1.0), run_id="r", keep=frozenset({c.FINAL_OBS}))
    first, second = fragments(rollout, 2)
    expected = {
        c.OBS: [[0, 0], [0, 1], [1, 0], [1, 1], [1, 2]],
        c.TERMINATED: [False, True, False, False, False],
        c.TRUNCATED: [False, False, False, False, True],
        c.IS_LAST: [False, True, False, False, True],
        c.FINAL_VALUE: [0, 0, 0, 0, 103.5],
        c.FINAL_OBS: [None, [0, 2], None, None, [1, 3]],
        c.EPISODE_ID: ["r/00000.0/0000000"] * 2 + ["r/00000.0/0000001"] * 3,
        c.T: [0, 1, 0, 1, 2],
        c.EPISODE_RETURN: [None, 1, None, None, 3],
        c.FRAGMENT_ID: [0] * 5,
    }
    assert {name: column(first, name) for name in expected} == expected
    # the environment began its episode 2 at the end of episode 1, and dropped it
    expected = {
        c.OBS: [[3, 0], [3, 1], [4, 0], [4, 1], [4, 2]],
        c.IS_LAST: [False, True, False, False, True],
        c.EPISODE_ID: ["r/00000.0/0000002"] * 2 + ["r/00000.0/0000003"] * 3,
        c.T: [0, 1, 0, 1, 2],
        c.FRAGMENT_ID: [1] * 5,
    }
    assert {name: column(second, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("same_step", "second"), [(False, [[2, 0], [3, 0], [3, 1]]), (True, [[3, 0], [3, 1], [4, 0]])]
)
def test_a_native_environment_begins_its_next_fragment_with_a_reset(
    same_step: bool, second: list[Any]
) -> None:
    rollout = complete(env_spec(NATIVE, same_step=same_step, **SHORT), num_envs=2, steps=3)
    for rows in by_env(fragments(rollout, 2), [c.OBS, c.T]).values():
        assert [obs for obs, _ in rows[:5]] == [[0, 0], [0, 1], [1, 0], [1, 1], [1, 2]]
        assert [obs for obs, _ in rows[5:8]] == second
        assert rows[5][1] == 0


def test_workers_with_few_environments_are_one_worker_with_many() -> None:
    env = chance_spec("sync", (1, 4, 30))
    names = [c.OBS, c.ACTION, c.REWARD, c.T, c.EPISODE_ID, c.LOGP]

    def rows(num_envs: int, worker_id: int = 0) -> dict[int, Any]:
        options = {"num_envs": num_envs, "worker_id": worker_id, "gain": 0.0}
        return by_env(fragments(complete(env, steps=5, **options), 3), names)

    many = rows(4)
    assert {**rows(2), **rows(2, 1)} == many
    assert {i: found for k in range(4) for i, found in rows(1, k).items()} == many
    assert rows(4) == many, "a seed repeats a run"


@pytest.mark.parametrize("shared", [False, True])
def test_more_steps_than_are_recorded_at_a_time_are_one_fragment(shared: bool) -> None:
    env = env_spec("count", lengths=(700,), ends=("truncated",))
    policy = policy_spec(env, connectors=(FrameStackObs(2),), hidden=(8,), shared=shared)
    options = {
        "num_envs": 2,
        "policy": policy,
        "weights": random_weights(policy),
        "keep": frozenset({c.OBS, c.FINAL_OBS}),
        "normalize_reward": True,
    }
    (parts,) = fragments(complete(env, steps=5, **options))
    (cut,) = fragments(make_rollout(env, steps=700, **options))
    assert timeless(parts).equals(timeless(cut))


def test_stacked_frames_and_running_returns_begin_anew() -> None:
    env = env_spec("count", lengths=(2,))
    policy = policy_spec(env, connectors=(FrameStackObs(2),))
    rollout = complete(env, policy=policy, steps=3, normalize_reward=True, gamma=0.5)
    for table, episodes in zip(fragments(rollout, 2), [(0, 1), (3, 4)], strict=True):
        stacks = [[e, t, e, u] for e in episodes for t, u in ((0, 0), (0, 1))]
        assert column(table, c.MODEL_OBS) == stacks
        assert column(table, c.RUNNING_RETURN) == [0, 1, 0, 1]
        assert column(table, c.EPISODE_RETURN) == [None, 1, None, 1]


def test_an_aborted_episode_is_an_end() -> None:
    rollout = complete(env_spec("faulty", fault="step", key="whole", at=2, times=1), steps=4)
    (table,) = fragments(rollout)
    assert column(table, c.T) == [0, 1, 2, 0, 1, 2, 3, 4]
    assert column(table, c.ABORTED) == [False, False, True] + [False] * 5
    assert column(table, c.IS_LAST) == [False, False, True, False, False, False, False, True]
    assert rollout.counters.aborted_episodes == 1


def test_a_native_environment_that_raises_aborts_episodes_and_goes_on() -> None:
    env = env_spec(NATIVE, raises_at=2, key="whole native", lengths=(5,))
    (table,) = fragments(complete(env, num_envs=2, steps=3))
    for rows in by_env([table], [c.T, c.IS_LAST]).values():
        assert rows == [(0, False), (1, True), *((t, t == 4) for t in range(5))]


def test_counters_count_rows_and_episodes_in_them() -> None:
    rollout = complete(chance_spec("sync", (1, 9)), num_envs=4, steps=5)
    tables = fragments(rollout, 3)
    ends = sum(sum(column(table, c.IS_LAST)) for table in tables)
    assert rollout.counters.env_steps == sum(table.num_rows for table in tables)
    assert rollout.counters.episodes == ends


@pytest.mark.parametrize("mode", sorted(CHANCE))
def test_gae_of_a_fragment_is_that_of_each_episode_alone(mode: str) -> None:
    env = chance_spec(mode, (1, 4, 11))
    policy = policy_spec(env, hidden=(8,))
    rollout = complete(env, num_envs=3, steps=7, policy=policy, weights=random_weights(policy))
    add = AddGAE(0.9, 0.8)
    for table in fragments(rollout, 2):
        starts = [i for i, t in enumerate(column(table, c.T)) if t == 0]
        bounds = pairwise([*starts, table.num_rows])
        alone = pa.concat_tables([add(table.slice(low, high - low)) for low, high in bounds])
        for name in add.adds:
            np.testing.assert_allclose(column(add(table), name), column(alone, name), rtol=1e-5)


def test_an_environment_that_never_ends_an_episode_is_named_with_the_setting_that_ends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(complete_episodes, "LONGEST_EPISODE", 300)
    env = env_spec("count", lengths=(10**9,))
    with pytest.raises(EnvError, match=r"tests.envs:count: .* after 512 .* env.max_episode_steps"):
        fragments(complete(env, steps=2))
    (table,) = fragments(complete(replace(env, max_episode_steps=400), steps=2))
    assert column(table, c.TRUNCATED) == [False] * 399 + [True]


def test_steps_beyond_an_environments_rows_leave_nothing() -> None:
    yes, no = np.array([True, True]), np.array([False, True])
    step = EnvStep(
        obs=np.zeros((2, 1)),
        reward=np.array([np.nan, 2.0]),
        terminated=yes,
        truncated=yes,
        ended=yes,
        is_transition=yes,
        is_first=yes,
        successor=np.ones((2, 1)),
        aborted={0: "zero", 1: "one"},
    )
    kept = only(step, no)
    assert kept.reward.tolist() == [0.0, 2.0]
    for mask in (kept.terminated, kept.truncated, kept.ended, kept.is_transition):
        assert mask.tolist() == [False, True]
    assert kept.aborted == {1: "one"}
