"""Memory for a fixed number of rows: columns packed side by side, so that one gather takes all."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rl_ops.batch import Batch, TensorTree
from rl_ops.tree import tree_map

_MAX_PACKED_BYTES: Final = 4096
"""A column's bytes a row up to which it shares its memory, and its gather, with others."""


class _Place(NamedTuple):
    """Where a column's rows lie in a block: sizes and offsets in numbers of its own dtype."""

    block: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


class _Arrays(NamedTuple):
    """The blocks as numpy sees them, and the columns' places with sizes and offsets in bytes."""

    blocks: list[npt.NDArray[Any]]
    places: list[tuple[int, np.dtype[Any], tuple[int, ...], tuple[int, ...], int]]


class RowMemory:
    """Columns in blocks [capacity_rows, words]: small ones share one, any other has its own.

    A minibatch is one gather a block, whose columns are views of what was gathered: measured, two
    thirds of the time of a gather a column for 128 rows of CartPole, half for 256 of HalfCheetah.
    """

    def __init__(
        self, columns: Mapping[str, Tensor], capacity_rows: int, *, device: torch.device
    ) -> None:
        self.capacity_rows = capacity_rows
        self.names = list(columns)
        self._signature = _signature(columns)
        self._template = _template(self.names)
        self._places, words = _layout(columns)
        self.row_bytes = 4 * sum(words)
        self.num_bytes = capacity_rows * self.row_bytes
        _require_available(capacity_rows, self.row_bytes, device)
        # float32 only carries the bits: most columns are, and then need no view of another dtype.
        # Empty, because zeros would touch every page at once: 3 GiB took 8 s.
        self._blocks = [torch.empty(capacity_rows, n, device=device) for n in words]
        self._arrays = _arrays(self._places, self._blocks) if device.type == "cpu" else None
        self._columns = self._views(self._blocks)

    def check_columns(self, columns: Mapping[str, Tensor]) -> None:
        """Refuse columns other than those of the first batch."""
        signature = _signature(columns)
        if signature != self._signature:
            names = sorted(
                name
                for name in signature.keys() | self._signature.keys()
                if signature.get(name) != self._signature.get(name)
            )
            got, own = (
                ", ".join(f"{name} {s.get(name, 'missing')}" for name in names)
                for s in (signature, self._signature)
            )
            raise ValueError(f"the replay's rows have {own}; the batch has {got}")

    def write(self, columns: Mapping[str, Tensor], *, first: int) -> None:
        """Put rows into the slots from `first` on, and round to the first one."""
        for name, own in zip(self.names, self._columns, strict=True):
            dropped = max(0, len(columns[name]) - self.capacity_rows)
            new = columns[name].detach()[dropped:]
            slot = (first + dropped) % self.capacity_rows
            head = self.capacity_rows - slot
            own[slot : slot + len(new)] = new[:head]
            own[: max(0, len(new) - head)] = new[head:]

    def gather(self, index: Tensor) -> list[Tensor]:
        """The columns at the slots `index`, as views of one new tensor a block."""
        if self._arrays is None:
            return self._views([block.index_select(0, index) for block in self._blocks])
        # numpy takes and makes views in half of torch's time at 128 rows.
        slots = index.numpy()
        taken = [array.take(slots, 0) for array in self._arrays.blocks]
        return [
            torch.from_numpy(np.ndarray((len(slots), *shape), dtype, taken[block], offset, stride))
            for block, dtype, shape, stride, offset in self._arrays.places
        ]

    def take(self, index: Tensor) -> list[Tensor]:
        """The columns at the slots `index`, each a contiguous tensor of its own."""
        return [column.index_select(0, index) for column in self._columns]

    def _views(self, blocks: list[Tensor]) -> list[Tensor]:
        rows = len(blocks[0])
        typed: dict[tuple[int, torch.dtype], Tensor] = {}
        views = []
        for block, dtype, shape, stride, offset in self._places:
            key = block, dtype
            if key not in typed:
                typed[key] = blocks[block].view(dtype)
            views.append(typed[key].as_strided((rows, *shape), stride, offset))
        return views

    def batch(self, columns: Sequence[Tensor], rows: int) -> Batch:
        """Columns in the order of `names` as the trees they were."""
        return Batch._of(
            {
                name: columns[tree] if type(tree) is int else tree_map(columns.__getitem__, tree)
                for name, tree in self._template.items()
            },
            rows,
        )


