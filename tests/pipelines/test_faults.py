"""Real kills at random moments, and then the counts. Minutes long; one of each kind is quick."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from offline.doctor import doctor
from offline.lake import Lake
from pipelines import Pipeline, PPOConfig
from pipelines.checkpoint import Checkpoint, latest_checkpoint
from pipelines.errors import TrainingError

ROOT = Path(__file__).parents[2]
ROWS = 2 * 4 * 32
"""Of an iteration of `make_config`; Pendulum spends none on resets."""

pytestmark = [pytest.mark.ray, pytest.mark.fault, pytest.mark.timeout(300)]


def make_config(env="Pendulum-v1", *, lag=0, **values):
    rollout = {"num_workers": 2, "num_envs": 4, "fragment_steps": 32, "max_policy_lag": lag}
    return PPOConfig(
        env=env,
        rollout=rollout,
        model={"hidden": (8,)},
        num_epochs=2,
        resources={"rollout_cpus": 0.25, "learner_cpus": 0.25},
        **values,
    )


def descendants(pid):
    """{pid: command} of the living processes that `pid` started, they started, and so on."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            status = (entry / "stat").read_text().rpartition(")")[2].split()
            names[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # it ended meanwhile
            continue
        if status[0] != "Z":
            parents[int(entry.name)] = int(status[1])

    def is_under(child):
        while child in parents:
            child = parents[child]
            if child == pid:
                return True
        return False

    return {child: names[child] for child in parents if is_under(child)}


def rollout_pids():
    return [pid for pid, name in descendants(os.getpid()).items() if "MapWorker" in name]


class Killer(threading.Thread):
    """Kills a random rollout worker at random moments, each once the one before is replaced."""

    def __init__(self, *, kills, seed):
        super().__init__(daemon=True)
        self.left, self.rng = kills, random.Random(seed)

    def run(self):
        while self.left:
            time.sleep(self.rng.uniform(0.0, 0.7))
            pids = rollout_pids()
            if len(pids) == 2:
                os.kill(self.rng.choice(pids), signal.SIGKILL)
                self.left -= 1
                time.sleep(0.3)


# --- rollout workers ---


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("lag", "kills"),
    [
        pytest.param(0, 2, id="quick"),
        pytest.param(0, 12, id="synchronous"),
        pytest.param(1, 12, id="a version ahead"),
    ],
)
def test_however_many_rollout_workers_are_killed_each_fragment_is_used_once(
    lag, kills, tmp_path, consumed
):
    config = make_config(lag=lag, faults={"max_worker_restarts": 100})
    with Pipeline(config, storage=tmp_path) as pipeline:
        pipeline.train()
        killer = Killer(kills=kills, seed=lag)
        killer.start()
        after = 0
        for result in pipeline.stream():
            # Ten more versions once the last one was killed: it has to come back.
            after += not killer.is_alive()
            if after > 10:
                break
    versions = len(consumed)
    assert [ids for ids, _ in consumed] == [[2 * v, 2 * v + 1] for v in range(versions)]
    counts = Counter(step for _, steps in consumed for step in steps)
    assert len(counts) == versions * ROWS
    assert max(counts.values()) == 1
    assert result["env_steps"] == result["training_iteration"] * ROWS
    assert result["policy_lag_max"] <= lag
    check_lake(tmp_path, result, steps=set(counts))
    # One killed again before it had its seat back was not there to be counted.
    assert kills / 2 <= result["faults/worker_restarts"] <= kills


def check_lake(storage, result, *, steps):
    """Every step that was consumed is logged once, every kill is a row, every episode ends once."""
    lake = Lake(storage / "lake")
    logged = lake.sql("SELECT episode_id, t, count(*) AS n FROM steps GROUP BY ALL").to_pylist()
    assert {row["n"] for row in logged} == {1}
    assert steps <= {(row["episode_id"], row["t"]) for row in logged}
    used = lake.sql("SELECT count(*) AS n, count(DISTINCT fragment_id) AS ids FROM consumption")
    (row,) = used.to_pylist()
    assert row["n"] == row["ids"] >= 2 * result["training_iteration"]
    restarts = lake.sql("SELECT sum(count) AS n FROM failures WHERE kind = 'worker'")
    assert restarts["n"][0].as_py() >= result["faults/worker_restarts"]
    ends = lake.sql(
        "SELECT count(*) AS n, count(DISTINCT episode_id) AS ids FROM episodes"
    ).to_pylist()
    begun = len({row["episode_id"] for row in logged})
    assert ends == [{"n": begun, "ids": begun}]
    assert [f for f in doctor(lake.storage, deep=True) if f.severity == "error"] == []


@pytest.mark.usefixtures("ray_session")
def test_quick_an_environment_that_kills_its_process_each_time_fails_after_the_restarts(tmp_path):
    config = make_config("tests.learning_envs:deadly", faults={"max_worker_restarts": 1})
    with Pipeline(config, storage=tmp_path) as pipeline:
        with pytest.raises(TrainingError, match="died"):
            pipeline.train()
        with pytest.raises(TrainingError, match="died"):
            pipeline.train()


# --- learners ---


