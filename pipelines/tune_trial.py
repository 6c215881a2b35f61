"""Pipelines as Ray Tune's trials: `tune.Tuner(trainable("iql"), param_space={...})`.

Each trial runs its pipeline in its own process, without a Ray of its own inside: a Data execution
in a trial's placement group finds no CPU left and waits for ever (measured on two CPUs).
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.config_layers import Layer
from pipelines.loading import build_config
from pipelines.pipeline import Pipeline

if TYPE_CHECKING:
    from pipelines.config import AlgorithmConfig

Trial = Callable[[dict[str, Any]], None]


def trainable(
    algo: str,
    *,
    storage: str | Path = "~/ray_results",
    checkpoint_period: int | None = None,
    base: Mapping[str, Any] | None = None,
) -> Trial:
    """A function that Ray Tune runs with one set of settings.

    Every result is reported, with a checkpoint every so many iterations and at the end, so that
    schedulers can stop trials, and clone one's weights into another with other settings. A trial
    that is retried goes on from its last checkpoint. Its run is `<experiment>-<trial id>`, in the
    one lake of the storage, where `millrace sql` compares trials.

    Args:
        algo: name of the algorithm.
        storage: of runs and lake, the same for all trials.
        checkpoint_period: iterations between two checkpoints; None is only at the end.
        base: settings of all trials, by groups or dotted paths; a trial's own win.
    """

    def trial(settings: dict[str, Any]) -> None:
        from ray import tune

        context = tune.get_context()
        name = f"{context.get_experiment_name()}-{context.get_trial_id()}"
        start = tune.get_checkpoint()
        config = settings_to_config(algo, {**(base or {}), **settings})
        if start is None:
            _run(config, Path(storage), name, period=checkpoint_period, resume=None)
            return
        with start.as_directory() as folder:
            _run(config, Path(storage), name, period=checkpoint_period, resume=folder)

    return trial


def settings_to_config(algo: str, settings: Mapping[str, Any]) -> "AlgorithmConfig":
    """A configuration from groups and dotted paths, as `param_space` has them.

    Raises:
        ConfigError: a setting is unknown or wrong; all of them at once, with what may be meant.
    """
    config: AlgorithmConfig = build_config(algo, [Layer("param_space", settings)])
    return config


def _run(
    config: "AlgorithmConfig", storage: Path, name: str, *, period: int | None, resume: str | None
) -> None:
    """Train until the configuration's stop criterion, reporting each result."""
    from ray import tune

    storage = storage.expanduser()
    with Pipeline(
        config, storage=storage, name=_free(storage, name), resume=resume, debug=True
    ) as pipeline:
        for result in pipeline.stream():
            iteration, ended = result["training_iteration"], result["stopped_by"] is not None
            figures = {k: v for k, v in result.items() if isinstance(v, int | float | str)}
            if ended or (period is not None and iteration % period == 0):
                path = str(pipeline.save())
                tune.report(figures, checkpoint=tune.Checkpoint.from_directory(path))
            else:
                tune.report(figures)


def _free(storage: Path, name: str) -> str:
    """The name, or one after it: of a trial that goes on elsewhere, the runs are apart."""
    names = [name, *(f"{name}.{i}" for i in range(1, 10_000))]
    return next(n for n in names if not (storage / n).exists())
