"""Rows that depend on what a lake holds, written by one process at a time under one name."""

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

import pyarrow as pa
from pyarrow import fs

from offline.errors import LakeBusyError
from offline.lake import Lake
from offline.storage import Storage, explain
from offline.tables import create_tables
from offline.writer import LakeWriter

BUSY_S: Final = 60.0
"""How long to wait while another process writes under the name."""

Decide = Callable[[Lake], Mapping[str, pa.Table]]


def transact(storage: Storage, writer: str, decide: Decide) -> None:
    """Write what `decide` makes of the lake as it is, with nobody of that name in between.

    On disk others of the name are kept out meanwhile. In an object store nobody can be, but of two
    that decided side by side one commits, and the other decides anew.

    Args:
        storage: of the lake, whose tables are made or upgraded where they have to be.
        writer: the name; give few.
        decide: table → rows, nothing for no change. It may be called several times.

    Raises:
        LakeBusyError: others write under the name all the time.
        LakeError: the lake cannot be read or written.
    """
    create_tables(storage)
    deadline = time.monotonic() + BUSY_S
    while True:
        try:
            with LakeWriter(storage, writer) as opened:
                # After what a killed process of that name had promised was finished.
                rows = decide(Lake(storage))
                if rows:
                    opened.write(rows)
                return
        except LakeBusyError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def has_table(lake: Lake, table: str) -> bool:
    """Whether a lake is there, and new enough for a table: without it there are no rows.

    Raises:
        LakeStorageError: the storage cannot be read.
    """
    first = f"{table}/_delta_log/{0:020d}.json"
    try:
        found = lake.storage.filesystem().get_file_info(first)
    except (OSError, pa.ArrowException) as error:
        raise explain(error, lake.storage, f"looking for {table}") from None
    return bool(found.type != fs.FileType.NotFound)


def later_than(last: datetime | None) -> datetime:
    """Now, or a moment after `last` where the clock was set back: rows stay in their order."""
    now = datetime.now(UTC)
    return now if last is None or now > last else last + timedelta(microseconds=1)
