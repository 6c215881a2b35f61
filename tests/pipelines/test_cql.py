"""CQL: the paper's terms row by row, for both kinds of actions, and what its weights do.

Legend: B rows, A actions, K critics, N samples.
"""

import math

import pytest
import torch

from pipelines import CQLConfig
from pipelines.soft_nets import WrittenSoftNets
from rl_ops.errors import SpecError
from tests.learning_envs import STEPS
from tests.pipelines.logged_kit import log_random
from tests.pipelines.test_td_learners import (
    BOX,
    NETS,
    ROWS,
    STILL,
    assert_close,
    batch_for,
    gradients,
    learner,
    noted_gradient,
    slow_sample,
    total,
    values,
)

SAMPLES = 4
SOFT = {"env": BOX, "temperature": {"init": 0.5}, "actor_lr": None}


def soft(**conservative):
    exact = {"num_samples": SAMPLES, "gradient_samples": None}
    settings = {**exact, **conservative.pop("conservative", {})}
    return learner(CQLConfig, conservative=settings, **{**SOFT, **conservative})


def drawn(made, *sizes):
    """What the learner's generator gives next: (size, whether normal, else uniform in [0, 1))."""
    generator = torch.Generator()
    generator.set_state(made.generator.get_state())
    return [
        (torch.randn if is_normal else torch.rand)(*size, generator=generator)
        for size, is_normal in sizes
    ]


def slow_critic_losses(made, batch):
    """TD and conservative terms of every critic and row with their graph, and the gaps [K, B]."""
    modules, config = made.modules, made.config
    here, after = (modules.model(x)[0].detach() for x in (batch.obs, batch.bootstrap_obs))
    next_noise, noise, uniform = drawn(
        made,
        ((ROWS, 2), True),
        ((2, ROWS, SAMPLES, 2), True),
        ((ROWS, SAMPLES, 2), False),
    )
    alpha, count = 0.5, config.num_critics
    next_action, next_logp = slow_sample(after, next_noise)
    next_q = modules.target(batch.bootstrap_obs, next_action)[..., 0].detach()
    td, gaps, errors = [], [], []
    for k in range(count):
        for b in range(ROWS):
            obs = batch.obs[b : b + 1]

            def q(action, *, k=k, obs=obs):
                return modules.critics(obs, action.reshape(1, 2))[k, 0, 0]

            value = min(float(next_q[i, b]) for i in range(count))
            value -= alpha * float(next_logp[b]) * config.entropy_target
            target = float(batch.return_n[b]) + float(batch.bootstrap_discount[b]) * value
            logged = q(batch.action[b])
            errors.append(target - logged.item())
            td.append(batch.is_weight[b] * (target - logged) ** 2)
            terms = []
            for i in range(SAMPLES):
                terms.append(q(2 * uniform[b, i] - 1).exp() / 0.25)
                for params, e in ((here, noise[0]), (after, noise[1])):
                    action, logp = slow_sample(params[b : b + 1], e[b, i : i + 1])
                    terms.append(q(action).exp() / logp.exp()[0])
            gaps.append(total(terms).div(3 * SAMPLES).log() - logged)
    return td, gaps, torch.tensor(errors).view(count, ROWS)


@pytest.mark.parametrize("nets", NETS)
@pytest.mark.parametrize("num_critics", [1, 2])
@pytest.mark.parametrize("entropy_target", [False, True])
def test_the_critics_descend_the_papers_td_error_and_gap(num_critics, entropy_target, nets):
    made = soft(
        num_critics=num_critics,
        entropy_target=entropy_target,
        optim=STILL,
        conservative={"weight": 1.5},
        model=NETS[nets],
    )
    assert isinstance(made.nets, WrittenSoftNets) == (nets == "written")
    batch, modules = batch_for(made), made.modules
    td, gaps, errors = slow_critic_losses(made, batch)
    weights = batch.is_weight.repeat(num_critics)
    gap = 1.5 * total([w * g for w, g in zip(weights, gaps, strict=True)]) / ROWS
    loss = total(td) / ROWS
    expected = gradients(loss + gap, modules.critics)
    learned = made.learn(batch)
    torch.testing.assert_close(noted_gradient(modules.critics), expected, rtol=1e-5, atol=3e-6)
    metrics = learned.metrics
    assert metrics["critic_loss"].item() == pytest.approx(loss.item(), rel=1e-5)
    assert metrics["conservative_loss"].item() == pytest.approx(gap.item(), rel=1e-5)
    assert metrics["gap"].item() == pytest.approx(total(gaps).item() / len(gaps), rel=1e-5)
    assert_close(learned.priority, errors.abs().mean(0))
    assert "gap_weight_loss" not in metrics


