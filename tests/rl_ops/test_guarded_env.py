"""Exceptions of environments: how they end episodes, and when they end the run."""

from typing import Any

import numpy as np
import pytest

import rl_ops.guarded_env
from rl_ops.errors import EnvError, SpecError
from rl_ops.guarded_env import ABORTED_INFO, GuardedEnv, GuardPolicy
from tests.envs import CALLS, SEEN, CountEnv, FaultyEnv

POLICY = GuardPolicy(max_failures=2, backoff_s=0.0, forgive_steps=50)


def guard(fault: str, key: str, policy: GuardPolicy = POLICY, **kwargs: object) -> GuardedEnv:
    return GuardedEnv(lambda: FaultyEnv(fault=fault, key=key, **kwargs), policy, name="Faulty")


def test_a_step_that_raises_truncates_at_the_last_observation() -> None:
    env = guard("step", "truncates", at=1, times=1)
    env.reset(seed=0)
    last = env.step(0)[0]
    obs, reward, terminated, truncated, info = env.step(0)
    np.testing.assert_array_equal(obs, last)
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert info == {ABORTED_INFO: "RuntimeError: no step today"}


def test_the_environment_is_closed_and_built_again_at_the_reset() -> None:
    env = guard("step", "rebuilt", at=0, times=1)
    first = env.env
    env.reset(seed=0)
    env.step(0)
    env.reset()
    assert env.env is not first
    assert CALLS["rebuilt/closed"] == 1
    assert not env.step(0)[3], "it works now"


def test_a_rebuilt_environment_gets_a_new_seed_that_is_the_same_in_every_run() -> None:
    for key in ("seeds a", "seeds b"):
        env = guard("step", key, at=0, times=2)
        env.reset(seed=5)
        for _ in range(2):
            env.step(0)
            env.reset()
    first, second, third = SEEN["seeds a/seeds"]
    assert (first, None in (second, third)) == (5, False)
    assert len({first, second, third}) == 3
    assert SEEN["seeds b/seeds"] == [first, second, third]


@pytest.mark.parametrize("at", [0, 1, 4])
def test_a_step_that_always_raises_fails_after_max_failures(at: int) -> None:
    words = r"Faulty.step failed 3 times in a row \(seed 9\), last with RuntimeError: no step today"
    with pytest.raises(EnvError, match=words):
        run(guard("step", f"always {at}", at=at), 100, seed=9)


class EveryOther(CountEnv):
    """Fails in every other episode, over all instances; the others take one step."""

    started = 0

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        EveryOther.started += 1
        return super().reset(**kwargs)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if EveryOther.started % 2:
            raise RuntimeError("odd")
        return super().step(action)


def test_an_episode_that_ends_by_itself_ends_the_row_of_failures() -> None:
    env = GuardedEnv(lambda: EveryOther(lengths=(1,)), POLICY, name="EveryOther")
    ends = []
    for _ in range(10):
        env.reset(seed=0)
        ends.append(env.step(0)[2:4])
    assert ends == [(False, True), (True, False)] * 5


def run(env: GuardedEnv, steps: int, seed: int) -> int:
    """Step, resetting where an episode ends; returns how many were truncated."""
    env.reset(seed=seed)
    truncations = 0
    for _ in range(steps):
        if env.step(0)[3]:
            truncations += 1
            env.reset()
    return truncations


def test_many_good_steps_end_the_row_of_failures() -> None:
    policy = GuardPolicy(max_failures=1, backoff_s=0.0, forgive_steps=3)
    with pytest.raises(EnvError):
        run(guard("step", "too few", policy, at=2, lengths=(99,)), 30, seed=0)
    assert run(guard("step", "enough", policy, at=3, lengths=(99,)), 30, seed=0) == 7


def test_a_reset_that_raises_is_tried_again_after_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(rl_ops.guarded_env.time, "sleep", waits.append)
    policy = GuardPolicy(max_failures=3, backoff_s=0.5)
    env = guard("reset", "reset twice", policy, times=2)
    obs, _ = env.reset(seed=4)
    np.testing.assert_array_equal(obs, [0, 0])
    assert waits == [0.5, 1.0]
    assert SEEN["reset twice/seeds"] == [4, 4, 4], "a seed that was asked for is kept"


def test_a_reset_that_always_raises_fails() -> None:
    words = r"Faulty.reset failed 3 times in a row \(seed 4\), last with RuntimeError: no reset"
    with pytest.raises(EnvError, match=words):
        guard("reset", "reset always").reset(seed=4)


def test_an_environment_that_cannot_be_built_again_fails_as_its_reset() -> None:
    made = []

    def build() -> FaultyEnv:
        made.append(1)
        if len(made) > 1:
            raise OSError("licence server is down")
        return FaultyEnv(fault="step", key="unbuildable", at=0)

    env = GuardedEnv(build, POLICY, name="Licensed")
    env.reset(seed=0)
    env.step(0)
    with pytest.raises(EnvError, match=r"Licensed.reset failed 3 times.*OSError: licence server"):
        env.reset()


def test_an_observation_outside_the_space_is_no_failure_to_survive() -> None:
    env = guard("dtype", "spec", at=0)
    env.reset(seed=0)
    with pytest.raises(SpecError, match=r"Faulty.step: obs has dtype float64"):
        env.step(0)
    with pytest.raises(SpecError, match=r"Faulty.reset: obs has shape \(1,\)"):
        guard("reset_shape", "spec reset").reset(seed=0)


def test_what_is_not_an_exception_passes() -> None:
    class Interrupted(FaultyEnv):
        def step(self, _action: object) -> tuple:
            raise KeyboardInterrupt

    env = GuardedEnv(lambda: Interrupted(fault="", key="interrupt"), POLICY, name="x")
    env.reset(seed=0)
    with pytest.raises(KeyboardInterrupt):
        env.step(0)
