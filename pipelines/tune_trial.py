"""Pipelines as Ray Tune's trials: `tune.Tuner(trainable("iql"), param_space={...})`.

Each trial runs its pipeline in its own process, without a Ray of its own inside: a Data execution
in a trial's placement group finds no CPU left and waits for ever (measured on two CPUs).
"""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ray import tune
from ray.tune.result import DONE, SHOULD_CHECKPOINT

from pipelines.checkpoint import Checkpoint
from pipelines.config_layers import Layer
from pipelines.loading import build_config
from pipelines.pipeline import Pipeline

if TYPE_CHECKING:
    from pipelines.config import AlgorithmConfig


def trainable(
    algo: str,
    *,
    storage: str | Path = "~/ray_results",
    checkpoint_period: int | None = None,
    base: Mapping[str, Any] | None = None,
    absent: Mapping[str, float] | None = None,
) -> type["PipelineTrial"]:
    """What Ray Tune runs with one set of settings.

    Every iteration is a result, with a checkpoint every so many and at the end, so that schedulers
    can stop trials, and clone one's weights into another with other settings. A trial that is
    begun again goes on in its run from its last checkpoint. Its run is `<experiment>-<trial id>`,
    in the one lake of the storage, where `millrace sql` compares trials. With
    `TuneConfig(reuse_actors=True)` a process takes one trial after the other, and imports once.

    Args:
        algo: name of the algorithm.
        storage: of runs and lake, the same for all trials.
        checkpoint_period: iterations between two checkpoints; None is only at the end.
        base: settings of all trials, by groups or dotted paths; a trial's own win.
        absent: figure → what results have while it is not known, as a return before an episode
            ended: population-based training and Optuna take no result without their metric.
    """
    attributes = {
        "algo": algo,
        "storage": str(Path(storage).expanduser()),
        "period": checkpoint_period,
        "base": dict(base or {}),
        "absent": dict(absent or {}),
    }
    return type(f"{algo}_pipeline", (PipelineTrial,), attributes)


def settings_to_config(algo: str, settings: Mapping[str, Any]) -> "AlgorithmConfig":
    """A configuration from groups and dotted paths, as `param_space` has them.

    Raises:
        ConfigError: a setting is unknown or wrong; all of them at once, with what may be meant.
    """
    config: AlgorithmConfig = build_config(algo, [Layer("param_space", settings)])
    return config


class PipelineTrial(tune.Trainable):  # type: ignore[misc]
    """A trial: one pipeline, an iteration a step. Made by `trainable`."""

    algo: ClassVar[str]
    storage: ClassVar[str]
    period: ClassVar[int | None]
    base: ClassVar[Mapping[str, Any]]
    absent: ClassVar[Mapping[str, float]]

    def setup(self, config: dict[str, Any]) -> None:
        """See Tune. Nothing is made yet: a checkpoint may follow that the run goes on from."""
        self._settings = config
        self._pipeline: Pipeline | None = None
        self._results: Iterator[Mapping[str, Any]] = iter(())

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """See Tune: this process takes another trial, or the same one with other settings."""
        self.cleanup()
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """One iteration's figures, and whether it is the last."""
        if self._pipeline is None:
            self._begin(None)
        result = next(self._results)
        ended = result["stopped_by"] is not None
        is_due = self.period is not None and result["training_iteration"] % self.period == 0
        figures = {k: v for k, v in result.items() if isinstance(v, int | float | str)}
        return {**self.absent, **figures, DONE: ended, SHOULD_CHECKPOINT: ended or is_due}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """See Tune: a copy of the run's own, from which `load_policy` and others load."""
        assert self._pipeline is not None  # Tune saves between steps
        shutil.copytree(self._pipeline.save(), checkpoint_dir, dirs_exist_ok=True)

    def load_checkpoint(self, checkpoint: str) -> None:
        """See Tune: go on from there, in the same run if it was this trial's own."""
        self.cleanup()
        self._begin(checkpoint)

    def cleanup(self) -> None:
        """See Tune."""
        if self._pipeline is not None:
            self._pipeline.close()
            self._pipeline = None

    def _begin(self, checkpoint: str | None) -> None:
        config = settings_to_config(self.algo, {**self.base, **self._settings})
        own = f"{self._storage.experiment_dir_name}-{self.trial_id}"
        name = self._free(own)
        if checkpoint is not None:
            run_id = str(Checkpoint(checkpoint).state["run_id"])
            if run_id == own or run_id.startswith(f"{own}."):
                name = run_id
        self._pipeline = Pipeline(
            config, storage=self.storage, name=name, resume=checkpoint, debug=True
        )
        self._results = self._pipeline.stream()

    def _free(self, name: str) -> str:
        """The name, or one after it: what was cut short, or cloned from another, stays apart."""
        names = [name, *(f"{name}.{i}" for i in range(1, 10_000))]
        return next(n for n in names if not (Path(self.storage) / n).exists())
