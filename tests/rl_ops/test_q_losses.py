"""Q-learning's targets and losses against literals, the papers' loops, gradients and laws."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_ops.q_losses import (
    categorical_cross_entropy,
    categorical_target,
    double_q_value,
    quantile_huber_loss,
    taken,
    td_target,
)
from rl_ops.returns import n_step


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


def uniform(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, dtype=torch.float64, generator=generator)


SEEDS = st.integers(0, 2**31)
SIZES = st.integers(1, 5)


class TestTdTarget:
    def test_literal(self):
        target = td_target(tensor(1.0, 2.0), tensor(0.5, 0.0), tensor(10.0, 10.0))
        assert target.tolist() == [6.0, 2.0]

    def test_truncation_bootstraps_but_termination_does_not(self):
        reward, is_last = tensor(1.0, 1.0, 1.0, 1.0), torch.tensor([False, True, False, True])
        terminated, gamma = tensor(0.0, 1.0, 0.0, 0.0), 0.5
        steps = n_step(reward, gamma * (1 - terminated), is_last, n=2)
        target = td_target(steps.return_n, steps.bootstrap_discount, torch.full((4,), 8.0).double())
        assert target.tolist() == [1.5, 1.0, 1.5 + 0.25 * 8, 1 + 0.5 * 8]


class TestTaken:
    def test_literal(self):
        q = tensor([1.0, 2.0, 3.0], [4.0, 5.0, 6.0])
        assert taken(q, torch.tensor([2, 0])).tolist() == [3.0, 4.0]

    def test_picks_a_whole_distribution_where_an_action_has_one(self):
        q_BAN = normal(4, 3, 5)
        action = torch.tensor([0, 2, 1, 2])
        expected = torch.stack([q_BAN[b, a] for b, a in enumerate(action)])
        assert torch.equal(taken(q_BAN, action), expected)

    @pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4)])
    def test_only_the_action_taken_has_gradient(self, shape):
        q = normal(*shape).requires_grad_()
        moved = grad(taken(q, torch.tensor([1, 0])), q).reshape(2, 3, -1)
        expected = torch.zeros_like(moved)
        expected[0, 1] = expected[1, 0] = 1.0
        assert torch.equal(moved, expected)

    @pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4)])
    def test_refuses_actions_below_zero(self, shape):
        with pytest.raises(RuntimeError, match="out of bounds"):
            taken(normal(*shape), torch.tensor([1, -1]))


class TestDoubleQValue:
    def test_literal(self):
        target, online = tensor([1.0, 2.0], [3.0, 4.0]), tensor([9.0, 0.0], [0.0, 9.0])
        assert double_q_value(target, online).tolist() == [1.0, 4.0]
        assert double_q_value(target, None).tolist() == [2.0, 4.0]

    @law(seed=SEEDS, rows=SIZES, actions=SIZES)
    def test_with_one_net_for_both_it_is_the_maximum(self, seed, rows, actions):
        q = normal(rows, actions, seed=seed)
        assert torch.equal(double_q_value(q, q), double_q_value(q))

    @law(seed=SEEDS, rows=SIZES, actions=SIZES)
    def test_is_never_above_the_maximum(self, seed, rows, actions):
        target, online = normal(2, rows, actions, seed=seed)
        assert (double_q_value(target, online) <= double_q_value(target)).all()


def projected_by_loop(prob, return_n, discount, support):
    """Algorithm 1 of Bellemare et al. 2017, with the mass on an atom left there."""
    low, high = support[0].item(), support[-1].item()
    num_atoms = len(support)
    step = (high - low) / (num_atoms - 1)
    target = torch.zeros_like(prob)
    for row, j in itertools.product(range(len(prob)), range(num_atoms)):
        moved = return_n[row].item() + discount[row].item() * support[j].item()
        b = (min(max(moved, low), high) - low) / step
        lower = min(int(b), num_atoms - 2)
        target[row, lower] += prob[row, j] * (lower + 1 - b)
        target[row, lower + 1] += prob[row, j] * (b - lower)
    return target


class TestCategoricalTarget:
    SUPPORT = tensor(-1.0, 0.0, 1.0)

    @pytest.mark.parametrize(
        ("return_n", "discount", "expected"),
        [
            (0.0, 1.0, [0.2, 0.3, 0.5]),
            (1.0, 1.0, [0.0, 0.2, 0.8]),
            (0.25, 0.0, [0.0, 0.75, 0.25]),
            (0.5, 0.5, [0.0, 0.2 + 0.15, 0.15 + 0.5]),
            (-9.0, 1.0, [1.0, 0.0, 0.0]),
            (9.0, 1.0, [0.0, 0.0, 1.0]),
        ],
        ids=["unmoved", "shifted", "terminated", "shrunk", "below", "above"],
    )
    def test_literal(self, return_n, discount, expected):
        target = categorical_target(
            tensor([0.2, 0.3, 0.5]), tensor(return_n), tensor(discount), support_N=self.SUPPORT
        )
        torch.testing.assert_close(target, tensor(expected))

    @law(seed=SEEDS, rows=SIZES, atoms=st.integers(2, 20), spread=st.floats(0.1, 30.0))
    def test_is_the_papers_loop(self, seed, rows, atoms, spread):
        prob = normal(rows, atoms, seed=seed).softmax(1)
        support = torch.linspace(-3.0, 10.0, atoms, dtype=torch.float64)
        return_n, discount = normal(rows, seed=seed, scale=spread), uniform(rows, seed=seed)
        target = categorical_target(prob, return_n, discount, support_N=support)
        expected = projected_by_loop(prob, return_n, discount, support)
        torch.testing.assert_close(target, expected, rtol=0, atol=1e-9)

    @law(shift=st.integers(-60, 60), seed=SEEDS)
    def test_mass_that_lands_on_atoms_moves_there_undivided_in_float32(self, shift, seed):
        support = torch.linspace(-25.0, 25.0, 51)
        prob = normal(1, 51, seed=seed).softmax(1).float()
        target = categorical_target(
            prob, torch.tensor([float(shift)]), torch.ones(1), support_N=support
        )
        expected = torch.zeros(51)
        for j in range(51):
            expected[min(max(j + shift, 0), 50)] += prob[0, j]
        torch.testing.assert_close(target[0], expected, rtol=1e-6, atol=0)

    @pytest.mark.parametrize("high", [10.0, 3.3, 200.0])
    def test_without_reward_and_discount_nothing_moves_on_any_support(self, high):
        prob = normal(4, 51).softmax(1).float()
        support = torch.linspace(-10.0, high, 51)
        target = categorical_target(prob, torch.zeros(4), torch.ones(4), support_N=support)
        assert torch.equal(target, prob)

    @law(seed=SEEDS, rows=SIZES, atoms=st.integers(2, 60), scale=st.floats(0.0, 1e4))
    def test_mass_is_conserved_and_never_negative(self, seed, rows, atoms, scale):
        prob = normal(rows, atoms, seed=seed).softmax(1).float()
        target = categorical_target(
            prob,
            normal(rows, seed=seed, scale=scale).float(),
            uniform(rows, seed=seed).float(),
            support_N=torch.linspace(-10, 10, atoms),
        )
        assert (target >= 0).all()
        torch.testing.assert_close(target.sum(1), torch.ones(rows), rtol=0, atol=1e-5)

    @law(seed=SEEDS, rows=SIZES, atoms=st.integers(2, 60))
    def test_the_mean_is_moved_as_a_value_is_inside_the_support(self, seed, rows, atoms):
        prob = normal(rows, atoms, seed=seed).softmax(1)
        support = torch.linspace(-10, 10, atoms, dtype=torch.float64)
        discount = uniform(rows, seed=seed)
        # what a return may add before an atom crosses an end
        return_n = 10 * (1 - discount) * (2 * uniform(rows, seed=seed + 1) - 1)
        target = categorical_target(prob, return_n, discount, support_N=support)
        torch.testing.assert_close(target @ support, td_target(return_n, discount, prob @ support))

    def test_refuses_a_support_of_one_atom(self):
        with pytest.raises(ValueError, match="at least 2 atoms, prob_BN has 1"):
            categorical_target(
                torch.ones(1, 1), torch.ones(1), torch.ones(1), support_N=torch.ones(1)
            )


class TestCategoricalCrossEntropy:
    def test_is_the_formula(self):
        logits, target = normal(3, 5), normal(3, 5, seed=1).softmax(1)
        expected = -sum(target[:, n] * logits.softmax(1)[:, n].log() for n in range(5))
        torch.testing.assert_close(categorical_cross_entropy(logits, target), expected)

    def test_the_gradient_is_prediction_minus_target(self):
        logits, target = normal(3, 5).requires_grad_(), normal(3, 5, seed=1).softmax(1)
        loss = categorical_cross_entropy(logits, target)
        torch.testing.assert_close(grad(loss, logits), logits.softmax(1) - target)


def quantile_loss_by_loop(quantile, target, kappa, taus):
    """Eq. 9 and 10 of Dabney et al. 2018 for one row, divided by kappa."""
    total = 0.0
    for q, tau in zip(quantile, taus, strict=True):
        for y in target:
            u = (y - q).item()
            if kappa == 0:
                size = abs(u)
            elif abs(u) <= kappa:
                size = 0.5 * u * u / kappa
            else:
                size = abs(u) - 0.5 * kappa
            total += abs(tau - (u < 0)) * size / len(target)
    return total


KAPPAS = st.sampled_from([0.0, 0.3, 1.0, 5.0])


class TestQuantileHuberLoss:
    def test_literal(self):
        quantile, target = tensor([0.0, 2.0]), tensor([0.5, 4.0])
        # of quantile 0.25: u = 0.5, 4; of 0.75: u = -1.5, 2
        expected = 0.25 * (0.125 + 3.5) / 2 + (0.25 * 1.0 + 0.75 * 1.5) / 2
        assert quantile_huber_loss(quantile, target).tolist() == [expected]

    def test_pinball_literal(self):
        quantile, target = tensor([0.0, 2.0]), tensor([0.5, 4.0])
        expected = 0.25 * (0.5 + 4) / 2 + (0.25 * 1.5 + 0.75 * 2) / 2
        assert quantile_huber_loss(quantile, target, kappa=0.0).tolist() == [expected]

    @law(
        seed=SEEDS,
        rows=SIZES,
        quantiles=SIZES,
        targets=SIZES,
        kappa=KAPPAS,
        given_tau=st.booleans(),
    )
    def test_is_the_papers_loop(self, seed, rows, quantiles, targets, kappa, given_tau):
        quantile = normal(rows, quantiles, seed=seed, scale=3.0)
        target = normal(rows, targets, seed=seed + 1, scale=3.0)
        tau = uniform(quantiles, seed=seed) if given_tau else None
        taus = tau.tolist() if given_tau else [(i + 0.5) / quantiles for i in range(quantiles)]
        loss = quantile_huber_loss(quantile, target, kappa=kappa, tau_N=tau)
        pairs = zip(quantile, target, strict=True)
        expected = tensor(*(quantile_loss_by_loop(q, y, kappa, taus) for q, y in pairs))
        torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize("kappa", [0.0, 0.5, 1.0])
    @pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4)], ids=["one critic", "two critics"])
    def test_gradient_matches_finite_differences(self, kappa, shape):
        quantile, target = normal(*shape, scale=2.0).requires_grad_(), normal(3, 5, seed=1)
        weight = uniform(*shape[:-1], seed=2)
        assert torch.autograd.gradcheck(
            lambda q: weight * quantile_huber_loss(q, target, kappa=kappa), (quantile,)
        )

    def test_critics_that_share_a_target_are_as_each_alone(self):
        quantile_KBN, target = normal(3, 4, 5), normal(4, 6, seed=1)
        together = quantile_huber_loss(quantile_KBN, target)
        alone = torch.stack([quantile_huber_loss(quantile, target) for quantile in quantile_KBN])
        torch.testing.assert_close(together, alone)

    def test_the_order_of_targets_does_not_matter(self):
        quantile, target = normal(4, 5), normal(4, 6, seed=1)
        torch.testing.assert_close(
            quantile_huber_loss(quantile, target), quantile_huber_loss(quantile, target.flip(1))
        )

    @law(seed=SEEDS, size=st.integers(1, 8), value=st.floats(-100, 100), kappa=KAPPAS)
    def test_is_zero_for_equal_distributions_of_one_value(self, seed, size, value, kappa):
        quantile, target = torch.full((1, size), value), torch.full((1, 1 + seed % 5), value)
        assert quantile_huber_loss(quantile, target, kappa=kappa).tolist() == [0.0]

    @law(seed=SEEDS, size=st.integers(1, 8), moved=st.floats(-2, 2))
    def test_pinball_is_least_where_the_distributions_are_equal(self, seed, size, moved):
        target = normal(1, size, seed=seed).sort(1).values
        best = quantile_huber_loss(target, target, kappa=0.0)
        other = target + moved * normal(1, size, seed=seed + 1)
        assert quantile_huber_loss(other, target, kappa=0.0) >= best - 1e-12

    def test_descent_finds_the_quantiles_of_the_target(self):
        target = torch.arange(101.0, dtype=torch.float64)[None]
        quantile = torch.full((1, 4), 50.0, dtype=torch.float64).requires_grad_()
        for _ in range(400):
            step = grad(quantile_huber_loss(quantile, target), quantile)
            quantile = (quantile - 2.0 * step).detach().requires_grad_()
        expected = target.quantile(tensor(0.125, 0.375, 0.625, 0.875)).reshape(1, 4)
        torch.testing.assert_close(quantile.detach(), expected, rtol=0, atol=1.0)

    def test_refuses_a_negative_kappa(self):
        with pytest.raises(ValueError, match=r"kappa must be at least 0, got -1\.0"):
            quantile_huber_loss(torch.zeros(2, 3), torch.zeros(2, 3), kappa=-1.0)


ROW, COLUMN, TABLE, CUBE = (torch.zeros(s) for s in [(2,), (2, 1), (2, 3), (2, 3, 4)])
SUPPORT = torch.zeros(3)
ACTION = torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: td_target(ROW, COLUMN, ROW), r"bootstrap_discount has shape \(2, 1\)"),
        (lambda: td_target(ROW, ROW, COLUMN), r"next_value has shape \(2, 1\), expected \(2,\)"),
        (lambda: taken(TABLE, ACTION[:, None]), r"action_B has shape \(2, 1\), expected \(2,\)"),
        (lambda: taken(CUBE, ACTION[:, None]), r"action_B has shape \(2, 1\), expected \(2,\)"),
        (lambda: taken(ROW, ACTION), r"q has shape \(2,\), expected \[B, A\] or \[B, A, N\]"),
        (lambda: double_q_value(TABLE, COLUMN), r"next_q_online_BA has shape \(2, 1\)"),
        (lambda: double_q_value(ROW), r"next_q_target_BA has shape \(2,\), expected 2 axes"),
        (
            lambda: categorical_target(TABLE, COLUMN, ROW, support_N=SUPPORT),
            r"return_n has shape \(2, 1\), expected \(2,\)",
        ),
        (
            lambda: categorical_target(TABLE, ROW, COLUMN, support_N=SUPPORT),
            r"bootstrap_discount has shape \(2, 1\)",
        ),
        (
            lambda: categorical_target(TABLE, ROW, ROW, support_N=ROW),
            r"support_N has shape \(2,\), expected \(3,\)",
        ),
        (
            lambda: categorical_target(CUBE, ROW, ROW, support_N=SUPPORT),
            r"prob_BN has shape \(2, 3, 4\), expected 2 axes",
        ),
        (lambda: categorical_cross_entropy(TABLE, COLUMN), r"target_BN has shape \(2, 1\)"),
        (lambda: categorical_cross_entropy(ROW, ROW), r"logits_BN has shape \(2,\)"),
        (lambda: quantile_huber_loss(TABLE, ROW), r"target_BM has shape \(2,\)"),
        (lambda: quantile_huber_loss(TABLE, CUBE), r"target_BM has shape \(2, 3, 4\)"),
        (lambda: quantile_huber_loss(CUBE, TABLE), r"target_BM has shape \(2, 3\)"),
        (lambda: quantile_huber_loss(ROW, TABLE), r"quantile_BN has shape \(2,\)"),
        (
            lambda: quantile_huber_loss(TABLE, TABLE, tau_N=COLUMN),
            r"tau_N has shape \(2, 1\), expected \(3,\)",
        ),
    ],
)
def test_refuses_shapes_that_would_broadcast_naming_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_targets_are_detached():
    row, table, support = (torch.rand(s, requires_grad=True) for s in [(2,), (2, 3), (3,)])
    targets = (
        td_target(row, row, row),
        double_q_value(table, table),
        double_q_value(table),
        categorical_target(table, row, row, support_N=support),
    )
    assert not any(target.requires_grad for target in targets)


def test_gradients_flow_only_into_what_is_trained():
    trained, constant, tau = (torch.rand(s, requires_grad=True) for s in [(2, 3), (2, 3), (3,)])
    losses = {
        "categorical_cross_entropy": categorical_cross_entropy(trained, constant),
        "quantile_huber_loss": quantile_huber_loss(trained, constant, tau_N=tau),
    }
    for name, loss in losses.items():
        assert loss.shape == (2,), name
        grads = torch.autograd.grad(loss.sum(), (trained, constant, tau), allow_unused=True)
        assert [g is not None for g in grads] == [True, False, False], name
