"""Configurations from defaults, files, JSON and the command line, later over earlier."""

import importlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pipelines.config import AlgorithmConfig, StopConfig
from pipelines.config_base import Group
from pipelines.config_errors import ConfigError, Problem, shown
from pipelines.config_explain import explain, nearest
from pipelines.config_files import ConfigFile, load_config_file
from pipelines.config_layers import Draft, Layer
from pipelines.config_schema import fields_of
from pipelines.strict_json import parse_json

__all__ = [
    "ConfigError",
    "ConfigFile",
    "Layer",
    "build_config",
    "config_class",
    "file_layer",
    "json_layer",
    "load_config_file",
    "parse_stop",
    "set_layers",
    "with_overrides",
]

T = TypeVar("T", bound=Group)
Algorithms = Mapping[str, tuple[str, str]]


def file_layer(file: ConfigFile) -> Layer:
    """A file's settings."""
    return Layer(file.path, file.values, file.lines)


def json_layer(text: str, *, name: str = "--config") -> Layer:
    """The settings of a JSON object.

    Raises:
        ConfigError: it is none, or gives a key twice.
    """
    return Layer(name, parse_json(text, name=name).values)


def set_layers(settings: Iterable[str], *, name: str = "--set") -> list[Layer]:
    """One layer for each "dotted.path=value", so that a later one wins.

    Raises:
        ConfigError: a setting has no "=".
    """
    layers, problems = [], []
    for setting in settings:
        path, equals, value = setting.partition("=")
        if not equals or not path.strip():
            what = f"got {shown(setting)}, expected key=value"
            problems.append(Problem(name, what, f"such as {name} optim.lr=1e-3"))
        layers.append(Layer(name, {path.strip(): value.strip()}, text=True))
    if problems:
        raise ConfigError(*problems)
    return layers


def build_config(
    algo: str, layers: Sequence[Layer] = (), *, algorithms: Algorithms | None = None
) -> AlgorithmConfig:
    """An algorithm's configuration: its defaults, and over them each layer in turn.

    Groups and mappings are merged key by key, everything else is replaced. A string for `env`
    sets env.id and leaves the other keys of env.

    Args:
        algo: a name in `algorithms`.
        layers: from the weakest to the strongest: file, --config, --set, other options.
        algorithms: name → (module, class); None takes `pipelines.ALGORITHMS`.

    Raises:
        ConfigError: everything that is wrong, with where it was given and how to put it right.
    """
    chosen = config_class(algo, algorithms=algorithms)
    defaults = {
        name: info.default.model_dump()
        for name, info in chosen.model_fields.items()
        if isinstance(info.default, BaseModel)
    }
    return _merge(chosen, defaults, layers)


def config_class(algo: str, *, algorithms: Algorithms | None = None) -> type[AlgorithmConfig]:
    """The configuration class of an algorithm, imported now.

    Raises:
        ConfigError: there is no such algorithm; the message lists those there are.
    """
    known: Algorithms = algorithms or importlib.import_module("pipelines").ALGORITHMS
    if algo not in known:
        close = nearest(algo, known) if isinstance(algo, str) else []
        meant = f"did you mean {close[0]}? " if close else ""
        fix = f"{meant}there are {', '.join(sorted(known))}"
        raise ConfigError(Problem("algo", f"unknown algorithm {shown(algo)}", fix))
    module, name = known[algo]
    found: type[AlgorithmConfig] = getattr(importlib.import_module(module), name)
    return found


def with_overrides(config: T, overrides: Mapping[str, Any]) -> T:
    """A copy of a configuration with some settings replaced, validated.

    Args:
        config: stays as it is.
        overrides: dotted paths and nested mappings, {"optim.lr": 1e-3, "env": {"kwargs": {}}},
            merged as in `build_config`.

    Raises:
        ConfigError: everything that is wrong with the overrides or their result.
    """
    return _merge(type(config), config.model_dump(), [Layer("", overrides)])


class _OnlyStop(Group):
    stop: StopConfig = StopConfig()


def parse_stop(stop: str | Mapping[str, Any], *, name: str = "--stop") -> dict[str, int | float]:
    """Stop criteria in our names, from ours or RLlib's.

    Args:
        stop: a mapping, or a JSON object: '{"episode_reward_mean": 450}'.
        name: what messages call the place.

    Raises:
        ConfigError: a criterion is unknown, given twice, or of the wrong type.
    """
    layer = json_layer(stop, name=name) if isinstance(stop, str) else Layer(name, stop)
    merged = _merge(_OnlyStop, {}, [Layer(name, {"stop": layer.values})])
    return merged.stop.model_dump(exclude_none=True)


def _merge(config_class: type[T], base: dict[str, Any], layers: Sequence[Layer]) -> T:
    draft = Draft(fields_of(config_class), base)
    for layer in layers:
        draft.add(layer)
    problems = draft.problems + draft.misfits()
    try:
        config = config_class.model_validate(draft.values)
    except ValidationError as error:
        known = draft.troubled
        problems += explain(
            error, fields=draft.fields, values=draft.values, where=draft.where, known=known
        )
    if problems:
        raise ConfigError(*problems)
    return config
