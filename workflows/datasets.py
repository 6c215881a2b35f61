"""Behaviour datasets: train a policy, keep it half-way and at its end, and collect by each."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import click
from pydantic import Field

from pipelines.config import AlgorithmConfig
from pipelines.config_base import Group
from pipelines.config_errors import ConfigError, Problem
from pipelines.config_files import load_config_file
from pipelines.loading import Layer, build_config, file_layer
from pipelines.run_folder import check_run_id
from workflows.examples import DATASETS
from workflows.exits import BAD_INPUT, FAILED, Failure

if TYPE_CHECKING:
    from offline.storage import Storage
    from pipelines.behaviour import Behaviour
    from pipelines.collecting import Collected

RANDOM: Final = "random"
_EXTRAS: Final = {
    **dict.fromkeys(("LunarLander", "BipedalWalker", "CarRacing"), ("Box2D", "box2d")),
    **dict.fromkeys(
        ("Hopper", "HalfCheetah", "Walker2d", "Ant", "Humanoid", "Swimmer", "Reacher"),
        ("mujoco", "mujoco"),
    ),
}
"""Gymnasium's environments that need more → the module, and our extra that has it."""


class LevelConfig(Group):
    """One policy of a dataset."""

    until: dict[str, float] | None = None
    """Taken from training at the first result of which all of these numbers are reached; None is
    the policy at the end, or, of level random, none."""


class DatasetConfig(Group):
    """A file of kind dataset."""

    kind: Literal["dataset"]
    """What tells it from a configuration."""
    example: str | None = None
    """Name of the tuned example that is trained."""
    train: dict[str, Any] = Field(default_factory=dict)
    """Settings of the training over the example's, or all of them."""
    rows: int = Field(default=100_000, ge=1)
    """Of each level, at least."""
    num_envs: int = Field(default=8, ge=1)
    """That step together while rows are collected."""
    levels: dict[str, LevelConfig]
    """In the order in which they are collected."""


@dataclass(frozen=True)
class Dataset:
    """A dataset that can be made.

    Attributes:
        name: of the file, without its prefix: part of the runs' names.
        description: what the file is for.
        measured: what a run of it gave.
        config: what the file says.
        training: the configuration that is trained.
    """

    name: str
    description: str
    measured: Mapping[str, Any]
    config: DatasetConfig
    training: AlgorithmConfig

    def run_id(self, level: str) -> str:
        """Under which the lake has a level."""
        return f"{self.name}-{level}"


def load_dataset(path: Path, *, seed: int | None = None) -> Dataset:
    """Read a file of kind dataset.

    Args:
        path: of the file, beside which its example is.
        seed: of training and collecting, instead of the files'.

    Raises:
        ConfigError: it is none; or what it trains is no configuration.
    """
    file = load_config_file(path)
    if file.values.get("kind") != "dataset":
        raise ConfigError(Problem(f"{file.path}: kind", "is not dataset", "write kind: dataset"))
    config = DatasetConfig.model_validate(dict(file.values))
    layers = [Layer(file.path, config.train)]
    if config.example is not None:
        layers.insert(0, file_layer(load_config_file(path.with_name(f"{config.example}.yaml"))))
    if seed is not None:
        layers.append(Layer("--seed", {"seed": seed}))
    algo = next(layer.values["algo"] for layer in layers if "algo" in layer.values)
    training = build_config(algo, layers)
    name = path.stem.removeprefix(DATASETS)
    return Dataset(name, file.description, file.measured, config, training)


def require_extra(env_id: str) -> None:
    """Refuse an environment whose package is not installed.

    Raises:
        Failure: names the extra that has it.
    """
    module, extra = _EXTRAS.get(env_id.partition("-")[0], (None, None))
    if module is not None and importlib.util.find_spec(module) is None:
        message = f"Error: {env_id} needs {module}: pip install 'millrace[{extra}]'"
        raise Failure(message, code=BAD_INPUT)


