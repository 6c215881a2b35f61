"""`millrace train`, `evaluate` and back: what is written, printed, and gone on with."""

import json
import shlex
import subprocess
import sys

import pytest


def printed_command(text: str, name: str) -> str:
    """The command on the summary's line `name`."""
    return next(x.partition(" ")[2].strip() for x in text.splitlines() if x.startswith(f"{name} "))


def damage(checkpoint) -> None:
    path = checkpoint / "modules.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\1\2\3")


def results(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "result.json").read_text().splitlines()]


def test_a_run_leaves_its_files_and_says_where_they_are(millrace):
    result = millrace.train()
    assert result.exit_code == 0, result.output
    folder = millrace.run_folder()
    names = {path.name for path in folder.iterdir()}
    assert {"params.json", "result.json", "progress.csv", "plan.txt", "checkpoints"} <= names
    assert len(results(folder)) == 2
    assert (folder / "checkpoints" / "2" / "manifest.json").is_file()
    for text in (
        "run_id     run\n",
        str(folder),
        "stopped_by training_iteration 2 >= 2",
        "iteration 2 ",
    ):
        assert text in result.stdout


def test_the_printed_command_evaluates_the_checkpoint_verbatim(
    start_millrace, millrace, tmp_path, root
):
    millrace.storage = tmp_path / "a folder; with $(odd) 'names'"
    stop = '{"training_iteration": 2}'
    code, out, err = start_millrace(*millrace.words(), "--debug", "--stop", stop).end()
    assert code == 0, err
    command = printed_command(out, "evaluate")
    checkpoint = millrace.run_folder() / "checkpoints" / "2"
    assert shlex.split(command)[-4:] == ["evaluate", str(checkpoint), "--episodes", "10"]
    done = subprocess.run(command, shell=True, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "episodes   10" in done.stdout
    assert "±" in done.stdout


def test_evaluation_takes_a_checkpoint_a_run_folder_or_a_run_id(millrace):
    assert millrace.train().exit_code == 0
    folder = millrace.run_folder()
    given = (folder / "checkpoints" / "2", folder, "run")
    found = []
    for one in given:
        words = ("--storage", millrace.storage, "--episodes", 3, "--json", "--no-log")
        result = millrace("evaluate", one, *words)
        assert result.exit_code == 0, result.output
        found.append(json.loads(result.stdout))
    assert found[0] == found[1] == found[2]
    assert found[0]["episodes"] == len(found[0]["returns"]) == 3
    assert found[0]["checkpoint"] == str(folder / "checkpoints" / "2")


def test_evaluation_prints_every_episode_with_v_and_repeats_by_seed(millrace):
    assert millrace.train().exit_code == 0
    words = ("evaluate", "run", "--storage", millrace.storage, "--episodes", 3, "--explore")
    words = (*words, "--no-log")
    first, same = millrace(*words, "-v", "--seed", 7), millrace(*words, "-v", "--seed", 7)
    assert first.stdout == same.stdout
    assert first.stdout.count(" steps\n") == 3
    assert millrace(*words, "--seed", 7).stdout.count(" steps\n") == 0


def test_evaluated_episodes_land_in_the_lake_unless_they_are_not_to(millrace):
    assert millrace.train().exit_code == 0
    words = ("evaluate", "run", "--storage", millrace.storage, "--episodes", 3)
    result = millrace(*words)
    logged = result.stdout.split("logged")[1].split()[0]
    assert "logged" not in millrace(*words, "--no-log").stdout
    query = "SELECT evaluation_id, episodes FROM evaluations"
    rows = millrace("sql", query, "--storage", millrace.storage, "--format", "json").stdout
    assert json.loads(rows) == {"evaluation_id": logged, "episodes": 3}


def test_evaluation_imports_neither_ray_nor_torch(millrace, root):
    assert millrace.train().exit_code == 0
    code = (
        "import sys\nfrom workflows.cli import cli\n"
        f"cli(['evaluate', {str(millrace.run_folder())!r}, '--episodes', '2'], "
        "standalone_mode=False)\n"
        "assert not {'ray', 'torch', 'rich'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


def test_json_is_one_object_an_iteration_and_a_summary(millrace):
    result = millrace.train("--json", iterations=3)
    assert result.exit_code == 0, result.output
    *iterations, last = [json.loads(line) for line in result.stdout.splitlines()]
    assert [r["training_iteration"] for r in iterations] == [1, 2, 3]
    summary = last["summary"]
    assert summary["result"] == iterations[-1]
    assert summary["run_id"] == "run"
    assert summary["checkpoint"] == str(millrace.run_folder() / "checkpoints" / "3")
    assert shlex.split(summary["evaluate"])[-3:] == [summary["checkpoint"], "--episodes", "10"]


def test_json_stays_alone_on_stdout_whatever_an_environment_prints(
    start_millrace, millrace, tmp_path
):
    (tmp_path / "noisy_env.py").write_text(
        "import os\nimport gymnasium as gym\n"
        "def make():\n    print('printed')\n    os.write(1, b'written\\n')\n"
        "    return gym.make('CartPole-v1')\n"
    )
    words = [*millrace.words(env="noisy_env:make"), "--debug", "--json"]
    stop = '{"training_iteration": 1}'
    process = start_millrace(*words, "--stop", stop, pythonpath=tmp_path)
    code, out, err = process.end()
    assert code == 0, err
    assert [json.loads(line) for line in out.splitlines()]
    assert "printed" in err
    assert "written" in err


def test_no_checkpoint_at_the_end_when_it_is_not_wanted(millrace):
    result = millrace.train("--no-checkpoint-at-end")
    assert result.exit_code == 0
    assert "\ncheckpoint " not in result.stdout
    assert not (millrace.run_folder() / "checkpoints").exists()


def test_checkpoints_come_as_often_as_asked(millrace):
    assert millrace.train("--checkpoint-freq", 2, iterations=5).exit_code == 0
    found = sorted(p.name for p in (millrace.run_folder() / "checkpoints").iterdir())
    assert found == ["2", "4", "5"]


def test_options_win_over_set_set_over_config_and_config_over_the_file(millrace, tmp_path):
    path = tmp_path / "F.yaml"
    path.write_text(
        "algo: ppo\nenv: CartPole-v1\nseed: 1\ngamma: 0.9\ngae_lambda: 0.9\nnum_epochs: 1\n"
        "stop: {env_steps: 1000000, episode_return_mean: 1}\n"
    )
    words = ["train", "file", path, "--debug", "--storage", millrace.storage, "--name", "run"]
    words += ["--config", '{"gamma": 0.8, "gae_lambda": 0.8, "seed": 2}']
    words += ["--set", "gae_lambda=0.7", "--set", "seed=3", "--seed", 4]
    result = millrace(*words, "--stop", '{"training_iteration": 2}')
    assert result.exit_code == 0, result.output
    params = json.loads((millrace.run_folder() / "params.json").read_text())
    assert [params[k] for k in ("num_epochs", "gamma", "gae_lambda", "seed")] == [1, 0.8, 0.7, 4]
    assert {k: v for k, v in params["stop"].items() if v is not None} == {"training_iteration": 2}


def test_an_algorithm_may_be_written_in_capitals(millrace):
    result = millrace("plan", "PPO", "--env", "CartPole-v1")
    assert result.exit_code == 0
    assert result.stdout.startswith("ppo on CartPole-v1")
    assert "AddGAE" in result.stdout


def test_a_plan_is_printed_of_a_file_with_options_over_it(millrace, tmp_path):
    path = tmp_path / "F.yaml"
    path.write_text("algo: ppo\nenv: CartPole-v1\n")
    result = millrace("plan", path, "--env", "Acrobot-v1", "--set", "rollout.num_envs=3")
    assert result.exit_code == 0
    assert "Acrobot-v1, 1 workers x 3 envs" in result.stdout


def test_a_second_run_of_the_same_name_is_refused(millrace):
    assert millrace.train().exit_code == 0
    result = millrace.train()
    assert result.exit_code == 2
    assert "another run has that name" in result.stderr
    assert "--resume run" in result.stderr
    assert len(results(millrace.run_folder())) == 2


def test_a_run_goes_on_from_its_latest_checkpoint(millrace):
    assert millrace.train().exit_code == 0
    words = ("train", "--resume", "run", "--storage", millrace.storage, "--debug")
    result = millrace(*words, "--stop", '{"training_iteration": 4}')
    assert result.exit_code == 0, result.output
    assert "resuming run from" in result.stderr
    assert [r["training_iteration"] for r in results(millrace.run_folder())] == [1, 2, 3, 4]
    assert (
        results(millrace.run_folder())[-1]["env_steps"]
        > results(millrace.run_folder())[1]["env_steps"]
    )


def test_going_on_past_the_stop_criterion_needs_a_further_one(millrace):
    assert millrace.train().exit_code == 0
    result = millrace("train", "--resume", "run", "--storage", millrace.storage, "--debug")
    assert result.exit_code == 2
    assert "the run ended at 2" in result.stderr
    assert "--stop '{\"training_iteration\": 4}'" in result.stderr


def test_a_checkpoint_starts_a_new_run_under_a_new_name(millrace):
    assert millrace.train().exit_code == 0
    path = millrace.run_folder() / "checkpoints" / "2"
    words = ("train", "--resume", path, "--storage", millrace.storage, "--debug", "--name", "two")
    result = millrace(*words, "--stop", '{"training_iteration": 3}')
    assert result.exit_code == 0, result.output
    assert [r["training_iteration"] for r in results(millrace.run_folder("two"))] == [3]
    assert len(results(millrace.run_folder())) == 2


def test_a_checkpoint_by_path_goes_on_in_the_storage_it_lies_in(millrace):
    assert millrace.train().exit_code == 0
    path = millrace.run_folder() / "checkpoints" / "2"
    result = millrace("train", "--resume", path, "--debug", "--stop", '{"training_iteration": 3}')
    assert result.exit_code == 0, result.output
    assert [r["training_iteration"] for r in results(millrace.run_folder())] == [1, 2, 3]


def test_a_damaged_checkpoint_is_passed_over_and_said_so(millrace):
    assert millrace.train("--checkpoint-freq", 1, iterations=3).exit_code == 0
    checkpoints = millrace.run_folder() / "checkpoints"
    damage(checkpoints / "3")
    words = ("train", "--resume", "run", "--storage", millrace.storage, "--debug")
    result = millrace(*words, "--stop", '{"training_iteration": 3}')
    assert result.exit_code == 0, result.output
    assert "modules.safetensors is not what was written" in result.stderr
    assert f"resuming run from {checkpoints / '2'}" in result.stderr
    assert (checkpoints / "set-aside-3").is_dir()
    assert millrace("evaluate", checkpoints / "3", "--episodes", 1).exit_code == 0


def test_a_damaged_checkpoint_is_not_evaluated(millrace):
    assert millrace.train().exit_code == 0
    checkpoint = millrace.run_folder() / "checkpoints" / "2"
    damage(checkpoint)
    by_path, by_run = millrace("evaluate", checkpoint), millrace("evaluate", millrace.run_folder())
    assert by_path.exit_code == by_run.exit_code == 2
    assert "modules.safetensors is not what was written" in by_path.stderr
    assert "has no whole checkpoint" in by_run.stderr


@pytest.mark.parametrize(
    ("setting", "named"),
    [("model.hidden=[8]", "model.hidden"), ("env=Acrobot-v1", "obs_space")],
)
def test_a_checkpoint_of_another_policy_is_refused_by_what_differs(millrace, setting, named):
    assert millrace.train().exit_code == 0
    words = ("train", "--resume", "run", "--storage", millrace.storage, "--debug")
    result = millrace(*words, "--set", setting, "--stop", '{"training_iteration": 4}')
    assert result.exit_code == 2
    assert "of another policy" in result.stderr
    assert named in result.stderr
    assert len(results(millrace.run_folder())) == 2


def test_a_checkpoint_of_another_algorithm_is_refused(millrace):
    assert millrace.train().exit_code == 0
    result = millrace("train", "a2c", "--resume", "run", "--storage", millrace.storage, "--debug")
    assert result.exit_code == 2
    assert 'the checkpoint is of "ppo"' in result.stderr


def test_a_failure_names_the_folder_and_how_to_go_on(millrace, tmp_path, monkeypatch):
    (tmp_path / "failing_env.py").write_text(
        "import gymnasium as gym\n"
        "class Failing(gym.Wrapper):\n    count = 0\n"
        "    def step(self, action):\n        Failing.count += 1\n"
        "        if Failing.count > 300: raise RuntimeError('\\x1b[2Jbroken')\n"
        "        return self.env.step(action)\n"
        "def make(): return Failing(gym.make('CartPole-v1'))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    words = [*millrace.words(env="failing_env:make"), "--debug", "--checkpoint-freq", 1]
    result = millrace(*words, "--set", "faults.max_env_failures=0")
    assert result.exit_code == 1, result.output
    assert "broken" in result.stderr
    assert "\x1b" not in result.output
    assert f"folder     {millrace.run_folder()}" in result.stderr
    assert "--resume run" in result.stderr


@pytest.mark.ray
def test_training_through_ray_prints_a_command_that_evaluates_the_checkpoint(
    start_millrace, millrace, root
):
    words = [*millrace.words(), "--json", "--stop", '{"training_iteration": 3}']
    code, out, err = start_millrace(*words).end(timeout_s=200)
    assert code == 0, err
    *iterations, last = [json.loads(line) for line in out.splitlines()]
    assert [r["training_iteration"] for r in iterations] == [1, 2, 3]
    command = last["summary"]["evaluate"]
    done = subprocess.run(command, shell=True, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "episodes   10" in done.stdout
