"""Returns against hand-written tables, the papers' double loops, and laws."""

import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_ops.returns import discounted_sum, gae, lambda_returns, linear_recurrence, n_step, vtrace

GAMMA = 0.9


def law(**strategies):
    """Check for many inputs, without a deadline that a busy machine would miss."""
    return lambda test: settings(deadline=None, max_examples=50)(given(**strategies)(test))


def array(*values):
    return np.array(values)


def cuts(*values):
    return np.array(values, bool)


@st.composite
def fragments(draw, max_rows=24):
    """Flat rows of several episodes: some terminated, some truncated, the last row a cut."""
    rows = draw(st.integers(1, max_rows))
    end = st.sampled_from(["no", "no", "no", "terminated", "truncated"])
    ends = draw(st.lists(end, min_size=rows, max_size=rows))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    terminated = np.array([e == "terminated" for e in ends])
    is_last = np.array([e != "no" for e in ends])
    is_last[-1] = True
    value = rng.normal(size=rows)
    following = np.append(value[1:], 0.0)
    return {
        "reward": rng.normal(size=rows),
        "discount": GAMMA * (1.0 - terminated),
        "value": value,
        "next_value": np.where(is_last, rng.normal(size=rows), following),
        "is_last": is_last,
    }


def pick(fragment, *names):
    return {name: fragment[name] for name in names}


def end_of(is_last, t):
    """The first row at or after t that is_last."""
    return t + int(np.argmax(is_last[t:]))


class TestLinearRecurrence:
    def test_follows_the_recurrence_backwards(self):
        x = linear_recurrence(array(1.0, 2.0, 3.0, 4.0), array(0.5, 0.0, 2.0, 9.0))
        assert x.tolist() == [1.0 + 0.5 * 2.0, 2.0, 3.0 + 2.0 * 4.0, 4.0]

    @law(rows=st.integers(0, 200), seed=st.integers(0, 2**32 - 1))
    def test_equals_a_plain_scan(self, rows, seed):
        rng = np.random.default_rng(seed)
        a, b = rng.normal(size=(rows, 2)), rng.uniform(-1, 1, size=(rows, 2))
        b[rng.random(size=b.shape) < 0.1] = 0.0
        expected, x = np.zeros_like(a), np.zeros(2)
        for t in reversed(range(rows)):
            x = expected[t] = a[t] + b[t] * x
        np.testing.assert_allclose(linear_recurrence(a, b), expected, rtol=1e-12, atol=1e-12)

    def test_leaves_its_arguments_as_they_were(self):
        a, b = np.ones(5), np.full(5, 0.5)
        linear_recurrence(a, b)
        assert (a == 1.0).all()
        assert (b == 0.5).all()


class TestGae:
    def test_literal(self):
        result = gae(
            array(1.0, 2.0, 3.0),
            array(0.5, 0.5, 0.0),
            array(1.0, 1.0, 1.0),
            array(1.0, 1.0, 0.0),
            cuts(0, 0, 1),
            gae_lambda=0.5,
        )
        assert result.advantage.tolist() == [1.0, 2.0, 2.0]  # from deltas 0.5, 1.5, 2
        assert result.value_target.tolist() == [2.0, 3.0, 3.0]

    def test_truncation_bootstraps_but_termination_does_not(self):
        discount = array(GAMMA, 0.0)
        result = gae(
            array(1.0, 1.0), discount, array(0.0, 0.0), array(10.0, 10.0), cuts(1, 1), gae_lambda=1
        )
        assert result.advantage.tolist() == [10.0, 1.0]

    @law(fragment=fragments(), gae_lambda=st.floats(0, 1))
    def test_equals_the_papers_sum_of_td_errors(self, fragment, gae_lambda):
        reward, discount, value, next_value, is_last = fragment.values()
        delta = reward + discount * next_value - value
        expected = np.zeros_like(reward)
        for t in range(len(reward)):
            for k in range(t, end_of(is_last, t) + 1):
                expected[t] += np.prod(gae_lambda * discount[t:k]) * delta[k]
        result = gae(**fragment, gae_lambda=gae_lambda)
        np.testing.assert_allclose(result.advantage, expected, atol=1e-6)
        np.testing.assert_allclose(result.value_target, expected + value, atol=1e-6)

    @law(fragment=fragments())
    def test_with_lambda_one_plus_value_is_the_bootstrapped_monte_carlo_return(self, fragment):
        reward, discount, value, next_value, is_last = fragment.values()
        expected = np.zeros_like(reward)
        for t in range(len(reward)):
            end = end_of(is_last, t)
            for k in range(t, end + 1):
                expected[t] += np.prod(discount[t:k]) * reward[k]
            expected[t] += np.prod(discount[t : end + 1]) * next_value[end]
        result = gae(**fragment, gae_lambda=1.0)
        np.testing.assert_allclose(result.advantage + value, expected, atol=1e-6)

    @law(fragment=fragments())
    def test_with_lambda_zero_is_the_td_error(self, fragment):
        reward, discount, value, next_value, _ = fragment.values()
        result = gae(**fragment, gae_lambda=0.0)
        np.testing.assert_allclose(result.advantage, reward + discount * next_value - value)

    @law(fragment=fragments(), gae_lambda=st.floats(0, 1))
    def test_value_target_is_the_lambda_return(self, fragment, gae_lambda):
        target = lambda_returns(
            **pick(fragment, "reward", "discount", "next_value", "is_last"), gae_lambda=gae_lambda
        )
        result = gae(**fragment, gae_lambda=gae_lambda)
        np.testing.assert_allclose(result.value_target, target, atol=1e-9)


