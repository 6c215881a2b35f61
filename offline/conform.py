"""Tables brought to a lake table's schema before anything is written, or refused with a diff."""

import pyarrow as pa
import pyarrow.types as t

from offline.errors import LakeError


def conform(table: pa.Table, schema: pa.Schema, *, name: str) -> pa.Table:
    """The table with exactly the columns and types of a schema; no value changes.

    Widths, dictionaries and encodings of strings and lists may differ. What Delta cannot keep is
    refused: unsigned integers, float16, extension types, times without a zone.

    Args:
        table: the rows.
        schema: what the lake's table has.
        name: of the lake's table, for messages.

    Raises:
        LakeError: lists every column that is lost (-), foreign (+) or of another type (~).
    """
    if table.schema.equals(schema):
        return table
    diff = _diff(table.schema, schema)
    if diff:
        shown = "".join(f"\n  {line}" for line in diff)
        raise LakeError(
            f"the rows do not fit table {name!r} (- lost, + foreign, ~ changed):{shown}\n"
            "Give each of its columns, null where there is nothing to say; nothing was written."
        )
    columns = [_cast(table.column(field.name), field, name) for field in schema]
    return pa.table(columns, schema=schema)


def _diff(there: pa.Schema, wanted: pa.Schema) -> list[str]:
    lost = [f"- {f.name}: {f.type}" for f in wanted if f.name not in there.names]
    foreign = [f"+ {f.name}: {f.type}" for f in there if f.name not in wanted.names]
    twice = sorted({n for n in there.names if there.names.count(n) > 1})
    changed = [
        f"~ {f.name}: {there.field(f.name).type}, expected {f.type}"
        for f in wanted
        if f.name in there.names
        and f.name not in twice
        and not _keeps(there.field(f.name).type, f.type)
    ]
    return [*lost, *foreign, *changed, *(f"~ {n}: is there more than once" for n in twice)]


def _keeps(there: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether values of one type may become another's; whether each fits, the cast finds out."""
    if there == wanted or t.is_null(there):
        return True
    if t.is_dictionary(there):
        return _keeps(there.value_type, wanted)
    if t.is_list(wanted):
        lists = (t.is_list, t.is_large_list, t.is_fixed_size_list)
        return any(is_list(there) for is_list in lists) and _keeps(
            there.value_type, wanted.value_type
        )
    if t.is_string(wanted):
        return bool(t.is_large_string(there) or t.is_string_view(there))
    if t.is_binary(wanted):
        binaries = (t.is_large_binary, t.is_fixed_size_binary, t.is_binary_view)
        return any(is_binary(there) for is_binary in binaries)
    if t.is_signed_integer(wanted):
        return bool(t.is_signed_integer(there))
    if t.is_floating(wanted):
        narrower = t.is_float32(there) and t.is_float64(wanted)
        return bool(narrower or t.is_signed_integer(there))
    if t.is_timestamp(wanted):
        return bool(t.is_timestamp(there) and there.tz is not None)
    return False


def _cast(column: pa.ChunkedArray, field: pa.Field, name: str) -> pa.ChunkedArray:
    if column.type == field.type:
        return column
    try:
        return column.cast(field.type, safe=True)
    except pa.ArrowException as error:
        raise LakeError(
            f"column {field.name!r} of table {name!r} is {column.type} and has a value that does "
            f"not fit {field.type}: {error}. Nothing was written."
        ) from None
