"""Seconds from a Ray that is up to the first update on a million logged rows, all loaded at once.

    python -m benchmarks.first_update [--rows N] [--width W] [--algos bc iql] [--repeats R]

Each repeat is a process of its own. Printed are medians, with CPU seconds of that process beside.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.wide_lake import write_rows
from offline.storage import Storage
from offline.tables import create_tables

FILE_ROWS = 25_000

CHILD = """
import json, sys, time
from pipelines import Pipeline, config_class
from pipelines.ray_session import start_ray, stop_ray

algo, storage = sys.argv[1:]
config = config_class(algo)(
    env="lake",
    minibatch_rows=256,
    offline={"load": "memory", "updates_per_iteration": 1},
    reporting={"tensorboard": False},
    checkpoint={"at_end": False},
)
start_ray()
began, cpu = time.perf_counter(), time.process_time()
with Pipeline(config, storage=storage) as pipeline:
    assert pipeline.train()["grad_steps"] > 0
    print(json.dumps([time.perf_counter() - began, time.process_time() - cpu]))
stop_ray()
"""


def main() -> None:
    """Write the rows once, then measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=17, help="of observations, as HalfCheetah's")
    parser.add_argument("--algos", nargs="+", default=["bc", "iql"])
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        storage = Storage.at(Path(folder) / "lake")
        create_tables(storage)
        files = max(1, given.rows // FILE_ROWS)
        write_rows(storage, files=files, file_rows=FILE_ROWS, width=given.width)
        for algo in given.algos:
            seconds = [_measured(algo, folder) for _ in range(given.repeats)]
            wall, cpu = (statistics.median(each) for each in zip(*seconds, strict=True))
            print(
                f"{algo}: {files * FILE_ROWS:,} rows of {given.width} numbers: first update "
                f"{wall:.1f} s after Ray is up, {cpu:.1f} CPU s"
            )


def _measured(algo: str, folder: str) -> tuple[float, float]:
    command = [sys.executable, "-c", CHILD, algo, folder]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    wall, cpu = json.loads(done.stdout.splitlines()[-1])
    return wall, cpu


if __name__ == "__main__":
    main()