class TestLambdaReturns:
    def test_literal(self):
        result = lambda_returns(
            array(1.0, 1.0), array(0.5, 0.5), array(4.0, 8.0), cuts(0, 1), gae_lambda=0.5
        )
        assert result.tolist() == [1 + 0.5 * (0.5 * 4 + 0.5 * 5), 1 + 0.5 * 8]

    @law(fragment=fragments(), gae_lambda=st.floats(0, 1))
    def test_equals_the_weighted_average_of_n_step_returns(self, fragment, gae_lambda):
        reward, discount, _, next_value, is_last = fragment.values()
        expected = np.zeros_like(reward)
        for t in range(len(reward)):
            end, g_n = end_of(is_last, t), 0.0
            for k in range(t, end + 1):
                g_n += np.prod(discount[t:k]) * reward[k]
                bootstrapped = g_n + np.prod(discount[t : k + 1]) * next_value[k]
                weight = gae_lambda ** (k - t) * (1.0 if k == end else 1 - gae_lambda)
                expected[t] += weight * bootstrapped
        result = lambda_returns(
            **pick(fragment, "reward", "discount", "next_value", "is_last"), gae_lambda=gae_lambda
        )
        np.testing.assert_allclose(result, expected, atol=1e-6)


class TestDiscountedSum:
    def test_literal(self):
        result = discounted_sum(array(1.0, 2.0, 4.0), array(0.5, 0.5, 0.5), cuts(0, 1, 0))
        assert result.tolist() == [2.0, 2.0, 4.0]

    @law(fragment=fragments())
    def test_is_the_n_step_return_of_all_steps(self, fragment):
        inputs = pick(fragment, "reward", "discount", "is_last")
        np.testing.assert_allclose(
            discounted_sum(**inputs), n_step(**inputs, n=len(fragment["reward"])).return_n
        )


