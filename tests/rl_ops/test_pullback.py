"""The written-out gradient against autograd's."""

import numpy as np
import pytest
import torch

from rl_ops.categorical import Categorical, MultiCategorical
from rl_ops.gaussian import Gaussian
from rl_ops.model_spec import ModelSpec
from rl_ops.models import build_model
from rl_ops.optim import FlatOptimizer
from rl_ops.optim_spec import OptimSpec
from rl_ops.pullback import Pullback, covers

ROWS = 17


def spec(distribution, **kwargs):
    free = tuple(range(2, 4)) if isinstance(distribution, Gaussian) else ()
    return ModelSpec(
        kind="mlp",
        obs_shape=(3, 2),
        param_size=distribution.param_size,
        free_params=kwargs.pop("free", free),
        hidden=kwargs.pop("hidden", (8, 5)),
        activation=kwargs.pop("activation", "tanh"),
        shared=kwargs.pop("shared", False),
        conv=(),
        log_std_init=-0.3,
        obs_scale=kwargs.pop("obs_scale", 1.0),
        factory=None,
        factory_kwargs={},
    )


def make(distribution, **kwargs):
    torch.manual_seed(3)
    model = build_model(spec(distribution, **kwargs))
    with torch.no_grad():
        for parameter in model.parameters():  # heads begin near zero, which would hide mistakes
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model, FlatOptimizer([model], OptimSpec())


def rows(distribution):
    generator = torch.Generator().manual_seed(5)
    obs = torch.randn(ROWS, 3, 2, generator=generator)
    if isinstance(distribution, Gaussian):
        action = torch.randn(ROWS, 2, generator=generator)
    else:
        action = torch.randint(0, distribution.num_actions, (ROWS,), generator=generator)
    slopes = torch.randn(2, ROWS, generator=generator)
    return obs, action, slopes[0], slopes[1]


def autograd(model, distribution, obs, action, d_logp, d_value, d_entropy):
    params, value = model(obs)
    logp, entropy = distribution.logp_entropy(params, action)
    total = (logp * d_logp + value * d_value + entropy * d_entropy).sum()
    model.zero_grad(set_to_none=False)
    total.backward()
    return logp, entropy, value, {n: p.grad.clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize("distribution", [Categorical(4), Categorical(1), Gaussian(2)])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("d_entropy", [0.0, -0.7])
@pytest.mark.parametrize("hidden", [(8, 5), (6,), (4, 7, 5)])
def test_the_written_gradient_is_autograds(distribution, shared, d_entropy, hidden) -> None:
    model, _ = make(distribution, shared=shared, hidden=hidden, obs_scale=0.5)
    obs, action, d_logp, d_value = rows(distribution)
    logp, entropy, value, expected = autograd(
        model, distribution, obs, action, d_logp, d_value, d_entropy
    )
    for parameter in model.parameters():
        parameter.grad.fill_(9.0)  # overwritten, not added to
    pullback = Pullback(model, distribution)
    found = pullback.forward(obs, action, entropy=d_entropy != 0)
    torch.testing.assert_close(found[0], logp)
    torch.testing.assert_close(found[2], value)
    if d_entropy:
        torch.testing.assert_close(found[1], entropy)
    else:
        assert found[1] is None
    pullback.backward(d_logp, d_value, entropy=d_entropy)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], msg=name)


def test_a_gaussian_whose_network_gives_log_std_too() -> None:
    distribution = Gaussian(2)
    model, _ = make(distribution, free=())
    obs, action, d_logp, d_value = rows(distribution)
    *_, expected = autograd(model, distribution, obs, action, d_logp, d_value, -0.2)
    pullback = Pullback(model, distribution)
    pullback.forward(obs, action, entropy=True)
    pullback.backward(d_logp, d_value, entropy=-0.2)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], msg=name)


def test_it_follows_the_parameters_as_they_are_stepped_and_loaded() -> None:
    distribution = Categorical(3)
    model, optimizer = make(distribution)
    pullback = Pullback(model, distribution)
    obs, action, d_logp, d_value = rows(distribution)
    before = pullback.forward(obs, action)[0]
    pullback.backward(d_logp, d_value)
    optimizer.descend(lr=0.1)
    stepped = pullback.forward(obs, action)[0]
    assert not np.allclose(before, stepped)
    torch.testing.assert_close(stepped, distribution.logp(model(obs)[0], action).detach())
    other, _ = make(distribution)
    model.load_state_dict(other.state_dict())
    torch.testing.assert_close(pullback.forward(obs, action)[0], before)


def test_backward_needs_a_forward_each() -> None:
    distribution = Categorical(3)
    pullback = Pullback(make(distribution)[0], distribution)
    obs, action, d_logp, d_value = rows(distribution)
    pullback.forward(obs, action)
    pullback.backward(d_logp, d_value)
    with pytest.raises(ValueError, match="without a forward"):
        pullback.backward(d_logp, d_value)


def test_what_is_not_covered_is_left_to_autograd() -> None:
    assert covers(make(Categorical(3))[0], Categorical(3))
    assert not covers(make(Categorical(4))[0], MultiCategorical((2, 2)))
    relu = make(Categorical(3), activation="relu")[0]
    assert not covers(relu, Categorical(3))
    assert not covers(make(Categorical(3), hidden=())[0], Categorical(3))
    assert not covers(make(Categorical(3))[0].double(), Categorical(3))
    frozen = make(Categorical(3))[0]
    next(frozen.parameters()).requires_grad_(False)
    assert not covers(frozen, Categorical(3))
    with pytest.raises(ValueError, match="no written-out gradient"):
        Pullback(relu, Categorical(3))


def test_a_model_without_gradients_yet_is_refused() -> None:
    model = build_model(spec(Categorical(3)))
    with pytest.raises(ValueError, match="make their optimiser first"):
        Pullback(model, Categorical(3))
