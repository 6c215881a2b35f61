"""`millrace evaluate`: run a checkpoint's policy for whole episodes, without Ray."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from workflows.exits import BAD_INPUT, Failure, is_ours
from workflows.logs import verbosity_options
from workflows.options import json_option, runs_option, storage_problem

if TYPE_CHECKING:
    from pipelines.checkpoint import Checkpoint
    from pipelines.evaluation import Evaluation, EvaluationTask
    from rl_ops.envs import EnvSpec

NUM_ENVS: Final = 8
"""Side by side, unless said otherwise."""


def _video_dir(_: click.Context, __: click.Parameter, value: str | None) -> Path | None:
    if value is None:
        return None
    path = Path(value).expanduser().absolute()
    if problem := storage_problem(path):
        raise click.BadParameter(problem)
    return path


@click.command(short_help="Run a checkpoint's policy for whole episodes, without Ray.")
@click.argument("checkpoint")
@click.option("--episodes", type=click.IntRange(min=1), default=10, show_default=True)
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True)
@click.option("--explore", is_flag=True, help="Sample actions instead of taking the most likely.")
@click.option("--num-envs", type=click.IntRange(min=1), default=NUM_ENVS, show_default=True)
@click.option(
    "--id",
    "name",
    metavar="NAME",
    help="Of the evaluation in the lake, which has it once.  [default: a new one]",
)
@click.option("--no-log", is_flag=True, help="Do not add the episodes to the run's lake.")
@click.option("--video-dir", metavar="D", callback=_video_dir, help="Write a video per episode.")
@runs_option
@json_option
@verbosity_options
@click.pass_context
def evaluate(ctx: click.Context, /, **given: Any) -> None:
    """Evaluate CHECKPOINT: its folder, a run's folder, or a run id, of which the latest is taken.

    Prints mean ± standard deviation, range and lengths of the returns; every episode with -v.
    """
    # Import numpy, pyarrow and gymnasium; torch only where the network is no MLP.
    from pipelines.checkpoint import Checkpoint
    from pipelines.remote import address_of
    from rl_ops.policy import Policy
    from workflows.output import json_line, stdout_alone
    from workflows.runs import locate

    located = locate(given["checkpoint"], given["storage"])
    for reason in located.skipped:
        click.echo(f"warning: {reason}", err=True)
    checkpoint = Checkpoint(located.path)
    options = {name: given[name] for name in ("episodes", "seed", "explore")}
    task, weights = task_of(checkpoint, num_envs=given["num_envs"], **options), checkpoint.weights()
    env = task.env
    with stdout_alone():
        videos = _record(Policy(task.policy, weights), env, given["video_dir"], **options)
        found = task.run(weights)
    logged = None
    if not given["no_log"]:
        logged = log_to_lake(checkpoint, found, task, name=given["name"])
    if given["as_json"]:
        figures = {**found.figures(), "returns": found.returns, "lengths": found.lengths}
        about = {"checkpoint": address_of(located.path), "env": env.id}
        record = {**about, **figures, "videos": videos, "logged": logged}
        click.echo(json_line(record))
        return
    click.echo(f"checkpoint {address_of(located.path)}")
    click.echo(text_of(env.id, found, each=ctx.meta["verbosity"] > 0))
    for video in videos:
        click.echo(f"video      {video}")
    if logged is not None:
        click.echo(f"logged     {logged}")


def task_of(
    checkpoint: "Checkpoint", *, episodes: int, seed: int, explore: bool, num_envs: int = NUM_ENVS
) -> "EvaluationTask":
    """Episodes of a checkpoint's policy in the environment of its configuration."""
    from pipelines.evaluation import EvaluationTask

    return EvaluationTask(
        checkpoint.policy,
        saved_env(checkpoint.config),
        episodes=episodes,
        seed=seed,
        num_envs=num_envs,
        explore=explore,
        version=checkpoint.state["learner"]["version"],
    )


def log_to_lake(
    checkpoint: "Checkpoint",
    found: "Evaluation",
    task: "EvaluationTask",
    *,
    name: str | None = None,
) -> str | None:
    """Add the evaluation to the lake of the checkpoint's run; its id there, None without a lake.

    One of the same `name` that is there already is not added again.
    """
    from offline.errors import LakeError
    from pipelines.evaluation_log import lake_of_checkpoint, log_evaluation

    try:
        storage = lake_of_checkpoint(checkpoint)
        return (
            None if storage is None else log_evaluation(storage, checkpoint, found, task, name=name)
        )
    except LakeError as error:
        # What was asked for is known all the same: the figures.
        click.echo(f"warning: the episodes are not logged: {error}", err=True)
        return None


def saved_env(config: Mapping[str, Any]) -> "EnvSpec":
    """The environment of a saved configuration, without importing its algorithm."""
    from pipelines.config import AlgorithmConfig
    from pipelines.specs import env_spec

    parts = {key: config[key] for key in ("algo", "env", "seed", "faults") if key in config}
    return env_spec(AlgorithmConfig.model_validate(parts))


def text_of(env_id: str, found: "Evaluation", *, each: bool = False) -> str:
    """An evaluation in lines.

    Args:
        env_id: which environment; escaped here.
        found: what came out.
        each: with a line for every episode.
    """
    from pipelines.config_errors import printable
    from workflows.progress import number

    figures = {name: number(value) for name, value in found.figures().items()}
    lines = [
        f"env        {printable(env_id)}",
        f"episodes   {figures['episodes']}",
        f"return     {figures['episode_return_mean']} ± {figures['episode_return_std']} "
        f"({figures['episode_return_min']} to {figures['episode_return_max']})",
        f"length     {figures['episode_length_mean']} "
        f"({min(found.lengths):,} to {max(found.lengths):,})",
    ]
    if each:
        episodes = zip(found.returns, found.lengths, strict=True)
        lines += [f"  {i:>4}  {r:>12.4f}  {n:>8,} steps" for i, (r, n) in enumerate(episodes, 1)]
    return "\n".join(lines)


def _record(policy: Any, env: Any, folder: Path | None, **options: Any) -> list[str]:
    if folder is None:
        return []
    from pipelines.evaluation import record_videos

    try:
        return [str(path) for path in record_videos(policy, env, folder=folder, **options)]
    except ValueError as error:
        if is_ours(error):
            raise
        raise Failure(f"Error: --video-dir: {error}", code=BAD_INPUT) from error
