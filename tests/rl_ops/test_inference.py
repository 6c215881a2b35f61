"""Acting in numpy gives what the learner's torch module gives."""

from typing import Any

import numpy as np
import pytest
import torch

from rl_ops.inference import MLPInference, inference_for, mlp_names
from rl_ops.model_spec import ModelSpec
from rl_ops.models import build_model
from rl_ops.torch_inference import TorchInference

CNN = ModelSpec("cnn", (12, 12, 3), 2, hidden=(8,), conv=((4, 4, 2),), obs_scale=1 / 255)
CUSTOM = ModelSpec("custom", (4,), 2, factory="tests.models:linear")


def pair(spec: ModelSpec) -> tuple[Any, Any, dict[str, np.ndarray]]:
    """A module with weights far from their initial ones, its inference, and the weights."""
    torch.manual_seed(5)
    module = build_model(spec)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    weights = {name: x.numpy() for name, x in module.state_dict().items()}
    inference = inference_for(spec)
    inference.load(weights)
    return module, inference, weights


@pytest.mark.parametrize("activation", ["tanh", "relu", "silu"])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("hidden", [(), (8,), (16, 8)])
@pytest.mark.parametrize(
    "extra", [{}, {"free_params": (2, 3)}, {"obs_shape": (2, 3, 1), "obs_scale": 1 / 255}]
)
def test_numpy_gives_what_torch_gives(
    activation: Any, shared: bool, hidden: tuple[int, ...], extra: dict[str, Any]
) -> None:
    kwargs = {"obs_shape": (6,), "activation": activation, "shared": shared, "hidden": hidden}
    spec = ModelSpec("mlp", param_size=4, **{**kwargs, **extra})
    module, inference, _ = pair(spec)
    rng = np.random.default_rng(0)
    if "obs_scale" in extra:
        obs = rng.integers(0, 256, (33, *spec.obs_shape), dtype=np.uint8)
    else:
        obs = (3 * rng.standard_normal((33, *spec.obs_shape))).astype(np.float32)
    with torch.no_grad():
        expected_params, expected_value = (x.numpy() for x in module(torch.from_numpy(obs)))
    before = obs.copy()
    params, value = inference.forward(obs)
    np.testing.assert_allclose(params, expected_params, rtol=1e-6, atol=2e-6)
    np.testing.assert_allclose(inference.value(obs), expected_value, rtol=1e-6, atol=2e-6)
    assert (value is not None) == shared == inference.computes_value
    if value is not None:
        np.testing.assert_allclose(value, expected_value, rtol=1e-6, atol=2e-6)
    np.testing.assert_array_equal(obs, before)
    assert (params.dtype, inference.value(obs).dtype) == (np.float32, np.float32)


@pytest.mark.parametrize("activation", ["tanh", "relu", "silu"])
def test_large_inputs_neither_warn_nor_overflow(activation: Any) -> None:
    spec = ModelSpec("mlp", (1,), 1, hidden=(1,), activation=activation)
    module, inference, _ = pair(spec)
    obs = np.array([[-1e4], [-300.0], [-90.0], [300.0], [1e4]], np.float32)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        params, _ = inference.forward(obs)
    with torch.no_grad():
        np.testing.assert_allclose(params, module(torch.from_numpy(obs))[0], rtol=1e-6, atol=2e-6)


def test_an_mlp_acts_in_numpy_and_all_else_in_torch() -> None:
    assert isinstance(inference_for(ModelSpec("mlp", (4,), 2)), MLPInference)
    for spec in (CNN, CUSTOM):
        assert isinstance(inference_for(spec), TorchInference)


@pytest.mark.parametrize("spec", [CNN, CUSTOM])
def test_torch_inference_gives_what_the_module_gives(spec: ModelSpec) -> None:
    module, inference, _ = pair(spec)
    obs = np.random.default_rng(0).integers(0, 256, (5, *spec.obs_shape), dtype=np.uint8)
    with torch.no_grad():
        expected_params, expected_value = module(torch.from_numpy(obs))
    params, value = inference.forward(obs)
    np.testing.assert_array_equal(params, expected_params.numpy())
    np.testing.assert_array_equal(value, expected_value.numpy())
    np.testing.assert_array_equal(inference.value(obs), expected_value.numpy())
    read_only = np.lib.stride_tricks.as_strided(obs, writeable=False)
    np.testing.assert_array_equal(inference.forward(read_only)[0], params)


def test_torch_inference_keeps_weights_of_its_own() -> None:
    _, inference, weights = pair(CUSTOM)
    obs = np.ones((1, 4), np.float32)
    before = inference.value(obs)
    for array in weights.values():
        array += 1
    np.testing.assert_array_equal(inference.value(obs), before)


def test_read_only_weights_are_taken() -> None:
    for spec in (ModelSpec("mlp", (4,), 2), CUSTOM):
        _, inference, weights = pair(spec)
        frozen = {}
        for name, array in weights.items():
            frozen[name] = array.copy()
            frozen[name].flags.writeable = False
        inference.load(frozen)
        assert np.isfinite(inference.value(np.ones((2, 4), np.float32))).all()


def test_no_rows_give_no_rows() -> None:
    for spec in (ModelSpec("mlp", (4,), 2), CUSTOM):
        _, inference, _ = pair(spec)
        assert inference.forward(np.zeros((0, 4), np.float32))[0].shape == (0, 2)


def test_the_names_of_an_mlps_parameters_are_those_of_its_module() -> None:
    for spec in (
        ModelSpec("mlp", (4,), 2),
        ModelSpec("mlp", (4,), 2, hidden=(), free_params=(1,), shared=True),
    ):
        assert set(mlp_names(spec)) == set(build_model(spec).state_dict())


def test_weights_of_another_model_are_refused_by_name() -> None:
    deep = build_model(ModelSpec("mlp", (4,), 2, hidden=(8, 8))).state_dict()
    weights = {name: x.numpy() for name, x in deep.items()}
    words = r"missing \[\], unexpected \['bias_1', 'weight_1'\]"
    with pytest.raises(ValueError, match=words):
        MLPInference(ModelSpec("mlp", (4,), 2, hidden=(8,))).load(weights)
    with pytest.raises(ValueError, match=r"missing \['layer.bias', 'layer.weight'\]"):
        TorchInference(CUSTOM).load({})
    with pytest.raises(RuntimeError, match="size mismatch"):
        TorchInference(CUSTOM).load({"layer.weight": np.ones((1, 4)), "layer.bias": np.ones(1)})


def test_a_model_whose_output_would_broadcast_is_refused() -> None:
    spec = ModelSpec(
        "custom", (4,), 2, factory="tests.models:linear", factory_kwargs={"wide_value": True}
    )
    words = r"gave params \(3, 2\) and value \(3, 1\); expected \(3, 2\) and \(3,\)"
    with pytest.raises(ValueError, match=words):
        TorchInference(spec).forward(np.zeros((3, 4), np.float32))
