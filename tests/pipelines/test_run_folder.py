"""The files of a run: one process at a time, names that stay inside, lines that survive a kill."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from offline.lake import Lake
from pipelines import Pipeline, PPOConfig
from pipelines.checkpoint import PARTIAL
from pipelines.errors import RunExistsError, StorageError
from pipelines.run_folder import RunFolder, check_run_id, read_results

ROOT = Path(__file__).parents[2]


def result(iteration, **extra):
    values = {"run_id": "r", "training_iteration": iteration, "env_steps": 100 * iteration}
    return {**values, "episode_return_mean": 1.5, "stopped_by": None, **extra}


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def small(**values):
    rollout = {"num_envs": 4, "fragment_steps": 16}
    return PPOConfig(env="CartPole-v1", rollout=rollout, model={"hidden": (8,)}, **values)


# --- names ---


@pytest.mark.parametrize("run_id", ["a", "ppo-CartPole-v1-20261122-abc", "1", "a..b", "x" * 128])
def test_names_that_are_plain_are_taken(run_id):
    assert check_run_id(run_id) == run_id


@pytest.mark.parametrize(
    "run_id",
    [
        "",
        ".",
        "..",
        "../up",
        "a/../../b",
        "/etc/cron.d/x",
        "a/b",
        "a\\b",
        "a\0b",
        "a\n",
        "\x1b[31mred",
        "-rf",
        ".hidden",
        "späte",
        "a b",
        "x" * 129,
    ],
)
def test_names_that_could_leave_the_folder_or_paint_the_terminal_are_refused(run_id, tmp_path):
    storage = tmp_path / "storage"
    with pytest.raises(ValueError, match="cannot name a folder") as caught:
        RunFolder(storage, run_id)
    assert str(caught.value).isprintable()
    with pytest.raises(ValueError, match="cannot name a folder"):
        Pipeline(small(), storage=storage, name=run_id or "\0", debug=True)
    assert list(tmp_path.iterdir()) == []


# --- one process at a time ---


def test_a_second_run_of_the_same_name_is_refused_with_what_to_do(tmp_path):
    RunFolder(tmp_path, "run").close()
    with pytest.raises(RunExistsError, match=r"run exists already.*--name.*--resume run"):
        RunFolder(tmp_path, "run")


def test_a_run_that_is_running_is_not_gone_on_with(tmp_path):
    running = RunFolder(tmp_path, "run")
    running.write_result(result(1), tensorboard=False)
    with pytest.raises(RunExistsError, match="is running in another process"):
        RunFolder(tmp_path, "run", resume_at=0)
    running.close()
    assert len(lines(tmp_path / "run" / "result.json")) == 1
    RunFolder(tmp_path, "run", resume_at=1).close()


_HOLD = """
import os, sys, time
from pathlib import Path
from pipelines.run_folder import RunFolder
folder = RunFolder(Path(sys.argv[1]), "run")
folder.write_result({"training_iteration": 1, "env_steps": 2}, tensorboard=False)
print("held", flush=True)
time.sleep(60)
"""


def test_a_live_process_holds_the_run_and_a_killed_one_gives_it_up_with_its_lines(tmp_path):
    command = [sys.executable, "-c", _HOLD, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(RunExistsError, match="another process"):
            RunFolder(tmp_path, "run", resume_at=1)
        os.kill(process.pid, signal.SIGKILL)
    RunFolder(tmp_path, "run", resume_at=1).close()
    assert lines(tmp_path / "run" / "result.json")[0]["env_steps"] == 2
    assert rows(tmp_path / "run" / "progress.csv")[0]["env_steps"] == "2"


def test_a_pipeline_holds_its_run_until_it_is_closed(tmp_path):
    with Pipeline(small(), storage=tmp_path, name="run", debug=True) as pipeline:
        path = pipeline.save()
        with pytest.raises(RunExistsError):
            Pipeline(small(), storage=tmp_path, name="run", debug=True)
        with pytest.raises(RunExistsError):
            Pipeline.from_checkpoint(path, debug=True)
        assert pipeline.train()["training_iteration"] == 1
    Pipeline.from_checkpoint(path, debug=True).close()


# --- storage that cannot be used ---


def test_a_file_in_place_of_the_storage_is_refused_as_storage(tmp_path):
    (tmp_path / "storage").write_text("mine")
    with pytest.raises(StorageError, match=r"storage: .*exists.*--storage"):
        RunFolder(tmp_path / "storage", "run")
    assert (tmp_path / "storage").read_text() == "mine"


def test_a_file_above_the_storage_is_refused_as_storage(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write to"):
        RunFolder(tmp_path / "file" / "storage", "run")


def test_a_storage_without_permission_is_refused_with_what_to_do(tmp_path, monkeypatch):
    # These tests may run as root, whom no mode keeps out.
    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StorageError, match=r"Permission denied.*--storage.*write permission"):
        RunFolder(tmp_path / "storage", "run")


def test_a_read_only_run_folder_is_refused_as_storage(tmp_path, monkeypatch):
    RunFolder(tmp_path, "run").close()

    def refuse(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StorageError, match="Read-only file system"):
        RunFolder(tmp_path, "run", resume_at=0)


def test_a_run_that_cannot_start_leaves_nothing_but_its_failure_in_the_lake(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no")

    monkeypatch.setattr("pipelines.pipeline.LocalBackend", fail)
    with pytest.raises(RuntimeError, match="no"):
        Pipeline(small(), storage=tmp_path, name="run", debug=True)
    assert not (tmp_path / "run").exists()
    (started, ended) = Lake(tmp_path / "lake").runs().to_arrow().sort_by("at").to_pylist()
    assert (started["status"], ended["status"]) == ("running", "failed")
    assert ended["message"] == "RuntimeError: no"
    monkeypatch.undo()
    Pipeline(small(), storage=tmp_path, name="run", debug=True).close()


# --- contents ---


def test_a_run_writes_its_parameters_plan_results_progress_and_events(tmp_path):
    config = small(stop={"training_iteration": 3})
    with Pipeline(config, storage=tmp_path, name="run", debug=True) as pipeline:
        results = list(pipeline.stream())
        folder = pipeline.folder.path
    assert PPOConfig(**json.loads((folder / "params.json").read_text())) == config
    assert (folder / "plan.txt").read_text().startswith("ppo on CartPole-v1\n")
    assert lines(folder / "result.json") == [dict(r) for r in results]
    assert results[-1]["stopped_by"] == "training_iteration 3 >= 3"
    assert results[-1]["checkpoint"] == str(folder / "checkpoints" / "3")
    assert Path(results[-1]["checkpoint"]).is_dir()
    progress = rows(folder / "progress.csv")
    assert [int(row["training_iteration"]) for row in progress] == [1, 2, 3]
    assert [float(row["learner/value_loss"]) for row in progress] == [
        r["learner/value_loss"] for r in results
    ]
    assert [row["checkpoint"] for row in progress] == ["", "", results[-1]["checkpoint"]]


def test_result_keys_of_the_contract_are_there(tmp_path):
    with Pipeline(small(), storage=tmp_path, debug=True) as pipeline:
        keys = pipeline.train().keys()
    wanted = """run_id training_iteration env_steps env_steps_per_s episodes episode_return_mean
        episode_return_min episode_return_max episode_length_mean policy_version policy_lag_mean
        policy_lag_max time_s time/wait_s time/update_s time/rollout_s time/iteration_s
        learner/policy_loss learner/value_loss grad_steps stopped_by"""
    assert set(wanted.split()) <= keys


def test_events_can_be_read_by_tensorboard_as_what_was_written(tmp_path):
    folder = RunFolder(tmp_path, "run")
    for i in (1, 2):
        folder.write_result(result(i, **{"learner/loss": i / 2}), tensorboard=True)
    folder.close()
    assert scalars(tmp_path / "run") == {
        "training_iteration": [(100, 1.0), (200, 2.0)],
        "env_steps": [(100, 100.0), (200, 200.0)],
        "episode_return_mean": [(100, 1.5), (200, 1.5)],
        "learner/loss": [(100, 0.5), (200, 1.0)],
    }


def test_no_event_files_where_they_are_not_wanted(tmp_path):
    config = small(reporting={"tensorboard": False})
    with Pipeline(config, storage=tmp_path, name="run", debug=True) as pipeline:
        pipeline.train()
    assert not list((tmp_path / "run").glob("events*"))


def scalars(folder):
    """{tag: [(step, value), ...]} of all event files, as their protocol buffers say."""
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data = path.read_bytes()
        while data:
            # length (8), its checksum (4), the event, its checksum (4)
            size = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_a_figure_that_is_not_finite_is_null_in_result_json_which_stays_json(tmp_path):
    folder = RunFolder(tmp_path, "run")
    folder.write_result(result(1, a=math.nan, b=math.inf, c=1.5), tensorboard=True)
    folder.close()

    def refuse(constant):
        raise AssertionError(constant)

    line = (tmp_path / "run" / "result.json").read_text()
    assert json.loads(line, parse_constant=refuse) == result(1, a=None, b=None, c=1.5)


def test_a_key_that_comes_later_gets_a_column_in_progress_csv(tmp_path):
    folder = RunFolder(tmp_path, "run")
    folder.write_result(result(1), tensorboard=False)
    folder.write_result(result(2, **{"evaluation/episode_return_mean": 9.0}), tensorboard=False)
    folder.write_result(result(3), tensorboard=False)
    folder.close()
    progress = rows(tmp_path / "run" / "progress.csv")
    assert [row["training_iteration"] for row in progress] == ["1", "2", "3"]
    assert [row["evaluation/episode_return_mean"] for row in progress] == ["", "9.0", ""]


# --- resume ---


def earlier_session(storage, count):
    folder = RunFolder(storage, "run")
    folder.write_start({"old": True}, "plan")
    for i in range(1, count + 1):
        folder.write_result(result(i), tensorboard=True)
    folder.close()
    return storage / "run"


def test_results_after_the_checkpoint_are_cut_off_and_the_run_goes_on_behind_it(tmp_path):
    path = earlier_session(tmp_path, 5)
    folder = RunFolder(tmp_path, "run", resume_at=3)
    for i in (4, 5, 6):
        folder.write_result(result(i, new=True), tensorboard=True)
    folder.close()
    assert [r["training_iteration"] for r in lines(path / "result.json")] == [1, 2, 3, 4, 5, 6]
    assert [r.get("new") for r in lines(path / "result.json")] == [None] * 3 + [True] * 3
    progress = rows(path / "progress.csv")
    assert [row["training_iteration"] for row in progress] == ["1", "2", "3", "4", "5", "6"]
    assert [row["new"] for row in progress] == [""] * 3 + ["True"] * 3


def test_lines_that_a_kill_cut_short_are_dropped(tmp_path):
    path = earlier_session(tmp_path, 3)
    for name in ("result.json", "progress.csv"):
        whole = (path / name).read_bytes()
        (path / name).write_bytes(whole[: whole[:-1].rindex(b"\n") + 10])
    folder = RunFolder(tmp_path, "run", resume_at=2)
    folder.write_result(result(3), tensorboard=False)
    folder.close()
    assert [r["training_iteration"] for r in lines(path / "result.json")] == [1, 2, 3]
    assert [r["training_iteration"] for r in rows(path / "progress.csv")] == ["1", "2", "3"]


@pytest.mark.parametrize("junk", [b"", b"\n\n", b"null\n", b"[]\n", b"{}\n", b"x" * 100])
def test_junk_in_the_files_of_an_earlier_session_does_not_stop_a_resume(junk, tmp_path):
    path = earlier_session(tmp_path, 2)
    for name in ("result.json", "progress.csv"):
        with (path / name).open("ab") as file:
            file.write(junk)
    RunFolder(tmp_path, "run", resume_at=2).close()
    assert [r["training_iteration"] for r in read_results(path / "result.json")] == [1, 2]
    assert [r["training_iteration"] for r in rows(path / "progress.csv")] == ["1", "2"]


def test_a_resume_without_results_begins_them(tmp_path):
    RunFolder(tmp_path, "run").close()
    folder = RunFolder(tmp_path, "run", resume_at=7)
    folder.write_result(result(8), tensorboard=False)
    folder.close()
    assert len(lines(tmp_path / "run" / "result.json")) == 1


def test_later_checkpoints_are_set_aside_and_remains_of_a_killed_write_removed(tmp_path):
    path = earlier_session(tmp_path, 1)
    for name in ("2", "3", "10", "set-aside-10", f"{PARTIAL}4.abcd"):
        (path / "checkpoints" / name).mkdir(parents=True)
    folder = RunFolder(tmp_path, "run", resume_at=2)
    folder.close()
    left = sorted(p.name for p in folder.checkpoints.iterdir())
    assert left == ["2", "set-aside-10", "set-aside-10-2", "set-aside-3"]
    assert sorted(p.name for p in folder.set_aside) == ["set-aside-10-2", "set-aside-3"]


def test_a_run_resumed_from_an_earlier_checkpoint_writes_later_ones_anew(tmp_path):
    config = small(checkpoint={"period_iterations": 1, "keep": 2}, stop={"training_iteration": 3})
    with Pipeline(config, storage=tmp_path, name="run", debug=True) as pipeline:
        list(pipeline.stream())
        checkpoints = pipeline.folder.checkpoints
    assert sorted(p.name for p in checkpoints.iterdir()) == ["2", "3"]
    (checkpoints / "3" / "mark").write_text("of the first session")
    with Pipeline.from_checkpoint(checkpoints / "2", debug=True) as pipeline:
        assert [r["training_iteration"] for r in pipeline.stream()] == [3]
    assert sorted(p.name for p in checkpoints.iterdir()) == ["2", "3", "set-aside-3"]
    assert not (checkpoints / "3" / "mark").exists()


def test_a_checkpoint_goes_on_under_another_name_in_a_folder_of_its_own(tmp_path):
    with Pipeline(small(), storage=tmp_path, name="run", debug=True) as pipeline:
        pipeline.train()
        path = pipeline.save()
        pipeline.train()
    with Pipeline.from_checkpoint(path, name="branch", debug=True) as branch:
        assert branch.train()["training_iteration"] == 2
    assert branch.folder.path == tmp_path / "branch"
    assert len(lines(tmp_path / "run" / "result.json")) == 2
    assert len(lines(tmp_path / "branch" / "result.json")) == 1
