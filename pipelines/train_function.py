"""The function Ray Train runs on each learner rank; in local mode, in the driver itself."""

import contextlib
import itertools
import pickle
import queue
import threading
from collections.abc import Generator, Iterator
from typing import Any

import pyarrow as pa
import ray
import ray.train
import ray.train.torch
import torch.distributed as dist
from ray import cloudpickle

from pipelines.coordinator import Command, GoAhead
from pipelines.ray_session import tune_ray_data
from pipelines.ray_stream import read_on_ray
from pipelines.rollout_worker import RolloutWorker, pack, pack_error
from pipelines.training import TrainTask, logged_updates, make_loop, pick_device
from rl_ops.learner import World
from rl_ops.policy import Weights


class RayFlow:
    """A learner rank's side of the coordinator. Rank 0 speaks; the others hear what it heard."""

    def __init__(self, coordinator: Any, world: World) -> None:
        self._coordinator = coordinator
        self._world = world

    def advance(self, version: int, weights: Weights, result: dict[str, Any] | None) -> GoAhead:
        """See `Flow.advance`."""
        if self._world.rank:
            return self._hear(None)
        call = self._coordinator.advance.remote(version, pack(weights), result)
        return self._hear(ray.get(call))

    def proceed(self) -> GoAhead:
        """See `Flow.proceed`."""
        if self._world.rank:
            return self._hear(None)
        return self._hear(ray.get(self._coordinator.proceed.remote()))

    def _hear(self, go: GoAhead | None) -> GoAhead:
        box = [go]
        if self._world.size > 1:
            dist.broadcast_object_list(box, src=0)
        assert box[0] is not None
        commands = [c._replace(payload=pickle.loads(c.payload)) for c in box[0].commands]
        return box[0]._replace(commands=commands)

    def replace_weights(self, version: int, weights: Weights) -> None:
        """See `Flow.replace_weights`."""
        if self._world.rank == 0:
            ray.get(self._coordinator.replace_weights.remote(version, pack(weights)))

    def finish(self, command: Command, output: Any) -> None:
        """See `Flow.finish`."""
        if self._world.rank == 0:
            failed = isinstance(output, Exception)
            packed = pack_error(output) if failed else cloudpickle.dumps(output)
            ray.get(self._coordinator.finish.remote(command.id, packed))


class FragmentStream:
    """A rank's fragments; the rollout workers start when it is made, not at the first `next`."""

    def __init__(self, shard: Any, coordinator: Any, rank: int) -> None:
        self._shard = shard
        self._coordinator = coordinator
        self._rank = rank
        self._tables = self._execute()
        self._first: queue.Queue[list[pa.Table] | BaseException] = queue.Queue()
        # A daemon, not a pool's thread, which Python would wait for at its exit: a run that is
        # never allowed to begin never has a first fragment.
        threading.Thread(target=self._start, name="first-fragment", daemon=True).start()

    def _execute(self) -> Iterator[pa.Table]:
        # No prefetch: it waits for a window of rows, which at lag 0 never comes.
        batches = self._shard.iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=0
        )
        return iter(batches)

    def _start(self) -> None:
        try:
            self._first.put(list(itertools.islice(self._tables, 1)))
        except BaseException as error:  # noqa: BLE001 - raised again in the learner's thread
            self._first.put(error)

    def __iter__(self) -> Generator[pa.Table, None, None]:
        first = self._first.get()
        if isinstance(first, BaseException):
            raise first
        yield from first
        yield from self._tables
        while True:  # an execution's tickets are used up; the run is not, or it would have stopped
            ray.get(self._coordinator.vacate.remote(self._rank))
            yield from self._execute()


class OwnRollouts:
    """A rank's fragments where it rolls out by itself, one at a time, between its updates."""

    def __init__(self, task: TrainTask, coordinator: Any, rank: int) -> None:
        plan = task.plan
        name = f"learner/{rank}"
        self.worker = RolloutWorker(
            coordinator, plan.rollout, plan.dataflow.source.then, rank, name=name
        )

    def __iter__(self) -> Generator[pa.Table, None, None]:
        try:
            for ticket in itertools.count():
                yield self.worker.make(f"{self.worker.worker_id}/{ticket}")
        finally:
            self.worker.rollout.close()


def train_function(settings: dict[str, Any]) -> None:
    """Learn from this rank's stream until the coordinator says stop."""
    task: TrainTask = settings["task"]
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    tune_ray_data()
    coordinator = settings["coordinator"]
    own = None
    grouped = task.plan.config.learner.num_workers > 0
    device = ray.train.torch.get_device() if grouped else pick_device(task.plan)
    world = World(rank=rank, size=size, device=device)
    flow = RayFlow(coordinator, world)
    updates = logged_updates(task.plan.config)
    if updates is not None:
        return make_loop(task, flow, world, read=read_on_ray).run_logged(updates)
    if task.plan.config.rollout.num_workers == 0:
        stream: OwnRollouts | FragmentStream = (own := OwnRollouts(task, coordinator, rank))
    else:
        shard = ray.train.get_dataset_shard(f"rollouts_{rank}")
        stream = FragmentStream(shard, coordinator, rank)
    with contextlib.closing(iter(stream)) as fragments:
        loop = make_loop(task, flow, world, read=read_on_ray)
        loop.worker = None if own is None else own.worker
        loop.run(fragments)
