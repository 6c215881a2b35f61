"""Reading one version of one table: filters, columns, pruning, and errors that name the file."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Final

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs

from offline.errors import LakeError
from offline.filters import Where, checked_columns, checked_where, projected
from offline.storage import Storage, explain
from offline.tables import VACUUMED_PROPERTY, open_table

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow.dataset as pds
    from deltalake import DeltaTable

    from offline.ray_reading import RayDataset

_BATCH_ROWS: Final = 16_384
_FIRST_ROWS: Final = 64
# Arrow's defaults read 16 batches ahead in each of 4 files: 8 million rows, or gigabytes of frames.
_READ_AHEAD: Final = {"batch_readahead": 4, "fragment_readahead": 2}


@dataclass(frozen=True, eq=False)
class Selection:
    """Rows and columns of one version of one table; nothing is read before it is asked for.

    The version stays what it is, whatever is committed later. Rows come file by file in the
    order of the files' names; sort where the order matters.

    Attributes:
        storage: of the lake.
        table: the table's name.
        version: the version that is read.
        where: which rows; None for all.
        columns: which columns, in this order; None for all.
    """

    storage: Storage
    table: str
    version: int
    where: pc.Expression | None
    columns: tuple[str, ...] | None
    _delta: "DeltaTable" = field(repr=False)

    @cached_property
    def _dataset(self) -> "pds.FileSystemDataset":
        return snapshot(self.storage, self.table, self._delta)

    @property
    def schema(self) -> pa.Schema:
        """Of what is read."""
        return projected(_schema_of(self._delta), self.columns)

    def dataset(self) -> "pds.Dataset":
        """The rows as an Arrow dataset of all columns, over Arrow's own file system."""
        return self._dataset if self.where is None else self._dataset.filter(self.where)

    def files(self) -> "list[pds.ParquetFileFragment]":
        """The data files that may hold such rows, by partition and by minimum and maximum."""
        return list(self._dataset.get_fragments(self.where))

    def count(self) -> int:
        """How many rows there are; reads no column that `where` does not name."""
        with self._explained():
            return int(self._dataset.count_rows(filter=self.where))

    def require_files(self) -> None:
        """Refuse a version whose files are gone, before anything is read.

        Raises:
            LakeError: it expired, and when; or a file that the table needs is lost.
        """
        paths = [file.path for file in self.files()]
        with self._explained():
            found = self.storage.filesystem(self.table).get_file_info(paths)
        for info in found:
            if info.type == fs.FileType.NotFound:
                raise _missing(self.storage, self.table, version=self.version, path=info.path)

    def to_arrow(self) -> pa.Table:
        """All rows in memory."""
        with self._explained():
            return self._scanner().to_table()

    def to_pandas(self) -> "pd.DataFrame":
        """All rows as a data frame."""
        frame: pd.DataFrame = self.to_arrow().to_pandas()
        return frame

    def batches(self, *, rows: int = _BATCH_ROWS) -> Iterator[pa.Table]:
        """The rows in tables of `rows` rows, the last with what is left; memory stays bounded."""
        if rows < 1:
            raise ValueError(f"rows is {rows}; a batch has at least one row.")
        scanner = self._scanner(batch_size=rows, **_READ_AHEAD)
        with self._explained():
            yield from _in_steps(scanner.to_batches(), self.schema, rows)

    def first(self) -> pa.Table | None:
        """The first row; None where there is none. Reads no file beyond the one that holds it."""
        columns = None if self.columns is None else list(self.columns)
        with self._explained():
            for file in self.files():
                scanner = file.scanner(
                    schema=self._dataset.schema,
                    columns=columns,
                    filter=self.where,
                    batch_size=_FIRST_ROWS,
                    batch_readahead=0,
                    fragment_readahead=0,
                )
                for batch in scanner.to_batches():
                    if batch.num_rows:
                        return pa.Table.from_batches([batch.slice(0, 1)])
        return None

    def to_ray(self) -> "RayDataset":
        """A Ray Dataset of Arrow blocks; its tasks read the files that are needed, no others."""
        from offline.ray_reading import ray_dataset

        return ray_dataset(self)

    def _scanner(self, **options: int) -> "pds.Scanner":
        columns = None if self.columns is None else list(self.columns)
        return self._dataset.scanner(columns=columns, filter=self.where, **options)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            raise self.explained(error) from None

    def explained(self, error: BaseException) -> LakeError:
        """What an error of a read means: which file is damaged, or that the version expired."""
        what = f"reading version {self.version} of {self.table}"
        return self.damage() or explain(error, self.storage, what)

    def damage(self) -> LakeError | None:
        """The first of the files needed that is missing or unreadable, as an error."""
        return damage(
            self.storage,
            self.table,
            version=self.version,
            files=self.files(),
            schema=self._dataset.schema,
            columns=None if self.columns is None else list(self.columns),
            where=self.where,
        )


