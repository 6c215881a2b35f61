"""Environments whose frames can be told apart, registered as tests/Drawn-v0 and tests/Blind-v0."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Drawn(gym.Env[Any, Any]):
    """Random walks whose frame shows where they are: every pixel is the observation."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 - gymnasium's

    def __init__(
        self,
        render_mode: str | None = None,
        space: str = "box",
        entropy: bool = False,
        raises_at: int | None = None,
    ) -> None:
        place = spaces.Box(0, 255, (1,), np.float32)
        self.observation_space = spaces.Dict({"place": place}) if space == "dict" else place
        self.action_space = spaces.Box(-2.0, 2.0, (1,), np.float32)
        self.render_mode, self.space = render_mode, space
        self.entropy, self.raises_at = entropy, raises_at

    def _obs(self) -> Any:
        place = np.array([self.place], np.float32)
        return {"place": place} if self.space == "dict" else place

    def reset(self, *, seed: int | None = None, **_: Any) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        rng = np.random.default_rng() if self.entropy else self.np_random
        self.place, self.t = float(np.float32(rng.uniform(100, 150))), 0
        self.length = int(self.np_random.integers(2, 7))
        return self._obs(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.t == self.raises_at:
            raise RuntimeError("no step today")
        self.t += 1
        self.place = float(np.float32(self.place + action[0] + self.np_random.normal()))
        return self._obs(), float(action[0]), self.t == self.length, False, {}

    def render(self) -> Any:
        return np.full((16, 16, 3), int(self.place), np.uint8)


class Blind(Drawn):
    def render(self) -> Any:
        return None


gym.register("tests/Blind-v0", entry_point=Blind)
gym.register("tests/Drawn-v0", entry_point=Drawn)
