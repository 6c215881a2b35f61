"""Files of workflows: every mistake with its line, and nothing of a wrong one runs."""

import textwrap

import pytest

from pipelines.config_errors import ConfigError
from workflows.scheduled.spec import load_workflow

GOOD = """\
workflow: nightly
schedule: {cron: "0 3 * * *", start: 2026-11-24}
steps:
  collect: {do: collect, random: true, env: CartPole-v1, rows: 100}
  learn:
    do: train
    algo: bc
    set: {offline.version: "${steps.collect.steps_version}"}
"""


def refused(folder, text):
    path = folder / "w.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_workflow(path)
    return str(caught.value).replace(f"{path}:", "L")


def test_a_file_is_read(tmp_path):
    (tmp_path / "w.yaml").write_text(GOOD)
    workflow = load_workflow(tmp_path / "w.yaml")
    assert (workflow.name, [*workflow.spec.steps]) == ("nightly", ["collect", "learn"])
    assert workflow.schedule.first.isoformat() == "2026-11-24T00:00:00+00:00"
    assert workflow.retries("learn") == 0


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("rows: 100", "rws: 100", "L4: steps.collect.rws: unknown key; did you mean rows?"),
        ("rows: 100", "rows: many", "L4: steps.collect.rows"),
        ("rows: 100", "rows: 0", "L4: steps.collect.rows"),
        (", rows: 100", "", "give either rows or episodes"),
        ("do: train", "do: trane", "L5: steps.learn"),
        ("algo: bc", "algo: 7", "L7: steps.learn.algo"),
        ("0 3 * * *", "0 25 * * *", "L2: schedule.cron"),
        ("start: 2026-11-24", "start: soon", "L2: schedule.start: got"),
        ("start:", "timezone: Mars/Base, start:", "no such time zone"),
        (", start: 2026-11-24", "", "start is missing"),
        ("steps_version", "version", "did you mean steps_version?"),
        ("steps.collect.", "steps.colect.", "is of no step; did you mean collect?"),
        ("${steps.collect.steps_version}", "${steps.learn.run_id}", "comes later"),
        ("${steps.collect.steps_version}", "${registry.m}", "write ${registry.MODEL.ALIAS}"),
        ("${steps.collect.steps_version}", "${now}", "there are ${steps.STEP.OUTPUT}"),
        ("workflow: nightly", "workflow: ../nightly", "small letters"),
        ("workflow: nightly", "dag_id: nightly", "write workflow: NAME"),
        ("  collect:", "  'co llect':", "a step's name"),
        ("do: train", "do: train\n    do: train", "given twice"),
        ("do: train", "do: !!python/object:os.system x", "tag"),
        ("do: train", "\tdo: train", "tab"),
    ],
)
def test_a_mistake_is_named_with_its_line_and_what_was_meant(tmp_path, old, new, said):
    assert old in GOOD
    assert said in refused(tmp_path, GOOD.replace(old, new, 1))


def test_all_mistakes_are_told_at_once(tmp_path):
    text = GOOD.replace("rows: 100", "rws: 100").replace("algo: bc", "algo: 7")
    assert len(refused(tmp_path, text).splitlines()) >= 2


def test_no_file_and_another_kind_of_file(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        load_workflow(tmp_path / "no.yaml")
    with pytest.raises(ConfigError, match=r"give a \.yaml file"):
        load_workflow(tmp_path / "w.json")


def test_settings_of_a_training_are_checked_before_anything_runs(millrace, tmp_path):
    path = tmp_path / "w.yaml"
    path.write_text(
        textwrap.dedent("""\
        workflow: nightly
        steps:
          learn: {do: train, algo: ppo, env: CartPole-v1, set: {optim.lrr: 1e-3}}
        """)
    )
    done = millrace("workflow", "run", path, "--storage", tmp_path / "s")
    assert done.exit_code == 2
    assert "steps.learn: --set optim.lrr" in done.output.replace("--set: ", "--set ")
    assert "optim.lr" in done.output
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("command", ["serve", "backfill", "export"])
def test_what_needs_a_schedule_says_so(millrace, tmp_path, command):
    path = tmp_path / "w.yaml"
    path.write_text('workflow: w\nsteps: {one: {do: command, run: ["true"]}}\n')
    more = {"backfill": ["--from", "2026-01-01", "--to", "2026-01-02"]}
    more |= {"export": ["--target", "cron"]}
    done = millrace("workflow", command, path, "--storage", tmp_path / "s", *more.get(command, []))
    assert done.exit_code == 2
    assert "schedule is missing" in done.output
