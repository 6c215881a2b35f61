"""How the RLlib scripts train and report, whatever the algorithm."""

import os
from collections import deque
from typing import Any

import ray
import torch
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

from benchmarks.peers.matched import ASYNC
from benchmarks.peers.reporting import Arguments, new_returns, report

MIN_CORES = 4
"""What Ray is told at least: a core for each of its processes, though they share the real ones."""


def asynchronous(config: Any, args: Arguments) -> Any:
    """The part that IMPALA and APPO share: task, runners, and where the learner is."""
    return (
        config.environment(ASYNC.env)
        .env_runners(
            num_env_runners=args.num_runners,
            num_envs_per_env_runner=args.num_envs,
            gym_env_vectorize_mode=args.vectorization,
            # with it the runners' first pull did not return within 40 s on two busy cores
            use_env_runner_state_server=False,
        )
        .learners(num_learners=args.num_learners)
        .reporting(min_time_s_per_iteration=1)
    )


def shared_net() -> DefaultModelConfig:
    """One trunk for policy and value, as the tuned examples of IMPALA have it."""
    return DefaultModelConfig(
        fcnet_hiddens=list(ASYNC.hidden), fcnet_activation="tanh", vf_share_layers=True
    )


def train(config: Any, args: Arguments, *, window_episodes: int) -> None:
    """Train to the return or the steps; an iteration that sampled nothing is not reported."""
    cores = max(MIN_CORES, os.cpu_count() or 1)
    ray.init(num_cpus=cores, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    algorithm = config.debugging(seed=args.seed, log_level="ERROR").build_algo()
    torch.set_num_threads(args.threads)
    env_steps = 0
    returns: deque[float] = deque(maxlen=window_episodes)
    while env_steps < args.env_steps:
        runners = algorithm.train().get("env_runners", {})
        sampled = int(runners.get("num_env_steps_sampled_lifetime", 0))
        if sampled <= env_steps:
            continue
        env_steps = sampled
        returns.extend(new_returns(runners))
        mean = sum(returns) / len(returns) if returns else float("nan")
        report(env_steps, mean)
        if mean >= args.stop_return:
            break
    algorithm.stop()
    ray.shutdown()
