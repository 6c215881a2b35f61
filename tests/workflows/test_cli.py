"""The command as a whole: help, version, light imports, exit codes of errors."""

import json
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from pipelines.errors import CheckpointError, TrainingError
from workflows.cli import COMMANDS, LazyGroup, cli
from workflows.exits import Interrupted, exit_for
from workflows.logs import LEVELS
from workflows.startup import command_words, process_started_at

HEAVY = ("torch", "ray", "gymnasium", "numpy", "pyarrow", "pydantic", "rich", "yaml")


def in_a_process(code: str) -> dict:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help_imports_nothing_heavy_and_takes_little_time(words):
    found = in_a_process(
        "import json, sys, time\n"
        "from workflows.cli import cli\n"
        f"cli({words!r}, standalone_mode=False)\n"
        f"print(json.dumps([sorted(set({HEAVY!r}) & set(sys.modules)), time.process_time()]))"
    )
    assert found[0] == []
    assert found[1] < 0.3


def test_help_lists_every_command(millrace):
    result = millrace("--help")
    assert result.exit_code == 0
    assert all(f"  {name} " in result.output for name in COMMANDS)


def test_version_is_printed(millrace):
    result = millrace("--version")
    assert result.exit_code == 0
    assert result.output.startswith("millrace 0.")


def test_a_misspelt_command_is_answered_with_the_nearest(millrace):
    result = millrace("trian")
    assert result.exit_code == 2
    assert "Did you mean train?" in result.output


def test_an_unknown_option_is_answered_with_the_nearest(millrace):
    result = millrace("train", "ppo", "--envs", "CartPole-v1")
    assert result.exit_code == 2
    assert "--env" in result.output


@pytest.mark.parametrize(
    ("error", "code", "said", "traced"),
    [
        (CheckpointError("it is damaged"), 2, "Error: it is damaged", False),
        (TrainingError("the learner died"), 1, "Error: the learner died", False),
        (ValueError("of somebody else"), 1, "ValueError: of somebody else", True),
        (KeyError("a defect"), 1, "KeyError: 'a defect'", True),
    ],
)
def test_errors_of_ours_are_a_message_and_all_others_a_traceback(error, code, said, traced):
    try:
        raise error
    except type(error) as raised:
        failure = exit_for(raised)
    assert failure.exit_code == code
    assert said in failure.message
    assert ("Traceback" in failure.message) == traced


def test_the_traceback_of_an_explained_error_comes_with_vv(millrace):
    quiet = millrace("evaluate", "no-such-run")
    loud = millrace("evaluate", "no-such-run", "-vv")
    assert quiet.exit_code == loud.exit_code == 2
    assert "Traceback" not in quiet.stderr
    assert "Traceback" in loud.stderr
    assert quiet.stderr.strip() in loud.stderr


def test_an_interrupt_leaves_with_the_code_of_its_signal():
    assert exit_for(KeyboardInterrupt()).exit_code == 130
    assert exit_for(Interrupted(143)).exit_code == 143
    assert exit_for(SystemExit(3)).exit_code == 3


def test_a_message_cannot_steer_the_terminal():
    group = LazyGroup(commands={})

    @group.command()
    def fail():
        raise CheckpointError("\x1b[2Jgone\n" + "x" * 100_000)

    group._where = {"fail": "nowhere"}
    group.get_command = lambda *_: fail
    result = CliRunner().invoke(group, ["fail"])
    assert result.exit_code == 2
    assert "\x1b" not in result.stderr
    assert len(result.stderr) < 3000


@pytest.mark.parametrize(
    ("count", "name"), [("", "WARN"), ("-v", "INFO"), ("-vv", "DEBUG"), ("-vvv", "debug")]
)
def test_v_and_log_level_mean_the_same(millrace, count, name):
    import logging

    seen = []

    def probe():
        ctx = click.get_current_context()
        levels = [logging.getLogger(layer).level for layer in ("pipelines", "workflows", "rl_ops")]
        seen.append((ctx.meta["verbosity"], levels))

    command = cli.get_command(click.Context(cli), "plan")
    original = command.callback
    command.callback = lambda **_: probe()
    try:
        millrace("plan", "ppo", *count.split())
        millrace("plan", "ppo", "--log-level", name)
    finally:
        command.callback = original
    assert seen[0] == seen[1]
    assert seen[0][1] == [LEVELS[name.upper()]] * 3


def test_logs_are_escaped_and_go_to_stderr(capsys):
    import logging

    from workflows.logs import set_level

    set_level(logging.INFO)
    logging.getLogger("pipelines.somewhere").info("an env said \x1b[31m%s", "y" * 5000)
    set_level(logging.WARNING)
    logging.getLogger("pipelines.somewhere").info("not said")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("INFO pipelines.somewhere: an env said \\x1b[31myyy")
    assert len(captured.err) < 2200


def test_the_process_start_is_found_to_a_tenth_of_a_second():
    found = in_a_process(
        "import json, time\nnow = time.time()\n"
        "from workflows.startup import process_started_at\n"
        "print(json.dumps([now - process_started_at()]))"
    )
    assert -0.05 < found[0] < 5
    assert abs(process_started_at() - process_started_at()) < 0.1


def test_the_command_is_printed_as_it_can_be_typed(tmp_path, monkeypatch):
    script = tmp_path / "bin dir" / "millrace"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    assert command_words("/x/workflows/__main__.py", "/x/python") == (
        "/x/python",
        "-m",
        "workflows",
    )
    assert command_words(str(script), "/x/python") == (str(script),)
    monkeypatch.setenv("PATH", str(script.parent))
    assert command_words(str(script), "/x/python") == ("millrace",)
