"""`python -m benchmarks.queries`: seconds and peak memory of each query of docs/sql.md, at scale.

Builds a lake of CartPole-like rows with the writer that runs use (64 k rows a file), then asks
each query in a process of its own, whose peak resident memory is what is printed.
"""

import argparse
import datetime as dt
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from offline.lake import Lake
from offline.schemas import CONSUMPTION, EPISODES, FAILURES, METRICS, RUNS, STEPS, TableSchema
from offline.storage import Storage
from offline.tables import create_tables
from offline.writer import LakeWriter

DOCS = Path(__file__).parents[1] / "docs" / "sql.md"
FILE_ROWS = 65_536
ENVS, FRAGMENT_STEPS = 32, 64
FRAGMENT_ROWS = ENVS * FRAGMENT_STEPS
FRAGMENTS = FILE_ROWS // FRAGMENT_ROWS
RUNS_IN_LAKE = 10
RUN = "run-3"
START = dt.datetime(2026, 5, 1, tzinfo=dt.UTC)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.queries", description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--memory", default="1GiB")
    parser.add_argument("--lake", type=Path, help="use or make it here and keep it")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.one is not None:
        print(json.dumps(measured(args.lake, args.one, args.memory)))
        return 0
    folder = args.lake or Path(tempfile.mkdtemp(prefix="millrace-queries-")) / "lake"
    try:
        if not Lake(folder).exists():
            build(folder, rows=args.rows)
        report(folder, memory=args.memory)
    finally:
        if args.lake is None:
            shutil.rmtree(folder.parent)
    return 0


def report(folder: Path, *, memory: str) -> None:
    steps = Lake(folder).steps()
    print(f"{steps.count():,} steps in {len(steps.files())} files, memory limit {memory}\n")
    print("| query | s | peak MiB | rows |\n|---|---|---|---|")
    for name in queries():
        command = [sys.executable, "-m", "benchmarks.queries", "--one", name]
        command += ["--lake", str(folder), "--memory", memory]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError(f"query {name!r} failed:\n{done.stderr}")
        found = json.loads(done.stdout.splitlines()[-1])
        print(f"| {name} | {found['s']:.2f} | {found['peak_mib']} | {found['rows']} |", flush=True)


def queries() -> dict[str, str]:
    found = re.findall(r"<!-- query: (.+?) -->\n```sql\n(.*?)```", DOCS.read_text(), re.DOTALL)
    return {name: text.replace("'fast'", f"'{RUN}'") for name, text in found}


