"""Every dotted path of a configuration class, its type in words; read from its JSON Schema."""

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel

Node = Mapping[str, Any]
"""A JSON Schema, its references written out."""

_BOUNDS = (
    ("minimum", ">="),
    ("exclusiveMinimum", ">"),
    ("maximum", "<="),
    ("exclusiveMaximum", "<"),
)


@dataclass(frozen=True)
class ConfigField:
    """A field or group of a configuration.

    Attributes:
        path: dotted, from the configuration's root.
        node: its JSON Schema.
        default: in JSON's terms; None also where `required`.
        required: it has no default.
        description: its docstring; a group without one has its class's.
    """

    path: str
    node: Node
    default: Any
    required: bool
    description: str

    @property
    def is_group(self) -> bool:
        """It has fields of its own."""
        return bool(_properties(self.node))

    @property
    def is_mapping(self) -> bool:
        """Keys are the user's: env.kwargs, resources.rollout_custom."""
        return not self.is_group and any(
            node.get("type") == "object" for node in _alternatives(self.node)
        )

    @property
    def expects(self) -> str:
        """The type in words."""
        return in_words(self.node)

    @property
    def choices(self) -> tuple[str, ...]:
        """The strings it takes, where these are few."""
        return tuple(str(value) for node in _alternatives(self.node) for value in _constants(node))

    @property
    def takes_text(self) -> bool:
        """A string given to it means itself, never a number."""
        kinds = {node.get("type") for node in _alternatives(self.node)}
        return "string" in kinds and kinds <= {"string", "null"}

    @property
    def takes_null(self) -> bool:
        """None is one of its values."""
        return any(node.get("type") == "null" for node in _alternatives(self.node))

    @property
    def discriminator(self) -> str | None:
        """The key that tells a group's variants apart."""
        name: str | None = self.node.get("discriminator", {}).get("propertyName")
        return name


@functools.cache
def fields_of(config_class: type[BaseModel]) -> Mapping[str, ConfigField]:
    """Dotted path → field, groups before their fields, in the order of declaration."""
    schema = config_class.model_json_schema()
    root = _inline(schema, schema.get("$defs", {}))
    return MappingProxyType({field.path: field for field in _walk(root, prefix="", defaults={})})


def fits(node: Node, value: Any) -> bool:
    """Whether a value is of the node's type; bounds, lengths and choices are pydantic's to check.

    Stricter than pydantic, which takes "8" and true for numbers and "no" for false.
    """
    return any(_fits_one(option, value) for option in _alternatives(node))


def in_words(node: Node) -> str:
    """The node's type in words, for messages and tables."""
    options = _alternatives(node)
    kinds = [option.get("type") for option in options]
    if kinds == ["number", "array"] and _is_point(options[1].get("items", {})):
        return "number, or points [[env_steps, value], ...]"
    constants = [str(value) for option in options for value in _constants(option)]
    words = [f"one of {', '.join(constants)}"] if len(constants) > 1 else constants
    words += [_word(option) for option in options if not _constants(option)]
    return " or ".join(words)


def _word(node: Node) -> str:
    kind = str(node.get("type", ""))
    if kind in ("integer", "number"):
        return kind + _bounds(node)
    if kind == "array":
        if "prefixItems" in node:
            return f"[{', '.join(in_words(item) for item in node['prefixItems'])}]"
        return f"list of {in_words(node.get('items', {}))}"
    if kind == "object":
        values = node.get("additionalProperties")
        return f"mapping to {in_words(values)}" if isinstance(values, Mapping) else "mapping"
    words = {"boolean": "true or false", "string": "string", "null": "null"}
    return words.get(kind, "any")


def _bounds(node: Node) -> str:
    if "minimum" in node and "maximum" in node:
        return f" from {node['minimum']:g} to {node['maximum']:g}"
    return "".join(f" {sign} {node[key]:g}" for key, sign in _BOUNDS if key in node)


def _is_point(node: Node) -> bool:
    kinds = [item.get("type") for item in node.get("prefixItems", ())]
    return kinds == ["integer", "number"]


def _constants(node: Node) -> tuple[Any, ...]:
    return (node["const"],) if "const" in node else tuple(node.get("enum", ()))


def _fits_one(node: Node, value: Any) -> bool:
    kind = node.get("type")
    if kind in ("integer", "number"):
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "array":
        if not isinstance(value, list | tuple):
            return False
        nodes = node.get("prefixItems") or [node.get("items", {})] * len(value)
        return all(fits(item, part) for item, part in zip(nodes, value, strict=False))
    if kind == "object":
        values = node.get("additionalProperties")
        if not isinstance(value, Mapping) or not isinstance(values, Mapping):
            return isinstance(value, Mapping)
        return all(fits(values, part) for part in value.values())
    types: dict[str, Any] = {"boolean": bool, "string": str, "null": type(None)}
    return isinstance(value, types.get(kind or "", object))


def _alternatives(node: Node) -> list[Node]:
    options = node.get("anyOf") or node.get("oneOf")
    if not options:
        return [node]
    return [leaf for option in options for leaf in _alternatives(option)]


def _properties(node: Node) -> dict[str, Node]:
    """Properties of a group; those of all its variants when it is a union of groups."""
    merged: dict[str, Node] = {}
    for option in _alternatives(node):
        for name, child in option.get("properties", {}).items():
            known = merged.get(name)
            same = known is None or json.dumps(known) == json.dumps(child)
            merged[name] = child if same else {"anyOf": [known, child]}
    return merged


def _walk(node: Node, *, prefix: str, defaults: Mapping[str, Any]) -> Iterator[ConfigField]:
    for name, child in _properties(node).items():
        field = ConfigField(
            path=prefix + name,
            node=child,
            default=defaults.get(name, child.get("default", _empty(child))),
            required=name in node.get("required", ()),
            description=" ".join(child.get("description", "").split()),
        )
        yield field
        if field.is_group:
            inner = field.default if isinstance(field.default, Mapping) else {}
            yield from _walk(child, prefix=field.path + ".", defaults=inner)


def _empty(node: Node) -> Any:
    # JSON Schema leaves default factories out; here they make empty containers only.
    return {} if node.get("type") == "object" and "properties" not in node else None


def _inline(node: Any, defs: Mapping[str, Any]) -> Any:
    if isinstance(node, list):
        return [_inline(item, defs) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        target = _inline(defs[node["$ref"].rpartition("/")[2]], defs)
        own = {key: value for key, value in node.items() if key != "$ref"}
        # A group that has no description where it is used has its class docstring.
        return {**target, **own}
    return {
        key: value if key in ("default", "discriminator") else _inline(value, defs)
        for key, value in node.items()
        if key != "$defs"
    }
