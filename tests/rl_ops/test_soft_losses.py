"""SAC's, TD3's and TQC's formulas against literals, the papers' loops, gradients and laws."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_ops.categorical import Categorical
from rl_ops.q_losses import quantile_huber_loss, td_target
from rl_ops.soft_losses import (
    clipped_double_q,
    smoothed_action,
    soft_next_value,
    soft_next_value_discrete,
    soft_policy_loss,
    soft_policy_loss_discrete,
    temperature_loss,
    tqc_targets,
    truncated_quantiles,
)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def grad(loss, x):
    return torch.autograd.grad(loss.sum(), x)[0]


def law(**strategies):
    """Check for many inputs, without a deadline that a busy machine would miss."""
    return lambda test: settings(deadline=None, max_examples=50)(given(**strategies)(test))


def normal(*shape, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, dtype=torch.float64, generator=generator)


SEEDS = st.integers(0, 2**31)
SIZES = st.integers(1, 5)
ALPHAS = st.floats(0.0, 3.0)


class TestContinuous:
    Q_KB, LOGP = tensor([1.0, 5.0], [2.0, -5.0]), tensor(-2.0, 3.0)

    def test_clipped_double_q_literal(self):
        assert clipped_double_q(self.Q_KB).tolist() == [1.0, -5.0]

    def test_next_value_literal(self):
        assert soft_next_value(self.Q_KB, self.LOGP, 0.5).tolist() == [2.0, -6.5]

    def test_policy_loss_literal(self):
        assert soft_policy_loss(self.Q_KB, self.LOGP, 0.5).tolist() == [-2.0, 6.5]

    @law(seed=SEEDS, critics=SIZES, rows=SIZES)
    def test_without_temperature_the_soft_value_is_clipped_double_q(self, seed, critics, rows):
        q, logp = normal(critics, rows, seed=seed), normal(rows, seed=seed)
        assert torch.equal(soft_next_value(q, logp, 0.0), clipped_double_q(q))

    def test_temperature_may_be_a_number_or_a_tensor_of_one_entry(self):
        expected = soft_policy_loss(self.Q_KB, self.LOGP, 0.5)
        for alpha in (torch.tensor(0.5), torch.tensor([0.5]), torch.tensor([[0.5]])):
            assert torch.equal(soft_policy_loss(self.Q_KB, self.LOGP, alpha), expected)

    def test_gradient_is_alpha_in_logp_and_minus_one_in_the_smallest_q(self):
        q, logp = self.Q_KB.clone().requires_grad_(), self.LOGP.clone().requires_grad_()
        loss = soft_policy_loss(q, logp, 0.5)
        grad_q, grad_logp = torch.autograd.grad(loss.sum(), (q, logp))
        assert grad_q.tolist() == [[-1.0, 0.0], [0.0, -1.0]]
        assert grad_logp.tolist() == [0.5, 0.5]

    def test_gradient_matches_finite_differences_through_a_reparameterised_action(self):
        noise, slope = normal(4), normal(2, 1, seed=1)

        def loss(mean, log_std):
            action = mean + log_std.exp() * noise
            return soft_policy_loss(slope * action - action**2, -log_std - 0.5 * noise**2, 0.3)

        mean, log_std = normal(4, seed=2).requires_grad_(), normal(4, seed=3).requires_grad_()
        assert torch.autograd.gradcheck(loss, (mean, log_std))


def soft_value_by_loop(q_KBA, logits_BA, alpha):
    """Eq. 10 of Christodoulou 2019."""
    values = []
    for b in range(len(logits_BA)):
        total = sum(math.exp(x) for x in logits_BA[b])
        value = 0.0
        for a in range(logits_BA.shape[1]):
            p = math.exp(logits_BA[b, a]) / total
            value += p * (min(q[b, a].item() for q in q_KBA) - alpha * math.log(p))
        values.append(value)
    return tensor(*values)


class TestDiscrete:
    @law(seed=SEEDS, critics=SIZES, rows=SIZES, actions=SIZES, alpha=ALPHAS)
    def test_are_the_papers_loop(self, seed, critics, rows, actions, alpha):
        q, logits = normal(critics, rows, actions, seed=seed), normal(rows, actions, seed=seed + 1)
        expected = soft_value_by_loop(q, logits, alpha)
        torch.testing.assert_close(soft_next_value_discrete(q, logits, alpha), expected)
        torch.testing.assert_close(soft_policy_loss_discrete(q, logits, alpha), -expected)

    @law(seed=SEEDS, rows=SIZES, actions=SIZES, alpha=ALPHAS)
    def test_entropy_is_that_of_the_distribution(self, seed, rows, actions, alpha):
        logits = normal(rows, actions, seed=seed)
        value = soft_next_value_discrete(torch.zeros(2, rows, actions).double(), logits, alpha)
        torch.testing.assert_close(value, alpha * Categorical(actions).entropy(logits))

    @law(seed=SEEDS, critics=SIZES, rows=SIZES, actions=SIZES)
    def test_a_greedy_policy_without_temperature_has_the_largest_value(
        self, seed, critics, rows, actions
    ):
        q = normal(critics, rows, actions, seed=seed)
        logits = torch.full((rows, actions), -math.inf, dtype=torch.float64)
        logits.scatter_(1, q.amin(0).argmax(1, keepdim=True), 0.0)
        torch.testing.assert_close(soft_next_value_discrete(q, logits, 0.0), q.amin(0).amax(1))

    @law(seed=SEEDS, critics=SIZES, rows=SIZES, actions=SIZES, alpha=st.floats(0.1, 3.0))
    def test_boltzmanns_policy_has_the_soft_maximum_and_no_gradient(
        self, seed, critics, rows, actions, alpha
    ):
        q = normal(critics, rows, actions, seed=seed)
        logits = (q.amin(0) / alpha).requires_grad_()
        soft_maximum = alpha * logits.detach().logsumexp(1)
        torch.testing.assert_close(soft_next_value_discrete(q, logits, alpha), soft_maximum)
        moved = grad(soft_policy_loss_discrete(q, logits, alpha), logits)
        torch.testing.assert_close(moved, torch.zeros_like(moved), rtol=0, atol=1e-12)

    def test_gradient_matches_finite_differences(self):
        q, logits = normal(2, 3, 4), normal(3, 4, seed=1).requires_grad_()
        assert torch.autograd.gradcheck(lambda x: soft_policy_loss_discrete(q, x, 0.3), (logits,))

    @pytest.mark.parametrize("masked", [-math.inf, torch.finfo(torch.float32).min / 2])
    def test_a_masked_action_counts_for_nothing_at_any_temperature(self, masked):
        q, logits = torch.randn(2, 3, 4), torch.randn(3, 4)
        full = torch.cat([logits, torch.full((3, 1), masked)], 1).requires_grad_()
        padded_q = torch.cat([q, torch.full((2, 3, 1), 100.0)], 2)
        loss = soft_policy_loss_discrete(padded_q, full, 50.0)
        alone = logits.requires_grad_()
        expected = soft_policy_loss_discrete(q, alone, 50.0)
        torch.testing.assert_close(loss, expected)
        moved = grad(loss, full)
        torch.testing.assert_close(moved[:, :4], grad(expected, alone))
        assert moved[:, 4].tolist() == [0.0, 0.0, 0.0]


class TestTemperatureLoss:
    def test_literal(self):
        loss = temperature_loss(torch.tensor(-2.0), torch.tensor([1.0, 3.0]), 2.0)
        assert loss.tolist() == [2.0, -2.0]

    @pytest.mark.parametrize(("entropy", "sign"), [(0.5, 1), (2.0, 0), (3.0, -1)])
    def test_descent_raises_alpha_where_entropy_is_short_and_lowers_it_beyond(self, entropy, sign):
        log_alpha = torch.zeros(1, requires_grad=True)
        step = -grad(temperature_loss(log_alpha, torch.tensor([entropy]), 2.0), log_alpha)
        assert step.sign().tolist() == [sign]

    @pytest.mark.parametrize("log_alpha", [-8.0, 0.0, 3.0])
    def test_is_the_papers_gradient_by_alpha_whatever_alpha_is(self, log_alpha):
        """Eq. 18 has J = E[-alpha * log pi - alpha * target]."""
        logp, target = tensor(-1.0, 2.0, 0.5), -2.0
        alpha = tensor(math.exp(log_alpha)).requires_grad_()
        by_alpha = grad(-alpha * logp - alpha * target, alpha)
        trained = tensor(log_alpha).requires_grad_()
        torch.testing.assert_close(
            grad(temperature_loss(trained, -logp, target), trained), by_alpha
        )


class TestSmoothedAction:
    def test_literal(self):
        action = tensor([0.0, 0.9, -0.9, 0.5])
        noise = tensor([1.0, 10.0, -10.0, -10.0])
        smoothed = smoothed_action(action, noise, noise_scale=0.2, noise_clip=0.5)
        torch.testing.assert_close(smoothed, tensor([0.2, 1.0, -1.0, 0.0]))

    @law(seed=SEEDS, clip=st.floats(0.0, 1.0))
    def test_stays_in_range_and_within_the_clip_of_the_action(self, seed, clip):
        action, noise = normal(4, 3, seed=seed).tanh(), normal(4, 3, seed=seed + 1)
        smoothed = smoothed_action(action, noise, noise_scale=2.0, noise_clip=clip)
        assert (smoothed.abs() <= 1).all()
        assert ((smoothed - action).abs() <= clip + 1e-12).all()

    def test_leaves_its_arguments_as_they_are(self):
        action, noise = normal(2, 3).tanh(), normal(2, 3, seed=1)
        kept = action.clone(), noise.clone()
        smoothed_action(action, noise, noise_scale=1.0, noise_clip=0.5)
        assert torch.equal(action, kept[0])
        assert torch.equal(noise, kept[1])


def tqc_by_loop(z_KBN, logp, return_n, discount, alpha, drop):
    """Eq. 8-10 of Kuznetsov et al. 2020, each row's targets ascending."""
    num_critics, rows, num_quantiles = z_KBN.shape
    targets = []
    for b in range(rows):
        pool = sorted(z.item() for critic in z_KBN for z in critic[b])
        kept = pool[: num_critics * (num_quantiles - drop)]
        soft = [z - alpha * logp[b].item() for z in kept]
        targets.append([return_n[b].item() + discount[b].item() * z for z in soft])
    return tensor(*targets)


