"""Conditions on rows as words of a command line."""

import re
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import pyarrow as pa

_CONDITION = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*)\s*(==|!=|<=|>=|=|<|>)\s*(.*?)\s*")


def condition(text: str, schema: "pa.Schema") -> tuple[str, str, Any]:
    """COLUMN OPERATOR VALUE as `Lake` takes it; the value as the column has it.

    Raises:
        click.BadParameter: it is no condition, or the value is none of the column's. A column
            that is not there is left to the lake, which knows what there is.
    """
    import pyarrow as pa

    match = _CONDITION.fullmatch(text)
    if match is None:
        raise click.BadParameter(f"--where {text!r}: expected COLUMN OPERATOR VALUE")
    name, operator, word = match.groups()
    value: Any = word.strip("'\"")
    index = schema.get_field_index(name)
    kind = pa.string() if index < 0 else schema.field(index).type
    try:
        if pa.types.is_boolean(kind):
            value = {"true": True, "false": False}[value.lower()]
        elif pa.types.is_integer(kind):
            value = int(value)
        elif pa.types.is_floating(kind):
            value = float(value)
    except (KeyError, ValueError):
        raise click.BadParameter(f"--where {text!r}: {name} is {kind}, not {value!r}") from None
    return name, operator, value