class TestNStep:
    def test_literal(self):
        result = n_step(array(1.0, 2.0, 4.0, 8.0), array(0.5, 0.5, 0.5, 0.5), cuts(0, 0, 1, 1), n=2)
        assert result.return_n.tolist() == [2.0, 4.0, 4.0, 8.0]
        assert result.bootstrap_index.tolist() == [1, 2, 2, 3]
        assert result.bootstrap_discount.tolist() == [0.25, 0.25, 0.5, 0.5]

    def test_a_terminated_window_does_not_bootstrap(self):
        result = n_step(array(1.0, 1.0, 1.0), array(0.5, 0.0, 0.5), cuts(0, 1, 1), n=3)
        assert result.bootstrap_discount.tolist() == [0.0, 0.0, 0.5]

    def test_a_truncated_window_bootstraps_from_its_own_last_row(self):
        result = n_step(array(1.0, 1.0, 1.0), array(0.5, 0.5, 0.5), cuts(0, 1, 1), n=3)
        assert result.bootstrap_index.tolist() == [1, 1, 2]
        assert result.bootstrap_discount.tolist() == [0.25, 0.5, 0.5]

    def test_one_step_is_the_reward_itself(self):
        reward, discount = array(3.0, 5.0), array(0.5, 0.5)
        result = n_step(reward, discount, cuts(0, 1), n=1)
        assert result.return_n.tolist() == [3.0, 5.0]
        assert result.bootstrap_index.tolist() == [0, 1]
        assert result.bootstrap_discount.tolist() == [0.5, 0.5]

    @law(fragment=fragments(), n=st.integers(1, 30))
    def test_equals_the_double_loop(self, fragment, n):
        reward, discount, _, _, is_last = fragment.values()
        result = n_step(reward, discount, is_last, n=n)
        for t in range(len(reward)):
            last = min(end_of(is_last, t), t + n - 1)
            expected = sum(np.prod(discount[t:k]) * reward[k] for k in range(t, last + 1))
            assert result.return_n[t] == pytest.approx(expected, abs=1e-6)
            assert result.bootstrap_index[t] == last
            expected_discount = np.prod(discount[t : last + 1])
            assert result.bootstrap_discount[t] == pytest.approx(expected_discount, abs=1e-9)

    def test_refuses_less_than_one_step(self):
        with pytest.raises(ValueError, match="n must be at least 1 step, got 0"):
            n_step(array(1.0), array(1.0), cuts(1), n=0)


class TestVtrace:
    def test_literal(self):
        result = vtrace(
            np.log(array(2.0, 0.5)),
            array(1.0, 1.0),
            array(0.5, 0.5),
            array(0.0, 2.0),
            array(2.0, 4.0),
            cuts(0, 1),
        )
        # rho clips to 1 and 0.5; deltas are 2 and 0.5 * (1 + 2 - 2)
        np.testing.assert_allclose(result.target, [2.0 + 0.5 * 0.5, 2.0 + 0.5])
        np.testing.assert_allclose(result.advantage, [1.0 + 0.5 * 2.5, 0.5 * (1.0 + 2.0 - 2.0)])

    @law(
        fragment=fragments(),
        seed=st.integers(0, 2**32 - 1),
        rho_bar=st.floats(0.1, 3),
        c_bar=st.floats(0.1, 1.5),
        gae_lambda=st.floats(0, 1),
    )
    def test_equals_the_papers_double_loop(self, fragment, seed, rho_bar, c_bar, gae_lambda):
        reward, discount, value, next_value, is_last = fragment.values()
        log_rho = np.random.default_rng(seed).normal(size=len(reward))
        rho = np.minimum(rho_bar, np.exp(log_rho))
        c = gae_lambda * np.minimum(c_bar, np.exp(log_rho))
        delta = rho * (reward + discount * next_value - value)
        target, advantage = value.copy(), np.zeros_like(value)
        for t in range(len(reward)):
            for k in range(t, end_of(is_last, t) + 1):
                target[t] += np.prod(discount[t:k] * c[t:k]) * delta[k]
        for t in range(len(reward)):
            v_next = next_value[t] if is_last[t] else target[t + 1]
            advantage[t] = rho[t] * (reward[t] + discount[t] * v_next - value[t])
        result = vtrace(log_rho, **fragment, rho_bar=rho_bar, c_bar=c_bar, gae_lambda=gae_lambda)
        np.testing.assert_allclose(result.target, target, atol=1e-6)
        np.testing.assert_allclose(result.advantage, advantage, atol=1e-6)

    @law(fragment=fragments())
    def test_on_policy_is_the_lambda_one_return(self, fragment):
        result = vtrace(np.zeros_like(fragment["reward"]), **fragment)
        expected = gae(**fragment, gae_lambda=1.0)
        np.testing.assert_allclose(result.target, expected.value_target, atol=1e-9)
        np.testing.assert_allclose(result.advantage, expected.advantage, atol=1e-9)

    @law(fragment=fragments(), gae_lambda=st.floats(0, 1))
    def test_on_policy_targets_are_gaes(self, fragment, gae_lambda):
        result = vtrace(np.zeros_like(fragment["reward"]), **fragment, gae_lambda=gae_lambda)
        expected = gae(**fragment, gae_lambda=gae_lambda)
        np.testing.assert_allclose(result.target, expected.value_target, atol=1e-9)

    def test_extreme_ratios_stay_finite(self):
        one = np.ones(2, np.float32)
        log_rho = np.array([1e4, -np.inf], np.float32)
        result = vtrace(log_rho, one, one, 2 * one, one, cuts(0, 1), rho_bar=2.0, c_bar=2.0)
        assert np.isfinite(result.target).all()
        assert result.advantage.tolist() == [2.0, 0.0]

    @pytest.mark.parametrize("clip", ["rho_bar", "c_bar"])
    def test_refuses_a_clip_that_is_not_positive(self, clip):
        one = np.ones(1)
        with pytest.raises(ValueError, match="rho_bar and c_bar must be positive"):
            vtrace(one, one, one, one, one, cuts(1), **{clip: 0.0})


