"""What every peer script shares: arguments, matched settings, one JSON line per iteration."""

import argparse
import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Matched:
    """The settings of PPO CartPole-v1 that all contestants use; 2048 rows an iteration."""

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
    return_window_episodes: int = 100

    @property
    def train_rows(self) -> int:
        return self.num_envs * self.fragment_steps


MATCHED = Matched()


@dataclass(frozen=True)
class Arguments:
    """A peer script's command line, as the harness writes it."""

    env_steps: int
    stop_return: float
    seed: int
    threads: int
    vectorization: str


def parse_arguments(argv: list[str] | None = None) -> Arguments:
    """Read the options every peer script takes; a stop return of inf means run all the steps."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--env-steps", type=int, default=150_000)
    parser.add_argument("--stop-return", type=float, default=math.inf)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="torch threads of the learner")
    parser.add_argument("--vectorization", choices=("sync", "vector_entry_point"), default="sync")
    return Arguments(**vars(parser.parse_args(argv)))


def process_age_s() -> float:
    """Seconds since the kernel started this process, imports included (resolution 10 ms)."""
    fields = Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()
    started_ticks = int(fields[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started_ticks / os.sysconf("SC_CLK_TCK")


def report(env_steps: int, episode_return_mean: float) -> None:
    """Print one iteration; the harness measures CPU seconds from outside, for the whole tree."""
    line = {
        "env_steps": env_steps,
        "wall_s": round(process_age_s(), 4),
        "episode_return_mean": episode_return_mean if math.isfinite(episode_return_mean) else None,
    }
    print(json.dumps(line), flush=True)
