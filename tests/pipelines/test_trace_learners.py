"""IMPALA and APPO on a hand-made batch of two segments, against loops over its rows.

Legend: B rows.
"""

import math

import pytest
import torch

from pipelines import APPOConfig, IMPALAConfig
from pipelines.on_policy import SEGMENTS
from pipelines.training import plan_for
from rl_ops import columns as c
from rl_ops.batch import Batch

ROWS, CUT, TERMINATED = 5, 2, 4
"""The first segment is rows 0 to 2, cut in the middle of an episode; the other one terminates."""
GAMMA = 0.9
SGD = {"kind": "sgd", "lr": 0.05, "max_grad_norm": None}


def learner(config_class, env="CartPole-v1", **settings):
    config = config_class(env=env, gamma=GAMMA, **{"optim": SGD, **settings})
    plan = plan_for(config, run_id="test")
    assert c.FINAL_MODEL_OBS in plan.rollout.keep
    made = plan.dataflow.learner(config, plan.policy)
    made.seed(0)
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in made.modules.model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made


def batch_for(made, **columns) -> Batch:
    generator = torch.Generator().manual_seed(1)

    def normal(*size):
        return torch.randn(*size, generator=generator)

    shape = made.policy.obs_connectors.output_space.shape
    if made.policy.action_space.shape:
        action = normal(ROWS, *made.policy.action_space.shape)
    else:
        action = torch.randint(0, 2, (ROWS,), generator=generator)
    discount, is_last = torch.full((ROWS,), GAMMA), torch.zeros(ROWS, dtype=torch.bool)
    discount[TERMINATED] = 0.0
    is_last[[CUT, TERMINATED]] = True
    obs, final = normal(ROWS, *shape), torch.zeros(ROWS, *shape)
    final[CUT] = normal(*shape)
    with torch.no_grad():
        logp = made.distribution.logp(made.modules.model(obs)[0], action)
    made_of = {
        **{"obs": obs, "action": action, "learner_reward": normal(ROWS), "discount": discount},
        **{"is_last": is_last, "final_model_obs": final},
        # off the policy by up to a factor of e^2, both ways
        "logp": logp + torch.tensor([1.5, -2.0, 0.1, -0.4, 0.8]),
    }
    return Batch({**made_of, **columns})


def slow_vtrace(batch, value, final_value, log_rho, *, rho_bar=1.0, c_bar=1.0, decay=1.0):
    """Eq. 1 of Espeholt et al. 2018, as a recursion over Python floats: targets, advantages."""
    value, log_rho = value.tolist(), log_rho.tolist()
    target, advantage, following = [0.0] * ROWS, [0.0] * ROWS, 0.0
    for t in reversed(range(ROWS)):
        reward, discount = float(batch.learner_reward[t]), float(batch.discount[t])
        ratio = math.exp(log_rho[t])
        rho, trace = min(rho_bar, ratio), decay * min(c_bar, ratio)
        last = bool(batch.is_last[t])
        next_value = final_value if last else value[t + 1]
        delta = rho * (reward + discount * next_value - value[t])
        correction = delta + (0.0 if last else discount * trace * following)
        target[t] = value[t] + correction
        next_target = final_value if last else target[t + 1]
        advantage[t] = rho * (reward + discount * next_target - value[t])
        following = correction
    return torch.tensor(target), torch.tensor(advantage)


def standardized(advantage):
    mean = sum(advantage.tolist()) / ROWS
    variance = sum((x - mean) ** 2 for x in advantage.tolist()) / (ROWS - 1)
    return (advantage - mean) / (math.sqrt(variance) + 1e-8)


def evaluated(made, network, batch):
    """Logp, entropy and value [B] of a network, and its value behind the cut."""
    params, value = network(batch.obs)
    logp, entropy = made.distribution.logp_entropy(params, batch.action)
    final = float(network(batch.final_model_obs)[1][CUT].detach())
    return logp, entropy, value, final


def gradient(loss, module):
    owned = list(module.parameters())
    found = torch.autograd.grad(loss, owned, retain_graph=True)
    return torch.cat([g.flatten() for g in found])


def noted_gradient(module):
    return torch.cat([p.grad.flatten() for p in module.parameters()])


def values(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()]).clone()


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


# --- IMPALA ---

