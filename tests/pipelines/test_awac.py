"""AWAC: the paper's losses row by row over the learner's own networks, and a bandit it learns.

Legend: B rows, K critics.
"""

import pytest
import torch

from pipelines import AWACConfig
from pipelines.training import plan_for
from tests.pipelines.bandit_kit import ENVS, SMALL, bandit_rows, error_of
from tests.pipelines.test_td_learners import (
    BOX,
    ROWS,
    assert_close,
    batch_for,
    draws,
    gradients,
    learner,
    noted_gradient,
    total,
    values,
)

DECAY = 0.1


def made_for(env, **settings):
    return learner(AWACConfig, env, actor_weight_decay=DECAY, **settings)


def slow_q(made, network, obs, action):
    """Least Q of one row over the critics, and each critic's."""
    if made.q.is_discrete:
        each = [q[0, int(action)] for q in network(obs[None])]
    else:
        each = [q[0, 0] for q in network(obs[None], action[None])]
    return torch.stack(each)


def slow_value(made, network, obs, noise):
    """V of one row by the policy of now: of one drawn action, or over all."""
    params = made.modules.model(obs[None])[0][0]
    if made.q.is_discrete:
        p, q = params.softmax(0), network(obs[None])[:, 0]
        return sum(p[a] * min(q[k, a] for k in range(len(q))) for a in range(len(p)))
    size = len(params) // 2
    action = params[:size] + params[size:].exp() * noise
    return slow_q(made, network, obs, action).min()


@pytest.mark.parametrize("env", ["CartPole-v1", BOX], ids=["discrete", "continuous"])
@pytest.mark.parametrize("temperature", [0.0, 1.0, 2.5])
def test_awac_descends_the_papers_losses_with_weights(env, temperature):
    made = made_for(env, temperature=temperature)
    batch, modules = batch_for(made), made.modules
    size = 0 if made.q.is_discrete else made.distribution.noise_size
    next_noise, noise = draws(made, size, size)
    critic_terms, actor_terms, td = [], [], []
    with torch.no_grad():
        advantage = [
            slow_q(made, modules.critics, batch.obs[b], batch.action[b]).min()
            - slow_value(made, modules.critics, batch.obs[b], noise[b])
            for b in range(ROWS)
        ]
        exps = torch.stack([(temperature * a).exp() for a in advantage])
        mean = (batch.is_weight * exps).sum() / batch.is_weight.sum()
    for b in range(ROWS):
        with torch.no_grad():
            following = slow_value(made, modules.target, batch.bootstrap_obs[b], next_noise[b])
            target = batch.return_n[b] + batch.bootstrap_discount[b] * following
        error = target - slow_q(made, modules.critics, batch.obs[b], batch.action[b])
        td.append(error.detach().abs().mean())
        critic_terms.append(batch.is_weight[b] * error.square().sum() / ROWS)
        params = modules.model(batch.obs[b : b + 1])[0]
        logp = made.distribution.logp(params, batch.action[b : b + 1])[0]
        actor_terms.append(-batch.is_weight[b] * exps[b] / mean * logp / ROWS)
    expected_critic = gradients(total(critic_terms), modules.critics)
    expected_actor = gradients(total(actor_terms), modules.model)
    actor, critics = values(modules.model), values(modules.critics)
    learned = made.learn(batch)
    assert_close(noted_gradient(modules.critics), expected_critic)
    assert_close(noted_gradient(modules.model), expected_actor)
    assert_close(values(modules.model), actor - 0.05 * (expected_actor + DECAY * actor))
    assert_close(values(modules.critics), critics - 0.05 * expected_critic)
    assert_close(learned.priority, torch.stack(td))
    assert_close(learned.metrics["critic_loss"].detach(), total(critic_terms).detach())
    assert_close(learned.metrics["actor_loss"].detach(), total(actor_terms).detach())
    assert_close(learned.metrics["advantage_mean"], torch.stack(advantage).mean())


def test_the_slow_critics_follow_by_tau():
    made = made_for("CartPole-v1", target={"tau": 0.25})
    before = values(made.modules.target)
    made.learn(batch_for(made))
    assert_close(values(made.modules.target), 0.75 * before + 0.25 * values(made.modules.critics))


@pytest.mark.parametrize(("kind", "limit"), [("discrete", 0.0), ("continuous", 0.12)])
def test_awac_learns_a_bandit_from_uniform_actions(kind, limit):
    config = AWACConfig(env=ENVS[kind], optim={"lr": 3e-3}, temperature=10.0, **SMALL)
    plan = plan_for(config, run_id="test")
    made = plan.dataflow.learner(config, plan.policy)
    made.seed(0)
    made.data = bandit_rows(kind)
    before = error_of(made, kind)
    made.update_logged(400)
    assert before > 0.25
    assert error_of(made, kind) <= limit


def test_values_need_one_box_or_one_discrete_space():
    from rl_ops.errors import SpecError

    env = {"id": "tests.envs:spaces_env", "kwargs": {"action": "multi_discrete"}}
    with pytest.raises(SpecError, match="awac values actions of one Box or one Discrete"):
        learner(AWACConfig, env)
