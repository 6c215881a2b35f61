"""JSON read strictly: no NaN, no key twice, a line for every key."""

import json
import re
from collections.abc import Iterable
from typing import NoReturn

from pipelines.config_errors import ConfigError, Problem, shown
from pipelines.strict_text import (
    MAX_DEPTH,
    MAX_DIGITS,
    TOO_DEEP,
    Document,
    TooDeepError,
    finite,
    given_twice,
)

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+|\n')


def parse_json(text: str, *, name: str) -> Document:
    """JSON as the RFC has it: no NaN, no key twice.

    Raises:
        ConfigError: with name:line and what to write instead.
    """
    try:
        values = json.loads(text, parse_constant=_constant, parse_float=finite, parse_int=_integer)
    except json.JSONDecodeError as error:
        what = f"{error.msg} at column {error.colno}"
        fix = "JSON wants double quotes around every key and string, and no comma at the end"
        raise ConfigError(Problem(f"{name}:{error.lineno}", what, fix)) from None
    except RecursionError:
        raise ConfigError(Problem(name, TOO_DEEP)) from None
    except ValueError as error:
        raise ConfigError(Problem(f"{name}:{_line_of(text, str(error))}", str(error))) from None
    if not isinstance(values, dict):
        what = f"got {shown(values)}, expected an object"
        raise ConfigError(Problem(name, what, 'such as {"optim": {"lr": 0.001}}'))
    try:
        lines, twice = _json_lines(text)
    except TooDeepError as error:
        raise ConfigError(Problem(f"{name}:{error.line}", TOO_DEEP)) from None
    if twice:
        raise ConfigError(*(given_twice(name, path, line, lines[path]) for path, line in twice))
    return Document(values, lines)


def _json_lines(text: str) -> tuple[dict[str, int], list[tuple[str, int]]]:
    """Dotted path → line of each key of a valid JSON text; (path, line) of keys given twice."""
    lines: dict[tuple[str | int | None, ...], int] = {}
    twice: list[tuple[str, int]] = []
    # One entry per open bracket: the key being read, or the position in a list.
    stack: list[str | int | None] = []
    line = 1
    for match in _TOKEN.finditer(text):
        token = match.group()
        if token == "\n":
            line += 1
        elif token in "{[":
            stack.append(0 if token == "[" else None)
            if len(stack) > MAX_DEPTH:
                raise TooDeepError(line)
        elif token in "]}":
            stack.pop()
        elif token == ",":
            last = stack[-1]
            stack[-1] = last + 1 if isinstance(last, int) else None
        elif token != ":" and stack and stack[-1] is None:
            stack[-1] = json.loads(token)
            if tuple(stack) in lines:
                twice.append((_dotted(stack), line))
            lines.setdefault(tuple(stack), line)
    return {_dotted(path): line for path, line in reversed(lines.items())}, twice


def _dotted(path: Iterable[str | int | None]) -> str:
    return ".".join(map(str, path))


def _line_of(text: str, message: str) -> int:
    """The line of the number that a message starts with."""
    number = message.split()[0].rstrip(".")
    matches = (match for match in _TOKEN.finditer(text) if match.group().startswith(number))
    return text.count("\n", 0, next(matches).start()) + 1


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"{text[:20]}... has {len(text)} digits")
    return int(text)


def _constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a finite number")
