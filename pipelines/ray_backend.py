"""A dataflow on Ray: the coordinator's actor, and the trainer in a thread of the driver."""

import threading
from collections.abc import Callable
from typing import Any

import ray
from ray import cloudpickle

from pipelines.errors import TrainingError
from pipelines.rollout_worker import unpack
from pipelines.runtime import make_trainer, start_coordinator
from pipelines.training import TrainTask
from rl_ops.policy import Weights

_POLL_S = 0.2


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
                return ray.get(call)
            if not self._thread.is_alive():
                raise TrainingError(_explain(self._failure)) from self._failure

    def allow(self, version: int | None) -> None:
        """See `Backend.allow`."""
        ray.get(self._coordinator.allow.remote(version))

    def next_result(self) -> dict[str, Any]:
        """See `Backend.next_result`."""
        result: dict[str, Any] = self._wait(self._coordinator.next_result.remote())
        return result

    def weights(self) -> Weights:
        """See `Backend.weights`."""
        return unpack(self._wait(self._coordinator.weights.remote())[1])

    def command_learner(self, name: str, payload: Any) -> Any:
        """See `Backend.command_learner`."""
        return _raised(self._wait(self._coordinator.command_learner.remote(name, payload)))

    def call_workers(self, fn: Callable[[Any], Any]) -> list[Any]:
        """See `Backend.call_workers`."""
        payload = cloudpickle.dumps(fn)
        workers = range(self._plan.config.rollout.num_workers)
        calls = [self._coordinator.command_worker.remote(w, payload) for w in workers]
        return [_raised(self._wait(call)) for call in calls]

    def close(self) -> None:
        """See `Backend.close`."""
        if self._thread.is_alive():
            ray.get(self._coordinator.stop.remote())
            self._thread.join(timeout=30)
        ray.kill(self._coordinator)


def _raised(output: Any) -> Any:
    if isinstance(output, Exception):
        raise output
    return output


def _explain(failure: BaseException | None) -> str:
    """The innermost cause, which is what the user can act on."""
    if failure is None:
        return "the learner ended before the run did"
    cause: BaseException = failure
    while True:
        inner = getattr(cause, "cause", None) or cause.__cause__
        if not isinstance(inner, BaseException) or inner is cause:
            return f"{type(cause).__name__}: {cause}"
        cause = inner
