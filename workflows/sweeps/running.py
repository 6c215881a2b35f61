"""A sweep by Ray Tune: its tuner, its progress, and going on after it was cut short."""

import logging
import math
import os
import signal
import time
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ray import tune

from pipelines import trainable
from pipelines.config_errors import ConfigError, Problem
from workflows.sweeps.spec import Sweep, SweepSpec
from workflows.sweeps.trials import Record

TUNE: Final = "tune"
"""Of Tune's own files below the sweep's folder."""
_ENVIRONMENT: Final = {
    # No return is known before the first episode ends.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # One of a trial's results a second is enough for Tune's own state on disk.
    "TUNE_GLOBAL_CHECKPOINT_S": "10",
}
_NOTE_S: Final = 1.0
Show = Callable[[Record], None]


@dataclass
class Running:
    """One execution of a sweep.

    Args:
        sweep: what is swept.
        record: its folder.
        storage: of runs.
        num_samples, concurrency: instead of the file's.
        show: called when there is something new.
    """

    sweep: Sweep
    record: Record
    storage: Path
    num_samples: int | None
    concurrency: int | None
    show: Show
    interrupted: signal.Signals | None = None

    def run(self, *, resume: bool) -> str:
        """Run all trials, or those that are not over.

        Returns:
            "finished", or "stopped" by a signal.

        Raises:
            ConfigError: a trial cannot fit the machine.
        """
        os.environ.update({k: os.environ.get(k, v) for k, v in _ENVIRONMENT.items()})
        logging.getLogger("ray.tune").setLevel(logging.ERROR)
        side_by_side = self._fitting()
        self.record.begin()
        with self._signals(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tuner = self._restored() if resume else self._tuner(side_by_side)
            tuner.fit()
        unfinished = [
            t for t in self.record.trials.values() if t["status"] not in ("terminated", "error")
        ]
        status = "stopped" if unfinished else "finished"
        self.record.end(status)
        self.show(self.record)
        return status

    def _fitting(self) -> int:
        """Trials side by side.

        Raises:
            ConfigError: with the numbers.
        """
        import ray

        config = self.sweep.check()
        has = ray.cluster_resources()
        gpus = config.resources.learner_gpus if config is not None else 0.0
        wanted = self.concurrency or self.sweep.spec.concurrency
        cores = int(has.get("CPU", 0))
        room = cores if not gpus else min(cores, int(has.get("GPU", 0) / gpus))
        if room < 1:
            what = f"a trial needs 1 CPU and {gpus:g} GPUs, and there are {cores} and "
            what += f"{has.get('GPU', 0):g}"
            raise ConfigError(Problem("resources", what, "lower resources.learner_gpus"))
        if wanted != "auto" and wanted > room:
            what = f"{wanted} trials side by side need {wanted} CPUs and {wanted * gpus:g} GPUs, "
            what += f"and there are {cores} and {has.get('GPU', 0):g}"
            raise ConfigError(Problem("concurrency", what, f"set it to {room}, or auto"))
        return room if wanted == "auto" else int(wanted)

    def _trial(self) -> Any:
        spec, config = self.sweep.spec, self.sweep.check()
        worst = -math.inf if spec.mode == "max" else math.inf
        compares = spec.scheduler is not None or spec.search.optuna is not None
        kind = trainable(
            spec.algo,
            storage=self.storage,
            checkpoint_period=spec.checkpoint_period,
            base=self.sweep.base,
            absent={spec.metric: worst} if compares else {},
        )
        gpus = config.resources.learner_gpus if config is not None else 0.0
        return tune.with_resources(kind, {"cpu": 1, **({"gpu": gpus} if gpus else {})})

    def _tuner(self, side_by_side: int) -> "tune.Tuner":
        spec = self.sweep.spec
        return tune.Tuner(
            self._trial(),
            param_space={name: domain.to_tune() for name, domain in spec.sweep.items()},
            tune_config=tune.TuneConfig(
                metric=spec.metric,
                mode=spec.mode,
                num_samples=self.num_samples or spec.num_samples,
                max_concurrent_trials=side_by_side,
                scheduler=self._scheduler(),
                search_alg=self._search(),
                # A process imports once and takes one trial after the other.
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                # Trials' runs are named after it.
                name=self.record.folder.name,
                storage_path=str(self.record.folder / TUNE),
                failure_config=tune.FailureConfig(max_failures=spec.max_failures),
                checkpoint_config=tune.CheckpointConfig(num_to_keep=checkpoints_kept(spec)),
                callbacks=[
                    Watcher(self.record, self.show),
                    *_loggers(spec.loggers, self.record.folder),
                ],
                verbose=0,
            ),
        )

    def _restored(self) -> "tune.Tuner":
        path = self.record.folder / TUNE / self.record.folder.name
        tuner = tune.Tuner.restore(
            str(path), trainable=self._trial(), resume_unfinished=True, restart_errored=True
        )
        # Callbacks are kept by Tune as they were pickled: with a record of their own.
        for callback in tuner._local_tuner.get_run_config().callbacks or ():
            if isinstance(callback, Watcher):
                callback.record, callback.show = self.record, self.show
        return tuner

    def _search(self) -> Any:
        search = self.sweep.spec.search
        if search.optuna is None:
            from ray.tune.search.basic_variant import BasicVariantGenerator

            assert search.random is not None
            return BasicVariantGenerator(random_state=search.random.seed)
        _require("optuna", "optuna")
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(seed=search.optuna.seed)
        return OptunaSearch(
            metric=self.sweep.spec.metric, mode=self.sweep.spec.mode, sampler=sampler
        )

    def _scheduler(self) -> Any:
        from ray.tune import schedulers

        spec = self.sweep.spec
        if spec.scheduler is None:
            return None
        if spec.scheduler.asha is not None:
            return schedulers.ASHAScheduler(**spec.scheduler.asha.model_dump())
        pbt = spec.scheduler.pbt
        assert pbt is not None
        values = pbt.model_dump(exclude={"mutate", "seed"})
        names = pbt.mutate or list(spec.sweep)
        return schedulers.PopulationBasedTraining(
            **values, hyperparam_mutations={name: _mutations(spec.sweep[name]) for name in names}
        )

    @contextmanager
    def _signals(self) -> Any:
        """SIGTERM as SIGINT, at which Tune keeps what it has and ends."""
        before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}

        def ask(number: int, _: Any) -> None:
            self.interrupted = signal.Signals(number)
            signal.raise_signal(signal.SIGINT)

        signal.signal(signal.SIGTERM, ask)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Watcher(tune.Callback):  # type: ignore[misc]
    """Keeps `trials.json`, and shows what is new."""

    def __init__(self, record: Record, show: Show) -> None:
        self.record, self.show = record, show
        self._noted = 0.0

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks; what is shown is of a process."""
        return {"record": self.record}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """See `__getstate__`."""
        self.record, self._noted = state["record"], 0.0
        self.show = lambda _record: None

    def on_step_end(self, iteration: int, trials: list[Any], **_: Any) -> None:  # noqa: ARG002
        """See Tune."""
        if time.monotonic() - self._noted >= _NOTE_S:
            self._note(trials)

    def on_experiment_end(self, trials: list[Any], **_: Any) -> None:
        """See Tune."""
        self._note(trials)

    def _note(self, trials: list[Any]) -> None:
        self._noted = time.monotonic()
        self.record.note(trials)
        self.show(self.record)


def checkpoints_kept(spec: SweepSpec) -> int | None:
    """How many of a trial's copies Tune keeps; the runs' own are not touched.

    All where trials are cloned: one that waits for a free core goes on from what the other had
    when it was chosen, and that one has gone on and written others meanwhile.
    """
    clones = spec.scheduler is not None and spec.scheduler.pbt is not None
    return None if clones else 2


def _mutations(domain: Any) -> Any:
    value = getattr(domain, domain.kind)
    return list(value) if domain.kind in ("grid", "choice") else domain.to_tune()


def _loggers(names: list[Any], folder: Path) -> list[Any]:
    """Tune's callbacks; MLflow's and W&B's files are the sweep's unless variables say else."""
    from ray.tune.logger import TBXLoggerCallback

    found: list[Any] = []
    for name in names:
        if name == "tensorboard":
            found.append(TBXLoggerCallback())
        elif name == "mlflow":
            _require("mlflow", "mlflow")
            from ray.air.integrations.mlflow import MLflowLoggerCallback

            here = f"sqlite:///{(folder / 'mlflow.db').absolute()}"
            uri = os.environ.get("MLFLOW_TRACKING_URI") or here
            found.append(MLflowLoggerCallback(tracking_uri=uri, experiment_name=folder.name))
        else:
            _require("wandb", "wandb")
            from ray.air.integrations.wandb import WandbLoggerCallback

            project = os.environ.get("WANDB_PROJECT") or "millrace"
            found.append(WandbLoggerCallback(project=project, group=folder.name))
    return found


def _require(module: str, extra: str) -> None:
    import importlib.util

    if importlib.util.find_spec(module) is None:
        fix = f"pip install 'millrace[{extra}]'"
        raise ConfigError(Problem(module, "is not installed", fix))
