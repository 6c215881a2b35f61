"""Compaction: small files of a partition into large ones, while runs go on appending."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from offline import schemas as s
from offline.commits import DataFile, live_files, read_commits
from offline.compaction_ledger import METADATA, OPTIMIZE, enter_compacted
from offline.errors import LakeBusyError, LakeError
from offline.files import file_sha256
from offline.ledger_check import read_ledger
from offline.storage import Storage, explain
from offline.table_history import chosen
from offline.tables import commit_conflict, open_table
from rl_ops import columns as c

if TYPE_CHECKING:
    from deltalake import DeltaTable, WriterProperties

TARGET_BYTES: Final = 128 << 20
_ATTEMPTS: Final = 10
_ROW_GROUP_ROWS: Final = 65_536


@dataclass(frozen=True)
class Compaction:
    """What compaction did to a table.

    Attributes:
        table: its name.
        version: the version that it made.
        files_before, files_after: those that went, and those that came for them.
        bytes_before, bytes_after: their sizes.
        rows: in them, before as after.
    """

    table: str
    version: int
    files_before: int
    files_after: int
    bytes_before: int
    bytes_after: int
    rows: int

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


def compact(
    storage: Storage,
    *,
    tables: Sequence[str] | None = None,
    run_id: str | None = None,
    target_bytes: int = TARGET_BYTES,
) -> list[Compaction]:
    """Rewrite small files of each partition into files of about `target_bytes`.

    Safe while runs append. Rows stay as they are, earlier versions stay readable until vacuum,
    and the new files are entered in the ledger with what they replace. Killed between the two,
    the next compaction, or `doctor` with repair, enters them.

    Args:
        storage: of the lake.
        tables: names; all by default.
        run_id: only files of this run; tables that are not partitioned by run are left alone.
        target_bytes: of a new file; larger files are not touched.

    Returns:
        The tables that were changed.

    Raises:
        LakeError: a file is not what was written, so compacting would make its damage good.
        LakeBusyError: others compact the same table all the time.
        LakeStorageError: the storage cannot be read or written.
    """
    if target_bytes < 1:
        raise LakeError(f"target_bytes is {target_bytes}; a file has at least one byte.")
    done = []
    for table in chosen(storage, tables):
        if run_id is None or s.TABLES[table].partition_by:
            found = _compact(storage, table, run_id=run_id, target_bytes=target_bytes)
            done += [found] if found else []
    return done


def _compact(
    storage: Storage, table: str, *, run_id: str | None, target_bytes: int
) -> Compaction | None:
    from deltalake import CommitProperties
    from deltalake.exceptions import DeltaError

    enter_compacted(storage, table)
    filters = None if run_id is None else [(c.RUN_ID, "=", run_id)]
    for _ in range(_ATTEMPTS):
        opened = open_table(storage, table)
        _refuse_damaged(storage, table, opened, run_id=run_id, target_bytes=target_bytes)
        try:
            metrics = opened.optimize.compact(
                partition_filters=filters,
                target_size=target_bytes,
                writer_properties=_encodings(s.TABLES[table].schema),
                commit_properties=CommitProperties(custom_metadata=METADATA),
            )
        except (DeltaError, OSError) as error:
            if not commit_conflict(error):
                raise explain(error, storage, f"compacting {table}") from None
            continue  # another compaction took some of the same files
        if not metrics["numFilesAdded"]:
            return None
        enter_compacted(storage, table)
        return _outcome(storage, table, opened.version())
    raise LakeBusyError(
        f"{table} at {storage.uri} could not be compacted in {_ATTEMPTS} attempts: another "
        "compaction works on it. Wait for its end."
    )


def _encodings(schema: pa.Schema) -> "WriterProperties":
    """As `offline.parts` writes: 21 bytes a row of CartPole, 33 with dictionaries everywhere.

    The lists' elements cannot be named here, so floats are the default.
    """
    from deltalake import ColumnProperties, WriterProperties

    lists = [field.type.value_type for field in schema if pa.types.is_list(field.type)]
    if not all(pa.types.is_floating(element) for element in lists):
        return WriterProperties(compression="ZSTD", compression_level=1)
    columns: dict[str, ColumnProperties] = {}
    for field in schema:
        if pa.types.is_boolean(field.type):
            columns[field.name] = ColumnProperties(encoding="RLE")
        elif pa.types.is_string(field.type) or pa.types.is_binary(field.type):
            columns[field.name] = ColumnProperties(encoding="PLAIN")
        elif not (pa.types.is_list(field.type) or pa.types.is_floating(field.type)):
            columns[field.name] = ColumnProperties(dictionary_enabled=True)
    return WriterProperties(
        compression="ZSTD",
        compression_level=1,
        max_row_group_size=_ROW_GROUP_ROWS,
        default_column_properties=ColumnProperties(
            dictionary_enabled=False, encoding="BYTE_STREAM_SPLIT"
        ),
        column_properties=columns,
    )


def _refuse_damaged(
    storage: Storage,
    table: str,
    opened: "DeltaTable",
    *,
    run_id: str | None,
    target_bytes: int,
) -> None:
    """A damaged file would get a new checksum, and be found by nobody any more."""
    if table == s.LEDGER.name:
        return
    entries = read_ledger(storage, open_table(storage, s.LEDGER.name))[table]
    small: dict[tuple[tuple[str, Any], ...], list[DataFile]] = {}
    for file in live_files(opened).values():
        if file.size < target_bytes and run_id in (None, file.partition.get(c.RUN_ID)):
            small.setdefault(tuple(file.partition.items()), []).append(file)
    for files in small.values():
        for file in files if len(files) > 1 else ():
            entry = entries.get(file.path)
            if entry and file_sha256(storage, f"{table}/{file.path}") != entry.sha256:
                raise LakeError(
                    f"{table}/{file.path} at {storage.uri} is not what was written: its sha256 "
                    "differs from the ledger's. Restore it from a copy; it was not compacted, "
                    "because nobody could tell afterwards. `millrace lake doctor --deep` checks "
                    "all files."
                )


def _outcome(storage: Storage, table: str, version: int) -> Compaction:
    """By the commit itself, which is the newest OPTIMIZE up to a version."""
    for commit in read_commits(storage, table, range(version, -1, -1)):
        if commit.operation == OPTIMIZE:
            break
    metrics = commit.info["operationMetrics"]
    before, after = metrics["filesRemoved"], metrics["filesAdded"]
    return Compaction(
        table=table,
        version=commit.version,
        files_before=len(commit.removes),
        files_after=len(commit.adds),
        bytes_before=_total_size(before),
        bytes_after=_total_size(after),
        rows=sum(file.rows or 0 for file in commit.adds),
    )


def _total_size(metric: str | Mapping[str, int]) -> int:
    parsed = json.loads(metric) if isinstance(metric, str) else metric
    return int(parsed["totalSize"])
