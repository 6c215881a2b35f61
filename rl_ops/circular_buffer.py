"""The newest few versions' rows, used in turn.

Legend: B rows.
"""

from collections import deque
from collections.abc import Mapping

import torch

from rl_ops.batch import Batch
from rl_ops.row_memory import RowMemory, flat_columns


class CircularBuffer:
    """Keeps the newest batches whole, and gives them in turn, from the newest backwards.

    With K calls of `next` after each `add`, each batch is given K times before it is dropped; the
    first capacity - 1 more often, because there is nothing older in their time.

    Args:
        capacity: batches.
        device: where batches lie that `load` brings back.

    Source: Luo et al. 2020, arXiv:1912.00167, section 3.2.
    """

    def __init__(self, capacity: int, *, device: torch.device) -> None:
        if capacity < 1:
            raise ValueError(f"capacity={capacity}; a buffer holds at least one batch")
        self._device = device
        self._batches: deque[Batch] = deque(maxlen=capacity)
        self._uses = 0

    def add(self, batch: Batch) -> None:
        """Put a batch in, in the place of the oldest where it is full; its turn is next."""
        self._batches.append(batch)
        self._uses = 0  # counted on, turns would drift against ages, and batches be left out

    def next(self) -> Batch:
        """The batch whose turn it is.

        Raises:
            ValueError: there is none.
        """
        if not self._batches:
            raise ValueError("the buffer is empty; add a batch first")
        # The first use of rows is while they are fresh.
        chosen = self._batches[-1 - self._uses % len(self._batches)]
        self._uses += 1
        return chosen

    def state(self) -> dict[str, torch.Tensor]:
        """Where it stands, exactly."""
        rows = [batch.rows for batch in self._batches]
        return {"uses": torch.tensor(self._uses), "rows": torch.tensor(rows, dtype=torch.int64)}

    def contents(self) -> dict[str, torch.Tensor]:
        """All rows, oldest batch first; trees flat: "action.key", "action.0"."""
        batches = [flat_columns(batch) for batch in self._batches]
        names = batches[0] if batches else ()
        return {name: torch.cat([batch[name] for batch in batches]) for name in names}

    def load(self, state: Mapping[str, torch.Tensor], rows: Mapping[str, torch.Tensor]) -> None:
        """The inverse of `state` and `contents`.

        Raises:
            ValueError: the rows are not those of the state.
        """
        sizes = [int(n) for n in state["rows"]]
        wrong = {name: len(x) for name, x in rows.items() if len(x) != sum(sizes)}
        if wrong or (sizes and not rows):
            raise ValueError(f"the buffer held {sum(sizes)} rows, and there are {wrong or 'none'}")
        self._uses = int(state["uses"])
        self._batches.clear()
        if not sizes:
            return
        memory = RowMemory(rows, sum(sizes), device=self._device)
        memory.write(rows, first=0)
        for slots in torch.split(torch.arange(sum(sizes), device=self._device), sizes):
            self._batches.append(memory.batch(memory.take(slots), len(slots)))
