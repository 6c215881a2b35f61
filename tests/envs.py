"""Tiny deterministic environments, by name: EnvSpec("tests.envs:count", {...})."""

from collections import Counter, defaultdict
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

SEEN: dict[str, list[Any]] = defaultdict(list)
"""Actions that `spaces_env` received, by its `key`; in this process only."""

CALLS: Counter[str] = Counter()
"""How often what a `FaultyEnv` of a key was asked for, over all of its rebuilt instances."""


class CountEnv(gym.Env[Any, Any]):
    """Observes (episode, t), rewards t.

    Episode e takes lengths[e % len] steps and ends by ends[e % len]: "terminated", "truncated" or
    "terminated truncated".
    With `tagged` a third number, drawn at each reset, tells seeds apart. With `in_place` every
    observation is the same array, written to again.
    """

    def __init__(
        self,
        lengths: tuple[int, ...] = (3,),
        ends: tuple[str, ...] = ("terminated",),
        tagged: bool = False,
        in_place: bool = False,
    ) -> None:
        self.observation_space = spaces.Box(0, 1e6, (3 if tagged else 2,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.lengths, self.ends, self.tagged, self.in_place = lengths, ends, tagged, in_place
        self.episode, self.t, self.tag = -1, 0, 0
        self._array = np.zeros(self.observation_space.shape, np.float32)

    def _obs(self) -> np.ndarray:
        values = [self.episode, self.t, self.tag][: self._array.size]
        if not self.in_place:
            return np.array(values, np.float32)
        self._array[:] = values
        return self._array

    def reset(self, *, seed: int | None = None, **_: Any) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode, self.t = self.episode + 1, 0
        self.tag = int(self.np_random.integers(1000)) if self.tagged else 0
        return self._obs(), {}

    def step(self, _action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward, self.t = float(self.t), self.t + 1
        ended = self.t == self.lengths[self.episode % len(self.lengths)]
        how = self.ends[self.episode % len(self.ends)]
        return self._obs(), reward, ended and "term" in how, ended and "trunc" in how, {}


def count(**kwargs: Any) -> gym.Env[Any, Any]:
    return CountEnv(**kwargs)


class FaultyEnv(CountEnv):
    """A CountEnv with long episodes in which `fault` happens at step `at` of an episode.

    Args:
        fault: what happens; see `step` and `reset`.
        at: the step of the episode; ignored by faults of reset.
        times: how often, over all instances with `key`.
    """

    def __init__(self, fault: str, key: str, at: int = 1, times: int = 10**9, **kwargs: Any):
        super().__init__(**{"lengths": (5,), "ends": ("truncated",), **kwargs})
        self.fault, self.key, self.at, self.times = fault, key, at, times

    def _hits(self) -> bool:
        if CALLS[self.key] >= self.times:
            return False
        CALLS[self.key] += 1
        return True

    def close(self) -> None:
        CALLS[f"{self.key}/closed"] += 1

    def reset(self, *, seed: int | None = None, **_: Any) -> tuple[Any, dict[str, Any]]:
        SEEN[f"{self.key}/seeds"].append(seed)
        if self.fault == "reset" and self._hits():
            raise RuntimeError("no reset today")
        obs, info = super().reset(seed=seed)
        if self.fault == "reset_shape" and self._hits():
            obs = obs[:1]
        return obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        due = self.t == self.at
        if self.fault == "step" and due and self._hits():
            raise RuntimeError("no step today")
        obs, reward, terminated, truncated, info = super().step(action)
        if not (due and self.fault != "step" and self.fault != "reset" and self._hits()):
            return obs, reward, terminated, truncated, info
        if self.fault == "nan_obs":
            obs[1] = np.nan
        elif self.fault == "inf_obs":
            obs[0] = np.inf
        elif self.fault == "far_obs":
            obs[0] = -1.0
        elif self.fault == "dtype":
            obs = obs.astype(np.float64)
        elif self.fault == "shape":
            obs = obs[:1]
        elif self.fault == "list":
            obs = obs.tolist()
        elif self.fault == "nan_reward":
            reward = np.nan
        elif self.fault == "inf_reward":
            reward = -np.inf
        elif self.fault == "user_info":
            info = {"aborted": True}
        return obs, reward, terminated, truncated, info


def faulty(**kwargs: Any) -> gym.Env[Any, Any]:
    return FaultyEnv(**kwargs)


OBS_SPACES: dict[str, spaces.Space[Any]] = {
    "dict": spaces.Dict(
        {
            "place": spaces.Box(-1.0, 1.0, (2,), np.float32),
            "inner": spaces.Tuple((spaces.Discrete(3, start=1), spaces.MultiBinary(2))),
        }
    ),
    "tuple": spaces.Tuple((spaces.Discrete(4), spaces.Box(0, 9, (2,), np.int64))),
    "multi_discrete": spaces.MultiDiscrete([2, 3]),
    "discrete": spaces.Discrete(4),
    "vector": spaces.Box(-1.0, 1.0, (3,), np.float32),
    "image": spaces.Box(0, 255, (10, 12, 3), np.uint8),
}

ACTION_SPACES: dict[str, spaces.Space[Any]] = {
    "discrete": spaces.Discrete(2),
    "shifted": spaces.Discrete(3, start=5),
    "narrow_box": spaces.Box(-0.1, 0.1, (2,), np.float32),
    "wide_box": spaces.Box(0.0, 10.0, (2,), np.float64),
    "multi_discrete": spaces.MultiDiscrete([2, 3]),
    "multi_binary": spaces.MultiBinary(3),
    "dict": spaces.Dict({"go": spaces.Discrete(2), "how": spaces.Box(-1.0, 1.0, (2,), np.float32)}),
    "tuple": spaces.Tuple((spaces.Discrete(2), spaces.MultiDiscrete([2, 2]))),
}


class SpacesEnv(gym.Env[Any, Any]):
    """Observes samples of a space, truncates every `length` steps, writes actions to SEEN."""

    def __init__(
        self, obs: str = "vector", action: str = "discrete", length: int = 3, key="spaces"
    ):
        self.observation_space, self.action_space = OBS_SPACES[obs], ACTION_SPACES[action]
        self.length, self.key, self.t = length, key, 0

    def reset(self, *, seed: int | None = None, **_: Any) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.t = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        SEEN[self.key].append(action)
        self.t += 1
        return self.observation_space.sample(), 1.0, False, self.t == self.length, {}


def spaces_env(**kwargs: Any) -> gym.Env[Any, Any]:
    return SpacesEnv(**kwargs)


def not_an_env() -> str:
    return "no"


class NativeCount(VectorEnv[Any, Any, Any]):
    """CountEnvs as a vector environment of its own, in either mode of autoreset.

    Args:
        raises_at: step of the vector environment, counted over all instances of `key`, that
            raises; negative for all.
        noisy_reset: the step spent on a reset claims a reward and a termination.
        dtype: of what it emits; its space says float32.
    """

    def __init__(
        self,
        num_envs: int,
        same_step: bool = False,
        raises_at: int | None = None,
        key: str = "native",
        noisy_reset: bool = False,
        dtype: str = "float32",
        has_final: bool = True,
        **kwargs: Any,
    ) -> None:
        self.num_envs = num_envs
        self.envs = [CountEnv(**kwargs) for _ in range(num_envs)]
        self.single_observation_space = self.envs[0].observation_space
        self.single_action_space = self.envs[0].action_space
        self.same_step, self.has_final = same_step, has_final
        mode = AutoresetMode.SAME_STEP if same_step else AutoresetMode.NEXT_STEP
        self.metadata = {"autoreset_mode": mode}
        self.raises_at, self.key = raises_at, key
        self.noisy_reset, self.dtype = noisy_reset, dtype
        self.ended = np.zeros(num_envs, bool)

    def reset(self, *, seed: int | None = None, **_: Any) -> tuple[Any, dict[str, Any]]:
        SEEN[f"{self.key}/seeds"].append(seed)
        self.ended[:] = False
        seeds = [None if seed is None else seed + i for i in range(self.num_envs)]
        obs = [env.reset(seed=s)[0] for env, s in zip(self.envs, seeds, strict=True)]
        return np.stack(obs).astype(self.dtype), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        CALLS[self.key] += 1
        if self.raises_at is not None and (self.raises_at < 0 or CALLS[self.key] == self.raises_at):
            raise RuntimeError("the simulator is gone")
        rows, finals = [], np.zeros((self.num_envs, *self.single_observation_space.shape), "f4")
        for i, env in enumerate(self.envs):
            if self.ended[i] and not self.same_step:
                claim = self.noisy_reset
                rows.append((env.reset()[0], 7.0 * claim, claim, False))
                continue
            obs, reward, terminated, truncated, _ = env.step(actions[i])
            if self.same_step and (terminated or truncated):
                finals[i] = obs
                obs = env.reset()[0]
            rows.append((obs, reward, terminated, truncated))
        obs, reward, terminated, truncated = (np.array(x) for x in zip(*rows, strict=True))
        self.ended = (terminated | truncated) & ~(self.ended & (not self.same_step))
        infos = {"final_obs": finals} if self.same_step and self.has_final else {}
        return obs.astype(self.dtype), reward, terminated, truncated, infos


def single_count(**kwargs: Any) -> gym.Env[Any, Any]:
    """The single environment that goes with NativeCount, whose own arguments it ignores."""
    names = ("lengths", "ends", "tagged", "in_place")
    return CountEnv(**{name: kwargs[name] for name in names if name in kwargs})


gym.register("tests/Count-v0", entry_point=single_count, vector_entry_point=NativeCount)
gym.register("tests/Plain-v0", entry_point=CountEnv)


class Chance(CountEnv):
    """A CountEnv that draws which of `lengths` an episode has, and observes (its index, t)."""

    def __init__(self, key: str, lengths: tuple[int, ...]) -> None:
        super().__init__(lengths, ends=("terminated", "truncated"))
        self.key = key

    def reset(self, *, seed: int | None = None, **_: Any) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            SEEN[self.key].append(seed)
        self.episode = int(self.np_random.integers(len(self.lengths)))
        return self._obs(), {}


def chance(key: str, lengths: tuple[int, ...], **_: Any) -> gym.Env[Any, Any]:
    return Chance(key, lengths)


class NativeChance(NativeCount):
    def __init__(self, num_envs: int, key: str, lengths: tuple[int, ...], **kwargs: Any) -> None:
        super().__init__(num_envs, key=f"{key}/native", **kwargs)
        self.envs = [Chance(key, lengths) for _ in range(num_envs)]


gym.register("tests/Chance-v0", entry_point=chance, vector_entry_point=NativeChance)
