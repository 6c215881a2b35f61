"""Arrow columns of others as batch trees: lists, structs, tensors and bytes of any nesting."""

import json
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from gymnasium.spaces import Space

from offline.errors import ImportDataError
from offline.exchange import Fault
from rl_ops.tree import Tree, tree_map

Array = npt.NDArray[Any]

_TENSOR: Final = "ray.data.arrow_tensor"


@dataclass(frozen=True)
class Column:
    """A batch of one column.

    Attributes:
        tree: [B, ...]; zeros in rows that are null or could not be read.
        valid: [B] bool, False where the row is null.
        faults: rows that could not be read, nulls excepted.
    """

    tree: Tree
    valid: Array
    faults: tuple[Fault, ...] = ()

    def required(self, name: str) -> "Column":
        """The same, with a fault for every null."""
        missing = [
            Fault(int(row), "not_finite", f"{name} is null") for row in np.flatnonzero(~self.valid)
        ]
        return Column(self.tree, self.valid, (*self.faults, *missing))


def read_column(array: pa.Array, field: pa.Field, space: Space | None, name: str) -> Column:
    """A column as a tree.

    Args:
        array: of one record batch.
        field: its field, whose metadata hold a tensor's shape.
        space: what the column holds, where that is known: bytes and flat lists need it.
        name: what messages call it.

    Raises:
        ImportDataError: the column's type holds no numbers that can be read without pickle.
    """
    array, shape = _unwrapped(array, field)
    valid = array.is_valid().to_numpy(zero_copy_only=False)
    rows = np.flatnonzero(valid)
    found = array if len(rows) == len(array) else array.filter(pa.array(valid))
    tree, faults = _tree(found, shape, space, name)
    if len(rows) < len(array):
        tree = tree_map(lambda leaf: _spread(leaf, rows, len(array)), tree)
    return Column(
        tree, valid, tuple(Fault(int(rows[f.index]), f.reason, f.message) for f in faults)
    )


def _unwrapped(array: pa.Array, field: pa.Field) -> tuple[pa.Array, tuple[int, ...] | None]:
    """Without the extension type, whether or not this process has it registered."""
    metadata = field.metadata or {}
    shape = None
    if isinstance(array.type, pa.ExtensionType):
        shape = getattr(array.type, "shape", None)
        array = array.storage
    elif metadata.get(b"ARROW:extension:name", b"").startswith(_TENSOR.encode()):
        # Ray writes the shape as JSON; older Rays, which pickled it, are read by the list's size.
        try:
            shape = json.loads(metadata[b"ARROW:extension:metadata"])
        except (KeyError, ValueError):
            shape = None
    if not isinstance(shape, list | tuple) or not all(isinstance(size, int) for size in shape):
        return array, None
    return array, tuple(shape)


def _tree(
    array: pa.Array, shape: tuple[int, ...] | None, space: Space | None, name: str
) -> tuple[Tree, list[Fault]]:
    kind = array.type
    if pa.types.is_dictionary(kind):
        array = array.dictionary_decode()
        kind = array.type
    if pa.types.is_struct(kind):
        return _struct(array, space, name)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        values, faults = _lists(array, name)
        return _shaped(values, shape, space), faults
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return _bytes(array, space, name)
    if pa.types.is_fixed_size_binary(kind):
        return _bytes(array.cast(pa.binary()), space, name)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return np.asarray(array.to_pylist(), dtype=np.str_), []
    if pa.types.is_null(kind):
        return np.full(len(array), np.nan), []
    if pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return _shaped(array.to_numpy(zero_copy_only=False), None, space), []
    raise ImportDataError(f"column {name!r} is {kind}, which holds no numbers")


