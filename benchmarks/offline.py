"""Updates a second of offline learners, ours beside d3rlpy's: `python -m benchmarks offline`.

The same Pendulum transitions, minibatches of 256, two hidden layers of 256, one torch thread; ours
by `Pipeline`, theirs by `fit`, without loggers. The first epoch is left out. Pairs run in turn, the
order turning round; ratios are of the same pair. Both value 30 actions of a row in CQL; theirs
takes the gradient through all of them, ours as it is configured by default, and in `cql-all`
through all.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.environments import ENVIRONMENTS, ROOT, ensure
from benchmarks.peers.matched import OFFLINE as MATCHED
from pipelines import config_class

CQL = {"lagrange": True, "num_samples": MATCHED.num_samples}


@dataclass(frozen=True)
class Work:
    """What both do.

    Attributes:
        algo: by which algorithm.
        wanted: least ratio of ours to theirs.
        updates: of an epoch, a second or several.
        ours: settings that make ours theirs.
    """

    algo: str
    wanted: float
    updates: int
    ours: dict[str, Any]


WORKS = {
    "bc": Work("bc", 3.0, 500, {}),
    "cql": Work("cql", 2.0, 30, {"conservative": CQL, "actor_lr": MATCHED.lr}),
    "cql-all": Work(
        "cql",
        1.0,
        30,
        {"conservative": {**CQL, "gradient_samples": None}, "actor_lr": MATCHED.lr},
    ),
}


@dataclass(frozen=True)
class Rate:
    """What one contestant's run gave: medians over its epochs but the first."""

    updates_per_s: float
    cpu_ms: float

    @classmethod
    def of(cls, updates: int, epochs: list[dict[str, float]]) -> "Rate":
        """From seconds of each epoch."""
        wall, cpu = (statistics.median(e[k] for e in epochs[1:]) for k in ("wall_s", "cpu_s"))
        return cls(updates / wall, 1e3 * cpu / updates)


def log_data(storage: Path) -> Path:
    """Transitions of uniform actions on Pendulum, in a lake and as arrays."""
    config = config_class("sac")(
        env=MATCHED.env,
        learning_starts_rows=10**9,
        rollout={"num_envs": 16, "fragment_steps": 200},
        stop={"env_steps": MATCHED.rows},
        checkpoint={"at_end": False},
    )
    with config.build(debug=True, storage=storage, name="data") as pipeline:
        for _ in pipeline.stream():
            pass
    from offline.lake import Lake
    from offline.trajectories import DataSpec, load_trajectories

    data = load_trajectories(Lake(storage / "lake"), DataSpec())
    path = storage / "data.npz"
    ends = data.truncated.astype(np.float32)
    np.savez(
        path,
        obs=data.obs.astype(np.float32),
        action=data.action.astype(np.float32),
        reward=data.reward.astype(np.float32),
        terminated=data.terminated.astype(np.float32),
        truncated=ends,
    )
    return path


def ours(work: str, storage: Path, *, epochs: int, updates: int) -> Rate:
    """In a process of its own: `python -m benchmarks.offline --run ...`."""
    command = [sys.executable, "-m", "benchmarks.offline", "--run", work, str(storage)]
    return _measured([*command, str(epochs), str(updates)], updates)


def theirs(work: str, storage: Path, *, epochs: int, updates: int) -> Rate:
    """By d3rlpy's own environment."""
    python = str(ensure(ENVIRONMENTS["d3rlpy"]))
    module, data = "benchmarks.peers.offline_d3rlpy", str(storage / "data.npz")
    command = [python, "-m", module, WORKS[work].algo, data]
    return _measured([*command, "--epochs", str(epochs), "--updates", str(updates)], updates)


def _measured(command: list[str], updates: int) -> Rate:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True
    )
    return Rate.of(updates, json.loads(done.stdout.splitlines()[-1])["epochs"])


