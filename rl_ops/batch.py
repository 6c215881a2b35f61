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
    """Columns as tensors with the same number of rows, by attribute: `batch.obs`, `batch.logp`.

    Raises:
        ValueError: there are no columns, or their rows differ in number.
    """

    __slots__ = ("_columns", "rows")

    def __init__(self, columns: Mapping[str, TensorTree]) -> None:
        self._columns = dict(columns)
        rows = {name: _rows(tree) for name, tree in self._columns.items()}
        if len(set(rows.values())) != 1:
            raise ValueError(f"a batch needs columns of one number of rows, got {rows}")
        self.rows = next(iter(rows.values()))

    def __getattr__(self, name: str) -> TensorTree:
        if name.startswith("_"):  # what copy and pickle ask of an object that is not made yet
            raise AttributeError(name)
        try:
            return self._columns[name]
        except KeyError:
            raise ColumnError(
                f"the batch has no {name!r}; it has {sorted(self._columns)}"
            ) from None

    @property
    def names(self) -> tuple[str, ...]:
        """Of the columns."""
        return tuple(self._columns)

    def __contains__(self, name: str) -> bool:
        return name in self._columns

    def with_columns(self, **columns: TensorTree) -> "Batch":
        """The same rows with columns added or replaced."""
        return Batch({**self._columns, **columns})

    def rows_of(self, index: slice | torch.Tensor) -> "Batch":
        """Some of the rows; of a slice they are views."""
        return Batch({name: _map(lambda x: x[index], tree) for name, tree in self._columns.items()})

    def to(self, device: torch.device) -> "Batch":
        """The rows on a device."""
        return Batch(
            {name: _map(lambda x: x.to(device), tree) for name, tree in self._columns.items()}
        )

    def select(self, names: Iterable[str]) -> "Batch":
        """Only the columns named."""
        return Batch({name: getattr(self, name) for name in names})

    def minibatches(
        self, max_rows: int, *, generator: torch.Generator, min_count: int = 1
    ) -> Iterator["Batch"]:
        """All rows once, shuffled, in minibatches of equal size (within one row) ≤ max_rows.

        One gather a column and then slices: gathering each minibatch anew costs twice that.
        At least `min_count` of them: data-parallel ranks, whose rows differ in number, must all
        take the same number of steps.
        """
        # Never one without rows, whose mean would be NaN.
        count = min(max(-(-self.rows // max_rows), min_count), self.rows)
        order = torch.randperm(self.rows, generator=generator)
        shuffled = {name: _map(lambda x: x[order], tree) for name, tree in self._columns.items()}
        for i in range(count):
            low, high = self.rows * i // count, self.rows * (i + 1) // count
            span = slice(low, high)
            columns = {name: _map(lambda x, s=span: x[s], t) for name, t in shuffled.items()}
            yield self._of(columns, high - low)

    @classmethod
    def _of(cls, columns: dict[str, TensorTree], rows: int) -> "Batch":
        """Without counting rows again, which would cost a minibatch 3 us."""
        batch = cls.__new__(cls)
        batch._columns, batch.rows = columns, rows
        return batch


def to_batch(
    tables: Sequence[pa.Table],
    codecs: Mapping[str, Any],
    *,
    device: torch.device,
    rename: Mapping[str, str] | None = None,
) -> Batch:
    """The rows of `tables`, in order, as tensors on `device`.

    Args:
        tables: of one schema, at least one.
        codecs: column → codec of its space, or None for a plain number.
        rename: column → name in the batch, where they differ.
        device: where the tensors go. On the CPU every column is copied once, to memory of the
            tensors' own.

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
        # Arrow's memory, perhaps the object store's, must not be written. Learners never write
        # a column, but torch cannot express that: one copy buys safety.
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
