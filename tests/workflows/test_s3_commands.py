"""The commands on a lake in an object store: one run, and every command that reads it."""

import json

import click
import pytest

from tests.offline.s3_kit import BUCKET, address_of, assert_no_secret, set_environment
from workflows.cli import cli


@pytest.fixture(scope="module")
def trained(s3_server, tmp_path_factory):
    """Folder of a run, address of the storage that its lake is in, and what the run printed."""
    from click.testing import CliRunner

    storage, folder = address_of("commands"), tmp_path_factory.mktemp("runs")
    small = ["rollout.num_envs=4", "rollout.fragment_steps=16", f"trace.lake={storage}/lake"]
    words = ["train", "ppo", "--env", "CartPole-v1", "--storage", str(folder), "--name", "run"]
    words += ["--debug", "--stop", '{"training_iteration": 2}', "-vv"]
    words += [word for setting in small for word in ("--set", setting)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("workflows.train.prestart", lambda **_: None)
        set_environment(patch, s3_server)
        result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.output
    return folder, storage, result.output


@pytest.fixture
def ask(trained, s3, millrace):
    """Runs a command on that storage; it has to succeed, and to tell no credentials."""

    def run(*words, code=0):
        result = millrace(*words, "--storage", trained[1])
        assert result.exit_code == code, result.output
        assert_no_secret(result.output)
        return result.stdout

    return run


def test_train_says_where_the_lake_is_and_no_credentials(trained) -> None:
    _, storage, output = trained
    assert f"lake       {storage}/lake (" in output
    assert_no_secret(output)


def test_sql(ask) -> None:
    out = ask("sql", "SELECT count(*) AS n FROM steps", "--format", "json")
    used = ask("sql", "SELECT sum(rows) AS n FROM consumption", "--format", "json")
    assert json.loads(out)["n"] == json.loads(used)["n"] > 100
    out = ask("sql", "SELECT count(*) AS n FROM steps", "--format", "json", "--version", "steps=0")
    assert json.loads(out) == {"n": 0}


def test_traces(ask) -> None:
    first = json.loads(ask("traces", "list", "--json").splitlines()[0])
    shown = json.loads(ask("traces", "show", first["episode_id"], "--json"))
    assert shown["episode"]["run_id"] == "run"


def test_lineage_by_number_and_by_folder(ask, trained) -> None:
    by_number = ask("lineage", "run", "--number", "2", "--json")
    by_folder = ask("lineage", trained[0] / "run", "--json")
    assert json.loads(by_number)["sessions"] == json.loads(by_folder)["sessions"]


def test_lineage_finds_the_lake_that_the_checkpoint_notes(trained, s3, millrace) -> None:
    result = millrace("lineage", trained[0] / "run")
    assert result.exit_code == 0, result.output


def test_the_lakes_maintenance(ask, trained) -> None:
    assert "nothing found" in ask("lake", "doctor", "--table", "steps")
    assert trained[1] in ask("lake", "doctor")
    assert "run/0" in ask("lake", "history", "--table", "steps")
    assert ask("lake", "compact", "--table", "runs").startswith("runs         2 files of ")
    assert "0 files would go" in ask("lake", "vacuum", "--table", "steps")


def test_what_is_exported_can_be_imported_there(ask, tmp_path) -> None:
    ask("export", "rllib", tmp_path / "out", "--run", "run")
    ask("import", "rllib", tmp_path / "out", "--name", "again", "--env", "CartPole-v1")
    out = ask("sql", "SELECT run_id, count(*) AS n FROM steps GROUP BY ALL", "--format", "json")
    assert {json.loads(line)["run_id"] for line in out.splitlines()} == {"run", "again"}


def test_an_evaluation_is_logged_there(trained, s3, millrace) -> None:
    result = millrace("evaluate", trained[0] / "run", "--episodes", "2", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["logged"]


def test_a_run_in_an_object_store_is_trained_evaluated_and_resumed_by_its_name(
    s3, s3_folder, millrace, monkeypatch, tmp_path
) -> None:
    monkeypatch.setattr("workflows.train.prestart", lambda **_: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "one"))
    at = ("--storage", s3_folder)
    small = ("--set", "rollout.num_envs=4", "--set", "rollout.fragment_steps=16", "--debug")
    words = ("train", "ppo", "--env", "CartPole-v1", "--name", "r", *small, *at)
    done = millrace(*words, "--stop", '{"training_iteration": 2}')
    assert done.exit_code == 0, done.output
    assert f"checkpoint {s3_folder}/r/checkpoints/2" in done.output
    assert f"evaluate {s3_folder}/r/checkpoints/2 --episodes 10" in done.output
    assert f"lake       {s3_folder}/lake (" in done.output
    assert_no_secret(done.output)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "two"))
    for given in (("r", *at), (f"{s3_folder}/r/checkpoints/2",)):
        done = millrace("evaluate", *given, "--episodes", "2", "--json")
        assert done.exit_code == 0, done.output
        found = json.loads(done.stdout)
        assert found["checkpoint"] == f"{s3_folder}/r/checkpoints/2"
        assert found["logged"]
    stop = ("--stop", '{"training_iteration": 3}')
    done = millrace("train", "--resume", "r", "--debug", *at, *stop)
    assert done.exit_code == 0, done.output
    assert f"resuming r from {s3_folder}/r/checkpoints/2" in done.output
    assert f"checkpoint {s3_folder}/r/checkpoints/3" in done.output
    query = "SELECT checkpoint, count(*) AS n FROM evaluations GROUP BY ALL"
    done = millrace("sql", query, "--format", "json", *at)
    assert json.loads(done.stdout) == {"checkpoint": f"{s3_folder}/r/checkpoints/2", "n": 2}
    done = millrace("evaluate", "nonesuch", *at)
    assert done.exit_code == 2
    assert f"there is no run at {s3_folder}/nonesuch" in done.output


