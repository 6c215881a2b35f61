"""Delta's statistics of a data file, from its parquet footer: what lets readers skip the file."""

import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

_PREFIX: Final = 32
"""Characters of a string that are kept: ids differ in these, and the log stays small."""
_LAST: Final = 0x10FFFF
_SURROGATES: Final = range(0xD800, 0xE000)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def delta_stats(footer: pq.FileMetaData, rows: pa.Table) -> str:
    """numRecords, nullCount of every column, minValues and maxValues of the scalar ones, as JSON.

    A column with a NaN has neither: engines disagree on where a NaN sorts. An infinity is no
    JSON, so that bound is left out. Times are rounded outwards to milliseconds, as Delta keeps
    them, and long strings are cut to a prefix that bounds them.

    Args:
        footer: of the file that was written from `rows`.
        rows: without the partition columns.
    """
    low: dict[str, Any] = {}
    high: dict[str, Any] = {}
    position = {footer.schema.column(i).path: i for i in range(footer.num_columns)}
    groups = [footer.row_group(g) for g in range(footer.num_row_groups)]
    for field, column in zip(rows.schema, rows.columns, strict=True):
        found = position.get(field.name)
        if found is None or pa.types.is_binary(field.type) or _has_nan(column):
            continue
        bounds = _bounds([group.column(found).statistics for group in groups])
        if bounds is not None:
            _put(low, field, _rounded(field.type, bounds[0], up=False))
            _put(high, field, _rounded(field.type, bounds[1], up=True))
    nulls = {
        name: column.null_count
        for name, column in zip(rows.column_names, rows.columns, strict=True)
    }
    stats = {"numRecords": rows.num_rows, "minValues": low, "maxValues": high, "nullCount": nulls}
    return json.dumps(stats, allow_nan=False, ensure_ascii=False, separators=(",", ":"))


def _has_nan(column: pa.ChunkedArray) -> bool:
    return pa.types.is_floating(column.type) and bool(pc.any(pc.is_nan(column)).as_py())


def _bounds(groups: Sequence[pq.Statistics | None]) -> tuple[Any, Any] | None:
    """Least and greatest raw value; None if a row group with values does not tell."""
    told = [group for group in groups if group is not None and group.has_min_max]
    silent = [group for group in groups if group is None or not group.has_min_max]
    if not told or any(group is None or group.num_values > 0 for group in silent):
        return None
    return min(group.min_raw for group in told), max(group.max_raw for group in told)


def _put(bounds: dict[str, Any], field: pa.Field, value: Any) -> None:
    if value is not None:
        bounds[field.name] = value


def _rounded(kind: pa.DataType, value: Any, *, up: bool) -> Any:
    if pa.types.is_timestamp(kind):
        return _time_bound(value, up=up)
    if pa.types.is_string(kind):
        return _string_bound(value, up=up)
    if pa.types.is_floating(kind) and not math.isfinite(value):
        return None
    return value


def _time_bound(microseconds: int, *, up: bool) -> str | None:
    milliseconds = -(-microseconds // 1000) if up else microseconds // 1000
    try:
        instant = _EPOCH + timedelta(milliseconds=milliseconds)
    except OverflowError:  # beyond the year 9999 or before the year 1
        return None
    return instant.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _string_bound(raw: bytes | str, *, up: bool) -> str | None:
    """A short string that is not greater (or, `up`, not less) in the order of code points."""
    text = raw.decode() if isinstance(raw, bytes) else raw
    if len(text) <= _PREFIX:
        return text
    prefix = text[:_PREFIX]
    if not up:
        return prefix
    while prefix and ord(prefix[-1]) == _LAST:
        prefix = prefix[:-1]
    if not prefix:
        return None
    following = ord(prefix[-1]) + 1
    return prefix[:-1] + chr(_SURROGATES.stop if following in _SURROGATES else following)
