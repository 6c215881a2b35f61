"""What a `Pipeline` drives: a running dataflow, with Ray or in this process."""

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from pipelines.coordinator import Command, GoAhead
from pipelines.flow import FlowControl
from pipelines.training import TrainTask, make_loop, pick_device
from rl_ops.learner import World
from rl_ops.policy import Weights
from rl_ops.rollout import Rollout


class Backend(Protocol):
    """A dataflow that runs, is paused at its start, and goes on as far as it is allowed."""

    def allow(self, version: int | None) -> None:
        """Go on until `version` is published; None: without end."""

    def next_result(self) -> dict[str, Any]:
        """The result of the next iteration; waits.

        Raises:
            TrainingError: the run failed.
        """

    def weights(self) -> Weights:
        """The newest published weights."""

    def command_learner(self, name: str, payload: Any) -> Any:
        """Have the learner do something between two updates."""

    def call_workers(self, fn: Callable[[Any], Any]) -> list[Any]:
        """Call `fn(worker)` in every rollout worker between two fragments; outputs by worker."""

    def close(self) -> None:
        """End the run and give back what it holds."""


class LocalFlow:
    """The learner's `Flow` when everything is one process: nobody waits for anybody."""

    def __init__(self) -> None:
        self.results: deque[dict[str, Any]] = deque()
        self.weights: Weights | None = None
        self.version = -1
        self.outputs: list[Any] = []
        self.rollout_s = 0.0

    def advance(self, version: int, weights: Weights, result: dict[str, Any] | None) -> GoAhead:
        """See `Flow.advance`."""
        self.replace_weights(version, weights)
        if result is not None:
            self.results.append(result | {"time/rollout_s": self.rollout_s})
            self.rollout_s = 0.0
        return GoAhead([], 0.0)

    def proceed(self) -> GoAhead:
        """See `Flow.proceed`."""
        return GoAhead([], 0.0)

    def replace_weights(self, version: int, weights: Weights) -> None:
        """See `Flow.replace_weights`."""
        self.version, self.weights = version, weights

    def finish(self, command: Command, output: Any) -> None:  # noqa: ARG002
        """See `Flow.finish`."""
        self.outputs.append(output)


class LocalWorker:
    """A rollout worker in this process."""

    def __init__(self, task: TrainTask, worker_id: int) -> None:
        spec = task.plan.rollout
        self.worker_id = worker_id
        self.rollout = Rollout(spec, worker_id=worker_id, incarnation=task.incarnation)


class LocalBackend:
    """The same operators and the same learner in the calling thread, so that breakpoints work.

    Args:
        task: what to run.
    """

    def __init__(self, task: TrainTask) -> None:
        self._plan = task.plan
        self._flow = LocalFlow()
        self._loop = make_loop(task, self._flow, World(device=pick_device(task.plan)))
        count = task.plan.config.rollout.num_workers
        self._workers = [LocalWorker(task, i) for i in range(count)]
        version = self._loop.learner.version
        self._control = FlowControl(
            fragments_per_version=task.plan.dataflow.fragments_per_version,
            max_policy_lag=0,
            num_workers=count,
            start_version=version,
        )
        self._fragments = self._control.consumed
        self._loop.start()

    def allow(self, version: int | None) -> None:
        """See `Backend.allow`; here nothing runs but inside `next_result`."""

    def next_result(self) -> dict[str, Any]:
        """See `Backend.next_result`."""
        while not self._flow.results:
            worker = self._workers[self._fragments % len(self._workers)]
            fragment = self._control.claim(worker.worker_id, str(self._fragments))
            assert fragment == self._fragments
            self._fragments += 1
            assert self._flow.weights is not None
            worker.rollout.load(self._flow.weights, self._flow.version)
            table = worker.rollout.fragment(fragment)
            for operator in self._plan.dataflow.source.then:
                table = operator(table)
            self._flow.rollout_s += worker.rollout.counters.rollout_s
            worker.rollout.counters.rollout_s = 0.0
            self._loop.feed(table)
            self._control.advance(self._loop.learner.version)
        return self._flow.results.popleft()

    def weights(self) -> Weights:
        """See `Backend.weights`."""
        assert self._flow.weights is not None
        return self._flow.weights

    def command_learner(self, name: str, payload: Any) -> Any:
        """See `Backend.command_learner`."""
        return self._loop.output(Command(0, name, payload))

    def call_workers(self, fn: Callable[[Any], Any]) -> list[Any]:
        """See `Backend.call_workers`."""
        return [fn(worker) for worker in self._workers]

    def close(self) -> None:
        """See `Backend.close`."""
        for worker in self._workers:
            worker.rollout.close()
