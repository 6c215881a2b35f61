"""Options that several commands share."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from offline.storage import Storage

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_STORAGE = "~/ray_results"

_NOT_OURS = {
    "--algo": "give the algorithm itself: millrace train ppo --env CartPole-v1",
    "--run": "give the algorithm itself: millrace train ppo --env CartPole-v1",
    "--local-dir": "write --storage DIR",
    "--restore": "write --resume CHECKPOINT",
    "--num-samples": "one command is one run; start it with as many seeds as you want",
    "--experiment-name": "write --name NAME",
    "--ray-num-cpus": "Ray gets what resources.* ask for",
    "--ray-num-gpus": "Ray gets what resources.* ask for",
    "--eager": "torch is always eager; --debug makes breakpoints work",
    "--trace": "write --set learner.compile=true",
}
"""RLlib's options → what to do instead."""


@dataclass(frozen=True)
class TrainRequest:
    """What the command line asks of a run."""

    algo: str | None
    file: str | None
    env: str | None = None
    settings: tuple[str, ...] = ()
    config: str | None = None
    stop: str | None = None
    seed: int | None = None
    storage: Path | None = None
    name: str | None = None
    resume: str | None = None
    ray_address: str | None = None
    debug: bool = False
    as_json: bool = False
    checkpoint_freq: int | None = None
    checkpoint_at_end: bool | None = None


def storage_folder(storage: Path | None) -> Path:
    """The folder of runs."""
    return storage if storage is not None else Path(DEFAULT_STORAGE).expanduser()


def storage_option(command: F) -> F:
    """Add --storage; the command gets a Path, or None for the default."""
    return click.option(
        "--storage",
        metavar="DIR",
        callback=_storage,
        help=f"Where runs live.  [default: {DEFAULT_STORAGE}]",
    )(command)


def runs_option(command: F) -> F:
    """Add --storage; the command gets a Path, which may stand for an address, or None."""
    return click.option(
        "--storage",
        metavar="DIR|s3://...",
        callback=_runs,
        help=f"Where runs live.  [default: {DEFAULT_STORAGE}]",
    )(command)


def lake_storage_option(command: F) -> F:
    """Add --storage; the command gets the `offline.storage.Storage` of the lake there."""
    return click.option(
        "--storage",
        metavar="DIR|s3://...",
        callback=_lake,
        help=f"Where the lake is: its folder `lake`.  [default: {DEFAULT_STORAGE}]",
    )(command)


