"""A selection of the lake as a Ray Dataset: read tasks over the files that it needs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from offline.selection import Selection, damage
from offline.storage import Storage, explain

if TYPE_CHECKING:
    import pyarrow.dataset as pds
    from ray.data import Dataset

    RayDataset: TypeAlias = Dataset

# Ray glues small tables to blocks of its own size; a file of frames is too much for one table.
_BATCH_ROWS: Final = 4096


@dataclass(frozen=True)
class _Share:
    """What one read task reads; travels to it."""

    storage: Storage
    table: str
    version: int
    files: "Sequence[pds.ParquetFileFragment]"
    schema: pa.Schema
    columns: list[str] | None
    where: pc.Expression | None


def ray_dataset(selection: Selection) -> "RayDataset":
    """A lazy Ray Dataset of Arrow blocks.

    Ray's own `read_parquet` takes no filter with Arrow's file system, and `read_delta` neither a
    predicate nor a time; a source of ours hands it the files that are left after pruning.
    """
    # Ray's processes have to be able to open the lake, so what is read is decided here.
    import ray.data
    from ray.data import Datasource, ReadTask
    from ray.data.block import BlockMetadata

    files, whole = selection.files(), selection.dataset().schema

    class LakeSource(Datasource):  # type: ignore[misc]
        """Of one selection."""

        def get_name(self) -> str:
            return f"Lake({selection.table})"

        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(
            self,
            parallelism: int,
            per_task_row_limit: int | None = None,
            data_context: Any = None,  # noqa: ARG002 - Ray's signature
        ) -> list[ReadTask]:
            return [
                ReadTask(
                    partial(_read, _share(selection, group, whole)),
                    BlockMetadata(
                        num_rows=None,
                        size_bytes=None,
                        input_files=[file.path for file in group],
                        exec_stats=None,
                    ),
                    schema=selection.schema,
                    per_task_row_limit=per_task_row_limit,
                )
                for group in _groups(files, parallelism)
            ]

    return ray.data.read_datasource(LakeSource())


def _groups(
    files: "list[pds.ParquetFileFragment]", number: int
) -> "list[list[pds.ParquetFileFragment]]":
    """Neighbouring files in at most `number` groups; one empty group where there is no file."""
    number = max(1, min(number, len(files)))
    ends = [len(files) * i // number for i in range(number + 1)]
    return [files[start:end] for start, end in pairwise(ends)]


def _share(
    selection: Selection, files: "Sequence[pds.ParquetFileFragment]", schema: pa.Schema
) -> _Share:
    columns = None if selection.columns is None else list(selection.columns)
    return _Share(
        selection.storage,
        selection.table,
        selection.version,
        files,
        schema,
        columns,
        selection.where,
    )


def _read(share: _Share) -> Iterator[pa.Table]:
    names = share.schema.names if share.columns is None else share.columns
    empty = pa.schema([share.schema.field(name) for name in names]).empty_table()
    rows = 0
    for file in share.files:
        for batch in _batches(share, file):
            rows += batch.num_rows
            if batch.num_rows:
                yield pa.Table.from_batches([batch])
    if not rows:
        yield empty


def _batches(share: _Share, file: "pds.ParquetFileFragment") -> Iterator[pa.RecordBatch]:
    try:
        yield from file.to_batches(
            schema=share.schema,
            columns=share.columns,
            filter=share.where,
            batch_size=_BATCH_ROWS,
            batch_readahead=2,
        )
    except (OSError, pa.ArrowException) as error:
        found = damage(
            share.storage,
            share.table,
            version=share.version,
            files=[file],
            schema=share.schema,
            columns=share.columns,
            where=share.where,
        )
        raise found or explain(error, share.storage, f"reading {file.path}") from None
