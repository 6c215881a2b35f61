"""YAML read strictly: 1.2 types, no key twice, no anchors, no tags; nothing in it runs."""

import re
from collections.abc import Iterator
from typing import Any

import yaml

from pipelines.config_errors import ConfigError, Problem, printable, shown
from pipelines.strict_text import (
    MAX_DEPTH,
    MAX_DIGITS,
    TOO_DEEP,
    Document,
    TooDeepError,
    finite,
    given_twice,
)

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_BASED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


def parse_yaml(text: str, *, name: str) -> Document:
    """YAML's 1.2 types without anchors, aliases and tags; keys are always text.

    Args:
        text: one document, a mapping at its top.
        name: what messages call it.

    Raises:
        ConfigError: with file:line and what to write instead.
    """
    reader = _YamlReader(name)
    values = reader.read(text)
    if not reader.problems and not isinstance(values, dict):
        what = f"got {shown(values)}, expected keys such as algo: ppo"
        reader.complain(1, "the file is empty" if values is None else what)
    if reader.problems:
        raise ConfigError(*reader.problems)
    return Document(values, reader.lines)


def parse_scalar(text: str) -> Any:
    """A value from the command line: a plain YAML 1.2 scalar, a [list], a {mapping} or "text".

    Raises:
        ValueError: the text starts like a list or mapping and is none, or is an ambiguous number.
    """
    if text[:1] not in ("[", "{", '"', "'"):
        return resolve(text)
    reader = _YamlReader("value")
    values = reader.read(text)
    if reader.problems:
        raise ValueError("; ".join(problem.what for problem in reader.problems))
    return values


def resolve(text: str) -> Any:
    """What an unquoted scalar means in YAML 1.2: `1e-3` a number, `no` and `on` text.

    Raises:
        ValueError: numbers that mean different things to different readers; infinities.
    """
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _NOT_FINITE.fullmatch(text):
        raise ValueError(f"{text} is not a finite number")
    if len(text) > MAX_DIGITS:
        return text
    if _INT.fullmatch(text):
        return int(text)
    if re.fullmatch(r"[-+]?0[0-9]+", text):
        digits = text.lstrip("+-").lstrip("0") or "0"
        raise ValueError(f"{text} may mean octal: write {digits}, or '{text}' for text")
    if _BASED.fullmatch(text):
        return int(text, 0)
    return finite(text) if _FLOAT.fullmatch(text) else text


class _YamlReader:
    """Builds values from parser events itself, so that no tag can construct anything."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.problems: list[Problem] = []
        self.lines: dict[str, int] = {}

    def complain(self, line: int, what: str, fix: str = "") -> None:
        self.problems.append(Problem(f"{self.name}:{line}", what, fix))

    def read(self, text: str) -> Any:
        try:
            events = yaml.parse(text, Loader=yaml.SafeLoader)
            return self._document(iter(events))
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            what, fix = _syntax(str(error.problem))
            self.complain(mark.line + 1 if mark else 1, what, fix)
        except yaml.reader.ReaderError as error:
            line = text[: error.position].count("\n") + 1
            self.complain(line, f"control character {error.character!r}", "remove it")
        except TooDeepError as error:
            self.complain(error.line, TOO_DEEP)
        return None

    def _document(self, events: Iterator[yaml.Event]) -> Any:
        values, documents = None, 0
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    self.complain(_line(event), "a second document", "one file is one run")
                    return values
            elif isinstance(event, yaml.NodeEvent):
                values = self._value(event, events, path=())
        return values

    def _value(self, event: Any, events: Iterator[yaml.Event], *, path: tuple[str, ...]) -> Any:
        if len(path) > MAX_DEPTH:
            raise TooDeepError(_line(event))
        if isinstance(event, yaml.AliasEvent):
            self.complain(
                _line(event), f"alias *{printable(event.anchor or '')}", "write the value out"
            )
            return None
        if event.anchor is not None:
            what = f"anchor &{printable(event.anchor)}"
            self.complain(_line(event), what, "remove it; aliases are not read")
        if event.tag is not None:
            what = f"tag {printable(event.tag)}"
            self.complain(_line(event), what, "remove it; values are plain, and no code runs")
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(events, path=path)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(events, path=path)
        return self._scalar(event)

    def _mapping(self, events: Iterator[yaml.Event], *, path: tuple[str, ...]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for event in events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            line = _line(event)
            if not isinstance(event, yaml.ScalarEvent):
                self.complain(line, "a key that is no text", "keys are names such as rollout")
                self._value(event, events, path=(*path, "?"))
                self._value(next(events), events, path=(*path, "?"))
                continue
            key = event.value
            dotted = ".".join((*path, key))
            if key in values:
                self.problems.append(given_twice(self.name, dotted, line, self.lines[dotted]))
            else:
                self.lines[dotted] = line
            values[key] = self._value(next(events), events, path=(*path, key))
        return values

    def _sequence(self, events: Iterator[yaml.Event], *, path: tuple[str, ...]) -> list[Any]:
        values: list[Any] = []
        for event in events:
            if isinstance(event, yaml.SequenceEndEvent):
                break
            values.append(self._value(event, events, path=(*path, str(len(values)))))
        return values

    def _scalar(self, event: yaml.ScalarEvent) -> Any:
        if event.style is not None:
            return event.value
        try:
            return resolve(event.value)
        except ValueError as error:
            self.complain(_line(event), str(error))
            return None


def _line(event: yaml.Event) -> int:
    mark = event.start_mark
    return 1 if mark is None else int(mark.line) + 1


def _syntax(problem: str) -> tuple[str, str]:
    if "'\\t'" in problem:
        return "a tab", "indent with spaces"
    if "mapping values are not allowed" in problem:
        return "a ':' where no key can stand", "check the indentation, or quote the text"
    return problem, "check the indentation, the brackets and the quotes"