@pytest.mark.parametrize("nets", NETS)
def test_through_some_actions_the_gradient_is_right_on_average(nets):
    conservative = {"num_samples": 10, "gradient_samples": 6}
    made = soft(optim=STILL, conservative=conservative, model=NETS[nets])
    exact = soft(optim=STILL, conservative={"num_samples": 10}, model=NETS[nets])
    batch, alpha = batch_for(made), torch.tensor(0.5)
    *_, expected_gap = exact.critic_step(exact.modules, batch, alpha=alpha, lr=0.0)
    expected = noted_gradient(exact.modules.critics)
    found = []
    for seed in range(400):
        made.seed(3)  # the same actions each time, which are drawn before the offsets
        drawn = torch.rand(ROWS, generator=torch.Generator().manual_seed(seed))
        made.offsets = lambda rows, drawn=drawn: drawn
        *_, gap = made.critic_step(made.modules, batch, alpha=alpha, lr=0.0)
        assert_close(gap, expected_gap)
        found.append(noted_gradient(made.modules.critics))
    stacked = torch.stack(found)
    assert (stacked.std(0) > 0).any()
    error = (stacked.mean(0) - expected).abs()
    assert (error <= 4.5 * stacked.std(0) / 20 + 1e-5).all()


def test_more_actions_for_the_gradient_than_are_drawn_are_all():
    made = soft(optim=STILL, conservative={"gradient_samples": 3 * SAMPLES})
    exact = soft(optim=STILL)
    for each in (made, exact):
        each.learn(batch_for(each))
    found, expected = (noted_gradient(x.modules.critics) for x in (made, exact))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("nets", NETS)
def test_the_actor_ascends_the_least_critic_and_its_entropy(nets):
    made = soft(optim=STILL, model=NETS[nets])
    batch, modules = batch_for(made), made.modules
    *_, noise = drawn(
        made,
        ((ROWS, 2), True),
        ((2, ROWS, SAMPLES, 2), True),
        ((ROWS, SAMPLES, 2), False),
        ((ROWS, 2), True),
    )
    action, logp = slow_sample(modules.model(batch.obs)[0], noise)
    q, w = modules.critics(batch.obs, action)[..., 0], batch.is_weight
    losses = [w[b] * (0.5 * logp[b] - torch.minimum(q[0, b], q[1, b])) for b in range(ROWS)]
    expected = gradients(total(losses) / ROWS, modules.model)
    metrics = made.learn(batch).metrics
    assert_close(noted_gradient(modules.model), expected)
    assert metrics["entropy"].item() == pytest.approx(-logp.mean().item(), rel=1e-5)


def test_the_actors_step_leaves_the_critics_and_the_target_follows_them():
    made = soft()
    batch, modules = batch_for(made), made.modules
    before, target = values(modules.critics), values(modules.target)
    actor = values(modules.model)
    made.learn(batch)
    critics = before - 0.05 * noted_gradient(modules.critics)
    assert_close(values(modules.critics), critics)
    assert_close(values(modules.target), target + 0.005 * (critics - target))
    assert not torch.equal(values(modules.model), actor)
    assert made.grad_steps == 3, "critics, actor, temperature"


def slow_q_losses(made, batch):
    modules, actions = made.modules, range(made.policy.distribution.num_actions)
    q = modules.model(batch.obs)[0]
    online, following = (
        net(batch.bootstrap_obs)[0].detach() for net in (modules.model, modules.target)
    )
    td, gaps, errors = [], [], []
    for b in range(ROWS):
        chooser = online if made.config.double else following
        best = max(actions, key=lambda a, b=b, chooser=chooser: float(chooser[b, a]))
        value = float(batch.bootstrap_discount[b]) * float(following[b, best])
        taken = q[b, int(batch.action[b])]
        error = float(batch.return_n[b]) + value - taken
        td.append(0.5 * batch.is_weight[b] * error**2)
        errors.append(error.item())
        gaps.append(total([q[b, a].exp() for a in actions]).log() - taken)
    return td, gaps, torch.tensor(errors)


@pytest.mark.parametrize("double", [True, False])
def test_of_discrete_actions_q_descends_the_papers_td_error_and_gap(double):
    made = learner(CQLConfig, optim=STILL, double=double, conservative={"weight": 0.7})
    batch, modules = batch_for(made), made.modules
    td, gaps, errors = slow_q_losses(made, batch)
    gap = 0.7 * total([w * g for w, g in zip(batch.is_weight, gaps, strict=True)]) / ROWS
    loss = total(td) / ROWS
    expected = gradients(loss + gap, modules.model)
    learned = made.learn(batch)
    assert_close(noted_gradient(modules.model), expected)
    assert learned.metrics["q_loss"].item() == pytest.approx(loss.item(), rel=1e-5)
    assert learned.metrics["conservative_loss"].item() == pytest.approx(gap.item(), rel=1e-5)
    assert_close(learned.priority, errors.abs())


