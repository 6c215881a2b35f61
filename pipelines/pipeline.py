"""`Pipeline`: a run as its user holds it: train, stream, save, evaluate, close."""

import contextlib
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from offline.errors import LakeBusyError, LakeError
from pipelines.backend import Backend, LocalBackend
from pipelines.callbacks import DriverCallbacks, StopTraining
from pipelines.checkpoint import Checkpoint, numbered
from pipelines.config import AlgorithmConfig
from pipelines.errors import CallbackError, CheckpointError, TrainingError, cause_of
from pipelines.evaluation import check_videos
from pipelines.offline_data import input_versions, logged_spaces
from pipelines.own_code import own_code
from pipelines.pipeline_policy import PipelinePolicy as PipelinePolicy
from pipelines.remote import address_of, fetched, mirror_of
from pipelines.resource_check import check_resources
from pipelines.result import Result
from pipelines.run_evaluations import RunEvaluations
from pipelines.run_folder import RunFolder, check_run_id
from pipelines.run_start import (
    check_same_policy,
    local_folder,
    made_up_name,
    pinned_rows,
    prepare,
    storage_of,
)
from pipelines.tracing import RunLog, Trace, lake_of, next_session, open_lake, write_policy
from pipelines.training import TrainTask, callback_specs, pick_device, plan_for
from rl_ops.env_id import NO_ENV

DEFAULT_STORAGE = "~/ray_results"


