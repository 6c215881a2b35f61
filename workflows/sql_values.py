"""Values of a query's answer as JSON has them, as CSV has them, and as a terminal may show them."""

import base64
import datetime as dt
import json
import uuid
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, Final

import pyarrow as pa

from pipelines.config_errors import printable

_CHUNK_ROWS: Final = 1024
_MAX_CHARS: Final = 400


def records(found: pa.Table) -> Iterator[dict[str, Any]]:
    """The rows, of which few are Python objects at a time."""
    for batch in found.to_batches(max_chunksize=_CHUNK_ROWS):
        yield from batch.to_pylist()


def plain(value: Any) -> Any:
    """A value as JSON can have it: times in ISO 8601, bytes in base64, whole decimals as numbers.

    Floats that are not finite stay; `json_line` makes them null.
    """
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, dt.datetime | dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, dt.timedelta):
        return value.total_seconds()
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return str(value) if isinstance(value, uuid.UUID) else value


def cell(value: Any) -> str:
    """A value in a file: nothing for null, lists and structs as JSON."""
    simple = plain(value)
    if simple is None:
        return ""
    if isinstance(simple, list | dict):
        return json.dumps(simple)
    if isinstance(simple, bool):
        return str(simple).lower()
    return simple if isinstance(simple, str) else repr(simple)


def shown(value: Any) -> str:
    """A value on a terminal: on few lines, short, and nothing in it that would be obeyed."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, bytes | bytearray):
        return f"{len(value):,} bytes"
    if isinstance(value, list) and all(isinstance(part, float) for part in value):
        return printable(f"[{', '.join(shown(part) for part in value)}]", limit=_MAX_CHARS)
    text = cell(value)
    if "\n" in text:  # as a plan of EXPLAIN
        lines = [printable(line, limit=_MAX_CHARS) for line in text.splitlines()]
        return "\n".join(lines)
    return printable(text, limit=_MAX_CHARS)


def is_number(kind: pa.DataType) -> bool:
    """Whether a column is one of numbers."""
    return bool(
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    )
