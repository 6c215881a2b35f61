"""Runs killed at every named point of logging and of checkpoints, and then the counts by SQL."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from offline.doctor import doctor
from offline.failpoints import NAMES, VARIABLE
from offline.lake import Lake
from tests.pipelines.lake_child import ITERATIONS, ROWS
from workflows.runs import newest_whole

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.fault, pytest.mark.timeout(300)]


def child(storage, point=None):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if point is not None:
        environment |= {VARIABLE: point}
    command = [sys.executable, "-m", "tests.pipelines.lake_child", str(storage)]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finish(storage):
    """Start the run again without a fail point; it has to end well."""
    process = child(storage)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output.decode()


def check(storage):
    """Nothing lost, nothing doubled, and the last checkpoint's rows are those it names."""
    lake = Lake(storage / "lake")
    run = sorted(path for path in storage.glob("run*") if path.is_dir())[-1]
    doubled = lake.sql(
        "SELECT run_id, episode_id, t, count(*) AS n FROM steps GROUP BY ALL HAVING n > 1"
    )
    assert doubled.num_rows == 0, doubled.to_pylist()
    uneven = lake.sql(
        """SELECT run_id, session, fragment_id, c.rows, s.rows AS logged FROM consumption c
        FULL JOIN (SELECT run_id, session, fragment_id, count(*) AS rows FROM steps GROUP BY ALL) s
        USING (run_id, session, fragment_id) WHERE c.rows IS DISTINCT FROM s.rows"""
    )
    assert uneven.num_rows == 0, uneven.to_pylist()
    assert (
        lake.sql("SELECT * FROM consumption").num_rows
        == lake.sql("SELECT DISTINCT run_id, session, fragment_id FROM consumption").num_rows
    )
    state = json.loads((newest_whole(run).path / "state.json").read_text())
    assert state["learner"]["env_steps"] == ITERATIONS * ROWS
    assert trained_rows(lake, run.name, state) == ITERATIONS * ROWS
    assert not list((storage / "lake" / "_millrace" / "pending").glob("**/*.json"))
    serious = [found for found in doctor(lake.storage, deep=True) if found.severity == "error"]
    assert serious == []


def trained_rows(lake, run_id, state):
    """Rows of the fragments that made a checkpoint, session by session back to the first."""
    starts = lake.sql(
        "SELECT DISTINCT session, resumed_from FROM run_events WHERE run_id = ? "
        "AND status = 'running'",
        [run_id],
    ).to_pylist()
    origins = {row["session"]: json.loads(row["resumed_from"] or "null") for row in starts}
    checkpoints = lake.sql(
        "SELECT session, checkpoint_id, fragments FROM checkpoints WHERE run_id = ?", [run_id]
    ).to_pylist()
    fragments = {(r["session"], r["checkpoint_id"]): r["fragments"] for r in checkpoints}
    rows, session, end = 0, state["lake"]["session"], state["lake"]["fragments"]
    while True:
        origin = origins[session]
        begin = fragments[origin["session"], origin["checkpoint_id"]] if origin else 0
        used = lake.sql(
            "SELECT fragment_id, rows FROM consumption WHERE run_id = ? AND session = ? "
            "AND fragment_id >= ? AND fragment_id < ?",
            [run_id, session, begin, end],
        ).to_pylist()
        assert sorted(row["fragment_id"] for row in used) == list(range(begin, end))
        rows += sum(row["rows"] for row in used)
        if origin is None:
            return rows
        session, end = origin["session"], begin


def killed_at(storage, point):
    process = child(storage, point)
    output, _ = process.communicate(timeout=120)
    assert process.returncode in (0, -signal.SIGKILL), output.decode()
    return process.returncode != 0


@pytest.mark.parametrize("point", ["commit.written:4", "checkpoint.renamed:2", "journal.written:5"])
def test_quick_a_run_killed_at_a_point_of_logging_resumes_with_every_row_once(tmp_path, point):
    assert killed_at(tmp_path, point)
    finish(tmp_path)
    check(tmp_path)


@pytest.mark.parametrize("hit", [1, 2, 5, 9])
@pytest.mark.parametrize("name", NAMES)
def test_a_run_killed_at_any_point_resumes_with_every_row_once(tmp_path, name, hit):
    if not killed_at(tmp_path, f"{name}:{hit}"):
        pytest.skip(f"a run passes {name} less than {hit} times")
    finish(tmp_path)
    check(tmp_path)


@pytest.mark.parametrize("seed", range(6))
def test_a_run_killed_again_and_again_at_random_loses_nothing(tmp_path, seed):
    rng = random.Random(seed)
    for _ in range(4):
        process = child(tmp_path)
        time.sleep(rng.uniform(1.5, 4.5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    finish(tmp_path)
    check(tmp_path)
