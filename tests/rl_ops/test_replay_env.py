"""Replays of what `Rollout` recorded: bit for bit the same, or a clear refusal."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import tests.render_envs  # noqa: F401 - registers environments
from rl_ops import columns as c
from rl_ops.envs import EnvSpec, VectorSlots, env_seeds, seed_words
from rl_ops.guarded_env import GuardPolicy
from rl_ops.replay_env import LoggedRows, ReplayError, Wanted, replay
from rl_ops.spaces import codec_for
from tests.rollout_kit import env_spec, fragments, make_rollout, policy_spec, random_weights

N = 3


CARTPOLE = env_spec("CartPole-v1")
WALK = env_spec("tests/Drawn-v0")


def rolled(
    env: EnvSpec, *, count: int = 4, steps: int = 7, mode: str = "truncate"
) -> list[pa.Table]:
    policy = policy_spec(env)
    rollout = make_rollout(
        env,
        num_envs=N,
        steps=steps,
        policy=policy,
        weights=random_weights(policy),
        seed=11,
        worker_id=2,
        incarnation=1,
        batch_mode=mode,
        keep=frozenset({c.OBS, c.FINAL_OBS}),
    )
    return fragments(rollout, count)


def logged(tables: list[pa.Table], env: EnvSpec, *, mode: str = "truncate") -> Iterator[LoggedRows]:
    policy = policy_spec(env)
    obs_codec = codec_for(policy.obs_space)
    action_codec = codec_for(policy.action_connectors.input_space)
    for k, table in enumerate(tables):
        is_complete = mode == "complete_episodes"
        seeds = env_seeds(seed_words(11, 1, range(2 * N, 3 * N), start=k))
        ids = table.column(c.EPISODE_ID).to_pylist()
        yield LoggedRows(
            env=table.column(c.ENV_ID).to_numpy() - 2 * N,
            episode=np.array([int(i.rpartition("/")[2]) for i in ids]),
            t=table.column(c.T).to_numpy(),
            obs=obs_codec.decode(table.column(c.OBS)),
            action=action_codec.decode(table.column(c.ACTION)),
            reward=table.column(c.REWARD).to_numpy(),
            terminated=table.column(c.TERMINATED).to_numpy(),
            truncated=table.column(c.TRUNCATED).to_numpy(),
            seeds=seeds if is_complete or k == 0 else None,
            is_complete=is_complete,
        )


def frames(
    rows: Iterable[LoggedRows], env: EnvSpec, wanted: Wanted, *, mode: str | None = "rgb_array"
) -> list[Any]:
    slots = VectorSlots(env, N, render_mode=mode)
    connectors = policy_spec(env).action_connectors
    try:
        return list(replay(slots, connectors, rows, wanted=wanted))
    finally:
        slots.close()


def length_of(tables: list[pa.Table], wanted_env: int, episode: int) -> int:
    name = f"run/{wanted_env + 2 * N:05d}.1/{episode:07d}"
    return sum(table.column(c.EPISODE_ID).to_pylist().count(name) for table in tables)


def test_seeds_are_those_of_a_rollout() -> None:
    env = env_spec("count", tagged=True)
    rollout = make_rollout(env, num_envs=N, seed=11, worker_id=2, incarnation=1)
    first = rollout._obs.copy()
    rollout.close()
    slots = VectorSlots(env, N)
    np.testing.assert_array_equal(
        slots.reset(env_seeds(seed_words(11, 1, range(2 * N, 3 * N)))), first
    )
    words = seed_words(11, 1, [2 * N])[0]
    key = rollout._rngs[0].bit_generator.state["state"]["key"]
    np.testing.assert_array_equal(words[1:], key)


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize("space", ["box", "dict"])
def test_frames_show_each_step_of_the_episode(vectorization: str, space: str) -> None:
    env = env_spec("tests/Drawn-v0", vectorization=vectorization, space=space)
    tables = rolled(env)
    rows = list(logged(tables, env))
    name = f"run/{1 + 2 * N:05d}.1/{2:07d}"
    places = [
        place[0] if space == "box" else place["place"][0]
        for table in tables
        for place, i in zip(
            table.column(c.OBS).to_pylist(), table.column(c.EPISODE_ID).to_pylist(), strict=True
        )
        if i == name
    ]
    assert len(places) >= 2
    got = frames(rows, env, Wanted(1, 2, len(places)))
    assert [int(frame[0, 0, 0]) for frame in got] == [int(place) for place in places]


def test_native_environments_share_a_generator_and_still_come_back_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    tables = rolled(CARTPOLE, steps=60)
    rows = list(logged(tables, CARTPOLE))
    length = length_of(tables, 2, 2)  # after two resets of its own and others of its neighbours
    assert length > 3
    got = frames(rows, CARTPOLE, Wanted(2, 2, length))
    assert len(got) == length
    assert got[0].shape == (400, 600, 3)
    assert not np.array_equal(got[0], got[-1])


def test_fragments_of_resets_alone_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    tables = rolled(CARTPOLE, steps=1, count=40)
    rows = list(logged(tables, CARTPOLE))
    length = length_of(tables, 0, 1)
    assert len(frames(rows, CARTPOLE, Wanted(0, 1, length))) == length


def test_fragments_of_whole_episodes_are_replayed_each_alone() -> None:
    mode = "complete_episodes"
    tables = rolled(WALK, mode=mode)
    rows = list(logged(tables, WALK, mode=mode))
    last = max(rows[2].episode[rows[2].env == 1])
    length = length_of(tables, 1, last)
    assert len(frames(rows[2:3], WALK, Wanted(1, last, length))) == length


def test_rows_may_come_in_any_order() -> None:
    tables = rolled(WALK)
    rng = np.random.default_rng(0)
    mixed = [table.take(rng.permutation(table.num_rows)) for table in tables]
    rows = list(logged(mixed, WALK))
    length = length_of(tables, 0, 1)
    assert len(frames(rows, WALK, Wanted(0, 1, length))) == length


def test_an_environment_with_randomness_of_its_own_is_refused() -> None:
    env = env_spec("tests/Drawn-v0", entropy=True)
    rows = list(logged(rolled(env), env))
    with pytest.raises(ReplayError, match=r"cannot be re-seeded: step t=0 of episode 0 .* obs was"):
        frames(rows, env, Wanted(0, 0, 2))


@pytest.mark.parametrize("column", ["reward", "terminated", "truncated"])
def test_an_outcome_that_was_altered_is_refused(column: str) -> None:
    tables = rolled(WALK)
    first, *others = logged(tables, WALK)
    values = getattr(first, column).copy()
    values[0] = 1 - values[0].astype(float)
    altered = dataclasses.replace(first, **{column: values})
    with pytest.raises(ReplayError, match=f"step t=0 .*{column} was"):
        frames([altered, *others], WALK, Wanted(0, 2, 2))


@pytest.mark.parametrize("dropped", [0, 1])
def test_a_fragment_that_is_not_there_is_missed(dropped: int) -> None:
    rows = list(logged(rolled(WALK), WALK))
    del rows[dropped]
    with pytest.raises(ReplayError, match="steps are missing"):
        frames(rows, WALK, Wanted(0, 4, 2))


def test_a_row_that_is_not_there_is_missed() -> None:
    tables = rolled(WALK)
    cut = [tables[0].slice(0, tables[0].num_rows - 1), *tables[1:]]
    rows = list(logged(cut, WALK))
    with pytest.raises(ReplayError, match="steps are missing"):
        frames(rows, WALK, Wanted(0, 4, 2))


def test_an_episode_whose_end_was_not_logged_is_missed() -> None:
    rows = list(logged(rolled(WALK), WALK))
    with pytest.raises(ReplayError, match="steps are missing: the last 9 of episode 700"):
        frames(rows[:1], WALK, Wanted(0, 700, 9))


def test_environments_that_render_nothing_are_refused() -> None:
    rows = list(logged(rolled(WALK), WALK))
    with pytest.raises(ReplayError, match="renders"):
        frames(rows, env_spec("tests/Blind-v0"), Wanted(0, 0, 2))


def test_an_episode_that_an_exception_ended_is_done_again() -> None:
    guard = GuardPolicy(max_failures=100, backoff_s=0.0)
    env = dataclasses.replace(env_spec("tests/Drawn-v0", raises_at=2), guard=guard)
    tables = rolled(env)
    assert sum(sum(table.column(c.ABORTED).to_pylist()) for table in tables) > 3
    length = length_of(tables, 0, 3)
    assert len(frames(logged(tables, env), env, Wanted(0, 3, length))) == length
