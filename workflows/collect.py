"""`millrace collect`: log a policy's episodes in a lake, for learning and evaluating offline."""

import uuid
from typing import TYPE_CHECKING, Any

import click

from workflows.logs import verbosity_options
from workflows.options import json_option, storage_folder, storage_option
from workflows.signals import GracefulStop

if TYPE_CHECKING:
    from offline.storage import Storage
    from pipelines.behaviour import Behaviour
    from pipelines.collecting import Collected, Collection


def _run_id(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    if value is None:
        return None
    from pipelines.run_folder import check_run_id

    try:
        return check_run_id(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command(short_help="Log episodes of a checkpoint's policy, or of random actions.")
@click.argument("checkpoint", required=False)
@click.option("--random", "is_random", is_flag=True, help="Uniform actions in --env instead.")
@click.option("--env", metavar="ID", help="With --random: Gymnasium id, or module:function.")
@click.option("--rows", type=click.IntRange(min=1), metavar="N", help="Steps, at least.")
@click.option("--episodes", type=click.IntRange(min=1), metavar="N", help="Instead of --rows.")
@click.option("--greedy", is_flag=True, help="The most likely action instead of a sample.")
@click.option(
    "--epsilon",
    type=click.FloatRange(0, 1),
    metavar="X",
    help="A uniform action with probability X; a Q network's others are greedy.",
)
@click.option(
    "--run",
    "run_id",
    metavar="NAME",
    callback=_run_id,
    help="Of the run in the lake; one that was begun goes on. By default one is made up.",
)
@click.option("--level", metavar="NAME", help="What to call the policy, such as medium.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True)
@click.option("--num-envs", type=click.IntRange(min=1), default=8, show_default=True)
@storage_option
@click.option("--lake", metavar="DIR|s3://...", help="The lake.  [default: lake in --storage]")
@json_option
@verbosity_options
def collect(**given: Any) -> None:
    """Log episodes of CHECKPOINT's policy: its folder, a run's folder, or a run id.

    The policy acts as it explores in training: an actor's actions are sampled. Episodes that were
    begun are finished. Called again with the same --run, it goes on where it was.
    """
    _check_options(given)
    # Imports numpy, pyarrow and gymnasium; torch only where the network is no MLP.
    from offline.storage import Storage
    from pipelines.collecting import Collection
    from workflows.output import json_line, stdout_alone

    lake = given["lake"]
    if lake is not None and not lake.strip():
        raise click.BadParameter("the name of a folder is needed", param_hint="--lake")
    storage = Storage.at(lake if lake is not None else storage_folder(given["storage"]) / "lake")
    with stdout_alone():  # environments may print when they are made
        behaviour = _behaviour(given)
    wanted = Collection(
        given["run_id"] or f"collect-{uuid.uuid4().hex[:8]}",
        behaviour,
        **{name: given[name] for name in ("rows", "episodes", "seed", "num_envs", "level")},
    )
    found, exit_code = collected(storage, wanted)
    if given["as_json"]:
        click.echo(json_line(found.figures()))
    else:
        click.echo("\n".join(lines_of(found)))
    if exit_code:
        raise click.exceptions.Exit(exit_code)


def collected(storage: "Storage", wanted: "Collection") -> "tuple[Collected, int]":
    """Collect; what a signal lets finish, and the exit code of that signal or 0."""
    from pipelines.collecting import collect as collect_rows
    from workflows.output import stdout_alone

    with GracefulStop() as stop, stdout_alone():
        stop.hold()
        found = collect_rows(storage, wanted, should_stop=lambda: stop.signal is not None)
        # A signal that came with the last fragment stopped nothing.
        return found, stop.exit_code if found.status == "stopped" else 0


def lines_of(found: "Collected") -> list[str]:
    """What was collected, in lines; the last selects it for offline learning."""
    from workflows.progress import number

    mean, std, low, high = (
        number(value)
        for value in (found.return_mean, found.return_std, found.return_min, found.return_max)
    )
    done = f"{found.rows:,} in {found.episodes:,} episodes, {found.new_rows:,} of them new"
    return [
        f"run        {found.run_id}: {found.status}",
        f"rows       {done}",
        f"return     {mean} ± {std} ({low} to {high})",
        f"lake       {found.lake} (steps version {found.steps_version})",
        f"select     {where_of([found.run_id])}",
    ]


def where_of(run_ids: list[str]) -> str:
    """`offline.where` for the steps of some runs, as JSON."""
    from workflows.output import json_line

    if len(run_ids) == 1:
        return f"offline.where={json_line([['run_id', '=', run_ids[0]]])}"
    return f"offline.where={json_line([['run_id', 'in', run_ids]])}"


def _check_options(given: dict[str, Any]) -> None:
    """Refuse what does not go together, before anything slow is imported."""
    if given["is_random"] == (given["checkpoint"] is not None):
        raise click.UsageError(
            "give either a CHECKPOINT or --random, and not both: millrace collect RUN --rows N, "
            "or millrace collect --random --env ID --rows N"
        )
    if given["is_random"] and given["env"] is None:
        raise click.UsageError("--random needs --env: in which environment?")
    if not given["is_random"] and given["env"] is not None:
        raise click.UsageError("--env goes with --random; a checkpoint acts in its own environment")
    if given["is_random"] and (given["greedy"] or given["epsilon"] is not None):
        raise click.UsageError("--greedy and --epsilon go with a CHECKPOINT, not with --random")
    if (given["rows"] is None) == (given["episodes"] is None):
        raise click.UsageError("give either --rows or --episodes, and not both")


def _behaviour(given: dict[str, Any]) -> "Behaviour":
    from pipelines.behaviour import Behaviour
    from rl_ops.envs import EnvSpec

    if given["is_random"]:
        return Behaviour.uniform(EnvSpec(given["env"]))
    from pipelines.checkpoint import Checkpoint
    from workflows.evaluate import saved_env
    from workflows.runs import locate

    located = locate(given["checkpoint"], given["storage"])
    for reason in located.skipped:
        click.echo(f"warning: {reason}", err=True)
    checkpoint = Checkpoint(located.path)
    return Behaviour.of_checkpoint(
        checkpoint,
        saved_env(checkpoint.config),
        greedy=given["greedy"],
        epsilon=given["epsilon"],
    )
