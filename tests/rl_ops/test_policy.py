"""Acting: one observation or many, from episode to episode, with the same bits as in a rollout."""

import dataclasses
import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from rl_ops import columns as c
from rl_ops.connectors import FrameStackObs
from rl_ops.errors import SpecError
from rl_ops.exploration import Greedy, Sample
from rl_ops.policy import Policy, PolicySpec, Weights
from rl_ops.recorder import Recorder
from rl_ops.spaces import codec_for
from tests.envs import OBS_SPACES
from tests.rollout_kit import (
    env_spec,
    linear_weights,
    make_rollout,
    policy_spec,
    random_weights,
)


def policy_for(obs: str = "vector", action: str = "discrete", **kwargs: Any) -> Policy:
    spec = policy_spec(env_spec("spaces_env", obs=obs, action=action), **kwargs)
    return Policy(spec, random_weights(spec))


def sample_batch(obs: str, rows: int) -> Any:
    """A batch tree of samples, and the samples."""
    space = OBS_SPACES[obs]
    space.seed(3)
    samples = [space.sample() for _ in range(rows)]

    def stack(parts: list[Any]) -> Any:
        if isinstance(parts[0], dict):
            return {k: stack([p[k] for p in parts]) for k in parts[0]}
        if isinstance(parts[0], tuple):
            return tuple(stack(list(p)) for p in zip(*parts, strict=True))
        return np.stack(parts)

    return stack(samples), samples


@pytest.mark.parametrize("obs", ["vector", "dict", "tuple", "discrete", "multi_discrete"])
def test_one_observation_acts_as_a_batch_of_one(obs: str) -> None:
    policy = policy_for(obs)
    batch, samples = sample_batch(obs, 5)
    actions, _, extras = policy.act(batch)
    assert actions.shape == (5,)
    for i, sample in enumerate(samples):
        action, _, extra = policy.act(sample)
        assert np.ndim(action) == 0
        assert action == actions[i]
        assert extra["logp"] == pytest.approx(extras["logp"][i], rel=1e-5)
        assert extra["value"] == pytest.approx(extras["value"][i], rel=1e-4)


def test_an_action_is_what_the_environment_takes_and_extras_what_the_distribution_gave() -> None:
    policy = policy_for(action="shifted")
    obs = np.full(3, 0.5, np.float32)
    action, _, extras = policy.act(obs)
    assert policy.spec.action_space.contains(action)
    assert action == extras["action"] + 5
    policy = policy_for(action="dict")
    action, _, extras = policy.act(obs)
    assert policy.spec.action_space.contains(action)
    assert extras["action"]["how"].shape == (2,)
    actions, _, _ = policy.act(np.tile(obs, (4, 1)))
    assert {k: x.shape for k, x in actions.items()} == {"go": (4,), "how": (4, 2)}


def test_without_exploring_acting_is_repeatable_and_takes_the_mode() -> None:
    policy = policy_for(action="wide_box")
    batch, _ = sample_batch("vector", 6)
    first, second = policy.act(batch), policy.act(batch)
    np.testing.assert_array_equal(first[0], second[0])
    distribution, params = policy.dist(batch)
    np.testing.assert_array_equal(first[2]["action"], distribution.mode(params))


def test_exploring_is_repeatable_from_a_seeded_start() -> None:
    policy = policy_for(action="wide_box")
    batch, _ = sample_batch("vector", 6)

    def explore(seed: int) -> list[np.ndarray]:
        state, actions = policy.start(6, seed=seed), []
        for _ in range(3):
            action, state, _ = policy.act(batch, state, explore=True)
            actions.append(action)
        return actions

    assert np.array_equal(explore(1), explore(1))
    assert not np.array_equal(explore(1), explore(2))
    assert not np.array_equal(explore(1)[0], explore(1)[1])
    assert not np.array_equal(policy.act(batch, explore=True)[0], policy.act(batch)[0])


def test_logp_and_value_are_those_of_the_action() -> None:
    policy = policy_for(action="wide_box")
    batch, _ = sample_batch("vector", 6)
    _, _, extras = policy.act(batch, policy.start(6, seed=0), explore=True)
    np.testing.assert_array_equal(extras["logp"], policy.logp(batch, extras["action"]))
    np.testing.assert_array_equal(extras["value"], policy.value(batch))


@pytest.mark.parametrize("seed", [None, 1])
def test_frames_stack_from_call_to_call_and_begin_anew_without_a_state(seed: int | None) -> None:
    spec = policy_spec(env_spec("count"), connectors=(FrameStackObs(2),))
    policy = Policy(spec, linear_weights(spec, value=(0, 10, 0, 1), bias=0))
    for _ in range(2):
        state = None if seed is None else policy.start(1, seed=seed)
        values = []
        for t in (3, 4, 6):
            _, state, extras = policy.act(np.array([0, t], np.float32), state)
            values.append(extras["value"].item())
        # the first observation of an episode fills the stack, also with a state of one's own
        assert values == [33, 34, 46]


def test_observations_are_normalised_with_the_weights_statistics() -> None:
    spec = policy_spec(env_spec("count"))
    module = linear_weights(spec, value=(1.0, 1.0), bias=0.0).module
    obs = np.array([[5, 3], [500, 2]], np.float32)
    mean, std = np.array([1, 2], np.float32), np.array([2, 4], np.float32)
    assert Policy(spec, Weights(module)).value(obs).tolist() == [8, 502]
    policy = Policy(spec, Weights(module, mean, std))
    np.testing.assert_array_equal(policy.module_input(obs), [[2, 0.25], [10, 0]])
    assert policy.value(obs).tolist() == [2.25, 10]


