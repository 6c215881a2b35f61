"""A lake to read from: its tables as of any version, and SQL over all of them."""

import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partialmethod
from typing import Any

import pyarrow as pa
from pyarrow import fs

from offline import schemas as s
from offline.errors import LakeError
from offline.filters import Where
from offline.selection import Selection, select
from offline.storage import Storage, explain
from offline.tables import lacks, open_table


class Lake:
    """Reads a lake, also while a run writes to it; writes nothing.

    Args:
        storage: its folder, s3://bucket/prefix, or a Storage.
    """

    def __init__(self, storage: str | os.PathLike[str] | Storage) -> None:
        self.storage = Storage.at(storage)

    def __repr__(self) -> str:
        return f"Lake({self.storage.uri!r})"

    def table(
        self,
        name: str,
        *,
        version: int | None = None,
        timestamp: datetime | str | None = None,
        where: Where | None = None,
        columns: Sequence[str] | None = None,
    ) -> Selection:
        """Rows and columns of a table, of the newest version unless another is asked for.

        `lake.steps(…)`, `lake.episodes(…)` and so on are the same for one table each.

        Args:
            name: of the table, as `offline.schemas.TABLES` has them.
            version: as which version of the table.
            timestamp: or as of when: ISO 8601 or a datetime, UTC unless it says otherwise.
            where: a pyarrow expression, or [(column, operator, value), …], all of which must hold.
            columns: names, in the order wanted.

        Raises:
            LakeError: there is no such lake, table, version or column, and what there is.
        """
        return select(
            self.storage, name, version=version, timestamp=timestamp, where=where, columns=columns
        )

    steps = partialmethod(table, s.STEPS.name)
    episodes = partialmethod(table, s.EPISODES.name)
    runs = partialmethod(table, s.RUNS.name)
    metrics = partialmethod(table, s.METRICS.name)
    consumption = partialmethod(table, s.CONSUMPTION.name)
    evaluations = partialmethod(table, s.EVALUATIONS.name)
    checkpoints = partialmethod(table, s.CHECKPOINTS.name)
    failures = partialmethod(table, s.FAILURES.name)
    rejected = partialmethod(table, s.REJECTED.name)
    ope_results = partialmethod(table, s.OPE_RESULTS.name)
    workflow_runs = partialmethod(table, s.WORKFLOW_RUNS.name)
    registry = partialmethod(table, s.REGISTRY.name)
    ledger = partialmethod(table, s.LEDGER.name)

    def versions(self) -> dict[str, int]:
        """The newest version of each table, as `sql(versions=…)` takes them back.

        One of `offline.schemas.LATER` that is not there is left out.

        Raises:
            LakeError: there is no lake, or a table of it cannot be opened.
        """
        if not self.exists():
            raise LakeError(
                f"there is no lake at {self.storage.uri}; train with trace on, or give --storage."
            )
        there = [name for name in s.TABLES if not lacks(self.storage, name)]
        return {name: open_table(self.storage, name).version() for name in there}

    def exists(self) -> bool:
        """Whether there is any table.

        Raises:
            LakeStorageError: the storage cannot be read.
        """
        logs = [f"{name}/_delta_log" for name in s.TABLES]
        try:
            found = self.storage.filesystem().get_file_info(logs)
        except (OSError, pa.ArrowException) as error:
            raise explain(error, self.storage, "looking for tables") from None
        return any(info.type != fs.FileType.NotFound for info in found)

    def sql(
        self,
        query: str,
        parameters: Mapping[str, Any] | Sequence[Any] | None = None,
        *,
        versions: Mapping[str, int] | None = None,
        memory: str = "1GiB",
        time_limit_s: float = 60.0,
        temp_dir: str | os.PathLike[str] | None = None,
    ) -> pa.Table:
        """The answer of DuckDB to one SELECT over the tables and views of docs/sql.md.

        Each call sees the newest commits. Nothing but the lake can be read and nothing can be
        written, whatever the query says.

        Args:
            query: one statement that reads: SELECT, WITH, FROM, VALUES, DESCRIBE, SHOW, EXPLAIN.
            parameters: for ? or $name in it; bound, never formatted in.
            versions: of tables that are to be read as they were.
            memory: what the engine may use before it spills to disk, as 512MiB; also the most
                that the answer may take.
            time_limit_s: after which the query is interrupted.
            temp_dir: where to spill; the system's folder for temporary files by default.

        Raises:
            QueryError: the query is refused, wrong, or needs more time or memory.
            LakeError: a table cannot be opened, or a data file is damaged.
        """
        from offline.sql import Limits, run_query

        limits = Limits(memory=memory, time_limit_s=time_limit_s, temp_dir=temp_dir)
        return run_query(self.storage, query, parameters, versions=versions, limits=limits)
