"""Distributions against torch.distributions, numeric integrals, frequencies and gradients."""

import math

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Text, Tuple
from torch import distributions as td

from rl_ops.distributions import (
    Categorical,
    Gaussian,
    Joint,
    MultiCategorical,
    SquashedGaussian,
    distribution_for,
)
from rl_ops.errors import SpecError

KINDS = {
    "categorical": Categorical(3),
    "categorical_of_one": Categorical(1),
    "multi_even": MultiCategorical((3, 3)),
    "multi_ragged": MultiCategorical((2, 4, 1)),
    "multi_binary": MultiCategorical((2, 2, 2, 2), shape=(2, 2), dtype="int8"),
    "gaussian": Gaussian(2),
    "gaussian_shaped": Gaussian(6, shape=(2, 3)),
    "gaussian_scalar": Gaussian(1, shape=()),
    "squashed": SquashedGaussian(2),
    "joint_dict": Joint({"go": Categorical(3), "aim": Gaussian(2)}),
    "joint_nested": Joint((MultiCategorical((2, 3)), Joint({"b": SquashedGaussian(1)}))),
}
every_kind = pytest.mark.parametrize("dist", KINDS.values(), ids=KINDS)
CHOICES = {name: dist for name, dist in KINDS.items() if hasattr(dist, "mask_logits")}