def _layout(columns: Mapping[str, Tensor]) -> tuple[list[_Place], list[int]]:
    """Where each column lies, in their order, and the 4-byte words of a row of each block."""
    small = [n for n, x in columns.items() if _row_bytes(x) <= _MAX_PACKED_BYTES]
    # Widest numbers first, so that each lies at a multiple of its size.
    small.sort(key=lambda name: -columns[name].element_size())
    groups = ([small] if small else []) + [[name] for name in columns if name not in small]
    places: dict[str, _Place] = {}
    words = []
    for block, names in enumerate(groups):
        align = max(4, *(columns[name].element_size() for name in names))
        row = -(-sum(_row_bytes(columns[name]) for name in names) // align) * align
        words.append(row // 4)
        offset = 0
        for name in names:
            size, shape = columns[name].element_size(), tuple(columns[name].shape[1:])
            inner = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
            stride = (row // size, *inner)
            places[name] = _Place(block, columns[name].dtype, shape, stride, offset // size)
            offset += _row_bytes(columns[name])
    return [places[name] for name in columns], words


def _arrays(places: Sequence[_Place], blocks: Sequence[Tensor]) -> _Arrays | None:
    """None where numpy lacks a column's dtype, as it does bfloat16."""
    in_bytes = []
    for place in places:
        try:
            dtype = torch.empty(0, dtype=place.dtype).numpy().dtype
        except TypeError:
            return None
        stride = tuple(dtype.itemsize * n for n in place.stride)
        in_bytes.append((place.block, dtype, place.shape, stride, dtype.itemsize * place.offset))
    return _Arrays([block.numpy() for block in blocks], in_bytes)


def _row_bytes(column: Tensor) -> int:
    return math.prod(column.shape[1:]) * column.element_size()


def _signature(columns: Mapping[str, Tensor]) -> dict[str, str]:
    return {name: f"{x.dtype} {list(x.shape[1:])}" for name, x in columns.items()}


def flat_columns(batch: Batch) -> dict[str, Tensor]:
    """Every tensor of the batch by its flat name."""
    flat: dict[str, Tensor] = {}

    def visit(name: str, tree: TensorTree) -> None:
        if isinstance(tree, tuple):
            for i, child in enumerate(tree):
                visit(f"{name}.{i}", child)
        elif isinstance(tree, dict):
            for key, child in tree.items():
                if not isinstance(key, str) or "." in key or key.isdigit():
                    raise ValueError(
                        f"{name} has the key {key!r}; expected text without a dot that is no "
                        "number, so that flat names of columns are unique"
                    )
                visit(f"{name}.{key}", child)
        elif len(tree) != batch.rows:
            raise ValueError(f"{name} has {len(tree)} rows, the batch {batch.rows}")
        else:
            flat[name] = tree

    for name, tree in batch._columns.items():
        visit(name, tree)
    return flat


def _template(names: Sequence[str]) -> dict[str, Any]:
    """The trees that flat names describe, with positions in `names` as their leaves."""
    nested: dict[str, Any] = {}
    for i, name in enumerate(names):
        *path, last = name.split(".")
        node = nested
        for key in path:
            node = node.setdefault(key, {})
        node[last] = i

    def with_tuples(tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        children = {key: with_tuples(child) for key, child in tree.items()}
        if all(key.isdigit() for key in children):
            return tuple(children[key] for key in sorted(children, key=int))
        return children

    return {name: with_tuples(tree) for name, tree in nested.items()}


def _require_available(capacity_rows: int, row_bytes: int, device: torch.device) -> None:
    """Refuse a memory that cannot fit: the kernel would kill the process hours later."""
    available = available_bytes(device)
    need = capacity_rows * row_bytes
    if available is not None and need > available:
        raise ValueError(
            f"a replay of {capacity_rows} rows of {row_bytes} bytes needs {need / 2**30:.1f} GiB; "
            f"{device} has {available / 2**30:.1f} GiB available. Lower replay.capacity_rows to at "
            f"most {available // row_bytes}."
        )


def available_bytes(device: torch.device) -> int | None:
    """Memory that can be taken on the device; None where that is not known."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
