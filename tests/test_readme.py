"""What the README tells a new user to type works as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def snippet(name: str) -> str:
    found = re.search(rf"<!-- snippet: {name} -->\n```python\n(.*?)```", README, re.DOTALL)
    assert found, f"README.md has no snippet {name!r}"
    return found.group(1)


@pytest.mark.ray
def test_the_python_snippet_runs(tmp_path: Path) -> None:
    environment = os.environ | {"HOME": str(tmp_path)}
    acted = "\nprint('acted', int(action))\n"
    code = snippet("train") + acted + snippet("lake") + "\nprint('steps', len(steps))\n"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^acted [01]$", done.stdout, re.MULTILINE)
    assert re.search(r"^steps [1-9]\d*$", done.stdout, re.MULTILINE)


def test_every_command_of_the_readme_is_there() -> None:
    commands = set(re.findall(r"\.venv/bin/millrace (\w+)", README))
    assert commands >= {"train", "evaluate", "example", "plan", "doctor"}
    for command in sorted(commands):
        words = [sys.executable, "-m", "workflows", command, "--help"]
        subprocess.run(words, cwd=ROOT, check=True, capture_output=True, timeout=60)


def test_every_make_target_of_the_readme_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"`make ([a-z ]+)`|\$ make (\w+)", README))
    names = {name for pair in targets for part in pair for name in part.split()}
    assert names >= {"demo", "test"}
    assert not {name for name in names if not re.search(rf"^{name}:", makefile, re.MULTILINE)}


def test_every_file_that_the_readme_links_to_is_there() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("http") or (ROOT / link).exists(), link
