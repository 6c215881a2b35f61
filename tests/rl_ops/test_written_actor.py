"""The written-out likelihood of an actor against autograd."""

import pytest
import torch
from gymnasium.spaces import Box, Discrete

from rl_ops.distributions import distribution_for
from rl_ops.model_spec import ModelSpec
from rl_ops.models import build_model
from rl_ops.optim import FlatOptimizer
from rl_ops.optim_spec import OptimSpec
from rl_ops.written_actor import WrittenActor

SPACES = {"discrete": Discrete(4), "box": Box(-1.0, 1.0, (3,))}


def actor(space, **changes):
    distribution = distribution_for(space, squash=False)
    size = distribution.param_size
    free = tuple(range(size // 2, size)) if isinstance(space, Box) else ()
    spec = ModelSpec(
        kind="mlp",
        obs_shape=(5,),
        param_size=size,
        free_params=free,
        head="actor",
        **{"hidden": (16, 8), "activation": "relu", **changes},
    )
    torch.manual_seed(0)
    model = build_model(spec)
    optimizer = FlatOptimizer([model], OptimSpec())
    for parameter in model.parameters():  # biases and free parameters begin at zero
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model, distribution, optimizer


@pytest.mark.parametrize("kind", SPACES)
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_likelihoods_and_gradients_are_those_of_autograd(kind, activation):
    model, distribution, optimizer = actor(SPACES[kind], activation=activation)
    written = WrittenActor.of(model, distribution)
    assert written is not None
    for rows in (7, 32, 7):
        obs, slope = torch.randn(rows, 5), torch.randn(rows)
        action = torch.randint(4, (rows,)) if kind == "discrete" else torch.randn(rows, 3)
        optimizer.grad.zero_()
        expected = distribution.logp(model(obs)[0], action)
        (expected * slope).sum().backward()
        gradient = optimizer.grad.clone()
        optimizer.grad.fill_(float("nan"))
        with torch.no_grad():
            logp = written.forward(obs, action)
            written.backward(slope.clone())
        assert torch.allclose(logp, expected, atol=1e-6)
        for parameter in model.parameters():
            assert parameter.grad.isfinite().all()
        got = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
        optimizer.grad.copy_(gradient)
        want = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
        assert torch.allclose(got, want, atol=1e-5, rtol=1e-5)


def test_what_is_not_covered_has_none():
    model, distribution, _ = actor(SPACES["box"], activation="silu")
    assert WrittenActor.of(model, distribution) is None
    model, _, _ = actor(SPACES["box"])
    squashed = distribution_for(SPACES["box"], squash=True)
    assert WrittenActor.of(model, squashed) is None
