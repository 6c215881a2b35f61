"""Decentralised distributed PPO (Wijmans et al. 2020, arXiv:1911.00357).

PPO without rollout workers: each Ray Train worker rolls out its own environments with its own copy
of the policy, and only gradients travel, by all-reduce. Weights are never sent.
"""

from typing import Literal

from pipelines.config import LearnerConfig, RolloutConfig
from pipelines.dataflow import Dataflow
from pipelines.ppo import PPOConfig
from pipelines.ppo import dataflow as ppo_dataflow


class DDPPOConfig(PPOConfig):
    """PPO whose learner ranks roll out by themselves."""

    algo: Literal["ddppo"] = "ddppo"  # type: ignore[assignment]
    """Name of the algorithm."""
    rollout: RolloutConfig = RolloutConfig(num_workers=0)
    learner: LearnerConfig = LearnerConfig(num_workers=2)


def dataflow(config: DDPPOConfig) -> Dataflow:
    """PPO's; where it runs is a matter of the configuration."""
    return ppo_dataflow(config)