@pytest.mark.parametrize("act", [Sample(), Greedy()])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("action", ["discrete", "wide_box", "tuple"])
def test_a_rollout_and_a_policy_give_the_same_bits(action: str, shared: bool, act: Any) -> None:
    env = env_spec("spaces_env", action=action, length=20)
    spec = policy_spec(env, hidden=(16, 8), shared=shared)
    mean, std = np.full(3, 0.1, np.float32), np.full(3, 0.7, np.float32)
    weights = Weights(random_weights(spec).module, mean, std)
    spec = dataclasses.replace(spec, act=act)
    rollout = make_rollout(env, policy=spec, weights=weights, num_envs=8, steps=6)
    params: list[np.ndarray] = []

    class Spy(Recorder):
        def act(self, i: int, obs: Any, module_obs: Any, action: Any, row: Any) -> None:
            params.append(row.copy())
            super().act(i, obs, module_obs, action, row)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rl_ops.rollout.Recorder", Spy)
        table = rollout.fragment(0)
    rollout.close()
    obs = codec_for(spec.obs_space).decode(table.column(c.OBS)).reshape(8, 6, 3)
    codec = codec_for(spec.action_connectors.input_space)
    actions = codec.decode(table.column(c.ACTION))
    policy = Policy(PolicySpec.from_json(json.loads(json.dumps(spec.to_json()))), weights)
    for i in range(6):
        _, found = policy.dist(obs[:, i])
        np.testing.assert_array_equal(found, params[i])
        _, _, extras = policy.act(obs[:, i])
        if shared:  # values came with the actions, 8 rows at a time
            value = table.column(c.VALUE).to_numpy().reshape(8, 6)[:, i]
            np.testing.assert_array_equal(extras["value"], value)
    flat = np.stack(params, axis=1).reshape(48, -1)
    np.testing.assert_array_equal(table.column(c.LOGP), policy.distribution.logp(flat, actions))
    if not shared:  # values were asked for at the fragment's end, final observations first
        finals = obs[:, -1:]  # any rows: only how many there are matters to the bits
        joined = np.concatenate([finals.reshape(8, 3), obs.reshape(48, 3)])
        value = policy.value(joined)[8:]
        np.testing.assert_array_equal(table.column(c.VALUE), value)


@pytest.mark.parametrize("action", ["dict", "shifted", "wide_box", "multi_binary"])
@pytest.mark.parametrize("obs", ["dict", "image", "discrete"])
def test_a_spec_survives_json(obs: str, action: str) -> None:
    spec = policy_spec(env_spec("spaces_env", obs=obs, action=action), hidden=(4,))
    data = json.loads(json.dumps(spec.to_json(), allow_nan=False))
    again = PolicySpec.from_json(data)
    assert again == spec
    assert again.distribution == spec.distribution


def test_observations_of_another_number_type_act_as_the_spaces_own() -> None:
    policy = policy_for()
    obs = np.array([0.1, 0.7, -0.3])
    expected = policy.act(obs.astype(np.float32))[2]["logp"]
    for same in (obs, obs.tolist()):
        assert policy.act(same)[2]["logp"] == expected
    assert policy_for("discrete").act(2)[0] == policy_for("discrete").act(np.int32(2))[0]


@pytest.mark.parametrize(
    ("obs", "value", "words"),
    [
        ("vector", np.zeros(4, np.float32), r"shape \(4,\); expected \(3,\), or a batch \(rows, 3"),
        ("vector", np.zeros((2, 2, 3), np.float32), r"shape \(2, 2, 3\)"),
        ("vector", 1.0, r"shape \(\); expected \(3,\)"),
        ("discrete", 1.5, "dtype float64 holds what Discrete"),
        ("image", np.full((10, 12, 3), 300), "dtype int64 holds what Box"),
        ("dict", {"place": np.zeros(2, np.float32)}, "observation dict does not fit Dict"),
        ("dict", np.zeros(2), "observation ndarray does not fit Dict"),
        (
            "dict",
            {"place": np.zeros((2, 2), np.float32), "inner": (1, np.zeros(2, np.int8))},
            "some parts of the observation of Dict.* are batches",
        ),
        ("tuple", (1,), "observation tuple does not fit Tuple"),
    ],
)
def test_an_observation_that_fits_neither_space_nor_batch_is_refused(
    obs: str, value: Any, words: str
) -> None:
    with pytest.raises(SpecError, match=words):
        policy_for(obs).act(value)


def test_a_policy_without_weights_says_so() -> None:
    policy = Policy(policy_spec(env_spec("count")))
    with pytest.raises(ValueError, match="has no weights yet; call set_weights"):
        policy.get_weights()


def test_the_summary_names_layers_and_counts_parameters() -> None:
    summary = policy_for(hidden=(5,)).summary()
    assert "params   58" in summary, "2 x (3 x 5 + 5) in towers, 12 and 6 in heads"
    assert "weight_0                (2, 3, 5)" in summary


def test_an_mlp_policy_acts_without_torch() -> None:
    script = (
        "import sys, numpy as np\n"
        "from tests.rollout_kit import env_spec, policy_spec, random_weights\n"
        "from rl_ops.policy import Policy\n"
        "spec = policy_spec(env_spec('count'), hidden=(8,))\n"
        "Policy(spec, random_weights(spec)).act(np.zeros(2, np.float32))\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.stdout.strip(), done.returncode) == ("False", 0), done.stderr
