"""Rows of a data set that streams by, shuffled among so many of them: what offline learning repeats
where the data is larger than the memory.

Legend: B rows of a minibatch, W rows of a window.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch

from rl_ops.batch import Batch
from rl_ops.tree import tree_map


@dataclass(frozen=True)
class Place:
    """A row of the stream, as what comes next.

    Attributes:
        epoch: passes over the data that are complete.
        file: of the pass's order of files.
        row: of the file.
    """

    epoch: int = 0
    file: int = 0
    row: int = 0


class Block(NamedTuple):
    """Neighbouring rows of one file, in order.

    Attributes:
        batch: the rows.
        file: which of the pass's files.
    """

    batch: Batch
    file: int


Blocks = Callable[[Place], Iterator[Block]]
"""The blocks of a place's pass from its file on; a file's always come from its first row on."""


class StreamData:
    """Minibatches of windows of W neighbouring rows, each window in random order.

    The stream passes over the data again and again, each row once a pass. A window is held whole,
    so memory is that of two, and what comes next is said by a place and a number: a run that is
    resumed reads a window again and goes on bit for bit.

    Args:
        blocks: reads the data from a place on.
        window_rows: W, made a multiple of the minibatch.
        seed: of the order within windows.
        device: where minibatches lie.
    """

    def __init__(
        self, blocks: Blocks, *, window_rows: int, seed: int, device: torch.device
    ) -> None:
        self._blocks = blocks
        self._window_rows = window_rows
        self._seed = seed
        self._device = device
        self._start, self._index, self._drawn = Place(), 0, 0
        self._next = Place()
        self._window: Batch | None = None
        self._stream: Iterator[tuple[Batch, Place]] | None = None
        self._rest: tuple[Batch, Place] | None = None

    def state(self) -> dict[str, Any]:
        """What comes next, JSON-able."""
        return {"place": asdict(self._start), "window": self._index, "drawn": self._drawn}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`; nothing is read before the next minibatch."""
        self._start = self._next = Place(**state["place"])
        self._index, self._drawn = state["window"], state["drawn"]
        self._window = self._stream = self._rest = None

    def minibatches(
        self,
        count: int,
        rows: int,
        *,
        generator: torch.Generator,  # noqa: ARG002 - the order is the window's own
    ) -> Iterator[Batch]:
        """`count` minibatches of `rows` rows; the same `rows` must be asked for each time."""
        size = max(1, self._window_rows // rows) * rows
        for _ in range(count):
            if self._window is None:
                self._window = self._shuffled(self._filled(size))
            low = self._drawn * rows
            self._drawn += 1
            yield self._window.rows_of(slice(low, low + rows))
            if self._drawn * rows == size:
                self._window = None
                self._start, self._index, self._drawn = self._next, self._index + 1, 0

    def _shuffled(self, window: Batch) -> Batch:
        order = torch.Generator().manual_seed(self._seed + 1_000_003 * self._index)
        index = torch.randperm(window.rows, generator=order)
        return window.rows_of(index).to(self._device)

    def _filled(self, size: int) -> Batch:
        """The next `size` rows of the stream."""
        parts: list[Batch] = []
        missing = size
        while missing:
            if self._stream is None:
                self._stream = self._from(self._next)
            batch, place = self._rest or next(self._stream)
            taken = min(missing, batch.rows)
            parts.append(batch.rows_of(slice(0, taken)))
            missing -= taken
            self._next = replace(place, row=place.row + taken)
            left = batch.rows_of(slice(taken, batch.rows))
            self._rest = (left, self._next) if left.rows else None
        names = parts[0].names
        columns = [[getattr(part, name) for part in parts] for name in names]
        return Batch(
            {n: tree_map(lambda *x: torch.cat(x), *c) for n, c in zip(names, columns, strict=True)}
        )

    def _from(self, place: Place) -> Iterator[tuple[Batch, Place]]:
        """Rows from a place on, without end, each batch with the place of its first row.

        Raises:
            ValueError: a pass has no rows.
        """
        while True:
            seen, file, row = 0, place.file, 0
            for block in self._blocks(place):
                row = row if block.file == file else 0
                file, first = block.file, row
                row += block.batch.rows
                seen += block.batch.rows
                skipped = max(0, place.row - first) if file == place.file else 0
                if skipped < block.batch.rows:
                    kept = block.batch.rows_of(slice(skipped, block.batch.rows))
                    yield kept, Place(place.epoch, file, first + skipped)
            if not seen:
                raise ValueError("the data set that streams by has no rows")
            place = Place(place.epoch + 1)
