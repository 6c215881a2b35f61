"""Runs in an object store: their files are there, another machine goes on, and names are kept."""

import hashlib
import json
import shutil

import pytest

from offline.errors import LakeBusyError
from offline.lake import Lake
from offline.storage import Storage
from pipelines import Pipeline, PPOConfig, load_policy
from pipelines.checkpoint import Checkpoint
from pipelines.errors import CheckpointError, RunExistsError
from pipelines.remote import Mirror, address_of, fetched, folder_for, numbers_of

SMALL = {
    "env": "CartPole-v1",
    "rollout": {"num_envs": 4, "fragment_steps": 16},
    "minibatch_rows": 32,
    "num_epochs": 1,
    "evaluation": {"period_iterations": 2, "episodes": 2, "num_envs": 2},
}


@pytest.fixture
def machine(s3, tmp_path, monkeypatch):
    """A call makes this process one on a machine that has seen nothing yet."""
    count = iter(range(100))

    def new():
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"machine-{next(count)}"))

    new()
    return new


def listed(address):
    from pyarrow import fs

    root = Storage.at(address).filesystem()
    infos = root.get_file_info(fs.FileSelector("", recursive=True, allow_not_found=True))
    return {info.path for info in infos if info.type == fs.FileType.File}


def text(address, name):
    with Storage.at(address).filesystem().open_input_stream(name) as stream:
        return stream.read().decode()


def train(address, iterations, **options):
    config = PPOConfig(**SMALL, checkpoint={"period_iterations": 2, "keep": 2})
    stop = {"stop": {"training_iteration": iterations}}
    with config.with_overrides(stop).build(storage=address, debug=True, **options) as pipeline:
        return list(pipeline.stream())


def test_a_runs_files_and_lake_are_there_and_only_its_newest_checkpoints(machine, s3_folder):
    results = train(s3_folder, 6, name="r")
    assert results[-1]["checkpoint"] == f"{s3_folder}/r/checkpoints/6"
    there = {path for path in listed(s3_folder) if path.startswith("r/")}
    assert {"r/params.json", "r/plan.txt", "r/result.json", "r/progress.csv"} <= there
    assert any("events.out.tfevents" in path for path in there)
    assert numbers_of([path.removeprefix("r/") for path in there]) == [4, 6]
    rows = [json.loads(line) for line in text(s3_folder, "r/result.json").splitlines()]
    assert [row["training_iteration"] for row in rows] == [1, 2, 3, 4, 5, 6]
    lake = Lake(f"{s3_folder}/lake")
    found = lake.sql("SELECT path FROM checkpoints ORDER BY checkpoint_id")["path"].to_pylist()
    assert found == [f"{s3_folder}/r/checkpoints/{k}" for k in (2, 4, 6)]
    assert lake.sql("SELECT status FROM runs")["status"].to_pylist() == ["finished"]


def test_another_machine_goes_on_as_this_one_would(machine, s3_folder, tmp_path):
    train(f"{s3_folder}/a", 4, name="r")
    machine()
    with Pipeline.from_checkpoint(f"{s3_folder}/a/r/checkpoints/4", debug=True) as pipeline:
        there = [pipeline.train() for _ in range(2)]
        saved = pipeline.save()
    assert address_of(saved) == f"{s3_folder}/a/r/checkpoints/6"
    here = train(tmp_path / "b", 4, name="r")[-1]["checkpoint"]
    with Pipeline.from_checkpoint(here, debug=True) as pipeline:
        local = [pipeline.train() for _ in range(2)]
    for one, other in zip(there, local, strict=True):
        keys = [key for key in other if key.startswith(("learner/", "env_steps", "episode"))]
        keys.remove("env_steps_per_s")
        assert {key: one[key] for key in keys} == {key: other[key] for key in keys}
    assert numbers_of([p.removeprefix("a/r/") for p in listed(s3_folder)]) == [5, 6]
    rows = [json.loads(line) for line in text(s3_folder, "a/r/result.json").splitlines()]
    assert [row["training_iteration"] for row in rows] == [1, 2, 3, 4, 5, 6]
    doubles = Lake(f"{s3_folder}/a/lake").sql(
        "SELECT count(*) - count(DISTINCT (session, episode_id, t)) AS n FROM steps"
    )
    assert doubles["n"].to_pylist() == [0]


def test_a_run_is_the_machines_that_went_on_with_it_last(machine, s3_folder):
    config = PPOConfig(
        **SMALL, checkpoint={"period_iterations": 2}, trace={"commit_interval_s": 0.01}
    )
    first = config.build(storage=s3_folder, debug=True, name="r")
    for _ in range(2):
        first.train()
    machine()
    with Pipeline.from_checkpoint(f"{s3_folder}/r", debug=True) as second:
        for _ in range(2):
            second.train()
        written = text(s3_folder, "r/checkpoints/4/manifest.json")
        with pytest.raises(LakeBusyError, match="as 'r/0', and was first"):
            [first.train() for _ in range(3)]
        told = text(s3_folder, "r/result.json")
        with pytest.raises(LakeBusyError, match="as 'r/driver', and was first"):
            first.close()
        assert text(s3_folder, "r/result.json") == told
        assert text(s3_folder, "r/checkpoints/4/manifest.json") == written
        assert second.train()["training_iteration"] == 5
    lake = Lake(f"{s3_folder}/lake")
    doubles = "SELECT count(*) - count(DISTINCT (session, episode_id, t)) AS n FROM steps"
    assert lake.sql(doubles)["n"].to_pylist() == [0]
    sessions = "SELECT session, count(*) AS n FROM checkpoints GROUP BY session ORDER BY session"
    assert lake.sql(sessions)["n"].to_pylist() == [1, 1]
    (logged,) = lake.sql("SELECT sha256 FROM checkpoints WHERE checkpoint_id = 4").to_pylist()
    assert logged["sha256"] == hashlib.sha256(written.encode()).hexdigest()
    rows = [json.loads(line) for line in text(s3_folder, "r/result.json").splitlines()]
    assert [row["training_iteration"] for row in rows] == [1, 2, 3, 4, 5]


