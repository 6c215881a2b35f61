"""A whole workflow whose history, rows, evaluations and registry are in an object store."""

import json
from pathlib import Path

import pytest

from offline.lake import Lake
from tests.offline.s3_kit import assert_no_secret

pytestmark = [pytest.mark.fault, pytest.mark.timeout(300)]

FILE = """\
workflow: remote
schedule: {{cron: "@daily", timezone: UTC, start: 2026-11-20}}
lake: {lake}
steps:
  learn:
    do: train
    algo: ppo
    env: CartPole-v1
    set: {{rollout.num_envs: 4, rollout.fragment_steps: 16, minibatch_rows: 32, num_epochs: 1}}
    stop: {{training_iteration: 2}}
    debug: true
  check: {{do: validate, where: ["run_id == ${{steps.learn.run_id}}"]}}
  evaluate: {{do: evaluate, checkpoint: "${{steps.learn.checkpoint}}", episodes: 2}}
  gate: {{do: gate, model: cart, checkpoint: "${{steps.learn.checkpoint}}", episodes: 2}}
  promote: {{do: promote, model: cart, checkpoint: "${{steps.learn.checkpoint}}"}}
  tidy: {{do: maintain}}
  count: {{do: sql, query: "SELECT count(*) AS n FROM steps", always: true}}
"""


def test_quick_every_step_reads_and_writes_there_and_again_does_nothing(
    s3: dict[str, str], s3_folder: str, millrace, tmp_path: Path
) -> None:
    file = tmp_path / "remote.yaml"
    file.write_text(FILE.format(lake=s3_folder))
    words = (
        "workflow",
        "run",
        file,
        "--logical-time",
        "2026-11-21",
        "--storage",
        tmp_path / "runs",
    )
    done = millrace(*words)
    assert done.exit_code == 0, done.output
    assert_no_secret(done.output)
    assert not (tmp_path / "runs" / "lake").exists()
    lake = Lake(f"{s3_folder}/lake")
    rows = lake.sql(
        "SELECT step, status FROM workflow_runs WHERE status <> 'started' ORDER BY \"at\""
    ).to_pylist()
    assert [(row["step"], row["status"]) for row in rows] == [
        *((name, "succeeded") for name in ("learn", "check", "evaluate", "gate", "promote")),
        *((name, "succeeded") for name in ("tidy", "count", "")),
    ]
    assert lake.sql("SELECT count(*) n FROM evaluations").to_pylist()[0]["n"] >= 1
    assert lake.sql("SELECT model, alias FROM registry").to_pylist() == [
        {"model": "cart", "alias": "champion"}
    ]
    before = lake.versions()
    done = millrace(*words)
    assert done.exit_code == 0, done.output
    assert lake.versions() == before
    done = millrace("workflow", "status", "remote", "--lake", s3_folder, "--json")
    assert json.loads(done.stdout)["status"] == "succeeded"
    out = tmp_path / "page.html"
    done = millrace("report", "remote", "--storage", s3_folder, "--out", out)
    assert done.exit_code == 0, done.output
    assert out.stat().st_size > 50_000