@dataclass(frozen=True)
class Making:
    """One making of a dataset.

    Attributes:
        dataset: which.
        storage: folder of runs, with the lake in it.
        rows: of each level, at least.
        levels: those wanted.
    """

    dataset: Dataset
    storage: Path
    rows: int
    levels: tuple[str, ...]

    def run(self) -> "list[Collected]":
        """Train what is not there yet, and collect the levels in turn.

        A making that was killed goes on: policies that were kept are not trained again, and rows
        that are committed are not collected again.

        Raises:
            Failure: training did not reach a level; or a signal stopped it.
            ConfigError: a level that the dataset does not have.
        """
        known = self.dataset.config.levels
        for level in self.levels:
            if level not in known:
                what = f"{self.dataset.name} has no level {level!r}"
                raise ConfigError(Problem("--levels", what, f"there are {', '.join(known)}"))
        require_extra(self.dataset.training.env.id)
        wanted = set(self.levels) & set(self._trained)
        if not all(self._policy(level).exists() for level in wanted):
            self._train()
        return [self._collect(level) for level in self.levels]

    @property
    def _trained(self) -> list[str]:
        """Levels that take training."""
        return [level for level in self.dataset.config.levels if level != RANDOM]

    def _policy(self, level: str) -> Path:
        return self.storage / f"{self.dataset.name}-policies" / level

    def _train(self) -> None:
        # Imports torch, which bad options must not wait for.
        from pipelines.pipeline import Pipeline

        levels = self.dataset.config.levels
        waiting = {k: v.until for k in self._trained if (v := levels[k]).until is not None}
        config = self.dataset.training
        run_id = self._free_name()
        click.echo(f"training   {config.algo} on {config.env.id}: {run_id}", err=True)
        last: Mapping[str, Any] = {}
        with Pipeline(config, storage=self.storage, name=run_id, debug=True) as pipeline:
            for last in pipeline.stream():
                for level in [k for k, until in waiting.items() if _reached(last, until)]:
                    del waiting[level]
                    self._keep(pipeline, level, last)
            if waiting:
                raise Failure(self._missed(waiting, last), code=FAILED)
            for level in self._trained:
                if levels[level].until is None:
                    self._keep(pipeline, level, last)

    def _keep(self, pipeline: Any, level: str, result: Mapping[str, Any]) -> None:
        """Keep the policy of now, apart from the run's own checkpoints, which may be pruned."""
        if self._policy(level).exists():
            return
        pipeline.save(self._policy(level))
        click.echo(f"{level:<11}kept after {result['env_steps']:,} env steps", err=True)

    def _missed(self, waiting: Mapping[str, Any], last: Mapping[str, Any]) -> str:
        wanted = "; ".join(f"{level} waits for {until}" for level, until in waiting.items())
        reached = {key: last.get(key) for until in waiting.values() for key in until}
        return f"Error: training ended at {reached}, but {wanted}. Give another seed"

    def _free_name(self) -> str:
        """A training that was killed is begun anew, and its rows stay under their own name."""
        name, number = self.dataset.run_id("train"), 1
        while (self.storage / name).exists():
            number += 1
            name = self.dataset.run_id(f"train{number}")
        return check_run_id(name)

    def _collect(self, level: str) -> "Collected":
        from pipelines.collecting import Collection
        from workflows.collect import collected

        wanted = Collection(
            self.dataset.run_id(level),
            self._behaviour(level),
            rows=self.rows,
            seed=self.dataset.training.seed,
            num_envs=self.dataset.config.num_envs,
            level=level,
        )
        click.echo(f"collecting {wanted.run_id}", err=True)
        found, exit_code = collected(self._lake, wanted)
        if exit_code:
            raise click.exceptions.Exit(exit_code)
        return found

    def _behaviour(self, level: str) -> "Behaviour":
        from pipelines.behaviour import Behaviour
        from pipelines.checkpoint import Checkpoint
        from pipelines.specs import env_spec
        from pipelines.training import plan_for

        config = self.dataset.training
        env = env_spec(config)
        if level == RANDOM:
            # In the trained policy's action space: a learner takes rows of one space only.
            return Behaviour.uniform(env, like=plan_for(config, run_id=self.dataset.name).policy)
        checkpoint = Checkpoint(self._policy(level))
        if checkpoint.config["seed"] != config.seed:
            what = f"{checkpoint.path} was trained with seed {checkpoint.config['seed']}"
            raise ConfigError(Problem("--seed", what, "give that one, or another --storage"))
        return Behaviour.of_checkpoint(checkpoint, env)

    @property
    def _lake(self) -> "Storage":
        from pipelines.tracing import lake_of

        return lake_of(self.dataset.training.trace, self.storage)


def _reached(result: Mapping[str, Any], until: Mapping[str, float]) -> bool:
    numbers = [(result.get(key), bound) for key, bound in until.items()]
    return all(value is not None and value >= bound for value, bound in numbers)