def test_commands_that_need_a_folder_say_so(millrace) -> None:
    result = millrace("collect", "r", "--storage", "s3://bucket/runs")
    assert result.exit_code == 2
    assert "needs a folder of this machine, and s3:// is none" in result.output


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("gs://bucket/x", "gs:// is not supported"),
        ("s3://", "names no bucket"),
        ("s3://key:secret@bucket/x", "credentials in AWS_ACCESS_KEY_ID"),
        ("  ", "the name of a folder is needed"),
    ],
)
def test_an_address_that_is_none_is_refused(millrace, address, message) -> None:
    result = millrace("sql", "SELECT 1", "--storage", address)
    assert result.exit_code == 2
    assert "--storage" in result.output
    assert message in " ".join(result.output.split())
    assert "key:secret" not in result.output


def test_a_bucket_that_is_not_there_and_a_lake_that_is_not_there_are_said_so(s3, millrace) -> None:
    for address, message in (
        ("s3://no-bucket/x", "the bucket does not exist"),
        (f"s3://{BUCKET}/nothing-here", "has no table 'steps'; train"),
    ):
        result = millrace("sql", "SELECT * FROM steps", "--storage", address)
        assert result.exit_code == 2
        assert message in " ".join(result.output.split())


def test_every_command_that_takes_a_storage_says_which_kinds(millrace) -> None:
    def options(command, path):
        if isinstance(command, click.Group):
            for name in command.list_commands(None):
                yield from options(command.get_command(None, name), (*path, name))
            return
        yield from ((path, p) for p in command.params if p.name == "storage")

    kinds = {path: option.metavar for path, option in options(cli, ())}
    anywhere = {"sql", "traces", "lineage", "lake", "import", "export", "validate", "ope", "select"}
    anywhere |= {"train", "evaluate", "report", ("example", "run")}
    for path, kind in kinds.items():
        assert (kind == "DIR|s3://...") == (path[0] in anywhere or path in anywhere), path
