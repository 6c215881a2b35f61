"""The one named object of a run: claims, versioned weights, commands, results.

It runs as an asynchronous Ray actor and passes weights and commands through as opaque bytes or
references, so its process imports neither torch nor numpy.
"""

import asyncio
import pickle
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipelines.flow import FlowControl
from rl_ops import columns as c

Blob = bytes | list[Any]
"""Pickled bytes, or a list holding one object reference (a bare one would be fetched)."""


MAX_UNTAKEN = 8
"""Results that the learner may be ahead of the driver."""
END = -1
"""Fragment id of a row that says that there will be no more; Ray Data passes no empty table on."""


class Claim(NamedTuple):
    """What a rollout worker is to do: make a fragment, run a command, or end.

    Weights are None where the worker has the newest.
    """

    fragment_id: int | None
    version: int
    weights: Blob | None
    command: "Command | None" = None


class Command(NamedTuple):
    """Something to run in a worker or in the learner, between two fragments or updates.

    The payload crosses processes pickled, and a command's output too: the coordinator must not
    import what they are made of.
    """

    id: int
    name: str
    payload: Any


class GoAhead(NamedTuple):
    """The learner's leave to go on, or commands to run first; and how long it was made to wait."""

    commands: list[Command]
    paused_s: float


@dataclass
class Seat:
    """A rollout worker's place in the run.

    Attributes:
        worker_id: which place.
        incarnation: of who sits there; grows with each restart.
        has: serial number of the weights given to it, 0 none.
        running: the command it was given and has not finished.
    """

    worker_id: int
    incarnation: int
    has: int = 0
    running: "Command | None" = None


def first_incarnation(resumes: int) -> int:
    """A rollout worker's before any restart, in a run resumed so often; all are different."""
    return resumes * 1000


def env_failures(worker_id: int, failures: Iterable[Any]) -> list[dict[str, Any]]:
    """What environments failed at (`EnvFailure`s), as rows for the log."""
    return [{"kind": "env", c.WORKER_ID: worker_id, **each._asdict()} for each in failures]


