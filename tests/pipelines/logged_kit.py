"""Small lakes to learn from, logged by policies that act at random."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from pipelines import ALGORITHMS, SACConfig, config_class
from pipelines.logged import LoggedConfig
from tests.offline.validation_kit import ACTION, OBS

LOGGED = sorted(a for a in ALGORITHMS if issubclass(config_class(a), LoggedConfig))
"""Algorithms that are made for logged rows."""
ONLINE = sorted(set(ALGORITHMS) - set(LOGGED))


def log_random(env: Any, storage: Path, *, rows: int, name: str = "random", seed: int = 0) -> str:
    """Log at least `rows` steps of uniform actions in a lake; its address."""
    config = SACConfig(
        env=env,
        seed=seed,
        learning_starts_rows=10**6,
        model={"hidden": (4,)},
        rollout={"num_envs": 4, "fragment_steps": 64},
        stop={"env_steps": rows},
        checkpoint={"at_end": False},
        reporting={"tensorboard": False},
        trace={"commit_rows": 128},  # several files
    )
    with config.build(debug=True, storage=storage, name=name) as pipeline:
        for _ in pipeline.stream():
            pass
    return str(storage / "lake")


class Toy(gym.Env[Any, Any]):
    """The spaces of tests/offline/validation_kit.py."""

    observation_space = OBS
    action_space = ACTION

    def reset(self, *, seed: int | None = None, **_: Any) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.zeros(2, np.float32), 0.0, True, False, {}


def toy() -> gym.Env[Any, Any]:
    return Toy()