ESTIMATORS = {
    "discounted_sum": lambda f: [discounted_sum(**pick(f, "reward", "discount", "is_last"))],
    "gae": lambda f: gae(**f, gae_lambda=0.95),
    "lambda_returns": lambda f: [
        lambda_returns(**pick(f, "reward", "discount", "next_value", "is_last"), gae_lambda=0.95)
    ],
    "n_step": lambda f: n_step(**pick(f, "reward", "discount", "is_last"), n=3)[::2],
    "vtrace": lambda f: vtrace(f["value"], **f, gae_lambda=0.95),
}


@pytest.mark.parametrize("estimate", ESTIMATORS.values(), ids=ESTIMATORS)
class TestEveryEstimator:
    @law(first=fragments(), second=fragments())
    def test_two_episodes_in_one_fragment_are_each_alone(self, estimate, first, second):
        both = {name: np.concatenate([first[name], second[name]]) for name in first}
        alone = zip(estimate(first), estimate(second), strict=True)
        for got, parts in zip(estimate(both), alone, strict=True):
            np.testing.assert_allclose(got, np.concatenate(parts), atol=1e-9)

    @law(fragment=fragments())
    def test_numpy_and_torch_agree(self, estimate, fragment):
        tensors = {name: torch.from_numpy(x) for name, x in fragment.items()}
        for got, expected in zip(estimate(tensors), estimate(fragment), strict=True):
            np.testing.assert_allclose(got.numpy(), expected, atol=1e-9)

    @law(columns=st.lists(fragments(max_rows=6), min_size=1, max_size=3))
    def test_time_major_columns_are_flat_rows_side_by_side(self, estimate, columns):
        rows = min(len(column["reward"]) for column in columns)
        columns = [{name: x[:rows] for name, x in column.items()} for column in columns]
        stacked = {name: np.stack([c[name] for c in columns], axis=1) for name in columns[0]}
        alone = zip(*(estimate(column) for column in columns), strict=True)
        for got, parts in zip(estimate(stacked), alone, strict=True):
            np.testing.assert_allclose(got, np.stack(parts, axis=1), atol=1e-9)

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    @pytest.mark.parametrize("terminated", [True, False])
    def test_a_bad_reward_stays_in_its_episode(self, estimate, bad, terminated):
        fragment = {
            "reward": array(1.0, 1.0, 1.0, bad, 1.0, 1.0),
            "discount": array(0.9, 0.9 * (not terminated), 0.9, 0.9, 0.9, 0.9),
            "value": np.ones(6),
            "next_value": np.ones(6),
            "is_last": cuts(0, 1, 0, 1, 0, 1),
        }
        for result in estimate(fragment):
            assert np.isfinite(result[[0, 1, 4, 5]]).all()

    def test_the_last_row_is_a_cut_though_not_marked(self, estimate):
        fragment = {name: np.full(4, 0.5) for name in ("reward", "discount", "value", "next_value")}
        unmarked = estimate({**fragment, "is_last": cuts(0, 0, 0, 0)})
        for got, expected in zip(
            unmarked, estimate({**fragment, "is_last": cuts(0, 0, 0, 1)}), strict=True
        ):
            assert got.tolist() == expected.tolist()

    @pytest.mark.parametrize("rows", [0, 1])
    @pytest.mark.parametrize("kind", [np.asarray, torch.asarray])
    def test_no_rows_and_one_row_are_fragments_too(self, estimate, rows, kind):
        fragment = {name: kind(np.ones(rows)) for name in ("reward", "discount", "value")}
        fragment |= {"next_value": kind(np.ones(rows)), "is_last": kind(np.ones(rows, bool))}
        assert all(result.shape == (rows,) for result in estimate(fragment))

    @pytest.mark.parametrize("kind", [np.asarray, torch.asarray])
    def test_float32_stays_float32_and_close_to_float64(self, estimate, kind):
        rng = np.random.default_rng(0)
        wide = {name: rng.normal(size=512) for name in ("reward", "discount", "value")}
        wide["discount"] = np.full(512, 0.99)
        wide |= {"next_value": rng.normal(size=512), "is_last": rng.random(512) < 0.01}
        narrow = {k: kind(x if x.dtype == bool else x.astype(np.float32)) for k, x in wide.items()}
        for got, expected in zip(estimate(narrow), estimate(wide), strict=True):
            assert got.dtype == kind(np.float32(0)).dtype
            np.testing.assert_allclose(np.asarray(got), expected, rtol=1e-4, atol=1e-4)

    def test_results_are_detached_and_arguments_untouched(self, estimate):
        names = ("reward", "discount", "value", "next_value")
        fragment = {name: torch.full((5,), 0.5, requires_grad=True) for name in names}
        fragment["is_last"] = torch.tensor([False, False, True, False, True])
        before = {name: x.detach().clone() for name, x in fragment.items()}
        assert not any(result.requires_grad for result in estimate(fragment))
        assert all(torch.equal(fragment[name].detach(), x) for name, x in before.items())

    def test_names_both_arguments_when_shapes_disagree(self, estimate):
        fragment = {name: np.ones(3) for name in ("reward", "discount", "value", "next_value")}
        fragment |= {"discount": np.ones((3, 1)), "is_last": cuts(0, 0, 1)}
        pattern = r"discount has shape \(3, 1\), (reward|log_rho) has \(3,\)"
        with pytest.raises(ValueError, match=pattern):
            estimate(fragment)

    def test_refuses_a_float_is_last(self, estimate):
        names = ("reward", "discount", "value", "next_value", "is_last")
        with pytest.raises(TypeError, match="is_last has dtype float64, expected bool"):
            estimate({name: np.ones(3) for name in names})

    def test_refuses_numpy_mixed_with_torch(self, estimate):
        fragment = {name: np.ones(3) for name in ("reward", "discount", "value", "next_value")}
        fragment |= {"discount": torch.ones(3), "is_last": cuts(0, 0, 1)}
        with pytest.raises(TypeError, match=r"discount is Tensor, (reward|log_rho) is ndarray"):
            estimate(fragment)

    def test_refuses_scalars(self, estimate):
        names = ("reward", "discount", "value", "next_value", "is_last")
        with pytest.raises(ValueError, match=r"is a scalar; expected \[T\] or \[T, B\]"):
            estimate({name: np.ones(()) for name in names})


