"""Repairs that lose and guess nothing: what was promised, or is known from ledger and files."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from offline import schemas as s
from offline.commits import LOG, DataFile, Replayed, list_log, replay
from offline.compaction_ledger import enter_compacted
from offline.doctor_files import folder_files
from offline.doctor_log import damaged_checkpoints, examine_log
from offline.files import OWN_FOLDER, file_sha256
from offline.ledger_check import Entry, Ledger, ledger_of, lost, pending_files
from offline.local_log import put_commit
from offline.storage import Storage, explain
from offline.table_history import chosen
from offline.table_log import INFO
from offline.writer import recover

DAMAGED: Final = f"{OWN_FOLDER}/damaged"
"""Where damaged files of a log are kept, by table."""


@dataclass(frozen=True)
class _Batch:
    """What one lost commit brought: data files that are there and are what was written."""

    writer: str
    seq: int
    fragments: tuple[int, ...]
    at: datetime | None
    files: tuple[DataFile, ...]


_NOTHING: Final = _Batch("", -1, (), None, ())


def repair(storage: Storage) -> list[str]:
    """Do what can be done without losing or guessing anything; a line for each thing done.

    Sets damaged checkpoints of logs aside where the commits are all there; makes commits again
    that are empty, cut or missing, if the files they brought are there and unaltered; finishes
    the batches of killed writers; enters in the ledger what a killed compaction wrote. Runs may
    go on meanwhile.

    Raises:
        LakeError: no lake, or a journal or a table cannot be read even so.
        LakeStorageError: the storage refuses.
    """
    tables = chosen(storage, None)
    done = [line for table in tables for line in _set_checkpoints_aside(storage, table)]
    # The ledger first: it is what tells the others' files.
    for table in sorted(tables, key=lambda name: name != s.LEDGER.name):
        done += _make_commits_again(storage, table)
    done += recover(storage)
    for table in tables:
        entered = enter_compacted(storage, table)
        done += [f"entered {table}/{path} of a compaction in the ledger" for path in entered]
    return done


def _set_checkpoints_aside(storage: Storage, table: str) -> list[str]:
    listing = list_log(storage, table)
    paths = [finding.where for finding in damaged_checkpoints(storage, table, listing)]
    names = {path.rpartition("/")[2] for path in paths}
    whole = [v for v, files in listing.checkpoints.items() if not names.intersection(files)]
    needed = range(max(whole, default=-1) + 1, listing.last + 1)
    if not paths or any(version not in listing.commits for version in needed):
        return []
    for path in paths:
        _set_aside(storage, table, path)
    # It names the newest checkpoint, and readers then insist on that.
    _set_aside(storage, table, f"{table}/{LOG}/_last_checkpoint")
    return [f"set damaged checkpoint {path} aside, to {DAMAGED}" for path in paths]


def _set_aside(storage: Storage, table: str, path: str) -> None:
    filesystem = storage.filesystem()
    try:
        if filesystem.get_file_info(path).type != fs.FileType.File:
            return
        folder = f"{DAMAGED}/{table}"
        filesystem.create_dir(folder, recursive=True)
        filesystem.copy_file(path, f"{folder}/{time.time_ns()}-{path.rpartition('/')[2]}")
        filesystem.delete_file(path)
    except (OSError, pa.ArrowException) as error:
        raise explain(error, storage, f"setting {path} aside") from None


def _make_commits_again(storage: Storage, table: str) -> list[str]:
    """Write commits anew that are empty, cut or gone; none unless all of them can be.

    Those that a checkpoint of the log covers no longer decide what the newest version holds.
    """
    if not storage.is_local:
        return []  # an object store's put is whole or not there
    # Before the log: what the ledger names then has its commit.
    ledger = _ledger(storage)
    state = examine_log(storage, table, [])
    covered = max(state.listing.checkpoints, default=-1)
    damaged = sorted(version for version in state.problems if version > covered)
    known = replay(storage, table, state.listing, skip=damaged)
    if table == s.LEDGER.name:
        batches = _orphans_of_the_ledger(storage, damaged)
    else:
        batches = _lost_batches(storage, table, known, ledger)
    if batches is None or 0 < len(batches) < len(damaged):
        return []
    end = state.listing.last + 1
    versions = [*damaged, *range(end, end + len(batches) - len(damaged))]
    lines = []
    for version, batch in zip(versions, batches or [_NOTHING] * len(versions), strict=True):
        _write_commit(storage, table, version, batch, known)
        rows = sum(file.rows or 0 for file in batch.files)
        lines.append(f"made commit {version} of {table} again, with {rows:,} rows")
    return lines


def _ledger(storage: Storage, *, skip: Sequence[int] = ()) -> Ledger:
    """What its log's readable commits name: its own damage must not hide what it says."""
    name = s.LEDGER.name
    known = replay(storage, name, list_log(storage, name), skip=skip)
    there = folder_files(storage, name)
    return ledger_of(storage, known.live & there.keys())


