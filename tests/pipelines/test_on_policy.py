"""PPO's written-out step against the same step by autograd."""

import pytest
import torch

from pipelines import PPOConfig
from pipelines.ppo import PPOLearner
from pipelines.training import plan_for
from rl_ops.batch import Batch

ROWS = 64


def learner(config) -> PPOLearner:
    made = PPOLearner(config, plan_for(config, run_id="test").policy)
    made.seed(0)
    return made


def batch(made: PPOLearner) -> Batch:
    generator = torch.Generator().manual_seed(1)
    shape = made.policy.obs_connectors.output_space.shape
    obs = torch.randn(ROWS, *shape, generator=generator)
    with torch.no_grad():
        params, value = made.modules.model(obs)
    if made.policy.action_space.shape:
        action = torch.randn(ROWS, *made.policy.action_space.shape, generator=generator)
    else:
        action = torch.randint(0, params.shape[1], (ROWS,), generator=generator)
    # Off the policy, so that ratios differ from 1 and some are clipped.
    logp = made.distribution.logp(params, action) + 0.3 * torch.randn(ROWS, generator=generator)
    advantage = torch.randn(ROWS, generator=generator)
    return Batch(
        {
            "obs": obs,
            "action": action,
            "logp": logp,
            "value": value,
            "advantage": advantage,
            "value_target": value + advantage,
        }
    )


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"entropy_coef": 0.02},
        {"normalize_advantage": False, "value_coef": 1.3},
        {"model": {"shared": True}},
    ],
)
def test_the_written_step_is_autograds(env, settings) -> None:
    config = PPOConfig(env=env, **settings)
    written, graph = learner(config), learner(config)
    assert written.pullback is not None
    graph.pullback = None
    rows = batch(written)
    for step in range(3):
        found, expected = written.descend_minibatch(rows), graph.descend_minibatch(rows)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert float(found[name]) == pytest.approx(float(value), rel=1e-4, abs=1e-6), name
        torch.testing.assert_close(
            written.modules.optimizer.grad, graph.modules.optimizer.grad, msg=f"step {step}"
        )
    assert written.grad_steps == graph.grad_steps == 3


def test_clipped_values_and_other_activations_take_autograd() -> None:
    clipped = learner(PPOConfig(env="CartPole-v1", value_clip=0.2))
    rows = batch(clipped)
    before = clipped.modules.optimizer.flat.clone()
    clipped.descend_minibatch(rows)
    assert not torch.equal(before, clipped.modules.optimizer.flat)
    assert learner(PPOConfig(env="CartPole-v1", model={"activation": "relu"})).pullback is None