def drawn(dist, rows, *, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    params = rng.normal(size=(rows, dist.param_size)).astype(dtype)
    return params, dist.noise(rng, rows)


def as_torch(tree):
    if isinstance(tree, dict):
        return {key: as_torch(child) for key, child in tree.items()}
    if isinstance(tree, tuple):
        return tuple(as_torch(child) for child in tree)
    return torch.from_numpy(np.ascontiguousarray(tree))


def leaves(tree):
    if isinstance(tree, dict | tuple):
        children = tree.values() if isinstance(tree, dict) else tree
        return [leaf for child in children for leaf in leaves(child)]
    return [tree]


def close(got, expected, *, atol=1e-5):
    np.testing.assert_allclose(np.asarray(got), np.asarray(expected), rtol=1e-5, atol=atol)


@every_kind
class TestEveryDistribution:
    def test_numpy_and_torch_agree(self, dist):
        params, noise = drawn(dist, 64, dtype=np.float64)
        other, _ = drawn(dist, 64, seed=1, dtype=np.float64)
        action, logp = dist.sample_logp(params, noise)
        tensors = torch.from_numpy(params), torch.from_numpy(noise)
        action_t, logp_t = dist.sample_logp(*tensors)
        for got, expected in zip(leaves(action_t), leaves(action), strict=True):
            close(got, expected)
            assert str(got.dtype).removeprefix("torch.") == str(expected.dtype)
        close(logp_t, logp)
        close(dist.logp(tensors[0], as_torch(action)), dist.logp(params, action))
        close(dist.entropy(tensors[0]), dist.entropy(params))
        close(dist.kl(tensors[0], torch.from_numpy(other)), dist.kl(params, other))
        for got, expected in zip(
            leaves(dist.mode(tensors[0])), leaves(dist.mode(params)), strict=True
        ):
            close(got, expected)

    def test_what_is_shared_equals_what_is_computed_alone(self, dist):
        params, noise = drawn(dist, 32, dtype=np.float64)
        params *= 0.5  # far from where a squashed action is clipped
        action, logp = dist.sample_logp(params, noise)
        for got, expected in zip(leaves(action), leaves(dist.sample(params, noise)), strict=True):
            assert (got == expected).all()
        close(logp, dist.logp(params, action))
        both = dist.logp_entropy(params, action)
        assert (both[0] == dist.logp(params, action)).all()
        assert (both[1] == dist.entropy(params)).all()

    def test_entropy_is_the_mean_surprise_of_samples(self, dist):
        rng = np.random.default_rng(0)
        params = np.repeat(0.5 * rng.normal(size=(1, dist.param_size)), 20_000, axis=0)
        surprise = -dist.sample_logp(params, dist.noise(rng, 20_000))[1]
        error = 4 * surprise.std() / math.sqrt(20_000) + 1e-6
        assert dist.entropy(params)[0] == pytest.approx(surprise.mean(), abs=error)

    def test_kl_is_the_mean_log_ratio_of_samples(self, dist):
        rng = np.random.default_rng(0)
        p, q = (np.repeat(0.5 * rng.normal(size=(1, dist.param_size)), 20_000, 0) for _ in "pq")
        action, logp = dist.sample_logp(p, dist.noise(rng, 20_000))
        log_ratio = logp - dist.logp(q, action)
        error = 4 * log_ratio.std() / math.sqrt(20_000) + 1e-6
        assert dist.kl(p, q)[0] == pytest.approx(log_ratio.mean(), abs=error)
        close(dist.kl(p[:2], p[:2]), [0.0, 0.0])

    def test_float32_params_give_float32_results(self, dist):
        for convert, dtype in ((np.asarray, np.float32), (torch.from_numpy, torch.float32)):
            params, noise = (convert(x) for x in drawn(dist, 4))
            action, logp = dist.sample_logp(params, noise)
            results = [logp, dist.logp(params, action), dist.entropy(params)]
            results += [dist.kl(params, params)]
            assert [x.dtype for x in results] == [dtype] * 4
            floats = [x for x in leaves(action) if "float" in str(x.dtype)]
            assert all(x.dtype == dtype for x in floats)

    def test_no_rows_and_one_row(self, dist):
        for rows in (0, 1):
            params, noise = drawn(dist, rows)
            action, logp = dist.sample_logp(params, noise)
            assert logp.shape == dist.entropy(params).shape == (rows,)
            assert all(len(leaf) == rows for leaf in leaves(action) + leaves(dist.mode(params)))
            assert dist.logp(torch.from_numpy(params), as_torch(action)).shape == (rows,)

    def test_noise_is_float32_and_a_function_of_the_generator(self, dist):
        one, two = (dist.noise(np.random.default_rng(7), 5) for _ in range(2))
        assert one.dtype == np.float32
        assert one.shape == (5, dist.noise_size)
        assert (one == two).all()

    def test_gradients_match_finite_differences(self, dist):
        params, noise = drawn(dist, 3, dtype=np.float64)
        action = as_torch(dist.sample(params, noise))
        other = torch.from_numpy(params[::-1].copy())
        params = torch.from_numpy(params).requires_grad_()
        functions = (
            lambda p: dist.logp(p, action),
            dist.entropy,
            lambda p: dist.kl(p, other),
            lambda p: dist.kl(other, p),
        )
        assert all(torch.autograd.gradcheck(f, (params,)) for f in functions)

    def test_refuses_shapes_that_would_broadcast(self, dist):
        params, noise = drawn(dist, 4)
        action = dist.sample(params, noise)
        with pytest.raises(ValueError, match="params has shape"):
            dist.entropy(params[:, :-1] if dist.param_size > 1 else params[:, :0])
        with pytest.raises(ValueError, match="noise has shape"):
            dist.sample(params, noise[:1])
        with pytest.raises(ValueError, match="action has shape"):
            dist.logp(params[:1], action)


@pytest.mark.parametrize("name", ["gaussian", "gaussian_shaped", "squashed"])
def test_continuous_samples_are_differentiable_along_their_noise(name):
    dist = KINDS[name]
    params, noise = (torch.from_numpy(x).double() for x in drawn(dist, 3))
    assert torch.autograd.gradcheck(
        lambda p: dist.sample_logp(p, noise), (params.requires_grad_(),)
    )


class TestCategorical:
    def test_literal(self):
        params = np.log(np.array([[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]])) + 3.0
        dist = Categorical(3)
        close(dist.logp(params, np.array([1, 2])), np.log([0.25, 0.6]))
        close(dist.entropy(params)[0], 1.5 * math.log(2))
        assert dist.mode(params).tolist() == [0, 2]
        noise = np.array([[0.5], [0.39]], np.float32)
        assert dist.sample(params, noise).tolist() == [1, 1]

    def test_agrees_with_torch(self):
        params, noise = (torch.from_numpy(x) for x in drawn(Categorical(5), 50))
        other = params.flip(0)
        ours, theirs = Categorical(5), td.Categorical(logits=params)
        action = ours.sample(params, noise)
        assert action.dtype == torch.int64
        close(ours.logp(params, action), theirs.log_prob(action))
        close(ours.entropy(params), theirs.entropy())
        close(ours.kl(params, other), td.kl_divergence(theirs, td.Categorical(logits=other)))

    def test_sample_frequencies(self):
        p = np.array([0.5, 0.3, 0.15, 0.05])
        params = np.repeat(np.log(p)[None].astype(np.float32), 40_000, axis=0)
        action = Categorical(4).sample(
            params, Categorical(4).noise(np.random.default_rng(0), 40_000)
        )
        expected = 40_000 * p
        chi2 = ((np.bincount(action, minlength=4) - expected) ** 2 / expected).sum()
        assert chi2 < 16.27  # 3 degrees of freedom, p = 0.001

    @pytest.mark.parametrize("uniform", [0.0, 1.0 - 2.0**-24])
    def test_the_extreme_uniforms_draw_only_what_is_possible(self, uniform):
        dist, rng = Categorical(7), np.random.default_rng(0)
        mask = np.zeros((2000, 7), bool)
        mask[np.arange(2000), rng.integers(7, size=2000)] = True
        mask |= rng.random(mask.shape) < 0.3
        logits = 5 * rng.normal(size=mask.shape).astype(np.float32)
        noise = np.full((2000, 1), uniform, np.float32)
        action = dist.sample(dist.mask_logits(logits, mask), noise)
        assert mask[np.arange(2000), action].all()

    def test_logits_far_apart_stay_finite(self):
        params = np.array([[1e4, 0.0, -1e4]], np.float32)
        dist = Categorical(3)
        assert dist.logp(params, np.array([2])).tolist() == [-2e4]
        assert dist.entropy(params).tolist() == [0.0]

    @pytest.mark.parametrize("action", [-1, 3])
    def test_torch_refuses_an_action_out_of_range(self, action):
        with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
            Categorical(3).logp(torch.zeros(1, 3), torch.tensor([action]))

    def test_refuses_no_actions(self):
        with pytest.raises(ValueError, match="num_actions must be at least 1, got 0"):
            Categorical(0)


class TestMultiCategorical:
    def test_is_its_factors_side_by_side(self):
        dist, nvec = MultiCategorical((2, 4, 1)), (2, 4, 1)
        params, noise = drawn(dist, 40)
        other, _ = drawn(dist, 40, seed=1)
        action, logp = dist.sample_logp(params, noise)
        parts = np.split(params, [2, 6], axis=1)
        others = np.split(other, [2, 6], axis=1)
        factors = [Categorical(n) for n in nvec]
        for k, (factor, part) in enumerate(zip(factors, parts, strict=True)):
            assert (action[:, k] == factor.sample(part, noise[:, k : k + 1])).all()
            assert (dist.mode(params)[:, k] == factor.mode(part)).all()
        pairs = list(zip(factors, parts, others, strict=True))
        close(logp, sum(f.logp(p, action[:, k]) for k, (f, p, _) in enumerate(pairs)))
        close(dist.entropy(params), sum(f.entropy(p) for f, p, _ in pairs))
        close(dist.kl(params, other), sum(f.kl(p, q) for f, p, q in pairs))

    def test_binary_actions_are_int8_of_the_spaces_shape(self):
        dist = KINDS["multi_binary"]
        params = np.array([[0.0, 9.0, 9.0, 0.0, 0.0, 9.0, 0.0, 9.0]], np.float32)
        mode = dist.mode(params)
        assert mode.dtype == np.int8
        assert mode.tolist() == [[[1, 0], [1, 1]]]
        assert mode.flags.c_contiguous

    def test_the_padding_of_ragged_factors_has_no_gradient_and_no_probability(self):
        params = torch.zeros(1, 5, requires_grad=True)
        dist = MultiCategorical((2, 3))
        entropy = dist.entropy(params)
        entropy.sum().backward()
        close(entropy.detach(), [math.log(2) + math.log(3)])
        assert torch.isfinite(params.grad).all()

    @pytest.mark.parametrize("nvec", [(), (2, 0)])
    def test_refuses_factors_without_choices(self, nvec):
        with pytest.raises(ValueError, match="nvec must hold numbers of at least 1"):
            MultiCategorical(nvec)

    def test_refuses_a_shape_of_another_size(self):
        with pytest.raises(ValueError, match=r"shape \(3,\) does not hold the 2 of nvec"):
            MultiCategorical((2, 2), shape=(3,))


@pytest.mark.parametrize("dist", CHOICES.values(), ids=CHOICES)
class TestMaskLogits:
    def test_masked_choices_are_never_drawn_and_the_others_keep_their_ratios(self, dist):
        params, noise = drawn(dist, 500)
        first_of_factor = np.cumsum([0, *dist._factors[:-1]])
        mask = np.random.default_rng(1).integers(2, size=params.shape).astype(np.int8)
        mask[:, first_of_factor] = 1
        masked = dist.mask_logits(params, mask)
        action = dist.sample(masked, noise).reshape(500, -1)
        assert (np.take_along_axis(mask, action + first_of_factor, 1) == 1).all()
        assert (masked[mask == 1] == params[mask == 1]).all()

    def test_entropy_and_gradients_are_finite_and_zero_where_masked(self, dist):
        params = torch.from_numpy(drawn(dist, 4)[0]).requires_grad_()
        mask = torch.zeros_like(params, dtype=torch.bool)
        mask[:, np.cumsum([0, *dist._factors[:-1]])] = True
        masked = dist.mask_logits(params, mask)
        logp, entropy = dist.logp_entropy(masked, dist.mode(masked))
        (logp + entropy).sum().backward()
        assert torch.isfinite(params.grad).all()
        assert (params.grad[~mask] == 0).all()
        close(entropy.detach(), torch.zeros(4))

    def test_a_row_without_choices_is_uniform_over_the_factors_own(self, dist):
        params, noise = drawn(dist, 100)
        masked = dist.mask_logits(params, np.zeros_like(params, bool))
        action = dist.sample(masked, noise).reshape(100, -1)
        assert (action < dist._factors).all()
        close(dist.entropy(masked), [sum(math.log(n) for n in dist._factors)] * 100)

    def test_refuses_a_mask_of_another_shape(self, dist):
        params, _ = drawn(dist, 2)
        with pytest.raises(ValueError, match="mask has shape"):
            dist.mask_logits(params, np.ones((1, dist.param_size), bool))


class TestGaussian:
    def test_agrees_with_torch(self):
        params, noise = (torch.from_numpy(x) for x in drawn(Gaussian(3), 50))
        other = params.flip(0)
        ours = Gaussian(3)

        def theirs(p):
            return td.Independent(td.Normal(p[:, :3], p[:, 3:].exp()), 1)

        action = ours.sample(params, noise)
        close(ours.logp(params, action), theirs(params).log_prob(action))
        close(ours.entropy(params), theirs(params).entropy())
        close(ours.kl(params, other), td.kl_divergence(theirs(params), theirs(other)))

    def test_samples_have_the_mean_and_deviation(self):
        params = np.tile(np.array([[2.0, -1.0, 0.0, math.log(0.5)]]), (50_000, 1))
        sample = Gaussian(2).sample(params, Gaussian(2).noise(np.random.default_rng(0), 50_000))
        np.testing.assert_allclose(sample.mean(0), [2.0, -1.0], atol=0.02)
        np.testing.assert_allclose(sample.std(0), [1.0, 0.5], rtol=0.02)

    def test_actions_have_the_spaces_shape(self):
        params, noise = drawn(KINDS["gaussian_shaped"], 4)
        action = KINDS["gaussian_shaped"].sample(params, noise)
        assert action.shape == (4, 2, 3)
        close(
            KINDS["gaussian_shaped"].logp(params, action),
            Gaussian(6).logp(params, action.reshape(4, 6)),
        )
        assert KINDS["gaussian_scalar"].mode(np.array([[3.0, 0.0]])).tolist() == [3.0]

    @pytest.mark.parametrize("kind", [Gaussian, SquashedGaussian])
    def test_refuses_no_features_and_a_shape_of_another_size(self, kind):
        with pytest.raises(ValueError, match="size must be at least 1, got 0"):
            kind(0)
        with pytest.raises(ValueError, match=r"shape \(2,\) does not hold size 3"):
            kind(3, shape=(2,))


class TestSquashedGaussian:
    def test_agrees_with_torch(self):
        params, noise = (torch.from_numpy(x) for x in drawn(SquashedGaussian(3), 50))
        params = 0.5 * params.double()
        action, logp = SquashedGaussian(3).sample_logp(params, noise)
        normal = td.Normal(params[:, :3], params[:, 3:].exp())
        theirs = td.Independent(td.TransformedDistribution(normal, td.TanhTransform()), 1)
        close(logp, theirs.log_prob(action))

    @pytest.mark.parametrize(("mean", "log_std"), [(0.0, 0.0), (1.0, -1.0), (-1.0, 0.5)])
    def test_density_integrates_to_one_and_entropy_is_its_integral(self, mean, log_std):
        u = np.linspace(-7.0, 7.0, 20_001)
        action = np.tanh(u)[:, None]
        params = np.tile(np.array([[mean, log_std]]), (len(u), 1))
        dist = SquashedGaussian(1)
        logp = dist.logp(params, action)
        assert np.trapezoid(np.exp(logp), action[:, 0]) == pytest.approx(1.0, abs=1e-3)
        entropy = -np.trapezoid(np.exp(logp) * logp, action[:, 0])
        assert dist.entropy(params[:1])[0] == pytest.approx(entropy, abs=1e-2)

    @pytest.mark.parametrize(
        ("log_std", "error"), [(-5.0, 1e-6), (0.0, 1e-4), (0.5, 1e-3), (2.0, 0.25)]
    )
    def test_the_quadrature_of_the_entropy_is_as_good_as_documented(self, log_std, error):
        z = np.linspace(-10.0, 10.0, 40_001)
        weight = np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi) * (z[1] - z[0])
        for mean in (0.0, 0.3, 1.0, 3.0, 8.0):
            u = mean + math.exp(log_std) * z
            slope = 2 * (math.log(2) - np.logaddexp(u, -u))
            exact = log_std + 0.5 * math.log(2 * math.pi * math.e) + (weight * slope).sum()
            got = SquashedGaussian(1).entropy(np.array([[mean, log_std]]))[0]
            assert got == pytest.approx(exact, abs=error)

    def test_actions_stay_inside_and_logp_finite_when_saturated(self):
        params = np.array([[50.0, 0.0], [-50.0, 2.0]], np.float32)
        dist = SquashedGaussian(1)
        action, logp = dist.sample_logp(params, np.zeros((2, 1), np.float32))
        assert (np.abs(action) < 1).all()
        assert (np.abs(dist.mode(params)) < 1).all()
        assert np.isfinite(logp).all()
        assert np.isfinite(dist.logp(params, np.array([[1.0], [-1.0]], np.float32))).all()

    def test_float32_actions_give_back_their_logp_up_to_the_clip(self):
        dist = SquashedGaussian(1)
        mean = np.linspace(-7.0, 7.0, 200, dtype=np.float32)
        params = np.stack([mean, np.zeros_like(mean)], axis=1)
        action, logp = dist.sample_logp(params, np.zeros((200, 1), np.float32))
        np.testing.assert_allclose(dist.logp(params, action), logp, atol=0.05)

    def test_the_gradient_of_a_saturated_sample_pulls_it_back(self):
        params = torch.tensor([[12.0, 0.0]], requires_grad=True)
        _, logp = SquashedGaussian(1).sample_logp(params, torch.zeros(1, 1))
        logp.sum().backward()
        assert params.grad[0, 0].item() == pytest.approx(2.0)  # minimising logp lowers the mean

    def test_log_std_is_clamped(self):
        dist = SquashedGaussian(1, log_std_min=-1.0, log_std_max=1.0)
        wide, narrow = np.array([[0.0, 9.0]]), np.array([[0.0, -9.0]])
        noise = np.array([[0.1]])
        close(dist.sample(wide, noise), np.tanh(0.1 * math.e))
        close(dist.sample(narrow, noise), np.tanh(0.1 / math.e))


