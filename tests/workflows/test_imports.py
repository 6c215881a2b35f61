"""`millrace import`: counts, exit codes, and messages that say what to do."""

import json

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from offline.errors import ImportDataError, LakeError
from offline.lake import Lake
from workflows.exits import BAD_INPUT, exit_for
from workflows.imports import import_data

LINES = "episode_id,obs_0,action,reward,terminated\na,1,0,0.5,0\na,2,1,0.5,1\nb,1,0,1,1\n"


@pytest.fixture
def millrace_import(tmp_path):
    def run(*words):
        words = [str(word) for word in words]
        return CliRunner().invoke(import_data, [*words, "--storage", str(tmp_path / "storage")])

    return run


@pytest.fixture
def csv(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text(LINES)
    return path


def test_an_import_prints_what_it_did(millrace_import, csv, tmp_path):
    result = millrace_import("csv", csv, "--name", "mine")
    assert result.exit_code == 0, result.output
    for text in ("mine (imported)", "episodes   2", "rows       3", "rejected   0", "inferred"):
        assert text in result.output
    assert Lake(tmp_path / "storage" / "lake").steps().count() == 3


def test_json_has_the_same_figures(millrace_import, csv):
    found = json.loads(millrace_import("csv", csv, "--json").stdout)
    assert (found["episodes"], found["rows"], found["rejected"]) == (2, 3, 0)
    assert found["run_id"].startswith("data-")
    assert found["spaces"]["origin"] == "inferred from the data"


def test_bad_data_is_bad_input(millrace_import, csv):
    csv.write_text(LINES + "c,1,7,1,0\n")
    result = millrace_import("csv", csv)
    assert isinstance(result.exception, ImportDataError)
    assert exit_for(result.exception).exit_code == BAD_INPUT
    assert "--on-error skip" in str(result.exception)


def test_skipping_prints_and_keeps_what_was_left_out(millrace_import, csv, tmp_path):
    csv.write_text(LINES + "c,1,x,1,1\n")
    result = millrace_import("csv", csv, "--on-error", "skip")
    assert result.exit_code == 0, result.output
    assert "rejected   1" in result.output
    assert "line 5" in result.output
    assert Lake(tmp_path / "storage" / "lake").rejected().count() == 1


def test_missing_ends_are_decided(millrace_import, csv):
    csv.write_text(LINES + "c,1,0,1,0\nc,2,0,1,0\n")
    result = millrace_import("csv", csv, "--missing-end", "truncate")
    assert "1 episodes without an end are truncated" in result.output
    assert "rows       4" in result.output


def test_spaces_come_from_the_environment_or_a_file(millrace_import, tmp_path):
    path = tmp_path / "cart.csv"
    path.write_text(
        "episode_id,obs_0,obs_1,obs_2,obs_3,action,reward,terminated\na,0,0,0,0,1,1,1\n"
    )
    result = millrace_import("csv", path, "--env", "CartPole-v1")
    assert "--env CartPole-v1" in result.output
    spaces = {
        "obs": {"kind": "Box", "dtype": "float64", "shape": [4], "low": "-inf", "high": "inf"},
        "action": {"kind": "Discrete", "n": 2, "start": 0, "dtype": "int64"},
    }
    (tmp_path / "s.json").write_text(json.dumps(spaces))
    result = millrace_import("csv", path, "--spaces", tmp_path / "s.json", "--name", "two")
    assert "float64" in result.output
    result = millrace_import("csv", path, "--spaces", "{}", "--name", "three")
    assert "does not describe spaces" in str(result.exception)


def test_mapping_and_dry_run(millrace_import, tmp_path):
    path = tmp_path / "odd.csv"
    path.write_text("run,x,u,r,fin\n1,0.5,1,1,1\n")
    words = ["--map", "episode_id=run", "--map", "obs=x", "--map", "action=u", "--map", "reward=r"]
    result = millrace_import("csv", path, *words, "--map", "terminated=fin", "--dry-run")
    assert "(checked)" in result.output
    assert not (tmp_path / "storage").exists()
    result = millrace_import("csv", path, *words, "--map", "terminatd=fin")
    assert "did you mean terminated?" in str(result.exception)


def test_the_same_import_again_is_refused_and_resume_says_it_is_there(millrace_import, csv):
    millrace_import("csv", csv)
    assert isinstance(millrace_import("csv", csv).exception, LakeError)
    assert "already imported" in millrace_import("csv", csv, "--resume").output


def test_hdf5_without_timeouts_asks(millrace_import, tmp_path):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["observations"] = np.zeros((6, 2), np.float32)
        file["actions"] = np.zeros((6, 1), np.float32)
        file["rewards"] = np.zeros(6)
        file["terminals"] = [0, 0, 0, 0, 0, 1]
    result = millrace_import("hdf5", tmp_path / "a.hdf5")
    assert "--timeouts N" in str(result.exception)
    assert millrace_import("hdf5", tmp_path / "a.hdf5", "--timeouts", "x").exit_code == BAD_INPUT
    result = millrace_import("hdf5", tmp_path / "a.hdf5", "--timeouts", "3")
    assert "episodes   2" in result.output


@pytest.mark.parametrize("kind", ["minari", "rllib", "parquet", "csv", "hdf5"])
def test_every_format_explains_itself_and_refuses_what_is_not_there(millrace_import, kind):
    assert CliRunner().invoke(import_data, [kind, "--help"]).exit_code == 0
    assert isinstance(millrace_import(kind, "/nowhere/at/all").exception, ImportDataError)


def test_control_characters_of_files_do_not_reach_the_terminal(millrace_import, csv):
    csv.write_text(LINES + "c\x1b[31m,1,x,1,1\n")
    assert "\x1b" not in millrace_import("csv", csv, "--on-error", "skip").output
