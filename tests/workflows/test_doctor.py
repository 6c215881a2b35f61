"""`millrace doctor`: each check alone, and the command over all of them."""

import json
import os

import pytest
from packaging.requirements import Requirement

from workflows import checks, packages
from workflows.checks import Finding


def test_this_machine_passes_and_every_line_says_so(millrace, tmp_path):
    result = millrace("doctor", "--storage", tmp_path)
    assert result.exit_code == 0, result.output
    assert "0 failed" in result.stdout
    for check in ("python", "torch loads", "ray loads", "shared memory", "storage", "gpu"):
        assert f" {check} " in result.stdout


def test_json_is_a_finding_a_line(millrace, tmp_path):
    result = millrace("doctor", "--json", "--storage", tmp_path)
    findings = [json.loads(line) for line in result.stdout.splitlines()]
    assert {"check", "state", "what", "fix"} == set(findings[0])
    assert {one["state"] for one in findings} <= {"ok", "warn", "fail"}


def test_a_failure_gives_exit_code_1_and_its_fix(millrace):
    result = millrace("doctor", "--storage", "/dev/null/runs")
    assert result.exit_code == 1
    assert "fail  storage" in result.stdout
    assert "fix: give another --storage" in result.stdout


def test_every_finding_that_is_not_ok_has_a_fix(tmp_path):
    for finding in checks.all_findings(tmp_path):
        assert finding.state == "ok" or finding.fix, finding


def test_a_missing_package_is_found_with_the_command_that_installs_it(monkeypatch):
    wanted = Requirement("not-a-package-anywhere>=2")
    monkeypatch.setattr(packages, "own_requirements", lambda: [wanted])
    assert list(checks.packages()) == [
        Finding(
            "not-a-package-anywhere",
            "fail",
            "not installed",
            "pip install 'not-a-package-anywhere>=2'",
        )
    ]


def test_a_version_outside_the_supported_range_is_found(monkeypatch):
    monkeypatch.setattr(packages, "own_requirements", lambda: [Requirement("click<1")])
    (finding,) = checks.packages()
    assert finding.state == "fail"
    assert "is outside <1" in finding.what


def test_a_ray_without_its_extras_is_found(monkeypatch):
    monkeypatch.setattr(packages, "own_requirements", lambda: [Requirement("ray[default,data]")])
    assert [one.state for one in checks.packages()] == ["ok"]
    original = packages._version
    gone = ("opencensus", "fsspec")
    monkeypatch.setattr(packages, "_version", lambda n: None if n in gone else original(n))
    (finding,) = checks.packages()
    assert finding.state == "fail"
    assert "opencensus" in finding.what
    assert "fsspec" in finding.what
    assert "ray[" in finding.fix


def test_an_old_python_is_found():
    assert checks.python((3, 10)).state == "fail"
    assert checks.python((3, 11)).state == "ok"


@pytest.mark.parametrize(
    ("free", "state"), [(100 << 20, "fail"), (2 << 30, "warn"), (64 << 30, "ok")]
)
def test_memory_is_judged_by_what_is_free(free, state):
    assert checks.memory(free).state == state


def test_missing_shared_memory_is_found(tmp_path):
    finding = checks.shared_memory(tmp_path / "no-shm")
    assert finding.state == "fail"
    assert "--shm-size" in finding.fix


def test_a_session_that_is_there_already_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    file = tmp_path / "ray_current_cluster"
    assert checks.ray_session(file=file).state == "ok"
    file.write_text("127.0.0.1:6379\n")
    assert "127.0.0.1:6379" in checks.ray_session(file=file).what
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert "RAY_ADDRESS" in checks.ray_session(file=file).what


def test_a_token_that_others_can_read_is_found(tmp_path):
    path = tmp_path / "auth_token"
    assert checks.ray_token(path).state == "ok"
    path.write_text("x")
    path.chmod(0o644)
    assert checks.ray_token(path).fix == f"chmod 600 {path}"
    path.chmod(0o600)
    assert checks.ray_token(path).state == "ok"


def test_looking_at_the_storage_leaves_nothing_there(tmp_path):
    assert checks.storage_writable(tmp_path / "new" / "folder").state == "ok"
    assert os.listdir(tmp_path) == []
