"""What the CleanRL-like files share: episode returns, environments, a ring of transitions.

B environments, M rows of a minibatch.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor


class Returns:
    """Undiscounted returns of the episodes that ended, the latest kept."""

    def __init__(self, num_envs: int, *, window_episodes: int) -> None:
        self.running = np.zeros(num_envs)
        self.ended: deque[float] = deque(maxlen=window_episodes)

    def step(self, reward_B: npt.NDArray[np.float64], done_B: npt.NDArray[np.bool_]) -> None:
        self.running += reward_B
        for index in np.flatnonzero(done_B):
            self.ended.append(float(self.running[index]))
            self.running[index] = 0.0

    @property
    def mean(self) -> float:
        return float(np.mean(self.ended)) if self.ended else float("nan")


def sync_envs(env: str, *, num_envs: int) -> gym.vector.VectorEnv:
    """Environments stepped in turn as the original files do, reset in the step that ends them."""
    return gym.make_vec(
        env,
        num_envs=num_envs,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
    )


@dataclass(frozen=True)
class Transitions:
    """A minibatch as tensors; done is termination alone, so that truncation bootstraps."""

    obs: Tensor
    action: Tensor
    reward: Tensor
    next_obs: Tensor
    done: Tensor


class Ring:
    """The latest transitions in preallocated arrays, sampled uniformly with replacement."""

    def __init__(self, capacity_rows: int, envs: gym.vector.VectorEnv, *, seed: int) -> None:
        obs, action = envs.single_observation_space, envs.single_action_space
        self.obs = np.zeros((capacity_rows, *(obs.shape or ())), np.float32)
        self.next_obs = np.zeros_like(self.obs)
        self.action = np.zeros((capacity_rows, *(action.shape or ())), action.dtype)
        self.reward = np.zeros(capacity_rows, np.float32)
        self.done = np.zeros(capacity_rows, np.float32)
        self.rng = np.random.default_rng(seed)
        self.next_row, self.rows = 0, 0

    def add(
        self,
        obs_B: npt.NDArray[Any],
        action_B: npt.NDArray[Any],
        reward_B: npt.NDArray[Any],
        next_obs_B: npt.NDArray[Any],
        terminated_B: npt.NDArray[np.bool_],
        infos: dict[str, Any],
    ) -> None:
        """Keep a step of all environments; an episode's last observation is in infos."""
        capacity = len(self.reward)
        at_B = (self.next_row + np.arange(len(reward_B))) % capacity
        self.obs[at_B], self.action[at_B], self.reward[at_B] = obs_B, action_B, reward_B
        self.next_obs[at_B], self.done[at_B] = next_obs_B, terminated_B
        for env in np.flatnonzero(infos.get("_final_obs", ())):
            self.next_obs[at_B[env]] = infos["final_obs"][env]
        self.next_row = int(at_B[-1] + 1) % capacity
        self.rows = min(self.rows + len(reward_B), capacity)

    def sample(self, rows: int) -> Transitions:
        at_M = self.rng.integers(0, self.rows, rows)
        columns = (self.obs, self.action, self.reward, self.next_obs, self.done)
        return Transitions(*(torch.from_numpy(column[at_M]) for column in columns))


def crossed(period: int, env_steps: int, num_envs: int) -> int:
    """How many multiples of the period the latest step of all environments reached."""
    return env_steps // period - (env_steps - num_envs) // period