@pytest.mark.usefixtures("ray_session")
def test_a_killed_rank_of_a_worker_group_fails_the_run_which_resumes_from_its_checkpoint(tmp_path):
    config = make_config(learner={"num_workers": 2})
    with Pipeline(config, storage=tmp_path, name="run") as pipeline:
        for _ in range(3):
            result = pipeline.train()
        path = pipeline.save()
        pipeline.train()
        ranks = [pid for pid, name in descendants(os.getpid()).items() if "RayTrainWorker" in name]
        assert len(ranks) == 2
        os.kill(ranks[1], signal.SIGKILL)
        with pytest.raises(TrainingError):
            list(pipeline.stream())
    with Pipeline.from_checkpoint(path) as pipeline:
        again = pipeline.train()
    assert again["training_iteration"] == result["training_iteration"] + 1
    assert again["env_steps"] == result["env_steps"] + ROWS
    assert again["grad_steps"] > result["grad_steps"]
    assert iterations(tmp_path / "run") == [1, 2, 3, 4]


# --- drivers ---

_DRIVER = """
import sys
from pathlib import Path
from pipelines import Pipeline, PPOConfig
from pipelines.checkpoint import latest_checkpoint

storage, debug = Path(sys.argv[1]), sys.argv[2] == "debug"
latest = latest_checkpoint(storage / "run" / "checkpoints").path
if latest is not None:
    pipeline = Pipeline.from_checkpoint(latest, debug=debug)
else:
    config = PPOConfig.model_validate_json(sys.argv[3])
    pipeline = Pipeline(config, storage=storage, name=sys.argv[4], debug=debug)
print("begun", pipeline._iteration, flush=True)
for result in pipeline.stream():
    print(result["training_iteration"], flush=True)
"""


def lines_of(folder):
    return [json.loads(line) for line in (folder / "result.json").read_text().splitlines()]


def iterations(folder):
    return [line["training_iteration"] for line in lines_of(folder)]


def check_counters(folder):
    """Every result up to the last checkpoint is there once, and the checkpoint agrees with it."""
    latest = latest_checkpoint(folder / "checkpoints").path
    if latest is None:
        return
    state = Checkpoint(latest).state
    iteration = state["loop"]["iteration"]
    assert str(iteration) == latest.name
    lines = [json.loads(line) for line in whole_lines(folder / "result.json")]
    assert [line["training_iteration"] for line in lines] == list(range(1, len(lines) + 1))
    assert len(lines) >= iteration
    assert all(line["env_steps"] == line["training_iteration"] * ROWS for line in lines)
    last = lines[iteration - 1]
    learner = state["learner"]
    assert (learner["env_steps"], learner["grad_steps"], learner["version"]) == (
        last["env_steps"],
        last["grad_steps"],
        iteration,
    )
    assert state["loop"]["episodes"] == last["episodes"]
    assert state["loop"]["time_s"] >= last["time_s"]


def whole_lines(path):
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


@pytest.mark.parametrize(
    ("mode", "kills"),
    [
        pytest.param("debug", 3, id="quick"),
        pytest.param("debug", 15, id="debug"),
        pytest.param("ray", 4, id="ray"),
    ],
)
def test_a_driver_killed_at_any_moment_resumes_with_no_iteration_lost_or_doubled(
    mode, kills, tmp_path
):
    rng = random.Random(kills)
    config = make_config(checkpoint={"period_iterations": 2, "keep": 3})
    folder, begun = tmp_path / "run", []
    for _ in range(kills):
        process, line = start_driver(tmp_path, mode, config)
        begun.append(int(line.split()[1]))
        process.stdout.readline()  # killed not before it got anywhere, or it never would
        time.sleep(rng.uniform(0.0, 0.6))
        under = descendants(process.pid)
        process.kill()
        process.wait()
        check_counters(folder)
        wait_until_gone(under)
    assert begun == sorted(begun)
    assert begun[-1] > begun[0]
    finish = config.with_overrides({"stop.training_iteration": begun[-1] + 20})
    latest = latest_checkpoint(folder / "checkpoints").path
    with Pipeline(finish, resume=latest, debug=True) as pipeline:
        result = list(pipeline.stream())[-1]
    assert result["training_iteration"] == max(begun[-1] + 20, int(latest.name) + 1)
    check_counters(folder)
    assert iterations(folder) == list(range(1, result["training_iteration"] + 1))


def start_driver(storage, mode, config):
    arguments = [str(storage), mode, config.model_dump_json(), "run"]
    # A first session that died before its first checkpoint left a folder that is in the way.
    run = storage / "run"
    if run.exists() and latest_checkpoint(run / "checkpoints").path is None:
        (storage / "run").rename(storage / f"gone-{time.monotonic_ns()}")
    process = subprocess.Popen(
        [sys.executable, "-c", _DRIVER, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    line = process.stdout.readline()
    while line and not line.startswith("begun"):
        line = process.stdout.readline()
    assert line, "the driver ended before it began"
    return process, line


def wait_until_gone(processes, *, timeout_s=30.0):
    """Ray's processes end with the driver that started them."""
    # Its two agents first try for a minute to tell the GCS, which is dead, that the raylet is.
    left = {pid: name for pid, name in processes.items() if "Agent" not in name}
    end = time.monotonic() + timeout_s
    while left := {pid: name for pid, name in left.items() if is_alive(pid)}:
        assert time.monotonic() < end, left
        time.sleep(0.1)


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
