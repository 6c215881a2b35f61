"""`millrace lake`: what it prints, what it leaves, and its exit codes."""

import json
import os
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from offline.storage import Storage
from tests.offline.doctor_kit import commit_file, data_files, opened, rows_of, small_lake
from workflows.cli import LazyGroup

ROOT = LazyGroup("millrace", commands={"lake": "workflows.lake:lake"})


@pytest.fixture
def lake(tmp_path: Path) -> Storage:
    return small_lake(tmp_path / "lake", batches=3)


def run(lake: Storage, *words: str) -> Result:
    storage = os.path.dirname(lake.uri)
    return CliRunner().invoke(ROOT, ["lake", *words, "--storage", storage])


def json_lines(result: Result) -> list[dict]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_it_is_a_group_of_commands() -> None:
    from workflows.lake import lake as command

    assert isinstance(command, click.Group)
    assert set(command.commands) == {"history", "compact", "vacuum", "doctor", "maintain"}


def test_history_is_shown_newest_first(lake: Storage) -> None:
    result = run(lake, "history", "--table", "steps", "--limit", "2")
    assert result.exit_code == 0
    head, newest, older = result.stdout.splitlines()
    assert head == "steps"
    assert newest.split()[0] == "3"
    assert "20 rows  +1 -0  r0/0 #2  fragments 4-5" in newest
    assert older.split()[0] == "2"


def test_history_as_json(lake: Storage) -> None:
    rows = json_lines(run(lake, "history", "--table", "steps", "--json"))
    assert [row["version"] for row in rows] == [3, 2, 1, 0]
    assert rows[0]["fragments"] == [4, 5]
    assert rows[0]["at"].endswith("+00:00")


def test_compact_says_what_it_did(lake: Storage) -> None:
    before = rows_of(lake)
    result = run(lake, "compact", "--run", "r0", "--table", "steps")
    assert result.exit_code == 0
    assert result.stdout.startswith("steps        3 files of ")
    assert rows_of(lake) == before
    assert "nothing to compact" in run(lake, "compact", "--table", "steps").stdout


def test_vacuum_removes_with_yes_only(lake: Storage) -> None:
    old = data_files(lake)
    run(lake, "compact")
    for path in old:
        os.utime(path, (0, 0))
    result = run(lake, "vacuum", "--retention-hours", "0", "--force", "--table", "steps")
    assert "3 files would go" in result.stdout
    assert all(path.exists() for path in old)
    result = run(lake, "vacuum", "--retention-hours", "0", "--force", "--table", "steps", "--yes")
    assert "3 files removed" in result.stdout
    assert not any(path.exists() for path in old)


def test_vacuum_of_less_than_a_week_is_bad_input(lake: Storage) -> None:
    result = run(lake, "vacuum", "--retention-hours", "1")
    assert result.exit_code == 2
    assert "--force" in result.stderr


def test_doctor_of_a_healthy_lake(lake: Storage) -> None:
    result = run(lake, "doctor", "--deep")
    assert result.exit_code == 0
    assert result.stdout == f"nothing found: {lake.uri} is whole\n"
    assert run(lake, "doctor", "--json").stdout == ""


def test_doctor_leaves_with_1_when_there_is_an_error(lake: Storage) -> None:
    commit_file(lake, 3).write_bytes(b"")
    result = run(lake, "doctor")
    assert result.exit_code == 1
    assert "commit 3 is an empty file" in result.stdout
    assert "fix: " in result.stdout
    rows = json_lines(run(lake, "doctor", "--json"))
    assert {"empty-commit", "lost-commit"} <= {row["kind"] for row in rows}


def test_doctor_repairs(lake: Storage) -> None:
    opened(lake).optimize.compact()
    result = run(lake, "doctor")
    assert result.exit_code == 0
    assert "unentered-compaction" in result.stdout
    result = run(lake, "doctor", "--repair")
    assert "in the ledger" in result.stdout
    assert "nothing found" in result.stdout


def test_a_missing_lake_and_a_missing_table_are_bad_input(lake: Storage, tmp_path: Path) -> None:
    for words in (["doctor"], ["history"], ["compact"], ["vacuum"]):
        nothing = Storage.at(tmp_path / "nothing" / "lake")
        result = run(nothing, *words)
        assert result.exit_code == 2
        assert "there is no lake at" in result.stderr
        result = run(lake, *words, "--table", "stepz")
        assert result.exit_code == 2
        assert "no table 'stepz'" in result.stderr
