"""`millrace sql`: a SELECT over the lake, answered as a table, CSV, JSON lines or parquet."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

import click

from workflows.exits import BAD_INPUT, Failure
from workflows.logs import verbosity_options
from workflows.options import lake_storage_option

if TYPE_CHECKING:
    import pyarrow as pa

_SUFFIXES: Final = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


Writer = Callable[["pa.Table", TextIO], None]


def _versions(_: click.Context, __: click.Parameter, value: tuple[str, ...]) -> dict[str, int]:
    found: dict[str, int] = {}
    for given in value:
        table, _equals, number = given.partition("=")
        if not table or not number.isdecimal():
            raise click.BadParameter(f"{given!r} is not TABLE=N, as steps=12")
        if table in found:
            raise click.BadParameter(f"{table} has two versions; give one")
        found[table] = int(number)
    return found


def _limit(_: click.Context, __: click.Parameter, value: float) -> float:
    if not value > 0:
        raise click.BadParameter("it must be above 0 seconds")
    return value


@click.command(short_help="Ask the lake in SQL, also while a run writes to it.")
@click.argument("query")
@click.option(
    "--version",
    "versions",
    metavar="TABLE=N",
    multiple=True,
    callback=_versions,
    help="Read a table as it was at a version. Repeatable.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "json", "parquet"]),
    help="json is one object per line.  [default: by the suffix of --output, else table]",
)
@click.option("--output", metavar="FILE", help="Write there instead of to stdout.")
@click.option(
    "--limit-rows",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    metavar="N",
    help="Of a table that is shown; other formats have all rows.",
)
@click.option(
    "--memory",
    default="1GiB",
    show_default=True,
    metavar="SIZE",
    help="Of the engine before it spills to disk.",
)
@click.option(
    "--time-limit",
    type=float,
    default=60.0,
    show_default=True,
    metavar="S",
    callback=_limit,
    help="Seconds until the query is interrupted.",
)
@lake_storage_option
@verbosity_options
def sql(**given: Any) -> None:
    """Answer QUERY, one SELECT over the tables and views of docs/sql.md; - reads it from stdin.

    A query can read the lake and nothing else. It sees the newest commits of a run that goes on.
    """
    # Imports pyarrow; DuckDB when the query runs.
    from offline.lake import Lake

    output = None if given["output"] is None else Path(given["output"]).expanduser()
    form = _format(given["form"], output)
    query = sys.stdin.read() if given["query"] == "-" else given["query"]
    found = Lake(given["storage"]).sql(
        query,
        versions=given["versions"],
        memory=given["memory"],
        time_limit_s=given["time_limit"],
    )
    if output is not None:
        _save(found, output, form)
        click.echo(f"{found.num_rows:,} rows in {output}", err=True)
    elif form == "table":
        _show(found, given["limit_rows"])
    else:
        _TEXTS[form](found, sys.stdout)


def _format(form: str | None, output: Path | None) -> str:
    if output is None:
        if form == "parquet":
            raise click.UsageError("--format parquet needs --output FILE.")
        return form or "table"
    form = form or _SUFFIXES.get(output.suffix.lower())
    if form is None or form == "table":
        raise click.UsageError("--output needs --format csv, json or parquet, or such a suffix.")
    if not output.absolute().parent.is_dir():
        raise click.UsageError(f"--output: there is no folder {output.absolute().parent}.")
    if output.is_dir():
        raise click.UsageError(f"--output: {output} is a folder; give a file.")
    return form


def _save(found: "pa.Table", output: Path, form: str) -> None:
    """The whole file or none: written beside it, then renamed."""
    partial = output.with_name(f".{output.name}.partial")
    try:
        if form == "parquet":
            import pyarrow.parquet as pq

            pq.write_table(found, partial, compression="zstd")
        else:
            with partial.open("w", encoding="utf-8", newline="") as file:
                _TEXTS[form](found, file)
        partial.replace(output)
    except OSError as error:
        raise Failure(f"Error: --output {output}: {error}", code=BAD_INPUT) from error
    finally:
        partial.unlink(missing_ok=True)


def _write_json(found: "pa.Table", file: TextIO) -> None:
    from workflows.output import json_line
    from workflows.sql_values import plain, records

    for record in records(found):
        file.write(json_line({name: plain(value) for name, value in record.items()}) + "\n")


def _write_csv(found: "pa.Table", file: TextIO) -> None:
    import csv

    from workflows.output import is_terminal
    from workflows.sql_values import cell, records, shown

    # What a file or another program gets is the data as it is; a terminal would obey it.
    text = shown if file.isatty() and is_terminal() else cell
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([text(name) for name in found.column_names])
    for record in records(found):
        writer.writerow([text(value) for value in record.values()])


_TEXTS: Final[dict[str, Writer]] = {"json": _write_json, "csv": _write_csv}


def _show(found: "pa.Table", limit: int) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from workflows.output import is_terminal
    from workflows.sql_values import is_number, records, shown

    table = Table(box=box.SIMPLE_HEAD)
    for field in found.schema:
        right = is_number(field.type)
        table.add_column(
            Text(shown(field.name)), justify="right" if right else "left", overflow="fold"
        )
    for record in records(found.slice(0, limit)):
        table.add_row(*(Text(shown(value)) for value in record.values()))
    if found.num_columns:
        # A pipe has no width: what reads it shall have every column whole.
        console = Console(file=sys.stdout, width=None if is_terminal() else 100_000)
        console.print(table)
    more = found.num_rows - limit
    rows = f"{found.num_rows:,} row{'' if found.num_rows == 1 else 's'}"
    click.echo(rows if more <= 0 else f"{rows}; {more:,} more than shown: --limit-rows, --format")