SETTINGS = {
    "plain": {"entropy_coef": 0.0},
    "entropy": {"entropy_coef": 0.3, "value_coef": 1.5},
    "clips": {"rho_bar": 0.7, "c_bar": 0.4},
    "decay": {"gae_lambda": 0.8, "rho_bar": 2.5},
    "standardized": {"normalize_advantage": True},
}


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("name", list(SETTINGS))
def test_impalas_step_is_the_papers_over_both_segments(env, name):
    made = learner(IMPALAConfig, env, **SETTINGS[name])
    batch, config, model = batch_for(made), made.config, made.modules.model
    logp, entropy, value, final = evaluated(made, model, batch)
    target, advantage = slow_vtrace(
        batch,
        value.detach(),
        final,
        logp.detach() - batch.logp,
        rho_bar=config.rho_bar,
        c_bar=config.c_bar,
        decay=config.gae_lambda,
    )
    if config.normalize_advantage:
        advantage = standardized(advantage)
    terms = {
        "policy_loss": sum(-advantage[b] * logp[b] for b in range(ROWS)) / ROWS,
        "value_loss": config.value_coef
        * sum(0.5 * (value[b] - target[b]) ** 2 for b in range(ROWS))
        / ROWS,
        "entropy_loss": -config.entropy_coef * sum(entropy) / ROWS,
    }
    expected = gradient(sum(terms.values()), model)
    before = values(model)
    metrics = made.update(batch)
    assert_close(noted_gradient(model), expected)
    assert_close(values(model), before - 0.05 * expected)
    for term, loss in terms.items():
        if term in metrics:
            assert metrics[term] == pytest.approx(loss.item(), rel=1e-5, abs=1e-6)
    assert ("entropy_loss" in metrics) == (config.entropy_coef != 0)
    rho = (logp.detach() - batch.logp).exp()
    assert metrics["rho_mean"] == pytest.approx(float(rho.mean()), rel=1e-5)
    assert metrics["entropy"] == pytest.approx(float(entropy.detach().mean()), rel=1e-5)
    assert made.grad_steps == 1


def test_impala_bootstraps_behind_a_cut_but_not_behind_a_termination():
    made = learner(IMPALAConfig)
    batch = batch_for(made)

    def loss(row=None):
        final = batch.final_model_obs.clone()
        if row is not None:
            final[row] = 3.0
        return made.loss(batch.with_columns(final_model_obs=final)).total.item()

    assert loss(TERMINATED) == loss(0) == loss()
    assert abs(loss(CUT) - loss()) > 1e-3


def test_segments_are_as_if_each_were_alone():
    made = learner(IMPALAConfig)
    batch, figures = batch_for(made), []
    for keep in (slice(0, 3), slice(3, 5)):
        part = Batch({name: getattr(batch, name)[keep] for name in batch.names})
        figures.append(made.loss(part).total.item() * part.rows)
    assert sum(figures) == pytest.approx(made.loss(batch).total.item() * ROWS, rel=1e-5)


def test_on_policy_and_without_clips_in_the_way_impala_is_advantage_actor_critic():
    made = learner(IMPALAConfig, entropy_coef=0.0)
    batch = batch_for(made)
    logp, _, value, final = evaluated(made, made.modules.model, batch)
    batch = batch.with_columns(logp=logp.detach())
    returns, following = torch.zeros(ROWS), 0.0
    for t in reversed(range(ROWS)):
        following = final if t == CUT else following
        following = float(batch.learner_reward[t] + batch.discount[t] * following)
        returns[t] = following
    advantage = returns - value.detach()
    loss = (-advantage * logp).mean() + 0.25 * (value - returns).square().mean()
    assert made.loss(batch).total.item() == pytest.approx(loss.item(), rel=1e-5)


def test_observations_behind_a_cut_are_normalised_as_the_others_are():
    made = learner(IMPALAConfig, connectors={"normalize_obs": True})
    batch = batch_for(made)
    made.update(batch)
    mean, std = batch.obs.mean(0), batch.obs.std(0, correction=0)
    prepared = made.prepare(batch)
    for name in (c.OBS, c.FINAL_MODEL_OBS):
        expected = (getattr(batch, name) - mean) / std
        torch.testing.assert_close(getattr(prepared, name), expected, rtol=1e-4, atol=1e-4)


# --- APPO ---


def move_target(made):
    """Put the slow copy away from the network."""
    with torch.no_grad():
        for parameter in made.modules.target.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("gae_lambda", [1.0, 0.7])
