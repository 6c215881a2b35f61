"""MARWIL: the paper's losses row by row over the learner's own network, and a bandit it learns.

Legend: B rows.
"""

import math

import pytest
import torch
from pydantic import ValidationError

from pipelines import MARWILConfig
from pipelines.training import plan_for
from tests.pipelines.bandit_kit import ENVS, SMALL, bandit_rows, error_of
from tests.pipelines.test_td_learners import (
    BOX,
    ROWS,
    assert_close,
    batch_for,
    gradients,
    learner,
    noted_gradient,
    total,
)


@pytest.mark.parametrize("env", ["CartPole-v1", BOX], ids=["discrete", "continuous"])
def test_marwil_descends_the_papers_losses_with_weights(env):
    made = learner(MARWILConfig, env, beta=2.0, value_coef=0.7, square_init=9.0, square_rate=0.3)
    batch, model = batch_for(made), made.modules.model
    with torch.no_grad():
        following, value = model(batch.bootstrap_obs)[1], model(batch.obs)[1]
    target = [
        float(batch.return_n[b] + batch.bootstrap_discount[b] * following[b]) for b in range(ROWS)
    ]
    advantage = [target[b] - float(value[b]) for b in range(ROWS)]
    square = 9.0 + 0.3 * (sum(a * a for a in advantage) / ROWS - 9.0)
    imitation, regression = [], []
    for b in range(ROWS):
        params, value_b = model(batch.obs[b : b + 1])
        logp = made.distribution.logp(params, batch.action[b : b + 1])[0]
        weight = math.exp(2.0 * advantage[b] / math.sqrt(square))
        imitation.append(-batch.is_weight[b] * weight * logp / ROWS)
        regression.append(0.7 * 0.5 * batch.is_weight[b] * (target[b] - value_b[0]) ** 2 / ROWS)
    expected = gradients(total(imitation) + total(regression), model)
    learned = made.learn(batch)
    assert_close(noted_gradient(model), expected)
    assert_close(learned.metrics["policy_loss"].detach(), total(imitation).detach())
    assert_close(learned.metrics["value_loss"].detach(), total(regression).detach())
    assert_close(made.modules.square.average, torch.tensor(square))
    assert_close(learned.priority, torch.tensor(advantage).abs())


def test_with_beta_0_it_clones_and_learns_no_value():
    made = learner(MARWILConfig, beta=0.0)
    batch, model = batch_for(made), made.modules.model
    logp_B = made.distribution.logp(model(batch.obs)[0], batch.action)
    expected = gradients(-(batch.is_weight * logp_B).sum() / ROWS, model)
    learned = made.learn(batch)
    assert_close(noted_gradient(model), expected)
    assert "value_loss" not in learned.metrics
    assert float(made.modules.square.average) == 100.0


def test_the_scale_of_advantages_is_in_the_checkpoint():
    made = learner(MARWILConfig, square_rate=0.5)
    made.learn(batch_for(made))
    saved = made.modules.state()["modules"]["square.average"]
    assert float(saved) != 100.0
    other = learner(MARWILConfig)
    other.modules.load(made.modules.state())
    assert float(other.modules.square.average) == float(saved)


def test_returns_to_the_end_take_logged_rows_alone():
    assert MARWILConfig(env="CartPole-v1").n_step is None
    with pytest.raises(ValidationError, match=r"offline.frac=0.5 set n_step"):
        MARWILConfig(env="CartPole-v1", offline={"frac": 0.5})
    config = MARWILConfig(env="CartPole-v1", offline={"frac": 0.5}, n_step=32)
    assert "NStep(n=32" in plan_for(config, run_id="test").describe()
    with pytest.raises(ValidationError, match=r"n_step=200 is longer than"):
        MARWILConfig(env="CartPole-v1", offline={"frac": 0.5}, n_step=200)
    assert config.with_overrides({"offline.frac": 1.0, "n_step": None}).n_step is None


@pytest.mark.parametrize(("kind", "limit"), [("discrete", 0.0), ("continuous", 0.12)])
def test_marwil_learns_a_bandit_from_uniform_actions(kind, limit):
    config = MARWILConfig(env=ENVS[kind], optim={"lr": 3e-3}, square_init=0.02, **SMALL)
    plan = plan_for(config, run_id="test")
    made = plan.dataflow.learner(config, plan.policy)
    made.seed(0)
    made.data = bandit_rows(kind)
    before = error_of(made, kind)
    made.update_logged(400)
    assert before > 0.25
    assert error_of(made, kind) <= limit
