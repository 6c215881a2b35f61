"""DQN, SAC, TD3 and TQC: which network says what, whose gradient goes where, weights everywhere.

The oracles are the papers' formulas row by row, over the learners' own networks.

Legend: B rows, A actions, N atoms, K critics.
"""

import math

import numpy as np
import pytest
import torch

from pipelines import DQNConfig, SACConfig, TD3Config, TQCConfig
from pipelines.soft_nets import WrittenSoftNets
from pipelines.training import plan_for
from rl_ops.batch import Batch
from rl_ops.exploration import AddNoise, RandomFirst, Sample

ROWS = 6
BOX = {"id": "tests.envs:spaces_env", "kwargs": {"action": "wide_box"}}
"""Three numbers observed, actions of two."""
SGD = {"kind": "sgd", "lr": 0.05, "max_grad_norm": None}
STILL = {**SGD, "lr": 0.0}
"""Leaves the gradients of a step and moves nothing, so that the actor meets the critics as is."""
SMALL = {"hidden": (8,), "activation": "relu"}
NETS = {"written": SMALL, "autograd": {**SMALL, "activation": "silu"}}
"""Models of soft actor-critics, by who takes their gradients."""


def learner(config_class, env="CartPole-v1", **settings):
    """A learner whose slow copies are far from its networks; `updates` is that of a first step."""
    config = config_class(env=env, **{"model": SMALL, "optim": SGD, **settings})
    plan = plan_for(config, run_id="test")
    made = plan.dataflow.learner(config, plan.policy)
    made.seed(3)
    torch.manual_seed(7)
    with torch.no_grad():
        for name in ("model", "critics", "target", "actor_target", "critic_target"):
            for parameter in getattr(made.modules, name, torch.nn.Identity()).parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    made.updates = 1
    return made


def batch_for(made, *, seed=0, **columns) -> Batch:
    """Rows with weights of all sizes, one of which terminated."""
    generator = torch.Generator().manual_seed(seed)
    shape = made.policy.obs_connectors.output_space.shape
    distribution = made.policy.distribution

    def normal(*size):
        return torch.randn(*size, generator=generator)

    if made.policy.action_space.shape:
        action = normal(ROWS, *made.policy.action_space.shape).tanh()
    else:
        action = torch.randint(0, distribution.num_actions, (ROWS,), generator=generator)
    discount = torch.full((ROWS,), 0.9)
    discount[2] = 0.0
    return Batch(
        {
            "obs": normal(ROWS, *shape),
            "action": action,
            "return_n": 2 * normal(ROWS),
            "bootstrap_obs": normal(ROWS, *shape),
            "bootstrap_discount": discount,
            "is_weight": torch.tensor([1.0, 0.5, 0.8, 0.1, 0.3, 0.7]),
            **columns,
        }
    )


def parameters(*modules):
    return [p for module in modules for p in module.parameters()]


def values(*modules):
    return torch.cat([p.detach().flatten() for p in parameters(*modules)]).clone()


def gradients(loss, *modules):
    """Of a loss by the modules' parameters, as one tensor; zeros where there is none."""
    owned = parameters(*modules)
    found = torch.autograd.grad(loss, owned, retain_graph=True, allow_unused=True)
    filled = [torch.zeros_like(p) if g is None else g for p, g in zip(owned, found, strict=True)]
    return torch.cat([g.flatten() for g in filled])


def untouched(loss, *modules):
    """Whether no gradient of the loss reaches the modules at all."""
    wanted = [p for p in parameters(*modules) if p.requires_grad]
    if not wanted:
        return True
    found = torch.autograd.grad(loss, wanted, retain_graph=True, allow_unused=True)
    return all(g is None for g in found)


def noted_gradient(module):
    """What the optimiser's last step descended along."""
    return torch.cat([p.grad.flatten() for p in module.parameters()])


def draws(made, *sizes):
    """The standard normals [ROWS, size] that the learner's generator gives next."""
    generator = torch.Generator()
    generator.set_state(made.generator.get_state())
    return [torch.randn(ROWS, size, generator=generator) for size in sizes]


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def total(terms):
    return torch.stack(terms).sum()


