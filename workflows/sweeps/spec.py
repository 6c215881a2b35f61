"""A sweep's file: which settings vary, how they are searched, and when trials end."""

import itertools
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pipelines import ALGORITHMS
from pipelines.config_errors import ConfigError, Problem
from pipelines.config_explain import nearest
from pipelines.config_layers import Layer
from pipelines.loading import build_config
from pipelines.strict_text import Document
from workflows.documents import place, read_document, validated

_MEANT = {
    "run": "write algo: NAME, in small letters",
    "config": "write base: {...} for what all trials share, and sweep: {...} for what varies",
    "param_space": "write sweep: {...}",
    "local_dir": "give --storage DIR",
    "grid_search": "write grid: [...]",
}
_MAX_CHECKED = 256
"""Combinations of a grid that are checked before anything starts."""
_MODEL = ConfigDict(extra="forbid", frozen=True, strict=True)
Number = Annotated[float, Field(strict=False)]


class Domain(BaseModel):
    """What a setting may be: exactly one kind."""

    model_config = _MODEL

    grid: list[Any] | None = Field(default=None, min_length=1)
    """Each of these, with all of every other grid."""
    choice: list[Any] | None = Field(default=None, min_length=1)
    uniform: tuple[Number, Number] | None = Field(default=None, strict=False)
    quniform: tuple[Number, Number, Number] | None = Field(default=None, strict=False)
    loguniform: tuple[Number, Number] | None = Field(default=None, strict=False)
    normal: tuple[Number, Number] | None = Field(default=None, strict=False)
    """Mean and deviation."""
    randint: tuple[int, int] | None = Field(default=None, strict=False)
    """From the first to the one before the last."""
    lograndint: tuple[int, int] | None = Field(default=None, strict=False)

    @model_validator(mode="after")
    def _one_kind(self) -> "Domain":
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            kinds = ", ".join(type(self).model_fields)
            raise ValueError(f"give one of {kinds}")
        span = getattr(self, given[0])
        if given[0] not in ("grid", "choice", "normal") and not span[0] < span[1]:
            raise ValueError(f"{given[0]} goes from a lower to a higher number")
        if given[0].startswith("log") and span[0] <= 0:
            raise ValueError(f"{given[0]} begins above 0")
        return self

    @property
    def kind(self) -> str:
        """Which one it is."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)

    def to_tune(self) -> Any:
        """As Ray Tune has it."""
        from ray import tune

        value = getattr(self, self.kind)
        if self.kind in ("grid", "choice"):
            return {"grid": tune.grid_search, "choice": tune.choice}[self.kind](value)
        names = {"normal": "randn"}
        return getattr(tune, names.get(self.kind, self.kind))(*value)


class Random(BaseModel):
    """Independent draws."""

    model_config = _MODEL

    seed: int = 0


class Optuna(BaseModel):
    """Tree-structured Parzen estimators, by Optuna."""

    model_config = _MODEL

    seed: int = 0


class Search(BaseModel):
    """How values are found."""

    model_config = _MODEL

    random: Random | None = None
    optuna: Optuna | None = None

    @model_validator(mode="after")
    def _one(self) -> "Search":
        if (self.random is None) == (self.optuna is None):
            raise ValueError("give random: {} or optuna: {}")
        return self


class Asha(BaseModel):
    """Asynchronous successive halving (Li et al. 2018, arXiv:1810.05934)."""

    model_config = _MODEL

    time_attr: str = "training_iteration"
    max_t: Number
    grace_period: Number = 1
    reduction_factor: Number = 4
    brackets: int = 1


class Pbt(BaseModel):
    """Population-based training (Jaderberg et al. 2017, arXiv:1711.09846)."""

    model_config = _MODEL

    time_attr: str = "training_iteration"
    perturbation_interval: Number
    quantile_fraction: Number = 0.25
    resample_probability: Number = 0.25
    synch: bool = False
    """Trials wait for each other at every perturbation, so that all are compared at the same time
    and repeat; else those that are behind never hold up the others."""
    mutate: list[str] = Field(default=[])
    """Settings that change when a trial takes another's weights; all that vary by default."""
    seed: int = 0


class Scheduler(BaseModel):
    """Which trials go on."""

    model_config = _MODEL

    asha: Asha | None = None
    pbt: Pbt | None = None

    @model_validator(mode="after")
    def _one(self) -> "Scheduler":
        if (self.asha is None) == (self.pbt is None):
            raise ValueError("give asha: {...} or pbt: {...}")
        return self


