"""Batches of any Gymnasium space as two lake columns, numbers and bytes, and back bit for bit."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple

from offline.errors import LakeError
from offline.row_columns import (
    BYTES,
    NUMBERS,
    Column,
    Rows,
    dense_rows,
    layout_of,
    require_same_rows,
    without_nulls,
)
from offline.schemas import VALUES
from rl_ops.codec import Codec
from rl_ops.errors import SpecError
from rl_ops.spaces import leaf_bounds
from rl_ops.tree import Tree, brief, space_leaves, zip_spaces

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

_DTYPES: Final = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64"),
)
_EXACT: Final = 2**53
"""Doubles hold every integer up to here."""
_CACHED_NUMBERS: Final = 32_768
"""So many are converted and compared while they are in a core's cache: 3 times as fast."""


class Columns(NamedTuple):
    """The two lake columns of a space; None where it has no leaf of the kind."""

    values: Column | None
    bytes_: Column | None


@dataclass(frozen=True)
class Leaf:
    """Where a leaf of a space lies: in which column, and in which part of its rows.

    Attributes:
        dtype, shape: of one item.
        is_bytes: in the bytes column, else in that of numbers.
        start, size: in bytes, or in numbers.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    is_bytes: bool
    start: int
    size: int

    def spec(self) -> dict[str, Any]:
        return {
            "column": "bytes" if self.is_bytes else "values",
            "dtype": self.dtype.name,
            "shape": list(self.shape),
            "start": self.start,
            "size": self.size,
        }


class SpaceCodec:
    """A space's batches as `list<double>` and `binary`, the same two types for every space.

    All numeric leaves of an item, flattened in C order in the space's order, make its list.
    uint8 Boxes, and 64-bit integers whose bounds exceed +-2**53, are its bytes instead, little
    endian. So the columns' types never change with the environment, and numbers stay readable
    in SQL.

    Raises:
        LakeError: the space, or one inside it, has no rows of a fixed size.
    """

    def __init__(self, space: Space) -> None:
        self.space = space
        self.leaves = tuple(_leaves(space))
        self.num_values = sum(leaf.size for leaf in self.leaves if not leaf.is_bytes)
        self.num_bytes = sum(leaf.size for leaf in self.leaves if leaf.is_bytes)

    def __repr__(self) -> str:
        return f"SpaceCodec({brief(self.space)})"

    def spec(self) -> list[dict[str, Any]]:
        """Each leaf's column and place as JSON: what a reader without this module needs."""
        return [leaf.spec() for leaf in self.leaves]

    def columns(self, tree: Tree, valid: Mask | None = None) -> Columns:
        """A batch as the two columns.

        A float64 Box, or a frame, shares its memory with the column: do not write to it later.

        Args:
            tree: batch tree [B, ...] of the space's dtypes.
            valid: [B] bool; rows where it is False are null in both columns.

        Raises:
            LakeError: structure, dtype or shape are not the space's, or row counts differ; an
                integer beyond the bounds that the space states and beyond +-2**53.
        """
        arrays = self._leaf_arrays(tree)
        if valid is None:
            return self._encode(arrays, None)
        rows = len(arrays[0])
        if valid.shape != (rows,) or valid.dtype != np.bool_:
            raise LakeError(
                f"valid is {valid.dtype} {valid.shape}; the batch has {rows} rows, one bool each."
            )
        return self._encode([array[valid] for array in arrays], valid)

    def from_stream(self, column: Column, codec: Codec) -> Columns:
        """The columns of a stream's column, as `rl_ops.codec` encoded it; null rows stay null.

        Raises:
            LakeError: the codec is of another space, or the column not of the codec.
        """
        if codec.space is not self.space and codec.space != self.space:
            raise LakeError(
                f"the column holds {brief(codec.space)}; the lake's codec is of "
                f"{brief(self.space)}."
            )
        parts = []
        for chunk in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
            # What lies under a null is not read: final_obs is null in nearly every row.
            present, valid = without_nulls(chunk)
            try:
                tree = codec.decode(present)
            except SpecError as error:
                raise LakeError(f"the stream's column cannot be logged: {error}") from error
            parts.append(self._encode(self._leaf_arrays(tree), valid))
        return Columns(
            pa.chunked_array([p.values for p in parts], VALUES) if self.num_values else None,
            pa.chunked_array([p.bytes_ for p in parts], pa.binary()) if self.num_bytes else None,
        )

    def tree(
        self, values: Column | None, bytes_: Column | None = None, *, column: str = "values"
    ) -> Tree:
        """The batch of two columns, whole or sliced, with the space's dtypes.

        Read-only views where nothing had to be converted. Null rows are zeros; `is_valid()` of a
        column tells them from rows that are zero.

        Args:
            values: lists of numbers, or None (or all null) where the space has no such leaf.
            bytes_: the raw bytes, likewise.
            column: what messages call the columns: this, and this with _bytes behind.

        Raises:
            LakeError: naming column and row: another length than the space's, a null inside a
                row, a number that the leaf's dtype does not hold, one column null and one not.
        """
        names = (column, f"{column}_bytes")
        numbers = dense_rows(values, NUMBERS, self.num_values, names[0])
        raw = dense_rows(bytes_, BYTES, self.num_bytes, names[1])
        if numbers is not None and raw is not None:
            require_same_rows(numbers, raw, names)
        decoded = []
        for leaf in self.leaves:
            rows, name = (raw, names[1]) if leaf.is_bytes else (numbers, names[0])
            if rows is None:
                raise LakeError(f"column {name} is missing; {brief(self.space)} is partly in it.")
            decoded.append(_decode_leaf(leaf, rows, name))
        return _shaped(self.space, iter(decoded))

    def _leaf_arrays(self, tree: Tree) -> list[Array]:
        try:
            pairs = list(zip_spaces(self.space, tree))
        except (LookupError, TypeError, ValueError) as error:
            raise LakeError(
                f"the batch is not shaped like {brief(self.space)}: {type(error).__name__}: {error}"
            ) from None
        for leaf, (space, array) in zip(self.leaves, pairs, strict=True):
            if not isinstance(array, np.ndarray) or array.dtype != leaf.dtype:
                got = getattr(array, "dtype", type(array).__name__)
                raise LakeError(f"a leaf of the batch is {got}; {brief(space)} is {leaf.dtype}.")
            if array.ndim == 0 or array.shape[1:] != leaf.shape:
                expected = ", ".join(["B", *map(str, leaf.shape)])
                raise LakeError(
                    f"a leaf of the batch has shape {array.shape}; {brief(space)} needs "
                    f"[{expected}]."
                )
        rows = {len(array) for _, array in pairs}
        if len(rows) != 1:
            raise LakeError(f"the leaves of the batch have {sorted(rows)} rows; give one count.")
        return [array for _, array in pairs]

    def _encode(self, arrays: list[Array], valid: Mask | None) -> Columns:
        """Of the rows that are there, and which of all those are."""
        rows = len(arrays[0]) if valid is None else len(valid)
        pairs = list(zip(self.leaves, arrays, strict=True))
        numbers = [_numbers(leaf, array) for leaf, array in pairs if not leaf.is_bytes]
        raw = [_raw(leaf, array) for leaf, array in pairs if leaf.is_bytes]
        values = bytes_ = None
        if numbers:
            items = _side_by_side(numbers, NUMBERS)
            data = pa.py_buffer(items)
            child = pa.Array.from_buffers(pa.float64(), items.size, [None, data])
            layout = layout_of(rows, valid, self.num_values)
            values = pa.Array.from_buffers(VALUES, rows, layout, children=[child])
        if raw:
            data = pa.py_buffer(_side_by_side(raw, BYTES))
            layout = layout_of(rows, valid, self.num_bytes)
            bytes_ = pa.Array.from_buffers(pa.binary(), rows, [*layout, data])
        return Columns(values, bytes_)


