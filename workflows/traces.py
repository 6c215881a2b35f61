"""`millrace traces`: list, show, export and film the episodes that runs logged."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workflows.logs import verbosity_options
from workflows.options import json_option, lake_storage_option

if TYPE_CHECKING:
    from offline.export_episodes import EpisodeQuery
    from offline.exporting import Write
    from offline.lake import Lake
    from offline.storage import Storage
_KINDS = ("train", "evaluation", "import")


def open_lake(storage: "Storage") -> "Lake":
    """The lake of --storage."""
    from offline.lake import Lake  # imports pyarrow

    return Lake(storage)


@click.group(short_help="List, show, export and film logged episodes.")
def traces() -> None:
    """The episodes that runs logged into the lake of --storage."""


@traces.command("list", short_help="Episodes, the latest first.")
@click.option("--run", metavar="RUN", help="Of this run only.")
@click.option(
    "--sort",
    type=click.Choice(["return", "length", "ended_at"]),
    default="ended_at",
    show_default=True,
    help="The greatest first.",
)
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True)
@click.option("--aborted", is_flag=True, help="Only those that a failure or the run's end cut.")
@click.option("--kind", type=click.Choice(_KINDS), help="Only those.")
@lake_storage_option
@json_option
@verbosity_options
def list_(*, run: str | None, storage: "Storage", as_json: bool, **chosen: Any) -> None:
    """List episodes with return, length, how they ended, and the policy versions that acted."""
    from offline.traces import list_episodes
    from workflows.output import json_line
    from workflows.trace_tables import episode_json, episode_lines

    found = list_episodes(open_lake(storage), run_id=run, **chosen)
    if as_json:
        for row in found:
            click.echo(json_line(episode_json(row)))
        return
    for line in episode_lines(found):
        click.echo(line)


def _plot_file(_: click.Context, __: click.Parameter, value: str | None) -> Path | None:
    return None if value is None else new_file(value, suffix=".html")


def _video_file(_: click.Context, __: click.Parameter, value: str) -> Path:
    return new_file(value, suffix=".mp4")


def new_file(value: str, *, suffix: str) -> Path:
    """The path of a file that is to be written.

    Raises:
        click.BadParameter: it has another suffix, exists, or lies where nothing can be written.
    """
    from workflows.options import storage_problem

    if "\0" in value:
        raise click.BadParameter("a path has no NUL in it")
    path = Path(value).expanduser().absolute()
    if path.suffix.lower() != suffix:
        raise click.BadParameter(f"{path.name} does not end in {suffix}")
    if path.is_symlink() or path.exists():
        raise click.BadParameter(f"{path} exists already; choose another name")
    if problem := storage_problem(path.parent):
        raise click.BadParameter(problem)
    return path


@traces.command(short_help="An episode's steps, as a table and drawn.")
@click.argument("episode")
@click.option("--run", metavar="RUN", help="Whose, where several runs have such an id.")
@click.option("--agent", metavar="AGENT", help="Whose steps, where several agents acted.")
@click.option("--rows", type=click.IntRange(min=0), default=20, show_default=True)
@click.option("--all", "every", is_flag=True, help="All rows.")
@click.option("--plot", metavar="FILE.html", callback=_plot_file, help="Write a page with plots.")
@lake_storage_option
@json_option
@verbosity_options
def show(
    *,
    episode: str,
    run: str | None,
    agent: str | None,
    rows: int,
    every: bool,
    plot: Path | None,
    storage: "Storage",
    as_json: bool,
) -> None:
    """Show EPISODE: its id, or the beginning of one if no other begins so.

    The observations of a Dict and frames are shown by shape. With --plot, a page that opens in
    any browser without a network.
    """
    from offline.traces import find_episode, read_trace
    from workflows.output import json_line
    from workflows.reports.page import write_page
    from workflows.reports.trace_page import trace_report
    from workflows.trace_tables import episode_json, shown_lines, step_records

    lake = open_lake(storage)
    trace = read_trace(lake, find_episode(lake, episode, run_id=run), agent_id=agent)
    count = len(trace) if every else min(rows, len(trace))
    if plot is not None:
        write_page(trace_report(trace, storage=storage.uri), plot)
    if as_json:
        record = {"episode": episode_json(trace.episode), "steps": list(step_records(trace, count))}
        click.echo(json_line(record | ({} if plot is None else {"plot": str(plot)})))
        return
    for line in shown_lines(trace, count, ascii_only=not _shows_blocks()):
        click.echo(line)
    if plot is not None:
        click.echo(f"plot        {plot}")


def _shows_blocks() -> bool:
    """Whether stdout's encoding has the blocks of a drawing."""
    try:
        "▁█".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


