"""TD3+BC: the paper's terms row by row, when the actor steps, and that it learns.

Legend: B rows, K critics.
"""

import pytest
import torch

from pipelines import TD3BCConfig
from rl_ops.errors import SpecError
from tests.learning_envs import STEPS
from tests.pipelines.logged_kit import log_random
from tests.pipelines.test_td_learners import (
    BOX,
    ROWS,
    STILL,
    assert_close,
    batch_for,
    draws,
    gradients,
    learner,
    noted_gradient,
    total,
    values,
)


def made_for(**settings):
    return learner(TD3BCConfig, **{"env": BOX, "optim": STILL, **settings})


def test_the_critics_learn_from_the_smoothed_target_policy():
    made = made_for(target_noise_scale=0.4, target_noise_clip=0.3)
    batch, modules = batch_for(made), made.modules
    (noise,) = draws(made, 2)
    with torch.no_grad():
        mode = torch.tanh(modules.actor_target(batch.bootstrap_obs)[0])
        action = (mode + (0.4 * noise).clamp(-0.3, 0.3)).clamp(-1.0, 1.0)
        following = modules.critic_target(batch.bootstrap_obs, action)[..., 0]
    q = modules.critics(batch.obs, batch.action)[..., 0]
    losses, errors = [], []
    for k in range(2):
        for b in range(ROWS):
            least = min(following[0, b].item(), following[1, b].item())
            target = batch.return_n[b].item() + batch.bootstrap_discount[b].item() * least
            losses.append(batch.is_weight[b] * (target - q[k, b]) ** 2)
            errors.append(target - q[k, b].item())
    loss = total(losses) / ROWS
    expected = gradients(loss, modules.critics)
    learned = made.learn(batch)
    assert_close(noted_gradient(modules.critics), expected)
    assert_close(learned.priority, torch.tensor(errors).view(2, ROWS).abs().mean(0))
    assert float(learned.metrics["q_mean"]) == pytest.approx(q.mean().item(), rel=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 2.5])
def test_the_actor_ascends_the_scaled_first_critic_and_stays_near_logged_actions(alpha):
    made = made_for(alpha=alpha, policy_delay=1)
    batch, modules = batch_for(made), made.modules
    action = torch.tanh(modules.model(batch.obs)[0])
    q = modules.critics(batch.obs, action)[0, :, 0]
    scale = alpha / (sum(abs(x.item()) for x in q) / ROWS)
    losses = [
        batch.is_weight[b] * ((action[b] - batch.action[b]) ** 2).sum() / 2
        - batch.is_weight[b] * scale * q[b]
        for b in range(ROWS)
    ]
    loss = total(losses) / ROWS
    expected = gradients(loss, modules.model)
    found = made.learn(batch).metrics
    assert_close(noted_gradient(modules.model), expected)
    assert found["actor_loss"].item() == pytest.approx(loss.item(), rel=1e-5)


def test_the_actor_and_the_targets_move_at_every_second_step_of_the_critics():
    made = made_for(optim={"kind": "sgd", "lr": 0.05})
    modules, batch = made.modules, batch_for(made)
    nets = modules.model, modules.actor_target, modules.critic_target
    for updates, moves in ((1, False), (2, True), (3, False), (4, True)):
        made.updates = updates
        before, critics = [values(net) for net in nets], values(modules.critics)
        made.learn(batch)
        assert not torch.equal(values(modules.critics), critics)
        moved = [not torch.equal(values(n), x) for n, x in zip(nets, before, strict=True)]
        assert moved == [moves] * 3
    follows = before[2] + 0.005 * (values(modules.critics) - before[2])
    assert_close(values(modules.critic_target), follows)


def test_rows_of_no_weight_move_nothing_and_weights_add_up():
    weights, found = torch.tensor([1.0, 0.5, 0.8, 0.1, 0.3, 0.7]), []
    for keep in (slice(0, ROWS), slice(0, 3), slice(3, ROWS), slice(0, 0)):
        made = made_for(policy_delay=1)
        part = torch.zeros(ROWS)
        part[keep] = weights[keep]
        made.learn(batch_for(made, is_weight=part))
        found.append(
            torch.cat([noted_gradient(made.modules.critics), noted_gradient(made.modules.model)])
        )
    whole, first, second, none = found
    assert_close(first + second, whole)
    assert whole.abs().sum() > 0
    assert not none.any()


def test_it_normalises_observations_unless_told_otherwise_and_refuses_discrete_actions():
    assert TD3BCConfig(env="Pendulum-v1").connectors.normalize_obs
    assert not made_for(connectors={"normalize_obs": False}).config.connectors.normalize_obs
    assert made_for().modules.obs_moments is not None
    with pytest.raises(SpecError, match="td3_bc on CartPole-v1"):
        learner(TD3BCConfig, env="CartPole-v1")


def test_it_learns_to_copy_its_input_from_uniform_actions(tmp_path):
    env = "tests.learning_envs:continuous"
    lake = log_random(env, tmp_path / "logged", rows=2000)
    config = TD3BCConfig(
        env=env,
        gamma=0.0,
        model={"hidden": (32, 32)},
        minibatch_rows=64,
        optim={"lr": 5e-3},
        offline={"lake": lake, "updates_per_iteration": 400},
    )
    with config.build(debug=True, storage=tmp_path / "runs") as pipeline:
        untrained = pipeline.evaluate(num_episodes=40)["episode_return_mean"]
        pipeline.train()
        trained = pipeline.evaluate(num_episodes=40)["episode_return_mean"]
    assert untrained < 0.6 * STEPS
    assert trained > 0.85 * STEPS
