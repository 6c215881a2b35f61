"""The newest few versions' rows, used in turn.

Legend: B rows.
"""

from collections import deque
from collections.abc import Mapping

import torch

from rl_ops.batch import Batch


class CircularBuffer:
    """Keeps the newest batches whole, and gives them in turn.

    With K calls of `next` to one of `add`, each batch is given K times before it is dropped.

    Args:
        capacity: batches.

    Source: Luo et al. 2020, arXiv:1912.00167, section 3.2.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity={capacity}; a buffer holds at least one batch")
        self._batches: deque[Batch] = deque(maxlen=capacity)
        self._uses = 0

    def add(self, batch: Batch) -> None:
        """Put a batch in, in the place of the oldest where it is full."""
        self._batches.append(batch)

    def next(self) -> Batch:
        """The batch whose turn it is.

        Raises:
            ValueError: there is none.
        """
        if not self._batches:
            raise ValueError("the buffer is empty; add a batch first")
        # From the newest backwards: the first use of rows is while they are fresh.
        chosen = self._batches[-1 - self._uses % len(self._batches)]
        self._uses += 1
        return chosen

    def state(self) -> dict[str, torch.Tensor]:
        """Where it stands, exactly."""
        rows = [batch.rows for batch in self._batches]
        return {"uses": torch.tensor(self._uses), "rows": torch.tensor(rows, dtype=torch.int64)}

    def contents(self) -> dict[str, torch.Tensor]:
        """All rows, oldest batch first, by column."""
        if not self._batches:
            return {}
        names = self._batches[0].names
        columns = {name: [getattr(batch, name) for batch in self._batches] for name in names}
        return {name: torch.cat(parts) for name, parts in columns.items()}

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
        parts = {name: torch.split(column, sizes) for name, column in rows.items()}
        for i in range(len(sizes)):
            self._batches.append(Batch({name: part[i] for name, part in parts.items()}))
