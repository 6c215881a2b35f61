"""A scheduler, or a step, that is killed at every boundary: one run, each step's effect once."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from offline.failpoints import VARIABLE, WORKFLOW_POINTS, WRITER_POINTS
from offline.lake import Lake
from tests.workflows.workflow_kit import AT, HEAD, commands, counting, places_of, python, ran

ROOT = Path(__file__).parents[2]
NIGHTLY = """\
steps:
  collect: {do: collect, random: true, env: CartPole-v1, rows: 200}
  learn:
    do: train
    algo: bc
    env: CartPole-v1
    set:
      offline.where: [[run_id, "=", "${steps.collect.run_id}"]]
      offline.updates_per_iteration: 5
      reporting.tensorboard: false
    stop: {training_iteration: 2}
    debug: true
  score: {do: evaluate, checkpoint: "${steps.learn.checkpoint}", episodes: 2}
  promote: {do: promote, model: m, checkpoint: "${steps.learn.checkpoint}"}
"""


def run(places, point: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != VARIABLE}
    words = ["workflow", "run", str(places.workflow.path), "--logical-time", AT.isoformat()]
    return subprocess.run(
        [sys.executable, "-m", "workflows", *words, "--storage", str(places.storage)],
        cwd=ROOT,
        env=environment if point is None else {**environment, VARIABLE: point},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def killed(places, point: str) -> None:
    done = run(places, point)
    assert done.returncode == -signal.SIGKILL, (point, done.stderr)


def one(places, query: str):
    (row,) = Lake(places.lake).sql(query).to_pylist()
    return tuple(row.values())


def assert_done_once(places, steps: int) -> None:
    """One run, that succeeded, and one success of each step."""
    query = "SELECT count(*), count(DISTINCT logical_time) FROM workflow_runs WHERE "
    assert one(places, f"{query} step = '' AND status = 'succeeded'") == (1, 1)
    per_step = "SELECT step, count(*) AS n FROM workflow_runs WHERE status = 'succeeded' GROUP BY 1"
    counts = {r["step"]: r["n"] for r in Lake(places.lake).sql(per_step).to_pylist()}
    assert set(counts.values()) == {1}
    assert len(counts) == steps + 1


def commands_of(tmp_path):
    steps = commands(one=counting(tmp_path, "one"), two=counting(tmp_path, "two"))
    return places_of(tmp_path, steps)


@pytest.mark.fault
@pytest.mark.timeout(600)
@pytest.mark.parametrize("hit", [1, 2])
@pytest.mark.parametrize("point", [p for p in WORKFLOW_POINTS if p.startswith("workflow.step_")])
def test_a_scheduler_killed_at_a_step_goes_on_at_that_step(point, hit, tmp_path):
    places = commands_of(tmp_path)
    killed(places, f"{point}:{hit}")
    assert run(places).returncode == 0
    assert_done_once(places, 2)
    # A command is begun again where nobody noted its end; what ended and was noted is not.
    counts = {name: ran(tmp_path).count(name) for name in ("one", "two")}
    repeated = {"workflow.step_running", "workflow.step_ended"} & {point}
    name, other = ("one", "two") if hit == 1 else ("two", "one")
    assert counts[other] == 1
    assert counts[name] == 1 or (repeated and counts[name] == 2)


@pytest.mark.fault
@pytest.mark.timeout(600)
@pytest.mark.parametrize("point", ["workflow.claimed", "workflow.steps_done"])
def test_quick_a_scheduler_killed_at_the_ends_of_a_run_does_each_step_once(point, tmp_path):
    places = commands_of(tmp_path)
    killed(places, point)
    assert run(places).returncode == 0
    assert_done_once(places, 2)
    assert ran(tmp_path) == ["one", "two"]


@pytest.mark.fault
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("point", WRITER_POINTS)
def test_a_scheduler_killed_while_it_writes_history_has_each_event_once(point, tmp_path):
    places = commands_of(tmp_path)
    for hit in range(1, 40):
        # The process of a step may be the one that is killed: its attempt then failed.
        if run(places, f"{point}:{hit}").returncode == 0:
            break
    assert run(places).returncode == 0
    assert_done_once(places, 2)
    events = "SELECT count(*), count(DISTINCT (step, attempt, status, owner)) FROM workflow_runs"
    count, distinct = one(places, events)
    assert count == distinct


@pytest.mark.fault
@pytest.mark.timeout(900)
@pytest.mark.parametrize("step", [1, 2, 3, 4])
@pytest.mark.parametrize("point", ["workflow.step_running", "workflow.step_ended"])
def test_no_effect_of_a_step_is_there_twice(point, step, tmp_path):
    places = places_of(tmp_path, NIGHTLY)
    killed(places, f"{point}:{step}")
    done = run(places)
    assert done.returncode == 0, done.stderr
    assert_done_once(places, 4)
    doubles = "SELECT count(*) - count(DISTINCT (run_id, session, episode_id, t)) FROM steps"
    assert one(places, doubles) == (0,)
    assert one(places, "SELECT count(DISTINCT run_id) FROM checkpoints") == (1,)
    assert one(places, "SELECT count(*) FROM evaluations") == (1,)
    assert one(places, "SELECT count(*) FROM registry") == (1,)
    collected = "SELECT count(*) >= 200, count(DISTINCT run_id) FROM steps"
    assert one(places, collected) == (True, 1)


@pytest.mark.fault
@pytest.mark.timeout(300)
def test_quick_a_step_that_is_killed_is_tried_again(tmp_path):
    code = (
        "import os, pathlib, signal\n"
        f"p = pathlib.Path({str(tmp_path / 'died')!r})\n"
        "if not p.exists():\n    p.touch()\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    places = places_of(tmp_path, commands(one=python(code), two=counting(tmp_path, "two")))
    done = run(places)
    assert done.returncode == 0, done.stderr
    assert "exit code -9" in done.stderr
    assert_done_once(places, 2)
    assert ran(tmp_path) == ["two"]


@pytest.mark.fault
@pytest.mark.timeout(300)
def test_quick_a_step_ends_with_the_scheduler_that_is_killed(tmp_path):
    code = f"import pathlib, time\ntime.sleep(8)\npathlib.Path({str(tmp_path / 'late')!r}).touch()"
    head = HEAD.replace("retries: 1", "retries: 0")
    places = places_of(tmp_path, commands(one=python(code)), head)
    killed(places, "workflow.step_running")
    assert not (tmp_path / "late").exists()
    again = run(places)
    assert again.returncode == 0, again.stderr
    assert_done_once(places, 1)
