"""Codecs: a space's batches as an Arrow array, and back.

In flight a column keeps its row size (fixed_size_list, fixed_size_binary) and shares the batch's
memory. Delta keeps neither unsigned integers, nor float16, nor bool bytes, nor the row size, so
no codec stores the first three, and `decode` also reads the list and binary that come back.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from gymnasium.spaces import Space, Tuple

from rl_ops.errors import SpecError
from rl_ops.tree import Tree, brief, tree_map

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]


class Codec(ABC):
    """A space's batches as an Arrow array of B rows and back, bit for bit."""

    space: Space
    arrow_type: pa.DataType

    def encode(self, tree: Tree, valid: Mask | None = None) -> pa.Array:
        """The batch as an Arrow array that shares the memory of contiguous leaves.

        Do not write to those leaves afterwards. uint16 to uint64, float16 and non-contiguous
        leaves are copied.

        Args:
            tree: batch tree [B, ...] of the space's dtypes.
            valid: [B] bool; rows where it is False are null.

        Raises:
            SpecError: structure, dtype or shape differ from the space's, or row counts differ.
        """
        rows = self._rows(tree, "encode: tree")
        if valid is not None and valid.shape != (rows,):
            raise SpecError(f"encode: valid has shape {valid.shape}, the tree has {rows} rows.")
        if valid is None or valid.all():
            return self._to_arrow(tree, rows, None)
        bitmap = pa.py_buffer(np.packbits(valid, bitorder="little"))
        return self._to_arrow(tree, rows, bitmap)

    def decode(self, array: pa.Array | pa.ChunkedArray) -> Tree:
        """The batch tree of an encoded column, whole or sliced.

        Read-only views for one chunk without nulls, copies otherwise. Null rows are zeros;
        `array.is_valid()` tells them from rows that are zero.

        Raises:
            SpecError: the column is not of this codec's type, rows are ragged, or a null lies
                inside a row.
        """
        if not _same_but_for_sizes(array.type, self.arrow_type):
            raise SpecError(
                f"decode: the column is {array.type}; {brief(self.space)} is {self.arrow_type}."
            )
        if not isinstance(array, pa.ChunkedArray):
            valid = array.is_valid().to_numpy(zero_copy_only=False) if array.null_count else None
            return self._from_arrow(array, valid)
        batches = [self.decode(chunk) for chunk in array.chunks] or [self.empty(0)]
        if len(batches) == 1:
            return batches[0]
        return tree_map(lambda *leaves: np.concatenate(leaves), *batches)

    def check(self, tree: Tree, *, where: str, bounds: bool = True) -> None:
        """Refuse a batch the space does not contain, or that is not finite.

        Args:
            tree: batch tree [B, ...].
            where: what the message calls the tree, as "obs of CartPole-v1".
            bounds: also refuse values outside low..high; NaN and Inf are refused always.

        Raises:
            SpecError: naming the leaf, the first row at fault, what it holds and what may be.
        """
        self._rows(tree, where)
        self._check_values(tree, where, bounds)

    @abstractmethod
    def empty(self, rows: int) -> Tree:
        """A writable batch tree [rows, ...] of zeros; the system lends its pages when written."""

    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """Encoding, dtype and shape as JSON: what a reader without this module needs."""

    @abstractmethod
    def _rows(self, tree: Tree, where: str) -> int: ...

    @abstractmethod
    def _check_values(self, tree: Tree, where: str, bounds: bool) -> None: ...

    @abstractmethod
    def _to_arrow(self, tree: Tree, rows: int, bitmap: pa.Buffer | None) -> pa.Array: ...

    @abstractmethod
    def _from_arrow(self, array: pa.Array, valid: Mask | None) -> Tree: ...