def run_ours(work: str, storage: Path, *, epochs: int, updates: int) -> list[dict[str, float]]:
    """Seconds of each iteration of a run on the data."""
    config = config_class(WORKS[work].algo)(
        env=MATCHED.env,
        gamma=MATCHED.gamma,
        minibatch_rows=MATCHED.minibatch_rows,
        model={"hidden": MATCHED.hidden, "activation": "relu"},
        optim={"lr": MATCHED.lr},
        offline={"lake": str(storage / "lake"), "updates_per_iteration": updates},
        trace={"enabled": False},
        reporting={"tensorboard": False},
        **WORKS[work].ours,
    )
    found = []
    with tempfile.TemporaryDirectory() as own, config.build(debug=True, storage=own) as pipeline:
        for _ in range(epochs):
            start = time.perf_counter(), time.process_time()
            pipeline.train()
            spent = time.perf_counter() - start[0], time.process_time() - start[1]
            found.append({"wall_s": spent[0], "cpu_s": spent[1]})
    return found


def compare(works: list[str], *, repeats: int, epochs: int) -> list[dict[str, Any]]:
    """A row for each work: both rates, and the ratio of each pair."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        storage = Path(folder)
        log_data(storage)
        for work in works:
            pairs: list[tuple[Rate, Rate]] = []
            for i in range(repeats):
                found: dict[str, Rate] = {}
                order = ("ours", "theirs") if i % 2 == 0 else ("theirs", "ours")
                for who in order:
                    run = ours if who == "ours" else theirs
                    found[who] = run(work, storage, epochs=epochs, updates=WORKS[work].updates)
                pairs.append((found["ours"], found["theirs"]))
                print(work, i, pairs[-1], flush=True)
            rows.append(_row(work, pairs))
    return rows


def _row(work: str, pairs: list[tuple[Rate, Rate]]) -> dict[str, Any]:
    ratios = [a.updates_per_s / b.updates_per_s for a, b in pairs]
    medians = {
        f"{who}_{name}": round(statistics.median(getattr(p[k], name) for p in pairs), 2)
        for k, who in enumerate(("ours", "d3rlpy"))
        for name in ("updates_per_s", "cpu_ms")
    }
    ratio = round(statistics.median(ratios), 2)
    about = {"work": work, **medians, "ratio": ratio, "pairs": [round(r, 2) for r in ratios]}
    wanted = WORKS[work].wanted
    return about | {"wanted": wanted, "verdict": "ok" if ratio >= wanted else "MISSED"}


def text_of(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown page."""
    lines = [
        f"# Offline learners beside d3rlpy, {date.today().isoformat()}",
        "",
        "`python -m benchmarks offline`: updates a second at the same data, minibatch (256) and "
        "net (256, 256), one torch thread; medians, and the ratio of each pair run in turn.",
        "",
        "| work | ours | d3rlpy | ratio | pairs | CPU ms, ours | d3rlpy | wanted | |",
        "|---|---:|---:|---:|---|---:|---:|---:|---|",
    ]
    for row in rows:
        cells = [row["work"], row["ours_updates_per_s"], row["d3rlpy_updates_per_s"], row["ratio"]]
        cells += [", ".join(map(str, row["pairs"])), row["ours_cpu_ms"], row["d3rlpy_cpu_ms"]]
        cells += [f"≥ {row['wanted']:g}", row["verdict"]]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join([*lines, ""])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of `python -m benchmarks offline`."""
    parser.add_argument("--work", nargs="+", choices=sorted(WORKS), default=sorted(WORKS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--out", type=Path, help="folder for the page and the numbers")


def main(args: argparse.Namespace) -> int:
    """Compare, print, and write where asked to."""
    rows = compare(args.work, repeats=args.repeats, epochs=args.epochs)
    print(text_of(rows))
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        name = f"offline-{date.today().isoformat()}"
        (args.out / f"{name}.md").write_text(text_of(rows))
        (args.out / f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    flag, which, where, count, size = sys.argv[1:]
    assert flag == "--run"
    print(
        json.dumps({"epochs": run_ours(which, Path(where), epochs=int(count), updates=int(size))})
    )
