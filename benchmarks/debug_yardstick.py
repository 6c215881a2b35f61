"""The same training in one process without Ray (`--debug`) and streaming: what Ray costs."""

import argparse
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contestants import said
from benchmarks.figures import parse_iterations, spread, steady
from benchmarks.ours import compile_project, result_lines, train_command
from benchmarks.peers.environments import ROOT
from benchmarks.processes import run_measured
from benchmarks.tables import plain_table, spread_text
from benchmarks.workloads import PPO

HEADER = ("mode", "env steps/s", "first result, s", "CPU s / 100k steps", "failed")


@dataclass(frozen=True)
class Mode:
    label: str
    debug: bool
    overrides: Mapping[str, object]


MODES = (
    Mode("one process, --debug", True, {}),
    Mode("streaming, lag 0", False, {}),
    Mode("streaming, lag 1", False, {"rollout.max_policy_lag": 1}),
)


@dataclass(frozen=True)
class Result:
    """One run's figures, or None where it failed."""

    steps_per_s: float
    first_result_s: float
    cpu_s_per_100k_steps: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--env-steps", type=int, default=150_000)
    parser.add_argument("--seed", type=int, default=1)


def main(args: argparse.Namespace) -> int:
    """The modes in turn, `repeats` times; exit code 1 when a mode never finished."""
    compile_project()
    results: dict[str, list[Result | None]] = {mode.label: [] for mode in MODES}
    for _ in range(args.repeats):
        for mode in MODES:
            results[mode.label].append(run_mode(mode, args.env_steps, args.seed))
    print(plain_table(HEADER, [cells(label, found) for label, found in results.items()]))
    return 0 if all(any(found) for found in results.values()) else 1


def run_mode(mode: Mode, env_steps: int, seed: int) -> Result | None:
    """Run once and print the figure; None with the end of stderr printed when it failed."""
    with tempfile.TemporaryDirectory(prefix="millrace-bench-") as folder:
        storage = Path(folder)
        command = train_command(
            PPO,
            storage=storage,
            seed=seed,
            stop={"env_steps": env_steps},
            overrides=mode.overrides,
            debug=mode.debug,
        )
        run = run_measured(command, cwd=ROOT)
        iterations = parse_iterations(result_lines(storage))
    if run.exit_code != 0 or not iterations:
        print(f"{mode.label}: exit code {run.exit_code}: {said(run)}", flush=True)
        return None
    figures = steady(iterations, run.samples)
    print(f"{mode.label}: {figures.median_steps_per_s:,.0f} env steps/s", flush=True)
    first_result_s = iterations[0].wall_s
    return Result(figures.median_steps_per_s, first_result_s, figures.cpu_s_per_100k_steps)


def cells(label: str, results: list[Result | None]) -> list[str]:
    known = [result for result in results if result]
    return [
        label,
        spread_text(spread([result.steps_per_s for result in known])),
        spread_text(spread([result.first_result_s for result in known]), 1),
        spread_text(spread([result.cpu_s_per_100k_steps for result in known]), 1),
        str(len(results) - len(known)),
    ]
