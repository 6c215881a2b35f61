"""A cluster of two nodes on this machine: nothing assumes one node, and a lost one loses no row."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from offline.lake import Lake

pytestmark = [pytest.mark.fault, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[2]
CODE = """
import gymnasium
from pipelines import Callbacks


def make(**kwargs):
    return gymnasium.make("CartPole-v1", **kwargs)


class Where(Callbacks):
    def on_fragment(self, fragment):
        import ray

        node = ray.get_runtime_context().get_node_id()
        shipped = "runtime_resources" in __file__
        return {"node": float(int(node[:8], 16)), "shipped": float(shipped)}
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head with one CPU, where the driver is, and a node with two that has `far`."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "include_dashboard": True, "dashboard_port": 0}
    made = Cluster(initialize_head=True, head_node_args=head)
    made.add_node(num_cpus=2, resources={"far": 2})
    made.wait_for_nodes()
    yield made
    made.shutdown()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A user's working directory, with code of the user's own."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "mine.py").write_text(CODE)
    return tmp_path / "home"


def words(storage: Path, name: str, *more: str) -> list[str]:
    settings = [
        *("rollout.num_workers=2", "rollout.num_envs=4", "rollout.fragment_steps=16"),
        *("minibatch_rows=32", "num_epochs=1", 'callbacks=["mine:Where"]'),
    ]
    sets = [word for setting in settings for word in ("--set", setting)]
    run = [sys.executable, "-m", "workflows", "train", "ppo", "--env", "mine:make", "--json"]
    return [*run, *sets, "--storage", str(storage), "--name", name, *more]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def start(home: Path, command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        cwd=home,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def results(out: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return [line for line in lines if "training_iteration" in line]


def assert_every_row_once(storage: Path) -> None:
    """Every fragment that was used is in the lake, once, with all its rows."""
    lake = Lake(storage / "lake")
    found = lake.sql(
        """
        WITH
            logged AS (SELECT fragment_id, count(*) AS n FROM steps GROUP BY ALL),
            used AS (
                SELECT fragment_id, max(rows) AS n, count(*) AS times FROM consumption GROUP BY ALL
            )
        SELECT count(*) AS used, count(*) FILTER (logged.n IS DISTINCT FROM used.n) AS differing,
            count(*) FILTER (times > 1) AS doubled
        FROM used LEFT JOIN logged USING (fragment_id)
        """
    ).to_pylist()[0]
    assert found["used"] > 0
    assert (found["differing"], found["doubled"]) == (0, 0)
    rows = lake.sql("SELECT count(*) n, count(DISTINCT (episode_id, t)) d FROM steps").to_pylist()[
        0
    ]
    assert rows["n"] == rows["d"]


FAR = ("--set", 'resources.rollout_custom={"far": 1}')


def test_quick_rollouts_on_another_node_give_the_numbers_of_one_process(
    cluster: Any, home: Path, tmp_path: Path
) -> None:
    stop = ("--stop", '{"training_iteration": 4}')
    far = start(home, words(tmp_path / "far", "r", *stop, *FAR, "--ray-address", cluster.address))
    out, err = far.communicate(timeout=200)
    assert far.returncode == 0, err
    near = start(home, [*words(tmp_path / "near", "r", *stop), "--debug", "--set", "callbacks=[]"])
    near_out, near_err = near.communicate(timeout=100)
    assert near.returncode == 0, near_err
    there, here = results(out), results(near_out)
    assert len(there) == len(here) == 4
    for one, other in zip(there, here, strict=True):
        keys = {key for key in other if key.startswith(("learner/", "episode", "env_steps"))}
        keys -= {"env_steps_per_s"}
        assert {key: one[key] for key in keys} == {key: other[key] for key in keys}
    # The user's code came with the run, and ran where the head is not.
    last = there[-1]
    assert (last["custom/shipped_min"], last["custom/shipped_max"]) == (1.0, 1.0)
    head = int(cluster.head_node.node_id[:8], 16)
    assert last["custom/node_min"] == last["custom/node_max"] != head
    assert_every_row_once(tmp_path / "far")


def test_quick_training_as_a_ray_job(cluster: Any, home: Path, tmp_path: Path) -> None:
    from ray.job_submission import JobStatus, JobSubmissionClient

    url = f"http://{cluster.head_node.address_info['webui_url']}"
    client = JobSubmissionClient(url)
    import shlex

    run = words(tmp_path / "s", "job", "--stop", '{"training_iteration": 2}', *FAR)
    job = client.submit_job(
        entrypoint=shlex.join([*run, "--ray-address", "auto"]),
        runtime_env={"working_dir": str(home), "env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    deadline = time.monotonic() + 200
    while not (status := client.get_job_status(job)).is_terminal():
        assert time.monotonic() < deadline, client.get_job_logs(job)
        time.sleep(1)
    assert status == JobStatus.SUCCEEDED, client.get_job_logs(job)
    found = results(client.get_job_logs(job))
    assert [row["training_iteration"] for row in found] == [1, 2]
    assert found[-1]["custom/shipped_min"] == 1.0
    assert (tmp_path / "s" / "job" / "checkpoints" / "2" / "manifest.json").is_file()
    assert_every_row_once(tmp_path / "s")


SWEEP = """\
algo: ppo
env: mine:make
base:
  rollout: {num_envs: 4, fragment_steps: 16}
  minibatch_rows: 32
  num_epochs: 1
  callbacks: ["mine:Where"]
sweep: {seed: {grid: [0, 1, 2]}}
stop: {training_iteration: 2}
"""


def test_quick_a_sweep_over_a_cluster_has_the_users_code(
    cluster: Any, home: Path, tmp_path: Path
) -> None:
    (home / "sweep.yaml").write_text(SWEEP)
    words = [sys.executable, "-m", "workflows", "sweep", "sweep.yaml", "--name", "s", "--json"]
    storage = ["--storage", str(tmp_path / "s"), "--ray-address", cluster.address]
    run = start(home, [*words, *storage])
    out, err = run.communicate(timeout=200)
    assert run.returncode == 0, err
    found = json.loads(out.splitlines()[-1])
    assert [trial["status"] for trial in found["trials"]] == ["terminated"] * 3
    assert all(trial["metrics"]["custom/shipped_min"] == 1.0 for trial in found["trials"])


def test_a_node_that_dies_is_replaced_and_no_row_is_lost(
    cluster: Any, home: Path, tmp_path: Path
) -> None:
    doomed = cluster.add_node(num_cpus=2, resources={"doomed": 2})
    cluster.wait_for_nodes()
    custom = ("--set", 'resources.rollout_custom={"doomed": 1}')
    stop = ("--stop", '{"training_iteration": 60}')
    more = [*stop, *custom, "--ray-address", cluster.address]
    run = start(home, words(tmp_path / "s", "r", *more, "--set", "rollout.max_policy_lag=1"))
    result = tmp_path / "s" / "r" / "result.json"
    deadline = time.monotonic() + 120
    while not (result.exists() and result.read_text().count("\n") >= 5):
        assert run.poll() is None, run.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    cluster.remove_node(doomed, allow_graceful=False)
    replaced = cluster.add_node(num_cpus=2, resources={"doomed": 2})
    try:
        out, err = run.communicate(timeout=240)
    finally:
        if run.poll() is None:
            run.send_signal(signal.SIGKILL)
    assert run.returncode == 0, err
    found = results(out)
    assert found[-1]["training_iteration"] == 60
    assert found[-1]["faults/worker_restarts"] >= 2
    nodes = {found[4]["custom/node_max"], found[-1]["custom/node_max"]}
    assert len(nodes) == 2
    assert_every_row_once(tmp_path / "s")
    kinds = Lake(tmp_path / "s" / "lake").sql("SELECT kind, count(*) n FROM failures GROUP BY ALL")
    assert any(re.search("worker", row["kind"]) for row in kinds.to_pylist())
    cluster.remove_node(replaced)
