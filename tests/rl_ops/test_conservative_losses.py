"""CQL's, TD3+BC's and BCQ's losses against loops over their papers' formulas.

Legend: B rows, A actions, D features, K critics, N samples.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_ops.conservative_losses import (
    conservative_gap_discrete,
    constrained_q,
    lagrange_loss,
    sampled_log_mass,
    td3_bc_loss,
    value_scale,
)
from rl_ops.constrained_q import ConstrainedQ
from rl_ops.model_spec import ModelSpec, QSpec
from rl_ops.optim import FlatOptimizer
from rl_ops.optim_spec import OptimSpec
from rl_ops.q_models import CriticEnsemble
from rl_ops.sampled_critics import SampledCritics, sampled_q

FLOOR = torch.finfo(torch.float32).min / 2


def normal(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def close(found, expected):
    torch.testing.assert_close(found, torch.as_tensor(expected), rtol=1e-6, atol=1e-6)


# --- log mass ---


def test_the_log_mass_is_the_papers_mean_of_importance_weighted_exponentials():
    q, log_density = normal(2, 4, 6), normal(4, 6, seed=1)
    found = sampled_log_mass(q, log_density)
    for k in range(2):
        for b in range(4):
            terms = [math.exp(q[k, b, i]) / math.exp(log_density[b, i]) for i in range(6)]
            assert float(found[k, b]) == pytest.approx(math.log(sum(terms) / 6), abs=1e-6)


def test_the_log_mass_of_uniform_samples_tends_to_the_integral():
    # the integral of exp(2 a) over [-1, 1] is sinh 2
    action = torch.rand(1, 200_000, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = sampled_log_mass(2 * action, torch.full_like(action, -math.log(2)))
    assert float(found) == pytest.approx(math.log(math.sinh(2.0)), abs=0.01)


@given(shift=st.floats(-500, 500), seed=st.integers(0, 100))
@settings(deadline=None, max_examples=30)
def test_the_log_mass_moves_with_all_values_and_never_overflows(shift, seed):
    q, log_density = normal(3, 5, seed=seed).double(), normal(3, 5, seed=seed + 1).double()
    moved = sampled_log_mass(q + shift, log_density) - shift
    torch.testing.assert_close(moved, sampled_log_mass(q, log_density), rtol=0, atol=1e-9)


def test_densities_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="log_density_BN has shape"):
        sampled_log_mass(normal(2, 4, 6), normal(4, 1))


# --- gap and weight ---


def test_the_discrete_gap_is_the_papers():
    q, action = normal(5, 3), torch.tensor([0, 2, 1, 1, 0])
    found = conservative_gap_discrete(q, action)
    for b in range(5):
        total = sum(math.exp(q[b, a]) for a in range(3))
        assert float(found[b]) == pytest.approx(math.log(total) - float(q[b, action[b]]), abs=1e-6)


def test_the_discrete_gap_pushes_the_logged_action_up_and_the_others_down():
    q = normal(5, 3).requires_grad_()
    action = torch.tensor([0, 2, 1, 1, 0])
    conservative_gap_discrete(q, action).sum().backward()
    expected = q.detach().softmax(1)
    expected[torch.arange(5), action] -= 1.0
    close(q.grad, expected)


def test_the_learned_weight_grows_where_the_gap_is_wide_and_shrinks_where_it_is_narrow():
    gap = torch.tensor([[7.0, 6.0], [1.0, 4.0]], requires_grad=True)
    log_weight = torch.tensor(0.3, requires_grad=True)
    loss = lagrange_loss(log_weight, gap, 5.0)
    close(loss, [[-math.exp(0.3) * (x - 5.0) for x in row] for row in gap.tolist()])
    loss.sum().backward()
    assert gap.grad is None, "the gap is a constant to it"
    # descent raises the weight by the total excess: 2 + 1 - 4 - 1 = -2
    assert float(log_weight.grad) == pytest.approx(2.0 * math.exp(0.3), rel=1e-6)
    with pytest.raises(ValueError, match="one entry"):
        lagrange_loss(torch.zeros(2), gap, 5.0)


# --- TD3+BC ---


def test_td3_bcs_loss_is_the_papers_row_by_row():
    q, action, logged = normal(4), normal(4, 2, seed=1), normal(4, 2, seed=2)
    scale = value_scale(q, alpha=2.5)
    assert float(scale) == pytest.approx(2.5 / (sum(abs(float(x)) for x in q) / 4), rel=1e-6)
    found = td3_bc_loss(q, action, logged, scale)
    for b in range(4):
        distance = sum((float(action[b, d]) - float(logged[b, d])) ** 2 for d in range(2)) / 2
        assert float(found[b]) == pytest.approx(distance - float(scale) * float(q[b]), abs=1e-6)


def test_the_scale_of_values_is_a_constant_and_finite_where_they_are_zero():
    q = normal(4).requires_grad_()
    assert not value_scale(q, alpha=2.5).requires_grad
    assert torch.isfinite(value_scale(torch.zeros(4), alpha=2.5))
    with pytest.raises(ValueError, match="q_B has shape"):
        td3_bc_loss(normal(4, 1), normal(4, 2), normal(4, 2), torch.ones(()))


# --- BCQ ---


def test_bcqs_allowed_actions_are_those_the_paper_names():
    q, logits, threshold = normal(50, 4), 2 * normal(50, 4, seed=1), 0.3
    found = constrained_q(q, logits, threshold=torch.tensor(threshold))
    for b in range(50):
        likelihood = np.exp(logits[b].double().numpy())
        likelihood /= likelihood.sum()
        for a in range(4):
            allowed = likelihood[a] / likelihood.max() > threshold
            assert float(found[b, a]) == (float(q[b, a]) if allowed else FLOOR)
    assert 0 < int((found == FLOOR).sum()) < 150


@pytest.mark.parametrize("gap", [0.0, 1.0, 1000.0])
def test_a_threshold_of_0_allows_all_and_the_likeliest_is_always_allowed(gap):
    q, logits = torch.tensor([[1.0, 2.0]]), torch.tensor([[gap, 0.0]])
    assert torch.equal(constrained_q(q, logits, threshold=torch.tensor(0.0)), q)
    nearly = constrained_q(q, logits, threshold=torch.tensor(0.999))
    assert nearly.tolist() == [[1.0, 2.0 if gap == 0.0 else FLOOR]]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("shape", [(3,), (36, 36, 2)])
def test_the_constrained_network_shares_a_trunk_or_not_and_acts_by_its_threshold(shared, shape):
    torch.manual_seed(0)
    spec = ModelSpec(
        kind="custom",
        obs_shape=shape,
        param_size=4,
        hidden=(8,),
        activation="relu",
        shared=shared,
        head="q",
        q=QSpec(num_actions=4),
    )
    network, obs = ConstrainedQ(spec), normal(6, *shape)
    q, logits = network.both(obs)
    assert q.shape == logits.shape == (6, 4)
    assert torch.equal(network.values(obs), q)
    assert torch.equal(network(obs)[0], q), "a threshold of 0 allows all"
    network.threshold.fill_(0.9)
    acting, best = network(obs)
    assert torch.equal(acting, constrained_q(q, logits, threshold=network.threshold))
    assert torch.equal(best, acting.amax(1))
    assert "threshold" in network.state_dict()
    moved = torch.autograd.grad(logits.sum(), list(network.q.parameters()), allow_unused=True)
    assert any(g is not None for g in moved) == shared


# --- critics at samples ---


def critics_of(*, shape=(3,), hidden=(8, 5), activation="relu", size=2, num_critics=2):
    torch.manual_seed(1)
    kind, conv = ("cnn", ((4, 3, 2),)) if len(shape) == 3 else ("mlp", ())
    spec = ModelSpec(
        kind=kind, obs_shape=shape, param_size=4, hidden=hidden, activation=activation, conv=conv
    )
    critics = CriticEnsemble(spec, num_critics=num_critics, inputs=size, outputs=1)
    return critics, FlatOptimizer([critics], OptimSpec(kind="sgd"))


CRITICS = {
    "written": {},
    "written_one": {"num_critics": 1, "size": 1, "hidden": (7,)},
    "written_three": {"num_critics": 3, "hidden": (6, 5, 4)},
    "tanh": {"activation": "tanh"},
    "silu": {"activation": "silu"},
    "no_hidden": {"hidden": ()},
    "images": {"shape": (9, 9, 2)},
}


@pytest.mark.parametrize("name", list(CRITICS))
@pytest.mark.parametrize(("rows", "samples"), [(5, 3), (45, 30), (2, 600)])
def test_masses_and_their_gradient_are_those_of_repeated_rows(name, rows, samples):
    critics, optimizer = critics_of(**CRITICS[name])
    made = SampledCritics(critics)
    assert (made._written is not None) == name.startswith("written")
    shape, size = critics.spec.obs_shape, CRITICS[name].get("size", 2)
    obs, action = normal(rows, *shape), normal(rows, samples, size, seed=1).tanh()
    log_density, slope = normal(rows, samples, seed=2), normal(rows, seed=3).abs()
    repeated = obs.repeat_interleave(samples, 0)
    q = critics(repeated, action.flatten(0, 1))[..., 0].view(-1, rows, samples)
    close(sampled_q(critics, obs, action), q.detach())
    mass = torch.log((q - log_density).exp().sum(2) / samples)
    parameters = list(critics.parameters())
    expected = torch.autograd.grad((slope * mass).sum(), parameters)
    held = 0.01 * normal(len(optimizer.grad), seed=4)
    for _ in range(2):  # what lies in the buffers is no part of the next call
        optimizer.grad.copy_(held)
        found = made.descend(obs, action, log_density, slope_B=slope)
        torch.testing.assert_close(found, mass.detach(), rtol=1e-5, atol=1e-5)
        for parameter, gradient in zip(parameters, expected, strict=True):
            before = held[parameter.grad.storage_offset() :][: parameter.numel()]
            added = parameter.grad.flatten() - before
            scale = max(1.0, float(gradient.abs().max()))
            assert float((added - gradient.flatten()).abs().max()) < 3e-6 * scale


def test_after_a_smaller_batch_a_larger_one_fits():
    critics, _ = critics_of()
    made, again = SampledCritics(critics), SampledCritics(critics)
    for rows in (2, 9):
        given = normal(rows, 3), normal(rows, 4, 2), normal(rows, 4)
        slope = torch.ones(rows)
        found = made.descend(*given, slope_B=slope)
    assert torch.equal(found, again.descend(*given, slope_B=slope))
