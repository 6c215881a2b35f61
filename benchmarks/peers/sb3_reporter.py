"""How the Stable-Baselines3 scripts train and report, whatever the algorithm."""

from collections.abc import Callable
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback  # type: ignore[import-not-found]

from benchmarks.peers.reporting import Arguments, parse_arguments, report


class Reporter(BaseCallback):  # type: ignore[misc]
    """Reports between updates, every so many env steps, and ends training at the return."""

    def __init__(self, stop_return: float, *, period_steps: int) -> None:
        super().__init__()
        self.stop_return = stop_return
        self.period_steps = period_steps
        self.reported_steps = 0
        self.reached = False

    def report_iteration(self) -> None:
        episodes = self.model.ep_info_buffer
        mean = sum(e["r"] for e in episodes) / len(episodes) if episodes else float("nan")
        self.reached = mean >= self.stop_return
        self.reported_steps = self.model.num_timesteps
        report(self.reported_steps, mean)

    def _on_rollout_start(self) -> None:
        if self.model.num_timesteps >= self.reported_steps + self.period_steps:
            self.report_iteration()

    def _on_step(self) -> bool:
        return not self.reached

    def _on_training_end(self) -> None:
        if self.model.num_timesteps > self.reported_steps:
            self.report_iteration()


def train(build: Callable[[Arguments], Any], *, period_steps: int) -> None:
    """Train what `build` makes of the command line, reporting every `period_steps`."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    reporter = Reporter(args.stop_return, period_steps=period_steps)
    build(args).learn(args.env_steps, callback=reporter, log_interval=None)
