"""Rows that stream by: memory stays what two windows take, however many rows there are."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from gymnasium.spaces import Box

from offline import schemas as s
from offline.space_codec import SpaceCodec
from offline.spaces import register_space
from offline.steps import constant, table_of
from offline.writer import LakeWriter
from rl_ops import columns as c
from tests.offline.validation_kit import lake_at

FILES, FILE_ROWS, WIDTH, LENGTH = 40, 25_000, 64, 250
TABLE_BYTES = FILES * FILE_ROWS * WIDTH * 8
"""Of the observations alone, as they are read."""
OBS = Box(-1.0, 1.0, (WIDTH,), np.float32)
ACTION = Box(-1.0, 1.0, (2,), np.float32)


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


def wide(lake) -> None:
    """A million rows in files of whole episodes, the first file of a run of its own.

    There are few distinct numbers, so that files are small.
    """
    key = register_space(lake.storage, OBS, ACTION)
    obs, action = SpaceCodec(OBS), SpaceCodec(ACTION)
    rng, t = np.random.default_rng(0), np.arange(FILE_ROWS) % LENGTH
    is_last = t == LENGTH - 1
    with LakeWriter(lake.storage, "wide") as writer:
        for k in range(FILES):
            values = (rng.integers(-128, 128, (FILE_ROWS, WIDTH)) / 128).astype(np.float32)
            episode = (k * FILE_ROWS + np.arange(FILE_ROWS)) // LENGTH
            arrays = {
                c.RUN_ID: constant("wide" if k else "first", FILE_ROWS),
                s.SESSION: pa.array(np.zeros(FILE_ROWS, np.int32)),
                c.EPISODE_ID: pa.array([f"wide/{i:07d}" for i in episode]),
                c.T: pa.array(t.astype(np.int32)),
                s.SPACE: constant(key, FILE_ROWS),
                c.OBS: obs.columns(values).values,
                c.FINAL_OBS: obs.columns(values, is_last).values,
                c.ACTION: action.columns(values[:, :2]).values,
                c.REWARD: pa.array(np.ones(FILE_ROWS)),
                c.TRUNCATED: pa.array(is_last),
            }
            writer.write({"steps": table_of(arrays, s.STEPS.schema, rows=FILE_ROWS)}, fragments=[k])


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
    wide(lake_at(tmp_path / "lake"))
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
    # Two windows with their next observations and a file in the making: 170 MB of 512 (measured).
    assert more < TABLE_BYTES / 2
    assert whole > TABLE_BYTES  # else it is not the rows that are measured
