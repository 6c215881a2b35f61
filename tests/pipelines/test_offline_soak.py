"""Rows that stream by: memory stays what two windows take, however many rows there are."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from benchmarks.wide_lake import write_rows
from tests.offline.validation_kit import lake_at

FILES, FILE_ROWS, WIDTH = 40, 25_000, 64
TABLE_BYTES = FILES * FILE_ROWS * WIDTH * 8
"""Of the observations alone, as they are read."""


class Seen(NamedTuple):
    """Memory of a process that trains, resident, in bytes.

    Attributes:
        peak: the most there was.
        rss: after each iteration.
        streamed: whether the log said so.
    """

    peak: int
    rss: list[int]
    streamed: bool


CHILD = """
import json, logging, re, sys
from pathlib import Path
import torch
from pipelines import BCConfig, Pipeline
from rl_ops.row_memory import available_bytes

def resident(name):
    return int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

told = []
class Heard(logging.Handler):
    def emit(self, record):
        told.append(record.getMessage())
logging.getLogger("pipelines").addHandler(Heard())
logging.getLogger("pipelines").setLevel(logging.INFO)

storage, iterations, cap_bytes, offline = sys.argv[1:]
config = BCConfig(
    env="lake",
    model={"hidden": (8,)},
    minibatch_rows=250,
    offline={
        "max_memory_frac": int(cap_bytes) / available_bytes(torch.device("cpu")),
        "shuffle_rows": 25_000,
        "updates_per_iteration": 200,
        **json.loads(offline),
    },
    learner={"num_threads": 1},
    reporting={"tensorboard": False},
    checkpoint={"at_end": False},
)
rss = []
with Pipeline(config, storage=storage, debug=True) as pipeline:
    for _ in range(int(iterations)):
        pipeline.train()
        rss.append(resident("VmRSS"))
print(json.dumps([resident("VmHWM"), rss, any("streaming" in text for text in told)]))
"""


def seen(storage: Path, *, iterations: int, **offline: Any) -> Seen:
    """In a process of its own, for memory that was taken once stays a process's."""
    command = [sys.executable, "-c", CHILD, str(storage), str(iterations), str(TABLE_BYTES // 10)]
    done = subprocess.run(
        [*command, json.dumps(offline)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return Seen(*json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_table_that_does_not_fit_trains_in_memory_that_does_not_grow(tmp_path, capsys):
    storage = lake_at(tmp_path / "lake").storage
    write_rows(storage, files=FILES, file_rows=FILE_ROWS, width=WIDTH)
    one = seen(tmp_path, iterations=1, load="stream", where=[["run_id", "=", "first"]])
    all_ = seen(tmp_path, iterations=2 * FILES * FILE_ROWS // 50_000)
    held = seen(tmp_path, iterations=1, load="memory")
    third = len(all_.rss) // 3
    grown = max(all_.rss[-third:]) - max(all_.rss[:third])
    more, whole = all_.peak - one.peak, held.peak - one.peak
    with capsys.disabled():
        print(  # noqa: T201 - the figures are the point
            f"\n{TABLE_BYTES / 1e6:.0f} MB of observations: streamed {more / 1e6:.0f} MB more than "
            f"a file of them, {grown / 1e6:.0f} from the first third to the last; loaded at once "
            f"{whole / 1e6:.0f}"
        )
    assert all_.streamed
    assert not held.streamed
    assert grown < TABLE_BYTES / 25
    assert more < TABLE_BYTES / 10  # the memory that `auto` was given
    assert whole > TABLE_BYTES  # else it is not the rows that are measured
