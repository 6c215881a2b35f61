"""The settings that all contestants of a comparison share; every number is here and only here."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PPOSettings:
    """PPO on CartPole-v1; 2048 rows an iteration."""

    env: str = "CartPole-v1"
    num_envs: int = 32
    fragment_steps: int = 64
    minibatch_rows: int = 256
    num_epochs: int = 10
    lr: float = 3e-4
    adam_eps: float = 1e-5
    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip_eps: float = 0.2
    value_coef: float = 0.5
    entropy_coef: float = 0.0
    max_grad_norm: float = 0.5
    hidden: tuple[int, int] = (64, 64)
    window_episodes: int = 100

    @property
    def train_rows(self) -> int:
        return self.num_envs * self.fragment_steps


@dataclass(frozen=True)
class DQNSettings:
    """DQN on CartPole-v1 without double, dueling or priorities; the periods count env steps."""

    env: str = "CartPole-v1"
    lr: float = 1e-3
    adam_eps: float = 1e-8
    minibatch_rows: int = 128
    capacity_rows: int = 50_000
    learning_starts_rows: int = 1000
    update_period_steps: int = 4
    target_period_steps: int = 500
    epsilon_start: float = 1.0
    epsilon_end: float = 0.05
    epsilon_decay_steps: int = 16_000
    gamma: float = 0.99
    hidden: tuple[int, int] = (120, 84)
    window_episodes: int = 100
    report_period_steps: int = 500


@dataclass(frozen=True)
class SACSettings:
    """SAC on Pendulum-v1 with a learned temperature; one rate for actor, critics and alpha."""

    env: str = "Pendulum-v1"
    lr: float = 1e-3
    adam_eps: float = 1e-8
    minibatch_rows: int = 256
    capacity_rows: int = 100_000
    learning_starts_rows: int = 1000
    tau: float = 0.005
    gamma: float = 0.99
    hidden: tuple[int, int] = (256, 256)
    window_episodes: int = 10
    report_period_steps: int = 100


@dataclass(frozen=True)
class AsyncSettings:
    """IMPALA and APPO on CartPole-v1: the task and the nets; the rest is each side's."""

    env: str = "CartPole-v1"
    gamma: float = 0.99
    hidden: tuple[int, int] = (64, 64)
    window_episodes: int = 100


@dataclass(frozen=True)
class OfflineSettings:
    """BC and CQL on logged Pendulum-v1."""

    env: str = "Pendulum-v1"
    rows: int = 50_000
    minibatch_rows: int = 256
    hidden: tuple[int, int] = (256, 256)
    lr: float = 3e-4
    gamma: float = 0.99
    num_samples: int = 10


Settings = PPOSettings | DQNSettings | SACSettings | AsyncSettings

PPO, DQN, SAC, ASYNC = PPOSettings(), DQNSettings(), SACSettings(), AsyncSettings()
OFFLINE = OfflineSettings()
