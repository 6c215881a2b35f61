"""CartPole: estimates of a trained policy from episodes of a softer, earlier one, and the truth."""

from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from offline.lake import Lake
from offline.ope import ESTIMATORS, OpeSettings, PolicyTarget, evaluate
from offline.ope.fqe import FQESettings
from offline.trajectories import DataSpec, Trajectories, load_trajectories
from pipelines.checkpoint import load_policy
from rl_ops.policy import Policy
from tests.offline.ope_kit import Process, TableTarget, policy_of, trajectories
from tests.workflows.conftest import Cli

pytestmark = [pytest.mark.learning, pytest.mark.timeout(1800)]

GAMMA, EPISODES = 0.99, 200


@dataclass
class Episodes:
    """Columns of whole episodes, an entry for each row."""

    episode: list[int]
    t: list[int]
    obs: list[Any]
    action: list[int]
    reward: list[float]
    terminated: list[bool]
    logp: list[float]
    final: list[tuple[int, Any]]


def acted(policy: Policy, *, soften: float, seed: int, count: int = EPISODES) -> Episodes:
    """Episodes by (1 - soften) pi + soften uniform, with the probabilities that were acted by."""
    rng, rows = np.random.default_rng(seed), Episodes(*([] for _ in range(8)))
    env = gym.make("CartPole-v1")
    for e in range(count):
        obs, _ = env.reset(seed=seed * 100_000 + e)
        for t in range(500):
            _, params = policy.dist(obs[None])
            probabilities = np.exp(params[0].astype(float) - params[0].max())
            probabilities /= probabilities.sum()
            probabilities = (1 - soften) * probabilities + soften / 2
            action = int(rng.random() > probabilities[0])
            following, reward, terminated, truncated, _ = env.step(action)
            rows.episode.append(e)
            rows.t.append(t)
            rows.obs.append(obs)
            rows.action.append(action)
            rows.reward.append(float(reward))
            rows.terminated.append(bool(terminated))
            rows.logp.append(float(np.log(probabilities[action])))
            obs = following
            if terminated or truncated:
                break
        if not terminated:
            rows.final.append((len(rows.t) - 1, obs))
    return rows


def as_data(rows: Episodes, like: Trajectories) -> Trajectories:
    base = trajectories(
        *(rows.episode, rows.t, [0] * len(rows.t), rows.action, rows.reward, rows.terminated),
        rows.logp,
        num_states=1,
        final=[(row, 0) for row, _ in rows.final],
    )
    finals = np.array([obs for _, obs in rows.final], np.float32).reshape(-1, 4)
    changed = {"obs": np.array(rows.obs, np.float32), "final_obs": finals}
    return replace(base, **changed, obs_space=like.obs_space, action_space=like.action_space)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Policy, Policy, Trajectories]:
    """An early and a late policy of one PPO run, and rows of it for their spaces."""
    cli = Cli(tmp_path_factory.mktemp("ope") / "storage")
    result = cli(
        *("train", "ppo", "--env", "CartPole-v1", "--storage", cli.storage, "--name", "run"),
        *("--debug", "--seed", "1", "--stop", '{"env_steps": 24000}', "--checkpoint-freq", "4"),
        *("--set", "rollout.num_envs=8", "--set", "checkpoint.keep=100"),
    )
    assert result.exit_code == 0, result.output
    folder = cli.run_folder() / "checkpoints"
    early, late = (load_policy(folder / name) for name in ("8", "16"))
    like = load_trajectories(Lake(cli.storage / "lake"), DataSpec())
    return early, late, like


def test_estimates_agree_with_rollouts_of_the_target(
    trained: tuple[Policy, Policy, Trajectories],
) -> None:
    early, late, like = trained
    data = as_data(acted(early, soften=0.2, seed=1), like)
    found = evaluate(data, PolicyTarget(late, greedy=False), OpeSettings(gamma=GAMMA))
    told = acted(late, soften=0.0, seed=2)
    discounted = np.bincount(told.episode, np.array(told.reward) * GAMMA ** np.array(told.t))
    truth, error = discounted.mean(), discounted.std(ddof=1) / np.sqrt(len(discounted))
    best = {each.estimator: each for each in found.estimates}
    assert found.behavior.value < truth - 5 * error  # the target is another policy indeed
    for name in ("wis", "cwpdis", "dr", "wdr", "fqe"):
        each = best[name]
        assert abs(each.value - truth) < abs(best["is"].value - truth)
        assert each.value == pytest.approx(truth, rel=0.15), each
    for name in ("dr", "wdr", "fqe"):
        assert best[name].low - 3 * error <= truth <= best[name].high + 3 * error, best[name]


def test_intervals_of_fitted_critics_cover_the_value_of_linear_algebra() -> None:
    process, behavior, target = Process.random(1), policy_of(2), TableTarget(policy_of(3))
    truth = process.value(target.policy)
    critic = FQESettings(hidden=(16,), batch_rows=64, updates=15, window=8, lr=3e-3)
    covered = dict.fromkeys(ESTIMATORS, 0)
    for seed in range(100):
        data = process.episodes(behavior, 200, np.random.default_rng(seed))
        asked = OpeSettings(gamma=0.9, resamples=400, fqe=critic, seed=seed)
        for each in evaluate(data, target, asked).estimates:
            covered[each.estimator] += each.low <= truth <= each.high
    # Binomial(100, 0.95) is in 88..100 but for 1 in 700; dm's interval is of the first
    # observations alone and knows nothing of its critic.
    for name in set(ESTIMATORS) - {"dm"}:
        assert covered[name] >= 88, covered
    assert covered["dm"] < 88, covered