# --- DQN ---

Q_SETTINGS = {
    "plain": {"double": False},
    "double": {},
    "squared": {"huber_delta": None},
    "wide_huber": {"huber_delta": 0.3},
    "dueling": {"dueling": True},
    "noisy": {"noisy": True},
    "categorical": {"atoms": "categorical", "num_atoms": 6, "v_min": -4.0, "v_max": 4.0},
    "categorical_single": {"atoms": "categorical", "num_atoms": 5, "double": False},
    "quantile": {"atoms": "quantile", "num_atoms": 5, "huber_delta": 0.7},
    "quantile_single": {"atoms": "quantile", "num_atoms": 4, "double": False},
    "rainbow": {"dueling": True, "noisy": True, "atoms": "categorical", "num_atoms": 6},
}


def slow_huber(u, delta):
    return 0.5 * u * u if delta is None or abs(u) <= delta else delta * (abs(u) - 0.5 * delta)


def slow_q(outputs_N, q):
    if q.atoms != "categorical":
        return outputs_N.mean()
    support = torch.linspace(q.v_min, q.v_max, q.num_atoms)
    return (outputs_N.softmax(0) * support).sum()


def slow_projection(p_N, reward, discount, q):
    """Algorithm 1 of Bellemare et al. 2017, but mass on an atom stays there."""
    dz = (q.v_max - q.v_min) / (q.num_atoms - 1)
    target = [0.0] * q.num_atoms
    for j in range(q.num_atoms):
        z = min(max(reward + discount * (q.v_min + j * dz), q.v_min), q.v_max)
        b = (z - q.v_min) / dz
        low = min(math.floor(b), q.num_atoms - 2)
        target[low] += float(p_N[j]) * (low + 1 - b)
        target[low + 1] += float(p_N[j]) * (b - low)
    return torch.tensor(target)


def slow_dqn(made, batch):
    """Loss, td error and Q of every row; losses with their graph."""
    q, modules, found = made.config.q, made.modules, []
    outputs = modules.model.outputs(batch.obs)
    with torch.no_grad():
        following = modules.target.outputs(batch.bootstrap_obs)
        chooser = modules.model if q.double else modules.target
        choice = chooser.outputs(batch.bootstrap_obs)
    for b in range(ROWS):
        best = max(range(choice.shape[1]), key=lambda a: float(slow_q(choice[b, a], q)))
        reward, discount = float(batch.return_n[b]), float(batch.bootstrap_discount[b])
        predicted, next_N = outputs[b, int(batch.action[b])], following[b, best]
        value = slow_q(predicted, q)
        if q.atoms == "categorical":
            target = slow_projection(next_N.softmax(0), reward, discount, q)
            loss = -(target * predicted.log_softmax(0)).sum()
            support = torch.linspace(q.v_min, q.v_max, q.num_atoms)
            td = (target * support).sum() - value
        elif q.atoms == "quantile":
            target, delta, loss = reward + discount * next_N, q.huber_delta, 0.0
            for i in range(q.num_atoms):
                for j in range(q.num_atoms):
                    u = target[j] - predicted[i]
                    tau = (i + 0.5) / q.num_atoms
                    loss += abs(tau - (u.item() < 0)) * slow_huber(u, delta) / delta / q.num_atoms
            td = target.mean() - value
        else:
            td = reward + discount * next_N[0] - value
            loss = slow_huber(td, q.huber_delta)
        found.append((loss, td.detach(), value.detach()))
    return (torch.stack(x) for x in zip(*found, strict=True))


