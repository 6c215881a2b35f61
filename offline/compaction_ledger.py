"""The ledger's rows of compaction: what it wrote, with checksums, and what that replaced."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

import pyarrow as pa

from offline import schemas as s
from offline.commits import Commit, DataFile, list_log, live_files, read_commits
from offline.errors import LakeBusyError
from offline.files import file_sha256
from offline.ledger_check import Entry, read_ledger
from offline.storage import Storage, explain
from offline.table_log import INFO
from offline.tables import commit_conflict, open_table
from rl_ops import columns as c

WRITER: Final = "millrace-compact"
"""Application of compaction's transactions on the ledger, with the table's name behind it."""
OPTIMIZE: Final = "OPTIMIZE"
METADATA: Final = {INFO: json.dumps({"writer": WRITER})}

_ATTEMPTS: Final = 10


def enter_compacted(storage: Storage, table: str) -> list[str]:
    """Enter in the ledger what compactions wrote and no entry names; paths of these files.

    Idempotent, and safe while others do the same.

    Raises:
        LakeError: the table, the ledger or such a file cannot be read.
        LakeBusyError: others commit to the ledger faster than this process can.
    """
    from deltalake import CommitProperties, Transaction, WriterProperties, write_deltalake
    from deltalake.exceptions import DeltaError

    if table == s.LEDGER.name:
        return []
    name = f"{WRITER}/{table}"
    live = live_files(open_table(storage, table))
    for _ in range(_ATTEMPTS):
        ledger = open_table(storage, s.LEDGER.name)
        entries = read_ledger(storage, ledger)[table]
        made = _unentered(storage, table, live.keys() - entries.keys())
        if not made:
            return []
        rows = _ledger_rows(storage, table, made, entries)
        # Of two processes that found the same files missing, the second has its commit refused.
        own = [Transaction(name, (ledger.transaction_version(name) or 0) + 1)]
        once = CommitProperties(app_transactions=own, custom_metadata=METADATA)
        zstd = WriterProperties(compression="ZSTD")
        try:
            write_deltalake(
                ledger, rows, mode="append", writer_properties=zstd, commit_properties=once
            )
        except (DeltaError, OSError) as error:
            if not commit_conflict(error):
                raise explain(error, storage, "entering compacted files in the ledger") from None
            continue
        return [str(path) for path in rows.column(s.PATH).to_pylist()]
    raise LakeBusyError(
        f"the ledger at {storage.uri} could not be written in {_ATTEMPTS} attempts: others commit "
        "all the time. Try again."
    )


def _unentered(
    storage: Storage, table: str, paths: Collection[str]
) -> list[tuple[Commit, DataFile]]:
    """Which of these files compactions wrote, with their commits, in the order of versions."""
    wanted = set(paths)
    found: list[tuple[Commit, DataFile]] = []
    if wanted:
        versions = sorted(list_log(storage, table).commits, reverse=True)
        for commit in read_commits(storage, table, versions):
            here = [file for file in commit.adds if file.path in wanted]
            if commit.operation == OPTIMIZE:
                found += [(commit, file) for file in here]
            wanted.difference_update(file.path for file in here)
            if not wanted:
                break
    return found[::-1]


def _ledger_rows(
    storage: Storage,
    table: str,
    made: Iterable[tuple[Commit, DataFile]],
    entries: Mapping[str, Entry],
) -> pa.Table:
    rows = []
    for commit, file in made:
        replaced = [
            path
            for path, partition in commit.removes.items()
            if dict(partition) == dict(file.partition)
        ]
        session, fragments = _origin(storage, table, file, [entries.get(p) for p in replaced])
        rows.append(
            {
                "writer": f"{WRITER}/{table}",
                "seq": commit.version,
                s.TABLE: table,
                s.PATH: file.path,
                s.SHA256: file_sha256(storage, f"{table}/{file.path}"),
                s.BYTES: file.size,
                s.ROWS: file.rows,
                c.RUN_ID: file.partition.get(c.RUN_ID),
                s.SESSION: session,
                "fragments": fragments,
                "replaces": replaced,
                s.AT: datetime.now(UTC),
            }
        )
    return pa.Table.from_pylist(rows, schema=s.LEDGER.schema)


def _origin(
    storage: Storage, table: str, file: DataFile, replaced: Sequence[Entry | None]
) -> tuple[int | None, list[int] | None]:
    """Session and fragments of a file; neither where it holds several sessions.

    What they were is in the entries of the files that it replaced.
    """
    sessions = {None if entry is None else entry.session for entry in replaced}
    if len(sessions) != 1:
        return None, None
    (session,) = sessions
    if c.FRAGMENT_ID not in s.TABLES[table].schema.names:
        fragments = {f for entry in replaced if entry is not None for f in entry.fragments}
        return session, sorted(fragments)
    return session, sorted(_fragments_in(storage, table, file.path))


def _fragments_in(storage: Storage, table: str, path: str) -> set[int]:
    import pyarrow.parquet as pq

    found: set[int] = set()
    try:
        with pq.ParquetFile(path, filesystem=storage.filesystem(table)) as file:
            for batch in file.iter_batches(columns=[c.FRAGMENT_ID]):
                found.update(batch.column(0).unique().drop_null().to_pylist())
    except (OSError, pa.ArrowException) as error:
        raise explain(error, storage, f"reading {table}/{path}") from None
    return found
