"""The Decision Transformer: its blocks against plain loops, what it may look at, how it acts.

Legend: B rows, K steps, L tokens, D features, P distribution parameters.
"""

import math

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from hypothesis import given
from hypothesis import strategies as st

from rl_ops.action_connectors import default_action_connectors
from rl_ops.connectors import default_obs_connectors
from rl_ops.inference import inference_for
from rl_ops.model_spec import ModelSpec, SequenceSpec
from rl_ops.models import build_model
from rl_ops.policy import Policy, PolicySpec, Weights
from rl_ops.transformer import DecisionTransformer

B, K, WIDTH = 3, 4, 8


def spec_of(*, discrete=True, hidden=(WIDTH, WIDTH), heads=2, shape=(2,), kind="mlp", **sequence):
    actions = {"num_actions": 3} if discrete else {"action_size": 2}
    return ModelSpec(
        kind=kind,
        obs_shape=shape,
        param_size=3 if discrete else 4,
        free_params=() if discrete else (2, 3),
        hidden=hidden,
        activation="relu",
        conv=((4, 3, 2),) if kind == "cnn" else (),
        head="actor",
        sequence=SequenceSpec(steps=K, heads=heads, max_t=10, **actions, **sequence),
    )


def model_of(spec, *, seed=0, target=5.0):
    """A model whose parameters are all far from where they start."""
    torch.manual_seed(seed)
    model = build_model(spec).eval()
    assert isinstance(model, DecisionTransformer)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        model.target_return.fill_(target)
        model.return_scale.fill_(2.0)
    return model


def steps_of(spec, *, seed=0, steps=K):
    generator = torch.Generator().manual_seed(seed)
    if spec.sequence.num_actions:
        action = torch.randint(0, 3, (B, steps), generator=generator)
    else:
        action = torch.randn(B, steps, 2, generator=generator)
    return {
        "obs": torch.randn(B, steps, *spec.obs_shape, generator=generator),
        "action": action,
        "return_to_go": torch.randn(B, steps, generator=generator),
        "t": torch.arange(steps).expand(B, steps) + torch.tensor([[0], [3], [8]]),
        "mask": torch.arange(steps) >= torch.tensor([[0], [1], [steps - 1]]),
    }


def run(model, steps, **options):
    names = ("obs", "action", "return_to_go")
    with torch.no_grad():
        return model(*(steps[n] for n in names), t=steps["t"], mask=steps["mask"], **options)


# --- the formula ---


def slow_norm(x, layer):
    mean = sum(x) / len(x)
    variance = sum((v - mean) ** 2 for v in x) / len(x)
    return (x - mean) / torch.sqrt(variance + layer.eps) * layer.weight + layer.bias


def slow_block(block, tokens, seen):
    """One row's block, token by token: `seen[i]` lists what token i looks at."""
    size = len(tokens[0]) // block.heads
    normed = [slow_norm(x, block.attention_norm) for x in tokens]
    queries = [block.query(x) for x in normed]
    both = [block.key_value(x) for x in normed]
    keys, values = ([x.chunk(2)[i] for x in both] for i in range(2))
    out = []
    for i, own in enumerate(tokens):
        parts = []
        for h in range(block.heads):
            head = slice(h * size, (h + 1) * size)
            scores = [float(queries[i][head] @ keys[j][head]) / math.sqrt(size) for j in seen[i]]
            weights = [math.exp(s) / sum(math.exp(x) for x in scores) for s in scores]
            parts.append(sum(w * values[j][head] for w, j in zip(weights, seen[i], strict=True)))
        own = own + block.attention_out(torch.cat(parts))
        hidden = torch.relu(block.wide(slow_norm(own, block.norm)))
        out.append(own + block.narrow(hidden))
    return out


def slow_params(model, steps, b):
    """Algorithm 1 for one row, without its padding: params of each step there is."""
    tokens = []
    rows = [k for k in range(steps["mask"].shape[1]) if steps["mask"][b, k]]
    for k in rows:
        at = model.t_in(steps["t"][b, k].clamp(max=9))
        action = steps["action"][b, k]
        parts = (
            model.return_in(steps["return_to_go"][b, k : k + 1] / 2.0),
            model.obs_in(steps["obs"][b, k]),
            model.action_in(action),
        )
        tokens += [slow_norm(part + at, model.norm_in) for part in parts]
    seen = [range(i + 1) for i in range(len(tokens))]
    for block in model.blocks:
        tokens = slow_block(block, tokens, seen)
    found = []
    for i in range(len(rows)):
        params = model.actor_head(slow_norm(tokens[3 * i + 1], model.norm_out)).clone()
        if model.spec.free_params:
            params[2:] = model.free_params
        found.append(params)
    return torch.stack(found)


