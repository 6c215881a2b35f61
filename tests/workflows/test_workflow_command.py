"""`millrace workflow`: backfill, status, and what other schedulers take."""

import ast
import json
import shlex
import shutil
import subprocess

import pytest
import yaml

from tests.workflows.workflow_kit import HEAD, commands, counting, places_of, ran
from workflows.scheduled.exports import on_calendar


@pytest.fixture
def places(tmp_path):
    return places_of(tmp_path, commands(one=counting(tmp_path, "one")))


def test_a_backfill_does_what_is_missing_and_status_shows_it(millrace, places, tmp_path):
    path, storage = places.workflow.path, places.storage
    words = ("--from", "2026-11-22", "--to", "2026-11-24T23:00", "--storage", storage)
    done = millrace("workflow", "backfill", path, *words)
    assert done.exit_code == 0, done.output
    assert "3 runs: 3 succeeded" in done.output
    assert "0 runs" in millrace("workflow", "backfill", path, *words).output
    assert ran(tmp_path) == ["one"] * 3
    shown = millrace("workflow", "status", "--storage", storage, "--json")
    runs = [json.loads(line) for line in shown.stdout.splitlines()]
    assert [r["logical_time"][:13] for r in runs] == [
        *("2026-11-24T02", "2026-11-23T02", "2026-11-22T02"),
    ]
    assert runs[0]["steps"]["one"]["outputs"]["name"] == "one"
    assert runs[0]["steps"]["one"]["seconds"] > 0
    text = millrace("workflow", "status", path, "--storage", storage).output
    assert text.count("2026-11-2") == 3
    assert "one" in text


def test_a_time_is_local_to_the_schedule(millrace, places):
    words = ("--logical-time", "2026-11-24T03:00", "--storage", places.storage, "--json")
    done = millrace("workflow", "run", places.workflow.path, *words)
    assert json.loads(done.stdout)["logical_time"] == "2026-11-24T02:00:00+00:00"
    wrong = millrace("workflow", "run", places.workflow.path, "--logical-time", "tomorrow")
    assert wrong.exit_code == 2
    assert "'tomorrow' is no time" in wrong.output


def test_serve_once_does_what_is_due(millrace, places, tmp_path):
    done = millrace(
        "workflow", "serve", places.workflow.path, "--once", "--storage", places.storage
    )
    assert done.exit_code == 0, done.output
    assert ran(tmp_path) == ["one"]  # the newest of those that were missed


def export(millrace, places, target, *words):
    done = millrace(
        *("workflow", "export", places.workflow.path, "--target", target),
        *("--storage", places.storage, *words),
    )
    assert done.exit_code == 0, done.output
    return done.stdout


def test_cron_gets_a_line(millrace, places):
    *_, zone, line = export(millrace, places, "cron").splitlines()
    assert zone == "CRON_TZ=Europe/Berlin"
    assert line.startswith("0 3 * * * cd ")
    words = shlex.split(line.split(" ", 5)[5])
    assert words[2:3] + words[4:6] == ["&&", "workflow", "serve"] or "serve" in words
    assert "--once" in words


def test_systemd_gets_a_service_and_a_timer(millrace, places):
    text = export(millrace, places, "systemd")
    assert "OnCalendar=*-*-* 3:0:00 Europe/Berlin" in text
    if shutil.which("systemd-analyze"):
        subprocess.run(["systemd-analyze", "calendar", "*-*-* 3:0:00 Europe/Berlin"], check=True)


@pytest.mark.parametrize(
    ("cron", "calendar"),
    [
        ("*/5 * * * *", "*-*-* *:0/5:00 UTC"),
        ("0 9-17/2 * * 1-5", "Mon,Tue,Wed,Thu,Fri *-*-* 9..17/2:0:00 UTC"),
        ("30 4 1,15 jan-mar *", "*-1..3-1,15 4:30:00 UTC"),
        ("0 0 * * 7", "Sun *-*-* 0:0:00 UTC"),
    ],
)
def test_cron_as_systemd_has_it(cron, calendar):
    assert on_calendar(tuple(cron.split()), "UTC") == calendar


def test_days_that_systemd_cannot_say_are_refused(millrace, tmp_path):
    head = HEAD.replace("0 3 * * *", "0 3 13 * 5")
    places = places_of(tmp_path, commands(one='["true"]'), head)
    words = ("workflow", "export", places.workflow.path, "--target", "systemd")
    done = millrace(*words, "--storage", places.storage)
    assert done.exit_code == 2
    assert "both restricted" in done.output


def test_ray_and_kuberay_get_jobs(millrace, places, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = export(millrace, places, "ray-job", "--ray-address", "http://head:8265")
    words = shlex.split(text.splitlines()[-1])
    assert words[:5] == ["ray", "job", "submit", "--address", "http://head:8265"]
    assert words[words.index("--") + 1 :][:4] == ["millrace", "workflow", "serve", "small.yaml"]
    manifest = yaml.safe_load(export(millrace, places, "raycronjob", "--image", "mine:1"))
    assert (manifest["kind"], manifest["spec"]["schedule"]) == ("RayCronJob", "0 3 * * *")
    entry = shlex.split(manifest["spec"]["jobTemplate"]["entrypoint"])
    assert entry[:5] == ["millrace", "workflow", "serve", "small.yaml", "--once"]


def test_airflow_gets_a_dag_that_is_python(millrace, places):
    text = export(millrace, places, "airflow")
    tree = ast.parse(text)
    calls = {
        k.arg: ast.literal_eval(k.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for k in node.keywords
        if isinstance(k.value, ast.Constant)
    }
    assert calls["schedule"] == "0 3 * * *"
    assert "workflow run" in calls["bash_command"]
    assert "{{ logical_date.isoformat() }}" in calls["bash_command"]
