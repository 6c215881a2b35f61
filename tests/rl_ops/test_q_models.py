"""Q networks, critics and actors alone: torch against slow formulas, numpy against torch."""

import dataclasses
import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from rl_ops.inference import MLPInference, inference_for, mlp_names
from rl_ops.model_spec import ModelSpec, QSpec
from rl_ops.models import build_model
from rl_ops.q_inference import QInference, q_names
from rl_ops.q_models import CriticEnsemble, NoisyLinear, QNetwork
from rl_ops.torch_inference import TorchInference

ACTIONS, ROWS, OBS = 3, 17, 5

ENDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dueling": {"dueling": True},
    "categorical": {"atoms": "categorical", "num_atoms": 7, "v_min": -2.0, "v_max": 3.0},
    "quantile": {"atoms": "quantile", "num_atoms": 6},
    "noisy": {"noisy": True},
    "rainbow": {
        **{"dueling": True, "noisy": True, "atoms": "categorical"},
        **{"num_atoms": 7, "v_min": -2.0, "v_max": 3.0},
    },
    "dueling_quantile": {"dueling": True, "atoms": "quantile", "num_atoms": 4},
}
in_each_end = pytest.mark.parametrize("end", list(ENDS))


def q_spec(end: str, **model: Any) -> ModelSpec:
    kwargs = {"obs_shape": (OBS,), "hidden": (8, 6), "activation": "relu", **model}
    q = QSpec(ACTIONS, **ENDS[end])
    return ModelSpec(**{"kind": "mlp", "param_size": ACTIONS, "head": "q", **kwargs, "q": q})


def pair(spec: ModelSpec) -> tuple[Any, Any]:
    """A module with weights far from its initial ones, and what acts with them."""
    torch.manual_seed(5)
    module = build_model(spec)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    inference = inference_for(spec)
    inference.load({name: x.numpy() for name, x in module.state_dict().items()})
    return module, inference


def sample_obs(shape: tuple[int, ...] = (OBS,), *, rows: int = ROWS) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, *shape)).astype(np.float32)


def numpy_of(*tensors: torch.Tensor) -> list[np.ndarray]:
    return [x.detach().numpy() for x in tensors]


def assert_close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


# --- numpy against torch ---


@in_each_end
@pytest.mark.parametrize("hidden", [(), (8,), (8, 6)])
@pytest.mark.parametrize("activation", ["tanh", "relu", "silu"])
def test_numpy_gives_what_torch_gives(end: str, hidden: Any, activation: Any) -> None:
    module, inference = pair(q_spec(end, hidden=hidden, activation=activation))
    assert isinstance(inference, QInference)
    obs = sample_obs()
    before, given = obs.copy(), torch.from_numpy(obs)
    q, value = inference.forward(obs)
    assert_close(q, module(given)[0].detach())
    assert_close(value, module(given)[1].detach())
    assert_close(inference.value(obs), value)
    assert_close(inference.outputs(obs), module.outputs(given).detach())
    for found, expected in zip(inference.streams(obs), module.streams(given), strict=True):
        assert_close(found, expected.detach())
    assert (q.dtype, value.dtype, q.shape) == (np.float32, np.float32, (ROWS, ACTIONS))
    np.testing.assert_array_equal(obs, before)


@in_each_end
@pytest.mark.parametrize("hidden", [(), (8,), (8, 6)])
def test_the_names_in_numpy_are_the_modules(end: str, hidden: Any) -> None:
    spec = q_spec(end, hidden=hidden)
    assert sorted(q_names(spec)) == sorted(build_model(spec).state_dict())


def test_images_as_vectors_are_scaled_alike() -> None:
    module, inference = pair(q_spec("dueling", obs_shape=(2, 3, 1), obs_scale=1 / 255))
    obs = np.random.default_rng(0).integers(0, 256, (9, 2, 3, 1), dtype=np.uint8)
    assert_close(inference.forward(obs)[0], module(torch.from_numpy(obs))[0].detach())


def test_weights_of_another_end_are_refused_by_name() -> None:
    dueling = build_model(q_spec("dueling")).state_dict()
    inference = inference_for(q_spec("plain"))
    with pytest.raises(ValueError, match=r"missing \['advantage.0.*unexpected .*'value.0.bias'"):
        inference.load(
            {name: x.numpy() for name, x in dueling.items() if "trunk" in name}
            | {"value.0.bias": np.zeros(1, np.float32)}
        )


