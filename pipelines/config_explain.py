"""What is wrong with a configuration, in words, for everything that is wrong at once."""

import difflib
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from pipelines.config_errors import Problem, shown
from pipelines.config_schema import ConfigField, Node
from pipelines.rllib_names import rllib_answer

_MISSING = {"env": "name one: --env CartPole-v1, or env: CartPole-v1 in the file"}


def unknown_key(path: str, value: Any, *, fields: Mapping[str, ConfigField]) -> tuple[str, str]:
    """What to say of a key that is none of ours: (what is wrong, how to put it right)."""
    answer = rllib_answer(path, value, known=fields)
    if answer:
        return f"RLlib's name (got {shown(value)})", answer
    parent = path.rpartition(".")[0]
    while parent and parent not in fields:
        parent = parent.rpartition(".")[0]
    close = nearest(path, fields)
    meant = f"did you mean {' or '.join(f'`{name}`' for name in close)}? " if close else ""
    if parent and not fields[parent].is_group:
        return f"unknown key: `{parent}` takes {fields[parent].expects}", f"{meant}set it whole"
    return "unknown key", f"{meant}{_inside(parent, fields)}"


def nearest(name: str, names: Collection[str]) -> list[str]:
    """The names most like a dotted one, or like its last part; empty when none is near."""
    last = name.rpartition(".")[2].lower()

    def likeness(other: str) -> float:
        whole = difflib.SequenceMatcher(None, name.lower(), other.lower()).ratio()
        tail = difflib.SequenceMatcher(None, last, other.rpartition(".")[2].lower()).ratio()
        return max(whole, 0.99 * tail)

    scores = {other: likeness(other) for other in names}
    best = max(scores.values(), default=0.0)
    if best < 0.7:
        return []
    return [other for other, score in scores.items() if score > best - 0.005][:3]


def explain(
    error: ValidationError,
    *,
    fields: Mapping[str, ConfigField],
    values: Mapping[str, Any],
    where: Callable[[str], str],
    known: Iterable[str] = (),
) -> list[Problem]:
    """What pydantic found in our words, one a field.

    Args:
        error: what pydantic raised.
        fields: the dotted paths of the configuration.
        values: what was validated, nested.
        where: names the origin of a dotted path, such as "F.yaml:7: optim.lr".
        known: paths with a problem that is reported already.
    """
    found: dict[str, Problem] = {}
    for finding in error.errors(include_url=False):
        loc = finding["loc"]
        path = _path_of(loc, fields)
        if finding["type"] == "extra_forbidden":
            path = f"{path}.{loc[-1]}" if path else str(loc[-1])
        if path in known or path in found:
            continue
        found[path] = _problem(finding, path=path, fields=fields, values=values, where=where)
    return list(found.values())


def _problem(
    finding: Mapping[str, Any],
    *,
    path: str,
    fields: Mapping[str, ConfigField],
    values: Mapping[str, Any],
    where: Callable[[str], str],
) -> Problem:
    kind, field = finding["type"], fields.get(path)
    if kind == "extra_forbidden":
        return Problem(where(path), *unknown_key(path, finding["input"], fields=fields))
    if kind == "value_error":
        message = str(finding["ctx"]["error"])
        if field is None or field.is_group:
            return Problem(_where_named(message, where, fields) or where(path), message)
        return Problem(where(path), f"got {shown(_at(values, path))}; {message}")
    if kind == "missing" and field is not None and _at(values, path) is None:
        return Problem(where(path), "missing", _MISSING.get(path, f"give {field.expects}"))
    if field is None:
        return Problem(where(path), finding["msg"])
    if kind.startswith("union_tag"):
        return _wrong_variant(finding, field, where=where, fields=fields)
    return misfit(field, _at(values, path), where=where(path))


def misfit(field: ConfigField, value: Any, *, where: str) -> Problem:
    """A value that its field cannot take."""
    if field.is_group:
        names = ", ".join(_names(field.node))
        return Problem(where, f"got {shown(value)}, expected a group", f"its keys are {names}")
    what = f"got {shown(value)}, expected {field.expects}"
    if field.choices and isinstance(value, str):
        close = nearest(value, field.choices)
        return Problem(where, what, f"did you mean {close[0]}?" if close else "")
    return Problem(where, what, _how_to_write(field, value))


def _how_to_write(field: ConfigField, value: Any) -> str:
    if isinstance(value, str) and field.expects.startswith("true"):
        return "write true or false"
    if isinstance(value, str) and _is_number(value):
        return "write the number without quotes or underscores"
    if isinstance(field.default, list) and field.default:
        return f"such as {shown(field.default)}"
    if field.expects.startswith("list"):
        return f"write [{shown(value)}]" if isinstance(value, str) else "write [...]"
    return ""


def _wrong_variant(
    finding: Mapping[str, Any],
    field: ConfigField,
    *,
    where: Callable[[str], str],
    fields: Mapping[str, ConfigField],
) -> Problem:
    key = f"{field.path}.{field.discriminator}"
    choices = fields[key].choices
    given = finding["ctx"].get("tag")
    if given is None:
        what = f"missing; it decides what `{field.path}` is"
        return Problem(where(key), what, f"give one of {', '.join(choices)}")
    close = nearest(given, choices)
    what = f"got {shown(given)}, expected one of {', '.join(choices)}"
    return Problem(where(key), what, f"did you mean {close[0]}?" if close else "")


def _path_of(loc: tuple[int | str, ...], fields: Mapping[str, ConfigField]) -> str:
    """The dotted path in pydantic's location, which also names variants and types of unions."""
    path = ""
    for part in loc:
        longer = f"{path}.{part}" if path else str(part)
        if longer in fields:
            path = longer
    return path


def _where_named(
    message: str, where: Callable[[str], str], fields: Mapping[str, ConfigField]
) -> str:
    """The origin of the first field that a message about several fields names, if it has one."""
    for word in message.replace("=", " ").replace(",", " ").split():
        if word in fields and where(word) != word:
            return where(word)
    return ""


def _inside(parent: str, fields: Mapping[str, ConfigField]) -> str:
    depth = parent.count(".") + 1 if parent else 0
    prefix = f"{parent}." if parent else ""
    names = [p[len(prefix) :] for p in fields if p.startswith(prefix) and p.count(".") == depth]
    return f"{f'`{parent}`' if parent else 'the top level'} has {', '.join(names)}"


def _names(node: Node) -> list[str]:
    options = node.get("anyOf") or node.get("oneOf") or [node]
    return list(dict.fromkeys(name for option in options for name in option.get("properties", {})))


def _at(values: Any, path: str) -> Any:
    for part in path.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