class Coordinator:
    """Flow control with waiting, and the mailbox between driver, learner and rollout workers.

    Args:
        flow: the rule that grants claims.
        ranks: learner ranks; worker w belongs to rank w mod ranks.
        incarnation: of the run: how often it was resumed.
    """

    def __init__(self, flow: FlowControl, *, ranks: int = 1, incarnation: int = 0) -> None:
        self._flow = flow
        self._ranks = ranks
        self._changed = asyncio.Condition()
        self._version = -1
        self._going = -1  # the version being made: no pause holds before it is published
        self._weights: Blob | None = None
        self._serial = 0  # of the weights; set_weights publishes new ones without a new version
        self._stopped = False
        self._failure: tuple[str, str] | None = None
        self._seats: dict[str, Seat] = {}
        self._by_worker: dict[int, Seat] = {}
        self._left: dict[int, int] = {}
        self._restarts = 0
        self._incarnation = incarnation
        self._results: deque[dict[str, Any]] = deque()
        self._learner_commands: deque[Command] = deque()
        self._worker_commands: dict[int, deque[Command]] = {}
        self._outputs: dict[int, Any] = {}
        self._next_command = 0
        self._aborted: dict[tuple[int, int], int] = {}
        self._failures: list[dict[str, Any]] = []
        self._rollout_s = 0.0

    # --- rollout workers ---

    async def register(self, actor_id: str, rank: int) -> Seat:
        """The seat of a rollout worker; one that was restarted gets its own again."""
        if actor_id in self._seats:
            return await self._restarted(self._seats[actor_id])
        mine = [w for w in range(self._flow.num_workers) if w % self._ranks == rank]
        taken = {seat.worker_id for seat in self._seats.values()}
        free = [w for w in mine if w not in taken]
        if not free:
            raise RuntimeError(f"rank {rank} has {len(mine)} rollout workers and got one more")
        first = first_incarnation(self._incarnation)
        seat = Seat(free[0], self._left.get(free[0], first))
        self._seats[actor_id] = self._by_worker[seat.worker_id] = seat
        return seat

    async def vacate(self, rank: int) -> None:
        """Free the seats of a rank whose stream ended: the workers of the next will want them."""
        for actor_id, seat in list(self._seats.items()):
            if seat.worker_id % self._ranks == rank:
                self._left[seat.worker_id] = seat.incarnation + 1
                del self._seats[actor_id]

    async def _restarted(self, seat: Seat) -> Seat:
        async with self._changed:
            seat.incarnation += 1
            self._restarts += 1
            message = f"rollout worker {seat.worker_id} died and was started again"
            failed = {"kind": "worker", c.WORKER_ID: seat.worker_id, "message": message}
            self._failures.append(failed)
            seat.has = 0
            if seat.running is not None:
                # Not run again: it may be what killed the worker.
                self._outputs[seat.running.id] = RuntimeError(
                    f"rollout worker {seat.worker_id} died while it ran the function"
                )
                seat.running = None
            self._changed.notify_all()
        return seat

    async def claim(
        self, worker_id: int, incarnation: int, ticket: str, report: dict[str, Any] | None
    ) -> Claim:
        """Wait until the worker may make a fragment, has a command to run, or is to end."""
        if report is not None:
            self._aborted[worker_id, incarnation] = report["aborted_episodes"]
            self._rollout_s += report["fragment_s"]
            self._failures += report["failures"]
        seat = self._by_worker[worker_id]
        async with self._changed:
            while True:
                # Who claims for a worker that died is nobody: it must take no command.
                if self._stopped or seat.incarnation != incarnation:
                    return Claim(None, self._version, None)
                if self._weights is not None:
                    if commands := self._worker_commands.get(worker_id):
                        seat.running = commands.popleft()
                        return Claim(None, *self._newest(seat), seat.running)
                    fragment = self._flow.claim(worker_id, ticket)
                    if fragment is not None:
                        return Claim(fragment, *self._newest(seat))
                await self._changed.wait()

    def _newest(self, seat: Seat) -> tuple[int, Blob | None]:
        weights = None if seat.has == self._serial else self._weights
        seat.has = self._serial
        return self._version, weights

    async def fail(self, message: str, details: str) -> None:
        """End the run because a rollout worker cannot go on; the first reason counts.

        Told here rather than raised there: Ray Data would keep the fact and lose the reason.
        """
        async with self._changed:
            self._failure = self._failure or (message, details)
            self._stopped = True
            self._tell_learner_to_stop()

    # --- learner ---

    async def advance(self, version: int, weights: Blob, result: dict[str, Any] | None) -> GoAhead:
        """Publish a version and the result of the update that made it, then wait for go-ahead.

        A result that says `stopped_by` pauses the run by itself, so that the checkpoint written
        then is of exactly that result.

        Returns:
            Commands for the learner, after which it calls `proceed`; none means go on.
        """
        async with self._changed:
            self._publish(version, weights)
            self._flow.advance(version)
            if result is not None:
                self._results.append(result | self._worker_figures())
                if result["stopped_by"] is not None:
                    self._flow.budget = version
            self._changed.notify_all()
        return await self.proceed()

    async def proceed(self) -> GoAhead:
        """Wait while the run is paused; commands that came in, or none to go on."""
        start = time.perf_counter()
        async with self._changed:
            await self._changed.wait_for(self._may_proceed)
            commands = list(self._learner_commands)
            self._learner_commands.clear()
            if not commands:
                self._going = self._version + 1
            if any(command.name == "stop" for command in commands):
                self._stopped = True
                self._changed.notify_all()
                # Nothing is granted from here on: what is outstanding now is all that may come.
                outstanding = pickle.dumps(self._flow.outstanding)
                commands = [
                    command._replace(payload=outstanding) if command.name == "stop" else command
                    for command in commands
                ]
        return GoAhead(commands, time.perf_counter() - start)

    def _may_proceed(self) -> bool:
        budget = self._flow.budget
        if self._learner_commands:
            return True
        # A learner far ahead of the driver would act on a decision to stop, or to save, late.
        return len(self._results) < MAX_UNTAKEN and (budget is None or self._version < budget)

    def _worker_figures(self) -> dict[str, Any]:
        figures = {
            "time/rollout_s": self._rollout_s / self._flow.num_workers,
            "faults/aborted_episodes": sum(self._aborted.values()),
            "faults/worker_restarts": self._restarts,
            "queue_fragments": len(self._flow.outstanding),
            "failures": self._failures,
        }
        self._rollout_s, self._failures = 0.0, []
        return figures

    async def replace_weights(self, version: int, weights: Blob) -> None:
        """Publish weights that no update made (`set_weights`); the version stays the learner's."""
        async with self._changed:
            self._publish(version, weights)
            self._changed.notify_all()

    def _publish(self, version: int, weights: Blob) -> None:
        self._version, self._weights = version, weights
        self._serial += 1

    async def finish(self, command_id: int, output: Any) -> None:
        """Hand in a command's output."""
        async with self._changed:
            self._outputs[command_id] = output
            for seat in self._seats.values():
                if seat.running is not None and seat.running.id == command_id:
                    seat.running = None
            self._changed.notify_all()

    # --- driver ---

    async def allow(self, version: int | None) -> int | None:
        """Let the run go on until `version` is published; None: without end.

        An update for which the learner has the go-ahead is finished all the same: a learner that
        waited for fragments nobody may make would hear no command.

        Returns:
            The version at which the run will hold.
        """
        async with self._changed:
            self._flow.budget = None if version is None else max(version, self._going)
            self._changed.notify_all()
            return self._flow.budget

    async def next_result(self) -> dict[str, Any]:
        """Wait for the oldest result that was not taken yet."""
        async with self._changed:
            await self._changed.wait_for(lambda: bool(self._results))
            self._changed.notify_all()
            return self._results.popleft()

    async def weights(self) -> tuple[int, Blob]:
        """The newest version and its weights, waiting for the first."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._weights is not None)
            assert self._weights is not None
            return self._version, self._weights

    async def command_learner(self, name: str, payload: Any) -> Any:
        """Have the learner (rank 0) run a command between two updates; returns its output."""
        return await self._run(name, payload, self._learner_commands.append)

    async def command_worker(self, worker_id: int, payload: Any) -> Any:
        """Have one rollout worker call a function between two fragments; returns its output."""
        if not 0 <= worker_id < self._flow.num_workers:
            raise ValueError(
                f"no rollout worker {worker_id}; there are {self._flow.num_workers}, from 0 on"
            )
        queue = self._worker_commands.setdefault(worker_id, deque())
        return await self._run("call", payload, queue.append)

    async def _run(self, name: str, payload: Any, put: Callable[[Command], None]) -> Any:
        async with self._changed:
            self._next_command += 1
            command = Command(self._next_command, name, payload)
            put(command)
            self._changed.notify_all()
            await self._changed.wait_for(lambda: command.id in self._outputs or self._stopped)
            if command.id not in self._outputs:
                raise RuntimeError(f"the run ended before it could {name}")
            return self._outputs.pop(command.id)

    async def stop(self) -> None:
        """End the run: the learner after its current update, and then the workers.

        Not at once: a learner that waits for fragments hears nothing until they come.
        """
        async with self._changed:
            self._flow.budget = max(self._version, self._going)
            self._tell_learner_to_stop()

    def _tell_learner_to_stop(self) -> None:
        self._next_command += 1
        self._learner_commands.append(Command(self._next_command, "stop", None))
        self._changed.notify_all()

    async def failures(self) -> list[dict[str, Any]]:
        """What failed since the last result, as rows for the log."""
        failures, self._failures = self._failures, []
        return failures

    async def failure(self) -> tuple[str, str] | None:
        """Why rollouts failed, if they did: what happened, and the traceback."""
        return self._failure
