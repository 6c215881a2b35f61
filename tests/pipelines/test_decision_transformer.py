"""Decision Transformer: its loss row by row, its view of a log, what it aims at, how it acts.

Legend: B windows, K steps.
"""

import dataclasses
import math

import gymnasium as gym
import numpy as np
import pytest
import torch

from offline.errors import LakeError
from pipelines import DTConfig, Pipeline, load_policy
from pipelines.evaluation import evaluate_policy
from pipelines.sequence_view import sequences_of
from pipelines.specs import env_spec
from pipelines.training import plan_for
from rl_ops import columns as c
from rl_ops.action_connectors import default_action_connectors
from rl_ops.batch import Batch
from rl_ops.connectors import default_obs_connectors
from rl_ops.envs import EnvSpec
from rl_ops.exploration import Greedy
from rl_ops.learner import World
from rl_ops.policy import Policy
from rl_ops.rollout import Rollout
from tests.learning_envs import CONTEXTS, STEPS
from tests.offline.validation_kit import ACTION, OBS, episode, loaded
from tests.pipelines.logged_kit import log_random
from tests.pipelines.test_td_learners import (
    BOX,
    SGD,
    assert_close,
    gradients,
    noted_gradient,
    total,
)

ROWS, K = 4, 3
TINY = {"model": {"hidden": (8, 8), "activation": "relu"}, "context_steps": K, "dropout": 0.0}


def learner(env="CartPole-v1", **settings):
    config = DTConfig(env=env, **{**TINY, "optim": SGD, **settings})
    plan = plan_for(config, run_id="test")
    made = plan.dataflow.learner(config, plan.policy)
    made.seed(3)
    made.updates = 1
    return made


def batch_for(made):
    generator = torch.Generator().manual_seed(0)
    shape = made.policy.obs_connectors.output_space.shape
    actions = made.policy.action_space.shape
    if actions:
        action = torch.randn(ROWS, K, *actions, generator=generator)
    else:
        action = torch.randint(0, 2, (ROWS, K), generator=generator)
    return Batch(
        {
            "obs": torch.randn(ROWS, K, *shape, generator=generator),
            "action": action,
            "return_to_go": torch.randn(ROWS, K, generator=generator),
            "t": torch.arange(K).expand(ROWS, K),
            "step_mask": torch.arange(K) >= torch.tensor([[0], [1], [2], [0]]),
            "is_weight": torch.tensor([1.0, 0.5, 0.8, 0.1]),
        }
    )


@pytest.mark.parametrize("env", ["CartPole-v1", BOX], ids=["discrete", "continuous"])
def test_it_descends_minus_logp_of_the_steps_there_are_with_weights(env):
    made = learner(env)
    batch, model = batch_for(made), made.modules.model
    params = model(batch.obs, batch.action, batch.return_to_go, t=batch.t, mask=batch.step_mask)
    terms = [
        -batch.is_weight[b]
        * made.distribution.logp(params[b, k][None], batch.action[b, k][None])[0]
        for b in range(ROWS)
        for k in range(K)
        if batch.step_mask[b, k]
    ]
    loss = total(terms) / 9
    expected = gradients(loss, model)
    learned = made.learn(batch)
    assert_close(noted_gradient(model), expected)
    assert_close(learned.metrics["dt_loss"].detach(), loss.detach())


def test_what_is_left_out_while_learning_is_the_learners_own_randomness():
    found = []
    for disturbed in (False, True):
        made = learner(dropout=0.5)
        if disturbed:
            torch.manual_seed(99)
        found.append([made.learn(batch_for(made)).metrics["dt_loss"].item() for _ in range(3)])
    assert found[0] == found[1]
    plain = learner(dropout=0.0)
    assert found[0][0] != plain.learn(batch_for(plain)).metrics["dt_loss"].item()


# --- the view of a log ---


