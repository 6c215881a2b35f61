"""Arrow rows as tensors: what a learner's loss reads.

Legend: B rows.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from rl_ops.errors import ColumnError

TensorTree = Any
"""A tensor [B, ...], a dict of trees or a tuple of trees."""


class Batch:
    """Columns as tensors with the same number of rows, by attribute: `batch.obs`, `batch.logp`."""

    __slots__ = ("_columns", "rows")

    def __init__(self, columns: Mapping[str, TensorTree]) -> None:
        self._columns = dict(columns)
        self.rows = _rows(next(iter(self._columns.values())))

    def __getattr__(self, name: str) -> TensorTree:
        try:
            return self._columns[name]
        except KeyError:
            raise ColumnError(
                f"the batch has no {name!r}; it has {sorted(self._columns)}"
            ) from None

    def __contains__(self, name: str) -> bool:
        return name in self._columns

    def with_columns(self, **columns: TensorTree) -> "Batch":
        """The same rows with columns added or replaced."""
        return Batch({**self._columns, **columns})

    def select(self, names: Iterable[str]) -> "Batch":
        """Only the columns named."""
        return Batch({name: getattr(self, name) for name in names})

    def minibatches(self, max_rows: int, *, generator: torch.Generator) -> Iterator["Batch"]:
        """All rows once, shuffled, in minibatches of equal size (within one row) ≤ max_rows.

        One gather a column and then slices: gathering each minibatch anew costs twice that.
        """
        count = -(-self.rows // max_rows)
        order = torch.randperm(self.rows, generator=generator)
        shuffled = {name: _map(lambda x: x[order], tree) for name, tree in self._columns.items()}
        bounds = [self.rows * i // count for i in range(count + 1)]
        for low, high in zip(bounds[:-1], bounds[1:], strict=True):
            span = slice(low, high)
            yield Batch({name: _map(lambda x, s=span: x[s], t) for name, t in shuffled.items()})


def to_batch(
    tables: Sequence[pa.Table],
    codecs: Mapping[str, Any],
    *,
    device: torch.device,
    rename: Mapping[str, str] | None = None,
) -> Batch:
    """The rows of `tables`, in order, as tensors on `device`.

    Args:
        tables: of one schema.
        codecs: column → codec of its space, or None for a plain number.
        rename: column → name in the batch, where they differ.
        device: where the tensors go. On the CPU one table's columns are not copied.

    Raises:
        ColumnError: a column is missing.
    """
    columns: dict[str, TensorTree] = {}
    for name, codec in codecs.items():
        for table in tables:
            if name not in table.column_names:
                raise ColumnError(
                    f"the learner reads {name!r}; the stream has {table.column_names}"
                )
        chunks = [_decode(table.column(name), codec) for table in tables]
        columns[(rename or {}).get(name, name)] = _map_trees(
            lambda *parts: _tensor(parts, device), *chunks
        )
    return Batch(columns)


def _decode(column: pa.ChunkedArray, codec: Any) -> Any:
    if codec is not None:
        return codec.decode(column)
    return column.to_numpy()


def _tensor(parts: Sequence[npt.NDArray[Any]], device: torch.device) -> torch.Tensor:
    array = parts[0] if len(parts) == 1 else np.concatenate(parts)
    if not array.flags.writeable:
        # Shared memory of the object store must not be written; learners never write a column,
        # but torch cannot express that, so this one copy buys safety.
        array = array.copy()
    return torch.from_numpy(array).to(device)


def _map(fn: Any, tree: TensorTree) -> TensorTree:
    return _map_trees(fn, tree)


def _map_trees(fn: Any, *trees: Any) -> Any:
    first = trees[0]
    if isinstance(first, dict):
        return {key: _map_trees(fn, *(tree[key] for tree in trees)) for key in first}
    if isinstance(first, tuple):
        return tuple(_map_trees(fn, *parts) for parts in zip(*trees, strict=True))
    return fn(*trees)


def _rows(tree: TensorTree) -> int:
    while isinstance(tree, dict | tuple):
        tree = next(iter(tree.values())) if isinstance(tree, dict) else tree[0]
    return len(tree)
