"""Losses against hand-written tables, their formulas, gradients and exact expectations."""

import math

import pytest
import torch
from torch.nn import functional

from rl_ops.losses import (
    approx_kl,
    clip_frac,
    clipped_surrogate,
    explained_variance,
    huber,
    policy_gradient,
    value_loss,
)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def grad(loss, x):
    return torch.autograd.grad(loss.sum(), x)[0]


def logs_of(*ratios):
    return tensor(*(math.log(ratio) for ratio in ratios))


class TestClippedSurrogate:
    RATIOS = (0.5, 1.0, 1.5)

    @pytest.mark.parametrize(
        ("advantage", "expected"),
        [(2.0, [-1.0, -2.0, -2.4]), (-2.0, [1.6, 2.0, 3.0])],
        ids=["better", "worse"],
    )
    def test_literal(self, advantage, expected):
        logp = logs_of(*self.RATIOS)
        loss = clipped_surrogate(logp, torch.zeros(3), torch.full((3,), advantage), clip_eps=0.2)
        torch.testing.assert_close(loss, tensor(*expected))

    @pytest.mark.parametrize(("advantage", "moves"), [(1.0, [1, 1, 0]), (-1.0, [0, 1, 1])])
    def test_no_gradient_only_where_the_ratio_has_moved_enough_the_right_way(
        self, advantage, moves
    ):
        logp = logs_of(*self.RATIOS).requires_grad_()
        loss = clipped_surrogate(logp, torch.zeros(3), torch.full((3,), advantage), clip_eps=0.2)
        assert (grad(loss, logp) != 0).tolist() == [bool(move) for move in moves]

    def test_at_the_old_policy_the_gradient_is_the_policy_gradients(self):
        logp = tensor(-1.0, -2.0).requires_grad_()
        advantage = tensor(3.0, -4.0)
        surrogate = clipped_surrogate(logp, logp, advantage, clip_eps=0.2)
        torch.testing.assert_close(
            grad(surrogate, logp), grad(policy_gradient(logp, advantage), logp)
        )

    def test_gradient_matches_finite_differences(self):
        logp, old = logs_of(0.5, 0.9, 1.1, 1.5).requires_grad_(), torch.zeros(4)
        advantage = tensor(1.0, -1.0, 2.0, -2.0)
        assert torch.autograd.gradcheck(
            lambda x: clipped_surrogate(x, old, advantage, clip_eps=0.2), (logp,)
        )


class TestPolicyGradient:
    def test_literal(self):
        loss = policy_gradient(tensor(-1.0, -2.0), tensor(3.0, -0.5))
        assert loss.tolist() == [3.0, -1.0]

    def test_its_expected_gradient_is_that_of_the_expected_reward(self):
        logits, reward = tensor(0.3, -0.2, 1.0).requires_grad_(), tensor(1.0, 5.0, -2.0)
        p = logits.softmax(0)
        exact = grad(-(p * reward), logits)
        estimate = grad(p.detach() * policy_gradient(logits.log_softmax(0), reward), logits)
        torch.testing.assert_close(estimate, exact)


class TestValueLoss:
    def test_literal(self):
        assert value_loss(tensor(1.0, 5.0), tensor(3.0, 5.0)).tolist() == [2.0, 0.0]

    def test_clipped_literal(self):
        value, target, old = tensor(2.0, 2.0, 0.1), tensor(3.0, 2.0, 1.0), tensor(0.0, 0.0, 0.0)
        loss = value_loss(value, target, old_value=old, clip=0.5)
        # clipped to 0.5, 0.5 and 0.1; the larger of both errors counts
        torch.testing.assert_close(loss, tensor(0.5 * 2.5**2, 0.5 * 1.5**2, 0.5 * 0.9**2))

    def test_a_value_that_moved_too_far_towards_its_target_has_no_gradient(self):
        value = tensor(2.0, -2.0).requires_grad_()
        loss = value_loss(value, tensor(3.0, 3.0), old_value=tensor(0.0, 0.0), clip=0.5)
        assert grad(loss, value).tolist() == [0.0, -5.0]

    def test_a_wide_clip_changes_nothing(self):
        value, target = tensor(1.0, -4.0), tensor(2.0, 2.0)
        clipped = value_loss(value, target, old_value=torch.zeros(2), clip=1e6)
        torch.testing.assert_close(clipped, value_loss(value, target))

    def test_an_old_value_without_clip_changes_nothing(self):
        value, target = tensor(1.0, -4.0), tensor(2.0, 2.0)
        assert torch.equal(
            value_loss(value, target, old_value=torch.zeros(2)), value_loss(value, target)
        )

    def test_refuses_a_clip_without_an_old_value(self):
        with pytest.raises(ValueError, match=r"clip=0\.2 .*got old_value=None"):
            value_loss(tensor(1.0), tensor(1.0), clip=0.2)

    def test_gradient_matches_finite_differences(self):
        value = tensor(0.1, 2.0, -3.0).requires_grad_()
        target, old = tensor(1.0, 1.0, 1.0), torch.zeros(3)
        assert torch.autograd.gradcheck(
            lambda v: value_loss(v, target, old_value=old, clip=0.5), (value,)
        )


