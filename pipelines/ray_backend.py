"""A dataflow on Ray: the coordinator's actor, and the trainer in a thread of the driver."""

import pickle
import threading
import time
from collections.abc import Callable
from typing import Any

import ray
from ray import cloudpickle

from offline.errors import LakeError
from pipelines.config import AlgorithmConfig
from pipelines.errors import TrainingError, cause_of
from pipelines.evaluation import Evaluation, EvaluationTask
from pipelines.evaluation_stage import BackgroundEvaluation, evaluate_on_ray
from pipelines.resource_check import check_resources
from pipelines.rollout_worker import unpack
from pipelines.runtime import make_trainer, start_coordinator
from pipelines.training import TrainTask
from rl_ops.policy import Weights

_POLL_S = 0.2
_CLOSE_S = 30.0
_RAY_DATA_THREADS = ("StreamingExecutor-", "iter_threaded", "first-fragment")


class RayBackend:
    """See `Backend`.

    Args:
        task: what to run.
        name: of the run.
        start_version: version whose update comes next.
    """

    def __init__(self, task: TrainTask, *, name: str, start_version: int) -> None:
        self._plan = task.plan
        self._coordinator = start_coordinator(
            task.plan, name=name, start_version=start_version, incarnation=task.incarnation
        )
        self._trainer = make_trainer(task.plan, self._coordinator, task, name=name)
        self._evaluation = BackgroundEvaluation()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._fit, name=f"learner-{name}", daemon=True)
        self._thread.start()

    def _fit(self) -> None:
        try:
            self._trainer.fit()
        except BaseException as error:  # noqa: BLE001 - handed to the driver's thread, which raises it
            self._failure = error

    def _wait(self, call: Any) -> Any:
        while True:
            ready, _ = ray.wait([call], timeout=_POLL_S)
            if ready:
                return _got(call)
            if not self._thread.is_alive():
                raise self._error() from self._failure

    def _error(self) -> TrainingError:
        told = _got(self._coordinator.failure.remote())
        if told is None:
            return TrainingError(_explain(self._failure))
        message, details = told
        error = TrainingError(message)
        error.add_note(details)
        return error

    def allow(self, version: int | None) -> int | None:
        """See `Backend.allow`."""
        holds_at: int | None = self._wait(self._coordinator.allow.remote(version))
        return holds_at

    def next_result(self) -> dict[str, Any]:
        """See `Backend.next_result`."""
        result: dict[str, Any] = self._wait(self._coordinator.next_result.remote())
        return result

    def weights(self) -> Weights:
        """See `Backend.weights`."""
        return unpack(self._wait(self._coordinator.weights.remote())[1])

    def command_learner(self, name: str, payload: Any) -> Any:
        """See `Backend.command_learner`."""
        packed = cloudpickle.dumps(payload)
        return _raised(self._wait(self._coordinator.command_learner.remote(name, packed)))

    def call_workers(self, fn: Callable[[Any], Any]) -> list[Any]:
        """See `Backend.call_workers`."""
        if self._plan.config.is_offline:
            return []
        workers = range(self._plan.config.rollout.num_workers)
        if not workers:  # the learners roll out by themselves
            return [_raised(output) for output in self.command_learner("call_workers", fn)]
        payload = cloudpickle.dumps(fn)
        calls = [self._coordinator.command_worker.remote(w, payload) for w in workers]
        return [_raised(self._wait(call)) for call in calls]

    def evaluate(self, task: EvaluationTask) -> Evaluation:
        """See `Backend.evaluate`."""
        workers = self._plan.config.evaluation.num_workers
        return evaluate_on_ray(task, self.weights(), num_workers=workers)

    def start_evaluation(self, task: EvaluationTask, *, version: int) -> None:
        """See `Backend.start_evaluation`."""
        workers = self._plan.config.evaluation.num_workers
        self._evaluation.start(task, self.weights(), version=version, workers=workers)

    def finished_evaluation(self, *, wait: bool) -> tuple[int, Evaluation] | None:
        """See `Backend.finished_evaluation`."""
        return self._evaluation.finished(wait=wait)

    def failures(self) -> list[dict[str, Any]]:
        """See `Backend.failures`."""
        failures: list[dict[str, Any]] = _got(self._coordinator.failures.remote())
        return failures

    def close(self) -> None:
        """See `Backend.close`.

        Raises:
            LakeError: what was sampled last could not be logged.
        """
        self._evaluation.close()
        was_running = self._thread.is_alive()
        if was_running:
            ray.get(self._coordinator.stop.remote())
            self._thread.join(timeout=_CLOSE_S)
        ray.kill(self._coordinator)
        _join_ray_data()
        if was_running and isinstance(self._failure, LakeError):
            raise self._failure


def _join_ray_data() -> None:
    """Wait for the threads of a stream that was closed.

    One that calls Ray after it was shut down makes Ray end the whole process, with exit code 1.
    """
    deadline = time.monotonic() + _CLOSE_S
    for thread in threading.enumerate():
        if thread.name.startswith(_RAY_DATA_THREADS):
            thread.join(timeout=max(0.0, deadline - time.monotonic()))


def check_room(config: AlgorithmConfig) -> None:
    """Refuse what the Ray that is up would wait for without end.

    Raises:
        ConfigError: with the numbers.
    """
    has = ray.cluster_resources()
    cpus, gpus = has.get("CPU", 0.0), has.get("GPU", 0.0)
    check_resources(config, cpus=cpus, gpus=gpus, custom=has)


def _got(call: Any) -> Any:
    try:
        return ray.get(call)
    except ray.exceptions.RayError as error:
        raise TrainingError(f"the coordinator failed: {cause_of(error)}") from error


def _raised(output: Any) -> Any:
    """A command's output, unpickled; an exception is raised here, where it was asked for."""
    if isinstance(output, bytes):
        output = pickle.loads(output)
    if isinstance(output, Exception):
        raise output
    return output


def _explain(failure: BaseException | None) -> str:
    return "the learner ended before the run did" if failure is None else cause_of(failure)
