"""Replay memory: a ring of rows in preallocated tensors, drawn uniformly or by priority.

Legend: B rows.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
from torch import Tensor

from rl_ops.batch import Batch
from rl_ops.row_memory import RowMemory, flat_columns
from rl_ops.sum_tree import SumTree

_CHUNK_BYTES: Final = 2**20
"""Gathered at once for uniform draws: measured 64 KiB to 16 MiB, larger chunks gain nothing."""
_PRIORITIES: Final = "priorities"
_MAX_PRIORITY: Final = "max_priority"
_NUM_ADDED: Final = "num_added"


@dataclass(frozen=True)
class ReplaySpec:
    """What a replay memory holds and how it is drawn from.

    Attributes:
        capacity_rows: the oldest rows make room for what comes after so many.
        prioritized: draw in proportion to (priority + priority_eps) ** priority_alpha.
        priority_alpha: 0 is uniform, 1 proportional.
        priority_eps: keeps rows without error in play, in the units of the priority.

    Raises:
        ValueError: a number is out of its range.
    """

    capacity_rows: int
    prioritized: bool = False
    priority_alpha: float = 0.6
    priority_eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.capacity_rows < 1:
            raise ValueError(f"capacity_rows must be at least 1, got {self.capacity_rows}")
        if not 0.0 <= self.priority_alpha < math.inf:
            raise ValueError(f"priority_alpha must be at least 0, got {self.priority_alpha}")
        if not 0.0 < self.priority_eps < math.inf:
            raise ValueError(f"priority_eps must be positive, got {self.priority_eps}")


class Sampled(NamedTuple):
    """A minibatch out of the replay memory.

    Attributes:
        batch: columns as they were added; small ones are views of one gathered block.
        index: [B] int64 slots, for `update_priorities`.
        is_weight: [B] float32 importance weights, at most 1; None where draws are uniform.
    """

    batch: Batch
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody asks of it
    is_weight: Tensor | None


class Replay:
    """The last `capacity_rows` rows, in memory taken at the first `add`.

    The k-th row ever added lies in slot k % capacity_rows. Columns are those of the first batch.

    Args:
        spec: how many rows, and how they are drawn.
        device: where rows and priorities live; batches may come from another.
    """

    def __init__(self, spec: ReplaySpec, *, device: torch.device) -> None:
        self.spec = spec
        self.device = device
        self._num_added = 0
        self._memory: RowMemory | None = None
        self._tree = self._new_tree()
        self._max_priority = 1.0

    def _new_tree(self) -> SumTree | None:
        if not self.spec.prioritized:
            return None
        return SumTree(self.spec.capacity_rows, device=self.device)

    @property
    def capacity_rows(self) -> int:
        """The most rows held."""
        return self.spec.capacity_rows

    @property
    def num_added(self) -> int:
        """Rows ever added."""
        return self._num_added

    @property
    def rows(self) -> int:
        """Rows held now."""
        return min(self._num_added, self.spec.capacity_rows)

    @property
    def num_bytes(self) -> int:
        """Memory taken for rows and priorities, filled or not."""
        memory = self._memory.num_bytes if self._memory is not None else 0
        return memory + (self._tree.num_bytes if self._tree is not None else 0)

    def add(self, batch: Batch, *, priority: Tensor | None = None) -> None:
        """Append the batch's rows in order; the oldest are overwritten.

        Args:
            batch: of the first batch's columns, shapes and dtypes, in any order of columns.
            priority: [B] raw |td_error|; where there is none rows get the largest priority seen so
                far, at least 1, so that every row is likely to be drawn once.

        Raises:
            ValueError: the columns are not those of the first batch, the memory does not fit the
                machine, or a priority is negative, NaN or Inf, or not wanted.
        """
        if priority is not None:
            self._require_tree("add(priority=...)")
            _require_priority(priority, rows=batch.rows)
        columns = flat_columns(batch)
        memory = self._memory_for(columns)
        memory.write(columns, first=self._num_added)
        self._memory, self._num_added = memory, self._num_added + batch.rows
        if self._tree is not None:
            if priority is None:
                priority = torch.full((batch.rows,), self._max_priority, dtype=torch.float64)
            # More rows than there is room for: later values take the place of earlier ones.
            slots = self._slots(batch.rows, num_added=self._num_added)
            self._set_priority(self._tree, slots, priority)

    def _memory_for(self, columns: Mapping[str, Tensor]) -> RowMemory:
        if self._memory is None:
            return RowMemory(columns, self.spec.capacity_rows, device=self.device)
        self._memory.check_columns(columns)
        return self._memory

    def _slots(self, rows: int, *, num_added: int) -> Tensor:
        """Where the last `rows` of `num_added` rows lie, in the order of addition."""
        slots = torch.arange(num_added - rows, num_added, device=self.device)
        return slots.remainder_(self.spec.capacity_rows)

    def minibatches(
        self, count: int, rows: int, *, generator: torch.Generator, beta: float = 1.0
    ) -> Iterator[Sampled]:
        """Minibatches of rows drawn with replacement.

        Uniform draws are made and gathered for many minibatches at once, and handed out as slices.
        Draws by priority are stratified, and made when a minibatch is asked for, so that they see
        the priorities that earlier ones brought about:

            p_i = (priority_i + eps) ** alpha
            P_i = p_i / sum_k p_k
            w_i = (N * P_i) ** -beta / max_j w_j = (min_j p_j / p_i) ** beta   j in the minibatch

        All randomness comes from `generator`, which is as far along for any size of the chunks once
        the last minibatch was handed out; a run that resumes must make the same calls, and one that
        leaves the iterator early cannot rely on where the generator is.

        Args:
            count: how many minibatches.
            rows: in each.
            generator: of any device; its state and the rows held decide what is drawn.
            beta: 0 leaves weights at 1, 1 corrects in full for draws by priority.

        Raises:
            ValueError: a number is out of its range, or no rows are held.
            RuntimeError: rows were added between two minibatches.

        Source: Schaul et al. 2016, arXiv:1511.05952, section 3.3 and 3.4, appendix B.2.1. Differs:
        weights are normalised by the largest of the minibatch, as in algorithm 1.
        """
        if count < 0 or rows < 1 or not 0.0 <= beta < math.inf:
            raise ValueError(
                f"minibatches: got count {count}, rows {rows}, beta {beta}; "
                "expected at least 0, 1 and 0"
            )
        if self._memory is None or self.rows == 0:
            raise ValueError("minibatches: the replay holds no rows; add some first")
        if self._tree is None:
            return self._uniform(self._memory, count, rows, generator)
        return self._prioritized(self._memory, self._tree, count, rows, generator, beta)

    def _uniform(
        self, memory: RowMemory, count: int, rows: int, generator: torch.Generator
    ) -> Iterator[Sampled]:
        chunk = max(1, _CHUNK_BYTES // max(1, rows * memory.row_bytes))
        num_added = self._num_added
        for done in range(0, count, chunk):
            self._require_unchanged(num_added)
            draws = min(chunk, count - done) * rows
            index = torch.randint(
                self.rows, (draws,), generator=generator, device=generator.device
            ).to(self.device)
            parts = zip(*(torch.split(leaf, rows) for leaf in memory.gather(index)), strict=True)
            for slots, leaves in zip(torch.split(index, rows), parts, strict=True):
                self._require_unchanged(num_added)
                yield Sampled(memory.batch(leaves, rows), slots, None)

    def _prioritized(
        self,
        memory: RowMemory,
        tree: SumTree,
        count: int,
        rows: int,
        generator: torch.Generator,
        beta: float,
    ) -> Iterator[Sampled]:
        chunk, device = max(1, _CHUNK_BYTES // (8 * rows)), generator.device
        num_added = self._num_added
        strata_B = torch.arange(rows, dtype=torch.float64, device=device)
        for done in range(0, count, chunk):
            # The random numbers of many minibatches at once; what they mean is up to the tree.
            shape = min(chunk, count - done), rows
            self._require_unchanged(num_added)
            place = torch.rand(shape, generator=generator, dtype=torch.float64, device=device)
            for place_B in place.add_(strata_B).div_(rows).to(self.device).unbind():
                self._require_unchanged(num_added)
                index = tree.find(place_B * tree.total)
                p_B = tree[index]
                weight = (p_B.amin() / p_B).pow_(beta).to(torch.float32)
                yield Sampled(memory.batch(memory.gather(index), rows), index, weight)

    def _require_unchanged(self, num_added: int) -> None:
        if self._num_added != num_added:
            raise RuntimeError(
                f"minibatches: {self._num_added - num_added} rows were added while iterating; "
                "draw anew after adding"
            )

    def update_priorities(self, index: Tensor, priority: Tensor) -> None:
        """Give drawn rows their new priority.

        Args:
            index: [B] slots, as drawn; where a slot comes twice its last priority stays.
            priority: [B] raw |td_error|, before alpha and eps.

        Raises:
            ValueError: draws are uniform, shapes disagree, a slot holds no row, or a priority is
                negative, NaN or Inf.
        """
        tree = self._require_tree("update_priorities")
        _require_priority(priority, rows=len(index))
        if len(index) > 0 and int(index.max()) >= self.rows:
            raise ValueError(
                f"update_priorities: slot {int(index.max())} of a replay of {self.rows} rows"
            )
        self._set_priority(tree, index, priority)

    def _set_priority(self, tree: SumTree, index: Tensor, priority: Tensor) -> None:
        if len(index) == 0:
            return
        raw_B = priority.detach().to(self.device, torch.float64)
        tree.set(index, (raw_B + self.spec.priority_eps).pow_(self.spec.priority_alpha))
        self._max_priority = max(self._max_priority, float(raw_B.max()))

    def _require_tree(self, what: str) -> SumTree:
        if self._tree is None:
            raise ValueError(f"{what}: this replay draws uniformly; set replay.prioritized")
        return self._tree

    def newest(self, rows: int) -> Batch:
        """Copies of the last `rows` rows, in the order of addition.

        Raises:
            ValueError: fewer are held.
        """
        if self._memory is None or not 0 <= rows <= self.rows:
            raise ValueError(f"newest: got {rows} rows, expected 0 to the {self.rows} held")
        slots = self._slots(rows, num_added=self._num_added)
        return self._memory.batch(self._memory.take(slots), rows)

    def state(self) -> dict[str, Tensor]:
        """What a bit-equal continuation needs besides the rows; small.

        Returns:
            num_added, int64 scalar; and if prioritised, float64: priorities [rows] with alpha
            applied, in the order of addition, and the largest raw priority, a scalar.
        """
        state = {_NUM_ADDED: torch.tensor(self._num_added)}
        if self._tree is not None:
            slots = self._slots(self.rows, num_added=self._num_added)
            state[_PRIORITIES] = self._tree[slots].cpu()
            state[_MAX_PRIORITY] = torch.tensor(self._max_priority, dtype=torch.float64)
        return state

    def contents(self) -> dict[str, Tensor]:
        """Copies of the rows held, in the order of addition; trees flat: "obs.key", "obs.0"."""
        if self._memory is None:
            return {}
        leaves = self._memory.take(self._slots(self.rows, num_added=self._num_added))
        return dict(zip(self._memory.names, leaves, strict=True))

    def load(self, state: Mapping[str, Tensor], rows: Batch | Mapping[str, Tensor]) -> None:
        """The inverse of `state` and `contents`: slots, priorities and later draws are bit-equal.

        Args:
            state: of a replay of the same spec.
            rows: what it held, in the order of addition: from elsewhere, or its `contents`.

        Raises:
            ValueError: their number is not what the state says, columns differ from those that were
                added here already, or the state is of another spec; nothing was loaded.
        """
        num_added = self._check_state(state)
        columns = flat_columns(rows) if isinstance(rows, Batch) else dict(rows)
        held = min(num_added, self.spec.capacity_rows)
        got = {name: len(column) for name, column in columns.items()}
        if set(got.values()) - {held} or (held > 0 and not got):
            raise ValueError(
                f"load: the state is of {num_added} rows added to a capacity of "
                f"{self.spec.capacity_rows}, so {held} must be given; got {got or 0}"
            )
        memory, tree = self._memory_for(columns) if columns else self._memory, self._new_tree()
        if tree is not None:
            tree.set(self._slots(held, num_added=num_added), state[_PRIORITIES])
            self._max_priority = float(state[_MAX_PRIORITY])
        if memory is not None and columns:
            memory.write(columns, first=num_added - held)
        self._memory, self._tree, self._num_added = memory, tree, num_added

    def _check_state(self, state: Mapping[str, Tensor]) -> int:
        expected = {_NUM_ADDED, *([_PRIORITIES, _MAX_PRIORITY] if self.spec.prioritized else [])}
        if state.keys() != expected:
            raise ValueError(
                f"load: the state has {sorted(state)}, expected {sorted(expected)} "
                f"where prioritized is {self.spec.prioritized}"
            )
        num_added = int(state[_NUM_ADDED])
        held = min(num_added, self.spec.capacity_rows)
        if num_added < 0:
            raise ValueError(f"load: the state says {num_added} rows were added")
        if self.spec.prioritized and state[_PRIORITIES].shape != (held,):
            shape = tuple(state[_PRIORITIES].shape)
            raise ValueError(f"load: priorities have shape {shape}, expected ({held},)")
        return num_added

    def check_valid(self) -> None:
        """Look for what no sequence of calls may bring about.

        Raises:
            RuntimeError: says what is wrong.
        """
        room = self._memory.capacity_rows if self._memory is not None else 0
        if self._num_added < 0 or self.rows > room or room not in (0, self.spec.capacity_rows):
            raise RuntimeError(
                f"Replay: {self._num_added} rows were added to a capacity of "
                f"{self.spec.capacity_rows}, and the memory has room for {room}"
            )
        if self._tree is None:
            return
        self._tree.check_valid()
        values = self._tree[torch.arange(self.spec.capacity_rows, device=self.device)]
        if not bool((values[: self.rows] > 0).all()):
            raise RuntimeError("Replay: a row can never be drawn: its priority is 0")
        if bool(values[self.rows :].any()):
            raise RuntimeError(f"Replay: a priority lies beyond the {self.rows} rows")
        if not 1.0 <= self._max_priority < math.inf:
            raise RuntimeError(f"Replay: the largest priority is {self._max_priority}")


def _require_priority(priority: Tensor, *, rows: int) -> None:
    if priority.shape != (rows,):
        raise ValueError(f"priority has shape {tuple(priority.shape)}, expected ({rows},)")
    if rows > 0:
        low, high = (float(x) for x in priority.detach().aminmax())
        if not 0.0 <= low <= high < math.inf:  # NaN compares false
            raise ValueError(
                f"priorities from {low} to {high}; expected |td_error|: finite, not negative"
            )
