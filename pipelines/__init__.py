"""Pipelines: one file per algorithm, and what runs them. Names are imported on first use."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.a2c import A2CConfig as A2CConfig
    from pipelines.apex import ApexConfig as ApexConfig
    from pipelines.appo import APPOConfig as APPOConfig
    from pipelines.awac import AWACConfig as AWACConfig
    from pipelines.bc import BCConfig as BCConfig
    from pipelines.bcq import BCQConfig as BCQConfig
    from pipelines.callbacks import Callbacks as Callbacks
    from pipelines.callbacks import StopTraining as StopTraining
    from pipelines.checkpoint import load_policy as load_policy
    from pipelines.cql import CQLConfig as CQLConfig
    from pipelines.ddppo import DDPPOConfig as DDPPOConfig
    from pipelines.decision_transformer import DTConfig as DTConfig
    from pipelines.dqn import DQNConfig as DQNConfig
    from pipelines.impala import IMPALAConfig as IMPALAConfig
    from pipelines.iql import IQLConfig as IQLConfig
    from pipelines.marwil import MARWILConfig as MARWILConfig
    from pipelines.pipeline import Pipeline as Pipeline
    from pipelines.ppo import PPOConfig as PPOConfig
    from pipelines.sac import SACConfig as SACConfig
    from pipelines.serving import export_policy as export_policy
    from pipelines.td3 import TD3Config as TD3Config
    from pipelines.td3_bc import TD3BCConfig as TD3BCConfig
    from pipelines.tqc import TQCConfig as TQCConfig
    from pipelines.tune_trial import trainable as trainable

ALGORITHMS: dict[str, tuple[str, str]] = {
    "a2c": ("pipelines.a2c", "A2CConfig"),
    "apex": ("pipelines.apex", "ApexConfig"),
    "appo": ("pipelines.appo", "APPOConfig"),
    "awac": ("pipelines.awac", "AWACConfig"),
    "bc": ("pipelines.bc", "BCConfig"),
    "bcq": ("pipelines.bcq", "BCQConfig"),
    "cql": ("pipelines.cql", "CQLConfig"),
    "ddppo": ("pipelines.ddppo", "DDPPOConfig"),
    "dqn": ("pipelines.dqn", "DQNConfig"),
    "dt": ("pipelines.decision_transformer", "DTConfig"),
    "impala": ("pipelines.impala", "IMPALAConfig"),
    "iql": ("pipelines.iql", "IQLConfig"),
    "marwil": ("pipelines.marwil", "MARWILConfig"),
    "ppo": ("pipelines.ppo", "PPOConfig"),
    "sac": ("pipelines.sac", "SACConfig"),
    "td3": ("pipelines.td3", "TD3Config"),
    "td3_bc": ("pipelines.td3_bc", "TD3BCConfig"),
    "tqc": ("pipelines.tqc", "TQCConfig"),
}
"""name → (module with `dataflow`, name of its config class)."""

_EXPORTS = {
    **{name: module for module, name in ALGORITHMS.values()},
    "Callbacks": "pipelines.callbacks",
    "Pipeline": "pipelines.pipeline",
    "StopTraining": "pipelines.callbacks",
    "export_policy": "pipelines.serving",
    "load_policy": "pipelines.checkpoint",
    "trainable": "pipelines.tune_trial",
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