def json_option(command: F) -> F:
    """Add --json; the command gets `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Figures as JSON on stdout.")(
        command
    )


def config_options(command: F) -> F:
    """Add what says which configuration: --env, --set, --config."""
    env = click.option("--env", metavar="ID", help="Gymnasium id, or module:function.")
    settings = click.option(
        "--set",
        "settings",
        metavar="KEY=VALUE",
        multiple=True,
        help="A setting by its dotted path: --set optim.lr=1e-3. Repeatable; wins over --config.",
    )
    config = click.option("--config", metavar="JSON", help="Settings as a JSON object.")
    return env(config(settings(command)))


def train_options(command: F) -> F:
    """Add everything that `train` and `example run` take, in the order of --help."""
    options = (
        config_options,
        click.option("--stop", metavar="JSON", help=_STOP_HELP),
        click.option(
            "--seed", type=click.IntRange(0, 2**31 - 1), metavar="N", help="Of all that is random."
        ),
        runs_option,
        click.option(
            "--name", metavar="N", callback=_name, help="Of the run; by default one is made up."
        ),
        click.option("--resume", metavar="RUN", help=_RESUME_HELP),
        click.option("--ray-address", metavar="ADDRESS", help="Of a cluster, or auto."),
        click.option("--debug", is_flag=True, help="One process, no Ray: breakpoints work."),
        click.option(
            "--checkpoint-freq",
            type=click.IntRange(min=0),
            metavar="N",
            help="A checkpoint every N iterations; 0 none but the last.",
        ),
        click.option(
            "--checkpoint-at-end/--no-checkpoint-at-end",
            default=None,
            help="Whether to write the last one.  [default: as configured: yes]",
        ),
        click.option(
            "--framework",
            metavar="torch",
            expose_value=False,
            callback=_framework,
            help="torch is all there is.",
        ),
        json_option,
        *(_not_ours(name, advice) for name, advice in _NOT_OURS.items()),
    )
    for option in reversed(options):
        command = option(command)
    return command


_STOP_HELP = (
    "When to stop, instead of the configured criteria: training_iteration, env_steps, "
    "episode_return_mean, time_s, or RLlib's names. The first that holds ends the run."
)
_RESUME_HELP = (
    "Go on with a run of --storage, from its latest whole checkpoint, or with a CHECKPOINT."
)


def _lake(_: click.Context, __: click.Parameter, value: str | None) -> "Storage":
    # Imports pyarrow, which --help must not wait for.
    from offline.errors import LakeError
    from offline.storage import Storage

    place = DEFAULT_STORAGE if value is None else value
    if not place.strip():
        raise click.BadParameter("the name of a folder is needed, or s3://bucket/prefix")
    try:
        Storage.at(place)  # s3:// alone would become the name of a folder
        return Storage.at(f"{place}/lake")
    except LakeError as error:
        raise click.BadParameter(str(error)) from None


def _runs(ctx: click.Context, option: click.Parameter, value: str | None) -> Path | None:
    from pipelines.address import is_address

    if value is None or not is_address(value):
        return _storage(ctx, option, value)
    # Imports pyarrow, which a folder needs later.
    from offline.errors import LakeError
    from pipelines.remote import folder_for

    try:
        return folder_for(value)
    except LakeError as error:
        raise click.BadParameter(str(error)) from None


def _storage(_: click.Context, __: click.Parameter, value: str | None) -> Path | None:
    if value is None:
        return None
    refuse_address(value)
    if not value.strip() or "\0" in value:
        raise click.BadParameter("the name of a folder is needed")
    path = Path(value).expanduser().absolute()
    problem = storage_problem(path)
    if problem:
        raise click.BadParameter(problem)
    return path


def refuse_address(storage: str) -> None:
    """Refuse an address where runs are to live.

    Raises:
        click.BadParameter: it is one; says what to do.
    """
    scheme, separator, _ = storage.partition("://")
    if separator:
        raise click.BadParameter(
            f"this command needs a folder of this machine, and {scheme}:// is none",
            param_hint="--storage",
        )


def storage_problem(path: Path) -> str:
    """Why runs cannot be written below `path`; empty when they can. Creates nothing."""
    existing = path
    while not os.path.lexists(existing) and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        return f"{existing} is not a folder"
    if not os.access(existing, os.W_OK | os.X_OK):
        return f"{existing} is not writable for this user"
    if os.statvfs(existing).f_flag & os.ST_RDONLY:
        return f"{existing} is on a read-only file system"
    return ""


def _name(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    if value is None:
        return None
    from pipelines.run_folder import check_run_id

    try:
        return check_run_id(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _framework(_: click.Context, __: click.Parameter, value: str | None) -> None:
    if value not in (None, "torch"):
        raise click.BadParameter(f"Millrace runs on torch only, got {value!r}; leave it out")


def _not_ours(name: str, advice: str) -> Callable[[F], F]:
    def refuse(_: click.Context, __: click.Parameter, value: str | None) -> None:
        if value is not None:
            raise click.UsageError(f"{name} is RLlib's: {advice}")

    return click.option(
        name,
        f"rllib_{name.strip('-').replace('-', '_')}",
        hidden=True,
        expose_value=False,
        callback=refuse,
        is_flag=False,
        flag_value="",  # a flag there comes with nothing behind it
    )
