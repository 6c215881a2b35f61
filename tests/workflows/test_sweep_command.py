"""`millrace sweep`: trials are runs in the lake, each over once, whatever dies on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from offline.lake import Lake
from pipelines import load_policy

ROOT = Path(__file__).parents[2]
SMALL = """\
algo: ppo
env: {env}
base: {{rollout: {{num_envs: 4, fragment_steps: 16}}, minibatch_rows: 32, num_epochs: 1}}
sweep:
  seed: {{grid: [0, 1]}}
  optim.lr: {{loguniform: [1e-4, 1e-2]}}
stop: {{training_iteration: 2}}
"""


def write(folder, more="", env="CartPole-v1"):
    path = folder / "s.yaml"
    path.write_text(SMALL.format(env=env) + more)
    return path


def summary(done):
    assert done.exit_code in (0, 1), done.output
    assert done.stdout, done.output
    return json.loads(done.stdout.splitlines()[-1])


pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


@pytest.mark.usefixtures("ray_session")
def test_trials_are_runs_that_are_compared_and_the_best_can_be_loaded(millrace, tmp_path):
    path, at = write(tmp_path, "num_samples: 2\n"), ("--storage", tmp_path / "storage")
    found = summary(millrace("sweep", path, "--name", "s", "--json", *at))
    assert (found["sweep_id"], found["status"], len(found["trials"])) == ("s", "finished", 4)
    assert sorted(t["config"]["seed"] for t in found["trials"]) == [0, 0, 1, 1]
    assert len({t["config"]["optim.lr"] for t in found["trials"]}) == 4
    returns = [t["metrics"]["episode_return_mean"] for t in found["trials"]]
    assert returns == sorted(returns, reverse=True)
    assert load_policy(found["best"]["checkpoint"]).act([0.0] * 4)[0] in (0, 1)
    rows = Lake(tmp_path / "storage" / "lake").sql(
        "SELECT run_id, status FROM runs WHERE starts_with(run_id, 's-')"
    )
    assert rows["status"].to_pylist() == ["finished"] * 4
    assert set(rows["run_id"].to_pylist()) == {t["run_id"] for t in found["trials"]}
    folder = tmp_path / "storage" / "s"
    assert json.loads((folder / "sweep.json").read_text())["status"] == "finished"
    assert len(json.loads((folder / "trials.json").read_text())) == 4
    again = millrace("sweep", path, "--name", "s", *at)
    assert again.exit_code == 2
    assert "exists already" in again.output


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    "more",
    [
        "scheduler: {asha: {max_t: 4, grace_period: 1, reduction_factor: 2}}\nnum_samples: 2\n",
        "scheduler: {pbt: {perturbation_interval: 2, synch: true, mutate: [optim.lr]}}\n"
        "checkpoint_period: 1\n",
    ],
    ids=["asha", "pbt"],
)
def test_schedulers_end_and_clone_trials(millrace, tmp_path, more):
    path = write(tmp_path, more)
    path.write_text(path.read_text().replace("training_iteration: 2", "training_iteration: 4"))
    found = summary(millrace("sweep", path, "--json", "--storage", tmp_path / "storage"))
    assert found["status"] == "finished"
    iterations = [t["metrics"]["training_iteration"] for t in found["trials"]]
    assert max(iterations) == 4
    assert {t["status"] for t in found["trials"]} == {"terminated"}
    if "asha" in more:
        assert min(iterations) < 4
    else:
        query = "SELECT count(*) AS n FROM run_events WHERE resumed_from IS NOT NULL"
        assert Lake(tmp_path / "storage" / "lake").sql(query)["n"].to_pylist() != [0]


@pytest.mark.usefixtures("ray_session")
def test_optuna_draws_what_varies(millrace, tmp_path):
    path = write(tmp_path, "search: {optuna: {seed: 1}}\nnum_samples: 3\n")
    path.write_text(path.read_text().replace("grid: [0, 1]", "choice: [0, 1]"))
    found = summary(millrace("sweep", path, "--json", "--storage", tmp_path / "storage"))
    assert len({t["config"]["optim.lr"] for t in found["trials"]}) == 3


@pytest.mark.usefixtures("ray_session")
def test_more_trials_than_fit_are_refused_with_the_numbers(millrace, tmp_path):
    done = millrace("sweep", write(tmp_path), "--concurrency", 99, "--storage", tmp_path / "s")
    assert done.exit_code == 2
    assert "99 trials side by side need 99 CPUs" in done.output


CRASHES = """
import os
import gymnasium as gym

