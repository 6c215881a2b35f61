"""The rollout stage as Ray Data runs it: one actor of the pool, one ticket one fragment."""

import pickle
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import ray
from ray import cloudpickle

from pipelines.coordinator import END, Blob, Command, env_failures
from rl_ops import columns as c
from rl_ops.operators import Operator
from rl_ops.policy import Weights
from rl_ops.rollout import Rollout, RolloutSpec

INLINE_BYTES = 64 * 1024
"""Smaller weights travel inside the calls; larger ones once per node through the object store."""


def pack(weights: Weights) -> Blob:
    """Weights as the coordinator passes them on."""
    if weights.num_bytes <= INLINE_BYTES:
        return pickle.dumps(weights, protocol=5)
    return [ray.put(weights)]


def unpack(blob: Blob) -> Weights:
    """The inverse of `pack`."""
    weights: Weights = pickle.loads(blob) if isinstance(blob, bytes) else ray.get(blob[0])
    return weights


def pack_error(error: Exception) -> bytes:
    """An exception for `ray_backend` to raise; only its words where it cannot be pickled."""
    try:
        packed: bytes = cloudpickle.dumps(error)
        pickle.loads(packed)  # many exceptions can be written and not read
    except Exception:  # noqa: BLE001 - whatever a pickle may raise
        return cloudpickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))  # type: ignore[no-any-return]
    return packed


class RolloutWorker:
    """Turns each ticket into the fragment that the coordinator grants for it.

    Args:
        coordinator: handle of the run's coordinator.
        spec: what to roll out.
        operators: fused behind the rollout, in order.
        rank: learner rank that consumes this worker's fragments.
        name: of who rolls out; None is this Ray actor, whose restarts keep its place.
    """

    def __init__(
        self,
        coordinator: Any,
        spec: RolloutSpec,
        operators: tuple[Operator, ...],
        rank: int,
        name: str | None = None,
    ) -> None:
        self._coordinator = coordinator
        self._operators = operators
        name = ray.get_runtime_context().get_actor_id() if name is None else name
        seat = ray.get(coordinator.register.remote(name, rank))
        self.worker_id: int = seat.worker_id
        self.incarnation: int = seat.incarnation
        self._report: dict[str, Any] | None = None
        self._ended = False
        with self._failures_told():
            self.rollout = Rollout(spec, worker_id=seat.worker_id, incarnation=seat.incarnation)

    @contextmanager
    def _failures_told(self) -> Iterator[None]:
        """Tell the coordinator of what an environment or an operator raises, and end."""
        try:
            yield
        except ray.exceptions.RayError:
            raise
        except Exception as error:  # noqa: BLE001 - an env may raise anything
            message = f"rollout worker {self.worker_id}: {type(error).__name__}: {error}"
            ray.get(self._coordinator.fail.remote(message, traceback.format_exc()))
            self._ended = True

    def __call__(self, ticket: pa.Table) -> pa.Table:  # noqa: ARG002 - tickets come in any order
        if self._ended:
            time.sleep(0.1)  # the learner has heard; Ray Data goes on handing out tickets
            return self._end()
        # A retried task keeps its id, by which the coordinator gives it its old fragment.
        return self.make(ray.get_runtime_context().get_task_id())

    def make(self, ticket: str) -> pa.Table:
        """The fragment granted for a ticket; a row that says so when there will be no more."""
        with self._failures_told():
            return self._next(ticket)
        return self._end()

    def _end(self) -> pa.Table:
        end, worker = pa.array([END], pa.int64()), pa.array([self.worker_id], pa.int32())
        return pa.table({c.FRAGMENT_ID: end, c.WORKER_ID: worker})

    def _next(self, ticket: str) -> pa.Table:
        who = self.worker_id, self.incarnation
        while True:
            claim = ray.get(self._coordinator.claim.remote(*who, ticket, self._report))
            self._report = None
            if claim.weights is not None:
                self.rollout.load(unpack(claim.weights), claim.version)
            if claim.command is not None:
                self._run(claim.command)
            elif claim.fragment_id is None:
                self._ended = True
                return self._end()
            else:
                return self._fragment(claim.fragment_id)

    def _fragment(self, fragment_id: int) -> pa.Table:
        start = time.perf_counter()
        table = self.rollout.fragment(fragment_id)
        for operator in self._operators:
            table = operator(table)
        counters = self.rollout.counters
        self._report = {
            "fragment_s": time.perf_counter() - start,
            "aborted_episodes": counters.aborted_episodes,
            "failures": env_failures(self.rollout.worker_id, self.rollout.take_failures()),
        }
        return table

    def _run(self, command: Command) -> None:
        # As bytes: the coordinator must not import what the output is made of.
        output = self.call(lambda worker: pickle.loads(command.payload)(worker))
        ray.get(self._coordinator.finish.remote(command.id, output))

    def call(self, fn: Callable[[Any], Any]) -> bytes:
        """What `fn(worker)` gives or raises, for `ray_backend` to unpack."""
        try:
            output: bytes = cloudpickle.dumps(fn(self))
        except Exception as error:  # noqa: BLE001 - raised again at the caller
            return pack_error(error)
        return output
