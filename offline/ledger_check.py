"""What the ledger says of a table's files, held against what the table's log says."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from offline import schemas as s
from offline.commits import DataFile, list_log, live_files, read_commits
from offline.errors import LakeError
from offline.journal import read_journals
from offline.storage import Storage, explain
from offline.tables import open_table
from rl_ops import columns as c

if TYPE_CHECKING:
    import pyarrow.dataset as pds
    from deltalake import DeltaTable

_SHOWN: Final = 3


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the ledger; see `offline.schemas.LEDGER`."""

    path: str
    sha256: str
    size: int
    rows: int
    writer: str
    seq: int
    run_id: str | None
    session: int | None
    fragments: tuple[int, ...]
    replaces: tuple[str, ...]
    at: datetime | None


Ledger = Mapping[str, Mapping[str, Entry]]
"""Table to path to entry."""

_COLUMNS: Final = (
    *(s.TABLE, s.PATH, s.SHA256, s.BYTES, s.ROWS, "writer", "seq", c.RUN_ID, s.SESSION),
    *("fragments", "replaces", s.AT),
)


def read_ledger(storage: Storage, opened: "DeltaTable") -> Ledger:
    """The entries of an open ledger.

    Raises:
        LakeError: it cannot be read.
    """
    return ledger_of(storage, live_files(opened))


def ledger_of(storage: Storage, paths: Collection[str]) -> Ledger:
    """The entries in some data files of the ledger.

    Raises:
        LakeError: one cannot be read.
    """
    found: dict[str, dict[str, Entry]] = {name: {} for name in s.TABLES}
    dataset = files_of(storage, s.LEDGER.name, paths, columns=_COLUMNS)
    try:
        for batch in dataset.to_batches(columns=list(_COLUMNS)):
            for row in batch.to_pylist():
                entry = _entry(row)
                found.setdefault(row[s.TABLE], {})[entry.path] = entry
    except (OSError, pa.ArrowException) as error:
        raise explain(error, storage, "reading the ledger") from None
    return found


def files_of(
    storage: Storage, table: str, paths: Collection[str], *, columns: Sequence[str]
) -> "pds.Dataset":
    """Some columns of some data files, none of them a partition's; page checksums are verified.

    delta-rs takes a millisecond a file to make Arrow's expressions of all its statistics.
    """
    import pyarrow.dataset as pds

    checked = pds.ParquetFragmentScanOptions(page_checksum_verification=True)
    schema = s.TABLES[table].schema
    return pds.FileSystemDataset.from_paths(
        sorted(paths),
        schema=pa.schema([schema.field(column) for column in columns]),
        format=pds.ParquetFileFormat(default_fragment_scan_options=checked),
        filesystem=storage.filesystem(table),
    )


def _entry(row: Mapping[str, Any]) -> Entry:
    return Entry(
        path=row[s.PATH],
        sha256=row[s.SHA256] or "",
        size=row[s.BYTES] or 0,
        rows=row[s.ROWS] or 0,
        writer=row["writer"] or "",
        seq=row["seq"] or 0,
        run_id=row[c.RUN_ID],
        session=row[s.SESSION],
        fragments=tuple(row["fragments"] or ()),
        replaces=tuple(row["replaces"] or ()),
        at=row[s.AT],
    )


def pending_files(storage: Storage) -> set[tuple[str, str]]:
    """Table and path of the data files of batches that are not finished.

    Raises:
        LakeError: a journal cannot be read.
    """
    return {
        (table, part.path)
        for batch in read_journals(storage)
        for table, parts in batch.parts.items()
        for part in parts
    }


def lost(
    entries: Mapping[str, Entry], live: Collection[str], *, excused: Collection[str] = ()
) -> list[Entry]:
    """Entries whose rows are in no file of the table: the commits that brought them are lost.

    Args:
        entries: the ledger's, of one table.
        live: paths of the table's files.
        excused: paths that a commit removed, or that came after the version that is looked at.
    """
    gone = {path for entry in entries.values() for path in entry.replaces}
    return [
        entry
        for path, entry in entries.items()
        if path not in live
        and path not in gone
        and path not in excused
        # A compaction whose commit is lost lost no rows: what it replaced is what is read.
        and not (entry.replaces and all(old in live for old in entry.replaces))
    ]


def doubled(entries: Mapping[str, Entry], live: Collection[str]) -> Iterator[tuple[Entry, str]]:
    """Files of a compaction that are read together with one that they replaced."""
    for path, entry in entries.items():
        for old in entry.replaces:
            if path in live and old in live:
                yield entry, old


def differing(
    entries: Mapping[str, Entry], live: Mapping[str, DataFile]
) -> Iterator[tuple[Entry, DataFile, str]]:
    """Files of which the log and the ledger say different things, and what."""
    for path, file in live.items():
        entry = entries.get(path)
        if entry is None:
            continue
        if file.size != entry.size:
            yield entry, file, f"{file.size:,} bytes in the log, {entry.size:,} in the ledger"
        elif file.rows is not None and file.rows != entry.rows:
            yield entry, file, f"{file.rows:,} rows in the log, {entry.rows:,} in the ledger"


def check_table(storage: Storage, table: str, version: int | None = None) -> None:
    """Refuse a table of which a version does not hold the rows that were written.

    Compares the log with the ledger and reads no data: milliseconds for a thousand files. Every
    row of the ledger must be in a file of that version, unless it came later or was compacted.

    Args:
        storage: of the lake.
        table: its name.
        version: which version is going to be read; the newest by default.

    Raises:
        LakeError: rows are lost or doubled, or the log cannot be read; says which and what to do.
        LakeStorageError: the storage cannot be read.
    """
    # The ledger comes last in a batch, so what it names is in any table opened after it.
    ledger = open_table(storage, s.LEDGER.name)
    opened = open_table(storage, table, version=version)
    if table == s.LEDGER.name:
        return
    entries = read_ledger(storage, ledger)[table]
    live = live_files(opened)
    missing = lost(entries, live)
    if missing:
        excused = _excused(storage, table, opened.version(), entries)
        missing = lost(entries, live, excused=excused)
    twice = doubled(entries, live)
    problems = [
        *(f"{e.rows:,} rows of {e.path} are in the ledger and in no commit" for e in missing),
        *(f"{e.path} and {old}, which it replaced, are both there" for e, old in twice),
        *(f"{f.path} has {what}" for _, f, what in differing(entries, live)),
    ]
    if problems:
        more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise LakeError(
            f"version {opened.version()} of {table} at {storage.uri} does not hold what was "
            f"written: {'; '.join(problems[:_SHOWN])}{more}. `millrace lake doctor` shows all of "
            "it and what to do; give another version to train on what is whole."
        )


def _excused(storage: Storage, table: str, version: int, entries: Mapping[str, Entry]) -> set[str]:
    """Paths removed up to a version, or written after it."""
    paths: set[str] = set()
    listing = list_log(storage, table)
    committed_at: datetime | None = None
    for commit in read_commits(storage, table, listing.commits):
        if commit.version <= version:
            paths.update(commit.removes)
        else:
            paths.update(file.path for file in commit.adds)
        if commit.version == version < listing.last:
            committed_at = commit.at
    # A later commit that is damaged does not say what it brought; rows enter the ledger before.
    return paths | {
        path
        for path, entry in entries.items()
        if committed_at is not None and entry.at is not None and entry.at > committed_at
    }
