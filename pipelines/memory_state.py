"""What a learner remembers beside its modules, in checkpoints: the state, and where the rows are.

A replay memory's rows are in the lake already. A checkpoint names the fragments that they are of;
only where the log is not whole does it hold the rows themselves.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import torch

from offline import schemas as s
from offline.errors import LakeError
from offline.storage import Storage
from pipelines.batch_reader import BatchReader
from pipelines.checkpoint import Checkpoint
from pipelines.coordinator import END
from pipelines.dataflow import Plan
from pipelines.errors import CheckpointError
from pipelines.replay_refill import Segment, refill_problems, stored_fragments
from pipelines.tracing import Trace
from rl_ops import columns as c
from rl_ops.batch import Batch
from rl_ops.learner import Learner
from rl_ops.tree import tree_map

STATE, ROWS = "state", "rows"


class _Origin(NamedTuple):
    """Of a fragment: the lake that has it (None: no lake has), and the session that made it."""

    lake: str | None
    run_id: str
    session: int


class Origins:
    """Which fragments the newest rows of a rank are of.

    Args:
        capacity_rows: rows that the memory holds.
    """

    def __init__(self, capacity_rows: int) -> None:
        self._capacity = capacity_rows
        self._rows = 0
        self._fragments: deque[tuple[_Origin, int, int]] = deque()

    def consumed(self, origin: tuple[str | None, str, int], tables: Sequence[pa.Table]) -> None:
        """Note fragments that the memory took in, in order."""
        for table in tables:
            fragment = table.column(c.FRAGMENT_ID)[0].as_py()
            self._fragments.append((_Origin(*origin), fragment, table.num_rows))
            self._rows += table.num_rows
        while self._fragments and self._rows - self._fragments[0][2] >= self._capacity:
            self._rows -= self._fragments.popleft()[2]

    def loaded(self, rows: int) -> None:
        """Note rows that a checkpoint brought: a lake that has what follows may lack them."""
        if rows:
            self._fragments.append((_Origin(None, "", 0), END, rows))
            self._rows += rows

    def is_in(self, lake: str | None) -> bool:
        """Whether one lake has them all."""
        return lake is not None and all(origin.lake == lake for origin, _, _ in self._fragments)

    def segments(self) -> list[Segment]:
        """Ranges of fragments, oldest first; ids grow along a run's sessions."""
        found: dict[_Origin, tuple[int, int]] = {}
        for origin, fragment, _ in self._fragments:
            first, _ = found.get(origin, (fragment, 0))
            found[origin] = (first, fragment + 1)
        return [Segment(o.run_id, o.session, first, end) for o, (first, end) in found.items()]


def save_memory(
    learner: Learner[Any], origins: Origins | None, plan: Plan, trace: Trace | None
) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]] | None:
    """What a checkpoint keeps of every rank's memory; None where learners have none.

    All ranks call it.

    Returns:
        Tensors by name, and for each rank where its rows are, JSON-able.
    """
    memory = learner.memory
    if memory is None:
        return None
    lake = None if trace is None or refill_problems(plan.config) else trace.storage.uri
    in_lake = origins is not None and origins.is_in(lake)
    tensors = {f"{STATE}.{name}": tensor.cpu() for name, tensor in memory.state().items()}
    about: dict[str, Any] = {"lake": lake if in_lake else None}
    if in_lake and origins is not None:
        about["segments"] = [segment.to_json() for segment in origins.segments()]
    else:
        contents = memory.contents()
        about["columns"] = list(contents)
        tensors |= {f"{ROWS}.{name}": tensor.cpu() for name, tensor in contents.items()}
    ranks = learner.world.gather_objects((tensors, about))
    named = {f"{i}.{name}": x for i, (found, _) in enumerate(ranks) for name, x in found.items()}
    return named, [told for _, told in ranks]


