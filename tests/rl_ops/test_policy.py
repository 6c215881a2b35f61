"""Acting: one observation or many, from episode to episode, with the same bits as in a rollout."""

import dataclasses
import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from rl_ops import columns as c
from rl_ops.connectors import FrameStackObs
from rl_ops.errors import SpecError
from rl_ops.exploration import Act, AddNoise, EpsilonGreedy, Greedy, RandomFirst, Sample
from rl_ops.model_spec import QSpec
from rl_ops.models import build_model
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


# --- Q networks, actors alone, and how they explore ---

Q_ENDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dueling": {"dueling": True},
    "categorical": {"atoms": "categorical", "num_atoms": 5, "v_min": -1.0, "v_max": 2.0},
    "quantile": {"atoms": "quantile", "num_atoms": 4},
    "noisy": {"dueling": True, "noisy": True},
}


def module_weights(spec: PolicySpec, **statistics: Any) -> Weights:
    """Weights of any network, far from where they start."""
    torch.manual_seed(1)
    module = build_model(spec.model)
    for parameter in module.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return Weights({k: x.numpy() for k, x in module.state_dict().items()}, **statistics)


def q_spec(end: str = "dueling", act: Act | None = None) -> PolicySpec:
    env = env_spec("spaces_env", action="shifted")
    spec = policy_spec(env, hidden=(8,), head="q", q=QSpec(3, **Q_ENDS[end]))
    return dataclasses.replace(spec, act=EpsilonGreedy(0.3) if act is None else act)


def q_policy(end: str = "dueling", act: Act | None = None, **statistics: Any) -> Policy:
    spec = q_spec(end, act)
    return Policy(spec, module_weights(spec, **statistics))


def actor_spec(act: Act, *, deterministic: bool = True) -> PolicySpec:
    """An actor alone over two numbers in [0, 10]."""
    env = env_spec("spaces_env", action="wide_box")
    spec = policy_spec(env, squash=True, hidden=(8,), head="actor")
    if not deterministic:
        return dataclasses.replace(spec, act=act)
    model = dataclasses.replace(spec.model, param_size=2)
    return dataclasses.replace(spec, model=model, act=act, squash=False, deterministic=True)


STATISTICS = {"obs_mean": np.full(3, 0.2, np.float32), "obs_std": np.full(3, 0.5, np.float32)}


@pytest.mark.parametrize("statistics", [{}, STATISTICS], ids=["plain", "normalized"])
@pytest.mark.parametrize("end", list(Q_ENDS))
def test_values_advantages_and_distributions_agree_with_q(
    end: str, statistics: dict[str, Any]
) -> None:
    policy, (batch, _) = q_policy(end, **statistics), sample_batch("vector", 6)
    q = policy.q_values(batch)
    assert q.shape == (6, 3)
    fed = policy.module_input(batch)
    np.testing.assert_array_equal(q, policy.inference.forward(fed)[0])
    np.testing.assert_array_equal(policy.value(batch), q.max(1))
    value, advantage = policy.state_value(batch), policy.advantage(batch)
    np.testing.assert_allclose(value[:, None] + advantage, q, rtol=1e-6, atol=1e-6)
    if policy.spec.model.q.dueling:
        np.testing.assert_allclose(advantage.mean(1), 0, rtol=0, atol=1e-6)
    else:
        np.testing.assert_array_equal(value, q.max(1))
    atoms, p = policy.q_distribution(batch)
    assert atoms.shape == p.shape == (6, 3, policy.spec.model.q.num_atoms)
    np.testing.assert_allclose(p.sum(2), 1, rtol=1e-6)
    np.testing.assert_allclose((atoms * p).sum(2), q, rtol=1e-5, atol=1e-6)
    if end == "categorical":
        np.testing.assert_allclose(atoms[3, 1], [-1, -0.25, 0.5, 1.25, 2])


def test_a_greedy_q_policy_takes_the_action_of_the_largest_q() -> None:
    policy, (batch, samples) = q_policy(), sample_batch("vector", 6)
    actions, _, extras = policy.act(batch)
    best = policy.q_values(batch).argmax(1)
    np.testing.assert_array_equal(actions, best + 5)
    np.testing.assert_array_equal(extras["action"], best)
    np.testing.assert_allclose(np.exp(extras["logp"]), 0.7 + 0.1, rtol=1e-6)
    assert policy.act(samples[2])[0] == actions[2]
    logp = policy.logp(batch, (best + 1) % 3)
    np.testing.assert_allclose(np.exp(logp), 0.1, rtol=1e-6)


def test_a_policy_that_has_no_q_network_says_so() -> None:
    policy, obs = policy_for(), np.zeros((2, 3), np.float32)
    for ask in (policy.q_values, policy.q_distribution, policy.state_value, policy.advantage):
        with pytest.raises(ValueError, match="this policy has no Q network"):
            ask(obs)


