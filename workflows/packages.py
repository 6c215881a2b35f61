"""Which packages Millrace needs, from its own metadata, and what is installed."""

import functools
import importlib.metadata
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

DISTRIBUTION = "millrace"


@dataclass(frozen=True)
class Found:
    """A requirement, and the version that is installed; None when there is none."""

    requirement: Requirement
    version: str | None

    @property
    def fits(self) -> bool:
        """Installed, and in the supported range."""
        specifier = self.requirement.specifier
        return self.version is not None and specifier.contains(self.version, prereleases=True)


def own_version() -> str:
    """The version of Millrace: of the installed distribution, or of the source tree."""
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return str(_source_tree()["version"])


def own_requirements() -> list[Requirement]:
    """What Millrace needs, without its extras."""
    try:
        lines = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        lines = _source_tree()["dependencies"]
    return [r for r in map(Requirement, lines) if _applies(r, extra="")]


def find(requirement: Requirement) -> Found:
    """What is installed for a requirement."""
    return Found(requirement, _version(requirement.name))


def of_extras(requirement: Requirement) -> Iterator[Found]:
    """What the extras in a requirement, as in ray[data], ask for."""
    for extra in sorted(requirement.extras):
        for line in importlib.metadata.requires(requirement.name) or []:
            part = Requirement(line)
            if _applies(part, extra=extra) and not _applies(part, extra=""):
                yield find(part)


def _applies(requirement: Requirement, *, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def _source_tree() -> dict[str, list[str]]:
    path = Path(__file__).parent.parent / "pyproject.toml"
    project: dict[str, list[str]] = tomllib.loads(path.read_text())["project"]
    return project