def test_appos_advantages_and_targets_are_the_slow_copys(env, gae_lambda):
    made = learner(APPOConfig, env, gae_lambda=gae_lambda)
    move_target(made)
    batch = batch_for(made)
    with torch.no_grad():
        logp, _, value, final = evaluated(made, made.modules.target, batch)
    target, advantage = slow_vtrace(batch, value, final, logp - batch.logp, decay=gae_lambda)
    found = made.targets(batch)
    torch.testing.assert_close(found.value_target, target, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(found.advantage, advantage, rtol=1e-5, atol=2e-6)
    assert_close(found.target_logp, logp)
    assert not any(getattr(found, name).requires_grad for name in ("value_target", "advantage"))
    with torch.no_grad():
        for parameter in made.modules.model.parameters():
            parameter.zero_()
    assert torch.equal(made.targets(batch).advantage, found.advantage)


@pytest.mark.parametrize("settings", [{}, {"entropy_coef": 0.2, "normalize_advantage": False}])
def test_appos_step_is_impacts_surrogate_against_the_slow_copy(settings):
    made = learner(APPOConfig, clip_eps=0.1, ratio_clip=1.3, num_passes=1, **settings)
    move_target(made)
    batch, config, model = batch_for(made), made.config, made.modules.model
    rows = made.targets(batch)
    logp, entropy, value, _ = evaluated(made, model, batch)
    advantage = rows.advantage
    if config.normalize_advantage:
        advantage = standardized(advantage)
    policy, regimes = [], set()
    for b in range(ROWS):
        is_ratio = min(math.exp(float(rows.logp[b] - rows.target_logp[b])), 1.3)
        ratio = is_ratio * (logp[b] - rows.logp[b]).exp()
        clipped = ratio.clamp(0.9, 1.1)
        policy.append(-torch.minimum(ratio * advantage[b], clipped * advantage[b]))
        regimes.add((is_ratio == 1.3, float(ratio.detach()) == float(clipped.detach())))
    assert len(regimes) > 1, "some ratios are clipped, some are not"
    loss = sum(policy) / ROWS
    loss = loss + config.value_coef * 0.5 * (value - rows.value_target).square().mean()
    loss = loss - config.entropy_coef * entropy.mean()
    expected = gradient(loss, model)
    target = values(made.modules.target)
    metrics = made.update(batch)
    assert_close(noted_gradient(model), expected)
    assert metrics["policy_loss"] == pytest.approx((sum(policy) / ROWS).item(), rel=1e-5, abs=1e-6)
    assert torch.equal(values(made.modules.target), target)
    assert ("entropy_loss" in metrics) == (config.entropy_coef != 0)


def test_appos_slow_copy_follows_at_its_period_over_all_minibatches():
    made = learner(
        APPOConfig, num_passes=2, minibatch_rows=2, target={"tau": 1.0, "period_updates": 5}
    )
    start = values(made.modules.target)
    batch, seen = batch_for(made), []
    step = made.descend

    def descend(loss):
        seen.append(torch.equal(values(made.modules.target), start))
        return step(loss)

    made.descend = descend
    made.update(batch)
    # 5 rows are 3 minibatches, used twice: the copy moves after the fifth
    assert made.grad_steps == 6
    assert seen == [True] * 5 + [False]


def test_appo_uses_each_version_as_often_as_it_was_told_while_it_is_new():
    made = learner(APPOConfig, num_passes=2, buffer_versions=2)
    used = []
    targets = made.targets
    made.targets = lambda batch: used.append(float(batch.learner_reward[0])) or targets(batch)
    for version in range(4):
        rewards = torch.full((ROWS,), float(version))
        made.update(batch_for(made, learner_reward=rewards))
    assert used == [0, 0, 1, 0, 2, 1, 3, 2]


def test_appo_remembers_prepared_rows_across_a_checkpoint():
    made = learner(APPOConfig, connectors={"normalize_obs": True})
    batch = batch_for(made)
    made.update(batch)
    again = learner(APPOConfig, connectors={"normalize_obs": True})
    again.memory.load(made.memory.state(), made.memory.contents())
    expected, found = made.memory.next(), again.memory.next()
    assert set(expected.names) == {c.OBS, *SEGMENTS}
    for name in expected.names:
        assert torch.equal(getattr(expected, name), getattr(found, name))
        assert getattr(expected, name).dtype == getattr(found, name).dtype


@pytest.mark.parametrize("algo", [IMPALAConfig, APPOConfig])
def test_learners_of_traces_read_whole_segments(algo):
    plan = plan_for(algo(env="CartPole-v1"), run_id="test")
    assert plan.dataflow.learner.reads == SEGMENTS
    assert set(SEGMENTS) <= set(plan.columns)
    assert plan.dataflow.max_policy_lag == 2