def load_memory(
    learner: Learner[Any], origins: Origins | None, plan: Plan, checkpoint: Checkpoint
) -> None:
    """Put a rank's memory where the checkpoint's was.

    Raises:
        CheckpointError: it is of another number of ranks, or of other settings, or its rows are
            not to be had.
    """
    memory, world = learner.memory, learner.world
    if memory is None:
        return
    told = checkpoint.state.get("memory")
    if told is None or len(told) != world.size:
        ranks = "none" if told is None else f"{len(told)} learner ranks"
        raise CheckpointError(
            f"{checkpoint.path}: its replay memory is of {ranks}, and there are {world.size} here; "
            "resume with the same learner.num_workers"
        )
    prefix = f"{world.rank}."
    mine = {
        name.removeprefix(prefix): tensor
        for name, tensor in checkpoint.memory().items()
        if name.startswith(prefix)
    }
    state, rows = (_under(mine, group) for group in (STATE, ROWS))
    about = told[world.rank]
    held = 0 if origins is None else _held(memory, checkpoint, int(state["num_added"]))
    try:
        if about["lake"] is not None:
            rows = _refilled(learner, origins, plan, checkpoint, about, held)
        else:
            # Files are sorted by name, and where columns lie decides the last bits of products.
            rows = {name: rows[name] for name in about.get("columns", rows)}
            if origins is not None:
                origins.loaded(held)
        memory.load(state, rows)
    except (ValueError, LakeError) as error:
        raise CheckpointError(f"{checkpoint.path}: replay memory: {error}") from error


def _held(memory: Any, checkpoint: Checkpoint, num_added: int) -> int:
    """The rows that a replay memory held; refuse one that would hold others of them."""
    then, here = checkpoint.config["replay"]["capacity_rows"], memory.capacity_rows
    held: int = min(num_added, then)
    if held != min(num_added, here):
        raise CheckpointError(
            f"{checkpoint.path}: its replay memory held {held} of {num_added} rows with "
            f"replay.capacity_rows={then}, and here that is {here}; resume with the same"
        )
    return held


def _under(tensors: Mapping[str, torch.Tensor], group: str) -> dict[str, torch.Tensor]:
    prefix = f"{group}."
    return {k.removeprefix(prefix): x for k, x in tensors.items() if k.startswith(prefix)}


def _refilled(
    learner: Learner[Any],
    origins: Origins | None,
    plan: Plan,
    checkpoint: Checkpoint,
    about: Mapping[str, Any],
    held: int,
) -> Any:
    """The rows that a rank held, oldest first, made again from the lake."""
    assert origins is not None  # only a replay memory's rows are looked for in a lake
    reader = BatchReader(plan, learner.world.device, learner.reads)
    segments = [Segment.from_json(data) for data in about["segments"]]
    tables = stored_fragments(
        Storage.at(about["lake"]),
        # None where the session had logged no step: those of the sessions before are there.
        version=checkpoint.state["lake"]["versions"].get(s.STEPS.name),
        segments=segments,
        spec=plan.rollout,
        rank=learner.world.rank,
        ranks=learner.world.size,
        rows=held,
    )
    wanted = set(learner.reads)
    batches: list[Batch] = []
    for segment, table in _placed(segments, tables):
        origins.consumed((about["lake"], segment.run_id, segment.session), [table])
        for operator in plan.dataflow.source.then:
            # Priorities are the memory's own; what made the first ones is not in the lake.
            if wanted & set(operator.adds) or not set(operator.reads) - set(table.column_names):
                table = operator(table)
        batches.append(reader([table]))
    if not batches:
        return {}
    names = (c.OBS, *learner.reads)  # as the learner adds them
    joined = {name: tree_cat([getattr(batch, name) for batch in batches]) for name in names}
    surplus = sum(batch.rows for batch in batches) - held
    return Batch({k: tree_map(lambda x: x[surplus:], tree) for k, tree in joined.items()})


def _placed(
    segments: Sequence[Segment], tables: Iterable[pa.Table]
) -> Iterator[tuple[Segment, pa.Table]]:
    """Each fragment with its segment, of which the first one has the oldest fragment."""
    left, before = deque(segments), END
    for table in tables:
        fragment = table.column(c.FRAGMENT_ID)[0].as_py()
        # Ids start again from lower ones where a run went on with fewer fragments a version.
        while not max(left[0].first, before + 1) <= fragment < left[0].end:
            left.popleft()
            before = END
        before = fragment
        yield left[0], table


def tree_cat(trees: Sequence[Any]) -> Any:
    """The rows of trees of tensors, one after the other."""
    return tree_map(lambda *parts: torch.cat(parts), *trees)