class TestTqc:
    def test_truncation_literal(self):
        quantiles = tensor([[1.0, 7.0, 8.0]], [[2.0, 3.0, 9.0]])
        kept = truncated_quantiles(quantiles, 1)
        assert sorted(kept[0].tolist()) == [1.0, 2.0, 3.0, 7.0]

    @law(data=st.data(), seed=SEEDS, critics=SIZES, rows=SIZES, quantiles=SIZES, alpha=ALPHAS)
    def test_targets_are_the_papers_loop(self, data, seed, critics, rows, quantiles, alpha):
        drop = data.draw(st.integers(0, quantiles - 1))
        z = normal(critics, rows, quantiles, seed=seed)
        logp, return_n, discount = normal(3, rows, seed=seed + 1)
        discount = discount.sigmoid()
        targets = tqc_targets(z, logp, return_n, discount, alpha=alpha, drop_per_net=drop)
        expected = tqc_by_loop(z, logp, return_n, discount, alpha, drop)
        torch.testing.assert_close(targets.sort(1).values, expected)

    @law(seed=SEEDS, critics=SIZES, rows=SIZES, quantiles=SIZES)
    def test_without_drop_the_mean_is_that_of_all_critics(self, seed, critics, rows, quantiles):
        z = normal(critics, rows, quantiles, seed=seed)
        logp, return_n, discount = normal(3, rows, seed=seed + 1)
        targets = tqc_targets(z, logp, return_n, discount, alpha=0.2, drop_per_net=0)
        plain = td_target(return_n, discount, soft_next_value(z.mean((0, 2))[None], logp, 0.2))
        torch.testing.assert_close(targets.mean(1), plain)

    @law(seed=SEEDS, quantiles=st.integers(2, 6))
    def test_each_drop_lowers_the_mean(self, seed, quantiles):
        z = normal(2, 3, quantiles, seed=seed)
        means = [truncated_quantiles(z, drop).mean(1) for drop in range(quantiles)]
        assert all((low < high).all() for high, low in pairwise(means))

    def test_one_critic_without_drop_and_temperature_is_quantile_regression(self):
        z, quantile = normal(1, 3, 4), normal(3, 4, seed=1)
        logp, return_n, discount = normal(3, 3, seed=2)
        targets = tqc_targets(z, logp, return_n, discount, alpha=0.0, drop_per_net=0)
        plain = return_n[:, None] + discount[:, None] * z[0]
        torch.testing.assert_close(
            quantile_huber_loss(quantile, targets), quantile_huber_loss(quantile, plain)
        )

    @pytest.mark.parametrize("drop", [-1, 3])
    def test_refuses_to_drop_all_quantiles_or_fewer_than_none(self, drop):
        with pytest.raises(ValueError, match=rf"drop_per_net must be in \[0, 3\), got {drop}"):
            truncated_quantiles(torch.zeros(2, 4, 3), drop)


