"""What our closed loop costs beside rollout and update, and whether that grows over a run."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.contestants import Task, run_once, said
from benchmarks.figures import Iteration, percentile
from benchmarks.ours import compile_project
from benchmarks.processes import Run, Sample
from benchmarks.tables import number_text, plain_table
from benchmarks.workload import Contestant
from benchmarks.workloads import PPO

HEADER = (
    "part of the run",
    "iterations",
    "iteration ms",
    "p90",
    "rollout ms",
    "update ms",
    "overhead ms",
    "p90",
    "RSS MB",
)


@dataclass(frozen=True)
class Part:
    """A stretch of a run; overhead is the iteration less rollout and update, in its own process."""

    label: str
    iterations: Sequence[Iteration]
    rss_bytes: float | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--env-steps", type=int, default=600_000)
    parser.add_argument("--seed", type=int, default=1)


def main(args: argparse.Namespace) -> int:
    """Lag 0 and lag 1, each once; exit code 1 when a run failed."""
    compile_project()
    lag_1 = next(contestant for contestant in PPO.information if contestant.name == "ours-lag1")
    codes = [report(contestant, args.env_steps, args.seed) for contestant in (PPO.ours, lag_1)]
    return max(codes)


def report(contestant: Contestant, env_steps: int, seed: int) -> int:
    """Run one contestant and print its parts."""
    iterations, run = run_once(contestant, Task(PPO, env_steps, None, seed, timeout_s=1800.0))
    print(f"\n{contestant.label}: {env_steps:,} env steps, others used {run.other_cores:.2f} cores")
    if run.exit_code != 0 or len(iterations) < 20:
        print(f"exit code {run.exit_code}, {len(iterations)} iterations: {said(run)}")
        return 1
    hidden = contestant.overrides.get("rollout.max_policy_lag", 0) != 0
    rows = [cells(part, rollout_hidden=hidden) for part in parts(iterations, run)]
    print(plain_table(HEADER, rows))
    if hidden:
        print("With a lag the rollout runs beside the update, so overhead = iteration - update.")
    return 0


def parts(iterations: Sequence[Iteration], run: Run) -> list[Part]:
    """First tenth (after five of warm-up), all, last tenth."""
    warm = iterations[5:]
    tenth = max(1, len(warm) // 10)
    chosen = (("first tenth", warm[:tenth]), ("all", warm), ("last tenth", warm[-tenth:]))
    return [Part(label, rows, mean_rss_bytes(run.samples, rows)) for label, rows in chosen]


def mean_rss_bytes(samples: Sequence[Sample], rows: Sequence[Iteration]) -> float | None:
    """The tree's mean memory over those iterations; pages shared between processes count twice."""
    low, high = rows[0].wall_s - 0.3, rows[-1].wall_s + 0.3
    inside = [sample.rss_bytes for sample in samples if low <= sample.wall_s <= high]
    return sum(inside) / len(inside) if inside else None


def overhead_ms(iteration: Iteration, *, rollout_hidden: bool) -> float:
    """Iteration time that neither update nor (unless it is hidden) rollout explains.

    Raises:
        ValueError: result.json lacks a stage; the message names those there are.
    """
    needed = ("iteration", "rollout", "update")
    lacking = [name for name in needed if name not in iteration.stages_s]
    if lacking:
        raise ValueError(f"result.json lacks time/{lacking[0]}_s; has {sorted(iteration.stages_s)}")
    stages = iteration.stages_s
    explained_s = stages["update"] + (0.0 if rollout_hidden else stages["rollout"])
    return 1000 * (stages["iteration"] - explained_s)


def cells(part: Part, *, rollout_hidden: bool) -> list[str]:
    over = [overhead_ms(row, rollout_hidden=rollout_hidden) for row in part.iterations]
    stage_ms = {
        name: [1000 * row.stages_s[name] for row in part.iterations]
        for name in ("iteration", "rollout", "update")
    }
    figures = (
        percentile(stage_ms["iteration"], 0.5),
        percentile(stage_ms["iteration"], 0.9),
        percentile(stage_ms["rollout"], 0.5),
        percentile(stage_ms["update"], 0.5),
        percentile(over, 0.5),
        percentile(over, 0.9),
    )
    rss = None if part.rss_bytes is None else part.rss_bytes / 1e6
    numbers = [number_text(value, 1) for value in figures]
    return [part.label, str(len(part.iterations)), *numbers, number_text(rss)]