def _leaves(space: Space) -> Iterator[Leaf]:
    starts = {True: 0, False: 0}
    for child in space_leaves(space):
        if not isinstance(child, Box | Discrete | MultiDiscrete | MultiBinary):
            raise LakeError(
                f"{brief(child)} has no rows of a fixed size; the lake takes Box, Discrete, "
                "MultiDiscrete, MultiBinary, and Dict or Tuple of them."
            )
        dtype, shape = np.dtype(child.dtype), tuple(child.shape)
        if dtype.name not in _DTYPES or prod(shape) == 0:
            raise LakeError(
                f"{brief(child)} has no form in the lake; it needs one value or more, and a dtype "
                f"of {', '.join(_DTYPES)}."
            )
        low, high = leaf_bounds(child)
        is_wide = dtype.kind in "iu" and (int(low.min()) < -_EXACT or int(high.max()) > _EXACT)
        is_frame = isinstance(child, Box) and dtype == np.uint8 and len(shape) > 0
        is_bytes = is_wide or is_frame
        size = prod(shape) * (dtype.itemsize if is_bytes else 1)
        yield Leaf(dtype, shape, is_bytes, starts[is_bytes], size)
        starts[is_bytes] += size
    if not any(starts.values()):
        raise LakeError(f"{brief(space)} has no entries; leave it out.")


