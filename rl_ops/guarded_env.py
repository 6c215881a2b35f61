"""An environment that survives its own exceptions: the episode is aborted, the env built again."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym

from rl_ops.errors import EnvError


@dataclass(frozen=True)
class GuardPolicy:
    """How often an environment may fail.

    Attributes:
        max_failures: exceptions in a row, without one good step between, before giving up.
        backoff_s: wait before a reset is tried again; doubles each time.
    """

    max_failures: int = 3
    backoff_s: float = 0.1


class GuardedEnv(gym.Wrapper[Any, Any, Any, Any]):
    """Ends an episode whose `step` raised as truncated, and rebuilds the environment at its reset.

    The last observation stands in for the one that never came, so the cut bootstraps from it
    rather than being trained as terminal; `info["aborted"]` carries the message.

    Args:
        build: makes the environment; called again after a failure.
        policy: when to give up.

    Raises:
        EnvError: on the failure after `policy.max_failures` in a row, with the seed.
    """

    def __init__(self, build: Callable[[], gym.Env[Any, Any]], policy: GuardPolicy) -> None:
        super().__init__(build())
        self._build = build
        self._policy = policy
        self._failures = 0
        self._broken = False
        self._seed: int | None = None
        self._last_obs: Any = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset, building a new environment first when the old one failed."""
        self._seed = seed if seed is not None else self._seed
        while True:
            try:
                if self._broken:
                    self.env = self._build()
                self._last_obs, info = self.env.reset(seed=seed, options=options)
            except Exception as error:  # noqa: BLE001 - an env may raise anything; _count decides
                self._count("reset", error)
                time.sleep(self._policy.backoff_s * 2 ** (self._failures - 1))
            else:
                self._broken = False
                return self._last_obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step; an exception becomes a truncation with `info["aborted"]`."""
        try:
            obs, reward, terminated, truncated, info = self.env.step(action)
        except Exception as error:  # noqa: BLE001 - an env may raise anything; _count decides
            self._count("step", error)
            message = f"{type(error).__name__}: {error}"
            return self._last_obs, 0.0, False, True, {"aborted": message}
        self._last_obs = obs
        self._failures = 0
        return obs, reward, terminated, truncated, info

    def _count(self, method: str, error: Exception) -> None:
        self._broken = True
        self._failures += 1
        if self._failures > self._policy.max_failures:
            name = self.env.spec.id if self.env.spec is not None else type(self.env).__name__
            raise EnvError(
                f"{name}.{method} failed {self._failures} times in a row (seed {self._seed}), "
                f"last with {type(error).__name__}: {error}"
            ) from error