@traces.command(short_help="Episodes as files of RLlib's or as parquet.")
@click.argument("episodes", nargs=-1)
@click.option("--run", metavar="RUN", help="All episodes of this run, or whose the EPISODES are.")
@click.option("--format", "format_", type=click.Choice(["rllib", "parquet"]), required=True)
@click.option("--output", metavar="DIR", required=True, help="A new or empty folder.")
@lake_storage_option
@json_option
@verbosity_options
def export(
    *,
    episodes: tuple[str, ...],
    run: str | None,
    format_: str,
    output: str,
    storage: "Storage",
    as_json: bool,
) -> None:
    """Export EPISODES, by id or the beginning of one, or all of --run.

    `millrace export` has more formats, and chooses episodes by conditions.
    """
    from offline.export_rllib import write_rllib
    from offline.export_tabular import write_parquet
    from offline.exporting import export_episodes
    from workflows.exports import text_of
    from workflows.output import json_line

    if not episodes and run is None:
        raise click.UsageError("give EPISODES, or --run for all of a run")
    lake = open_lake(storage)
    write: Write = write_rllib if format_ == "rllib" else write_parquet
    query = episode_query(lake, episodes, run)
    report = export_episodes(lake, query, output, write, format_=format_)
    click.echo(json_line(report.to_json()) if as_json else text_of(report))


def episode_query(lake: "Lake", given: tuple[str, ...], run: str | None) -> "EpisodeQuery":
    """Episodes by id; all of a run when there is none.

    Raises:
        LakeError: an id is of no episode, or of several.
    """
    from offline.export_episodes import EpisodeQuery
    from offline.traces import find_episode
    from rl_ops import columns as c

    if not given:
        return EpisodeQuery(runs=() if run is None else (run,))
    found = [find_episode(lake, name, run_id=run) for name in given]
    runs = dict.fromkeys(row.run_id for row in found)
    ids = list(dict.fromkeys(row.episode_id for row in found))
    return EpisodeQuery(runs=tuple(runs), where=((c.EPISODE_ID, "in", ids),))


@traces.command(short_help="Write a video of an episode, by replaying it.")
@click.argument("episode")
@click.option("--run", metavar="RUN", help="Whose, where several runs have such an id.")
@click.option("--output", metavar="FILE.mp4", required=True, callback=_video_file)
@lake_storage_option
@json_option
@verbosity_options
def video(
    *, episode: str, run: str | None, output: Path, storage: "Storage", as_json: bool
) -> None:
    """Film EPISODE: its environments are made again, seeded as they were, and do it all again.

    Each observation has to be the one that was logged, bit for bit. That takes an environment
    whose randomness comes from its seed, and traces of every step since the episode's rollout
    worker started; otherwise the command fails at the first difference.
    """
    from offline.traces import find_episode
    from pipelines.trace_replay import record_episode
    from workflows.output import json_line, stdout_alone

    lake = open_lake(storage)
    row = find_episode(lake, episode, run_id=run)
    with stdout_alone():
        made = record_episode(lake, row, output)
    if as_json:
        record = {"episode": row.episode_id, "path": str(made.path)}
        click.echo(json_line(record | {"frames": made.frames, "fps": made.fps}))
        return
    click.echo(f"{made.path}: {made.frames:,} frames, {made.fps} a second")
