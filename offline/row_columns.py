"""Arrow columns whose rows all have one size, as [B, size] arrays: checked, never ragged."""

from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from offline.errors import LakeError
from offline.schemas import VALUES

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]
Column: TypeAlias = pa.Array | pa.ChunkedArray

NUMBERS: Final = np.dtype("<f8")
BYTES: Final = np.dtype(np.uint8)
_MAX_OFFSET: Final = int(np.iinfo(np.int32).max)


class Rows(NamedTuple):
    """A column as [B, size] in parts, zeros where it is null."""

    parts: list[Array]
    valid: Mask | None

    @property
    def rows(self) -> int:
        """How many there are."""
        return sum(len(part) for part in self.parts)

    @property
    def data(self) -> Array:
        """[B, size], a copy where there are several parts."""
        return self.parts[0] if len(self.parts) == 1 else np.concatenate(self.parts)


def without_nulls(chunk: pa.Array) -> tuple[pa.Array, Mask | None]:
    """The rows that are there, and which of all they are; None for all of them."""
    if not chunk.null_count:
        return chunk, None
    return chunk.drop_null(), chunk.is_valid().to_numpy(zero_copy_only=False)


def layout_of(rows: int, valid: Mask | None, size: int) -> list[pa.Buffer | None]:
    """Validity and offsets of rows of one size; a null row takes no room."""
    present = rows if valid is None else int(np.count_nonzero(valid))
    if present * size > _MAX_OFFSET:
        raise LakeError(
            f"{present} rows of {size} are more than one Arrow column holds (2**31 - 1); write "
            f"at most {_MAX_OFFSET // size} rows at a time."
        )
    if valid is None or present == rows:
        return [None, pa.py_buffer(np.arange(rows + 1, dtype=np.int32) * np.int32(size))]
    ends = np.zeros(rows + 1, np.int32)
    np.cumsum(valid, out=ends[1:])
    bitmap = pa.py_buffer(np.packbits(valid, bitorder="little"))
    return [bitmap, pa.py_buffer(ends * np.int32(size))]


def dense_rows(column: Column | None, dtype: np.dtype[Any], size: int, name: str) -> Rows | None:
    """A column of lists of numbers or of bytes, sliced and chunked or not.

    Args:
        column: None is allowed, and gives None.
        dtype: NUMBERS or BYTES.
        size: of each row that is not null; a column of size 0 is null in every row.
        name: what messages call the column.

    Raises:
        LakeError: naming column and row: another size, or a null inside a row.
    """
    if column is None:
        return None
    if size == 0:
        if column.null_count != len(column):
            raise LakeError(f"column {name} has values; its space has none for that column.")
        return None
    parts, masks, first = [], [], 0
    for chunk in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
        data, valid = _dense_chunk(chunk, dtype, size, name, first)
        parts.append(data)
        masks.append(np.ones(len(chunk), np.bool_) if valid is None else valid)
        first += len(chunk)
    if not parts:
        return Rows([np.zeros((0, size), dtype)], None)
    return Rows(parts, np.concatenate(masks) if column.null_count else None)


def _dense_chunk(
    chunk: pa.Array, dtype: np.dtype[Any], size: int, name: str, first: int
) -> tuple[Array, Mask | None]:
    """[B, size] of one chunk whose first row is number `first` of the column."""
    present, valid = without_nulls(chunk)

    def row(index: int) -> int:
        return first + (index if valid is None else int(np.flatnonzero(valid)[index]))

    lengths, items = (_bytes_of if dtype == BYTES else _numbers_of)(present, name)
    wrong = lengths != size
    if wrong.any():
        bad = int(wrong.argmax())
        unit = "bytes" if dtype == BYTES else "numbers"
        raise LakeError(
            f"column {name} has {lengths[bad]} {unit} in row {row(bad)}; its space has {size}."
        )
    if isinstance(items, pa.Array):
        if items.null_count:
            bad = items.is_null().index(True).as_py() // size
            raise LakeError(
                f"column {name} has a null inside row {row(bad)}; a row is null as a whole or not "
                "at all."
            )
        items = items.to_numpy()
    data = items.reshape(len(present), size)
    if valid is None:
        return data, None
    dense = np.zeros((len(chunk), size), dtype)
    dense[valid] = data
    return dense, valid


def _numbers_of(lists: pa.Array, name: str) -> tuple[Array, pa.Array]:
    """How many numbers each row has, and all of them; for an array without nulls."""
    kind = lists.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if pa.types.is_null(kind):
        return np.zeros(0, np.int64), pa.array([], pa.float64())
    if not (is_list or pa.types.is_fixed_size_list(kind)) or kind.value_type != pa.float64():
        raise LakeError(f"column {name} is {kind}; expected {VALUES}.")
    # `flatten` heeds the array's own slice, which `values` does not.
    return lists.value_lengths().to_numpy(zero_copy_only=False), lists.flatten()


def _bytes_of(binary: pa.Array, name: str) -> tuple[Array, Array]:
    """How many bytes each row has, and all of them; for an array without nulls."""
    kinds = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    if pa.types.is_null(binary.type) or not len(binary):
        return np.zeros(0, np.int64), np.zeros(0, BYTES)
    if not any(is_kind(binary.type) for is_kind in kinds):
        raise LakeError(f"column {name} is {binary.type}; expected binary.")
    _, offsets, data = (large := binary.cast(pa.large_binary())).buffers()
    bounds = np.frombuffer(offsets, np.int64)[large.offset : large.offset + len(large) + 1]
    items = np.zeros(0, BYTES) if data is None else np.frombuffer(data, BYTES)
    return np.diff(bounds), items[bounds[0] : bounds[-1]]


def require_same_rows(numbers: Rows, raw: Rows, names: tuple[str, str]) -> None:
    """Refuse two columns of one item that are not null in the same rows."""
    rows = (numbers.rows, raw.rows)
    if rows[0] != rows[1]:
        raise LakeError(f"columns {names[0]} and {names[1]} have {rows[0]} and {rows[1]} rows.")
    valid = [np.ones(rows[0], np.bool_) if r.valid is None else r.valid for r in (numbers, raw)]
    differ = valid[0] != valid[1]
    if differ.any():
        bad = int(differ.argmax())
        null = names[0] if not valid[0][bad] else names[1]
        raise LakeError(
            f"column {null} is null in row {bad} and {names[null == names[0]]} is not; an item is "
            "in both or in neither."
        )