def measured(folder: Path, name: str, memory: str) -> dict[str, float]:
    lake = Lake(folder)
    # What is loaded once in a session belongs to no query.
    lake.sql("SELECT count(*) FROM runs")
    started = time.perf_counter()
    rows = lake.sql(queries()[name], memory=memory).num_rows
    took = time.perf_counter() - started
    status = Path("/proc/self/status").read_text()
    peak = re.search(r"VmHWM:\s+(\d+)", status)
    if peak is None:
        raise ValueError("/proc/self/status has no VmHWM; this needs Linux.")
    return {"s": took, "peak_mib": int(peak.group(1)) // 1024, "rows": rows}


def build(folder: Path, *, rows: int) -> None:
    """A lake of about so many steps in RUNS_IN_LAKE runs."""
    storage = Storage.at(folder)
    create_tables(storage)
    files = -(-rows // RUNS_IN_LAKE // FILE_ROWS)
    rng = np.random.default_rng(0)
    started = time.perf_counter()
    for number in range(RUNS_IN_LAKE):
        run_id = f"run-{number}"
        with LakeWriter(storage, f"{run_id}/0") as writer:
            for batch in batches(run_id, number, files=files, rng=rng):
                writer.write(batch)
    took = time.perf_counter() - started
    print(f"built {files * FILE_ROWS * RUNS_IN_LAKE:,} steps in {took:.0f} s")


def batches(
    run_id: str, seed: int, *, files: int, rng: np.random.Generator
) -> Iterator[dict[str, pa.Table]]:
    """Batches of one data file of steps each, with what a run logs beside them."""
    event = {"run_id": run_id, "session": 0, "env": "CartPole-v1", "seed": seed}
    config = json.dumps({"rollout": {"max_policy_lag": 1}})
    yield {RUNS.name: listed(RUNS, [event | {"status": "running", "config": config, "at": START}])}
    for number in range(files):
        first = number * FRAGMENTS
        steps = step_columns(run_id, first, rng)
        yield {
            STEPS.name: whole(STEPS, steps),
            EPISODES.name: whole(EPISODES, episode_columns(run_id, seed, steps)),
            CONSUMPTION.name: listed(CONSUMPTION, consumed(run_id, first)),
            METRICS.name: listed(METRICS, metrics(run_id, number)),
        }
    failed = {"run_id": run_id, "session": 0, "kind": "env", "count": 1, "message": "boom"}
    ended = event | {"status": "finished", "at": START + dt.timedelta(hours=9)}
    yield {
        RUNS.name: listed(RUNS, [ended]),
        FAILURES.name: listed(FAILURES, [failed | {"at": START}]),
    }


def step_columns(run_id: str, first: int, rng: np.random.Generator) -> dict[str, object]:
    """The rows of FRAGMENTS fragments, env-major; an episode lasts 10 to 500 steps, by its env."""
    fragment = np.repeat(np.arange(first, first + FRAGMENTS), FRAGMENT_ROWS)
    env = np.tile(np.repeat(np.arange(ENVS), FRAGMENT_STEPS), FRAGMENTS)
    clock = fragment * FRAGMENT_STEPS + np.tile(np.arange(FRAGMENT_STEPS), FRAGMENTS * ENVS)
    length = 10 + (env * 97) % 491
    t, number = clock % length, clock // length
    ends = t == length - 1
    is_last = ends | (clock % FRAGMENT_STEPS == FRAGMENT_STEPS - 1)
    obs = rng.standard_normal((FILE_ROWS, 4), dtype=np.float32).astype(np.float64)
    after = rng.standard_normal((FILE_ROWS, 4), dtype=np.float32).astype(np.float64)
    names = np.char.add(np.char.add("0-0-", env.astype(str)), "-")
    return {
        "run_id": np.full(FILE_ROWS, run_id),
        "session": np.zeros(FILE_ROWS, np.int32),
        "fragment_id": fragment,
        "worker_id": np.zeros(FILE_ROWS, np.int32),
        "env_id": env.astype(np.int32),
        "module_id": np.full(FILE_ROWS, "default"),
        "episode_id": np.char.add(names, np.char.zfill(number.astype(str), 6)),
        "t": t.astype(np.int32),
        "space": np.full(FILE_ROWS, "0123456789ab"),
        "obs": lists(obs),
        "action": lists(rng.integers(0, 2, (FILE_ROWS, 1)).astype(np.float64)),
        "reward": np.ones(FILE_ROWS),
        "terminated": ends,
        "truncated": np.zeros(FILE_ROWS, bool),
        "aborted": np.zeros(FILE_ROWS, bool),
        "is_last": is_last,
        "final_obs": lists(after, valid=is_last),
        "logp": np.log(rng.uniform(0.2, 0.9, FILE_ROWS)).astype(np.float32),
        "value": (length - t + rng.standard_normal(FILE_ROWS)).astype(np.float32),
        "policy_version": fragment // 2,
        "sampled_at": np.datetime64(START.replace(tzinfo=None), "us")
        + (clock * 1_500_000).astype("timedelta64[us]"),
    }


def episode_columns(run_id: str, seed: int, steps: dict[str, object]) -> dict[str, object]:
    ends = np.flatnonzero(np.asarray(steps["terminated"]))

    def last(name: str) -> np.ndarray:
        return np.asarray(steps[name])[ends]

    number = len(ends)
    length = last("t").astype(np.int64) + 1
    return {
        "run_id": np.full(number, run_id),
        "session": np.zeros(number, np.int32),
        "episode_id": last("episode_id"),
        "kind": np.full(number, "train"),
        "env_id": last("env_id"),
        "worker_id": last("worker_id"),
        "seed": np.full(number, seed, np.int64),
        "return": length.astype(np.float64),
        "length": length,
        "terminated": np.ones(number, bool),
        "truncated": np.zeros(number, bool),
        "aborted": np.zeros(number, bool),
        "policy_version_first": last("policy_version"),
        "policy_version_last": last("policy_version"),
        "fragment_first": last("fragment_id"),
        "fragment_last": last("fragment_id"),
        "ended_at": last("sampled_at"),
    }


def consumed(run_id: str, first: int) -> list[dict[str, object]]:
    return [
        {"run_id": run_id, "session": 0, "fragment_id": fragment, "rank": 0}
        | {"rows": FRAGMENT_ROWS, "policy_version": fragment // 2, "lag": fragment % 2}
        | {"learner_version": fragment // 2 + fragment % 2, "grad_steps": fragment, "at": START}
        for fragment in range(first, first + FRAGMENTS)
    ]


def metrics(run_id: str, number: int) -> list[dict[str, object]]:
    return [
        {"run_id": run_id, "session": 0, "iteration": number * 16 + i, "key": key, "value": 1.0 * i}
        for i in range(16)
        for key in ("episode_return_mean", "learner/entropy", "learner/policy_loss")
    ]


def lists(values: np.ndarray, valid: np.ndarray | None = None) -> pa.Array:
    """[rows, n] as lists; null where not valid."""
    rows, width = values.shape
    sizes = np.full(rows, width) if valid is None else np.where(valid, width, 0)
    kept = values if valid is None else values[valid]
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    mask = None if valid is None else pa.array(~valid)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(kept.reshape(-1)), mask=mask)


def whole(table: TableSchema, columns: dict[str, object]) -> pa.Table:
    """A table of the schema; columns that are not given are null."""
    rows = len(columns["run_id"])  # type: ignore[arg-type]
    arrays = []
    for field in table.schema:
        given = columns.get(field.name)
        if given is None:
            arrays.append(pa.nulls(rows, field.type))
        else:
            array = given if isinstance(given, pa.Array) else pa.array(given)
            arrays.append(array.cast(field.type))
    return pa.Table.from_arrays(arrays, schema=table.schema)


def listed(table: TableSchema, rows: list[dict[str, object]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=table.schema)


if __name__ == "__main__":
    sys.exit(main())