class Pipeline:
    """A run: the dataflow of a configuration, paused until it is asked to go on.

    Args:
        config: an algorithm's configuration.
        storage: folder of runs; when None, that of the run resumed, or ~/ray_results.
        name: of the run; one is made up when None.
        resume: checkpoint to go on from.
        ray_address: of a cluster; None starts a local Ray.
        debug: everything in this process and thread, without Ray.
        started_at: epoch seconds from which time_s counts; now when None.

    Raises:
        RunExistsError, StorageError: the run's folder cannot be had.
        UnknownEnvError, SpecError, ColumnError: the configuration does not fit its environment.
        ConfigError: its processes do not fit the machine or cluster.
        CheckpointError: `resume` is damaged, or of another policy.
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
        started_at = time.time() if started_at is None else started_at
        checkpoint = Checkpoint(fetched(resume)) if resume is not None else None
        folder = local_folder(storage or storage_of(checkpoint) or DEFAULT_STORAGE)
        self._data, config = pinned_rows(config, folder)
        self.config = config
        self.run_id = check_run_id(name or made_up_name(config, checkpoint))
        spaces = None
        if self._data is not None and config.is_offline and config.env.id == NO_ENV:
            spaces = logged_spaces(self._data)
        self._callbacks = DriverCallbacks(callback_specs(config))
        self._plan = plan_for(config, run_id=self.run_id, spaces=spaces)
        if config.evaluation.videos:
            check_videos(self._plan.rollout.env)
        if checkpoint is not None:
            check_same_policy(checkpoint, self._plan.policy.to_json())
        going_on = checkpoint is not None and checkpoint.state["run_id"] == self.run_id
        self._iteration = checkpoint.state["loop"]["iteration"] if checkpoint else 0
        if config.trace.enabled:
            lake_of(config.trace, folder)  # a bad address is not written down anywhere
        resume_at = self._iteration if going_on else None
        self._mirror = mirror_of(folder, self.run_id)
        if self._mirror is not None:
            prepare(self._mirror, resume_at=resume_at)
        self.folder = RunFolder(folder, self.run_id, resume_at=resume_at)
        self.folder.write_start(config.model_dump(mode="json"), self._plan.describe())
        self._version = checkpoint.state["learner"]["version"] if checkpoint else 0
        self._log: RunLog | None = None
        self._owns_ray = False
        try:
            self._backend = self._begin(
                checkpoint, folder, started_at=started_at, ray_address=ray_address, debug=debug
            )
        except BaseException as error:
            self._leave_nothing(error, folder_is_new=not going_on)
            raise
        self._evaluations = RunEvaluations(
            self._plan,
            self._backend,
            log=self._log,
            folder=self.folder.path / "videos",
            tell=lambda figures: self._tell("on_evaluation", figures),
        )
        self._last: Result | None = None
        self._untold: deque[Result] = deque()
        self._hold: int | None = self._version
        self._closed = self._failed = False
        self._failure: str | None = None
        self._stop_asked: str | None = None
        try:
            self._tell("on_start")
        except BaseException:
            self.close()
            raise

    def _begin(
        self,
        checkpoint: Checkpoint | None,
        storage: Path,
        *,
        started_at: float,
        ray_address: str | None,
        debug: bool,
    ) -> Backend:
        """Number the session, open its log, and start the dataflow."""
        if not self.config.learner.num_workers:
            pick_device(self._plan)  # raises before anything is made
        if not debug:
            self._check_resources(is_local=ray_address is None)
        session = self.folder.session
        if checkpoint is not None:
            # Under another name too, a run that goes on must not repeat its first session's seeds.
            session = max(session, checkpoint.state["loop"]["incarnation"] + 1)
        trace = None
        if self.config.trace.enabled:
            lake, space = open_lake(self._plan, storage)
            session = max(session, next_session(lake, self.run_id))
            trace = Trace(lake, space, session)
            policy = write_policy(self.config.trace)
            self._log = RunLog(trace, run_id=self.run_id, policy=policy)
            inputs = None if self._data is None else input_versions(self._data)
            self._log.started(self._plan, checkpoint, inputs=inputs)
        task = TrainTask(
            plan=self._plan,
            started_at=started_at,
            train_storage=str(self.folder.path / "ray_train"),
            resume=None if checkpoint is None else str(checkpoint.path.absolute()),
            incarnation=session,
            trace=trace,
            data=self._data,
        )
        return self._start(task, ray_address=ray_address, debug=debug)

    def _check_resources(self, *, is_local: bool) -> None:
        """Refuse what does not fit as far as is known before Ray is up, and before the lake is."""
        from pipelines.ray_session import ray_is_up

        if ray_is_up():
            from pipelines.ray_backend import check_room

            check_room(self.config)
        elif is_local:
            cpus, gpus = float(os.cpu_count() or 1), float(torch.cuda.device_count())
            check_resources(self.config, cpus=cpus, gpus=gpus)

    def _start(self, task: TrainTask, *, ray_address: str | None, debug: bool) -> Backend:
        if debug:
            return LocalBackend(task)
        from pipelines.ray_session import start_ray

        ships = own_code(self.config) if ray_address is not None else None
        self._owns_ray = start_ray(address=ray_address, ships=ships)
        # Not before Ray is up: it may be starting in a thread, and two threads that import parts of
        # ray side by side find each other's half-made modules.
        from pipelines.ray_backend import RayBackend, check_room

        check_room(self.config)
        return RayBackend(task, name=self.run_id, start_version=self._version)

    def _leave_nothing(self, error: BaseException, *, folder_is_new: bool) -> None:
        """Give back what a run that could not be started holds."""
        if self._log is not None:
            with contextlib.suppress(LakeError):  # perhaps why it could not
                self._log.ended("failed", cause_of(error))
        if folder_is_new:
            self.folder.discard()
        else:
            self.folder.close()
        self._give_ray_back()

    @classmethod
    def from_checkpoint(cls, path: str | os.PathLike[str], **options: Any) -> Self:
        """A pipeline that goes on where a checkpoint was written.

        Args:
            path: the checkpoint's folder.
            **options: those of `Pipeline`; without a name the same run goes on, in its folder.
        """
        from pipelines import config_class

        path = fetched(path)
        checkpoint = Checkpoint(path)
        config = config_class(checkpoint.config["algo"]).model_validate(checkpoint.config)
        return cls(config, resume=path, **options)

    def train(self) -> Result:
        """Advance by one iteration, then pause.

        Raises:
            TrainingError: the run failed.
        """
        if self._untold:
            return self._untold.popleft()
        self._hold = self._backend.allow(self._version + 1)
        return self._next()

    def stream(self) -> Iterator[Result]:
        """Iterate until a stop criterion holds; leaving the loop pauses the run.

        Checkpoints and evaluations that the configuration asks for happen on the way, each of
        exactly the iteration whose result names it. With no stop criterion it does not end by
        itself.
        """
        try:
            while self._untold or self._last is None or self._last["stopped_by"] is None:
                if not self._untold and self._hold == self._version:
                    self._hold = self._backend.allow(self._next_halt())
                yield self._untold.popleft() if self._untold else self._next()
        finally:
            self._pause()

    @property
    def lake(self) -> str | None:
        """Address of the lake that this run logs in; None when it logs nothing."""
        return None if self._log is None else self._log.uri

    def untold(self) -> Iterator[Result]:
        """Pause the run and give what `stream` had not: iterations that ended meanwhile."""
        self._pause()
        while self._untold:
            yield self._untold.popleft()

    def _pause(self) -> None:
        """Hold the run still, having taken in what it finished meanwhile, for later calls."""
        if self._closed or self._failed:
            return
        self._hold = self._backend.allow(self._version)
        while self._hold is not None and self._version < self._hold:
            self._untold.append(self._next())

    def _next_halt(self) -> int | None:
        """The next version at which the run must hold still for a moment."""
        evaluation = self.config.evaluation
        periods = [self.config.checkpoint.period_iterations, evaluation.period_iterations]
        halts = [self._version + p - self._iteration % p for p in periods if p is not None]
        return min(halts, default=None)

    def _next(self) -> Result:
        try:
            told = self._backend.next_result()
        except TrainingError as error:
            self._failed = True
            self._failure = str(error)
            raise
        failures = told.pop("failures")
        result = self._last = Result({"run_id": self.run_id, **told})
        self._version, self._iteration = result["policy_version"], result["training_iteration"]
        result |= self._evaluations.at(
            self._iteration, self._version, ended=result["stopped_by"] is not None
        )
        for failure in failures:
            self._tell("on_failure", failure)
        self._tell_result(result)
        period = self.config.checkpoint.period_iterations
        ended = result["stopped_by"] is not None and self.config.checkpoint.at_end
        due = ended or (period is not None and self._iteration % period == 0)
        if due:
            result["checkpoint"] = address_of(self.folder.checkpoints / str(self._iteration))
        # Before the checkpoint: one that is there has every result up to its own in the files.
        self.folder.write_result(result, tensorboard=self.config.reporting.tensorboard)
        if self._log is not None:
            self._log.result(result)
            self._log.failures(failures)
        if self._mirror is not None:
            self._mirror.push()
        if due:
            self.save()
        return result

    def _tell(self, moment: str, *arguments: Any) -> dict[str, float]:
        """Tell callbacks; what they raise is why the run failed."""
        try:
            return self._callbacks.tell(moment, self, *arguments)
        except CallbackError as error:
            self._failure = self._failure or str(error)
            raise

    def _tell_result(self, result: Result) -> None:
        """Tell callbacks of a result, and end the run where one of them wants that."""
        try:
            figures = self._tell("on_result", result)
            result |= {f"custom/{name}": value for name, value in figures.items()}
        except StopTraining as stop:
            self._stop_asked = str(stop) or "a callback"
        if self._stop_asked is not None and result["stopped_by"] is None:
            # The learner may be ahead; the run ends with the last iteration that it is at.
            self._hold = self._backend.allow(self._version)
            if self._hold is None or self._hold <= self._version:
                result["stopped_by"] = self._stop_asked

    def evaluate(self, *, num_episodes: int | None = None, seed: int | None = None) -> Result:
        """Evaluate the newest version, in a dataflow of its own.

        Args:
            num_episodes: whole episodes; those of the configuration when None.
            seed: of environments and sampling; one per version when None.
        """
        self._pause()
        return self._evaluations.of(self._version, num_episodes=num_episodes, seed=seed)

    def save(self, path: str | os.PathLike[str] | None = None) -> Path:
        """Write a checkpoint.

        Args:
            path: its folder, which must not exist; by default the run's own, by iteration.

        Returns:
            The folder.

        Raises:
            CheckpointError: `path` exists.
            StorageError: it cannot be written.
        """
        self._pause()
        if path is not None:
            folder = Path(path).expanduser()
        else:
            folder = self.folder.checkpoints / str(self._iteration)
        if folder.exists():
            if path is None:
                return folder
            raise CheckpointError(f"{folder} exists already; choose another path")
        written = Path(self._backend.command_learner("save", str(folder)))
        if self._mirror is not None and path is None:
            self._mirror.push(now=True)
            self._mirror.push_checkpoint(written)
        if self._log is not None:
            self._log.checkpoint(written)
        if path is None:
            self._prune()
        self._tell("on_checkpoint", written)
        return written

    def _prune(self) -> None:
        keep = self.config.checkpoint.keep
        if keep is None:
            return
        for old in numbered(self.folder.checkpoints)[:-keep]:
            shutil.rmtree(old)
        if self._mirror is not None:
            self._mirror.prune(keep)

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
        try:
            self._end_session()
        except LakeBusyError:
            self._mirror = None  # another machine goes on with the run, and the files are its own
            raise
        finally:
            self.folder.close()
            self._give_ray_back()
            if self._mirror is not None:
                self._mirror.push(now=True)

    def _end_session(self) -> None:
        """Stop the dataflow, and log how it ended and what failed on the way."""
        failures: list[dict[str, Any]] = []
        try:
            if not self._failed:
                failures = self._backend.failures()
            self._backend.close()
        except LakeError as error:
            self._failure = self._failure or str(error)
            raise
        finally:
            done = self._last is not None and self._last["stopped_by"] is not None
            status = "failed" if self._failure else ("finished" if done else "stopped")
            if self._log is not None:
                self._log.failures(failures)
                self._log.ended(status, self._failure)
            for failure in failures:
                self._tell("on_failure", failure)
            self._tell("on_end", status, self._failure)

    def _give_ray_back(self) -> None:
        if self._owns_ray:
            from pipelines.ray_session import stop_ray

            stop_ray()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