class SweepSpec(BaseModel):
    """What a sweep's file says."""

    model_config = _MODEL

    description: str = ""
    algo: str
    env: str | None = None
    base: dict[str, Any] = Field(default={})
    """Settings of all trials, by groups or dotted paths."""
    sweep: dict[str, Domain] = Field(min_length=1)
    """Dotted path → what it may be."""
    search: Search = Search(random=Random())
    scheduler: Scheduler | None = None
    num_samples: int = Field(default=1, ge=1)
    """Trials of each combination of the grids."""
    metric: str = "episode_return_mean"
    mode: Literal["max", "min"] = "max"
    stop: dict[str, Any] = Field(default={})
    """When a trial ends, as `stop` of a configuration."""
    concurrency: Literal["auto"] | int = "auto"
    """Trials side by side; auto: one for each core."""
    checkpoint_period: int | None = Field(default=None, ge=1)
    """Iterations between two checkpoints of a trial; None only at its end."""
    max_failures: int = Field(default=0, ge=0)
    """How often a trial that fails is begun again, from its last checkpoint."""
    loggers: list[Literal["tensorboard", "mlflow", "wandb"]] = Field(default=[])
    """Ray Tune's own, beside the runs' own files."""

    @field_validator("algo")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if value not in ALGORITHMS:
            close = nearest(value, ALGORITHMS)
            meant = f"did you mean {close[0]}? " if close else ""
            raise ValueError(f"unknown algorithm; {meant}there are {', '.join(sorted(ALGORITHMS))}")
        return value

    @model_validator(mode="after")
    def _goes_together(self) -> "SweepSpec":
        if self.search.optuna is not None:
            grids = [name for name, domain in self.sweep.items() if domain.kind == "grid"]
            if grids:
                raise ValueError(f"optuna draws values; write choice, not grid, for {grids[0]}")
        if self.scheduler is not None and self.scheduler.pbt is not None:
            unknown = [name for name in self.scheduler.pbt.mutate if name not in self.sweep]
            if unknown:
                raise ValueError(f"scheduler.pbt.mutate: {unknown[0]} does not vary in sweep")
        if self.concurrency != "auto" and self.concurrency < 1:
            raise ValueError("concurrency is auto, or a number from 1")
        return self


@dataclass(frozen=True)
class Sweep:
    """A sweep that was read.

    Attributes:
        spec: what it says.
        text: of the file.
        name: of the file, for messages.
        document: its values and lines.
    """

    spec: SweepSpec
    text: str
    name: str
    document: Document

    @property
    def base(self) -> dict[str, Any]:
        """Settings of all trials."""
        env = {} if self.spec.env is None else {"env": self.spec.env}
        stop = {"stop": self.spec.stop} if self.spec.stop else {}
        return {**self.spec.base, **env, **stop, "reporting.tensorboard": False}

    def check(self) -> Any:
        """Refuse settings that no trial can run with, before anything starts.

        Every combination of the grids is built, with one draw of each other setting.

        Returns:
            The configuration of one of them.

        Raises:
            ConfigError: everything that is wrong, with file:line.
        """
        grids = {k: d.grid for k, d in self.spec.sweep.items() if d.grid is not None}
        drawn = {k: _drawn(d) for k, d in self.spec.sweep.items() if d.grid is None}
        problems: dict[str, Problem] = {}
        config = None
        for values in itertools.islice(itertools.product(*grids.values()), _MAX_CHECKED):
            trial = {**drawn, **dict(zip(grids, values, strict=True))}
            try:
                config = build_config(self.spec.algo, [self._layer(), self._varied(trial)])
            except ConfigError as error:
                problems |= {str(problem): problem for problem in error.problems}
        if problems:
            raise ConfigError(*problems.values())
        return config

    def _layer(self) -> Layer:
        lines = self.document.lines
        own = {k.removeprefix("base."): v for k, v in lines.items() if k.startswith("base.")}
        stop = {k: v for k, v in lines.items() if k == "env" or k.split(".")[0] == "stop"}
        return Layer(self.name, self.base, {**own, **stop})

    def _varied(self, trial: Mapping[str, Any]) -> Layer:
        lines = {key: self.document.lines[f"sweep.{key}"] for key in trial}
        return Layer(self.name, trial, lines)


def load_sweep(source: str | Path) -> Sweep:
    """Read a sweep's file.

    Raises:
        ConfigError: everything that is wrong with it, with file:line.
    """
    document, text, name = read_document(source)
    for key, value in (document.values.get("sweep") or {}).items():
        if isinstance(value, dict) and "grid_search" in value:
            where = place(document, ("sweep", key), name=name)
            raise ConfigError(Problem(where, "RLlib's name", "write {grid: [...]}"))
    return Sweep(validated(SweepSpec, document, name=name, meant=_MEANT), text, name, document)


def _drawn(domain: Domain) -> Any:
    """One value of a domain."""
    value = getattr(domain, domain.kind)
    if domain.kind == "choice":
        return random.Random(0).choice(value)
    if domain.kind in ("randint", "lograndint"):
        return value[0]
    if domain.kind == "normal":
        return value[0]
    return (value[0] * value[1]) ** 0.5 if domain.kind == "loguniform" else sum(value[:2]) / 2