def sequences(rows, *, world=None):
    """Of the kit's episodes, whose reward is their t."""
    policy = dataclasses.replace(
        learner().policy,
        obs_space=OBS,
        action_space=ACTION,
        obs_connectors=default_obs_connectors(OBS),
        action_connectors=default_action_connectors(ACTION, squash=False),
    )
    config = DTConfig(env="CartPole-v1", **TINY)
    reads = (c.ACTION, c.RETURN_TO_GO, c.T, c.STEP_MASK)
    return sequences_of(loaded(rows), config, policy, reads, world or World())[0]


def test_returns_to_go_are_undiscounted_and_end_with_the_log_of_the_episode():
    # the last is what its rewards add up to; the truncated one's is no more than was logged
    found = sequences([*episode("a", 4), *episode("b", 3, end=c.TRUNCATED)])
    (batch,) = found._gathered(torch.arange(7), 7)
    assert batch.return_to_go[:, -1].tolist() == [3 + 2, 3, 3, 3, 2, 2, 2]
    assert batch.return_to_go[0].tolist() == [6, 6, 5]
    assert batch.return_to_go[4].tolist() == [3, 3, 2]
    assert batch.t[1].tolist() == [1, 2, 3]
    assert batch.obs[0, :, 0].tolist() == [0, 1, 2]
    assert batch.action[0].tolist() == [0, 1, 2]
    assert (found.best_return, found.largest_return) == (6.0, 6.0)


def test_pieces_whose_return_is_not_known_are_no_sequences():
    gap = episode("gap", 6)
    del gap[2]
    rows = [*episode("open", 9, end="", final=False), *gap, *episode("whole", 2)]
    found = sequences(rows)
    (batch,) = found._gathered(torch.arange(found.rows), found.rows)
    assert batch.t[:, -1].tolist() == [5, 5, 5, 1, 1]
    assert batch.return_to_go[0].tolist() == [12, 9, 5]
    # the piece behind the gap begins with more to go than the whole episode has
    assert found.best_return == 1.0
    with pytest.raises(LakeError, match="none of the 1 episodes"):
        sequences(episode("open", 9, end="", final=False))


def test_ranks_share_the_windows():
    rows = [*episode("a", 4), *episode("b", 3)]
    parts = [sequences(rows, world=World(rank=r, size=2)) for r in range(2)]
    assert [part.rows for part in parts] == [4, 3]
    assert {part.best_return for part in parts} == {6.0}


# --- configuration ---


def test_it_learns_from_logged_rows_in_memory_alone():
    with pytest.raises(ValueError, match="do not stream"):
        DTConfig(env="CartPole-v1", offline={"load": "stream"})
    with pytest.raises(ValueError, match=r"logged episodes alone, got offline.frac=0.5"):
        DTConfig(env="CartPole-v1", offline={"frac": 0.5})
    text = plan_for(DTConfig(env="CartPole-v1"), run_id="test").describe()
    assert "reads  obs, action, return_to_go, t, step_mask" in text


# --- in the environments ---


@pytest.fixture(scope="module")
def lakes(tmp_path_factory):
    made = {"Pendulum-v1": 1600, "tests.learning_envs:discrete": 3000}
    folder = tmp_path_factory.mktemp("dt")
    return {env: log_random(env, folder / env[:5], rows=rows) for env, rows in made.items()}


def trained(env, lakes, storage, *, iterations=1, **settings):
    """A pipeline after some iterations; closed by the caller."""
    offline = {"lake": lakes[env], "updates_per_iteration": 5}
    config = DTConfig(env=env, offline=offline, **TINY, minibatch_rows=16)
    pipeline = Pipeline(config.with_overrides(settings), storage=storage, debug=True)
    for _ in range(iterations):
        pipeline.train()
    return pipeline


def test_it_aims_at_the_best_return_of_the_data_unless_told(lakes, tmp_path):
    with trained("Pendulum-v1", lakes, tmp_path) as pipeline:
        best = pipeline._backend._loop.learner.data.best_return
        path = pipeline.save()
    module = load_policy(path).get_weights().module
    assert -2000 < best < 0
    assert float(module["target_return"]) == pytest.approx(best)
    assert float(module["return_scale"]) >= -best
    with trained("Pendulum-v1", lakes, tmp_path, target_return=-7.0) as pipeline:
        module = pipeline.get_policy().get_weights().module
    assert float(module["target_return"]) == -7.0


