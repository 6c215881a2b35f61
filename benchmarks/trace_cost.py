"""Logging every step against logging none: the same streaming PPO, in turn. Target: 5 %."""

import argparse
import statistics

from benchmarks.debug_yardstick import HEADER, Mode, Result, cells, run_mode
from benchmarks.ours import compile_project
from benchmarks.tables import plain_table

PAIRS = (
    (
        Mode("lag 0, traced", False, {}),
        Mode("lag 0, not traced", False, {"trace.enabled": False}),
    ),
    (
        Mode("lag 1, traced", False, {"rollout.max_policy_lag": 1}),
        Mode("lag 1, not traced", False, {"rollout.max_policy_lag": 1, "trace.enabled": False}),
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--env-steps", type=int, default=300_000)
    parser.add_argument("--seed", type=int, default=1)


def main(args: argparse.Namespace) -> int:
    """Each pair `repeats` times, who goes first turning round; exit code 1 when none finished."""
    compile_project()
    finished = True
    for on, off in PAIRS:
        results: dict[str, list[Result | None]] = {on.label: [], off.label: []}
        for repeat in range(args.repeats):
            order = (on, off) if repeat % 2 else (off, on)
            for mode in order:
                results[mode.label].append(run_mode(mode, args.env_steps, args.seed))
        print(plain_table(HEADER, [cells(label, found) for label, found in results.items()]))
        pairs = zip(results[on.label], results[off.label], strict=True)
        ratios = [one.steps_per_s / other.steps_per_s for one, other in pairs if one and other]
        finished = finished and bool(ratios)
        if ratios:
            each = ", ".join(f"{ratio:.3f}" for ratio in ratios)
            print(f"{on.label} / {off.label}: median {statistics.median(ratios):.3f} ({each})\n")
    return 0 if finished else 1