class TestJoint:
    def test_is_the_sum_of_its_parts(self):
        dist = KINDS["joint_dict"]
        params, noise = drawn(dist, 20)
        action, logp = dist.sample_logp(params, noise)
        assert list(action) == ["go", "aim"]
        parts = [(Categorical(3), params[:, :3], action["go"])]
        parts += [(Gaussian(2), params[:, 3:], action["aim"])]
        close(logp, sum(part.logp(p, a) for part, p, a in parts))
        close(dist.entropy(params), sum(part.entropy(p) for part, p, _ in parts))
        assert (action["go"] == Categorical(3).sample(params[:, :3], noise[:, :1])).all()

    def test_finds_actions_by_key_not_by_order(self):
        dist = KINDS["joint_dict"]
        params, noise = drawn(dist, 20)
        action = dist.sample(params, noise)
        turned = {"aim": action["aim"], "go": action["go"]}
        assert (dist.logp(params, turned) == dist.logp(params, action)).all()

    def test_tuples_nest(self):
        dist = KINDS["joint_nested"]
        action = dist.mode(drawn(dist, 3)[0])
        assert isinstance(action, tuple)
        assert action[0].shape == (3, 2)
        assert action[1]["b"].shape == (3, 1)
        assert (dist.param_size, dist.noise_size) == (7, 3)

    def test_refuses_no_parts(self):
        with pytest.raises(ValueError, match="Joint needs at least one part"):
            Joint(())