def test_evaluation_and_serving_act_bit_for_bit_alike(lakes, tmp_path):
    # Pendulum's rewards are reals of its whole past: one bit of one action would show
    with trained("Pendulum-v1", lakes, tmp_path) as pipeline:
        policy, path = pipeline.get_policy(), pipeline.save()
    env = EnvSpec("Pendulum-v1", {})
    for num_envs in (1, 3):
        evaluated = evaluate_policy(policy, env, episodes=num_envs, seed=5, num_envs=num_envs)
        seeds = (np.random.SeedSequence(5).generate_state(num_envs) % 2**31).tolist()
        served = load_policy(path)
        copies = [gym.make("Pendulum-v1") for _ in range(num_envs)]
        obs = np.stack([e.reset(seed=s)[0] for e, s in zip(copies, seeds, strict=True)])
        state, reward, returns = None, None, np.zeros(num_envs)
        for _ in range(200):
            if num_envs == 1:  # one observation, not a batch of one
                action, state, _ = served.act(obs[0], state, reward=reward)
                action = action[None]
            else:
                action, state, _ = served.act(obs, state, reward=reward)
            steps = [e.step(a) for e, a in zip(copies, action, strict=True)]
            obs, reward = np.stack([s[0] for s in steps]), np.array([s[1] for s in steps])
            returns += reward
            reward = reward[0] if num_envs == 1 else reward
        assert list(evaluated.returns) == returns.tolist()


def test_rollouts_act_as_serving_does_with_what_was_earned_and_done_before():
    env = "tests.learning_envs:continuous"
    made = learner(env, target_return=5.0, return_scale=1.0)
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in made.modules.model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    plan = plan_for(made.config, run_id="test")
    spec = dataclasses.replace(
        plan.rollout,
        policy=dataclasses.replace(plan.policy, act=Greedy()),
        num_envs=2,
        fragment_steps=3 * STEPS,
    )
    rollout = Rollout(spec)
    rollout.load(made.weights(), 0)
    table = rollout.fragment(0)
    rollout.close()
    policy = Policy(spec.policy, made.weights())
    obs, action = (
        codec.decode(table.column(name))
        for name, codec in ((c.OBS, rollout.obs_codec), (c.ACTION, rollout.action_codec))
    )
    reward, t = (table.column(name).to_numpy() for name in (c.REWARD, c.T))
    found, state = [], None
    for i in range(table.num_rows):
        earned = None if t[i] == 0 else reward[i - 1]
        _, state, extras = policy.act(obs[i], None if t[i] == 0 else state, reward=earned)
        found.append(extras["action"])
    assert np.count_nonzero(t == 0) >= 4
    np.testing.assert_allclose(np.stack(found), action, rtol=1e-4, atol=1e-5)


def test_it_learns_to_return_what_it_is_asked_for(lakes, tmp_path):
    env = "tests.learning_envs:discrete"
    settings = {
        "model.hidden": (32, 32),
        "optim.lr": 3e-3,
        "minibatch_rows": 64,
        "offline.updates_per_iteration": 250,
        "target_return": float(STEPS),
    }
    with trained(env, lakes, tmp_path, **settings) as pipeline:
        policy = pipeline.get_policy()
        where = env_spec(pipeline.config)
    high = evaluate_policy(policy, where, episodes=40, seed=0).figures()["episode_return_mean"]
    weights = policy.get_weights()
    module = {**weights.module, "target_return": np.float32(0.0)}
    policy.set_weights(weights._replace(module=module))
    low = evaluate_policy(policy, where, episodes=40, seed=0).figures()["episode_return_mean"]
    assert high > 0.9 * STEPS
    assert low < STEPS / CONTEXTS
    assert math.isfinite(low)
