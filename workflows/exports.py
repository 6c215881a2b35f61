"""`millrace export`: episodes of the lake as other tools' files."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import click

from workflows.conditions import condition
from workflows.exits import BAD_INPUT, Failure
from workflows.logs import verbosity_options
from workflows.options import json_option, lake_storage_option, runs_option

if TYPE_CHECKING:
    from pathlib import Path

    from offline.export_episodes import EpisodeQuery
    from offline.exporting import ExportReport, Write

F = TypeVar("F", bound=Callable[..., Any])


@click.group("export", short_help="Export episodes, or a policy, as other tools' files.")
def export_data() -> None:
    """Export whole episodes of the lake into a folder, or a policy into a file."""


def _export_options(command: F) -> F:
    options = (
        click.argument("folder", metavar="FOLDER"),
        lake_storage_option,
        click.option("--run", "runs", metavar="RUN", multiple=True, help="Of a run. Repeatable."),
        click.option(
            "--where",
            metavar="CONDITION",
            multiple=True,
            help="On a column of `episodes`: 'return >= 400'. Repeatable; all have to hold.",
        ),
        click.option(
            "--version",
            "versions",
            metavar="TABLE=N",
            multiple=True,
            help="Of steps or episodes, instead of the newest. Repeatable.",
        ),
        click.option(
            "--episodes", type=click.IntRange(min=1), metavar="N", help="At most so many."
        ),
        click.option("--overwrite", is_flag=True, help="Replace an earlier export."),
        json_option,
        verbosity_options,
    )
    for option in reversed(options):
        command = option(command)
    return command


@export_data.command(short_help="A Minari 0.5 dataset.")
@click.option(
    "--dataset-id", metavar="ID", help="As Minari calls it; the folder's name and -v0 by default."
)
@click.option("--env", metavar="ID", help="Gymnasium id, noted as the dataset's environment.")
@_export_options
def minari(**given: Any) -> None:
    """Export to FOLDER as a Minari dataset in its arrow layout."""
    from offline.export_minari import write_minari

    write = partial(write_minari, dataset_id=_dataset_id(given), env_spec=_env_spec(given["env"]))
    _run("minari", write, given)


@export_data.command(short_help="RLlib's JSON.")
@_export_options
def rllib(**given: Any) -> None:
    """Export to FOLDER as JSON lines of RLlib's SampleBatches, one for each episode."""
    from offline.export_rllib import write_rllib

    _run("rllib", write_rllib, given)


@export_data.command(short_help="Parquet, one row a step.")
@_export_options
def parquet(**given: Any) -> None:
    """Export to FOLDER as parquet with one row for each step."""
    from offline.export_tabular import write_parquet

    _run("parquet", write_parquet, given)


@export_data.command(short_help="CSV, one line a step.")
@_export_options
def csv(**given: Any) -> None:
    """Export to FOLDER as CSV with one line for each step and a column for each number."""
    from offline.export_tabular import write_csv

    _run("csv", write_csv, given)


@export_data.command(short_help="A checkpoint's policy, for torch.export or ONNX.")
@click.argument("checkpoint")
@click.argument("file", metavar="FILE.pt2|FILE.onnx")
@runs_option
@json_option
@verbosity_options
def policy(*, checkpoint: str, file: str, storage: "Path | None", as_json: bool) -> None:
    """Export the policy of CHECKPOINT (folder, run id, or address) to FILE, connectors within.

    The file needs neither Millrace nor Ray. It is compared with the policy before it gets its
    name. `pip install 'millrace[onnx]'` for ONNX.
    """
    from pipelines.serving import ExportError, export_policy
    from workflows.output import json_line
    from workflows.runs import locate

    located = locate(checkpoint, storage)
    for reason in located.skipped:
        click.echo(f"warning: {reason}", err=True)
    try:
        about = export_policy(located.path, file)
    except ExportError as error:
        raise Failure(f"Error: {error}", code=BAD_INPUT) from error
    if as_json:
        click.echo(json_line({"path": file, **about}))
        return
    click.echo(f"policy     {file}")
    click.echo(f"checkpoint {about['checkpoint']}")
    click.echo(f"inputs     {', '.join(about['inputs'])}")
    click.echo(f"outputs    {', '.join(about['outputs'])}")


def _run(format_: str, write: "Write", given: Mapping[str, Any]) -> None:
    from offline.exporting import export_episodes
    from offline.lake import Lake
    from workflows.output import json_line

    report = export_episodes(
        Lake(given["storage"]),
        _query(given),
        given["folder"],
        write,
        format_=format_,
        overwrite=given["overwrite"],
    )
    click.echo(json_line(report.to_json()) if given["as_json"] else text_of(report))


def _query(given: Mapping[str, Any]) -> "EpisodeQuery":
    from offline.export_episodes import EpisodeQuery
    from offline.schemas import EPISODES

    return EpisodeQuery(
        runs=given["runs"],
        where=tuple(condition(text, EPISODES.schema) for text in given["where"]),
        versions=dict(_version(text) for text in given["versions"]),
        limit=given["episodes"],
    )


def _version(text: str) -> tuple[str, int]:
    table, separator, number = text.partition("=")
    if not separator or not number.isdecimal():
        raise click.BadParameter(f"--version {text!r}: expected TABLE=N, as steps=12")
    return table, int(number)


def _dataset_id(given: Mapping[str, Any]) -> str:
    from pathlib import Path

    name = given["dataset_id"]
    if name is None:
        stem = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(given["folder"]).name).strip("-") or "export"
        return stem if re.search(r"-v\d+$", stem) else f"{stem}-v0"
    if not re.fullmatch(r"([\w-]+/)*[\w-]+(-v\d+)?", name):
        raise click.BadParameter(f"--dataset-id {name!r}: expected (namespace/)name(-v0)")
    return str(name)


def _env_spec(env: str | None) -> str | None:
    """The registered spec as JSON; the environment itself is not made."""
    if env is None:
        return None
    import gymnasium as gym

    try:
        return str(gym.spec(env).to_json())
    except (gym.error.Error, TypeError) as error:
        raise click.BadParameter(f"--env {env}: {error}") from error


def text_of(report: "ExportReport") -> str:
    """A report in lines, safe for a terminal."""
    from workflows.output import safe_text

    lines = [
        f"export     {report.folder} ({report.format})",
        f"episodes   {report.episodes:,}",
        f"rows       {report.rows:,}",
        f"files      {len(report.files):,}",
    ]
    if report.incomplete:
        lines.append(f"left out   {report.incomplete:,} episodes whose steps are not all there")
    lines += [f"note       {note}" for note in report.notes]
    return safe_text("\n".join(lines))
