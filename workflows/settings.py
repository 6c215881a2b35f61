"""From what a command line asks to a configuration: file or checkpoint, then its options."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from pipelines import ALGORITHMS
from pipelines.config import AlgorithmConfig, StopConfig
from pipelines.config_errors import ConfigError, Problem, shown
from pipelines.config_files import SUFFIXES
from pipelines.loading import (
    Layer,
    build_config,
    file_layer,
    json_layer,
    load_config_file,
    parse_stop,
    set_layers,
)
from pipelines.resource_check import check_resources
from workflows.options import TrainRequest


def configure(request: TrainRequest, *, saved: Mapping[str, Any] | None = None) -> AlgorithmConfig:
    """The configuration of a run: saved, file, --config, --set, other options, later over earlier.

    Args:
        request: the command line.
        saved: configuration of the checkpoint to go on from.

    Raises:
        ConfigError: everything that is wrong.
        click.UsageError: nothing says which algorithm.
    """
    file = load_config_file(request.file) if request.file is not None else None
    layers = [] if saved is None else [Layer("checkpoint", saved)]
    layers += [] if file is None else [file_layer(file)]
    asked = request.algo or (file.values.get("algo") if file is not None else None)
    if file is not None and asked is None and saved is None:
        raise ConfigError(Problem(file.path, "algo is missing", f"add algo: {_algorithms()}"))
    algo = _which(asked, saved)
    if request.config is not None:
        layers.append(json_layer(request.config))
    layers += set_layers(request.settings)
    layers += _of_options(request)
    return build_config(algo, layers)


def check_fits_machine(config: AlgorithmConfig, *, debug: bool) -> None:
    """Refuse what this machine cannot start; a process without Ray reserves nothing.

    Raises:
        ConfigError: with the numbers.
    """
    import torch  # for its count of GPUs; the configuration's class has imported it

    cpus = float("inf") if debug else float(os.cpu_count() or 1)
    check_resources(config, cpus=cpus, gpus=float(torch.cuda.device_count()))


def check_not_ended(config: AlgorithmConfig, state: Mapping[str, Any]) -> None:
    """Refuse to go on with a run that its stop criteria would end after one more iteration.

    Raises:
        ConfigError: names the criterion.
    """
    loop, learner = state["loop"], state["learner"]
    done = {
        "training_iteration": loop.get("iteration"),
        "env_steps": learner.get("env_steps"),
        "time_s": loop.get("time_s"),
    }
    for key, value in done.items():
        bound = getattr(config.stop, key)
        if bound is not None and value is not None and value >= bound:
            what = f"the run ended at {value:,.6g}, and its criterion is {bound:,.6g}"
            further = f'{{"{key}": {2 * bound:g}}}'
            raise ConfigError(
                Problem(f"stop.{key}", what, f"give a further one: --stop '{further}'")
            )


def is_file(algo: str) -> bool:
    """Whether what stands for an algorithm is a configuration file's path or address."""
    return algo.endswith(SUFFIXES) or "://" in algo or Path(algo).is_file()


def _which(asked: Any, saved: Mapping[str, Any] | None) -> str:
    algo = asked.lower() if isinstance(asked, str) else asked
    if saved is None:
        if algo is None:
            raise click.UsageError(f"which algorithm? There are {_algorithms()}")
        return str(algo) if isinstance(algo, str) else shown(algo)
    if algo not in (None, saved["algo"]):
        what = f"got {shown(asked)}, and the checkpoint is of {shown(saved['algo'])}"
        raise ConfigError(Problem("algo", what, "leave it out"))
    return str(saved["algo"])


def _of_options(request: TrainRequest) -> list[Layer]:
    """A layer for each option that is a setting."""
    layers = []
    if request.env is not None:
        layers.append(Layer("--env", {"env": request.env}))
    if request.seed is not None:
        layers.append(Layer("--seed", {"seed": request.seed}))
    if request.stop is not None:
        criteria = dict.fromkeys(StopConfig.model_fields) | parse_stop(request.stop)
        layers.append(Layer("--stop", {"stop": criteria}))
    if request.checkpoint_freq is not None:
        period = {"checkpoint.period_iterations": request.checkpoint_freq or None}
        layers.append(Layer("--checkpoint-freq", period))
    if request.checkpoint_at_end is not None:
        layers.append(
            Layer("--checkpoint-at-end", {"checkpoint.at_end": request.checkpoint_at_end})
        )
    return layers


def _algorithms() -> str:
    return ", ".join(sorted(ALGORITHMS))
