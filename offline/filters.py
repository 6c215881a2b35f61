"""What a read asks for, checked against a table's schema: columns, and conditions on rows."""

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Final, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from offline.errors import LakeError

Where: TypeAlias = pc.Expression | Sequence[tuple[str, str, Any]]

_COMPARE: Final[Mapping[str, Callable[[Any, Any], Any]]] = {
    "==": operator.eq,
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_OPERATORS: Final = (*_COMPARE, "in", "not in")


def projected(schema: pa.Schema, columns: Sequence[str] | None) -> pa.Schema:
    """A schema with some of its columns, in their order."""
    return schema if columns is None else pa.schema([schema.field(name) for name in columns])


def unknown(name: object, there: Sequence[str], where: str) -> str:
    """What a message says of a name that does not exist: the nearest one, or all."""
    close = get_close_matches(str(name), there, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(there)}."
    return f"{where} has no column {name!r}; {hint}"


def checked_columns(columns: Sequence[str], schema: pa.Schema, table: str) -> tuple[str, ...]:
    """Columns that are there, each once.

    Raises:
        LakeError: one is not there, and which may be meant.
    """
    if isinstance(columns, str):
        raise LakeError(f"columns is {columns!r}; give a list of names, as [{columns!r}].")
    for name in columns:
        if name not in schema.names:
            raise LakeError(unknown(name, schema.names, table))
    if len(set(columns)) < len(columns):
        raise LakeError(f"columns {list(columns)} names one twice; give each once.")
    return tuple(columns)


def checked_where(where: Where, schema: pa.Schema, table: str) -> pc.Expression | None:
    """Conditions as one expression that fits the schema; None if there are none.

    Raises:
        LakeError: a column or operator is not there, or a value does not fit its column.
    """
    expression = where if isinstance(where, pc.Expression) else _all_of(where, schema, table)
    if expression is None:
        return None
    # Loads pandas, half a second, which nothing that only writes needs.
    import pyarrow.dataset as pds

    try:
        # Binding is what tells a wrong name or type; a scanner of no rows does it.
        pds.dataset(schema.empty_table()).scanner(filter=expression).to_table()
    except (pa.ArrowException, TypeError, KeyError) as error:
        name = re.search(r"FieldRef\.Name\((.*?)\)", str(error))
        if name and name.group(1) not in schema.names:
            raise LakeError(f"where: {unknown(name.group(1), schema.names, table)}") from None
        raise LakeError(
            f"where {expression} does not fit {table}: {str(error).splitlines()[0]}"
        ) from None
    return expression


def _all_of(
    where: Sequence[tuple[str, str, Any]], schema: pa.Schema, table: str
) -> pc.Expression | None:
    found: pc.Expression | None = None
    for condition in where:
        if not isinstance(condition, tuple | list) or len(condition) != 3:
            raise LakeError(
                f"where holds {condition!r}; give a pyarrow expression or tuples of (column, "
                "operator, value)."
            )
        name, op, value = condition
        if name not in schema.names:
            raise LakeError(f"where: {unknown(name, schema.names, table)}")
        if op not in _OPERATORS:
            raise LakeError(f"where has the operator {op!r}; there are {', '.join(_OPERATORS)}.")
        term = _condition(schema.field(name), op, value)
        found = term if found is None else found & term
    return found


def _condition(column: pa.Field, op: str, value: Any) -> pc.Expression:
    named = pc.field(column.name)
    if value is None:
        if op not in ("==", "=", "!="):
            raise LakeError(f"where compares {column.name!r} {op} None; None is == or != only.")
        return named.is_valid() if op == "!=" else named.is_null()
    try:
        if op in ("in", "not in"):
            held = named.isin(_as_type(pa.array(list(value)), column.type))
            return held if op == "in" else ~held
        return _COMPARE[op](named, _as_type(pa.scalar(value), column.type))
    except (pa.ArrowException, TypeError, OverflowError) as error:
        raise LakeError(
            f"where compares {column.name!r}, which is {column.type}, with {value!r}: "
            f"{str(error).splitlines()[0]}"
        ) from None


def _as_type(value: pa.Scalar | pa.Array, kind: pa.DataType) -> pa.Scalar | pa.Array:
    """A value as a column has it; a cast, because building one of the type cuts 0.5 down to 0."""
    is_free = pa.types.is_timestamp(kind) or pa.types.is_null(value.type)
    if pa.types.is_string(value.type) != pa.types.is_string(kind) and not is_free:
        raise TypeError(f"{value.type} is no {kind}")
    return value.cast(kind)