@pytest.mark.parametrize("discrete", [True, False])
def test_params_are_those_of_the_paper_token_by_token(discrete):
    spec = spec_of(discrete=discrete)
    model, steps = model_of(spec), steps_of(spec)
    found = run(model, steps)
    for b in range(B):
        with torch.no_grad():
            expected = slow_params(model, steps, b)
        torch.testing.assert_close(found[b][steps["mask"][b]], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(run(model, steps, last=True)[:, 0], found[:, -1])


@given(cut=st.integers(0, K - 1), seed=st.integers(0, 20))
def test_a_step_sees_its_own_return_and_observation_and_not_its_action_or_the_future(cut, seed):
    spec = spec_of()
    model, steps = model_of(spec), steps_of(spec, seed=seed)
    steps["mask"] = torch.ones(B, K, dtype=torch.bool)
    changed = {name: x.clone() for name, x in steps.items()}
    changed["action"][:, cut:] = (changed["action"][:, cut:] + 1) % 3
    changed["obs"][:, cut + 1 :] += 1.0
    changed["return_to_go"][:, cut + 1 :] -= 1.0
    found, other = run(model, steps), run(model, changed)
    torch.testing.assert_close(found[:, : cut + 1], other[:, : cut + 1])
    if cut < K - 1:
        assert (found[:, cut + 1] != other[:, cut + 1]).any()
    for name in ("obs", "return_to_go"):
        seen = {**steps, name: steps[name].clone()}
        seen[name][:, cut] += 1.0
        assert (run(model, seen)[:, cut] != found[:, cut]).any(), name


@given(padding=st.integers(0, 3), seed=st.integers(0, 20))
def test_padding_changes_nothing_whatever_it_holds(padding, seed):
    spec = spec_of(discrete=False)
    model, steps = model_of(spec), steps_of(spec, seed=seed)
    steps["mask"] = torch.ones(B, K, dtype=torch.bool)
    filler = steps_of(spec, seed=seed + 1, steps=padding) if padding else None
    padded = steps
    if filler is not None:
        filler["mask"] = torch.zeros(B, padding, dtype=torch.bool)
        padded = {name: torch.cat([filler[name], steps[name]], 1) for name in steps}
    found = run(model, padded)
    torch.testing.assert_close(found[:, padding:], run(model, steps), rtol=1e-5, atol=1e-5)
    assert found.isfinite().all()


def test_images_go_through_convolutions():
    spec = spec_of(shape=(8, 8, 3), kind="cnn")
    model, steps = model_of(spec), steps_of(spec)
    found = run(model, steps)
    assert found.shape == (B, K, 3)
    steps["obs"][:, 0] += 1.0
    assert (run(model, steps)[0, 0] != found[0, 0]).any()


def test_dropout_is_for_learning_alone():
    spec = spec_of(dropout=0.5)
    model, steps = model_of(spec), steps_of(spec)
    assert torch.equal(run(model, steps), run(model, steps))
    model.train()
    torch.manual_seed(1)
    first = run(model, steps)
    assert (run(model, steps) != first).any()
    torch.manual_seed(1)
    assert torch.equal(run(model, steps), first)


def test_blocks_of_unequal_widths_are_refused():
    with pytest.raises(ValueError, match=r"model.hidden=\[8, 16\].*one number"):
        build_model(spec_of(hidden=(8, 16)))
    with pytest.raises(ValueError, match="multiple of its 3 heads"):
        build_model(spec_of(heads=3))


def test_the_spec_survives_json():
    spec = spec_of(dropout=0.1)
    assert ModelSpec.from_json(spec.to_json()) == spec


# --- acting ---


def policy_of(*, discrete=True, target=5.0):
    action = Discrete(3) if discrete else Box(-1.0, 1.0, (2,), np.float32)
    obs = Box(-5.0, 5.0, (2,), np.float32)
    model = model_of(spec_of(discrete=discrete), target=target)
    spec = PolicySpec(
        obs_space=obs,
        action_space=action,
        obs_connectors=default_obs_connectors(obs),
        action_connectors=default_action_connectors(action, squash=False),
        model=model.spec,
    )
    assert PolicySpec.from_json(spec.to_json()) == spec
    arrays = {name: x.numpy() for name, x in model.state_dict().items()}
    mean, std = np.array([0.5, -0.5], np.float32), np.array([2.0, 3.0], np.float32)
    return Policy(spec, Weights(arrays, mean, std)), model


@pytest.mark.parametrize("discrete", [True, False])
def test_acting_is_the_network_over_the_last_steps_with_what_is_left_of_the_target(discrete):
    policy, model = policy_of(discrete=discrete)
    rng = np.random.default_rng(0)
    obs_TBD = rng.uniform(-4, 4, (7, 2, 2)).astype(np.float32)
    reward_TB = rng.uniform(-1, 1, (7, 2))
    mean, std = policy.get_weights().obs_mean, policy.get_weights().obs_std
    state, reward, actions, to_go = None, None, [], []
    for i in range(7):
        _, state, extras = policy.act(obs_TBD[i], state, reward=reward)
        to_go.append(np.full(2, 5.0) if i == 0 else to_go[-1] - reward_TB[i - 1])
        actions.append(extras["action"])
        reward = reward_TB[i]
        first = max(0, i - K + 1)
        seen = {
            "obs": torch.tensor((obs_TBD[first : i + 1] - mean) / std).transpose(0, 1),
            "action": torch.from_numpy(np.stack(actions[first:], 1)),
            "return_to_go": torch.tensor(np.stack(to_go[first:], 1), dtype=torch.float32),
            "t": torch.arange(first, i + 1).expand(2, -1),
            "mask": torch.ones(2, i + 1 - first, dtype=torch.bool),
        }
        params = run(model, seen)[:, -1].numpy()
        expected = policy.distribution.mode(params)
        np.testing.assert_allclose(actions[-1], expected, rtol=1e-4, atol=1e-5)


def test_each_environment_begins_anew_where_its_episode_does():
    policy, _ = policy_of()
    rng = np.random.default_rng(1)
    obs = rng.uniform(-4, 4, (6, 3, 2)).astype(np.float32)
    reward = rng.uniform(-1, 1, (6, 3))
    is_first = np.zeros((6, 3), bool)
    is_first[0], is_first[2, 1], is_first[5, 0] = True, True, True

    def walked(rows, first):
        """Params of the rows from step `first` on, as if nothing had been before."""
        memory, found = policy.memory(len(rows)), []
        for i in range(first, 6):
            begins = is_first[i, rows] | (i == first)
            earned = reward[i - 1, rows]
            params, _ = policy.next_params(obs[i, rows], memory, is_first=begins, reward=earned)
            memory.acted(policy.distribution.mode(params))
            found.append(params)
        return np.stack(found)

    whole = walked([0, 1, 2], 0)
    np.testing.assert_allclose(whole[2:, 1:2], walked([1], 2), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(whole[5:, 0:1], walked([0], 5), rtol=1e-5, atol=1e-6)
    assert np.abs(whole[2:, 0:1] - walked([0], 2)).max() > 1e-3


def test_what_is_missing_to_act_is_named():
    policy, _ = policy_of()
    obs = np.zeros(2, np.float32)
    _, state, _ = policy.act(obs)
    with pytest.raises(ValueError, match="tell act the reward"):
        policy.act(obs, state)
    policy.act(obs, state, reward=1.0)
    with pytest.raises(ValueError, match="acts by what came before"):
        policy.dist(obs[None])
    aimless, _ = policy_of(target=math.nan)
    with pytest.raises(ValueError, match="no return to aim at"):
        aimless.act(obs)


def test_a_higher_target_is_another_input():
    spec = spec_of()
    inference = inference_for(spec)
    obs, found = np.ones((1, 2), np.float32), []
    for target in (1.0, 9.0):
        model = model_of(spec, target=target)
        inference.load({name: x.numpy() for name, x in model.state_dict().items()})
        window = inference.start(1)
        first = np.ones(1, bool)
        found.append(inference.forward_next(obs, window, is_first=first, reward=np.zeros(1))[0])
        assert window.return_to_go[0, -1] == target
    assert (found[0] != found[1]).any()
