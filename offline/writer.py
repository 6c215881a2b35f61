"""The transactional writer: batches of rows into several tables of a lake, each exactly once."""

import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import pyarrow as pa

from offline import schemas as s
from offline.errors import LakeBusyError, LakeError
from offline.failpoints import fail_point
from offline.files import file_sha256, remove_file, remove_partials
from offline.journal import (
    Batch,
    WriterLock,
    name_hash,
    pending_writers,
    read_journals,
    remove_journal,
    require_name,
    write_journal,
)
from offline.ledger import ledger_rows
from offline.parts import Part, require_compression, write_parts
from offline.storage import Storage
from offline.table_log import TableLog, commit, look, open_log

LEDGER: Final = s.LEDGER.name


@dataclass(frozen=True)
class Written:
    """A batch that is in the lake.

    Attributes:
        seq: its number among the writer's batches; that of the batch before if it had no rows.
        versions: table, the ledger among them, to a version of it that has the batch's rows.
        rows: table to rows.
        fragments: that were named with it.
    """

    seq: int
    versions: Mapping[str, int]
    rows: Mapping[str, int]
    fragments: tuple[int, ...] = ()


class LakeWriter:
    """Writes batches into several tables of one lake, each batch exactly once.

    A batch's data files come first, then a journal that promises them, then a commit to each
    table, the ledger's last. Killed before the journal, nothing of a batch is seen; after it, the
    next writer of that name, or `recover`, makes the commits that are missing. For one thread.

    Args:
        storage: of the lake, whose tables exist.
        writer: application id of its Delta transactions, as "<run_id>/0"; one process at a time
            writes under it. Give few: the log keeps them all.
        compression: of the data files, one of `offline.parts.COMPRESSIONS`.
        run_id, session: for the ledger's rows of data files whose own rows name none or several.

    Attributes:
        recovered: batches of an earlier process of that name that were finished now.

    Raises:
        LakeBusyError: another writer of that name lives.
        LakeError: a table is missing, damaged or of another version.
        LakeStorageError: the storage cannot be written.
    """

    def __init__(
        self,
        storage: Storage,
        writer: str,
        *,
        compression: str = "zstd",
        run_id: str | None = None,
        session: int | None = None,
    ) -> None:
        require_compression(compression)
        require_name(writer)
        self._storage, self._name, self._compression = storage, writer, compression
        self._run_id, self._session = run_id, session
        self._token = uuid.uuid4().hex[:12]
        self._logs: dict[str, TableLog] = {}
        self._unfinished: tuple[Batch, Mapping[str, pa.Table]] | None = None
        self._lock = WriterLock(storage, writer)
        try:
            remove_partials(storage, name_hash(writer))
            self._seq = self._log(LEDGER).last
            finished = [self._resumed(batch) for batch in read_journals(storage, writer)]
            self.recovered = tuple(written for written in finished if written is not None)
        except BaseException:
            self._lock.release()
            raise

    def write(self, tables: Mapping[str, pa.Table], *, fragments: Sequence[int] = ()) -> Written:
        """Write a batch: all of it, or nothing that is not finished later.

        After an error call it again with the same batch: it is in the lake once, also if the
        error came when half of the commits were made.

        Args:
            tables: table to rows, with exactly the table's columns; no rows, no data file.
            fragments: that the batch is made of; the ledger keeps them.

        Raises:
            LakeError: the rows do not fit, or the writer is closed; nothing was written.
            LakeStorageError: the storage refuses, as when the disk is full.
            LakeBusyError: another process writes under this name.
        """
        if self._lock.released:
            raise LakeError(f"writer {self._name!r} is closed; open another.")
        named = tuple(int(fragment) for fragment in fragments)
        if self._unfinished is not None:
            batch, promised = self._unfinished
            written = self._finish(batch)
            if batch.fragments == named and _same(promised, tables):
                return written
        rows = {name: tables[name] for name in _ordered(tables) if tables[name].num_rows}
        if not rows:
            return Written(self._seq, {}, {}, named)
        batch = self._promised(rows, named)
        self._unfinished = batch, dict(tables)
        fail_point("journal.written")
        return self._finish(batch)

    def _withdraw(self, batch: Batch) -> None:
        """Take back the promise of a batch that is in no table."""
        remove_journal(self._storage, batch)
        self._unfinished = None
        self._remove([f"{name}/{p.path}" for name, some in batch.parts.items() for p in some])

    def close(self) -> None:
        """Let others write under the name. A batch that failed half-way is left to them."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _log(self, table: str) -> TableLog:
        if table not in self._logs:
            self._logs[table] = open_log(self._storage, table, self._name)
        return self._logs[table]

    def _promised(self, rows: Mapping[str, pa.Table], fragments: tuple[int, ...]) -> Batch:
        """Write a batch's data files and its journal, or neither."""
        if not self._storage.is_local:
            # No lock keeps others from the name; the ledger, last in each batch, tells of them.
            ledger = self._log(LEDGER)
            look(self._storage, ledger, LEDGER, writer=self._name, token=self._token)
        # A table may be ahead of the ledger if somebody removed a journal.
        seq = 1 + max(self._seq, *(self._log(name).last for name in rows))
        parts: dict[str, tuple[Part, ...]] = {}
        written: list[str] = []
        try:
            for name, some in rows.items():
                parts[name] = self._write_parts(s.TABLES[name], some, seq, written)
            ledger = ledger_rows(
                parts,
                writer=self._name,
                seq=seq,
                fragments=fragments,
                run_id=self._run_id,
                session=self._session,
            )
            parts[LEDGER] = self._write_parts(s.LEDGER, ledger, seq, written)
            fail_point("parts.written")
            batch = Batch(self._name, seq, self._token, fragments, parts)
        except BaseException:
            self._remove(written)
            raise
        try:
            write_journal(self._storage, batch)
        except BaseException:
            # It may be there in spite of the error, and then its files have to be.
            with suppress(LakeError):
                remove_journal(self._storage, batch)
                self._remove(written)
            raise
        return batch

    def _remove(self, paths: Sequence[str]) -> None:
        """What a full disk needs most is space; a store that is gone is not asked for each."""
        with suppress(LakeError):
            for path in paths:
                remove_file(self._storage, path)

    def _write_parts(
        self, table: s.TableSchema, rows: pa.Table, seq: int, written: list[str]
    ) -> tuple[Part, ...]:
        stem = f"{name_hash(self._name)}-{seq:08d}"
        if not self._storage.is_local:
            # Without a lock a rival of the same name may write too: it must not replace files.
            stem = f"{stem}-{self._token}"
        parts = []
        for part in write_parts(
            self._storage, table, rows, stem=stem, compression=self._compression
        ):
            written.append(f"{table.name}/{part.path}")
            parts.append(part)
        return tuple(parts)

    def _resumed(self, batch: Batch) -> Written | None:
        """Finish what an earlier process promised; None if it had not told anyone yet.

        A journal can outlive its data files only if the error of writing it was given to the
        caller, or if the power failed: either way nobody was told that the batch is in the lake.
        """
        missing = [name for name in batch.parts if self._log(name).last < batch.seq]
        spoiled = [
            path
            for name in missing
            for part in batch.parts[name]
            if file_sha256(self._storage, path := f"{name}/{part.path}") != part.sha256
        ]
        if spoiled and len(missing) < len(batch.parts):
            raise LakeError(
                f"batch {batch.seq} of {batch.writer!r} at {self._storage.uri} is in some tables, "
                f"and cannot be finished: {spoiled[0]} is gone or altered. `millrace lake doctor` "
                f"shows its rows; restore the file, or move {batch.path} away to go on without."
            )
        if spoiled:
            remove_journal(self._storage, batch)
            return None
        written = self._finish(batch)
        for log in self._logs.values():
            # From here on a commit under this name that is not ours is a rival's.
            log.seen.clear()
        return written

    def _finish(self, batch: Batch) -> Written:
        """Make the commits of a promised batch that are missing."""
        versions: dict[str, int] = {}
        for name in batch.parts:
            try:
                versions[name] = commit(self._storage, self._log(name), name, batch)
            except LakeBusyError:
                if not versions:
                    self._withdraw(batch)
                raise
        fail_point("journal.before_removal")
        remove_journal(self._storage, batch)
        fail_point("journal.removed")
        self._unfinished = None
        self._seq = batch.seq
        return Written(batch.seq, versions, batch.rows, batch.fragments)


