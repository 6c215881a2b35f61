"""What every peer script shares: arguments, and one JSON line per iteration."""

import argparse
import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Arguments:
    """A peer script's command line, as the harness writes it."""

    env_steps: int
    stop_return: float
    seed: int
    threads: int
    vectorization: str
    num_envs: int
    num_runners: int
    num_learners: int


def parse_arguments(argv: list[str] | None = None) -> Arguments:
    """Read the options every peer script takes; a stop return of inf means run all the steps."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--env-steps", type=int, default=150_000)
    parser.add_argument("--stop-return", type=float, default=math.inf)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="torch threads of the learner")
    parser.add_argument("--vectorization", choices=("sync", "vector_entry_point"), default="sync")
    parser.add_argument(
        "--num-envs", type=int, default=1, help="stepping together; PPO's are matched"
    )
    parser.add_argument("--num-runners", type=int, default=1, help="RLlib's; 0 is in its driver")
    parser.add_argument("--num-learners", type=int, default=0, help="RLlib's; 0 is in its driver")
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


def new_returns(runners: Mapping[str, Any]) -> list[float]:
    """The mean return of the episodes of an RLlib iteration, once for each of them.

    RLlib's own mean covers one iteration; the comparison wants that of the latest episodes. Where
    none ended the number is absent or NaN.
    """
    num_episodes = float(runners.get("num_episodes", 0.0))
    mean = float(runners.get("episode_return_mean", math.nan))
    return [mean] * int(num_episodes) if math.isfinite(num_episodes * mean) else []
