"""`millrace validate`: is what was logged fit to learn from."""

from typing import TYPE_CHECKING

import click

from workflows.exits import FAILED
from workflows.logs import verbosity_options
from workflows.options import json_option, lake_storage_option

if TYPE_CHECKING:
    from offline.storage import Storage
    from offline.validation import Needs, OnInvalid, ValidationReport

NEEDS = ("logp", "transitions")


@click.command(short_help="Check whether logged steps are fit to learn from.")
@click.option("--version", type=click.IntRange(min=0), metavar="N", help="Of table steps.")
@click.option("--timestamp", metavar="TIME", help="Or as of when: ISO 8601, UTC.")
@click.option(
    "--where",
    metavar="CONDITION",
    multiple=True,
    help="On a column of `steps`: 'run_id == ppo-1'. Repeatable; all have to hold.",
)
@click.option(
    "--needs",
    type=click.Choice(NEEDS),
    multiple=True,
    help="logp: importance weights will be taken. transitions: only single transitions, so that "
    "gaps and late starts do no harm. Repeatable.",
)
@click.option(
    "--on-invalid",
    type=click.Choice(["fail", "skip"]),
    default="fail",
    show_default=True,
    help="What offline training is to do: refuse, or leave out what is wrong.",
)
@lake_storage_option
@json_option
@verbosity_options
def validate(
    *,
    version: int | None,
    timestamp: str | None,
    where: tuple[str, ...],
    needs: tuple[str, ...],
    on_invalid: "OnInvalid",
    storage: "Storage",
    as_json: bool,
) -> None:
    """Count what is wrong with logged steps, by kind, and name the first rows of each.

    Steps twice or missing, episodes that begin late or end unknown, rows after an end, values
    that are no numbers or outside of their space, missing log-probabilities, several spaces.
    Nothing is changed. Exit code 1 when there is a problem under --on-invalid fail, and when
    nothing is left under skip.
    """
    from workflows.output import json_line, safe_text

    report = report_of(
        storage,
        version=version,
        timestamp=timestamp,
        where=where,
        needs=needs_of(needs),
    )
    click.echo(json_line(report.to_json()) if as_json else safe_text(report.text()))
    if not is_accepted(report, on_invalid):
        raise click.exceptions.Exit(FAILED)


def report_of(
    storage: "Storage",
    *,
    version: int | None = None,
    timestamp: str | None = None,
    where: tuple[str, ...] = (),
    needs: "Needs | None" = None,
) -> "ValidationReport":
    """The report on steps of a lake, as a step of a workflow takes it.

    Args:
        storage: of the lake.
        version: of table `steps`; the newest by default.
        timestamp: instead of a version: as of when, ISO 8601.
        where: conditions as --where has them.
        needs: what will be made of the steps.

    Raises:
        click.BadParameter: a condition is none, or both a version and a time are given.
        LakeError: there is no such table, version or column, or a file cannot be read.
    """
    from offline.lake import Lake
    from offline.schemas import STEPS
    from offline.trajectories import DataSpec
    from offline.validation_reading import inspect
    from workflows.conditions import condition

    if version is not None and timestamp is not None:
        raise click.BadParameter("give --version or --timestamp, not both")
    rows = [condition(text, STEPS.schema) for text in where]
    spec = DataSpec(version=version, timestamp=timestamp, where=rows or None)
    return inspect(Lake(storage), spec, needs).report


def needs_of(words: tuple[str, ...]) -> "Needs":
    """What --needs says."""
    from offline.validation import Needs

    return Needs(logp="logp" in words, contiguous="transitions" not in words)


def is_accepted(report: "ValidationReport", on_invalid: "OnInvalid") -> bool:
    """Whether training would go on."""
    return report.usable() and (on_invalid == "skip" or report.is_clean())
