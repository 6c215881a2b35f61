"""PPO CartPole-v1 at matched settings, ours and the peers in turn: `python -m benchmarks ppo`."""

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

from benchmarks.contestants import (
    FOR_INFORMATION,
    OURS,
    PEERS,
    Contestant,
    Record,
    Slot,
    Task,
    measure,
    run_once,
    said,
    schedule,
)
from benchmarks.ours import PPO_OVERRIDES, compile_project
from benchmarks.peers import environments
from benchmarks.peers.reporting import MATCHED
from benchmarks.summary import markdown_report, plain_report, summarize, verdicts

SEEDS_HELP = "a contestant's k-th run uses the k-th; ours runs once beside each peer"
EVERYONE = (OURS, *PEERS, *FOR_INFORMATION)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    names = [contestant.name for contestant in EVERYONE]
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seeds", default="1,2,3,4,5,6,7,8,9", help=SEEDS_HELP)
    parser.add_argument("--env-steps", type=int, default=150_000, help="of the steady runs")
    parser.add_argument("--target-return", type=float, default=450.0)
    parser.add_argument("--max-env-steps", type=int, default=500_000, help="to reach the return")
    parser.add_argument("--contestants", default=",".join(names), help="of " + ",".join(names))
    parser.add_argument("--measures", default="steady,time", help="of steady,time")
    parser.add_argument("--no-warmup", action="store_true", help="no short unmeasured run first")
    parser.add_argument(
        "--out",
        type=Path,
        help="path of the .json and .md written (default docs/benchmarks/ppo-DATE)",
    )


def main(args: argparse.Namespace) -> int:
    """Measure, print and write; 0 also when a target is missed, since missing is a finding."""
    chosen = select(args.contestants)
    prepare(chosen, warmup=not args.no_warmup)
    records = measure_all(args, chosen)
    rows = summarize([(c.name, c.label) for c in chosen], records)
    found = verdicts(rows)
    print("\n" + plain_report(rows, found, records))
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    out = args.out or environments.ROOT / "docs" / "benchmarks" / f"ppo-{today}"
    document = {
        "date": today,
        "machine": machine(),
        "matched": dataclasses.asdict(MATCHED),
        "overrides": dict(PPO_OVERRIDES),
        "arguments": {k: v for k, v in vars(args).items() if isinstance(v, str | int | float)},
        "versions": {c.peer: peer_versions(c) for c in chosen if c.peer},
        "summary": [dataclasses.asdict(row) for row in rows],
        "verdicts": [dataclasses.asdict(verdict) for verdict in found],
        "records": [dataclasses.asdict(record) for record in records],
    }
    write(out, document, markdown_report(rows, found, records, title=f"PPO CartPole-v1, {today}"))
    return 0


def select(names: str) -> list[Contestant]:
    """The contestants named, in our order.

    Raises:
        ValueError: a name is none of theirs.
    """
    wanted = {name.strip() for name in names.split(",") if name.strip()}
    unknown = wanted - {contestant.name for contestant in EVERYONE}
    if unknown:
        known = ", ".join(contestant.name for contestant in EVERYONE)
        raise ValueError(f"--contestants has {sorted(unknown)}; there are {known}.")
    return [contestant for contestant in EVERYONE if contestant.name in wanted]


def prepare(chosen: Sequence[Contestant], *, warmup: bool) -> None:
    """Make the peers' environments; one short run each brings every file into the page cache."""
    compile_project()
    for peer in sorted({contestant.peer for contestant in chosen if contestant.peer}):
        environments.ensure(environments.ENVIRONMENTS[peer])
    for contestant in chosen if warmup else ():
        print(f"warming up {contestant.label}", flush=True)
        task = Task(env_steps=2 * MATCHED.train_rows, stop_return=None, seed=0)
        _, run = run_once(contestant, task)
        if run.exit_code != 0:
            print(f"  exit code {run.exit_code}: {said(run)}", flush=True)


def measure_all(args: argparse.Namespace, chosen: Sequence[Contestant]) -> list[Record]:
    seeds = [int(seed) for seed in args.seeds.split(",")]
    slots = slots_for(chosen, args.repeats)
    records = []
    for kind in measures(args.measures):
        for slot in slots:
            seed = seeds[slot.run % len(seeds)]
            task = (
                Task(args.env_steps, None, seed)
                if kind == "steady"
                else Task(args.max_env_steps, args.target_return, seed)
            )
            record = measure(slot, task, kind=kind, target_return=args.target_return)
            records.append(record)
            print(progress_line(record), flush=True)
    return records


def measures(names: str) -> list[str]:
    """The kinds of run asked for.

    Raises:
        ValueError: a name is neither steady nor time.
    """
    kinds = [name.strip() for name in names.split(",")]
    if not set(kinds) <= {"steady", "time"}:
        raise ValueError(f"--measures is {names!r}; it takes steady, time or both with a comma.")
    return kinds


def slots_for(chosen: Sequence[Contestant], repeats: int) -> list[Slot]:
    """The schedule of the chosen; without ours the peers simply take turns."""
    peers = [contestant for contestant in chosen if contestant in PEERS]
    information = [contestant for contestant in chosen if contestant in FOR_INFORMATION]
    if OURS in chosen and peers:
        return schedule(OURS, peers, information, repeats)
    return schedule(OURS, [], list(chosen), repeats)


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
