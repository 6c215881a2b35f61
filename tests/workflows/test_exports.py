"""`millrace export`: selections, formats, and back again."""

import json

import pytest
from click.testing import CliRunner

from offline.errors import LakeError
from tests.offline.interop_kit import CARTPOLE, episodes, lake_of
from workflows.exits import BAD_INPUT
from workflows.exports import export_data
from workflows.imports import import_data


@pytest.fixture
def storage(tmp_path):
    lake_of(tmp_path / "storage", CARTPOLE, episodes(CARTPOLE, 3, 9, 5), run_id="one")
    lake_of(tmp_path / "storage", CARTPOLE, episodes(CARTPOLE, 4), run_id="two")
    return tmp_path / "storage"


@pytest.fixture
def millrace_export(storage):
    def run(*words):
        words = [str(word) for word in words]
        return CliRunner().invoke(export_data, [*words, "--storage", str(storage)])

    return run


@pytest.mark.parametrize("kind", ["minari", "rllib", "parquet", "csv"])
def test_each_format_comes_back_through_its_import(millrace_export, storage, tmp_path, kind):
    result = millrace_export(kind, tmp_path / "out", "--run", "one")
    assert result.exit_code == 0, result.output
    assert "episodes   3" in result.output
    assert "rows       17" in result.output
    words = [kind, str(tmp_path / "out"), "--storage", str(storage), "--name", "back", "--json"]
    back = CliRunner().invoke(import_data, words)
    assert back.exit_code == 0, back.output
    found = json.loads(back.stdout)
    assert (found["episodes"], found["rows"], found["rejected"]) == (3, 17, 0)
    assert found["spaces"]["obs"].startswith("Box(-inf, inf, (4,), float32)")


@pytest.mark.parametrize(
    ("words", "count"),
    [
        (["--where", "length >= 4"], 3),
        (["--where", "length >= 4", "--where", "terminated = true"], 2),
        (["--where", "run_id == 'two'"], 1),
        (["--where", "return > -1e9"], 4),
        (["--where", "kind = import", "--episodes", "2"], 2),
        (["--run", "one", "--run", "two"], 4),
    ],
)
def test_episodes_are_selected(millrace_export, tmp_path, words, count):
    found = json.loads(millrace_export("csv", tmp_path / "out", "--json", *words).stdout)
    assert found["episodes"] == count
    assert set(found["versions"]) == {"steps", "episodes"}


@pytest.mark.parametrize(
    "words",
    [["--where", "length"], ["--where", "length > long"], ["--version", "12"], ["--episodes", "0"]],
)
def test_a_wrong_selection_is_bad_input(millrace_export, tmp_path, words):
    assert millrace_export("csv", tmp_path / "out", *words).exit_code == BAD_INPUT


def test_what_is_not_there_is_answered_with_what_is(millrace_export, tmp_path):
    for words, message in (
        (["--run", "three"], "one"),
        (["--where", "lenght > 3"], "length"),
        (["--version", "steps=99"], "99"),
        (["--version", "runs=1"], "versions are of steps and of episodes"),
    ):
        error = millrace_export("csv", tmp_path / "out", *words).exception
        assert isinstance(error, LakeError)
        assert message in str(error)
    assert not (tmp_path / "out").exists()


def test_an_export_is_overwritten_only_when_asked(millrace_export, tmp_path):
    assert millrace_export("csv", tmp_path / "out").exit_code == 0
    assert "--overwrite" in str(millrace_export("csv", tmp_path / "out").exception)
    assert millrace_export("parquet", tmp_path / "out", "--overwrite").exit_code == 0
    assert not list((tmp_path / "out").glob("*.csv"))


def test_minari_is_told_the_environment_and_its_name(millrace_export, tmp_path):
    words = ["--run", "one", "--env", "CartPole-v1", "--dataset-id", "cartpole/mine-v0"]
    assert millrace_export("minari", tmp_path / "out", *words).exit_code == 0
    metadata = json.loads((tmp_path / "out" / "data" / "metadata.json").read_text())
    assert metadata["dataset_id"] == "cartpole/mine-v0"
    assert json.loads(metadata["env_spec"])["id"] == "CartPole-v1"
    result = millrace_export("minari", tmp_path / "two", "--dataset-id", "../x")
    assert result.exit_code == BAD_INPUT
