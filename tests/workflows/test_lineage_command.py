"""`millrace lineage`: from a checkpoint's folder to the rows that made it, and back."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from offline.lake import Lake
from pipelines.checkpoint import write_checkpoint
from tests.offline.traces_kit import (
    checkpoint,
    consumed,
    empty_lake,
    put,
    resumed_from,
    run_row,
    steps,
)
from workflows.cli import LazyGroup

CLI = LazyGroup("millrace", commands={"lineage": "workflows.lineage:lineage"})
CONFIG = {"algo": "ppo", "env": {"id": "CartPole-v1"}, "seed": 1}


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    return tmp_path / "storage"


@pytest.fixture
def lake(storage: Path) -> Lake:
    """Session 0 consumed 0..7; session 1 went on from its checkpoint 2, and consumed 4..7."""
    storage.mkdir()
    lake = empty_lake(storage / "lake")
    for session, ids in ((0, range(8)), (1, range(4, 8))):
        put(lake, "steps", steps("r", session, ids))
        put(lake, "consumption", consumed("r", session, ids, 100 * session))
    code = json.dumps({"commit": "abc", "command": ["millrace", "train", "a b"]})
    about = {"algo": "ppo", "env": "CartPole-v1", "seed": 1, "code": code}
    rows = [run_row("r", 0, config=CONFIG, packages='{"ray": "2.60.0"}', **about)]
    rows += [run_row("r", 1, config=CONFIG, resumed_from=resumed_from(0, 2), **about)]
    put(lake, "runs", rows)
    return lake


def saved(storage: Path, number: int, session: int, **lake: Any) -> Path:
    """A checkpoint of run r on disk."""
    state: dict[str, Any] = {
        "run_id": "r",
        "loop": {"iteration": number, "incarnation": session},
        "lake": {"uri": str(storage / "lake"), "session": session, **lake},
    }
    tensors = {group: {"w": torch.zeros(1)} for group in ("modules", "optimizers")}
    folder = storage / "r" / "checkpoints" / f"{number:06d}"
    return write_checkpoint(folder, tensors=tensors, state=state, config=CONFIG)


def noted(lake: Lake, folder: Path, number: int, session: int, fragments: int) -> None:
    """The row that a run writes of a checkpoint."""
    from hashlib import sha256

    digest = sha256((folder / "manifest.json").read_bytes()).hexdigest()
    row = checkpoint("r", session, number, fragments, 1000 * session + number)
    put(lake, "checkpoints", [row | {"path": str(folder), "sha256": digest}])


@pytest.fixture
def folder(lake: Lake, storage: Path) -> Path:
    put(lake, "checkpoints", [checkpoint("r", 0, 2, 4, 2)])
    path = saved(storage, 4, 1)
    noted(lake, path, 4, 1, 8)
    return path


def run(*words: object) -> Result:
    return CliRunner().invoke(CLI, ["lineage", *map(str, words)], prog_name="millrace")


def record(*words: object) -> Any:
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_checkpoint_is_traced_through_the_resume(folder: Path) -> None:
    result = run(folder)
    assert result.exit_code == 0, result.output
    text = result.stdout
    for line in (
        f"checkpoint  {folder}",
        "run         r, session 1, iteration 4",
        "manifest    as the lake noted it",
        "trained on  80 rows in 8 fragments",
        "tables      steps=4",
        "  from       checkpoint 2 of session 0",
        "  used       4 fragments with ids below 8: 40 rows",
        "  used       4 fragments with ids below 4: 40 rows",
        "  from       the beginning",
        "  algorithm  ppo on CartPole-v1, seed 1",
        "  packages   ray 2.60.0",
        "  code       commit abc, millrace train 'a b'",
    ):
        assert line in text.splitlines(), text


def test_the_same_by_run_folder_and_by_id(folder: Path, storage: Path) -> None:
    by_folder = record(folder)
    assert record(storage / "r") == by_folder
    assert record("r", "--storage", storage) == by_folder
    assert by_folder["rows"] == 80
    assert by_folder["manifest"] == by_folder["config"] == "same"
    assert [part["session"] for part in by_folder["sessions"]] == [1, 0]
    assert by_folder["sessions"][0]["resumed_from"]["checkpoint"]["fragments"] == 4
    assert by_folder["gaps"] == []


def test_a_checkpoint_whose_folder_is_gone_is_traced_by_the_lake(
    folder: Path, storage: Path
) -> None:
    found = record("r", "--number", 2, "--storage", storage)
    assert (found["rows"], found["folder"], found["manifest"]) == (40, None, "unknown")


def test_a_folder_that_is_not_what_the_lake_noted_fails(folder: Path) -> None:
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n")  # whole by itself, and yet another file
    result = run(folder)
    assert result.exit_code == 1
    assert "manifest    DIFFERS from what the lake noted" in result.stdout


def test_a_checkpoint_without_a_row_is_traced_by_what_it_notes(lake: Lake, storage: Path) -> None:
    put(lake, "checkpoints", [checkpoint("r", 0, 2, 4, 2)])
    path = saved(storage, 3, 1, fragments=6, versions={"steps": 2})
    found = record(path)
    assert (found["rows"], found["manifest"], found["config"]) == (60, "unknown", "same")
    assert found["checkpoint"]["table_versions"] == {"steps": 2}


def test_the_lake_that_knows_the_checkpoint_is_asked(
    folder: Path, storage: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    empty_lake(other / "lake")
    assert record(folder, "--storage", other)["rows"] == 80
    (storage / "lake").rename(tmp_path / "moved")
    assert run(folder, "--storage", other).exit_code == 2
    (tmp_path / "moved").rename(storage / "lake")
    storage.rename(tmp_path / "copy")  # what the checkpoint notes is not there any more
    moved = tmp_path / "copy" / folder.relative_to(storage)
    assert record(moved)["manifest"] == "same"


def test_a_run_without_a_lake_is_bad_input(lake: Lake, storage: Path) -> None:
    result = run(saved(storage, 3, 1))
    assert result.exit_code == 2
    assert "its run logged none" in result.stderr


def test_a_checkpoint_that_is_not_there_is_bad_input(lake: Lake, storage: Path) -> None:
    result = run("rr", "--storage", storage)
    assert (result.exit_code, "no run" in result.stderr) == (2, True)
    result = run("r", "--number", 77, "--storage", storage)
    assert result.exit_code == 2


def test_checkpoints_are_found_by_fragment_and_by_episode(folder: Path, storage: Path) -> None:
    at = ["--storage", storage]
    assert [x["checkpoint"]["checkpoint_id"] for x in record("--fragment", "r:0:3", *at)] == [2, 4]
    assert [x["checkpoint"]["session"] for x in record("--fragment", "r:1:5", *at)] == [1]
    assert record("--fragment", "r:0:5", *at) == []  # consumed, and left behind by the resume
    result = run("--fragment", "r:0:5", *at)
    assert result.stdout == "no checkpoint was trained on it\n"
    put(
        Lake(storage / "lake"),
        "episodes",
        [{"run_id": "r", "session": 1, "episode_id": "r/00000.1000/0000000", "length": 15}],
    )
    result = run("--episode", "r/00000.1000", *at)
    assert result.exit_code == 0, result.output
    head, line = result.stdout.splitlines()
    assert head.split()[:4] == ["checkpoint", "run", "session", "iteration"]
    assert line.split() == [str(folder), "r", "1", "4", "1:4,", "1:5"]


@pytest.mark.parametrize("text", ["r", "r:0", "r:x:1", ":0:1", "r:0:-1", "r:0:"])
def test_a_fragment_of_another_form_is_bad_input(lake: Lake, storage: Path, text: str) -> None:
    result = run("--fragment", text, "--storage", storage)
    assert result.exit_code == 2
    assert "RUN:SESSION:ID" in result.stderr


def test_one_thing_at_a_time_is_asked(lake: Lake, storage: Path) -> None:
    for words in ([], ["r", "--fragment", "r:0:1"]):
        result = run(*words, "--storage", storage)
        assert result.exit_code == 2
        assert "give one of CHECKPOINT, --episode and --fragment" in result.stderr
