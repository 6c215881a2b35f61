"""One comparison from its description: run, summed up, printed, written to docs/benchmarks."""

import argparse
import dataclasses
import datetime
import json
import math
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.contestants import Record, Slot, Task, measure, run_once, said, schedule
from benchmarks.ours import compile_project
from benchmarks.peers import environments
from benchmarks.summary import markdown_report, plain_report, summarize, verdicts
from benchmarks.workload import Contestant, Workload

SEEDS_HELP = "a contestant's k-th run uses the k-th; ours runs once beside each peer"


def add_arguments(parser: argparse.ArgumentParser, workload: Workload) -> None:
    names = ",".join(contestant.name for contestant in workload.everyone)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seeds", default="1,2,3,4,5,6,7,8,9", help=SEEDS_HELP)
    parser.add_argument(
        "--env-steps", type=int, default=workload.env_steps, help="of the steady runs"
    )
    parser.add_argument(
        "--max-env-steps",
        type=int,
        default=workload.max_env_steps,
        help=f"to reach a return of {workload.target_return:g}",
    )
    parser.add_argument("--contestants", default=names, help=f"of {names}")
    parser.add_argument("--measures", default="steady,time", help="of steady,time")
    parser.add_argument("--no-warmup", action="store_true", help="no short unmeasured run first")
    parser.add_argument(
        "--out",
        type=Path,
        help=f"path of the .json and .md written (default docs/benchmarks/{workload.name}-DATE)",
    )


def main(args: argparse.Namespace, workload: Workload) -> int:
    """Measure, print and write; 0 also when a target is missed, since missing is a finding."""
    chosen = select(workload, args.contestants)
    kinds = measures(args.measures)
    prepare(workload, chosen, warmup=not args.no_warmup)
    records = measure_all(workload, args, chosen, kinds=kinds)
    rows = summarize([(c.name, c.label) for c in chosen], records)
    found = verdicts(rows, workload.targets)
    print("\n" + plain_report(rows, found, records))
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    document = {
        "date": today,
        "machine": machine(),
        "matched": dataclasses.asdict(workload.matched),
        "overrides": dict(workload.overrides),
        "arguments": {k: v for k, v in vars(args).items() if isinstance(v, str | int | float)},
        "versions": {c.peer: peer_versions(c) for c in chosen if c.peer},
        "summary": [dataclasses.asdict(row) for row in rows],
        "verdicts": [dataclasses.asdict(verdict) for verdict in found],
        "records": [dataclasses.asdict(record) for record in records],
    }
    out = args.out or environments.ROOT / "docs" / "benchmarks" / f"{workload.name}-{today}"
    title = f"{workload.title}, {today}"
    write(out, document, markdown_report(rows, found, records, title=title))
    return 0


def select(workload: Workload, names: str) -> list[Contestant]:
    """The contestants named, in the workload's order.

    Raises:
        ValueError: a name is none of theirs.
    """
    wanted = {name.strip() for name in names.split(",") if name.strip()}
    unknown = wanted - {contestant.name for contestant in workload.everyone}
    if unknown:
        known = ", ".join(contestant.name for contestant in workload.everyone)
        raise ValueError(f"--contestants has {sorted(unknown)}; there are {known}.")
    return [contestant for contestant in workload.everyone if contestant.name in wanted]


def prepare(workload: Workload, chosen: Sequence[Contestant], *, warmup: bool) -> None:
    """Make the peers' environments; one short run each brings every file into the page cache."""
    compile_project()
    for peer in sorted({contestant.peer for contestant in chosen if contestant.peer}):
        environments.ensure(environments.ENVIRONMENTS[peer])
    for contestant in chosen if warmup else ():
        print(f"warming up {contestant.label}", flush=True)
        task = Task(workload, workload.trial_env_steps, stop_return=None, seed=0)
        _, run = run_once(contestant, task)
        if run.exit_code != 0:
            print(f"  exit code {run.exit_code}: {said(run)}", flush=True)


def measure_all(
    workload: Workload,
    args: argparse.Namespace,
    chosen: Sequence[Contestant],
    *,
    kinds: Sequence[str],
) -> list[Record]:
    seeds = [int(seed) for seed in args.seeds.split(",")]
    slots = slots_for(workload, chosen, args.repeats)
    records = []
    for kind in kinds:
        for slot in slots:
            seed = seeds[slot.run % len(seeds)]
            limits = (args.env_steps, args.max_env_steps)
            task = task_for(workload, slot.contestant, kind=kind, seed=seed, limits=limits)
            records.append(measure(slot, task, kind=kind))
            print(progress_line(records[-1]), flush=True)
    return records


def task_for(
    workload: Workload, contestant: Contestant, *, kind: str, seed: int, limits: tuple[int, int]
) -> Task:
    """A steady run of so many env steps, fewer for the slow, or one to the return."""
    env_steps, max_env_steps = limits
    if kind == "steady":
        return Task(workload, min(env_steps, contestant.max_env_steps or env_steps), None, seed)
    return Task(workload, max_env_steps, workload.target_return, seed, workload.time_limit_s)


def measures(names: str) -> list[str]:
    """The kinds of run asked for.

    Raises:
        ValueError: a name is neither steady nor time.
    """
    kinds = [name.strip() for name in names.split(",")]
    if not set(kinds) <= {"steady", "time"}:
        raise ValueError(f"--measures is {names!r}; it takes steady, time or both with a comma.")
    return kinds


def slots_for(workload: Workload, chosen: Sequence[Contestant], repeats: int) -> list[Slot]:
    """The schedule of the chosen; without ours the peers simply take turns."""
    ours = workload.ours
    peers = [contestant for contestant in chosen if contestant in workload.peers]
    information = [contestant for contestant in chosen if contestant in workload.information]
    if ours in chosen and peers:
        return schedule(ours, peers, information, repeats)
    return schedule(ours, [], list(chosen), repeats)


def progress_line(record: Record) -> str:
    if record.error:
        return f"{record.contestant} {record.measure} failed: {record.error}"
    if record.steady:
        figure = f"{record.steady.median_steps_per_s:,.0f} env steps/s"
    elif record.time_to_return_s is not None:
        figure = f"{record.time_to_return_s:.1f} s after {record.env_steps:,} env steps"
    else:
        figure = f"return {record.last_return_mean} after {record.env_steps:,} env steps"
    others = f"others used {record.other_cores:.2f} cores"
    return f"{record.contestant} {record.measure} seed {record.seed}: {figure}; {others}"


def machine() -> dict[str, Any]:
    model = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "cpu": model[0] if model else platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "kernel": platform.release(),
    }


def peer_versions(contestant: Contestant) -> dict[str, str]:
    """The packages that matter, as pip resolved them."""
    assert contestant.peer is not None
    found = environments.versions(environments.ENVIRONMENTS[contestant.peer])
    names = ("torch", "gymnasium", "numpy", "stable_baselines3", "ray")
    return {name: found[name] for name in names if name in found}


def write(out: Path, document: dict[str, Any], markdown: str) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    stem = out.name.removesuffix(".json").removesuffix(".md")
    json_path, markdown_path = out.with_name(stem + ".json"), out.with_name(stem + ".md")
    json_path.write_text(json.dumps(finite(document), indent=1, allow_nan=False) + "\n")
    markdown_path.write_text(markdown + "\n")
    print(f"\nwrote {json_path} and {markdown_path}")


def finite(value: Any) -> Any:
    """The same with infinities and NaN as None, which JSON can say."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
