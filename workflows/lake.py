"""`millrace lake`: what happened to the lake's tables, their maintenance, and their doctor."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from workflows.exits import FAILED
from workflows.logs import verbosity_options
from workflows.options import F, json_option, lake_storage_option
from workflows.output import bytes_text

if TYPE_CHECKING:
    from offline.compaction import Compaction
    from offline.findings import Finding
    from offline.storage import Storage
    from offline.table_history import Version
    from offline.vacuum import Vacuum


@click.group(short_help="History, maintenance and doctor of the lake.")
def lake() -> None:
    """The Delta tables of --storage: steps, episodes, runs, metrics and the others."""


def _tables_option(command: F) -> F:
    return click.option(
        "--table", "tables", metavar="NAME", multiple=True, help="Repeatable.  [default: all]"
    )(command)


def _print(found: Sequence[Any], lines: Callable[[Any], Iterator[str]], *, as_json: bool) -> None:
    from workflows.output import json_line, safe_text

    if as_json:
        for each in found:
            click.echo(json_line(each.to_json()))
        return
    for line in lines(found):
        click.echo(safe_text(line))


@lake.command(short_help="Versions of the tables, newest first.")
@_tables_option
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    metavar="N",
    help="Versions of each table.",
)
@lake_storage_option
@json_option
@verbosity_options
def history(*, tables: tuple[str, ...], limit: int, storage: "Storage", as_json: bool) -> None:
    """List each table's versions with time, operation, rows, files, writer and fragments.

    Any of them can be read: `millrace sql "SELECT …" --version TABLE=N`.
    """
    from offline.table_history import history as versions_of

    found = list(versions_of(storage, tables=tables or None, limit=limit))
    _print(found, _version_lines, as_json=as_json)


def _version_lines(found: Sequence["Version"]) -> Iterator[str]:
    from offline.findings import ranges

    table = ""
    for each in found:
        if each.table != table:
            table = each.table
            yield f"{table}"
        at = each.at.isoformat(sep=" ", timespec="seconds")[:19] if each.at else "?"
        parts = [f"{each.version:>7}  {at:<19}  {each.operation or '?':<12}"]
        if each.files_added or each.files_removed:
            parts.append(f"{each.rows_added:>10,} rows  +{each.files_added} -{each.files_removed}")
        if each.writer:
            parts.append(each.writer)
        if each.fragments:
            parts.append(f"fragments {ranges(each.fragments, most=3)}")
        if each.problem:
            parts.append(f"DAMAGED: {each.problem}; see `millrace lake doctor`")
        yield "  ".join(parts).rstrip()


@lake.command(short_help="Rewrite small files into large ones.")
@_tables_option
@click.option("--run", metavar="RUN", help="Only files of this run.")
@click.option(
    "--target-bytes",
    type=click.IntRange(min=1),
    metavar="N",
    help="Of a new file, about.  [default: 134217728, which is 128 MiB]",
)
@lake_storage_option
@json_option
@verbosity_options
def compact(
    *,
    tables: tuple[str, ...],
    run: str | None,
    target_bytes: int | None,
    storage: "Storage",
    as_json: bool,
) -> None:
    """Rewrite small files of each run into large ones, also while runs write.

    No row changes, and every version stays readable. The old files go with `millrace lake
    vacuum`.
    """
    from offline.compaction import TARGET_BYTES
    from offline.compaction import compact as compact_tables

    found = compact_tables(
        storage,
        tables=tables or None,
        run_id=run,
        target_bytes=target_bytes or TARGET_BYTES,
    )
    _print(found, _compaction_lines, as_json=as_json)


def _compaction_lines(found: Sequence["Compaction"]) -> Iterator[str]:
    for each in found:
        yield (
            f"{each.table:<12} {each.files_before:,} files of {bytes_text(each.bytes_before)} -> "
            f"{each.files_after:,} of {bytes_text(each.bytes_after)}, {each.rows:,} rows, version "
            f"{each.version}"
        )
    if not found:
        yield "nothing to compact: no two small files in one place"


@lake.command(short_help="Remove data files that no recent version needs.")
@_tables_option
@click.option(
    "--retention-hours",
    type=click.IntRange(min=0),
    metavar="N",
    help="How long a replaced file stays.  [default: 168, a week]",
)
@click.option("--force", is_flag=True, help="Allow less than a week; nothing else may run.")
@click.option(
    "--yes/--dry-run",
    "remove",
    help="Remove the files, or only say which.  [default: --dry-run]",
)
@lake_storage_option
@json_option
@verbosity_options
def vacuum(
    *,
    tables: tuple[str, ...],
    retention_hours: int | None,
    force: bool,
    remove: bool,
    storage: "Storage",
    as_json: bool,
) -> None:
    """Say which files no version of the last week needs, and with --yes remove them.

    Those are files that compaction replaced, and what killed writers left behind. Versions older
    than that can then no longer be read. A file younger than an hour, one of a batch that is to
    be finished, and one whose commit is lost always stay.
    """
    from offline.vacuum import RETENTION_HOURS
    from offline.vacuum import vacuum as vacuum_tables

    found = vacuum_tables(
        storage,
        tables=tables or None,
        retention_hours=RETENTION_HOURS if retention_hours is None else retention_hours,
        force=force,
        dry_run=not remove,
    )
    _print(found, _vacuum_lines, as_json=as_json)


def _vacuum_lines(found: Sequence["Vacuum"]) -> Iterator[str]:
    for each in found:
        kept = f"; {len(each.kept):,} kept" if each.kept else ""
        if each.files or each.kept:
            yield f"{each.table:<12} {len(each.files):,} files, {bytes_text(each.num_bytes)}{kept}"
        yield from (f"    {path}" for path in each.files)
    count, num_bytes = sum(len(v.files) for v in found), sum(v.num_bytes for v in found)
    if all(each.removed for each in found):
        yield f"{count:,} files removed, {bytes_text(num_bytes)}"
    else:
        yield f"{count:,} files would go, {bytes_text(num_bytes)}; --yes removes them"


@lake.command(short_help="Compact, and remove what no recent version needs.")
@click.option(
    "--vacuum-hours",
    type=click.IntRange(min=168),
    metavar="N",
    help="Remove files that were replaced so long ago.  [default: none]",
)
@lake_storage_option
@json_option
@verbosity_options
def maintain(*, vacuum_hours: int | None, storage: "Storage", as_json: bool) -> None:
    """Do what a lake needs from time to time; `workflow` has it as a step."""
    from offline.compaction import TARGET_BYTES
    from offline.compaction import compact as compact_tables
    from offline.vacuum import vacuum as vacuum_tables

    compacted = compact_tables(storage, tables=None, run_id=None, target_bytes=TARGET_BYTES)
    _print(compacted, _compaction_lines, as_json=as_json)
    if vacuum_hours is not None:
        removed = vacuum_tables(
            storage, tables=None, retention_hours=vacuum_hours, force=False, dry_run=False
        )
        _print(removed, _vacuum_lines, as_json=as_json)


@lake.command(short_help="Check whether the lake holds what was written to it.")
@_tables_option
@click.option("--deep", is_flag=True, help="Read every byte and compare with its checksum.")
@click.option("--repair", is_flag=True, help="First do what is safe; see below.")
@lake_storage_option
@json_option
@verbosity_options
def doctor(
    *, tables: tuple[str, ...], deep: bool, repair: bool, storage: "Storage", as_json: bool
) -> None:
    """Compare log, ledger, files and rows; say what is wrong, where, and what to do.

    Sizes and row counts of all files are compared, and the fragments and episodes in `steps`;
    flipped bytes are found with --deep only. Nothing is changed, and runs may go on.

    With --repair it first finishes the batches of killed writers, enters in the ledger what a
    killed compaction wrote, makes commits again whose data files are whole, and sets damaged
    checkpoints of the logs aside; damaged files are kept in _millrace/damaged. Exit code 1 when
    there is an error.
    """
    from offline.doctor import doctor as examine
    from offline.doctor_repair import repair as repaired
    from workflows.output import safe_text

    for line in repaired(storage) if repair else ():
        click.echo(safe_text(line), err=as_json)
    found = examine(storage, tables=tables or None, deep=deep)
    _print(found, _finding_lines, as_json=as_json)
    severities = [finding.severity for finding in found]
    if not as_json:
        counts = ", ".join(f"{severities.count(name)} {name}s" for name in ("error", "warning"))
        click.echo(f"{counts}" if found else f"nothing found: {storage.uri} is whole")
    if "error" in severities:
        raise click.exceptions.Exit(FAILED)


def _finding_lines(found: Sequence["Finding"]) -> Iterator[str]:
    for each in found:
        yield f"{each.severity:<8} {each.kind:<20} {each.table:<12} {each.what}"
        yield f"{'':<8} where: {each.where}"
        if each.fix:
            yield f"{'':<8} fix: {each.fix}"
