"""Settings of noise on actions, which every algorithm of continuous ones takes."""

from typing import Literal

from pydantic import Field

from pipelines.config_base import Group, Schedule
from rl_ops.exploration import AddNoise


class NoiseConfig(Group):
    """What is added to actions while data is gathered."""

    scale: Schedule = 0.1
    """Deviation, where actions fill [-1, 1]: a number, or [[env_steps, value], ...]."""
    process: Literal["gaussian", "ou"] = "gaussian"
    """`ou`: Ornstein-Uhlenbeck, correlated in time."""
    theta: float = Field(default=0.15, ge=0)
    """Of that process: how fast it returns to 0."""
    dt: float = Field(default=0.01, gt=0)
    """Of that process: time of a step."""

    def act(self) -> AddNoise:
        """The mode with this noise added."""
        return AddNoise(self.scale, process=self.process, theta=self.theta, dt=self.dt)
