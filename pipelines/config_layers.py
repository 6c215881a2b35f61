"""Layers of settings, each over the one before, merged into one draft of a configuration."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from pipelines.config_errors import Problem, printable, shown
from pipelines.config_explain import misfit, unknown_key
from pipelines.config_schema import ConfigField, fits
from pipelines.rllib_names import STOP_NAMES
from pipelines.strict_yaml import parse_scalar


@dataclass(frozen=True)
class Layer:
    """Settings from one place.

    Attributes:
        name: what messages call the place: "F.yaml", "--config"; empty for Python.
        values: nested mappings and dotted keys, as they come.
        lines: dotted path → line in the place.
        text: strings were typed on a command line, so "1e-3" may mean a number.
    """

    name: str
    values: Mapping[str, Any]
    lines: Mapping[str, int] = field(default_factory=dict)
    text: bool = False

    def where(self, path: str) -> str:
        """Where a dotted path was given, such as "F.yaml:7: optim.lr"."""
        known = path
        while known and known not in self.lines:
            known = known.rpartition(".")[0]
        place = f"{self.name}:{self.lines[known]}" if known else self.name
        return f"{place}: {printable(path)}" if place else printable(path)


class Draft:
    """Nested values in the making, and which layer gave what.

    Attributes:
        fields: the dotted paths of the configuration.
        values: what the layers so far come to; the base at first.
        origin: dotted path → the layer that gave it.
        problems: what is wrong with the layers.
        troubled: dotted paths that have a problem.
    """

    def __init__(self, fields: Mapping[str, ConfigField], base: dict[str, Any]) -> None:
        self.fields = fields
        self.values = base
        self.origin: dict[str, Layer] = {}
        self.problems: list[Problem] = []
        self.troubled: set[str] = set()

    def where(self, path: str) -> str:
        """The layer that gave a path, the group around it, or something in it."""
        known = path
        while known and known not in self.origin:
            known = known.rpartition(".")[0]
        inside = (p for p in self.origin if path and p.startswith(f"{path}."))
        layer = self.origin.get(known or next(inside, ""))
        return layer.where(path) if layer else printable(path)

    def add(self, layer: Layer) -> None:
        """Put a layer over what is there."""
        self._group(layer, "", layer.values)

    def misfits(self) -> list[Problem]:
        """Values of a type that is not their field's, however pydantic would convert them."""
        found = []
        for path in self.origin:
            field, value = self.fields[path], self._at(path)
            if path not in self.troubled and not fits(field.node, value):
                found.append(misfit(field, value, where=self.where(path)))
                self.troubled.add(path)
        return found

    def _group(self, layer: Layer, prefix: str, values: Mapping[str, Any]) -> None:
        group = self.fields.get(prefix[:-1])
        first = group.discriminator if group else None
        for key in sorted(values, key=lambda name: name != first):
            self._entry(layer, f"{prefix}{key}", values[key])

    def _entry(self, layer: Layer, path: str, value: Any) -> None:
        field = self.fields.get(path)
        if field is None:
            self._unknown(layer, path, value)
            return
        if layer.text and isinstance(value, str):
            try:
                value = _from_text(field, value)
            except ValueError as error:
                self._complain(layer, path, f"got {shown(value)}: {error}")
                return
        value = _plain(value)
        if not field.is_group:
            self._put(layer, path, value)
        elif isinstance(value, Mapping):
            self._group(layer, f"{path}.", value)
        elif isinstance(value, str) and f"{path}.id" in self.fields:
            self._put(layer, f"{path}.id", value)
        elif value is None and field.takes_null:
            self._put(layer, path, None)
        else:
            self.problems.append(misfit(field, value, where=layer.where(path)))
            self.troubled.add(path)

    def _unknown(self, layer: Layer, path: str, value: Any) -> None:
        """A key below a mapping field, a stop criterion in RLlib's name, or a mistake."""
        parent = path.rpartition(".")[0]
        while parent and parent not in self.fields:
            parent = parent.rpartition(".")[0]
        if parent and self.fields[parent].is_mapping:
            for key in reversed(path[len(parent) + 1 :].split(".")):
                value = {key: _scalar(value) if layer.text else value}
            self._entry(Layer(layer.name, {}, layer.lines), parent, value)
            return
        criterion = path.removeprefix("stop.")
        if parent == "stop" and criterion.replace(".", "/") in STOP_NAMES:
            self._entry(layer, f"stop.{STOP_NAMES[criterion.replace('.', '/')]}", value)
        elif parent == "stop" and isinstance(value, Mapping):
            self._group(layer, f"{path}.", value)
        else:
            given = _scalar(value) if layer.text else value
            self._complain(layer, path, *unknown_key(path, given, fields=self.fields))

    def _put(self, layer: Layer, path: str, value: Any) -> None:
        field = self.fields[path]
        if self.origin.get(path) is layer:
            self._complain(layer, path, "given twice", "keep one")
        *parents, name = path.split(".")
        group = self.values
        for parent in parents:
            if not isinstance(group.get(parent), dict):
                group[parent] = {}
            group = group[parent]
        if self._discriminates(path) and group.get(name) != value:
            # Defaults of another variant do not belong to this one; what was given stays.
            prefix = path.removesuffix(name)
            for key in [key for key in group if f"{prefix}{key}" not in self.origin]:
                del group[key]
        old = group.get(name)
        group[name] = _merged(old, value) if field.is_mapping else value
        self.origin[path] = layer

    def _discriminates(self, path: str) -> bool:
        parent, _, name = path.rpartition(".")
        return parent in self.fields and self.fields[parent].discriminator == name

    def _complain(self, layer: Layer, path: str, what: str, fix: str = "") -> None:
        self.problems.append(Problem(layer.where(path), what, fix))
        self.troubled.add(path)

    def _at(self, path: str) -> Any:
        value: Any = self.values
        for part in path.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value


def _from_text(field: ConfigField, text: str) -> Any:
    if field.takes_null and text in ("None", "none", "null", "~"):
        return None
    return text if field.takes_text else parse_scalar(text)


def _scalar(value: Any) -> Any:
    try:
        return parse_scalar(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _plain(value: Any) -> Any:
    """Containers copied, models dumped, numpy scalars as Python's (Tune samples those)."""
    if isinstance(value, BaseModel):
        return value.model_dump()
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return (
            type(value)(_plain(part) for part in value) if type(value) in (list, tuple) else value
        )
    is_numpy = hasattr(value, "dtype") and getattr(value, "shape", None) == ()
    return value.item() if is_numpy else value


def _merged(old: Any, new: Any) -> Any:
    """Mappings merged key by key at every depth; anything else is the new one."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    return old | {key: _merged(old.get(key), value) for key, value in new.items()}