def recover(storage: Storage) -> list[str]:
    """Finish the batches that killed writers left behind.

    Writers that live are left alone. An object store does not tell, and need not: the commits of
    a batch are made once, whoever makes them.

    Returns:
        What was done, a line for each batch, and for each writer that was left alone.

    Raises:
        LakeError: a journal or a table cannot be read.
        LakeStorageError: the storage refuses.
    """
    done: list[str] = []
    for name in pending_writers(storage):
        try:
            writer = LakeWriter(storage, name)
        except LakeBusyError as error:
            done.append(f"left the batches of {name!r} alone: {error}")
            continue
        writer.close()
        done += [_said(name, written) for written in writer.recovered]
    return done


def _said(name: str, written: Written) -> str:
    rows = ", ".join(f"{count:,} rows of {table}" for table, count in written.rows.items())
    return f"finished batch {written.seq} of {name!r}: {rows}"


def _ordered(tables: Mapping[str, pa.Table]) -> list[str]:
    """The tables in the lake's own order, so that two writers' batches meet in it."""
    unknown = [name for name in tables if name not in s.TABLES or name == LEDGER]
    if unknown:
        raise LakeError(
            f"a batch cannot have rows for {', '.join(map(repr, unknown))}; tables are "
            f"{', '.join(name for name in s.TABLES if name != LEDGER)}."
        )
    return [name for name in s.TABLES if name in tables]


def _same(these: Mapping[str, pa.Table], those: Mapping[str, pa.Table]) -> bool:
    return these.keys() == those.keys() and all(
        table is those[name] or table.equals(those[name]) for name, table in these.items()
    )