# --- what the ends mean ---


def test_a_dueling_network_is_value_plus_centred_advantage() -> None:
    module, _ = pair(q_spec("dueling"))
    obs = torch.from_numpy(sample_obs())
    with torch.no_grad():
        value, advantage = module.streams(obs)
        q, best = module(obs)
        hidden = torch.relu(module.trunk[0](obs))
        alone = module.value[1](torch.relu(module.value[0](hidden)))[:, 0]
    assert_close(value, alone)
    assert_close(advantage.mean(1), np.zeros(ROWS))
    for row, a in itertools.product(range(ROWS), range(ACTIONS)):
        assert float(q[row, a]) == pytest.approx(float(value[row] + advantage[row, a]), abs=1e-6)
    assert_close(best, q.max(1).values)


@pytest.mark.parametrize("end", ["plain", "categorical", "quantile", "dueling_quantile"])
def test_where_there_is_no_stream_of_values_the_largest_q_is_the_value(end: str) -> None:
    module, _ = pair(q_spec(end))
    obs = torch.from_numpy(sample_obs())
    with torch.no_grad():
        (value, advantage), (q, best) = module.streams(obs), module(obs)
    assert_close(value, best)
    assert_close(value[:, None] + advantage, q)
    assert float(advantage.max()) == 0.0


def test_q_is_the_mean_of_the_atoms() -> None:
    obs = torch.from_numpy(sample_obs())
    categorical, _ = pair(q_spec("categorical"))
    quantile, _ = pair(q_spec("quantile"))
    (logits,), (quantiles,) = (numpy_of(m.outputs(obs)) for m in (categorical, quantile))
    (q, _), (q_of_quantiles, _) = (numpy_of(*m(obs)) for m in (categorical, quantile))
    support = [-2.0 + i * 5.0 / 6 for i in range(7)]
    for row, a in itertools.product(range(ROWS), range(ACTIONS)):
        weight = [math.exp(x) for x in logits[row, a]]
        mean = sum(w * z for w, z in zip(weight, support, strict=True)) / sum(weight)
        assert q[row, a] == pytest.approx(mean, abs=1e-6)
        mean = sum(float(x) for x in quantiles[row, a]) / 6
        assert q_of_quantiles[row, a] == pytest.approx(mean, abs=1e-6)


def test_streams_of_atoms_are_centred_atom_by_atom() -> None:
    module, _ = pair(q_spec("dueling_quantile"))
    obs = torch.from_numpy(sample_obs())
    with torch.no_grad():
        outputs = module.outputs(obs)
        hidden = torch.relu(module.trunk[0](obs))
        value = module.value[1](torch.relu(module.value[0](hidden)))
    assert outputs.shape == (ROWS, ACTIONS, 4)
    assert_close(outputs.mean(1), value)


def test_the_support_is_no_weight() -> None:
    module = build_model(q_spec("categorical"))
    assert "support" not in module.state_dict()
    np.testing.assert_allclose(module.support, np.linspace(-2, 3, 7), rtol=1e-6)


def test_a_q_network_needs_its_end_to_be_described() -> None:
    spec = ModelSpec("mlp", (4,), 2, head="q")
    with pytest.raises(ValueError, match=r"a Q network needs ModelSpec.q"):
        build_model(spec)
    with pytest.raises(ValueError, match=r"a Q network needs ModelSpec.q"):
        inference_for(spec)


@in_each_end
def test_a_spec_survives_json(end: str) -> None:
    spec = q_spec(end)
    assert ModelSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


# --- noise on weights ---


def scaled(e: np.ndarray) -> np.ndarray:
    return np.sign(e) * np.sqrt(np.abs(e))


def noisy_output(layer: NoisyLinear, x: np.ndarray, e_in: Any, e_out: Any) -> np.ndarray:
    """Eq. 9 of Fortunato et al. 2018, with every weight's noise made."""
    weight, bias, w_sigma, b_sigma = numpy_of(
        layer.weight, layer.bias, layer.weight_sigma, layer.bias_sigma
    )
    w = weight + w_sigma * np.outer(scaled(e_out), scaled(e_in))
    return x @ w.T + bias + b_sigma * scaled(e_out)


