"""Evaluating a policy: whole episodes, in this process, the same number from each environment."""

import dataclasses
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from pipelines.config_errors import ConfigError, Problem
from rl_ops.envs import EnvSpec, VectorSlots, make_env
from rl_ops.policy import Policy, PolicySpec, Weights


@dataclass(frozen=True)
class Evaluation:
    """Returns and lengths of finished episodes, in the order of environment, then of time.

    Attributes:
        returns: undiscounted sums of the environment's own rewards.
        lengths: in env steps.
    """

    returns: tuple[float, ...]
    lengths: tuple[int, ...]

    def figures(self) -> dict[str, float | int]:
        """Mean, deviation and range, as they are printed and logged."""
        returns = np.asarray(self.returns)
        return {
            "episodes": len(returns),
            "episode_return_mean": float(returns.mean()),
            "episode_return_std": float(returns.std()),
            "episode_return_min": float(returns.min()),
            "episode_return_max": float(returns.max()),
            "episode_length_mean": float(np.mean(self.lengths)),
        }


@dataclass(frozen=True)
class EvaluationTask:
    """What to evaluate, and how, but for the weights.

    Attributes:
        policy, env: what acts, and where.
        episodes: whole episodes in all.
        seed: of environments and sampling.
        num_envs: environments side by side in each process.
        explore: sample actions instead of taking the mode.
        version: of the policy, for the log.
    """

    policy: PolicySpec
    env: EnvSpec
    episodes: int
    seed: int
    num_envs: int
    explore: bool = False
    version: int = 0

    def split(self, num_workers: int) -> list["EvaluationTask"]:
        """Shares of the episodes, each with a seed of its own; fewer when there are not enough."""
        count = min(num_workers, self.episodes)
        shares = [self.episodes // count + (i < self.episodes % count) for i in range(count)]
        return [
            dataclasses.replace(self, episodes=n, seed=self.seed + i) for i, n in enumerate(shares)
        ]

    def run(self, weights: Weights) -> Evaluation:
        """Evaluate in this process."""
        return evaluate_policy(
            Policy(self.policy, weights),
            self.env,
            episodes=self.episodes,
            seed=self.seed,
            num_envs=self.num_envs,
            explore=self.explore,
        )


def evaluate_policy(
    policy: Policy,
    env: EnvSpec,
    *,
    episodes: int,
    seed: int,
    num_envs: int = 8,
    explore: bool = False,
) -> Evaluation:
    """Run whole episodes.

    Each of the environments runs its own share of the episodes: taking whichever end first would
    favour short ones.

    Args:
        policy: acts, with the connectors and statistics it was trained with.
        env: which environment.
        episodes: how many, at least 1.
        seed: of environments and, when exploring, of the sampling.
        num_envs: environments side by side, at most `episodes`.
        explore: sample actions instead of taking the mode.

    Raises:
        ValueError: episodes < 1.
    """
    if episodes < 1:
        raise ValueError(f"episodes={episodes}; expected at least 1")
    n = min(num_envs, episodes)
    quota = np.full(n, episodes // n) + (np.arange(n) < episodes % n)
    slots = VectorSlots(env, n)
    try:
        return _run(policy, slots, quota, seed=seed, explore=explore)
    finally:
        slots.close()


def _run(
    policy: Policy, slots: VectorSlots, quota: np.ndarray, *, seed: int, explore: bool
) -> Evaluation:
    n, spec = slots.num_envs, policy.spec
    seeds = np.random.SeedSequence(seed).generate_state(n) % 2**31
    state = policy.start(n, seed=seed)
    obs, is_first = slots.reset(seeds.tolist()), np.ones(n, dtype=bool)
    reward, returns, lengths = np.zeros(n), np.zeros(n), np.zeros(n, dtype=np.int64)
    finished: list[list[tuple[float, int]]] = [[] for _ in range(n)]
    while any(len(f) < q for f, q in zip(finished, quota, strict=True)):
        module_obs = spec.obs_connectors.step(obs, is_first, state.connectors)
        policy.draw_noise(state.rng if explore else None)
        params, _ = policy.next_params(module_obs, state.memory, is_first=is_first, reward=reward)
        action = policy.choose(params, state, is_first if explore else None)
        step = slots.step(spec.action_connectors(action))
        obs, is_first, reward = step.obs, step.is_first, step.reward
        returns += step.reward * step.is_transition
        lengths += step.is_transition
        for i in np.flatnonzero((step.terminated | step.truncated) & step.is_transition):
            if len(finished[i]) < quota[i]:
                finished[i].append((float(returns[i]), int(lengths[i])))
            returns[i], lengths[i] = 0.0, 0
    episodes = [episode for of_env in finished for episode in of_env]
    return Evaluation(tuple(e[0] for e in episodes), tuple(e[1] for e in episodes))


def record_videos(
    policy: Policy, env: EnvSpec, *, folder: Path, episodes: int, seed: int, explore: bool = False
) -> list[Path]:
    """Run episodes one after the other and write an MP4 of each to `folder`.

    Raises:
        ValueError: the environment renders no frames, or the `video` extra is not installed.
    """
    single: gym.Env[Any, Any] = make_env(env, render_mode="rgb_array")
    try:
        recorded = gym.wrappers.RecordVideo(
            single, str(folder), episode_trigger=lambda _: True, disable_logger=True
        )
        for episode in range(episodes):
            _record_one(policy, recorded, seed=seed + episode, explore=explore)
        recorded.close()
    except gym.error.DependencyNotInstalled as error:
        raise ValueError(f"cannot write videos: {error}; pip install 'millrace[video]'") from error
    finally:
        single.close()
    return sorted(folder.glob("rl-video-episode-*.mp4"))


def check_videos(env: EnvSpec) -> None:
    """See that an environment can be filmed, before a run starts that is to do it.

    Raises:
        ConfigError: it draws no frames, or what writes films is not installed.
    """
    name, fix = "evaluation.videos", "leave it out, or give the environment the mode 'rgb_array'"
    try:
        single: gym.Env[Any, Any] = make_env(env, render_mode="rgb_array")
    except (TypeError, gym.error.Error) as error:  # of a factory that knows no render_mode
        raise ConfigError(Problem(name, f"{env.id} cannot be drawn: {error}", fix)) from error
    draws = single.render_mode == "rgb_array"
    single.close()
    if not draws:
        raise ConfigError(Problem(name, f"{env.id} draws no frames", fix))
    try:
        importlib.import_module("moviepy")
    except ImportError as error:
        raise ConfigError(Problem(name, str(error), "pip install 'millrace[video]'")) from error


def _record_one(policy: Policy, env: gym.Env[Any, Any], *, seed: int, explore: bool) -> None:
    obs, _ = env.reset(seed=seed)
    state, reward = None, None
    ended = False
    while not ended:
        action, state, _ = policy.act(obs, state, explore=explore, reward=reward)
        obs, reward, terminated, truncated, _ = env.step(action)
        ended = terminated or truncated