class TestDistributionFor:
    @pytest.mark.parametrize(
        ("space", "expected"),
        [
            (Discrete(4), Categorical(4)),
            (Discrete(4, start=2), Categorical(4)),
            (MultiDiscrete([2, 3]), MultiCategorical((2, 3), shape=(2,))),
            (MultiDiscrete([[2, 3]]), MultiCategorical((2, 3), shape=(1, 2))),
            (MultiBinary(3), MultiCategorical((2, 2, 2), shape=(3,), dtype="int8")),
            (MultiBinary((1, 2)), MultiCategorical((2, 2), shape=(1, 2), dtype="int8")),
            (Box(-1, 1, (2, 3)), Gaussian(6, shape=(2, 3))),
            (Box(-1, 1, (), np.float64), Gaussian(1, shape=())),
            (
                Dict({"b": Discrete(2), "a": Tuple([Discrete(3)])}),
                Joint({"a": Joint((Categorical(3),)), "b": Categorical(2)}),
            ),
        ],
        ids=str,
    )
    def test_chooses_by_space(self, space, expected):
        assert distribution_for(space) == expected

    def test_squash_reaches_the_boxes_inside(self):
        space = Tuple([Box(-2, 2, (1,)), Discrete(2)])
        expected = Joint((SquashedGaussian(1, shape=(1,)), Categorical(2)))
        assert distribution_for(space, squash=True) == expected

    @pytest.mark.parametrize(
        "space",
        [
            Discrete(3),
            MultiDiscrete([2, 3]),
            MultiBinary((2, 2)),
            Box(-1, 1, (2, 2)),
            Dict({"a": Discrete(2), "b": Tuple([Box(-1, 1, ()), MultiBinary(2)])}),
        ],
        ids=str,
    )
    def test_actions_belong_to_the_space(self, space):
        dist = distribution_for(space, squash=True)
        params, noise = drawn(dist, 8)
        for batch in (dist.sample(params, noise), dist.mode(params)):
            for row in range(8):
                assert space.contains(row_of(batch, row))

    @pytest.mark.parametrize(
        "space",
        [
            Text(3),
            Box(0, 255, (2,), np.uint8),
            Box(-1, 1, (0,)),
            Dict({}),
            Tuple([]),
            gymnasium.spaces.Sequence(Discrete(2)),
            Dict({"a": Discrete(2), "b": Text(3)}),
        ],
        ids=str,
    )
    def test_refuses_other_spaces_naming_them(self, space):
        with pytest.raises(SpecError, match=r"no action distribution for .*expected a Discrete"):
            distribution_for(space)

    def test_refuses_to_squash_without_bounds(self):
        with pytest.raises(SpecError, match=r"squash needs finite bounds, got Box\(-inf, inf"):
            distribution_for(Box(-np.inf, np.inf, (2,)), squash=True)


def row_of(tree, row):
    if isinstance(tree, dict):
        return {key: row_of(child, row) for key, child in tree.items()}
    if isinstance(tree, tuple):
        return tuple(row_of(child, row) for child in tree)
    return np.asarray(tree[row])
