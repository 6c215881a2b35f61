"""Networks in torch: gradients, initialisation, shapes, and what is refused."""

import math
from typing import Any

import pytest
import torch

from rl_ops.model_spec import ModelSpec
from rl_ops.models import (
    CNNActorCritic,
    MLPActorCritic,
    build_model,
    tanh,
)
from rl_ops.object_path import load_object

MLP = ModelSpec("mlp", (4,), 3, hidden=(8, 16))
CNN = ModelSpec("cnn", (20, 24, 3), 2, hidden=(16,), conv=((4, 4, 2), (8, 3, 1)), obs_scale=1 / 255)


def test_tanh_has_torchs_values_and_gradient() -> None:
    x = torch.linspace(-4, 4, 101).reshape(1, 101).expand(3, 101).clone().requires_grad_()
    twin = x.detach().clone().requires_grad_()
    weight = torch.randn(3, 101, generator=torch.Generator().manual_seed(0))
    y, expected = tanh(x), torch.tanh(twin)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-6)
    (y * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(x.grad, twin.grad, rtol=0, atol=1e-6)


def test_tanh_of_float64_is_differentiable_twice() -> None:
    x = torch.linspace(-2, 2, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(tanh, (x,))
    assert torch.autograd.gradgradcheck(tanh, (x,))


@pytest.mark.parametrize("weight", [torch.ones(7), torch.full((7,), 2.0, requires_grad=True)])
def test_tanh_has_torchs_second_derivative(weight: torch.Tensor) -> None:
    # as in a gradient penalty; a tanh that is differentiable once would silently drop out of it
    def second(function: Any) -> torch.Tensor:
        x = torch.linspace(-2, 2, 7).requires_grad_()
        (grad,) = torch.autograd.grad((weight * function(x) + x**2).sum(), x, create_graph=True)
        return torch.autograd.grad(grad.sum(), x)[0]

    torch.testing.assert_close(second(tanh), second(torch.tanh), rtol=0, atol=1e-6)


def test_tanh_works_without_gradients_and_on_slices() -> None:
    x = torch.randn(6, 8)[:, ::2]
    with torch.inference_mode():
        torch.testing.assert_close(tanh(x), torch.tanh(x))


@pytest.mark.parametrize("shared", [False, True])
def test_an_mlp_has_a_tower_each_or_one_for_both(shared: bool) -> None:
    spec = ModelSpec("mlp", (4,), 3, hidden=(8, 16), shared=shared)
    model = build_model(spec)
    towers = 1 if shared else 2
    shapes = {name: tuple(x.shape) for name, x in model.state_dict().items()}
    assert shapes == {
        "weight_0": (towers, 4, 8),
        "bias_0": (towers, 1, 8),
        "weight_1": (towers, 8, 16),
        "bias_1": (towers, 1, 16),
        "actor_head.weight": (3, 16),
        "actor_head.bias": (3,),
        "critic_head.weight": (1, 16),
        "critic_head.bias": (1,),
    }
    params, value = model(torch.zeros(5, 4))
    assert (params.shape, value.shape) == ((5, 3), (5,))


def test_weights_start_orthogonal_with_the_papers_gains() -> None:
    model = MLPActorCritic(MLP)
    for name, size in (("weight_0", 4), ("weight_1", 8)):
        for tower in getattr(model, name).detach():
            torch.testing.assert_close(tower @ tower.T, 2 * torch.eye(size), rtol=0, atol=1e-5)
    actor = model.actor_head.weight.detach()
    torch.testing.assert_close(actor @ actor.T, 1e-4 * torch.eye(3), rtol=0, atol=1e-8)
    assert float(model.critic_head.weight.detach().norm()) == pytest.approx(1.0)
    assert not any(x.any() for name, x in model.state_dict().items() if "bias" in name)
    cnn = CNNActorCritic(CNN)
    kernel = cnn.conv[0].weight.detach().reshape(4, -1)
    torch.testing.assert_close(kernel @ kernel.T, 2 * torch.eye(4), rtol=0, atol=1e-5)


def test_actor_and_critic_towers_do_not_touch_each_other() -> None:
    model = MLPActorCritic(MLP)
    params, value = model(torch.ones(2, 4))
    value.sum().backward(retain_graph=True)
    assert not model.weight_0.grad[0].any()
    assert model.weight_0.grad[1].any()
    model.zero_grad()
    params.sum().backward()
    assert not model.weight_0.grad[1].any()


def test_free_parameters_ignore_the_observation_and_are_trained() -> None:
    spec = ModelSpec("mlp", (4,), 4, free_params=(1, 3), hidden=(8,), log_std_init=-0.5)
    model = build_model(spec)
    params, _ = model(torch.randn(6, 4))
    assert (params[:, [1, 3]] == -0.5).all()
    params.sum().backward()
    assert model.free_params.grad.tolist() == [6.0, 6.0]


def test_models_take_images_flattened_or_convolved_and_no_rows_at_all() -> None:
    flat = build_model(ModelSpec("mlp", (20, 24, 3), 2, hidden=(8,), obs_scale=1 / 255))
    for model in (flat, build_model(CNN)):
        obs = torch.randint(0, 256, (5, 20, 24, 3), dtype=torch.uint8)
        for rows in (5, 0):
            params, value = model(obs[:rows])
            assert (params.shape, value.shape) == ((rows, 2), (rows,))


def test_a_convolution_sees_height_width_and_channels_in_that_order() -> None:
    model = CNNActorCritic(ModelSpec("cnn", (4, 5, 3), 1, hidden=(), conv=((1, 1, 1),)))
    model.conv[0].weight.data[:] = torch.tensor([0.0, 1.0, 0.0]).reshape(1, 3, 1, 1)
    model.conv._activation = torch.nn.Identity()
    model.critic_head.weight.data[:] = 0
    model.critic_head.weight.data[0, 5 + 2] = 1  # row 1, column 2
    obs = torch.arange(60.0).reshape(1, 4, 5, 3)
    assert model(obs)[1].item() == obs[0, 1, 2, 1].item()


def test_an_image_too_small_for_the_convolutions_says_where() -> None:
    spec = ModelSpec("cnn", (16, 16, 3), 2, conv=((32, 8, 4), (64, 4, 2)))
    words = r"model.conv: a kernel of 4 does not fit the 3x3 image.*\(16, 16, 3\)\); use smaller"
    with pytest.raises(ValueError, match=words):
        build_model(spec)


def test_a_factory_builds_a_model_of_ones_own() -> None:
    spec = ModelSpec(
        "custom", (4,), 2, factory="tests.models:linear", factory_kwargs={"bias": False}
    )
    model = build_model(spec)
    assert list(model.state_dict()) == ["layer.weight"]
    assert model(torch.zeros(3, 4))[0].shape == (3, 2)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("linear", "'linear' is not a path of the form 'module:name'"),
        ("tests.models:", "not a path of the form"),
        (":linear", "not a path of the form"),
        ("tests.nowhere:linear", "no module 'tests.nowhere'; is its folder on PYTHONPATH"),
        ("tests.models:lienar", "module 'tests.models' has no 'lienar'"),
    ],
)
def test_a_path_that_leads_nowhere_says_which_part(path: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load_object(path)


def test_a_factory_that_gives_no_module_is_refused() -> None:
    spec = ModelSpec("custom", (4,), 2, factory="tests.models:not_a_module")
    with pytest.raises(ValueError, match=r"tests.models:not_a_module returned str"):
        build_model(spec)
    with pytest.raises(ValueError, match=r"'custom' needs model.factory"):
        build_model(ModelSpec("custom", (4,), 2))


@pytest.mark.parametrize(
    "spec", [MLP, CNN, ModelSpec("custom", (1,), 1, factory="a:b", factory_kwargs={"k": [1]})]
)
def test_a_spec_survives_json(spec: ModelSpec) -> None:
    import json

    data: dict[str, Any] = json.loads(json.dumps(spec.to_json()))
    assert ModelSpec.from_json(data) == spec


def test_a_first_policy_is_close_to_uniform() -> None:
    params, _ = MLPActorCritic(MLP)(torch.randn(100, 4))
    assert float(params.detach().abs().max()) < 0.01 * math.sqrt(2) ** 2 * math.sqrt(16)