@pytest.mark.parametrize("env", ["CartPole-v1", BOX])
@pytest.mark.parametrize("target_gap", [-50.0, 50.0])
def test_a_learned_weight_moves_to_bring_the_gap_to_what_is_wanted(env, target_gap):
    given = {"weight": 0.8, "lagrange": True, "target_gap": target_gap, "lr": 0.01}
    made = learner(CQLConfig, env=env, conservative=given)
    batch = batch_for(made)
    metrics = made.learn(batch.with_columns(is_weight=torch.ones(ROWS))).metrics
    excess = float(metrics["gap"]) - target_gap
    assert metrics["gap_weight_loss"].item() == pytest.approx(-0.8 * excess, rel=1e-5)
    moved = math.log(0.8) + 0.01 * 0.8 * excess
    assert made.modules.gap_weight.log_weight.item() == pytest.approx(moved, rel=1e-4)
    assert metrics["gap_weight"].item() == pytest.approx(math.exp(moved), rel=1e-4)
    assert (float(made.modules.gap_weight.value) > 0.8) == (target_gap < 0)


@pytest.mark.parametrize("env", ["CartPole-v1", BOX])
def test_values_of_actions_that_were_never_logged_are_held_below_the_logged_ones(env):
    margins = []
    for weight in (1e-6, 2.0):
        settings = {"kind": "adam", "lr": 0.01}
        made = learner(CQLConfig, env=env, optim=settings, conservative={"weight": weight})
        batch = batch_for(made)
        logged = torch.full_like(batch.action, 0 if env == "CartPole-v1" else 0.6)
        batch = batch.with_columns(action=logged, is_weight=torch.ones(ROWS))
        for _ in range(150):
            made.learn(batch)
        with torch.no_grad():
            if env == "CartPole-v1":
                q_BA = made.modules.model(batch.obs)[0]
                margins.append(float((q_BA[:, 0] - q_BA[:, 1]).min()))
            else:
                near, far = (made.modules.critics(batch.obs, x) for x in (logged, -logged))
                margins.append(float((near - far).min()))
    assert margins[1] > 0.5
    assert margins[1] > margins[0] + 0.5


@pytest.mark.parametrize(("env", "expected"), [("CartPole-v1", 1.0), ("Pendulum-v1", 5.0)])
def test_a_weight_that_is_not_given_is_the_authors(env, expected):
    made = learner(CQLConfig, env=env)
    assert float(made.modules.gap_weight.value) == pytest.approx(expected)


@pytest.mark.parametrize("env", ["CartPole-v1", BOX])
def test_a_rows_weight_scales_its_share_of_every_gradient_and_none_moves_nothing(env):
    found = []
    weights = torch.tensor([1.0, 0.5, 0.8, 0.1, 0.3, 0.7])
    for keep in (slice(0, ROWS), slice(0, 3), slice(3, ROWS), slice(0, 0)):
        made = learner(CQLConfig, env=env, optim=STILL, actor_lr=None)
        part = torch.zeros(ROWS)
        part[keep] = weights[keep]
        nets = [getattr(made.modules, n) for n in ("critics", "model") if hasattr(made.modules, n)]
        made.learn(batch_for(made, is_weight=part))
        found.append(torch.cat([noted_gradient(net) for net in nets]))
    whole, first, second, none = found
    assert whole.abs().sum() > 0
    torch.testing.assert_close(first + second, whole, rtol=1e-5, atol=1e-5)
    assert not none.any()


def test_actions_that_are_neither_one_box_nor_one_discrete_are_refused():
    env = {"id": "tests.envs:spaces_env", "kwargs": {"action": "multi_discrete"}}
    with pytest.raises(SpecError, match=r"cql acts in one Box or one Discrete"):
        learner(CQLConfig, env=env)


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_it_learns_to_copy_its_input_from_uniform_actions(kind, tmp_path):
    env = f"tests.learning_envs:{kind}"
    lake = log_random(env, tmp_path / "logged", rows=2000)
    config = CQLConfig(
        env=env,
        gamma=0.0,
        model={"hidden": (32, 32)},
        minibatch_rows=64,
        optim={"lr": 5e-3},
        actor_lr=5e-3,
        temperature={"init": 0.1},
        conservative={"weight": 0.5},
        offline={"lake": lake, "updates_per_iteration": 300},
    )
    with config.build(debug=True, storage=tmp_path / "runs") as pipeline:
        for _ in range(2):
            pipeline.train()
        trained = pipeline.evaluate(num_episodes=40)["episode_return_mean"]
    assert trained > 0.85 * STEPS
