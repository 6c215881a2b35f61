"""Small checkpoints to serve."""

from pathlib import Path
from typing import Any

from pipelines import config_class


def saved_checkpoint(storage: Path, algo: str, *, name: str, iterations: int, **given: Any) -> Path:
    """Of a few iterations of an algorithm."""
    config = config_class(algo)(**given, rollout={"num_envs": 4, "fragment_steps": 16})
    with config.build(storage=storage, name=name, debug=True) as pipeline:
        for _ in range(iterations):
            pipeline.train()
        path: Path = pipeline.save()
        return path


def saved_sac(storage: Path) -> Path:
    """Run `r` of SAC on Pendulum, whose actions are rescaled."""
    more = {"env": "Pendulum-v1", "learning_starts_rows": 32}
    return saved_checkpoint(storage, "sac", name="r", iterations=1, **more)