@pytest.mark.parametrize("name", list(Q_SETTINGS))
def test_dqn_descends_the_papers_loss_with_weights_and_returns_its_td_errors(name):
    made = learner(DQNConfig, q=Q_SETTINGS[name])
    batch, modules = batch_for(made), made.modules
    if made.config.q.noisy:
        # the learner's own generator, as its step will use it: the model's noise, then the target's
        generator = torch.Generator()
        generator.set_state(made.generator.get_state())
        for network in (modules.model, modules.target):
            network.draw_noise(generator)
    loss_B, td_B, q_B = slow_dqn(made, batch)
    loss = (batch.is_weight * loss_B).sum() / ROWS
    expected = gradients(loss, modules.model)
    before, target_before = values(modules.model), values(modules.target)
    learned = made.learn(batch)
    assert_close(noted_gradient(modules.model), expected)
    assert_close(values(modules.model), before - 0.05 * expected)
    assert torch.equal(values(modules.target), target_before)
    assert_close(learned.priority, td_B.abs())
    assert learned.metrics["q_loss"].item() == pytest.approx(loss.item(), rel=1e-6, abs=1e-6)
    assert float(learned.metrics["q_mean"]) == pytest.approx(float(q_B.mean()), rel=1e-6, abs=1e-6)
    assert made.grad_steps == 1


def test_double_q_learning_values_the_choice_of_the_network_that_is_trained():
    # the two networks disagree about every row, so that choosing by either shows
    double, single = (learner(DQNConfig, q={"double": double}) for double in (True, False))
    batch = batch_for(double)
    with torch.no_grad():
        for made in (double, single):
            made.modules.target.advantage[-1].weight.copy_(-made.modules.model.advantage[-1].weight)
            made.modules.target.advantage[-1].bias.copy_(-made.modules.model.advantage[-1].bias)
            made.modules.target.trunk.load_state_dict(made.modules.model.trunk.state_dict())
        online = double.modules.model.outputs(batch.bootstrap_obs).squeeze(2)
    # the target is minus the network: the best by the network is the target's worst
    for made, following in ((double, -online.amax(1)), (single, -online.amin(1))):
        q_B = made.modules.model(batch.obs)[0].gather(1, batch.action[:, None])[:, 0].detach()
        td = batch.return_n + batch.bootstrap_discount * following - q_B
        assert_close(made.learn(batch).priority, td.abs())


def test_noise_on_weights_is_drawn_for_each_step_and_apart_for_the_target():
    made = learner(DQNConfig, q={"noisy": True})
    batch, seen = batch_for(made), []
    for _ in range(2):
        made.learn(batch)
        both = (made.modules.model, made.modules.target)
        seen += [tuple(network.advantage[0]._noise[0].tolist()) for network in both]
    assert len(set(seen)) == 4


def test_a_users_own_q_network_learns_as_ours_does():
    made = learner(DQNConfig, model={"kind": "custom", "factory": "tests.models:linear"})
    batch, modules = batch_for(made), made.modules
    online, following = modules.model(batch.obs)[0], modules.target(batch.bootstrap_obs)[0]
    choice = modules.model(batch.bootstrap_obs)[0].argmax(1)
    rows = torch.arange(ROWS)
    target = batch.return_n + batch.bootstrap_discount * following[rows, choice]
    td_B = target.detach() - online[rows, batch.action]
    loss = total([w * slow_huber(u, 1.0) for w, u in zip(batch.is_weight, td_B, strict=True)])
    expected = gradients(loss / ROWS, modules.model)
    assert_close(made.learn(batch).priority, td_B.abs().detach())
    assert_close(noted_gradient(modules.model), expected)


def test_the_target_of_dqn_moves_at_the_periods_end():
    made = learner(DQNConfig, target={"tau": 1.0, "period_updates": 3})
    batch, start = batch_for(made), values(made.modules.target)
    for updates in (1, 2, 3, 4):
        made.updates = updates
        made.learn(batch)
        moved = values(made.modules.target)
        if updates < 3:
            assert torch.equal(moved, start)
        elif updates == 3:
            assert torch.equal(moved, values(made.modules.model))
    assert not torch.equal(moved, values(made.modules.model))


# --- soft actor-critics ---


