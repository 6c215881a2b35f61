"""Environments that are learned in seconds: a policy is as good as it copies its input."""

import os
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

STEPS = 8
"""Of an episode, and so the best return."""
CONTEXTS = 4


class Identity(gym.Env[Any, Any]):
    """Base: a context is shown; the reward is 1 for an action that equals it. Always truncates."""

    def reset(self, *, seed: int | None = None, **_: Any) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self.draw(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward, self.t = self.reward(action), self.t + 1
        return self.draw(), reward, False, self.t == STEPS, {}

    def draw(self) -> np.ndarray:
        raise NotImplementedError

    def reward(self, action: Any) -> float:
        raise NotImplementedError


class DiscreteIdentity(Identity):
    """One-hot contexts; guessing returns STEPS / CONTEXTS."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0, 1, (CONTEXTS,), np.float32)
        self.action_space = spaces.Discrete(CONTEXTS)

    def draw(self) -> np.ndarray:
        self.context = int(self.np_random.integers(CONTEXTS))
        return np.eye(CONTEXTS, dtype=np.float32)[self.context]

    def reward(self, action: Any) -> float:
        return float(action == self.context)


class ContinuousIdentity(Identity):
    """A number in [-1, 1]; the reward falls with the distance. Always answering 0 returns half."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-1, 1, (1,), np.float32)
        self.action_space = spaces.Box(-1, 1, (1,), np.float32)

    def draw(self) -> np.ndarray:
        self.context = self.np_random.uniform(-1, 1, 1).astype(np.float32)
        return self.context

    def reward(self, action: Any) -> float:
        return 1.0 - min(1.0, float(np.abs(action - self.context).sum()))


def discrete() -> gym.Env[Any, Any]:
    return DiscreteIdentity()


def continuous() -> gym.Env[Any, Any]:
    return ContinuousIdentity()


class Deadly(DiscreteIdentity):
    """Ends its process at the first step."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        os._exit(1)


def deadly() -> gym.Env[Any, Any]:
    return Deadly()
