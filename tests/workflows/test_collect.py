"""`millrace collect`, and datasets by `millrace example run`."""

import json
import signal
import time
from importlib.util import find_spec

import numpy as np
import pytest

from offline.lake import Lake
from offline.spaces import spaces_of
from offline.traces import find_episode
from pipelines.behaviour import Behaviour
from pipelines.checkpoint import load_policy
from pipelines.collecting import Collection, collect
from pipelines.config_errors import ConfigError
from pipelines.trace_replay import record_episode
from rl_ops import columns as c
from rl_ops.envs import EnvSpec
from workflows import datasets
from workflows.collect import where_of
from workflows.datasets import Making, load_dataset, require_extra
from workflows.exits import Failure


def steps(millrace, run_id):
    return Lake(millrace.storage / "lake").steps(where=[(c.RUN_ID, "=", run_id)]).to_arrow()


def test_a_checkpoints_policy_is_sampled_and_its_logp_is_logged(millrace):
    assert millrace.train().exit_code == 0
    words = ("collect", "run", "--rows", 300, "--storage", millrace.storage, "--run", "data")
    result = millrace(*words, "--json", "--level", "early")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    rows = steps(millrace, "data")
    assert (found["run_id"], found["level"], found["status"]) == ("data", "early", "finished")
    assert found["rows"] == found["new_rows"] == rows.num_rows >= 300
    policy = load_policy(next((millrace.run_folder() / "checkpoints").iterdir()))
    obs_codec, action_codec = spaces_of(
        Lake(millrace.storage / "lake").storage, rows.column("space")[0].as_py()
    )
    obs = obs_codec.tree(rows.column(c.OBS), rows.column("obs_bytes"), column=c.OBS)
    action = action_codec.tree(rows.column(c.ACTION), rows.column("action_bytes"), column=c.ACTION)
    logp = rows.column(c.LOGP).to_numpy()
    np.testing.assert_allclose(logp, policy.logp(obs, action), rtol=1e-4, atol=1e-5)
    assert set(rows.column(c.POLICY_VERSION).to_pylist()) == {2}
    config = json.loads(
        Lake(millrace.storage / "lake")
        .sql("SELECT config FROM runs WHERE run_id = 'data'")
        .column(0)[0]
        .as_py()
    )
    assert config["collect"]["source_run"] == "run"
    assert len(config["collect"]["sha256"]) == 64
    again = millrace(*words)
    assert again.exit_code == 0
    assert "data: already finished" in again.stdout
    assert steps(millrace, "data").num_rows == rows.num_rows


def test_options_say_how_the_policy_acts(millrace):
    assert millrace.train().exit_code == 0
    words = ("collect", "run", "--rows", 200, "--storage", millrace.storage, "--run")
    assert millrace(*words, "greedy", "--greedy").exit_code == 0
    assert millrace(*words, "mixed", "--epsilon", 0.5).exit_code == 0
    np.testing.assert_allclose(steps(millrace, "greedy").column(c.LOGP).to_numpy(), 0, atol=1e-6)
    mixed = steps(millrace, "mixed")
    assert set(mixed.column(c.EPSILON).to_pylist()) == {0.5}
    assert (np.exp(mixed.column(c.LOGP).to_numpy()) >= 0.25).all()


def test_random_actions_are_collected_to_another_lake(millrace, tmp_path):
    result = millrace(
        *("collect", "--random", "--env", "Pendulum-v1", "--episodes", 3, "--run", "r"),
        *("--lake", tmp_path / "elsewhere", "--seed", 4, "--num-envs", 2),
    )
    assert result.exit_code == 0, result.output
    assert 'offline.where=[["run_id", "=", "r"]]' in result.stdout
    assert Lake(tmp_path / "elsewhere").steps().count() == 600


def test_a_signal_lets_the_fragment_finish_and_the_run_goes_on_later(millrace, start_millrace):
    words = ["collect", "--random", "--env", "CartPole-v1", "--storage", millrace.storage]
    process = start_millrace(*words, "--run", "r", "--rows", 10**8)
    process.wait_for(millrace.storage / "lake" / "runs" / "_delta_log" / f"{1:020d}.json")
    time.sleep(1)
    process.send(signal.SIGINT)
    code, out, err = process.end()
    assert code == 130, err
    assert "r: stopped" in out
    rows = steps(millrace, "r").num_rows
    result = millrace(*words, "--run", "r", "--rows", rows + 100, "--json")
    found = json.loads(result.stdout)
    assert (found["status"], found["rows"]) == ("finished", rows + found["new_rows"])