def test_refuses_what_is_no_array():
    with pytest.raises(TypeError, match="expected a numpy array or a torch tensor, got list"):
        discounted_sum([1.0], [1.0], [True])


@pytest.mark.parametrize("gae_lambda", [-0.1, 1.1, np.nan])
def test_refuses_a_lambda_outside_zero_to_one(gae_lambda):
    one = np.ones(1)
    with pytest.raises(ValueError, match=r"gae_lambda must be in \[0, 1\]"):
        gae(one, one, one, one, cuts(1), gae_lambda=gae_lambda)


def best_s(run, repeats):
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def test_a_fragment_takes_under_a_millisecond_and_one_long_segment_under_a_second():
    rng = np.random.default_rng(0)

    def run(rows, segment):
        x = rng.normal(size=(3, rows)).astype(np.float32)
        is_last = np.arange(rows) % segment == segment - 1
        discount = np.full(rows, 0.99, np.float32)
        return lambda: gae(x[0], discount, x[1], x[2], is_last, gae_lambda=0.95)

    assert best_s(run(4096, 128), repeats=20) < 1e-3
    assert best_s(run(1_000_000, 1_000_000), repeats=2) < 1.0


def test_neither_returns_nor_distributions_import_torch():
    code = (
        "import sys, rl_ops.returns, rl_ops.distributions as d, numpy as np\n"
        "p = np.zeros((2, 3), np.float32)\n"
        "d.Categorical(3).sample(p, d.Categorical(3).noise(np.random.default_rng(0), 2))\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