def slow_sample(params_BP, noise_BD):
    """tanh of a normal, and its density by the change of variables (SAC's appendix C)."""
    size = noise_BD.shape[1]
    actions, logps = [], []
    for params, noise in zip(params_BP, noise_BD, strict=True):
        log_std = params[size:].clamp(-5.0, 2.0)
        u = params[:size] + log_std.exp() * noise
        action = torch.tanh(u)
        normal = -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi)
        actions.append(action)
        logps.append((normal - torch.log(1 - action**2)).sum())
    return torch.stack(actions), torch.stack(logps)


def soft_target(made, batch, noise, alpha):
    """r + d (min_k Q'_k(x', a') - alpha log pi(a'|x')), row by row."""
    modules = made.modules
    with torch.no_grad():
        action, logp = slow_sample(modules.model(batch.bootstrap_obs)[0], noise)
        q = modules.target(batch.bootstrap_obs, action)[..., 0]
        soft = [min(float(x) for x in q[:, b]) - alpha * float(logp[b]) for b in range(ROWS)]
    return [float(batch.return_n[b] + batch.bootstrap_discount[b] * soft[b]) for b in range(ROWS)]


CONTINUOUS = {"env": BOX, "temperature": {"init": 0.5}}


@pytest.mark.parametrize("nets", NETS)
@pytest.mark.parametrize("num_critics", [1, 2, 3])
def test_sacs_critics_learn_from_target_critics_and_the_policy_of_now(num_critics, nets):
    made = learner(SACConfig, num_critics=num_critics, optim=STILL, model=NETS[nets], **CONTINUOUS)
    assert isinstance(made.nets, WrittenSoftNets) == (nets == "written")
    batch, modules = batch_for(made), made.modules
    (noise,) = draws(made, 2)
    target, w = soft_target(made, batch, noise, 0.5), batch.is_weight
    q = modules.critics(batch.obs, batch.action)[..., 0]
    losses = [
        0.5 * w[b] * (target[b] - q[k, b]) ** 2 for k in range(num_critics) for b in range(ROWS)
    ]
    loss = total(losses) / ROWS
    expected = gradients(loss, modules.critics)
    learned = made.learn(batch)
    assert_close(noted_gradient(modules.critics), expected)
    assert_close(learned.priority, (torch.tensor(target) - q.detach()).abs().mean(0))
    assert learned.metrics["critic_loss"].item() == pytest.approx(loss.item(), rel=1e-6, abs=1e-6)
    assert learned.metrics["q_mean"].item() == pytest.approx(q.mean().item(), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("nets", NETS)
def test_sacs_actor_ascends_the_least_critic_and_its_entropy(nets):
    made = learner(SACConfig, optim=STILL, model=NETS[nets], **CONTINUOUS)
    batch, modules = batch_for(made), made.modules
    _, noise = draws(made, 2, 2)
    action, logp = slow_sample(modules.model(batch.obs)[0], noise)
    q, w = modules.critics(batch.obs, action)[..., 0], batch.is_weight
    losses = [w[b] * (0.5 * logp[b] - torch.minimum(q[0, b], q[1, b])) for b in range(ROWS)]
    loss = total(losses) / ROWS
    expected = gradients(loss, modules.model)
    metrics = made.learn(batch).metrics
    assert_close(noted_gradient(modules.model), expected)
    assert metrics["actor_loss"].item() == pytest.approx(loss.item(), rel=1e-6, abs=1e-6)
    assert metrics["entropy"].item() == pytest.approx(-logp.mean().item(), rel=1e-6, abs=1e-6)


def test_discrete_sac_takes_expectations_over_all_actions():
    made = learner(SACConfig, temperature={"init": 0.5})
    batch, modules = batch_for(made), made.modules
    w, actions = batch.is_weight, range(made.policy.distribution.num_actions)
    with torch.no_grad():
        p = modules.model(batch.bootstrap_obs)[0].softmax(1)
        q = modules.target(batch.bootstrap_obs)
        soft = [
            sum(
                float(p[b, a]) * (float(q[:, b, a].min()) - 0.5 * math.log(float(p[b, a])))
                for a in actions
            )
            for b in range(ROWS)
        ]
    target = [
        float(batch.return_n[b]) + float(batch.bootstrap_discount[b]) * soft[b] for b in range(ROWS)
    ]
    online = modules.critics(batch.obs)
    taken = [online[k, b, int(batch.action[b])] for k in range(2) for b in range(ROWS)]
    both = [*range(ROWS), *range(ROWS)]
    loss = total([0.5 * w[b] * (target[b] - x) ** 2 for b, x in zip(both, taken, strict=True)])
    expected = gradients(loss / ROWS, modules.critics)
    made.critic_gradient(batch, modules.alpha)
    assert_close(noted_gradient(modules.critics), expected)
    assert not noted_gradient(modules.model).any()
    p = modules.model(batch.obs)[0].softmax(1)
    least = online.detach().amin(0)
    losses = [
        w[b] * p[b, a] * (0.5 * p[b, a].log() - least[b, a]) for b in range(ROWS) for a in actions
    ]
    loss, (found, entropy_B) = total(losses) / ROWS, made.actor_loss(batch, modules.alpha)
    assert untouched(found.total, modules.critics, modules.target)
    assert_close(gradients(found.total, modules.model), gradients(loss, modules.model))
    assert_close(entropy_B, -(p * p.log()).sum(1).detach())


@pytest.mark.parametrize("algo", [SACConfig, TQCConfig])
def test_a_soft_step_moves_each_network_by_its_own_loss_alone(algo):
    made = learner(algo, **CONTINUOUS)
    batch, modules = batch_for(made), made.modules
    if algo is SACConfig:
        td_B = made.critic_gradient(batch, modules.alpha)[0].abs().mean(0)
        expected = noted_gradient(modules.critics)
    else:
        loss, td_error, _ = made.critic_loss(batch, modules.alpha)
        td_B, expected = td_error.abs(), gradients(loss.total, modules.critics)
    made.seed(3)  # so that the step draws the same actions
    before, target = values(modules.critics), values(modules.target)
    actor = values(modules.model)
    learned = made.learn(batch)
    # the actor's loss went through the critics and left nothing in their gradient
    assert_close(noted_gradient(modules.critics), expected)
    critics = before - 0.05 * expected
    assert_close(values(modules.critics), critics)
    assert_close(values(modules.target), target + 0.005 * (values(modules.critics) - target))
    assert_close(learned.priority, td_B)
    assert not torch.equal(values(modules.model), actor)
    assert made.grad_steps == 3
    assert {"critic_loss", "actor_loss", "alpha_loss", "grad_norm", "actor_grad_norm"} <= set(
        learned.metrics
    )


@pytest.mark.parametrize("algo", [SACConfig, TQCConfig])
def test_a_learned_temperature_moves_towards_its_entropy_and_a_given_one_stays(algo):
    for target_entropy in (-30.0, 30.0):
        temperature = {"init": 0.5, "target_entropy": target_entropy, "lr": 0.01}
        made = learner(algo, env=BOX, temperature=temperature)
        batch = batch_for(made)
        even = torch.ones(batch.rows)
        nothing = made.learn(batch.with_columns(is_weight=0 * even)).metrics
        assert nothing["alpha_loss"].item() == 0.0, "rows count by their weight"
        made = learner(algo, env=BOX, temperature=temperature)
        metrics = made.learn(batch.with_columns(is_weight=even)).metrics
        gap = float(metrics["entropy"]) - target_entropy
        assert metrics["alpha_loss"].item() == pytest.approx(
            math.log(0.5) * gap, rel=1e-6, abs=1e-6
        )
        log_alpha = made.modules.temperature.log_alpha.item()
        assert log_alpha == pytest.approx(math.log(0.5) - 0.01 * gap, rel=1e-6, abs=1e-6)
        assert float(metrics["alpha"]) == pytest.approx(0.5), "that of the losses"
    made = learner(algo, env=BOX, temperature={"alpha": 0.25})
    metrics = made.learn(batch_for(made)).metrics
    assert "alpha_loss" not in metrics
    assert float(made.modules.alpha) == pytest.approx(0.25)


def test_the_actor_of_sac_may_have_a_learning_rate_of_its_own():
    made = learner(SACConfig, actor_lr=0.0, **CONTINUOUS)
    before, critics = values(made.modules.model), values(made.modules.critics)
    made.learn(batch_for(made))
    assert torch.equal(values(made.modules.model), before)
    assert not torch.equal(values(made.modules.critics), critics)


@pytest.mark.parametrize(
    ("env", "expected"), [("Pendulum-v1", -1.0), (BOX, -2.0), ("CartPole-v1", math.log(2) / 2)]
)
def test_the_entropy_aimed_at_is_of_the_action_space(env, expected):
    assert learner(SACConfig, env=env).target_entropy == pytest.approx(expected)
    given = learner(SACConfig, env=env, temperature={"target_entropy": -3.0})
    assert given.target_entropy == -3.0


QUANTILES = {"num_critics": 3, "num_quantiles": 4}


@pytest.mark.parametrize("drop", [0, 1, 3])
def test_tqcs_critics_learn_from_the_lowest_of_all_quantiles(drop):
    made = learner(TQCConfig, drop_per_critic=drop, optim=STILL, **QUANTILES, **CONTINUOUS)
    batch, modules, w = batch_for(made), made.modules, batch_for(made).is_weight
    (noise,) = draws(made, 2)
    with torch.no_grad():
        action, logp = slow_sample(modules.model(batch.bootstrap_obs)[0], noise)
        z = modules.target(batch.bootstrap_obs, action)
    online, losses, tds = modules.critics(batch.obs, batch.action), [], []
    for b in range(ROWS):
        pool = sorted(float(x) for x in z[:, b].flatten())[: 3 * (4 - drop)]
        discount = float(batch.bootstrap_discount[b])
        target = [float(batch.return_n[b]) + discount * (x - 0.5 * float(logp[b])) for x in pool]
        for k in range(3):
            for i in range(4):
                for y in target:
                    u = y - online[k, b, i]
                    tilt = abs((i + 0.5) / 4 - (u.item() < 0))
                    losses.append(w[b] * tilt * slow_huber(u, 1.0) / len(target) / 4)
        tds.append(np.mean(target) - float(online[:, b].detach().mean()))
    loss = total(losses) / ROWS
    expected = gradients(loss, modules.critics)
    learned = made.learn(batch)
    assert_close(noted_gradient(modules.critics), expected)
    assert_close(learned.priority, torch.tensor(tds, dtype=torch.float32).abs())
    assert learned.metrics["critic_loss"].item() == pytest.approx(loss.item(), rel=1e-6, abs=1e-6)


def test_tqcs_actor_ascends_the_mean_of_all_quantiles():
    made = learner(TQCConfig, optim=STILL, **QUANTILES, **CONTINUOUS)
    batch, modules = batch_for(made), made.modules
    _, noise = draws(made, 2, 2)
    action, logp = slow_sample(modules.model(batch.obs)[0], noise)
    z = modules.critics(batch.obs, action)
    losses = [batch.is_weight[b] * (0.5 * logp[b] - z[:, b].sum() / 12) for b in range(ROWS)]
    loss = total(losses) / ROWS
    expected = gradients(loss, modules.model)
    metrics = made.learn(batch).metrics
    assert_close(noted_gradient(modules.model), expected)
    assert metrics["actor_loss"].item() == pytest.approx(loss.item(), rel=1e-6, abs=1e-6)
    assert metrics["entropy"].item() == pytest.approx(-logp.mean().item(), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("nets", NETS)
def test_no_gradient_of_sac_reaches_networks_that_are_not_its_own(nets):
    made = learner(SACConfig, model=NETS[nets], **CONTINUOUS)
    batch, modules = batch_for(made), made.modules
    made.critic_gradient(batch, modules.alpha)
    critics = noted_gradient(modules.critics)
    assert critics.any()
    assert not noted_gradient(modules.model).any()
    _, entropy_B = made.nets.actor_loss(batch, modules.alpha)
    assert noted_gradient(modules.model).any()
    assert torch.equal(noted_gradient(modules.critics), critics)
    assert not noted_gradient(modules.temperature).any()
    assert not entropy_B.requires_grad
    assert all(p.requires_grad for p in modules.critics.parameters())


def test_no_loss_of_tqc_reaches_networks_that_are_not_its_own():
    made = learner(TQCConfig, **CONTINUOUS)
    batch, modules = batch_for(made), made.modules
    critic_loss = made.critic_loss(batch, modules.alpha)[0].total
    assert untouched(critic_loss, modules.model, modules.target, modules.temperature)
    actor_loss, entropy_B = made.actor_loss(batch, modules.alpha)
    others = modules.critics, modules.target, modules.temperature
    assert untouched(actor_loss.total, *others)
    assert not entropy_B.requires_grad


# --- TD3 ---


def slow_td3_target(made, batch, noise):
    """Algorithm 1 of Fujimoto et al. 2018, row by row."""
    config, modules, target = made.config, made.modules, []
    with torch.no_grad():
        mean = torch.tanh(modules.actor_target(batch.bootstrap_obs)[0])
        for b in range(ROWS):
            limit = config.target_noise_clip
            e = (config.target_noise_scale * noise[b]).clamp(-limit, limit)
            action = (mean[b] + e).clamp(-1, 1)
            q = modules.critic_target(batch.bootstrap_obs[b : b + 1], action[None])[:, 0, 0]
            following = min(float(x) for x in q)
            target.append(float(batch.return_n[b]) + float(batch.bootstrap_discount[b]) * following)
    return torch.tensor(target)


TD3_SETTINGS = {
    "td3": {},
    "loud": {"target_noise_scale": 2.0, "target_noise_clip": 0.3},
    "ddpg": {"num_critics": 1, "policy_delay": 1, "target_noise_scale": 0.0},
}


@pytest.mark.parametrize("name", list(TD3_SETTINGS))
def test_td3s_critics_learn_from_the_slow_copies_and_a_smoothed_action(name):
    made = learner(TD3Config, env=BOX, **TD3_SETTINGS[name])
    batch, modules = batch_for(made), made.modules
    (noise,) = draws(made, 2)
    target = slow_td3_target(made, batch, noise)
    q = modules.critics(batch.obs, batch.action)[..., 0]
    losses = [
        batch.is_weight[b] * (target[b] - q[k, b]) ** 2 for k in range(len(q)) for b in range(ROWS)
    ]
    loss = total(losses) / ROWS
    expected, td_B = gradients(loss, modules.critics), (target - q.detach()).abs().mean(0)
    learned = made.learn(batch)
    assert_close(noted_gradient(modules.critics), expected)
    assert_close(learned.priority, td_B)
    assert learned.metrics["critic_loss"].item() == pytest.approx(loss.item(), rel=1e-6, abs=1e-6)


def test_td3s_actor_ascends_the_first_critic_alone():
    made = learner(TD3Config, env=BOX, policy_delay=1, optim=STILL)
    batch, modules = batch_for(made), made.modules
    action = torch.tanh(modules.model(batch.obs)[0])
    q = modules.critics(batch.obs, action)[..., 0]
    loss = -total([batch.is_weight[b] * q[0, b] for b in range(ROWS)]) / ROWS
    expected = gradients(loss, modules.model)
    metrics = made.learn(batch).metrics
    assert_close(noted_gradient(modules.model), expected)
    assert metrics["actor_loss"].item() == pytest.approx(loss.item(), rel=1e-6, abs=1e-6)


def test_no_loss_of_td3_reaches_networks_that_are_not_its_own():
    made = learner(TD3Config, env=BOX)
    batch, modules = batch_for(made), made.modules
    slow = modules.actor_target, modules.critic_target
    assert untouched(made.critic_loss(batch)[0].total, modules.model, *slow)
    assert untouched(made.actor_loss(batch).total, modules.critics, *slow)


def test_td3s_actor_and_slow_copies_move_with_every_delayed_step_only():
    made = learner(TD3Config, env=BOX, policy_delay=3, target={"tau": 0.5})
    batch, modules = batch_for(made), made.modules
    slow = (modules.model, modules.actor_target, modules.critic_target)
    for updates in range(1, 7):
        made.updates = updates
        before = [values(module) for module in (*slow, modules.critics)]
        learned = made.learn(batch)
        moved = [
            not torch.equal(values(module), x)
            for module, x in zip((*slow, modules.critics), before, strict=True)
        ]
        acts = updates % 3 == 0
        assert moved == [acts, acts, acts, True]
        assert ("actor_loss" in learned.metrics) == acts
        if acts:
            for target, network, x in (
                (modules.actor_target, modules.model, before[1]),
                (modules.critic_target, modules.critics, before[2]),
            ):
                assert_close(values(target), 0.5 * x + 0.5 * values(network))
    assert made.grad_steps == 8


def test_a_refused_step_of_the_critics_is_counted_beside_an_actors_that_was_taken():
    made = learner(TD3Config, env=BOX, policy_delay=1, faults={"on_nonfinite_loss": "skip"})
    returns = torch.full((ROWS,), float("nan"))
    before = values(made.modules.critics)
    learned = made.learn(batch_for(made, return_n=returns))
    assert learned.metrics["skipped"] == 1.0
    assert made.grad_steps == 1, "the actor's"
    assert torch.equal(values(made.modules.critics), before)


# --- weights ---

LEARNERS = {
    "dqn": lambda: learner(DQNConfig),
    "c51": lambda: learner(DQNConfig, q={"atoms": "categorical"}),
    "qr": lambda: learner(DQNConfig, q={"atoms": "quantile"}),
    "sac": lambda: learner(SACConfig, env=BOX),
    "discrete_sac": lambda: learner(SACConfig),
    "td3": lambda: learner(TD3Config, env=BOX, policy_delay=1),
    "tqc": lambda: learner(TQCConfig, env=BOX),
}


@pytest.mark.parametrize("name", list(LEARNERS))
def test_rows_of_no_weight_move_no_network(name):
    made = LEARNERS[name]()
    nets = [getattr(made.modules, n) for n in ("model", "critics") if hasattr(made.modules, n)]
    before = values(*nets)
    made.learn(batch_for(made, is_weight=torch.zeros(ROWS)))
    assert torch.equal(values(*nets), before)


@pytest.mark.parametrize("name", list(LEARNERS))
def test_a_rows_weight_scales_its_share_of_every_gradient(name):
    # the gradient is linear in the weights: two halves of them add up to the whole
    found = []
    weights = torch.tensor([1.0, 0.5, 0.8, 0.1, 0.3, 0.7])
    for keep in (slice(0, ROWS), slice(0, 3), slice(3, ROWS)):
        made = LEARNERS[name]()
        part = torch.zeros(ROWS)
        part[keep] = weights[keep]
        nets = [getattr(made.modules, n) for n in ("critics", "model") if hasattr(made.modules, n)]
        # the actor's step sees critics that have moved: freeze what they learn
        made.config = made.config.with_overrides({"optim.lr": 0.0})
        made.learn(batch_for(made, is_weight=part))
        found.append(torch.cat([noted_gradient(net) for net in nets]))
    assert found[0].abs().sum() > 0
    assert_close(found[1] + found[2], found[0])


def test_sac_gathers_by_the_mode_with_noise_where_it_is_given_some():
    plain, noisy = (
        plan_for(SACConfig(env="Pendulum-v1", noise=noise), run_id="x").policy.act
        for noise in (None, {"process": "ou", "scale": 0.3})
    )
    assert plain == RandomFirst(1000, Sample())
    assert noisy == RandomFirst(1000, AddNoise(0.3, process="ou"))