@dataclass(frozen=True, eq=False)
class LeafCodec(Codec):
    """One array per batch: a plain column, lists of one size, or bytes of one size."""

    space: Space
    arrow_type: pa.DataType
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    storage: np.dtype[Any]
    low: Array | None
    """Bounds, of the leaf's shape or 0-d where uniform; None where the dtype cannot exceed them."""
    high: Array | None

    @property
    def is_list(self) -> bool:
        return bool(pa.types.is_fixed_size_list(self.arrow_type))

    def empty(self, rows: int) -> Array:
        return np.zeros((rows, *self.shape), self.dtype)

    def spec(self) -> dict[str, Any]:
        is_bytes = pa.types.is_fixed_size_binary(self.arrow_type)
        encoding = "list" if self.is_list else "bytes" if is_bytes else "plain"
        return {
            "encoding": encoding,
            "dtype": self.dtype.name,
            "storage": self.storage.name,
            "shape": list(self.shape),
        }

    def _rows(self, tree: Tree, where: str) -> int:
        if not isinstance(tree, np.ndarray):
            raise SpecError(f"{where} is a {type(tree).__name__}; {brief(self.space)} is an array.")
        if tree.dtype != self.dtype:
            raise SpecError(
                f"{where} has dtype {tree.dtype}; {brief(self.space)} needs {self.dtype}. "
                "Cast it where the environment makes it, or declare that dtype."
            )
        if tree.ndim == 0 or tree.shape[1:] != self.shape:
            expected = ", ".join(["B", *map(str, self.shape)])
            raise SpecError(
                f"{where} has shape {tree.shape}; {brief(self.space)} needs [{expected}]."
            )
        return len(tree)

    def _check_values(self, tree: Array, where: str, bounds: bool) -> None:
        is_float = self.dtype.kind == "f"
        if len(tree) == 0 or not (is_float or (bounds and self.low is not None)):
            return
        # Reductions over everything are the fastest pass; a NaN anywhere comes through min.
        smallest, largest = tree.min(), tree.max()
        if is_float and not (np.isfinite(smallest) and np.isfinite(largest)):
            self._refuse(tree, np.isnan(tree), where, "NaN")
            self._refuse(tree, np.isinf(tree), where, "Inf")
        if not bounds or self.low is None or self.high is None:
            return
        if smallest < self.low.max() or largest > self.high.min():
            bad = (tree < self.low) | (tree > self.high)
            self._refuse(tree, bad, where, "values out of bounds")

    def _refuse(self, tree: Array, bad: Mask, where: str, what: str) -> None:
        if not bad.any():
            return
        first = tuple(int(i) for i in np.unravel_index(int(bad.argmax()), bad.shape))
        bad_rows = np.count_nonzero(bad.reshape(len(bad), -1).any(axis=1))
        raise SpecError(
            f"{where} has {what} in {bad_rows} of {len(tree)} rows, the first at {list(first)}: "
            f"got {tree[first]}, expected {self._range(first[1:])}."
        )

    def _range(self, index: tuple[int, ...]) -> str:
        if self.low is None or self.high is None:
            return "a finite number"
        low, high = (np.broadcast_to(bound, self.shape)[index] for bound in (self.low, self.high))
        return f"a finite number in [{low}, {high}]"

    def _to_arrow(self, tree: Array, rows: int, bitmap: pa.Buffer | None) -> pa.Array:
        values = np.ascontiguousarray(tree)
        # A bool is a byte of 0 or 1, so int8 is a view of it; Arrow's own bool is a bit.
        is_bool = self.dtype == np.bool_
        stored = values.view(np.int8) if is_bool else values.astype(self.storage, copy=False)
        data = pa.py_buffer(stored)
        if not self.is_list:
            return pa.Array.from_buffers(self.arrow_type, rows, [bitmap, data])
        items = pa.Array.from_buffers(self.arrow_type.value_type, stored.size, [None, data])
        return pa.Array.from_buffers(self.arrow_type, rows, [bitmap], children=[items])

    def _from_arrow(self, array: pa.Array, valid: Mask | None) -> Array:
        rows, row_size = len(array), prod(self.shape)
        if rows == 0:
            return self.empty(0)
        if array.type != self.arrow_type:
            array = self._with_size(array)
        if self.is_list:
            # `values` knows nothing of the array's own slice.
            items = array.values.slice(array.offset * row_size, rows * row_size)
            _refuse_inner_nulls(items, None if valid is None else valid.repeat(row_size))
            buffer, first = items.buffers()[1], items.offset
        else:
            buffer, first = array.buffers()[1], array.offset * row_size
        offset = first * self.storage.itemsize
        stored = np.frombuffer(buffer, self.storage, count=rows * row_size, offset=offset)
        stored = stored.reshape(rows, *self.shape)
        is_bool = self.dtype == np.bool_
        batch = stored.view(np.bool_) if is_bool else stored.astype(self.dtype, copy=False)
        if valid is not None:
            # What lies under a null is not defined.
            present = self.empty(rows)
            present[valid] = batch[valid]
            return present
        batch.flags.writeable = False
        return batch

    def _with_size(self, array: pa.Array) -> pa.Array:
        try:
            return array.cast(self.arrow_type)
        except pa.ArrowException as error:
            raise SpecError(
                f"decode: a column of {array.type} has rows of other sizes than "
                f"{brief(self.space)}: {error}"
            ) from error


