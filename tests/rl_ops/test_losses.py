"""Losses against hand-written tables, their formulas, gradients and exact expectations."""

import math
from typing import ClassVar

import pytest
import torch
from torch.nn import functional

from rl_ops.losses import (
    approx_kl,
    clip_frac,
    clipped_surrogate,
    explained_variance,
    huber,
    impact_surrogate,
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


def impact_by_loop(logp, behaviour, target, advantage, clip_eps, ratio_clip):
    """Section 3.1 of Luo et al. 2020, as RLlib's APPO spells it, row by row."""
    losses = []
    rows = zip(logp.tolist(), behaviour.tolist(), target.tolist(), advantage.tolist(), strict=True)
    for pi, mu, slow, a in rows:
        is_ratio = min(math.exp(mu - slow), ratio_clip)
        r = is_ratio * math.exp(pi - mu)
        losses.append(-min(r * a, min(max(r, 1 - clip_eps), 1 + clip_eps) * a))
    return tensor(*losses)


class TestImpactSurrogate:
    CLIPS: ClassVar = {"clip_eps": 0.2, "ratio_clip": 2.0}

    def test_literal(self):
        # pi_target 0.5; is_ratio 0.5 / 0.5, 0.25 / 0.5 and, clipped, 2.0 / 0.5
        logp, behaviour = logs_of(0.55, 0.5, 1.0), logs_of(0.5, 0.25, 2.0)
        loss = impact_surrogate(
            logp, behaviour, logs_of(0.5, 0.5, 0.5), tensor(2.0, 2.0, 2.0), **self.CLIPS
        )
        torch.testing.assert_close(loss, tensor(-2.2, -2.0, -2.0))

    @pytest.mark.parametrize("ratio_clip", [0.5, 1.0, 2.0])
    def test_is_the_papers_formula(self, ratio_clip):
        logp, behaviour, target, advantage = torch.randn(4, 200, dtype=torch.float64)
        loss = impact_surrogate(
            logp, behaviour, target, advantage, clip_eps=0.2, ratio_clip=ratio_clip
        )
        expected = impact_by_loop(logp, behaviour, target, advantage, 0.2, ratio_clip)
        torch.testing.assert_close(loss, expected)

    def test_with_the_target_net_acting_it_is_ppos(self):
        logp, target, advantage = torch.randn(3, 50, dtype=torch.float64)
        torch.testing.assert_close(
            impact_surrogate(logp, target, target, advantage, **self.CLIPS),
            clipped_surrogate(logp, target, advantage, clip_eps=0.2),
        )

    def test_a_wide_ratio_clip_leaves_out_who_acted(self):
        logp, behaviour, target, advantage = torch.randn(4, 50, dtype=torch.float64)
        loss = impact_surrogate(
            logp, behaviour, target, advantage, clip_eps=0.2, ratio_clip=math.exp(30)
        )
        torch.testing.assert_close(loss, clipped_surrogate(logp, target, advantage, clip_eps=0.2))

    def test_an_action_that_the_worker_hardly_ever_took_gives_no_nan(self):
        loss = impact_surrogate(
            torch.zeros(1), torch.full((1,), -200.0), torch.zeros(1), torch.ones(1), **self.CLIPS
        )
        assert loss.tolist() == [-1.0]

    def test_gradient_matches_finite_differences(self):
        logp, target = logs_of(0.5, 0.9, 1.1, 1.5, 0.5, 1.5), torch.zeros(6).double()
        behaviour = logs_of(0.3, 1.0, 1.7, 1.2, 2.5, 4.0)
        advantage = tensor(1.0, -1.0, 2.0, -2.0, -1.0, 1.0)
        assert torch.autograd.gradcheck(
            lambda x: impact_surrogate(x, behaviour, target, advantage, **self.CLIPS),
            (logp.requires_grad_(),),
        )

    def test_refuses_a_ratio_clip_that_is_not_positive(self):
        with pytest.raises(ValueError, match=r"ratio_clip must be positive, got 0\.0"):
            impact_surrogate(TWO, TWO, TWO, TWO, clip_eps=0.2, ratio_clip=0.0)


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


def impact(*args):
    return impact_surrogate(*args, **TestImpactSurrogate.CLIPS)


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda: clipped_surrogate(TWO, COLUMN, TWO, clip_eps=0.2), ("old_logp", "logp")),
        (lambda: clipped_surrogate(TWO, TWO, COLUMN, clip_eps=0.2), ("advantage", "logp")),
        (lambda: impact(TWO, COLUMN, TWO, TWO), ("behaviour_logp", "logp")),
        (lambda: impact(TWO, TWO, COLUMN, TWO), ("target_logp", "logp")),
        (lambda: impact(TWO, TWO, TWO, COLUMN), ("advantage", "logp")),
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
        "impact_surrogate": impact(trained, constant, constant, constant),
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
