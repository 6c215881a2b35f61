"""Environments by name, and vector environments step by step, in every mode of autoreset."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from rl_ops.envs import EnvSpec, UnknownEnvError, VectorSlots, make_env
from rl_ops.errors import EnvError, SpecError
from tests.envs import CALLS, SEEN, CountEnv, NativeCount
from tests.rollout_kit import env_spec

NATIVE = "tests.envs:tests/Count-v0"


def close_after(slots: VectorSlots) -> VectorSlots:
    slots.close()
    return slots


def test_a_registered_id_and_a_factory_make_environments() -> None:
    env = make_env(EnvSpec("CartPole-v1"))
    assert env.unwrapped.spec.id == "CartPole-v1"
    assert isinstance(make_env(EnvSpec("tests.envs:count", {"lengths": (9,)})), CountEnv)
    assert make_env(EnvSpec("tests.envs:tests/Plain-v0")).unwrapped.lengths == (3,)


def test_a_time_limit_replaces_the_registered_one_and_binds_factories_too() -> None:
    for env_id in ("CartPole-v1", "tests.envs:count"):
        kwargs = {"lengths": (9,)} if "count" in env_id else {}
        env = make_env(EnvSpec(env_id, kwargs, max_episode_steps=2))
        env.reset(seed=0)
        assert [env.step(0)[3] for _ in range(2)] == [False, True]
    slots = VectorSlots(EnvSpec("CartPole-v1", max_episode_steps=2), 1)
    slots.reset([0])
    assert [slots.step(np.array([0])).truncated.item() for _ in range(2)] == [False, True]


@pytest.mark.parametrize(
    ("env_id", "words"),
    [
        ("CartPol-v1", "did you mean CartPole-v1"),
        ("nowhere:env", "no module 'nowhere'; is its folder on PYTHONPATH"),
        ("tests.envs:nothing", "module 'tests.envs' has no 'nothing' and registers no"),
        ("tests.envs:not_an_env", "returned str, expected a gymnasium.Env"),
    ],
)
def test_an_unknown_environment_says_what_to_do(env_id: str, words: str) -> None:
    with pytest.raises(UnknownEnvError, match=words):
        make_env(EnvSpec(env_id))


def test_auto_takes_the_native_vector_environment_where_there_is_one() -> None:
    kinds = {"CartPole-v1": None, NATIVE: NativeCount, "tests.envs:count": SyncVectorEnv}
    for env_id, kind in kinds.items():
        env = close_after(VectorSlots(EnvSpec(env_id), 2)).env
        if kind is None:
            assert not isinstance(env, SyncVectorEnv | AsyncVectorEnv)
        else:
            assert isinstance(env.unwrapped, kind)


def test_native_is_refused_where_there_is_none() -> None:
    for env_id in ("tests.envs:count", "tests.envs:tests/Plain-v0"):
        with pytest.raises(UnknownEnvError, match=r"no vector entry point; set env.vectorization"):
            VectorSlots(EnvSpec(env_id, vectorization="native"), 1)


def test_an_environment_that_does_not_reset_itself_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Manual(NativeCount):
        def __init__(self, num_envs: int, **_: object) -> None:
            super().__init__(num_envs)
            self.metadata = {"autoreset_mode": AutoresetMode.DISABLED}

    monkeypatch.setattr(gym.registry["tests/Count-v0"], "vector_entry_point", Manual)
    with pytest.raises(UnknownEnvError, match="supported are NEXT_STEP and SAME_STEP"):
        VectorSlots(EnvSpec(NATIVE), 1)


def test_same_step_autoreset_gives_the_new_episode_and_the_old_ones_final_observation() -> None:
    for spec in (
        env_spec("count", lengths=(1, 2)),
        env_spec(NATIVE, same_step=True, lengths=(1, 2)),
    ):
        slots = VectorSlots(spec, 2)
        slots.reset([0, 1])
        step = slots.step(np.array([0, 0]))
        np.testing.assert_array_equal(step.obs, [[1, 0]] * 2)
        np.testing.assert_array_equal(step.successor, [[0, 1]] * 2)
        assert step.is_transition.all()
        assert step.is_first.all()
        assert step.terminated.all()
        step = slots.step(np.array([0, 0]))
        assert step.successor is step.obs, "nothing ended, nothing is copied"
        assert not step.is_first.any()


def test_next_step_autoreset_spends_a_step_that_is_no_transition() -> None:
    slots = VectorSlots(env_spec(NATIVE, lengths=(1, 2), noisy_reset=True), 1)
    slots.reset([0])
    first, second, third = (slots.step(np.array([0])) for _ in range(3))
    assert (first.obs.tolist(), first.terminated.item()) == ([[0, 1]], True)
    assert first.successor is first.obs
    assert (second.obs.tolist(), second.is_transition.item()) == ([[1, 0]], False)
    assert second.is_first.item()
    # what the environment says of that step is about nothing
    assert (second.reward.item(), second.terminated.item(), second.ended.item()) == (
        0,
        False,
        False,
    )
    assert (third.obs.tolist(), third.is_transition.item()) == ([[1, 1]], True)


def test_trees_of_final_observations_replace_the_rows_that_ended() -> None:
    spec = env_spec("spaces_env", obs="dict", length=1)
    slots = VectorSlots(spec, 2)
    slots.reset([0, 1])
    step = slots.step(np.array([0, 0]))
    assert step.successor.keys() == step.obs.keys()
    assert (step.successor["place"] != step.obs["place"]).all()
    assert step.successor["inner"][0].shape == (2,)
    slots = VectorSlots(env_spec("spaces_env", obs="tuple", length=1, vectorization="async"), 2)
    slots.reset([0, 1])
    step = slots.step(np.array([0, 0]))
    slots.close()
    assert isinstance(step.successor, tuple)
    assert step.successor[1].shape == (2, 2)


def test_same_step_autoreset_without_final_observations_is_refused() -> None:
    slots = VectorSlots(env_spec(NATIVE, same_step=True, has_final=False, lengths=(1,)), 1)
    slots.reset([0])
    with pytest.raises(SpecError, match=r"tests/Count-v0 resets in the step.*no 'final_obs'"):
        slots.step(np.array([0]))


def test_seeds_reach_each_environment() -> None:
    for vectorization in ("sync", "async"):
        slots = VectorSlots(env_spec("count", tagged=True, vectorization=vectorization), 3)
        obs = slots.reset([5, 6, 5])
        slots.close()
        assert obs[0, 2] == obs[2, 2] != obs[1, 2]


def test_a_native_environment_that_raises_is_built_again_and_its_episodes_aborted() -> None:
    spec = env_spec(NATIVE, key="native once", raises_at=3, lengths=(9,))
    slots = VectorSlots(spec, 2)
    slots.reset([7, 8])
    slots.step(np.array([0, 0]))
    before = slots.step(np.array([0, 0]))
    step = slots.step(np.array([0, 0]))
    np.testing.assert_array_equal(step.successor, before.obs)
    np.testing.assert_array_equal(step.obs, [[0, 0], [0, 0]])
    assert step.truncated.all()
    assert not step.terminated.any()
    assert step.is_first.all()
    assert step.aborted == dict.fromkeys((0, 1), "RuntimeError: the simulator is gone")
    assert slots.step(np.array([0, 0])).obs.tolist() == [[0, 1], [0, 1]]
    seeds = SEEN["native once/seeds"]
    assert seeds[0] == 7
    assert seeds[1] not in (None, 7), "with the first seed it would meet the same exception"


def test_a_native_environment_that_raises_while_one_is_reset_aborts_the_others_only() -> None:
    spec = env_spec(NATIVE, key="native reset", raises_at=2, lengths=(1, 9))
    slots = VectorSlots(spec, 1)
    slots.reset([0])
    assert slots.step(np.array([0])).terminated.all()
    step = slots.step(np.array([0]))
    assert (step.is_transition.item(), step.ended.item(), dict(step.aborted)) == (False, False, {})
    assert slots.step(np.array([0])).is_transition.item()


def test_a_native_environment_that_always_raises_fails_with_its_name_and_seed() -> None:
    spec = env_spec(NATIVE, key="native always", raises_at=-1)
    slots = VectorSlots(spec, 1)
    slots.reset([41])
    for _ in range(2):
        slots.step(np.array([0]))
    with pytest.raises(EnvError, match=r"Count-v0.step failed 3 times in a row \(seed 41\), last"):
        slots.step(np.array([0]))
    assert CALLS["native always"] == 3


def test_an_error_in_a_process_of_its_own_arrives_here() -> None:
    for fault, kind, words in (
        ("step", EnvError, r"faulty.step failed 3 times in a row \(seed 3\)"),
        ("shape", SpecError, r"faulty.step: obs has shape \(1,\)"),
    ):
        spec = env_spec("faulty", fault=fault, key=f"async {fault}", at=0, vectorization="async")
        slots = VectorSlots(spec, 1)
        slots.reset([3])
        with pytest.raises(kind, match=words), warnings.catch_warnings(action="ignore"):
            [slots.step(np.array([0])) for _ in range(3)]
        slots.close()


def test_an_info_of_the_users_own_does_not_abort() -> None:
    spec = env_spec("faulty", fault="user_info", key="user_info", at=0, lengths=(1,))
    slots = VectorSlots(spec, 1)
    slots.reset([0])
    assert slots.step(np.array([0])).aborted == {}
