"""`millrace doctor`: whether this machine can run Millrace, and what to do where it cannot."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from workflows.exits import FAILED
from workflows.logs import verbosity_options
from workflows.options import json_option, refuse_address, storage_folder

if TYPE_CHECKING:
    from workflows.checks import Finding

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command(short_help="Check whether this machine can run Millrace.")
@click.option("--storage", metavar="DIR", help="Where runs are to live.")
@json_option
@verbosity_options
def doctor(*, storage: str | None, as_json: bool) -> None:
    """Check Python, packages, torch, Ray, cores, memory, shared memory, storage and GPU.

    Each line says ok, warn or fail, and what to do. Exit code 1 when something fails.
    """
    from workflows.checks import all_findings  # imports torch and ray while it runs
    from workflows.output import json_line

    if storage is not None:
        refuse_address(storage)
    folder = storage_folder(None if storage is None else Path(storage).expanduser().absolute())
    states = []
    for finding in all_findings(folder):
        states.append(finding.state)
        click.echo(json_line(finding.to_json()) if as_json else line(finding))
    failed, warned = states.count("fail"), states.count("warn")
    if not as_json:
        click.echo(f"\n{len(states)} checks: {failed} failed, {warned} with a warning")
    if failed:
        raise click.exceptions.Exit(FAILED)


def line(finding: "Finding") -> str:
    """A finding as it is printed."""
    state = click.style(f"{finding.state:<5}", fg=_COLOURS[finding.state])
    text = f"{state} {finding.check:<14} {finding.what}"
    return f"{text}\n{'':<21}fix: {finding.fix}" if finding.fix else text
