"""Rows of a data set on the learner's device, drawn uniformly: what offline learning repeats.

Legend: N rows, P observations, B rows of a minibatch.
"""

from collections.abc import Iterator, Mapping
from typing import Final

import torch
from torch import Tensor

from rl_ops import columns as c
from rl_ops.batch import Batch
from rl_ops.row_memory import RowMemory

_CHUNK_BYTES: Final = 2**20
"""Gathered at once, as in `rl_ops.replay`."""
_OBS_ROW: Final = "obs_row"
_BOOTSTRAP_ROW: Final = "bootstrap_row"


class RowData:
    """N rows whose observations, and those that they bootstrap from, are shared.

    An observation is the next one of the row before it, so each is held once, and rows say which
    two are theirs.

    Args:
        obs: [P, *shape] what the module is fed.
        obs_row: [N] int64 into obs: each row's observation.
        columns: name → [N, ...]: what else a minibatch has.
        bootstrap_row: [N] int64 into obs: of the observation after the row's last reward; None
            where nobody bootstraps.
        device: where all of it lives.

    Raises:
        ValueError: there are no rows, their numbers differ, or they do not fit the memory.
    """

    def __init__(
        self,
        obs: Tensor,
        obs_row: Tensor,
        columns: Mapping[str, Tensor],
        *,
        bootstrap_row: Tensor | None = None,
        device: torch.device,
    ) -> None:
        held = {_OBS_ROW: obs_row, **columns}
        if bootstrap_row is not None:
            held[_BOOTSTRAP_ROW] = bootstrap_row
        counts = {name: len(column) for name, column in held.items()}
        if len(set(counts.values())) != 1 or not len(obs_row):
            raise ValueError(f"a data set needs columns of one number of rows, got {counts}")
        self.rows = len(obs_row)
        self._obs = obs.to(device)
        self._device = device
        self._memory = RowMemory(held, self.rows, device=device)
        self._memory.write(held, first=0)
        self._row_bytes = self._memory.row_bytes + 2 * self._obs[:1].numel() * obs.element_size()

    @property
    def num_bytes(self) -> int:
        """Memory taken."""
        return self._memory.num_bytes + self._obs.numel() * self._obs.element_size()

    def minibatches(self, count: int, rows: int, *, generator: torch.Generator) -> Iterator[Batch]:
        """`count` minibatches of `rows` rows drawn with replacement, gathered many at once.

        All randomness comes from `generator`, which is as far along for any size of the chunks
        once the last minibatch was handed out.
        """
        chunk = max(1, _CHUNK_BYTES // max(1, rows * self._row_bytes))
        for done in range(0, count, chunk):
            draws = min(chunk, count - done) * rows
            index = torch.randint(
                self.rows, (draws,), generator=generator, device=generator.device
            ).to(self._device)
            yield from self._gathered(index, rows)

    def _gathered(self, index: Tensor, rows: int) -> Iterator[Batch]:
        """Minibatches of the rows at `index`, in its order."""
        columns = dict(zip(self._memory.names, self._memory.gather(index), strict=True))
        columns[c.OBS] = self._obs.index_select(0, columns.pop(_OBS_ROW))
        if _BOOTSTRAP_ROW in columns:
            columns[c.BOOTSTRAP_OBS] = self._obs.index_select(0, columns.pop(_BOOTSTRAP_ROW))
        parts = {name: torch.split(column, rows) for name, column in columns.items()}
        for i in range(len(index) // rows):
            yield Batch._of({name: part[i] for name, part in parts.items()}, rows)

    def observations(self) -> Tensor:
        """[P, *shape] all of them, not to be written to."""
        return self._obs