@dataclass(frozen=True, eq=False)
class StructCodec(Codec):
    """Dict or Tuple: a struct with a field per entry; a Tuple's fields are "0", "1", ..."""

    space: Space
    arrow_type: pa.DataType
    fields: tuple[tuple[str, Codec], ...]

    def empty(self, rows: int) -> Tree:
        return self._tree([codec.empty(rows) for _, codec in self.fields])

    def spec(self) -> dict[str, Any]:
        fields = [[name, codec.spec()] for name, codec in self.fields]
        kind = "tuple" if isinstance(self.space, Tuple) else "dict"
        return {"encoding": "struct", "tree": kind, "fields": fields}

    def _tree(self, children: list[Tree]) -> Tree:
        if isinstance(self.space, Tuple):
            return tuple(children)
        return {name: child for (name, _), child in zip(self.fields, children, strict=True)}

    def _children(self, tree: Tree) -> list[Tree]:
        if isinstance(self.space, Tuple):
            return list(tree)
        return [tree[name] for name, _ in self.fields]

    def _rows(self, tree: Tree, where: str) -> int:
        names = [name for name, _ in self.fields]
        if isinstance(self.space, Tuple):
            if not isinstance(tree, tuple) or len(tree) != len(names):
                got = f"{len(tree)} entries" if isinstance(tree, tuple) else type(tree).__name__
                raise SpecError(f"{where} is {got}; expected a tuple of {len(names)} entries.")
        elif not isinstance(tree, dict) or tree.keys() != set(names):
            got = f"keys {sorted(tree)}" if isinstance(tree, dict) else type(tree).__name__
            raise SpecError(f"{where} is {got}; expected a dict with keys {sorted(names)}.")
        children = zip(self.fields, self._children(tree), strict=True)
        rows = [codec._rows(child, f"{where}[{name!r}]") for (name, codec), child in children]
        if len(set(rows)) != 1:
            counts = dict(zip(names, rows, strict=True))
            raise SpecError(f"{where} has entries of different row counts: {counts}.")
        return rows[0]

    def _check_values(self, tree: Tree, where: str, bounds: bool) -> None:
        for (name, codec), child in zip(self.fields, self._children(tree), strict=True):
            codec._check_values(child, f"{where}[{name!r}]", bounds)

    def _to_arrow(self, tree: Tree, rows: int, bitmap: pa.Buffer | None) -> pa.Array:
        children = zip(self.fields, self._children(tree), strict=True)
        columns = [codec._to_arrow(child, rows, None) for (_, codec), child in children]
        return pa.Array.from_buffers(self.arrow_type, rows, [bitmap], children=columns)

    def _from_arrow(self, array: pa.Array, valid: Mask | None) -> Tree:
        children = []
        # `flatten` gives the columns this array's slice and its nulls.
        for column, (_, codec) in zip(array.flatten(), self.fields, strict=True):
            _refuse_inner_nulls(column, valid)
            children.append(codec._from_arrow(column, valid))
        return self._tree(children)


def _refuse_inner_nulls(array: pa.Array, valid: Mask | None) -> None:
    """A null inside a row that is not null has no value to decode; files of others may have one."""
    if array.null_count == 0:
        return
    missing = array.is_null().to_numpy(zero_copy_only=False)
    if valid is None or (missing & valid).any():
        raise SpecError(
            f"decode: a column of {array.type} has {array.null_count} nulls inside rows that are "
            "not null; a row is null as a whole or not at all."
        )


def _same_but_for_sizes(one: pa.DataType, other: pa.DataType) -> bool:
    return bool(one == other or _without_sizes(one) == _without_sizes(other))


def _without_sizes(kind: pa.DataType) -> pa.DataType:
    """The type as Delta gives it back: lists and bytes without their size."""
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _without_sizes(field.type)) for field in kind])
    if pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(kind.value_type)
    if pa.types.is_fixed_size_binary(kind) or pa.types.is_large_binary(kind):
        return pa.binary()
    return kind