@pytest.mark.skipif(find_spec("imageio_ffmpeg") is None, reason="needs the video extra")
def test_an_episode_of_a_collection_can_be_replayed(millrace, tmp_path):
    lake = Lake(millrace.storage / "lake")
    who = Behaviour.uniform(EnvSpec("Pendulum-v1"))
    wanted = Collection("r", who, rows=2000, num_envs=2)
    assert collect(lake.storage, wanted).rows == 2000
    episode = find_episode(lake, "r/00001.1/0000000")
    assert record_episode(lake, episode, tmp_path / "episode.mp4").frames == 200


RANDOM = ["collect", "--random", "--env", "CartPole-v1"]
BAD = {
    "checkpoint and --random": (
        ["collect", "x", "--random", "--rows", 5],
        "CHECKPOINT or --random",
    ),
    "neither": (["collect", "--rows", 5], "CHECKPOINT or --random"),
    "unknown environment": (
        ["collect", "--random", "--env", "CartPol-v1", "--rows", 5],
        "did you mean CartPole-v1",
    ),
    "no environment": (["collect", "--random", "--rows", 5], "--env"),
    "no rows": ([*RANDOM, "--rows", 0], "--rows"),
    "neither rows nor episodes": (RANDOM, "--rows or --episodes"),
    "rows and episodes": ([*RANDOM, "--rows", 5, "--episodes", 5], "--rows or --episodes"),
    "epsilon above 1": (["collect", "x", "--rows", 5, "--epsilon", 2], "--epsilon"),
    "greedy random": ([*RANDOM, "--rows", 5, "--greedy"], "--greedy and --epsilon"),
    "checkpoint that is not there": (["collect", "no-run", "--rows", 5], "no run"),
    "environment of a checkpoint": (
        ["collect", "x", "--rows", 5, "--env", "CartPole-v1"],
        "--env goes with --random",
    ),
    "a run's name with a path": ([*RANDOM, "--rows", 5, "--run", "../x"], "--run"),
    "an address of runs": ([*RANDOM, "--rows", 5, "--storage", "s3://b/x"], "--storage"),
    "an empty lake": ([*RANDOM, "--rows", 5, "--lake", " "], "--lake"),
    "rows of an example": (["example", "run", "cartpole-ppo", "--rows", 5], "go with datasets"),
    "settings of a dataset": (
        ["example", "run", "make-dataset-cartpole", "--set", "gamma=1"],
        "--set is for training",
    ),
    "a level that is not there": (
        ["example", "run", "make-dataset-cartpole", "--levels", "random,best"],
        "no level 'best'",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_and_nothing_is_written(millrace, case, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    words, expected = BAD[case]
    result = millrace(*words)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert expected in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


TINY = """
description: a tiny one
kind: dataset
rows: 200
num_envs: 2
train:
  algo: {algo}
  env: {env}
  {settings}
  rollout: {{num_envs: 2, fragment_steps: 16}}
  model: {{hidden: [8]}}
  stop: {{training_iteration: 4}}
levels:
  random: {{}}
  early: {{until: {{training_iteration: 2}}}}
  late: {{}}
"""


def tiny(tmp_path, env="CartPole-v1", *, algo="ppo", settings="num_epochs: 1"):
    path = tmp_path / "make-dataset-tiny.yaml"
    path.write_text(TINY.format(env=env, algo=algo, settings=settings))
    return load_dataset(path)


def make(dataset, millrace, *, levels=("random", "early", "late"), rows=200):
    return Making(dataset, millrace.storage, rows, levels).run()


@pytest.mark.parametrize(
    ("env", "algo", "settings"),
    [
        ("CartPole-v1", "ppo", "num_epochs: 1"),
        ("Pendulum-v1", "ppo", "num_epochs: 1"),
        ("Pendulum-v1", "sac", "learning_starts_rows: 32"),
    ],
)
def test_a_dataset_has_each_level_in_one_space_under_its_name(
    millrace, tmp_path, env, algo, settings
):
    found = make(tiny(tmp_path, env, algo=algo, settings=settings), millrace)
    assert [one.run_id for one in found] == ["tiny-random", "tiny-early", "tiny-late"]
    assert all(one.rows >= 200 and one.status == "finished" for one in found)
    lake = Lake(millrace.storage / "lake")
    mixed = lake.steps(where=[(c.RUN_ID, "in", [one.run_id for one in found])]).to_arrow()
    assert mixed.num_rows == sum(one.rows for one in found)
    assert len(set(mixed.column("space").to_pylist())) == 1
    assert mixed.column(c.LOGP).null_count == 0
    versions = {
        one.run_id: set(steps(millrace, one.run_id).column(c.POLICY_VERSION).to_pylist())
        for one in found
    }
    assert versions == {"tiny-random": {0}, "tiny-early": {2}, "tiny-late": {4}}


def test_a_dataset_that_is_there_is_neither_trained_nor_collected_again(
    millrace, tmp_path, monkeypatch
):
    dataset = tiny(tmp_path)
    first = make(dataset, millrace)
    monkeypatch.setattr(Making, "_train", lambda _: pytest.fail("trained again"))
    second = make(dataset, millrace)
    assert [one.status for one in second] == ["already finished"] * 3
    assert [one.rows for one in second] == [one.rows for one in first]


def test_random_rows_take_no_training(millrace, tmp_path, monkeypatch):
    monkeypatch.setattr(Making, "_train", lambda _: pytest.fail("trained"))
    (found,) = make(tiny(tmp_path), millrace, levels=("random",))
    assert found.rows >= 200


def test_a_training_that_was_killed_is_begun_anew_under_another_name(millrace, tmp_path):
    (millrace.storage / "tiny-train").mkdir(parents=True)
    make(tiny(tmp_path), millrace, levels=("early",))
    assert (millrace.storage / "tiny-train2" / "params.json").is_file()


def test_a_level_that_training_never_reaches_is_an_error(millrace, tmp_path):
    dataset = tiny(tmp_path)
    path = tmp_path / "make-dataset-tiny.yaml"
    path.write_text(path.read_text().replace("training_iteration: 2", "episode_return_mean: 900"))
    with pytest.raises(Failure, match="early waits for") as error:
        make(load_dataset(path), millrace)
    assert error.value.exit_code == 1
    assert dataset.config.levels["early"].until == {"training_iteration": 2}


def test_policies_of_another_seed_are_not_taken(millrace, tmp_path):
    make(tiny(tmp_path), millrace, levels=("late",))
    other = load_dataset(tmp_path / "make-dataset-tiny.yaml", seed=9)
    with pytest.raises(ConfigError, match="trained with seed 0"):
        make(other, millrace, levels=("late",))


def test_an_environment_without_its_package_is_refused_with_the_extra_that_has_it(monkeypatch):
    monkeypatch.setattr(datasets.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(Failure, match=r"pip install 'millrace\[mujoco\]'"):
        require_extra("Hopper-v5")
    with pytest.raises(Failure, match=r"pip install 'millrace\[box2d\]'"):
        require_extra("LunarLander-v3")
    require_extra("CartPole-v1")


def test_the_command_prints_what_selects_each_level_and_all_of_them(
    millrace, tmp_path, monkeypatch
):
    tiny(tmp_path)
    monkeypatch.setattr("workflows.examples.FOLDER", tmp_path)
    words = ("example", "run", "make-dataset-tiny", "--storage", millrace.storage)
    result = millrace(*words, "--rows", 100)
    assert result.exit_code == 0, result.output
    for level in ("random", "early", "late"):
        assert f'offline.where=[["run_id", "=", "tiny-{level}"]]' in result.stdout
    assert where_of(["tiny-random", "tiny-early", "tiny-late"]) in result.stdout
    again = millrace(*words, "--rows", 100, "--json", "--levels", "late,random")
    assert [one["run_id"] for one in json.loads(again.stdout)] == ["tiny-late", "tiny-random"]
