"""What a `Pipeline` drives: a running dataflow, with Ray or in this process."""

import copy
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from pipelines.coordinator import Command, GoAhead, env_failures, first_incarnation
from pipelines.errors import TrainingError, cause_of
from pipelines.evaluation import Evaluation, EvaluationTask
from pipelines.flow import FlowControl
from pipelines.training import TrainTask, logged_updates, make_loop, pick_device
from rl_ops.learner import World
from rl_ops.policy import Weights
from rl_ops.rollout import Rollout


class Backend(Protocol):
    """A dataflow that runs, is paused at its start, and goes on as far as it is allowed."""

    def allow(self, version: int | None) -> int | None:
        """Go on until `version` is published; None: without end.

        Returns:
            The version at which the run will hold: a later one where that is under way.
        """

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

    def evaluate(self, task: EvaluationTask) -> Evaluation:
        """Evaluate the newest published weights."""

    def start_evaluation(self, task: EvaluationTask, *, version: int) -> None:
        """Evaluate the newest published weights, of version `version`, while training goes on."""

    def finished_evaluation(self, *, wait: bool) -> tuple[int, Evaluation] | None:
        """(version, evaluation) of the one started, once, when it is done."""

    def failures(self) -> list[dict[str, Any]]:
        """What failed since the last result, as rows for the log."""

    def close(self) -> None:
        """End the run and give back what it holds."""


class LocalFlow:
    """The learner's `Flow` when everything is one process: nobody waits for anybody."""

    def __init__(self) -> None:
        self.results: deque[dict[str, Any]] = deque()
        self.weights: Weights | None = None
        self.version = -1
        self.outputs: list[Any] = []

    def advance(self, version: int, weights: Weights, result: dict[str, Any] | None) -> GoAhead:
        """See `Flow.advance`."""
        self.replace_weights(version, weights)
        if result is not None:
            self.results.append(result)
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
        incarnation = first_incarnation(task.incarnation)
        self.rollout = Rollout(spec, worker_id=worker_id, incarnation=incarnation)
        # Copies: what an operator holds is each worker's own, as it is in processes of their own.
        self.operators = tuple(copy.copy(each) for each in task.plan.dataflow.source.then)


class LocalBackend:
    """The same operators and the same learner in the calling thread, so that breakpoints work.

    Args:
        task: what to run.
    """

    def __init__(self, task: TrainTask) -> None:
        self._plan = task.plan
        self._flow = LocalFlow()
        self._evaluated: tuple[int, Evaluation] | None = None
        self._failure: Exception | None = None
        self._loop = make_loop(task, self._flow, World(device=pick_device(task.plan)))
        count = task.plan.config.num_rollouts
        self._updates = logged_updates(task.plan.config)
        rolls_out = self._updates is None
        self._workers = [LocalWorker(task, i) for i in range(count if rolls_out else 0)]
        version = self._loop.learner.version
        self._control = FlowControl(
            fragments_per_version=task.plan.dataflow.fragments_per_version,
            max_policy_lag=0,
            num_workers=count,
            num_lanes=task.plan.config.num_lanes,
            start_version=version,
        )
        self._fragments = self._control.consumed
        self._rollout_s = 0.0
        self._loop.start()

    def allow(self, version: int | None) -> int | None:
        """See `Backend.allow`; here nothing runs but inside `next_result`."""
        return version

    def next_result(self) -> dict[str, Any]:
        """See `Backend.next_result`."""
        try:
            while self._failure is None and not self._flow.results:
                if self._updates is None:
                    self._run_fragment()
                else:
                    self._loop.iterate_logged(self._updates)
        except Exception as error:  # noqa: BLE001 - an env or a module may raise anything
            self._failure = error
        if self._failure is not None:
            raise TrainingError(cause_of(self._failure)) from self._failure
        return self._flow.results.popleft() | self._worker_figures()

    def _run_fragment(self) -> None:
        worker = self._workers[self._fragments % len(self._workers)]
        fragment = self._control.claim(worker.worker_id, str(self._fragments))
        assert fragment == self._fragments
        self._fragments += 1
        assert self._flow.weights is not None
        worker.rollout.load(self._flow.weights, self._flow.version)
        table = worker.rollout.fragment(fragment)
        for operator in worker.operators:
            table = operator(table)
        self._loop.feed(table)
        self._control.advance(self._loop.learner.version)

    def _worker_figures(self) -> dict[str, Any]:
        """The coordinator's keys."""
        counters = [worker.rollout.counters for worker in self._workers]
        rollout_s, self._rollout_s = self._rollout_s, sum(each.rollout_s for each in counters)
        return {
            "time/rollout_s": self._rollout_s - rollout_s,
            "faults/aborted_episodes": sum(each.aborted_episodes for each in counters),
            "faults/worker_restarts": 0,
            "queue_fragments": 0,
            "failures": self.failures(),
        }

    def weights(self) -> Weights:
        """See `Backend.weights`."""
        assert self._flow.weights is not None
        return self._flow.weights

    def command_learner(self, name: str, payload: Any) -> Any:
        """See `Backend.command_learner`."""
        return self._loop.output(Command(0, name, payload))

    def call_workers(self, fn: Callable[[Any], Any]) -> list[Any]:
        """See `Backend.call_workers`."""
        for worker in self._workers:
            worker.rollout.load(self.weights(), self._flow.version)
        return [fn(worker) for worker in self._workers]

    def evaluate(self, task: EvaluationTask) -> Evaluation:
        """See `Backend.evaluate`."""
        return task.run(self.weights())

    def start_evaluation(self, task: EvaluationTask, *, version: int) -> None:
        """See `Backend.start_evaluation`; one process has no beside, so it is done here."""
        self._evaluated = (version, self.evaluate(task))

    def finished_evaluation(self, *, wait: bool) -> tuple[int, Evaluation] | None:  # noqa: ARG002
        """See `Backend.finished_evaluation`."""
        done, self._evaluated = self._evaluated, None
        return done

    def failures(self) -> list[dict[str, Any]]:
        """See `Backend.failures`."""
        rollouts = [worker.rollout for worker in self._workers]
        return [row for r in rollouts for row in env_failures(r.worker_id, r.take_failures())]

    def close(self) -> None:
        """See `Backend.close`."""
        try:
            self._loop.close()
        finally:
            for worker in self._workers:
                worker.rollout.close()