class TestHuber:
    def test_literal(self):
        loss = huber(tensor(-3.0, -1.0, 0.5, 2.0))
        assert loss.tolist() == [2.5, 0.5, 0.125, 1.5]

    def test_delta_moves_the_corner(self):
        assert huber(tensor(1.0, 4.0), delta=2.0).tolist() == [0.5, 6.0]

    def test_the_gradient_is_the_error_clipped(self):
        td_error = tensor(-3.0, -0.5, 0.0, 0.5, 3.0).requires_grad_()
        assert grad(huber(td_error), td_error).tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0]
        assert torch.autograd.gradcheck(huber, (tensor(-3.0, -0.5, 0.7, 3.0).requires_grad_(),))

    def test_keeps_any_shape(self):
        assert huber(torch.zeros(2, 3)).shape == (2, 3)


class TestDiagnostics:
    def test_approx_kl_literal(self):
        torch.testing.assert_close(
            approx_kl(logs_of(2.0, 0.5), torch.zeros(2)),
            tensor(1 - math.log(2), -0.5 + math.log(2)),
        )

    def test_approx_kl_is_the_divergence_in_expectation(self):
        old, new = (torch.randn(5, dtype=torch.float64).log_softmax(0) for _ in range(2))
        exact = functional.kl_div(new, old, log_target=True, reduction="sum")
        torch.testing.assert_close((old.exp() * approx_kl(new, old)).sum(), exact)

    def test_approx_kl_is_zero_for_the_same_policy_and_never_negative(self):
        logp = torch.randn(10_000)
        assert approx_kl(logp, logp).sum() == 0
        assert (approx_kl(logp + 1e-4 * torch.randn(10_000), logp) >= 0).all()

    def test_clip_frac_literal(self):
        ratios = logs_of(0.79, 0.81, 1.0, 1.19, 1.21)
        assert clip_frac(ratios, torch.zeros(5), clip_eps=0.2).tolist() == [1, 0, 0, 0, 1]

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ((1.0, 2.0, 3.0), 1.0),
            ((2.0, 2.0, 2.0), 0.0),
            ((11.0, 12.0, 13.0), 1.0),
            ((3.0, 2.0, 1.0), -3.0),
        ],
        ids=["perfect", "constant", "offset", "opposite"],
    )
    def test_explained_variance_literal(self, value, expected):
        got = explained_variance(tensor(*value), tensor(1.0, 2.0, 3.0))
        assert got.item() == pytest.approx(expected)

    @pytest.mark.parametrize(("value", "expected"), [((5.0, 5.0), 1.0), ((5.0, 6.0), 0.0)])
    def test_explained_variance_of_constant_targets_is_finite(self, value, expected):
        assert explained_variance(tensor(*value), tensor(2.0, 2.0)).item() == expected


TWO = torch.zeros(2)
COLUMN = torch.zeros(2, 1)


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda: clipped_surrogate(TWO, COLUMN, TWO, clip_eps=0.2), ("old_logp", "logp")),
        (lambda: clipped_surrogate(TWO, TWO, COLUMN, clip_eps=0.2), ("advantage", "logp")),
        (lambda: policy_gradient(TWO, COLUMN), ("advantage", "logp")),
        (lambda: value_loss(TWO, COLUMN), ("target", "value")),
        (lambda: value_loss(TWO, TWO, old_value=COLUMN, clip=1.0), ("old_value", "value")),
        (lambda: approx_kl(TWO, COLUMN), ("old_logp", "logp")),
        (lambda: clip_frac(TWO, COLUMN, clip_eps=0.2), ("old_logp", "logp")),
        (lambda: explained_variance(TWO, COLUMN), ("target", "value")),
    ],
)
def test_refuses_shapes_that_would_broadcast_naming_both(call, names):
    pattern = rf"{names[0]} has shape \(2, 1\), {names[1]} has \(2,\)"
    with pytest.raises(ValueError, match=pattern):
        call()


def test_gradients_flow_only_into_what_is_trained():
    trained, constant = (torch.randn(4, requires_grad=True) for _ in range(2))
    losses = {
        "clipped_surrogate": clipped_surrogate(trained, constant, constant, clip_eps=0.2),
        "policy_gradient": policy_gradient(trained, constant),
        "value_loss": value_loss(trained, constant, old_value=constant, clip=0.1),
    }
    for name, loss in losses.items():
        assert loss.shape == (4,), name
        assert torch.autograd.grad(loss.sum(), constant, allow_unused=True)[0] is None, name
    diagnostics = (
        approx_kl(trained, constant),
        clip_frac(trained, constant, clip_eps=0.2),
        explained_variance(trained, constant),
    )
    assert not any(result.requires_grad for result in diagnostics)
