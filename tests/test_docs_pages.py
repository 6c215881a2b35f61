"""Every command and every piece of Python on the pages for new users works, in the order written.

A page is one session of one user: its home folder and working directory begin empty. A block behind
`<!-- fails -->` has to fail with the message that is shown; one behind `<!-- file: NAME -->` is
written as that file.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["rllib-migration", "tutorial", "callbacks", "serving"]
BLOCK = re.compile(
    r"(?:<!-- (?P<mark>[a-z]+)(?:: (?P<name>\S+))? -->\n)?```(?P<kind>\w+)\n(?P<body>.*?)```",
    re.DOTALL,
)


class Block(NamedTuple):
    """One fenced block."""

    mark: str | None
    name: str | None
    kind: str
    body: str


def blocks(page: str) -> list[Block]:
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    return [Block(*found.group("mark", "name", "kind", "body")) for found in BLOCK.finditer(text)]


def commands(body: str) -> list[str]:
    joined = body.replace("\\\n", " ")
    return [line[2:] for line in joined.splitlines() if line.startswith("$ ")]


class Session:
    """A user at a shell."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.environment = os.environ | {"HOME": str(home), "OMP_NUM_THREADS": "1"}

    def run(self, words: list[str]) -> subprocess.CompletedProcess[str]:
        words = [w.replace("~/", f"{self.home}/") if w.startswith("~/") else w for w in words]
        return subprocess.run(
            words,
            cwd=self.home,
            env=self.environment | {"PYTHONPATH": f"{ROOT}{os.pathsep}{self.home}"},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    def command(self, line: str) -> subprocess.CompletedProcess[str]:
        words = shlex.split(line, comments=True)
        assert words[0] == "millrace", line
        # In one process: what is tested here is that the line means what the page says.
        debug = ["--debug"] if words[1] == "train" else []
        return self.run([sys.executable, "-m", "workflows", *words[1:], *debug])


def check(session: Session, block: Block) -> None:
    if block.mark == "file":
        assert block.name is not None
        (session.home / block.name).write_text(block.body, encoding="utf-8")
    elif block.kind == "python":
        done = session.run([sys.executable, "-c", block.body])
        assert done.returncode == 0, f"{block.body}\n{done.stderr}"
    elif block.kind == "console":
        for line in commands(block.body):
            done = session.command(line)
            if block.mark == "fails":
                assert done.returncode == 2, done.stdout + done.stderr
                said = " ".join(block.body.partition("\n")[2].split())
                assert said in " ".join(done.stderr.split())
            else:
                assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.learning
@pytest.mark.timeout(600)
def test_quick_what_a_page_tells_to_type_works(page: str, tmp_path: Path) -> None:
    found = blocks(page)
    assert any(block.kind == "console" and commands(block.body) for block in found)
    session = Session(tmp_path)
    for block in found:
        check(session, block)


def test_the_guide_has_every_row_of_what_rllib_has() -> None:
    text = (ROOT / "docs" / "rllib-migration.md").read_text(encoding="utf-8")
    rows = {int(n) for cell in re.findall(r"^\| ([\d, ]+) \|", text, re.M) for n in cell.split(",")}
    # 12 is algorithms and 26 the groups of settings, each a page of its own.
    assert rows | {12, 26} >= set(range(1, 41))
