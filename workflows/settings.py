"""From what a command line asks to a configuration: file or checkpoint, then its options."""

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from pipelines import ALGORITHMS
from pipelines.config import AlgorithmConfig, StopConfig
from pipelines.config_errors import ConfigError, Problem, shown
from pipelines.config_explain import nearest
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
from workflows.options import TrainRequest

_CONNECT_S = 5.0


@dataclass(frozen=True)
class Settings:
    """What is known of a run before torch is imported: its algorithm, and layers of settings."""

    algo: str
    layers: tuple[Layer, ...]

    def build(self) -> AlgorithmConfig:
        """The configuration; imports the algorithm.

        Raises:
            ConfigError: everything that is wrong with it.
        """
        return build_config(self.algo, self.layers)


def read_settings(request: TrainRequest, *, saved: Mapping[str, Any] | None = None) -> Settings:
    """The settings of a run: saved, file, --config, --set, other options, later over earlier.

    Args:
        request: the command line.
        saved: configuration of the checkpoint to go on from.

    Raises:
        ConfigError: something cannot be read, or there is no such algorithm.
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
    return Settings(algo, tuple(layers))


def check_ray_address(address: str) -> None:
    """Refuse a cluster that does not answer, for which Ray would wait many minutes.

    Raises:
        ConfigError: it is none, or nobody listens there.
    """
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdecimal():
        fix = "give HOST:PORT of the head node's GCS, such as 10.0.0.1:6379, or auto"
        raise ConfigError(Problem("--ray-address", f"got {shown(address)}", fix))
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except (OSError, OverflowError) as error:
        what = f"nothing answers at {shown(address)} ({error})"
        fix = "start Ray there (`ray start --head`), or leave it out for one on this machine"
        raise ConfigError(Problem("--ray-address", what, fix)) from None


def check_not_ended(config: AlgorithmConfig, state: Mapping[str, Any]) -> None:
    """Refuse to go on with a run that its stop criteria would end after one more iteration.

    Raises:
        ConfigError: names the criterion.
    """
    loop, learner = state["loop"], state["learner"]
    done = {
        "training_iteration": loop.get("iteration"),
        "env_steps": learner.get("env_steps"),
        "grad_steps": learner.get("grad_steps"),
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
        if algo not in ALGORITHMS:
            raise _unknown(algo)
        return str(algo)
    if algo not in (None, saved["algo"]):
        what = f"got {shown(asked)}, and the checkpoint is of {shown(saved['algo'])}"
        raise ConfigError(Problem("algo", what, "leave it out"))
    return str(saved["algo"])


def _unknown(algo: Any) -> ConfigError:
    close = nearest(algo, ALGORITHMS) if isinstance(algo, str) else []
    meant = f"did you mean {close[0]}? " if close else ""
    what = f"unknown algorithm {shown(algo)}"
    return ConfigError(Problem("algo", what, f"{meant}there are {_algorithms()}"))


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
