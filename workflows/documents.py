"""Strict YAML files as pydantic models: every mistake at once, with its line and what was meant."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pipelines.config_errors import ConfigError, Problem, printable, shown
from pipelines.config_explain import nearest
from pipelines.strict_text import MAX_BYTES, Document, decode
from pipelines.strict_yaml import parse_yaml

M = TypeVar("M", bound=BaseModel)

_WORDS = {
    "missing": "is missing",
    "extra_forbidden": "unknown key",
    "greater_than": "is too small",
    "greater_than_equal": "is too small",
}


def read_document(source: str | Path) -> tuple[Document, str, str]:
    """A local YAML file: what it says, its text, and what messages call it.

    Raises:
        ConfigError: it cannot be read or is no strict YAML; with file:line.
    """
    path, name = Path(source).expanduser(), printable(str(source), limit=400)
    if path.suffix.lower() not in (".yaml", ".yml"):
        what = f"a file ending in {path.suffix or 'nothing'}"
        raise ConfigError(Problem(name, what, "give a .yaml file"))
    try:
        if not path.is_file():
            what = "no such file" if not path.exists() else "no regular file"
            raise ConfigError(Problem(name, what))
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(Problem(name, f"cannot be read: {error}")) from None
    text = decode(data, name=name)
    return parse_yaml(text, name=name), text, name


def validated(
    kind: type[M], document: Document, *, name: str, meant: Mapping[str, str] | None = None
) -> M:
    """A document as a model.

    Args:
        kind: the model.
        document: what the file says.
        name: what messages call the file.
        meant: keys of other tools → what to write instead.

    Raises:
        ConfigError: everything that is wrong with it.
    """
    try:
        return kind.model_validate(document.values)
    except ValidationError as error:
        problems = [_problem(kind, one, document, name, meant or {}) for one in error.errors()]
        # A value that fits none of several types has a message for each.
        raise ConfigError(*{str(p): p for p in problems}.values()) from None


def place(document: Document, path: tuple[Any, ...], *, name: str) -> str:
    """file:line: dotted path, of a key or of what it lies in."""
    dotted = ".".join(map(str, path))
    known = dotted
    while known and known not in document.lines:
        known = known.rpartition(".")[0]
    at = f"{name}:{document.lines[known]}" if known else name
    return f"{at}: {printable(dotted)}" if dotted else at


def _problem(
    kind: type[BaseModel],
    found: Any,
    document: Document,
    name: str,
    meant: Mapping[str, str],
) -> Problem:
    # Pydantic puts the names of union members into the path, which are no keys.
    path, value, extra = _real_path(found["loc"], document.values)
    where = place(document, path, name=name)
    code = found["type"]
    if code == "extra_forbidden":
        key = str(found["loc"][-1])
        if key in meant:
            return Problem(place(document, (*path, *extra), name=name), "unknown key", meant[key])
        keys = _keys_at(kind, found["loc"][:-1])
        close = nearest(key, keys)
        fix = f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(keys))}"
        return Problem(where, "unknown key", fix)
    if code == "missing":
        inside = ".".join(map(str, extra)) or str(found["loc"][-1])
        return Problem(where, f"{inside} is missing")
    message = str(found["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return Problem(where, f"got {shown(value)}: {message[:1].lower()}{message[1:]}")


def _real_path(loc: tuple[Any, ...], values: Any) -> tuple[tuple[Any, ...], Any, tuple[Any, ...]]:
    """The part of a location that the document has, its value, and the keys behind it."""
    path: list[Any] = []
    at = values
    rest: list[Any] = []
    for part in loc:
        is_key = isinstance(at, Mapping) and part in at
        if is_key or (isinstance(at, list) and isinstance(part, int) and part < len(at)):
            path.append(part)
            at = at[part]
        else:
            rest.append(part)
    return tuple(path), at, tuple(rest[-1:])


def _keys_at(kind: type[BaseModel], loc: tuple[Any, ...]) -> set[str]:
    """The keys that a model has at a location."""
    at: Any = kind
    for part in loc:
        options = _models_of(at)
        named = [m for m in options if _tag(m) == part]
        if named:
            at = named[0]
            continue
        fields = [m.model_fields[part].annotation for m in options if part in m.model_fields]
        if fields:
            at = fields[0]
    return {name for model in _models_of(at) for name in model.model_fields}


def _tag(model: type[BaseModel]) -> Any:
    field = model.model_fields.get("do")
    return None if field is None else field.default


def _models_of(annotation: Any) -> list[type[BaseModel]]:
    """All models inside a type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    found: list[type[BaseModel]] = []
    for part in getattr(annotation, "__args__", ()):
        found += _models_of(part)
    return found
