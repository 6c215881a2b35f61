"""The doctor on data files: the log, the ledger and what lies in the folder, held together."""

from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from offline import schemas as s
from offline.commits import LOG, DataFile
from offline.doctor_log import TableState
from offline.files import file_sha256
from offline.findings import Finding
from offline.ledger_check import Entry, differing, doubled, lost
from offline.storage import Storage, explain

_THREADS: Final = 8
_COPY: Final = "restore it from a copy of the lake; its rows are in no other file"


def folder_files(storage: Storage, table: str) -> dict[str, int]:
    """Path and bytes of all that lies in a table's folder, but for its log.

    Raises:
        LakeStorageError: the storage cannot be read.
    """
    selector = fs.FileSelector("", recursive=True, allow_not_found=True)
    try:
        infos = storage.filesystem(table).get_file_info(selector)
    except (OSError, pa.ArrowException) as error:
        raise explain(error, storage, f"listing {table}") from None
    return {
        info.path: info.size or 0
        for info in infos
        if info.type == fs.FileType.File and not info.path.startswith(f"{LOG}/")
    }


def check_ledger(
    state: TableState, *, before: Mapping[str, Entry], after: Mapping[str, Entry]
) -> Iterator[Finding]:
    """What the ledger and the table's log say differently.

    Args:
        state: of the table.
        before: the ledger's entries of the table, read before the table was opened.
        after: the same, read after the table and the journals.
    """
    name = state.name
    for entry in lost(before, state.live, excused=state.later | state.removed):
        rows = f"{entry.rows:,} rows are in the ledger and in no commit"
        fix = "`millrace lake doctor --repair` commits the file again if it is there and unaltered"
        yield Finding("error", "lost-commit", name, rows, f"{name}/{entry.path}", fix)
    for entry, old in doubled(before, state.live):
        what = f"is read together with {old}, which it replaced: their rows are there twice"
        fix = "restore the commit that replaced it, or copy out what is needed by SQL"
        yield Finding("error", "doubled-file", name, what, f"{name}/{entry.path}", fix)
    for _, file, what in differing(after, state.live):
        fix = "restore the log and the data file from a copy of the same time"
        yield Finding("error", "log-differs", name, what, f"{name}/{file.path}", fix)


def check_unnamed(
    state: TableState, *, after: Mapping[str, Entry], pending: Collection[tuple[str, str]]
) -> Iterator[Finding]:
    """Files of a table that no row of the ledger names, so that nobody knows what they were."""
    name = state.name
    for path in state.live.keys() - after.keys():
        where = f"{name}/{path}"
        if path in state.optimized:
            what = "a compaction wrote it and ended before it entered it in the ledger"
            fix = "`millrace lake compact`, or `millrace lake doctor --repair`, enters it"
            yield Finding("warning", "unentered-compaction", name, what, where, fix)
        elif (name, path) not in pending:
            what = "is in the log, and in no row of the ledger: nothing can check its rows"
            fix = "see damaged commits of the ledger; or something else than Millrace wrote it"
            yield Finding("warning", "unnamed-file", name, what, where, fix)


def check_folder(
    state: TableState,
    there: Mapping[str, int],
    *,
    named: Collection[str],
    pending: Collection[tuple[str, str]],
) -> Iterator[Finding]:
    """What lies in a table's folder against what its log and the ledger name."""
    name = state.name
    for path, file in state.live.items():
        where = f"{name}/{path}"
        if path not in there:
            rows = "" if file.rows is None else f" with its {file.rows:,} rows"
            yield Finding("error", "missing-file", name, f"is gone{rows}", where, _COPY)
        elif there[path] != file.size:
            what = f"has {there[path]:,} bytes, {file.size:,} were written"
            yield Finding("error", "size-differs", name, what, where, _COPY)
    known = state.live.keys() | state.added | state.removed | set(named)
    for path, size in there.items():
        if path in known or (name, path) in pending or state.opened is None:
            continue
        where = f"{name}/{path}"
        if path.endswith(".parquet"):
            what = f"{size:,} bytes that no commit names: of a killed writer, or of a live one"
            fix = "none; `millrace lake vacuum` removes it when it is a week old"
            yield Finding("info", "orphan-file", name, what, where, fix)
        else:
            what = f"{size:,} bytes that are no data of the table, and are ignored"
            yield Finding("info", "stray-file", name, what, where, "none")


def check_footers(
    storage: Storage, state: TableState, there: Mapping[str, int], *, skip: Collection[str] = ()
) -> Iterator[Finding]:
    """Rows by each file's own footer against the log's; one read of a few kilobytes a file."""
    filesystem = storage.filesystem(state.name)

    def check(file: DataFile) -> Finding | None:
        where = f"{state.name}/{file.path}"
        try:
            with pq.ParquetFile(file.path, filesystem=filesystem) as parquet:
                rows = parquet.metadata.num_rows
        except (OSError, pa.ArrowException) as error:
            what = f"cannot be read: {str(error).splitlines()[0]}"
            return Finding("error", "unreadable-file", state.name, what, where, _COPY)
        if file.rows is None or rows == file.rows:
            return None
        what = f"has {rows:,} rows, {file.rows:,} were committed"
        return Finding("error", "rows-differ", state.name, what, where, _COPY)

    files = [file for path, file in state.live.items() if path in there and path not in skip]
    with ThreadPoolExecutor(_THREADS) as pool:
        yield from (found for found in pool.map(check, files) if found)


def check_sums(
    storage: Storage, state: TableState, there: Mapping[str, int], entries: Mapping[str, Entry]
) -> Iterator[Finding]:
    """Every byte of every file against the ledger's sha256; of the ledger itself, that it reads."""
    name = state.name
    filesystem = storage.filesystem(name)

    def check(path: str) -> Finding | None:
        entry = entries.get(path)
        if entry is None:
            return _unreadable(filesystem, name, path)
        if file_sha256(storage, f"{name}/{path}") == entry.sha256:
            return None
        what = "is not what was written: its sha256 differs from the ledger's"
        return Finding("error", "checksum-differs", name, what, f"{name}/{path}", _COPY)

    whole = [p for p, file in state.live.items() if there.get(p) == file.size]
    with ThreadPoolExecutor(_THREADS) as pool:
        yield from (found for found in pool.map(check, whole) if found)


def _unreadable(filesystem: fs.FileSystem, name: str, path: str) -> Finding | None:
    try:
        with pq.ParquetFile(
            path, filesystem=filesystem, page_checksum_verification=True
        ) as parquet:
            for _ in parquet.iter_batches():
                pass
    except (OSError, pa.ArrowException) as error:
        what = f"cannot be read: {str(error).splitlines()[0]}"
        return Finding("error", "unreadable-file", name, what, f"{name}/{path}", _COPY)
    return None


def is_checked(name: str) -> bool:
    """Whether the ledger has a row for each of the table's files."""
    return name != s.LEDGER.name
