"""Fail points: what the variable may say, that they kill, and that each one is somewhere."""

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from offline.failpoints import NAMES, VARIABLE, WRITER_POINTS, fail_point, parse

ROOT = Path(__file__).parents[2]


def test_the_variable_names_a_point_and_a_hit() -> None:
    assert parse(None) is None
    assert parse("") is None
    assert parse("parts.written") == ("parts.written", 1)
    assert parse("parts.written:3") == ("parts.written", 3)


@pytest.mark.parametrize("text", ["nowhere", "parts.written:0", "parts.written:x", ":2"])
def test_what_is_no_point_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=VARIABLE):
        parse(text)


def test_a_point_that_is_not_listed_is_refused() -> None:
    with pytest.raises(ValueError, match="nowhere"):
        fail_point("nowhere")


@pytest.mark.parametrize(
    ("said", "passed"), [(None, 3), ("parts.written:2", 1), ("part.partial", 3)]
)
def test_the_process_is_killed_at_the_hit_that_was_named(said: str | None, passed: int) -> None:
    code = (
        "from offline.failpoints import fail_point\n"
        "for _ in range(3):\n"
        "    fail_point('parts.written')\n"
        "    print('passed', flush=True)"
    )
    environment = {key: value for key, value in os.environ.items() if key != VARIABLE}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment if said is None else {**environment, VARIABLE: said},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["passed"] * passed
    assert done.returncode == (0 if passed == 3 else -signal.SIGKILL)


def test_each_point_of_the_writer_is_in_the_code_and_each_in_the_code_is_listed() -> None:
    used: set[str] = set()
    for layer in ("offline", "pipelines", "workflows"):
        for path in (ROOT / layer).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, ast.Call):
                    continue
                name = getattr(node.func, "id", None)
                keywords = {k.arg: k.value for k in node.keywords}
                told = node.args[:1] if name == "fail_point" else [keywords.get("point")]
                if name in ("fail_point", "new_file"):
                    used |= {a.value for a in told if isinstance(a, ast.Constant)}  # type: ignore[misc]
    assert used <= set(NAMES)
    assert set(WRITER_POINTS) <= used
