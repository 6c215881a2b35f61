"""What strict YAML and strict JSON share: their limits, their result, and its common mistakes."""

import math
from dataclasses import dataclass, field
from typing import Any

from pipelines.config_errors import ConfigError, Problem, printable

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
# Python refuses integers somewhat longer than this, and no setting needs as many digits.
MAX_DIGITS = 400
TOO_DEEP = f"nested more than {MAX_DEPTH} deep"


class TooDeepError(Exception):
    """Nested deeper than MAX_DEPTH, from `line` on."""

    def __init__(self, line: int) -> None:
        super().__init__(line)
        self.line = line


@dataclass
class Document:
    """What a text says.

    Attributes:
        values: the top-level mapping.
        lines: dotted path of each key, list positions as numbers → line, from 1.
    """

    values: dict[str, Any]
    lines: dict[str, int] = field(default_factory=dict)


def decode(data: bytes, *, name: str) -> str:
    """The text of a file, which is UTF-8 and at most 1 MiB.

    Raises:
        ConfigError: it is not; the message names the line.
    """
    if len(data) > MAX_BYTES:
        raise ConfigError(Problem(name, "more than 1 MiB", "a configuration has a few kB"))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        what = f"byte {data[error.start]:#04x} is not UTF-8"
        raise ConfigError(Problem(f"{name}:{line}", what, "save the file as UTF-8")) from None


def given_twice(name: str, path: str, line: int, first: int) -> Problem:
    """A key that stands in two lines; which one counts would be a guess."""
    what = f"`{printable(path)}` is given twice, first in line {first}"
    return Problem(f"{name}:{line}", what, "keep one")


def finite(text: str) -> float:
    """A float; ValueError where it overflows to infinity."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large for a number")
    return value
