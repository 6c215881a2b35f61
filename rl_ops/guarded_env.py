"""An environment that survives its own exceptions: the episode is aborted, the env built again."""

import time
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Final

import gymnasium as gym
import numpy as np

from rl_ops.errors import EnvError
from rl_ops.obs_check import ObsCheck

ABORTED_INFO: Final = "millrace_aborted"
"""The key of `info` under which an aborted episode's last step carries the exception's text."""


@dataclass(frozen=True)
class GuardPolicy:
    """How often an environment may fail.

    Attributes:
        max_failures: exceptions in a row before giving up; an episode that ends by itself, or
            `forgive_steps` good steps, end the row.
        backoff_s: wait before a reset is tried again; doubles each time.
        forgive_steps: see max_failures; for episodes that go on for ever.
    """

    max_failures: int = 3
    backoff_s: float = 0.1
    forgive_steps: int = 1000


class Failures:
    """Counts one environment's exceptions in a row, and gives up after too many.

    Attributes:
        in_a_row: exceptions since the last episode that went well.
        seed: with which the environment was reset last.
    """

    def __init__(self, name: str, policy: GuardPolicy) -> None:
        self.in_a_row = 0
        self.seed: int | None = None
        self._name, self._policy = name, policy
        self._total = 0
        self._good_steps = 0

    def add(self, method: str, error: Exception) -> str:
        """Count an exception of `method`; returns its text.

        Raises:
            EnvError: it is one too many; names the environment and the seed.
        """
        self.in_a_row += 1
        self._total += 1
        self._good_steps = 0
        text = f"{type(error).__name__}: {error}"
        if self.in_a_row > self._policy.max_failures:
            raise EnvError(
                f"{self._name}.{method} failed {self.in_a_row} times in a row (seed {self.seed}), "
                f"last with {text}"
            ) from error
        return text

    def add_good_step(self, *, ended: bool) -> None:
        """Note a step without an exception, and whether it ended its episode."""
        self._good_steps += 1
        if ended or self._good_steps >= self._policy.forgive_steps:
            self.in_a_row = 0

    def wait(self) -> None:
        """Back off before the next try."""
        time.sleep(self._policy.backoff_s * 2 ** (self.in_a_row - 1))

    def next_seed(self) -> int | None:
        """A seed for the environment built after the last failure: the same in every run.

        Not the first one again, with which it would run into the same exception.
        """
        if self.seed is None:
            return None
        sequence = np.random.SeedSequence((self.seed, self._total))
        return int(sequence.generate_state(1)[0] % 2**31)


class GuardedEnv(gym.Wrapper[Any, Any, Any, Any]):  # type: ignore[misc]  # gymnasium is skipped
    """Ends an episode whose `step` raised as truncated, and rebuilds the environment at its reset.

    The last observation stands in for the one that never came, so the cut bootstraps from it
    rather than being trained as terminal; `info[ABORTED_INFO]` carries the exception's text.

    Args:
        build: makes the environment; called again after a failure.
        policy: when to give up.
        name: of the environment, for messages.

    Raises:
        EnvError: on the failure after `policy.max_failures` in a row, with the seed.
        SpecError: an observation is not of the space's structure, shape or dtype.
    """

    env: gym.Env[Any, Any]

    def __init__(
        self, build: Callable[[], gym.Env[Any, Any]], policy: GuardPolicy, *, name: str
    ) -> None:
        super().__init__(build())
        self._build = build
        self._failures = Failures(name, policy)
        self._check = ObsCheck(self.env.observation_space, name=name)
        self._broken = False
        self._last_obs: Any = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset, building a new environment first when the old one failed."""
        failures = self._failures
        if seed is not None:
            failures.seed = seed
        while True:
            try:
                if self._broken:
                    seed = self._rebuild(seed)
                obs, info = self.env.reset(seed=seed, options=options)
            except Exception as error:  # noqa: BLE001 - an env may raise anything; `add` decides
                self._broken = True
                failures.add("reset", error)
                failures.wait()
            else:
                self._check(obs, "reset")
                self._broken = False
                self._last_obs = obs
                return obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step; an exception becomes a truncation with `info[ABORTED_INFO]`."""
        failures = self._failures
        try:
            obs, reward, terminated, truncated, info = self.env.step(action)
        except Exception as error:  # noqa: BLE001 - an env may raise anything; `add` decides
            self._broken = True
            text = failures.add("step", error)
            return self._last_obs, 0.0, False, True, {ABORTED_INFO: text}
        self._check(obs, "step")
        ended = bool(terminated or truncated)
        if failures.in_a_row:
            failures.add_good_step(ended=ended)
        if ended:
            # Vector environments read it after the reset, which may write to the same array.
            obs = obs.copy() if isinstance(obs, np.ndarray) else deepcopy(obs)
        self._last_obs = obs
        return obs, reward, terminated, truncated, info

    def _rebuild(self, seed: int | None) -> int | None:
        with suppress(Exception):  # it failed already; what it holds should still go
            self.env.close()
        self.env = self._build()
        return seed if seed is not None else self._failures.next_seed()