def _shaped(space: Space, leaves: Iterator[Any]) -> Tree:
    if isinstance(space, Dict):
        return {name: _shaped(child, leaves) for name, child in space.spaces.items()}
    if isinstance(space, Tuple):
        return tuple(_shaped(child, leaves) for child in space.spaces)
    return next(leaves)


def _numbers(leaf: Leaf, array: Array) -> Array:
    if leaf.dtype.kind in "iu" and leaf.dtype.itemsize == 8 and array.size:
        smallest, largest = int(array.min()), int(array.max())
        if smallest < -_EXACT or largest > _EXACT:
            raise LakeError(
                f"a leaf of the batch holds {smallest} to {largest}, outside its space's bounds, "
                "and doubles hold integers up to 2**53. Declare its bounds as they are."
            )
    return array.reshape(len(array), leaf.size)


def _raw(leaf: Leaf, array: Array) -> Array:
    stored = np.ascontiguousarray(array, leaf.dtype.newbyteorder("<"))
    return stored.reshape(-1).view(BYTES).reshape(len(array), leaf.size)


def _side_by_side(parts: list[Array], dtype: np.dtype[Any]) -> Array:
    if len(parts) == 1:
        return np.ascontiguousarray(parts[0], dtype)
    joined = np.empty((len(parts[0]), sum(part.shape[1] for part in parts)), dtype)
    start = 0
    for part in parts:
        joined[:, start : start + part.shape[1]] = part
        start += part.shape[1]
    return joined


def _decode_leaf(leaf: Leaf, rows: Rows, name: str) -> Array:
    parts = [part[:, leaf.start : leaf.start + leaf.size] for part in rows.parts]
    shape = (rows.rows, *leaf.shape)
    if leaf.is_bytes:
        raw = np.ascontiguousarray(_joined(parts)).reshape(-1).view(leaf.dtype.newbyteorder("<"))
        return raw.astype(leaf.dtype, copy=False).reshape(shape)
    if leaf.dtype == np.float64:
        return np.ascontiguousarray(_joined(parts)).astype(leaf.dtype, copy=False).reshape(shape)
    cast = np.empty((rows.rows, leaf.size), leaf.dtype)
    first, step = 0, max(1, _CACHED_NUMBERS // max(1, leaf.size))
    for part in parts:
        for start in range(0, len(part), step):
            block = part[start : start + step]
            into = cast[first : first + len(block)]
            _cast_exactly(block, into, name, first_row=first)
            first += len(block)
    return cast.reshape(shape)


def _joined(parts: list[Array]) -> Array:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _cast_exactly(block: Array, into: Array, name: str, *, first_row: int) -> None:
    """Numbers into another dtype, which has to hold each; NaN is equal to itself."""
    with np.errstate(invalid="ignore", over="ignore"):
        np.copyto(into, block, casting="unsafe")
    differs = into != block
    if not differs.any():
        return
    if into.dtype.kind == "f":
        differs &= ~np.isnan(block)
    if differs.any():
        row, item = (int(i) for i in np.argwhere(differs)[0])
        raise LakeError(
            f"column {name} holds {block[row, item]} in row {first_row + row}, which {into.dtype} "
            "does not; the row is of another space, or damaged."
        )