def test_going_on_from_an_older_checkpoint_sets_the_later_ones_aside(machine, s3_folder):
    train(s3_folder, 4, name="r")
    machine()
    with Pipeline.from_checkpoint(f"{s3_folder}/r/checkpoints/2", debug=True) as pipeline:
        assert pipeline.train()["training_iteration"] == 3
    there = {path.removeprefix("r/") for path in listed(s3_folder)}
    assert numbers_of(sorted(there)) == [2]
    assert any(path.startswith("checkpoints/set-aside-4") for path in there)


def test_a_name_is_a_runs_wherever_it_was_started(machine, s3_folder):
    train(s3_folder, 2, name="r")
    machine()
    with pytest.raises(RunExistsError, match=f"{s3_folder}/r exists already"):
        train(s3_folder, 2, name="r")


def test_a_run_that_was_removed_there_is_a_new_one_here(machine, s3_folder):
    train(s3_folder, 2, name="r")
    root = Storage.at(s3_folder).filesystem()
    for path in (path for path in listed(s3_folder) if path.startswith("r/")):
        root.delete_file(path)
    results = train(s3_folder, 2, name="r")
    assert [row["training_iteration"] for row in results] == [1, 2]


def test_a_policy_is_loaded_from_its_address(machine, s3_folder):
    train(s3_folder, 2, name="r")
    machine()
    newest, named = (load_policy(f"{s3_folder}/r{end}") for end in ("", "/checkpoints/2"))
    obs = [0.01, -0.02, 0.03, 0.04]
    assert newest.act(obs)[0] == named.act(obs)[0]


def test_an_upload_that_was_cut_short_is_no_checkpoint(machine, s3_folder):
    train(s3_folder, 4, name="r")
    Storage.at(s3_folder).filesystem().delete_file("r/checkpoints/4/manifest.json")
    machine()
    assert fetched(f"{s3_folder}/r").name == "2"
    with pytest.raises(CheckpointError, match="no whole checkpoint 4; it has 2"):
        fetched(f"{s3_folder}/r/checkpoints/4")


def test_another_run_of_the_same_name_is_not_taken_for_what_was_fetched_before(machine, s3_folder):
    train(s3_folder, 2, name="r")
    before = load_policy(f"{s3_folder}/r").get_weights().module
    root = Storage.at(s3_folder).filesystem()
    for path in (path for path in listed(s3_folder) if path.startswith("r/")):
        root.delete_file(path)
    config = PPOConfig(**SMALL, seed=7, stop={"training_iteration": 2})
    with config.build(storage=s3_folder, debug=True, name="r") as pipeline:
        list(pipeline.stream())
        wanted = pipeline.get_policy().get_weights().module
    after = load_policy(f"{s3_folder}/r").get_weights().module
    for name in before:
        assert not (after[name] == before[name]).all()
        assert (after[name] == wanted[name]).all()


def test_an_altered_file_is_refused(machine, s3_folder):
    train(s3_folder, 2, name="r")
    machine()
    with Storage.at(s3_folder).filesystem().open_output_stream("r/checkpoints/2/state.json") as out:
        out.write(b"{}")
    with pytest.raises(CheckpointError, match="state.json"):
        Checkpoint(fetched(f"{s3_folder}/r"))


@pytest.mark.parametrize("given", ["nonesuch", "r/checkpoints/9"])
def test_what_is_not_there_is_said(machine, s3_folder, given):
    train(s3_folder, 2, name="r")
    with pytest.raises(CheckpointError, match="no run at|has no whole checkpoint 9; it has 2"):
        fetched(f"{s3_folder}/{given}")


def test_reading_leaves_a_run_that_is_written_alone(machine, s3_folder):
    config = PPOConfig(**SMALL)
    with config.build(storage=s3_folder, name="r", debug=True) as pipeline:
        pipeline.train()
        pipeline.save()
        before = (pipeline.folder.path / "result.json").read_text()
        pipeline.train()
        assert fetched(f"{s3_folder}/r").name == "1"
        assert (pipeline.folder.path / "result.json").read_text() != before
        with pytest.raises(RunExistsError, match="is running in another process"):
            Pipeline.from_checkpoint(f"{s3_folder}/r", debug=True)


def test_names_of_paths(machine, s3_folder, tmp_path):
    folder = folder_for(s3_folder)
    assert address_of(folder / "r" / "checkpoints" / "3") == f"{s3_folder}/r/checkpoints/3"
    assert address_of(folder) == s3_folder
    assert address_of(tmp_path / "r") == str(tmp_path / "r")
    assert folder_for(s3_folder + "/") == folder
    shutil.rmtree(folder)
    assert folder_for(s3_folder) == folder


def test_files_are_copied_when_they_changed_and_not_all_the_time(machine, s3_folder, monkeypatch):
    sent = []
    mirror = Mirror(folder_for(s3_folder), "r")
    monkeypatch.setattr(mirror, "_upload", lambda path, name: sent.append(name))
    (mirror.folder / "videos").mkdir(parents=True)
    (mirror.folder / "a").write_text("1")
    (mirror.folder / "videos" / "b").write_text("2")
    (mirror.folder / ".lock").write_text("")
    mirror.push(now=True)
    assert sorted(sent) == ["a", "videos/b"]
    (mirror.folder / "a").write_text("12")
    mirror.push()
    assert len(sent) == 2
    mirror.push(now=True)
    assert sent[2:] == ["a"]
