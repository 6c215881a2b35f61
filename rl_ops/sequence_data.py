"""Pieces of episodes on the learner's device, drawn as windows of steps.

Legend: N rows, W windows, B rows of a minibatch, K steps.
"""

from collections.abc import Iterator, Mapping
from typing import Final

import torch
from torch import Tensor

from rl_ops import columns as c
from rl_ops.batch import Batch
from rl_ops.row_memory import RowMemory

_CHUNK_BYTES: Final = 2**20
"""Gathered at once, as in `rl_ops.row_data`."""


class SequenceData:
    """Windows of up to K steps, each within one piece of an episode.

    A window may begin at any row that is allowed to, so that pieces are drawn in proportion to
    their length, and has K rows, or fewer where its piece ends.

    Args:
        columns: name → [N, ...] rows in order, a piece's one after the other.
        is_last: [N] bool, where a piece ends.
        steps: K.
        begins: [W] int64 rows at which windows begin; None for all.
        best_return: of a whole episode in the data, in units of the return.
        largest_return: greatest return-to-go by size, likewise.
        device: where all of it lives.

    Attributes:
        rows: W, windows that can be drawn.
        best_return, largest_return: as they were given.

    Raises:
        ValueError: there are no windows, or columns of different numbers of rows.

    Source: Chen et al. 2021, arXiv:2106.01345, section 3 and code. Differs: none.
    """

    def __init__(
        self,
        columns: Mapping[str, Tensor],
        is_last: Tensor,
        *,
        steps: int,
        begins: Tensor | None = None,
        best_return: float = float("nan"),
        largest_return: float = float("nan"),
        device: torch.device,
    ) -> None:
        total = len(is_last)
        counts = {name: len(column) for name, column in columns.items()}
        begins = torch.arange(total) if begins is None else begins
        if set(counts.values()) != {total} or not len(begins):
            raise ValueError(
                f"sequences need windows and columns of {total} rows, as is_last; got {counts} and "
                f"{len(begins)} windows"
            )
        self.rows = len(begins)
        self.best_return, self.largest_return = best_return, largest_return
        self._steps, self._device = steps, device
        ends = torch.cat([is_last.nonzero()[:, 0], torch.tensor([total - 1])])
        self._first = begins.to(device)
        piece_end = ends[torch.searchsorted(ends, begins)]
        self._last = torch.minimum(begins + steps - 1, piece_end).to(device)
        self._memory = RowMemory(columns, total, device=device)
        self._memory.write(columns, first=0)

    @property
    def num_bytes(self) -> int:
        """Memory taken."""
        return self._memory.num_bytes + 2 * self.rows * self._first.element_size()

    def minibatches(self, count: int, rows: int, *, generator: torch.Generator) -> Iterator[Batch]:
        """`count` minibatches of `rows` windows drawn with replacement.

        Each column is [B, K, ...], padded with zeros on the left, and `mask` [B, K] says which
        steps there are. All randomness comes from `generator`; see `RowData.minibatches`.
        """
        window_bytes = rows * self._steps * self._memory.row_bytes
        chunk = max(1, _CHUNK_BYTES // max(1, window_bytes))
        for done in range(0, count, chunk):
            draws = min(chunk, count - done) * rows
            index = torch.randint(
                self.rows, (draws,), generator=generator, device=generator.device
            ).to(self._device)
            yield from self._gathered(index, rows)

    def _gathered(self, index: Tensor, rows: int) -> Iterator[Batch]:
        """Minibatches of the windows `index`, in its order."""
        offset_K = torch.arange(1 - self._steps, 1, device=self._device)
        first, last = self._first[index, None], self._last[index, None]
        row_WK = last + offset_K
        mask_WK = row_WK >= first
        taken = self._memory.gather(torch.maximum(row_WK, first).flatten())
        columns = {c.STEP_MASK: mask_WK}
        for name, column in zip(self._memory.names, taken, strict=True):
            windows = column.reshape(*mask_WK.shape, *column.shape[1:])
            shaped = mask_WK.view(*mask_WK.shape, *[1] * (windows.ndim - 2))
            columns[name] = torch.where(shaped, windows, torch.zeros_like(windows[:1, :1]))
        parts = {name: torch.split(column, rows) for name, column in columns.items()}
        for i in range(len(index) // rows):
            yield Batch._of({name: part[i] for name, part in parts.items()}, rows)
