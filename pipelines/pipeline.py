"""`Pipeline`: a run as its user holds it: train, stream, save, evaluate, close."""

import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipelines.backend import Backend, LocalBackend
from pipelines.checkpoint import Checkpoint
from pipelines.config import AlgorithmConfig
from pipelines.errors import CheckpointError
from pipelines.result import Result
from pipelines.run_folder import RunFolder, check_run_id
from pipelines.training import TrainTask, plan_for
from rl_ops.policy import Policy, Weights

DEFAULT_STORAGE = "~/ray_results"


class Pipeline:
    """A run: the dataflow of a configuration, paused until it is asked to go on.

    Args:
        config: an algorithm's configuration.
        storage: folder of runs; ~/ray_results when None.
        name: of the run; one is made up when None.
        resume: checkpoint to go on from.
        ray_address: of a cluster; None starts a local Ray.
        debug: everything in this process and thread, without Ray.
        started_at: epoch seconds from which time_s counts; now when None.

    Raises:
        RunExistsError, StorageError: the run's folder cannot be had.
        UnknownEnvError, SpecError, ColumnError: the configuration does not fit its environment.
    """

    def __init__(
        self,
        config: AlgorithmConfig,
        *,
        storage: str | os.PathLike[str] | None = None,
        name: str | None = None,
        resume: str | os.PathLike[str] | None = None,
        ray_address: str | None = None,
        debug: bool = False,
        started_at: float | None = None,
    ) -> None:
        self.config = config
        started_at = time.time() if started_at is None else started_at
        checkpoint = Checkpoint(resume) if resume is not None else None
        self.run_id = check_run_id(name or _made_up_name(config, checkpoint))
        self._plan = plan_for(config, run_id=self.run_id)
        if checkpoint is not None:
            _check_same_policy(checkpoint, self._plan.policy.to_json())
        going_on = checkpoint is not None and checkpoint.state["run_id"] == self.run_id
        folder = Path(storage or DEFAULT_STORAGE).expanduser()
        self.folder = RunFolder(folder, self.run_id, resume=going_on)
        self.folder.write_start(config.model_dump(mode="json"), self._plan.describe())
        self._iteration = checkpoint.state["loop"]["iteration"] if checkpoint else 0
        self._version = checkpoint.state["learner"]["version"] if checkpoint else 0
        incarnation = checkpoint.state["loop"]["incarnation"] + 1 if checkpoint else 0
        task = TrainTask(
            plan=self._plan,
            started_at=started_at,
            train_storage=str(self.folder.path / "ray_train"),
            resume=None if resume is None else str(Path(resume).expanduser()),
            incarnation=incarnation,
        )
        self._owns_ray = False
        self._backend = self._start(task, ray_address=ray_address, debug=debug)
        self._last: Result | None = None
        self._streaming = False
        self._closed = False

    def _start(self, task: TrainTask, *, ray_address: str | None, debug: bool) -> Backend:
        if debug:
            return LocalBackend(task)
        # Imports ray, ray.data and ray.train, which --debug must do without.
        from pipelines.ray_backend import RayBackend
        from pipelines.ray_session import start_ray

        self._owns_ray = start_ray(address=ray_address, num_cpus=self._local_cpus())
        return RayBackend(task, name=self.run_id, start_version=self._version)

    def _local_cpus(self) -> float:
        resources, config = self.config.resources, self.config
        needed = config.rollout.num_workers * resources.rollout_cpus
        needed += config.learner.num_workers * resources.learner_cpus
        return max(os.cpu_count() or 1, int(needed + 0.999))

    @classmethod
    def from_checkpoint(cls, path: str | os.PathLike[str], **options: Any) -> Self:
        """A pipeline that goes on where a checkpoint was written.

        Args:
            path: the checkpoint's folder.
            **options: those of `Pipeline`; the name defaults to a new run's.
        """
        from pipelines import config_class

        checkpoint = Checkpoint(path)
        config = config_class(checkpoint.config["algo"]).model_validate(checkpoint.config)
        return cls(config, resume=path, **options)

    def train(self) -> Result:
        """Advance by one iteration, then pause.

        Raises:
            TrainingError: the run failed.
        """
        self._backend.allow(self._version + 1)
        return self._next()

    def stream(self) -> Iterator[Result]:
        """Iterate until a stop criterion holds; leaving the loop pauses the run.

        With no stop criterion it does not end by itself.
        """
        period = self.config.checkpoint.period_iterations
        if self._last is not None and self._last["stopped_by"] is not None:
            return
        self._backend.allow(None)
        try:
            while True:
                result = self._next()
                if period is not None and result["training_iteration"] % period == 0:
                    result["checkpoint"] = str(self.save())
                yield result
                if result["stopped_by"] is not None:
                    return
        finally:
            self._backend.allow(self._version)

    def _next(self) -> Result:
        result = Result({"run_id": self.run_id, **self._backend.next_result()})
        self._version = result["policy_version"]
        self._last = result
        self.folder.write_result(result, tensorboard=self.config.reporting.tensorboard)
        return result

    def save(self, path: str | os.PathLike[str] | None = None) -> Path:
        """Write a checkpoint.

        Args:
            path: its folder, which must not exist; by default the run's own, by iteration.

        Returns:
            The folder.
        """
        if path is not None:
            folder = Path(path).expanduser()
        else:
            iteration = self._last["training_iteration"] if self._last else self._iteration
            folder = self.folder.checkpoints / str(iteration)
        if folder.exists():
            if path is None:
                return folder
            raise CheckpointError(f"{folder} exists already; choose another path")
        written = Path(self._backend.command_learner("save", str(folder)))
        if path is None:
            self._prune()
        return written

    def _prune(self) -> None:
        keep = self.config.checkpoint.keep
        if keep is None:
            return
        found = sorted(self.folder.checkpoints.glob("[0-9]*"), key=lambda p: int(p.name))
        for old in found[:-keep]:
            shutil.rmtree(old)

    def get_policy(self) -> "PipelinePolicy":
        """The policy as of the newest version."""
        return PipelinePolicy(self._plan.policy, self._backend)

    def foreach_rollout_worker(self, fn: Callable[[Any], Any]) -> list[Any]:
        """Call `fn(worker)` in every rollout worker; `worker.rollout` is its operator."""
        return self._backend.call_workers(fn)

    def foreach_rollout_worker_with_id(self, fn: Callable[[int, Any], Any]) -> list[Any]:
        """Call `fn(worker_id, worker)` in every rollout worker."""
        return self._backend.call_workers(lambda worker: fn(worker.worker_id, worker))

    def close(self) -> None:
        """End the run and give back what it holds; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self._backend.close()
        self.folder.close()
        if self._owns_ray:
            import ray

            ray.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class PipelinePolicy(Policy):
    """A run's policy; setting its weights publishes a new version to learner and rollouts."""

    def __init__(self, spec: Any, backend: Backend) -> None:
        super().__init__(spec, backend.weights())
        self._backend = backend

    def set_weights(self, weights: Weights) -> None:
        """Act with `weights`, here and in the run."""
        super().set_weights(weights)
        if hasattr(self, "_backend"):
            self._backend.command_learner("set_weights", weights)


def _made_up_name(config: AlgorithmConfig, checkpoint: Checkpoint | None) -> str:
    if checkpoint is not None:
        return str(checkpoint.state["run_id"])
    env = "".join(ch if ch.isalnum() or ch in "-_." else "-" for ch in config.env.id)
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    return f"{config.algo}-{env}-{stamp}-{uuid.uuid4().hex[:6]}"


def _check_same_policy(checkpoint: Checkpoint, spec: dict[str, Any]) -> None:
    # Through JSON, where tuples are lists, as they were saved.
    saved, here = _flat(checkpoint.state["policy"]), _flat(json.loads(json.dumps(spec)))
    problems = [
        f"{key}: checkpoint {saved.get(key)}, here {here.get(key)}"
        for key in sorted({*saved, *here})
        if saved.get(key) != here.get(key)
    ]
    if problems:
        raise CheckpointError(
            f"checkpoint {checkpoint.path} is of another policy: " + "; ".join(problems)
        )


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    return {k: v for key, part in tree.items() for k, v in _flat(part, f"{prefix}{key}.").items()}