def select(
    storage: Storage,
    table: str,
    *,
    version: int | None = None,
    timestamp: datetime | str | None = None,
    where: Where | None = None,
    columns: Sequence[str] | None = None,
) -> Selection:
    """Rows and columns of a table as it is now, or as it was.

    Args:
        storage: of the lake.
        table: its name.
        version: as which version; the newest by default, and that one from then on.
        timestamp: or as of when: ISO 8601 or a datetime.
        where: a pyarrow expression, or [(column, operator, value), …], all of which must hold.
        columns: names, in the order wanted.

    Raises:
        LakeError: there is no such table, version, column or operator, and what there is.
    """
    delta = open_table(storage, table, version=version, timestamp=timestamp)
    schema = _schema_of(delta)
    chosen = None if columns is None else checked_columns(columns, schema, table)
    rows = None if where is None else checked_where(where, schema, table)
    return Selection(storage, table, delta.version(), rows, chosen, delta)


def snapshot(storage: Storage, table: str, delta: "DeltaTable") -> "pds.FileSystemDataset":
    """An open table as an Arrow dataset with page checksums verified, over Arrow's file system.

    delta-rs's own file system under an Arrow dataset crashes or hangs when the process ends.
    """
    import pyarrow.dataset as pds

    filesystem = storage.filesystem(table)
    found = delta.to_pyarrow_dataset(filesystem=filesystem)
    # Without it a flipped bit in a page is a wrong number instead of an error.
    checked = pds.ParquetFragmentScanOptions(pre_buffer=True, page_checksum_verification=True)
    kind = pds.ParquetFileFormat(default_fragment_scan_options=checked)
    fragments = [
        kind.make_fragment(
            fragment.path, filesystem=filesystem, partition_expression=fragment.partition_expression
        )
        for fragment in sorted(found.get_fragments(), key=lambda fragment: fragment.path)
    ]
    return pds.FileSystemDataset(fragments, found.schema, kind, filesystem)


def damage(
    storage: Storage,
    table: str,
    *,
    version: int,
    files: "Sequence[pds.ParquetFileFragment]",
    schema: pa.Schema,
    columns: list[str] | None = None,
    where: pc.Expression | None = None,
) -> LakeError | None:
    """The first file that is missing or cannot be read, as an error; None if all can be.

    Args:
        storage: of the lake.
        table: its name.
        version: the version that was read.
        files: of that version, those that the read needed.
        schema: of the table.
        columns: what it read of them.
        where: and which rows.
    """
    try:
        found = storage.filesystem(table).get_file_info([file.path for file in files])
    except (OSError, pa.ArrowException) as error:
        return explain(error, storage, f"looking for the files of {table}")
    for info in found:
        if info.type == fs.FileType.NotFound:
            return _missing(storage, table, version=version, path=info.path)
    for file in files:
        try:
            for _ in file.to_batches(
                schema=schema, columns=columns, filter=where, batch_size=_BATCH_ROWS
            ):
                pass
        except (OSError, pa.ArrowException) as error:
            reason = explain(error, storage, f"reading {file.path}")
            # The system's refusals have a number, parquet's have none.
            if isinstance(error, OSError) and error.errno is not None:
                return reason
            return LakeError(
                f"data file {table}/{file.path} of version {version} is damaged: {reason} "
                "`millrace lake doctor` checks every file against the ledger."
            )
    return None


def _missing(storage: Storage, table: str, *, version: int, path: str) -> LakeError:
    newest = open_table(storage, table)
    if path in {file.path for file in snapshot(storage, table, newest).get_fragments()}:
        return LakeError(
            f"data file {table}/{path} is missing, although version {newest.version()} needs it; "
            "restore it from a copy. `millrace lake doctor` tells what else is lost."
        )
    vacuumed = [
        entry
        for entry in newest.history()
        if str(entry.get("operation", "")).startswith("VACUUM") and entry.get("timestamp")
    ]
    noted = newest.metadata().configuration.get(VACUUMED_PROPERTY)
    if vacuumed:
        noted = _time(max(e["timestamp"] for e in vacuumed))
    when = f"vacuumed {noted}" if noted else "vacuumed"
    return LakeError(
        f"version {version} of {table} expired: {when}, and its file {path} is gone. The newest "
        f"version is {newest.version()}."
    )


def _time(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")


def _schema_of(delta: "DeltaTable") -> pa.Schema:
    return pa.schema(delta.schema().to_arrow())


def _in_steps(found: Iterator[pa.RecordBatch], schema: pa.Schema, rows: int) -> Iterator[pa.Table]:
    held, number = [], 0
    for batch in found:
        held.append(batch)
        number += batch.num_rows
        while number >= rows:
            table = pa.Table.from_batches(held, schema)
            yield table.slice(0, rows)
            held = table.slice(rows).to_batches()
            number -= rows
    if number:
        yield pa.Table.from_batches(held, schema)
