"""Pipelines: one file per algorithm, and what runs them. Names are imported on first use."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.a2c import A2CConfig as A2CConfig
    from pipelines.checkpoint import load_policy as load_policy
    from pipelines.pipeline import Pipeline as Pipeline
    from pipelines.ppo import PPOConfig as PPOConfig

ALGORITHMS: dict[str, tuple[str, str]] = {
    "a2c": ("pipelines.a2c", "A2CConfig"),
    "ppo": ("pipelines.ppo", "PPOConfig"),
}
"""name → (module with `dataflow`, name of its config class)."""

_EXPORTS = {
    "A2CConfig": "pipelines.a2c",
    "PPOConfig": "pipelines.ppo",
    "Pipeline": "pipelines.pipeline",
    "load_policy": "pipelines.checkpoint",
}


def config_class(algo: str) -> Any:
    """The configuration class of an algorithm."""
    module, name = ALGORITHMS[algo]
    return getattr(importlib.import_module(module), name)


def __getattr__(name: str) -> Any:
    # Importing everything here would make each rollout worker pay for torch and ray.train.
    if name not in _EXPORTS:
        raise AttributeError(f"module 'pipelines' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)
