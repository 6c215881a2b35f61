"""Ape-X: distributed prioritised replay (Horgan et al. 2018, arXiv:1803.00933).

DQN's learner behind many rollout workers, each exploring by its own amount, whose rows come with
the priorities that the workers computed; each learner rank keeps a shard of the replay memory.
"""

from typing import Literal

from pydantic import Field

from pipelines.config import (
    ModelConfig,
    OffPolicyConfig,
    OptimConfig,
    ReplayConfig,
    RolloutConfig,
    TargetConfig,
)
from pipelines.config_base import PositiveInt, Schedule
from pipelines.dataflow import Dataflow, Rollouts, source_of
from pipelines.dqn import DQNLearner
from pipelines.off_policy import initial_priorities, replayed, transitions
from pipelines.q_config import QConfig
from pipelines.specs import PolicyKind
from rl_ops.exploration import EpsilonGreedy


class ApexConfig(OffPolicyConfig):
    """Ape-X DQN: double, dueling, three steps, prioritised."""

    algo: Literal["apex"] = "apex"
    """Name of the algorithm."""
    q: QConfig = QConfig(dueling=True)
    epsilon: Schedule = 0.4
    """Probability of a uniform action in the environment that explores most."""
    ladder_alpha: float = Field(default=7.0, ge=0)
    """Environment i of N explores with epsilon^(1 + ladder_alpha i / (N - 1))."""
    model: ModelConfig = ModelConfig(hidden=(128, 128), activation="relu")
    rollout: RolloutConfig = RolloutConfig(
        num_workers=2, num_envs=16, fragment_steps=16, max_policy_lag=2
    )
    optim: OptimConfig = OptimConfig(lr=5e-4, eps=1e-8, max_grad_norm=40.0)
    replay: ReplayConfig = ReplayConfig(prioritized=True)
    target: TargetConfig = TargetConfig(tau=1.0, period_updates=500)
    updates_per_row: float = Field(default=0.25, gt=0)
    """Gradient steps per env step consumed: neither side can run ahead of the other."""
    minibatch_rows: PositiveInt = 256
    """Rows drawn for a gradient step, on each learner rank."""
    n_step: PositiveInt = 3
    """Rewards summed before bootstrapping; windows end where fragments do."""


def dataflow(config: ApexConfig) -> Dataflow:
    """Rollouts by a ladder of epsilons → n-step returns → priorities → sharded replay → DQN."""
    act = EpsilonGreedy(
        config.epsilon,
        ladder_alpha=config.ladder_alpha,
        num_envs=config.num_rollouts * config.rollout.num_envs,
    )
    return Dataflow(
        source=source_of(
            config, Rollouts(act=act, then=(*transitions(config), initial_priorities(config)))
        ),
        policy=PolicyKind(head="q", q=config.q.spec()),
        replay=replayed(config),
        learner=DQNLearner,
        fragments_per_version=config.fragments_per_version,
        max_policy_lag=config.rollout.max_policy_lag,
    )