ROW, COLUMN, Q, QUANTILES = (torch.zeros(s) for s in [(2,), (2, 1), (3, 2), (3, 2, 4)])
LOGITS = torch.zeros(2, 4)
TWO_ALPHAS = torch.ones(2)


def targets_of(logp=ROW, return_n=ROW, discount=ROW, quantiles=QUANTILES):
    return tqc_targets(quantiles, logp, return_n, discount, alpha=0.1, drop_per_net=1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: clipped_double_q(ROW), r"next_q_KB has shape \(2,\), expected 2 axes"),
        (lambda: soft_next_value(Q, COLUMN, 0.1), r"next_logp_B has shape \(2, 1\), expected \(2,"),
        (lambda: soft_next_value(Q[..., None], COLUMN, 0.1), r"next_q_KB has shape \(3, 2, 1\)"),
        (lambda: soft_next_value(Q, ROW, TWO_ALPHAS), r"alpha has shape \(2,\), expected one"),
        (lambda: soft_policy_loss(Q, COLUMN, 0.1), r"logp_B has shape \(2, 1\), expected \(2,\)"),
        (lambda: soft_policy_loss(Q[..., None], COLUMN, 0.1), r"q_KB has shape \(3, 2, 1\)"),
        (lambda: soft_policy_loss(Q, ROW, TWO_ALPHAS), r"alpha has shape \(2,\), expected one"),
        (
            lambda: soft_next_value_discrete(QUANTILES, COLUMN, 0.1),
            r"logits_BA has shape \(2, 1\), expected \(2, 4\)",
        ),
        (
            lambda: soft_policy_loss_discrete(QUANTILES, COLUMN, 0.1),
            r"logits_BA has shape \(2, 1\), expected \(2, 4\)",
        ),
        (lambda: soft_policy_loss_discrete(LOGITS, LOGITS, 0.1), r"q_KBA has shape \(2, 4\)"),
        (lambda: temperature_loss(ROW, ROW, 1.0), r"log_alpha has shape \(2,\), expected one"),
        (lambda: temperature_loss(ROW[0], COLUMN, 1.0), r"entropy_B has shape \(2, 1\)"),
        (
            lambda: smoothed_action(LOGITS, COLUMN, noise_scale=1.0, noise_clip=1.0),
            r"noise_BD has shape \(2, 1\), expected \(2, 4\)",
        ),
        (lambda: truncated_quantiles(LOGITS, 1), r"next_quantiles_KBN has shape \(2, 4\)"),
        (lambda: targets_of(logp=COLUMN), r"next_logp_B has shape \(2, 1\), expected \(2,\)"),
        (lambda: targets_of(return_n=COLUMN), r"return_n has shape \(2, 1\), expected \(2,\)"),
        (lambda: targets_of(discount=COLUMN), r"bootstrap_discount has shape \(2, 1\)"),
        (lambda: targets_of(quantiles=Q), r"next_quantiles_KBN has shape \(3, 2\)"),
    ],
)
def test_refuses_shapes_that_would_broadcast_naming_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_targets_are_detached():
    row, q, quantiles, logits, alpha = (
        torch.rand(s, requires_grad=True) for s in [(2,), (3, 2), (3, 2, 4), (2, 4), ()]
    )
    targets = {
        "clipped_double_q": clipped_double_q(q),
        "soft_next_value": soft_next_value(q, row, alpha),
        "soft_next_value_discrete": soft_next_value_discrete(quantiles, logits, alpha),
        "smoothed_action": smoothed_action(logits, logits, noise_scale=1.0, noise_clip=1.0),
        "truncated_quantiles": truncated_quantiles(quantiles, 1),
        "all quantiles": truncated_quantiles(quantiles, 0),
        "tqc_targets": tqc_targets(quantiles, row, row, row, alpha=alpha, drop_per_net=1),
    }
    assert [name for name, target in targets.items() if target.requires_grad] == []


def test_gradients_flow_only_into_what_is_trained():
    row, q, table, logits, alpha = (
        torch.rand(s, requires_grad=True) for s in [(2,), (3, 2), (3, 2, 4), (2, 4), ()]
    )
    cases = {
        "soft_policy_loss": (soft_policy_loss(q, row, alpha), {"q", "row"}),
        "discrete": (soft_policy_loss_discrete(table, logits, alpha), {"logits"}),
        "temperature_loss": (temperature_loss(alpha, row, 1.0), {"alpha"}),
    }
    leaves = {"row": row, "q": q, "table": table, "logits": logits, "alpha": alpha}
    for name, (loss, trained) in cases.items():
        assert loss.shape == (2,), name
        grads = torch.autograd.grad(loss.sum(), list(leaves.values()), allow_unused=True)
        reached = {leaf for leaf, g in zip(leaves, grads, strict=True) if g is not None}
        assert reached == trained, name