def make():
    class Crashing(gym.Wrapper):
        def step(self, action):
            if os.path.exists(os.environ["CRASH"] + ".on") and not os.path.exists(
                os.environ["CRASH"]
            ):
                open(os.environ["CRASH"], "w").close()
                os._exit(1)
            return super().step(action)
    return Crashing(gym.make("CartPole-v1"))
"""


def start(folder, *words):
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}
    environment |= {"CRASH": str(folder / "crashed")}
    return subprocess.Popen(
        [sys.executable, "-m", "workflows", "sweep", *map(str, words), "--json"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.fault
@pytest.mark.parametrize("retries", [0, 1])
def test_a_trial_whose_process_dies_fails_alone_and_is_tried_again(tmp_path, retries):
    (tmp_path / "crashing_env.py").write_text(CRASHES)
    (tmp_path / "crashed.on").touch()
    path = write(tmp_path, f"max_failures: {retries}\n", env="crashing_env:make")
    process = start(tmp_path, path, "--storage", tmp_path / "storage")
    out, err = process.communicate(timeout=240)
    found = json.loads(out.splitlines()[-1])
    ended = sorted(t["status"] for t in found["trials"])
    assert ended == (["terminated"] * 2 if retries else ["error", "terminated"]), err
    assert process.returncode == (0 if retries else 1)


@pytest.mark.fault
def test_quick_a_sweep_that_was_killed_goes_on_and_logs_no_step_twice(tmp_path):
    more = "num_samples: 2\ncheckpoint_period: 2\n"
    path = write(tmp_path, more)
    path.write_text(path.read_text().replace("training_iteration: 2", "training_iteration: 60"))
    storage = tmp_path / "storage"
    process = start(tmp_path, path, "--name", "s", "--storage", storage)
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        trials = storage / "s" / "trials.json"
        known = json.loads(trials.read_text()) if trials.exists() else []
        if any(t["metrics"].get("training_iteration", 0) > 10 for t in known):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    time.sleep(3)  # the trials' processes notice
    again = start(tmp_path, "--resume", "s", "--storage", storage)
    out, err = again.communicate(timeout=240)
    assert again.returncode == 0, err
    found = json.loads(out.splitlines()[-1])
    assert found["status"] == "finished"
    assert [t["metrics"]["training_iteration"] for t in found["trials"]] == [60] * 4
    lake = Lake(storage / "lake")
    doubles = lake.sql(
        "SELECT count(*) - count(DISTINCT (run_id, session, episode_id, t)) AS n FROM steps"
    )
    assert doubles["n"].to_pylist() == [0]


def test_mlflow_and_wandb_get_every_trial(tmp_path):
    for name in ("mlflow", "wandb"):
        pytest.importorskip(name, reason="an extra that is not installed for tests")
    import mlflow

    path, storage = write(tmp_path, "loggers: [mlflow, wandb]\n"), tmp_path / "storage"
    words = [sys.executable, "-m", "workflows", "sweep", str(path), "--name", "s", "--json"]
    # Their processes have the environment of the Ray that the command starts.
    env = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    done = subprocess.run(
        [*words, "--storage", str(storage)],
        cwd=ROOT,
        env=env | {"WANDB_MODE": "offline"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    client = mlflow.MlflowClient(f"sqlite:///{storage}/s/mlflow.db")
    (experiment,) = (e for e in client.search_experiments() if e.name == "s")
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.data.params["seed"] for run in runs) == ["0", "1"]
    returns = {run.data.metrics["episode_return_mean"] for run in runs}
    assert returns == {trial["metrics"]["episode_return_mean"] for trial in found["trials"]}
    assert len(list((storage / "s" / "tune").rglob("offline-run-*"))) == 2