def test_a_noisy_layer_is_the_papers_equation() -> None:
    torch.manual_seed(0)
    layer, x = NoisyLinear(4, 3, 0.5), sample_obs((4,))
    with torch.no_grad():
        layer.weight_sigma.uniform_(-0.5, 0.5)
        layer.bias_sigma.uniform_(-0.5, 0.5)
    layer.draw(torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(7)
    e_in, e_out = (torch.randn(n, generator=generator).numpy() for n in (4, 3))
    assert_close(layer(torch.from_numpy(x)).detach(), noisy_output(layer, x, e_in, e_out))


def test_noise_starts_at_the_papers_size_and_has_a_gradient() -> None:
    layer = NoisyLinear(16, 3, 0.5)
    sigmas = [*layer.weight_sigma.detach().flatten().tolist(), *layer.bias_sigma.tolist()]
    assert sigmas == [0.5 / 4] * (16 * 3 + 3)
    for mean in (layer.weight, layer.bias):
        assert float(mean.detach().abs().max()) <= 1 / 4
    layer.draw(torch.Generator().manual_seed(0))
    layer(torch.ones(2, 16)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())


@pytest.mark.parametrize("end", ["noisy", "rainbow"])
def test_noise_changes_outputs_and_without_it_the_means_are_back(end: str) -> None:
    module, inference = pair(q_spec(end))
    obs = sample_obs()
    given = torch.from_numpy(obs)
    means, acting_means = module(given)[0].detach(), inference.forward(obs)[0]
    seen = [means.numpy(), acting_means]
    for seed in (1, 2):
        module.draw_noise(torch.Generator().manual_seed(seed))
        inference.draw_noise(np.random.default_rng(seed))
        for found in (module(given)[0].detach().numpy(), inference.forward(obs)[0]):
            assert all(np.abs(found - other).max() > 1e-2 for other in seen)
            seen.append(found)
    repeated = inference.forward(obs)[0]
    np.testing.assert_array_equal(repeated, seen[-1], "noise stays until it is drawn anew")
    module.draw_noise(None)
    inference.draw_noise(None)
    np.testing.assert_array_equal(module(given)[0].detach(), means)
    np.testing.assert_array_equal(inference.forward(obs)[0], acting_means)


def test_every_noisy_layer_draws_noise_of_its_own() -> None:
    module, _ = pair(q_spec("rainbow"))
    layers = [x for x in module.modules() if isinstance(x, NoisyLinear)]
    assert len(layers) == 5, "one in the trunk, two in each stream"
    module.draw_noise(torch.Generator().manual_seed(0))
    drawn = [tuple(layer._noise[1].tolist()) for layer in layers]
    assert len(set(drawn)) == 5


def test_noise_in_numpy_is_the_papers_equation() -> None:
    module, inference = pair(q_spec("noisy", hidden=(8,)))
    obs = sample_obs()
    inference.draw_noise(np.random.default_rng(3))
    rng = np.random.default_rng(3)
    x = obs
    for layer, last in ((module.trunk[0], False), (module.advantage[0], True)):
        outputs, inputs = layer.weight.shape
        e_in, e_out = (rng.standard_normal(n, dtype=np.float32) for n in (inputs, outputs))
        x = noisy_output(layer, x, e_in, e_out)
        x = x if last else x.clip(0)
    assert_close(inference.forward(obs)[0], x)


def test_new_weights_act_by_their_means() -> None:
    module, inference = pair(q_spec("noisy"))
    obs = sample_obs()
    inference.draw_noise(np.random.default_rng(0))
    inference.load({name: x.numpy() for name, x in module.state_dict().items()})
    assert_close(inference.forward(obs)[0], module(torch.from_numpy(obs))[0].detach())


def test_a_network_without_noisy_layers_has_no_noise_to_draw() -> None:
    _, inference = pair(q_spec("dueling"))
    before = inference.forward(sample_obs())[0]
    inference.draw_noise(np.random.default_rng(0))
    np.testing.assert_array_equal(inference.forward(sample_obs())[0], before)


# --- images ---

IMAGE = (12, 12, 3)
CNN = {"kind": "cnn", "obs_shape": IMAGE, "conv": ((4, 4, 2),), "obs_scale": 1 / 255}


@in_each_end
def test_a_network_of_images_acts_in_torch_with_the_modules_bits(end: str) -> None:
    module, inference = pair(q_spec(end, **CNN))
    assert isinstance(inference, TorchInference)
    obs = np.random.default_rng(0).integers(0, 256, (5, *IMAGE), dtype=np.uint8)
    given = torch.from_numpy(obs)
    with torch.no_grad():
        (q, value), outputs, streams = module(given), module.outputs(given), module.streams(given)
    np.testing.assert_array_equal(inference.forward(obs)[0], q)
    np.testing.assert_array_equal(inference.forward(obs)[1], value)
    np.testing.assert_array_equal(inference.value(obs), value)
    np.testing.assert_array_equal(inference.outputs(obs), outputs)
    for found, expected in zip(inference.streams(obs), streams, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_noisy_network_of_images_draws_noise_by_a_numpy_generator() -> None:
    _, inference = pair(q_spec("noisy", **CNN))
    obs = np.random.default_rng(0).integers(0, 256, (5, *IMAGE), dtype=np.uint8)
    means = inference.forward(obs)[0]
    drawn = []
    for seed in (1, 2, 1):
        inference.draw_noise(np.random.default_rng(seed))
        drawn.append(inference.forward(obs)[0])
    np.testing.assert_array_equal(drawn[0], drawn[2])
    assert np.abs(drawn[0] - drawn[1]).max() > 1e-2
    assert np.abs(drawn[0] - means).max() > 1e-2
    inference.draw_noise(None)
    np.testing.assert_array_equal(inference.forward(obs)[0], means)


def test_a_users_own_q_network_has_q_values_but_no_streams() -> None:
    spec = q_spec("plain", kind="custom", factory="tests.models:linear")
    inference = inference_for(spec)
    assert inference.forward(sample_obs())[0].shape == (ROWS, ACTIONS)
    inference.draw_noise(np.random.default_rng(0))
    for ask in (inference.outputs, inference.streams):
        with pytest.raises(ValueError, match="Linear is no QNetwork"):
            ask(sample_obs())


# --- actors alone ---


@pytest.mark.parametrize("hidden", [(), (8,), (8, 6)])
@pytest.mark.parametrize("shared", [False, True])
def test_an_actor_alone_has_one_tower_one_head_and_no_value(hidden: Any, shared: bool) -> None:
    spec = ModelSpec("mlp", (OBS,), 4, hidden=hidden, head="actor", shared=shared)
    module, inference = pair(spec)
    assert isinstance(inference, MLPInference)
    assert sorted(mlp_names(spec)) == sorted(module.state_dict())
    assert not any("critic" in name for name in mlp_names(spec))
    obs = sample_obs()
    params, value = inference.forward(obs)
    expected, none = module(torch.from_numpy(obs))
    assert_close(params, expected.detach())
    assert value is None
    assert none is None
    assert (spec.has_value, spec.num_towers, inference.computes_value) == (False, 1, False)


def test_an_actor_of_images_has_no_value_either() -> None:
    spec = ModelSpec(
        "cnn", IMAGE, 4, hidden=(8,), conv=((4, 4, 2),), head="actor", obs_scale=1 / 255
    )
    module, inference = pair(spec)
    assert not any("critic" in name for name in module.state_dict())
    obs = np.random.default_rng(0).integers(0, 256, (5, *IMAGE), dtype=np.uint8)
    params, value = inference.forward(obs)
    np.testing.assert_array_equal(params, module(torch.from_numpy(obs))[0].detach())
    assert value is None
    with pytest.raises(ValueError, match="an actor alone: it knows no values"):
        inference.value(obs)


# --- critics ---


def slow_critic(critics: CriticEnsemble, k: int, x: np.ndarray) -> np.ndarray:
    layers = len(list(critics.parameters())) // 2
    for i in range(layers):
        weight, bias = numpy_of(*critics.layer(i))
        x = x @ weight[k] + bias[k, 0]
        x = x.clip(0) if i < layers - 1 else x
    return x


def critic_ensemble(**kwargs: Any) -> CriticEnsemble:
    torch.manual_seed(2)
    spec = ModelSpec("mlp", (OBS,), 4, hidden=(8, 6), activation="relu", head="actor")
    return CriticEnsemble(spec, **{"num_critics": 3, "inputs": 2, "outputs": 1, **kwargs})


@pytest.mark.parametrize("outputs", [1, 5])
def test_each_critic_is_a_network_of_its_own_over_observation_and_action(outputs: int) -> None:
    critics = critic_ensemble(outputs=outputs)
    obs, action = sample_obs(), np.random.default_rng(1).standard_normal((ROWS, 2))
    action = action.astype(np.float32)
    q = critics(torch.from_numpy(obs), torch.from_numpy(action)).detach()
    assert q.shape == (3, ROWS, outputs)
    for k in range(3):
        expected = slow_critic(critics, k, np.concatenate([obs, action], axis=1))
        assert_close(q[k], expected)
    assert (q[0] - q[1]).abs().max() > 1e-3, "they start apart"


def test_critics_of_all_actions_are_given_none() -> None:
    critics = critic_ensemble(inputs=0, outputs=ACTIONS)
    obs = sample_obs()
    q = critics(torch.from_numpy(obs)).detach()
    for k in range(3):
        assert_close(q[k], slow_critic(critics, k, obs))


def test_actions_of_any_shape_are_put_beside_the_observation_in_order() -> None:
    critics = critic_ensemble(inputs=4)
    obs = torch.from_numpy(sample_obs())
    action = torch.randn(ROWS, 2, 2)
    assert torch.equal(critics(obs, action), critics(obs, action.reshape(ROWS, 4)))


def test_the_gradient_of_one_critic_reaches_no_other() -> None:
    critics = critic_ensemble()
    obs, action = torch.from_numpy(sample_obs()), torch.randn(ROWS, 2, requires_grad=True)
    critics(obs, action)[1].sum().backward()
    for parameter in critics.parameters():
        assert not parameter.grad[[0, 2]].any()
        assert parameter.grad[1].any()
    assert action.grad.abs().sum() > 0


def test_critics_start_as_torchs_linear_layers_do() -> None:
    critics = critic_ensemble(num_critics=200)
    for i, inputs in enumerate((OBS + 2, 8, 6)):
        bound = 1 / math.sqrt(inputs)
        weight, bias = numpy_of(*critics.layer(i))
        assert max(np.abs(weight).max(), np.abs(bias).max()) <= bound
        assert weight.std() == pytest.approx(bound / math.sqrt(3), rel=0.05)
        assert bias.std() == pytest.approx(bound / math.sqrt(3), rel=0.2)


def test_critics_of_images_share_their_convolutions() -> None:
    spec = ModelSpec(
        "cnn", IMAGE, 4, hidden=(8,), conv=((4, 4, 2),), obs_scale=1 / 255, head="actor"
    )
    critics = CriticEnsemble(spec, num_critics=2, inputs=2, outputs=1)
    obs = torch.randint(0, 256, (5, *IMAGE), dtype=torch.uint8)
    q = critics(obs, torch.zeros(5, 2))
    assert q.shape == (2, 5, 1)
    q[0].sum().backward()
    assert critics.conv[0].weight.grad.abs().sum() > 0


def test_networks_of_values_take_no_rows() -> None:
    none = np.zeros((0, OBS), np.float32)
    for end in ("plain", "dueling", "rainbow"):
        module, inference = pair(q_spec(end))
        assert isinstance(module, QNetwork)
        assert inference.forward(none)[0].shape == (0, ACTIONS)
        assert module(torch.from_numpy(none))[0].shape == (0, ACTIONS)
    assert critic_ensemble()(torch.from_numpy(none), torch.zeros(0, 2)).shape == (3, 0, 1)


def test_a_squashed_gaussians_deviation_begins_where_it_is_told() -> None:
    plain = ModelSpec("mlp", (3,), 4, hidden=(8,), head="actor", log_std_params=(2, 3))
    told = dataclasses.replace(plain, log_std_init=-1.5)
    obs = torch.zeros(2, 3)
    for spec, expected in ((plain, 0.0), (told, -1.5)):
        torch.manual_seed(0)
        params = build_model(spec)(obs)[0]
        assert params[:, 2:].tolist() == [[expected] * 2] * 2
        assert params[:, :2].tolist() == [[0.0] * 2] * 2
    assert ModelSpec.from_json(json.loads(json.dumps(told.to_json()))) == told
