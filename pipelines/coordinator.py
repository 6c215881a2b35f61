"""The one named object of a run: claims, versioned weights, commands, results.

It runs as an asynchronous Ray actor and passes weights and commands through as opaque bytes or
references, so its process imports neither torch nor numpy.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipelines.flow import FlowControl

Blob = bytes | list[Any]
"""Pickled bytes, or a list holding one object reference (a bare one would be fetched)."""


class Claim(NamedTuple):
    """What a rollout worker is to do: make a fragment, run a command, or end."""

    fragment_id: int | None
    version: int
    weights: Blob | None
    command: "Command | None" = None


class Command(NamedTuple):
    """Something to run in a worker or in the learner, between two fragments or updates."""

    id: int
    name: str
    payload: Any


class GoAhead(NamedTuple):
    """The learner's leave to go on, or commands to run first; and how long it was made to wait."""

    commands: list[Command]
    paused_s: float


@dataclass
class Seat:
    """A rollout worker's place in the run."""

    worker_id: int
    incarnation: int


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
        self._weights: Blob | None = None
        self._stopped = False
        self._seats: dict[str, Seat] = {}
        self._incarnation = incarnation
        self._results: deque[dict[str, Any]] = deque()
        self._learner_commands: deque[Command] = deque()
        self._worker_commands: dict[int, deque[Command]] = {}
        self._outputs: dict[int, Any] = {}
        self._next_command = 0
        self._reports: dict[int, dict[str, Any]] = {}
        self._rollout_s = 0.0

    # --- rollout workers ---

    async def register(self, actor_id: str, rank: int) -> Seat:
        """The seat of a rollout worker; one that was restarted gets its own again."""
        if actor_id in self._seats:
            self._seats[actor_id].incarnation += 1
            return self._seats[actor_id]
        mine = [w for w in range(self._flow.num_workers) if w % self._ranks == rank]
        taken = {seat.worker_id for seat in self._seats.values()}
        free = [w for w in mine if w not in taken]
        if not free:
            raise RuntimeError(f"rank {rank} has {len(mine)} rollout workers and got one more")
        self._seats[actor_id] = Seat(free[0], self._incarnation * 1000)
        return self._seats[actor_id]

    async def claim(
        self, worker_id: int, ticket: str, have_version: int, report: dict[str, Any] | None
    ) -> Claim:
        """Wait until the worker may make a fragment, has a command to run, or is to end."""
        if report is not None:
            self._reports[worker_id] = report
            self._rollout_s += report["fragment_s"]
        async with self._changed:
            while True:
                if self._stopped:
                    return Claim(None, self._version, None)
                commands = self._worker_commands.get(worker_id)
                if commands and self._weights is not None:
                    return Claim(None, *self._newest(have_version), commands.popleft())
                if self._weights is not None:
                    fragment = self._flow.claim(worker_id, ticket)
                    if fragment is not None:
                        return Claim(fragment, *self._newest(have_version))
                await self._changed.wait()

    def _newest(self, have_version: int) -> tuple[int, Blob | None]:
        return self._version, None if have_version == self._version else self._weights

    # --- learner ---

    async def advance(self, version: int, weights: Blob, result: dict[str, Any] | None) -> GoAhead:
        """Publish a version and the result of the update that made it, then wait for go-ahead.

        A result that says `stopped_by` pauses the run by itself, so that the checkpoint written
        then is of exactly that result.

        Returns:
            Commands for the learner, after which it calls `proceed`; none means go on.
        """
        async with self._changed:
            self._version, self._weights = version, weights
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
        return GoAhead(commands, time.perf_counter() - start)

    def _may_proceed(self) -> bool:
        budget = self._flow.budget
        return bool(self._learner_commands) or budget is None or self._version < budget

    def _worker_figures(self) -> dict[str, Any]:
        reports = list(self._reports.values())
        figures = {
            "time/rollout_s": self._rollout_s / self._flow.num_workers,
            "faults/aborted_episodes": sum(r["aborted_episodes"] for r in reports),
            "faults/worker_restarts": sum(
                seat.incarnation - self._incarnation * 1000 for seat in self._seats.values()
            ),
            "queue_fragments": self._flow.outstanding,
        }
        self._rollout_s = 0.0
        return figures

    async def replace_weights(self, version: int, weights: Blob) -> None:
        """Publish weights that no update made (`set_weights`); the version stays the learner's."""
        async with self._changed:
            self._version, self._weights = version, weights
            self._changed.notify_all()

    async def finish(self, command_id: int, output: Any) -> None:
        """Hand in a command's output."""
        async with self._changed:
            self._outputs[command_id] = output
            self._changed.notify_all()

    # --- driver ---

    async def allow(self, version: int | None) -> None:
        """Let the run go on until `version` is published; None: without end."""
        async with self._changed:
            self._flow.budget = version
            self._changed.notify_all()

    async def next_result(self) -> dict[str, Any]:
        """Wait for the oldest result that was not taken yet."""
        async with self._changed:
            await self._changed.wait_for(lambda: bool(self._results))
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
        """Release everyone who waits: workers end, the learner gets a last command to end."""
        async with self._changed:
            self._stopped = True
            self._next_command += 1
            self._learner_commands.append(Command(self._next_command, "stop", None))
            self._changed.notify_all()
