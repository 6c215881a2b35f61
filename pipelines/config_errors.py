"""The error of a configuration that cannot be used: where, what, and how to put it right."""

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, printed as `where: what; fix`."""

    where: str
    what: str
    fix: str = ""

    def __str__(self) -> str:
        what = f"{self.what}; {self.fix}" if self.fix else self.what
        return f"{self.where}: {what}" if self.where else what


class ConfigError(ValueError):
    """A configuration that cannot be used; `problems` has everything that is wrong with it."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__(*problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


def shown(value: Any, *, limit: int = 80) -> str:
    """A value as JSON on one line, cut short, nothing in it that a terminal would obey."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    return printable(text, limit=limit)


def printable(text: str, *, limit: int = 80) -> str:
    """Text on one line, cut short, nothing in it that a terminal would obey."""
    cut = text if len(text) <= limit else text[: limit - 3] + "..."
    return cut if cut.isprintable() else cut.encode("unicode_escape").decode("ascii")
