"""Discrete BCQ: its terms row by row, which actions it takes, and that it learns.

Legend: B rows, A actions.
"""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from pipelines import BCQConfig, load_policy
from rl_ops.batch import Batch
from rl_ops.errors import SpecError
from tests.learning_envs import STEPS
from tests.pipelines.logged_kit import log_random
from tests.pipelines.test_td_learners import (
    ROWS,
    STILL,
    assert_close,
    batch_for,
    gradients,
    learner,
    noted_gradient,
    slow_huber,
    total,
    values,
)

ACTIONS = 4
ENV = "tests.learning_envs:discrete"
"""Four actions."""


def made_for(**settings):
    settings = {"env": ENV, "optim": STILL, **settings}
    settings["model"] = {"hidden": (8,), "activation": "relu", **settings.get("model", {})}
    return learner(BCQConfig, **settings)


def slow_losses(made, batch):
    """TD, imitation and logit terms of each row with their graph; td errors; choices in targets."""
    config, network, target = made.config, made.modules.model, made.modules.target
    q, logits = network.both(batch.obs)
    next_q, next_logits = (x.detach() for x in network.both(batch.bootstrap_obs))
    following = target.both(batch.bootstrap_obs)[0].detach()
    likely, td, imitation, size, errors, choices = next_logits.softmax(1), [], [], [], [], []
    for b in range(ROWS):
        allowed = [
            a
            for a in range(ACTIONS)
            if likely[b, a].item() / likely[b].max().item() > config.threshold
        ]
        best = max(allowed, key=lambda a, b=b: next_q[b, a].item())
        choices.append((best, int(next_q[b].argmax())))
        taken, w = int(batch.action[b]), batch.is_weight[b]
        discounted = batch.bootstrap_discount[b] * following[b, best]
        error = batch.return_n[b] + discounted - q[b, taken]
        td.append(w * slow_huber(error, config.huber_delta))
        imitation.append(-w * torch.log(logits[b].softmax(0)[taken]))
        size.append(config.logit_coef * w * (logits[b] ** 2).sum() / ACTIONS)
        errors.append(error.item())
    return [total(x) / ROWS for x in (td, imitation, size)], torch.tensor(errors), choices


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("settings", [{}, {"huber_delta": None, "logit_coef": 0.5}])
def test_it_descends_the_papers_terms_with_weights(shared, settings):
    made = made_for(model={"shared": shared}, threshold=0.8, **settings)
    batch, network = batch_for(made), made.modules.model
    terms, errors, choices = slow_losses(made, batch)
    assert any(best != free for best, free in choices), "the threshold changes some target"
    expected = gradients(total(terms), network)
    learned = made.learn(batch)
    assert_close(noted_gradient(network), expected)
    for name, term in zip(("q_loss", "imitation_loss", "logit_loss"), terms, strict=True):
        assert learned.metrics[name].item() == pytest.approx(term.item(), rel=1e-5)
    assert_close(learned.priority, errors.abs())


def test_the_target_follows_and_keeps_the_threshold():
    made = made_for(optim={"kind": "sgd", "lr": 0.05}, threshold=0.4)
    modules, batch = made.modules, batch_for(made)
    before, target = values(modules.model), values(modules.target)
    made.learn(batch)
    model = before - 0.05 * noted_gradient(modules.model)
    assert_close(values(modules.model), model)
    assert_close(values(modules.target), target + 0.005 * (model - target))
    assert float(modules.model.threshold) == float(modules.target.threshold)
    assert float(modules.model.threshold) == pytest.approx(0.4)


@pytest.mark.parametrize("shared", [False, True])
def test_a_rows_weight_scales_its_share_of_the_gradient_and_none_moves_nothing(shared):
    weights, found = torch.tensor([1.0, 0.5, 0.8, 0.1, 0.3, 0.7]), []
    for keep in (slice(0, ROWS), slice(0, 3), slice(3, ROWS), slice(0, 0)):
        made = made_for(model={"shared": shared})
        part = torch.zeros(ROWS)
        part[keep] = weights[keep]
        made.learn(batch_for(made, is_weight=part))
        found.append(noted_gradient(made.modules.model))
    whole, first, second, none = found
    assert_close(first + second, whole)
    assert whole.abs().sum() > 0
    assert not none.any()


def test_a_network_of_ones_own_and_actions_that_are_not_discrete_are_refused():
    for model in ({"kind": "mlp", "factory": None}, {"conv": ((8, 3, 1),)}):
        with pytest.raises(ValidationError, match="bcq has a network of its own"):
            BCQConfig(env=ENV, model=model)
    with pytest.raises(SpecError, match="bcq on Pendulum-v1"):
        learner(BCQConfig, env="Pendulum-v1")


def config_for(lake, **settings):
    return BCQConfig(
        env=ENV,
        gamma=0.0,
        optim={"lr": 5e-3},
        offline={"lake": lake, "updates_per_iteration": 300, **settings.pop("offline", {})},
        **{"model": {"hidden": (32, 32)}, **settings},
    )


@pytest.mark.parametrize("shared", [False, True])
def test_it_learns_to_copy_its_input_from_uniform_actions(shared, tmp_path):
    lake = log_random(ENV, tmp_path / "logged", rows=2000)
    config = config_for(lake, model={"hidden": (32, 32), "shared": shared})
    with config.build(debug=True, storage=tmp_path / "runs") as pipeline:
        untrained = pipeline.evaluate(num_episodes=40)["episode_return_mean"]
        pipeline.train()
        trained = pipeline.evaluate(num_episodes=40)["episode_return_mean"]
        policy, loaded = pipeline.get_policy(), load_policy(pipeline.save())
    assert untrained < 0.6 * STEPS
    assert trained > 0.95 * STEPS
    obs = np.eye(ACTIONS, dtype=np.float32)
    assert np.array_equal(policy.act(obs)[0], loaded.act(obs)[0])
    assert loaded.get_weights().module["threshold"] == pytest.approx(0.3)


def test_it_never_takes_an_action_that_the_data_lacks():
    # of each context all actions but its own were logged, each for a reward of -1
    context, action = np.nonzero(1 - np.eye(ACTIONS))
    rows = len(context)
    obs = torch.eye(ACTIONS)[torch.from_numpy(context)]
    logged = Batch(
        {
            "obs": obs,
            "action": torch.from_numpy(action),
            "return_n": torch.full((rows,), -1.0),
            "bootstrap_obs": obs,
            "bootstrap_discount": torch.zeros(rows),
            "is_weight": torch.ones(rows),
        }
    )
    for threshold in (0.0, 0.3):
        made = made_for(threshold=threshold, optim={"kind": "adam", "lr": 0.01})
        for _ in range(300):
            made.learn(logged)
        with torch.no_grad():
            q_BA, _ = made.modules.model(torch.eye(ACTIONS))
        unlogged = q_BA.argmax(1) == torch.arange(ACTIONS)
        assert unlogged.all() if threshold == 0.0 else not unlogged.any()
