"""What made a run: versions of code and packages, and the machine."""

import importlib.metadata
import json
import platform
import sys
from pathlib import Path

PACKAGES = ("millrace", "ray", "torch", "gymnasium", "numpy", "pyarrow", "deltalake", "pydantic")


def packages() -> str:
    """Versions of Python and of the packages that a result may depend on, as JSON."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # run from its sources
            versions[name] = "not installed"
    return json.dumps(versions)


def host() -> str:
    """The machine's name."""
    return platform.node()


def code(folder: Path | None = None) -> str:
    """The git commit that a folder, by default the working one, is a checkout of, and the command.

    As JSON. Changes that are not committed are not looked for: that would cost a large repository
    seconds at every start.
    """
    start = (folder or Path.cwd()).absolute()
    commit = next(filter(None, (_commit(path / ".git") for path in [start, *start.parents])), None)
    return json.dumps({"commit": commit, "command": sys.argv[:1] + sys.argv[1:][:50]})


def _commit(git: Path) -> str | None:
    try:
        if git.is_file():  # a worktree's: "gitdir: /path"
            git = git.parent / git.read_text().partition(":")[2].strip()
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head
        ref = head.removeprefix("ref: ")
        common = git / "commondir"
        shared = git / common.read_text().strip() if common.is_file() else git
        if (shared / ref).is_file():
            return (shared / ref).read_text().strip()
        packed = (shared / "packed-refs").read_text().splitlines()
        return next((line.split()[0] for line in packed if line.endswith(f" {ref}")), None)
    except (OSError, UnicodeDecodeError):
        return None