def _struct(array: pa.Array, space: Space | None, name: str) -> tuple[Tree, list[Fault]]:
    names = [field.name for field in array.type]
    if names == ["data", "shape"] and pa.types.is_nested(array.type.field("data").type):
        return _ragged_tensors(array, name)
    children = getattr(space, "spaces", None)
    faults: list[Fault] = []
    tree: dict[str, Tree] = {}
    for i, field in enumerate(array.type):
        of = None
        if isinstance(children, tuple):
            of = children[i] if i < len(children) else None
        elif children is not None:
            of = children.get(field.name)
        child = read_column(array.field(i), field, of, f"{name}.{field.name}")
        tree[field.name] = child.tree
        faults += child.required(f"{name}.{field.name}").faults
    if isinstance(children, tuple) and names == [str(i) for i in range(len(children))]:
        return tuple(tree.values()), faults
    return tree, faults


def _ragged_tensors(array: pa.Array, name: str) -> tuple[Tree, list[Fault]]:
    data, shapes = array.field("data"), array.field("shape").to_pylist()
    values, faults = _lists(data, name)
    first = tuple(shapes[0]) if shapes else ()
    faults += [
        Fault(row, "mixed_lengths", f"{name} has shape {shape}, others {list(first)}")
        for row, shape in enumerate(shapes)
        if tuple(shape) != first
    ]
    return (values.reshape(len(values), *first) if len(values) else values), faults


def _lists(array: pa.Array, name: str) -> tuple[Array, list[Fault]]:
    """Lists of one length as [B, n, ...]; rows of another length are faults, and zeros."""
    if not len(array):
        return np.zeros((0, 0)), []
    lengths = pc.list_value_length(array).to_numpy(zero_copy_only=False)
    usual = int(np.bincount(lengths).argmax())
    odd = np.flatnonzero(lengths != usual)
    faults = [
        Fault(int(row), "mixed_lengths", f"{name} has {lengths[row]} values, other rows {usual}")
        for row in odd
    ]
    if odd.size:
        array = array.filter(pa.array(lengths == usual))
    inner = array.flatten()
    if pa.types.is_nested(inner.type):
        values, inner_faults = _lists(inner, name)
        faults += [Fault(f.index // max(usual, 1), f.reason, f.message) for f in inner_faults]
    else:
        values = inner.to_numpy(zero_copy_only=False)
    whole = values.reshape(len(array), usual, *values.shape[1:])
    if odd.size:
        whole = _spread(whole, np.flatnonzero(lengths == usual), len(lengths))
    return whole, faults


def _shaped(values: Array, shape: tuple[int, ...] | None, space: Space | None) -> Array:
    """Flat rows in the shape that the tensor's type or the space states."""
    expected = shape if shape is not None else getattr(space, "shape", None)
    if expected is None or values.shape[1:] == tuple(expected):
        return values
    if prod(values.shape[1:]) != prod(expected) or not len(values):
        return values
    return values.reshape(len(values), *expected)


def _bytes(array: pa.Array, space: Space | None, name: str) -> tuple[Tree, list[Fault]]:
    shape = getattr(space, "shape", None)
    if shape is None:
        raise ImportDataError(
            f"column {name!r} holds bytes; state what they are by --env ID or --spaces FILE"
        )
    if np.dtype(space.dtype) != np.uint8:  # type: ignore[union-attr]
        raise ImportDataError(
            f"column {name!r} holds bytes; only frames (uint8) are read from bytes, and the space "
            f"is {space}. Write its numbers as a list"
        )
    size = prod(shape)
    cells = array.to_pylist()
    odd = [row for row, cell in enumerate(cells) if len(cell) != size]
    faults = [
        Fault(row, "mixed_lengths", f"{name} has {len(cells[row])} bytes, expected {size}")
        for row in odd
    ]
    for row in odd:
        cells[row] = bytes(size)
    return np.frombuffer(b"".join(cells), np.uint8).reshape(len(cells), *shape), faults


def _spread(leaf: Array, rows: Array, total: int) -> Array:
    """Rows put where they belong among `total`, zeros elsewhere."""
    whole = np.zeros((total, *leaf.shape[1:]), leaf.dtype)
    if len(rows):
        whole[rows] = leaf
    return whole