def _lost_batches(
    storage: Storage, table: str, known: Replayed, ledger: Ledger
) -> list[_Batch] | None:
    """What the ledger has and no commit, in the order of time; None if a file is not whole."""
    groups: dict[tuple[str, int], list[Entry]] = {}
    for entry in lost(ledger[table], known.live, excused=known.removed):
        groups.setdefault((entry.writer, entry.seq), []).append(entry)
    for entry in (entry for entries in groups.values() for entry in entries):
        if entry.replaces or not _is_whole(storage, table, entry):
            return None
    batches = [
        _Batch(*key, entries[0].fragments, entries[0].at, tuple(map(_data_file, entries)))
        for key, entries in groups.items()
    ]
    return sorted(batches, key=_in_time)


def _in_time(batch: _Batch) -> tuple[float, int]:
    return (0.0 if batch.at is None else batch.at.timestamp(), batch.seq)


def _is_whole(storage: Storage, table: str, entry: Entry) -> bool:
    info = storage.filesystem(table).get_file_info(entry.path)
    if info.type != fs.FileType.File or info.size != entry.size:
        return False
    return file_sha256(storage, f"{table}/{entry.path}") == entry.sha256


def _data_file(entry: Entry) -> DataFile:
    folder, _, _ = entry.path.rpartition("/")
    column, _, value = folder.partition("=")
    return DataFile(entry.path, entry.size, entry.rows, {column: unquote(value)} if folder else {})


def _orphans_of_the_ledger(storage: Storage, damaged: Sequence[int]) -> list[_Batch] | None:
    """Files of the ledger that no commit names, while tables have all the files they list.

    None if there are files that the ledger would then still not name. In the order in which a
    batch is committed backwards, so that one under way is in a journal or in the ledger.
    """
    name = s.LEDGER.name
    live = {
        table: replay(storage, table, list_log(storage, table)).live
        for table in s.TABLES
        if table != name
    }
    pending = pending_files(storage)
    known = replay(storage, name, list_log(storage, name), skip=damaged)
    ledger = _ledger(storage, skip=damaged)
    there = {(table, path) for table, paths in live.items() for path in paths}
    unnamed = {(table, path) for table, path in there if path not in ledger[table]} - pending
    batches = []
    for path in folder_files(storage, name).keys() - known.live - known.removed:
        batch, named = _ledger_batch(storage, path)
        if batch is not None and named and named <= unnamed:
            batches.append(batch)
            unnamed -= named
    return None if unnamed else sorted(batches, key=_in_time)


def _ledger_batch(storage: Storage, path: str) -> tuple[_Batch | None, set[tuple[str, str]]]:
    """A file of the ledger as a batch, and the tables and paths that it lists."""
    filesystem = storage.filesystem(s.LEDGER.name)
    try:
        with pq.ParquetFile(path, filesystem=filesystem) as parquet:
            rows = parquet.read(columns=["writer", "seq", s.TABLE, s.PATH, s.AT]).to_pylist()
    except (OSError, pa.ArrowException, KeyError):
        return None, set()
    if not rows or not path.endswith(".parquet"):
        return None, set()
    size = filesystem.get_file_info(path).size
    batch = _Batch(
        rows[0]["writer"], rows[0]["seq"], (), rows[0][s.AT], (DataFile(path, size, len(rows)),)
    )
    return batch, {(row[s.TABLE], row[s.PATH]) for row in rows}


def _write_commit(
    storage: Storage, table: str, version: int, batch: _Batch, known: Replayed
) -> None:
    """Put a commit in the place of a damaged one, which is kept, or at the end of the log."""
    path = f"{table}/{LOG}/{version:020d}.json"
    _set_aside(storage, table, path)
    target, content = Path(storage.uri, path), _lines(version, batch, known)
    try:
        put_commit(target, content, partial=target.with_name(f"{target.name}.again"))
    except OSError as error:  # also when a run took the version meanwhile
        raise explain(error, storage, f"writing commit {version} of {table}") from None


def _lines(version: int, batch: _Batch, known: Replayed) -> bytes:
    earlier = [at for number, at in known.times.items() if number < version]
    at = max([*earlier, *([batch.at] if batch.at else [])], default=datetime.now(UTC))
    said = {"writer": batch.writer, "seq": batch.seq, "fragments": batch.fragments}
    info = {
        "timestamp": int(at.timestamp() * 1000),
        "operation": "WRITE",
        "operationParameters": {"mode": "Append"},
        "operationMetrics": {"num_added_files": len(batch.files)},
        "engineInfo": "millrace lake doctor",
        INFO: json.dumps(said | {"repaired": True}),
    }
    actions: list[dict[str, object]] = [{"commitInfo": info}]
    if batch.files and known.transactions.get(batch.writer, -1) < batch.seq:
        actions.append({"txn": {"appId": batch.writer, "version": batch.seq}})
    for file in batch.files:
        add = {
            "path": quote(file.path, safe="/=-_.~"),
            "partitionValues": dict(file.partition),
            "size": file.size,
            "modificationTime": info["timestamp"],
            "dataChange": True,
            # Minima and maxima would let readers skip it; without them they read it.
            "stats": json.dumps({"numRecords": file.rows}),
        }
        actions.append({"add": add})
    return "".join(json.dumps(action) + "\n" for action in actions).encode()