def test_an_actor_alone_gives_no_value_and_noise_no_logp() -> None:
    spec = actor_spec(AddNoise(0.2))
    policy, (batch, _) = Policy(spec, module_weights(spec)), sample_batch("vector", 4)
    action, _, extras = policy.act(batch, explore=True)
    assert set(extras) == {"action"}
    np.testing.assert_allclose(action, 5 + 5 * extras["action"], rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="an actor alone: it knows no values"):
        policy.value(batch)
    with pytest.raises(ValueError, match=r"AddNoise\(.*has no density"):
        policy.logp(batch, extras["action"])


def test_an_act_that_the_actions_are_not_for_is_refused_when_the_policy_is_made() -> None:
    with pytest.raises(SpecError, match="nothing to sample; use AddNoise"):
        Policy(actor_spec(Sample()))


ACTING: dict[str, PolicySpec] = {
    "epsilon": q_spec("plain"),
    "ladder": q_spec("categorical", EpsilonGreedy(0.9, ladder_alpha=2.0, num_envs=6)),
    "noisy": q_spec("noisy", EpsilonGreedy(0.0)),
    "noise": actor_spec(AddNoise(((0, 1.0), (100, 0.1)))),
    "ou": actor_spec(RandomFirst(10, AddNoise(0.4, process="ou", dt=0.5))),
    "soft": actor_spec(RandomFirst(10, Sample()), deterministic=False),
}


@pytest.mark.parametrize("env_steps", [0, 50])
@pytest.mark.parametrize("name", list(ACTING))
def test_a_policy_from_json_explores_with_the_same_bits(name: str, env_steps: int) -> None:
    spec = ACTING[name]
    again = PolicySpec.from_json(json.loads(json.dumps(spec.to_json(), allow_nan=False)))
    assert again == spec
    weights, (batch, _) = module_weights(spec, env_steps=env_steps), sample_batch("vector", 6)
    seen = []
    for each in (spec, again):
        policy, found = Policy(each, weights), []
        state = policy.start(6, seed=3)
        for _ in range(4):
            action, state, extras = policy.act(batch, state, explore=True)
            found.append({"env": action, **extras})
        seen.append(found)
    for one, other in zip(*seen, strict=True):
        assert one.keys() == other.keys()
        for key, x in one.items():
            np.testing.assert_array_equal(x, other[key])
    first, second = seen[0][:2]
    assert not np.array_equal(first["env"], second["env"]), "it explores"


def test_noisy_weights_are_drawn_anew_for_each_step_that_explores_and_for_no_other() -> None:
    policy, (batch, _) = q_policy("noisy", EpsilonGreedy(0.0)), sample_batch("vector", 6)
    means = policy.act(batch)[2]["value"]
    state, values = policy.start(6, seed=0), []
    for _ in range(2):
        _, state, extras = policy.act(batch, state, explore=True)
        values.append(extras["value"])
    assert not np.array_equal(values[0], values[1])
    assert not np.array_equal(values[0], means)
    np.testing.assert_array_equal(policy.act(batch)[2]["value"], means)


def test_exploring_is_on_the_schedule_where_the_weights_are() -> None:
    spec = actor_spec(RandomFirst(10, Sample()), deterministic=False)
    batch = np.zeros((3, 3), np.float32)
    policy = Policy(spec, module_weights(spec, env_steps=9))
    _, _, extras = policy.act(batch, explore=True)
    np.testing.assert_allclose(extras["logp"], -2 * np.log(2), rtol=1e-6)
    policy.set_weights(module_weights(spec, env_steps=10))
    _, _, extras = policy.act(batch, explore=True)
    params = policy.dist(batch)[1]
    expected = policy.distribution.logp(params, extras["action"])
    np.testing.assert_array_equal(extras["logp"], expected)


def test_correlated_noise_goes_on_from_call_to_call() -> None:
    spec = actor_spec(AddNoise(0.5, process="ou", theta=1.0, dt=0.25))
    policy, (batch, _) = Policy(spec, module_weights(spec)), sample_batch("vector", 2)
    e = np.random.default_rng(5).standard_normal((2, 2, 2), dtype=np.float32)
    state, x = policy.start(2, seed=5), np.zeros((2, 2))
    mode = policy.act(batch)[2]["action"]
    for t in range(2):
        x = x - 0.25 * x + 0.5 * e[t]
        _, state, extras = policy.act(batch, state, explore=True)
        expected = (mode + 0.5 * x).clip(-1, 1)
        np.testing.assert_allclose(extras["action"], expected, rtol=0, atol=1e-6)


def test_a_spec_of_before_acts_were_written_down_samples() -> None:
    spec = policy_spec(env_spec("count"))
    data = spec.to_json()
    for name in ("act", "deterministic"):
        del data[name]
    for name in ("head", "q"):
        del data["model"][name]
    assert PolicySpec.from_json(data) == spec


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
