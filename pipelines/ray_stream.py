"""Files of logged steps through Ray Data: its tasks read and prepare what comes next."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import ray.data
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from pipelines.offline_stream import FileReader
from pipelines.ray_session import tune_ray_data


class FilesSource(Datasource):  # type: ignore[misc]
    """A read task for each file, in order."""

    def __init__(self, reader: FileReader, files: Sequence[int]) -> None:
        self._reader, self._files = reader, files

    def get_name(self) -> str:
        """For Ray's dashboard."""
        return "LoggedSteps"

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown: files are compressed."""
        return None

    def get_read_tasks(
        self,
        parallelism: int,  # noqa: ARG002 - a task for each file keeps their order
        per_task_row_limit: int | None = None,
        data_context: Any = None,  # noqa: ARG002 - Ray's signature
    ) -> list[ReadTask]:
        """See Ray."""
        return [
            ReadTask(
                partial(self._reader.tables, file, place=place),
                BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None),
                per_task_row_limit=per_task_row_limit,
            )
            for place, file in enumerate(self._files)
        ]


def read_on_ray(reader: FileReader, files: Sequence[int]) -> Iterator[pa.Table]:
    """The tables of files in order, while tasks read ahead as far as Ray Data lets them."""
    tune_ray_data()
    dataset = ray.data.read_datasource(
        FilesSource(reader, files),
        override_num_blocks=len(files),
        concurrency=min(2, len(files)),
    )
    dataset.context.execution_options.preserve_order = True  # a copy, this data set's own
    batches = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)
    yield from (table for table in batches if table.num_rows)
