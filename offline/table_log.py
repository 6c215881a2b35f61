"""One table's commit log as one writer extends it: each batch once, whatever else is committed."""

import time
from collections.abc import Sequence
from typing import Final, Protocol

from offline.commit_info import INFO as INFO
from offline.commit_info import VersionTakenError
from offline.delta_log import DeltaLog
from offline.errors import LakeBusyError
from offline.failpoints import fail_point
from offline.journal import Batch
from offline.local_log import LocalLog
from offline.parts import Part
from offline.patience import PATIENCE_S, is_hopeless, wait
from offline.storage import Storage, explain
from offline.tables import open_table

_CONFLICTS: Final = 100
_FAILURES: Final = 6
_WRITER_VERSION: Final = 2
"""Of Delta's protocol: from 3 on a table may have rules that a commit must keep."""


class TableLog(Protocol):
    """What `commit` needs of a log.

    Attributes:
        version: the newest that is known.
        last: the writer's newest seq in the table, -1 if none.
        seen: seq to token and version of the writer's commits that were met, not made, here.
    """

    version: int
    last: int
    seen: dict[int, tuple[str | None, int]]

    def refresh(self) -> None:
        """Take notice of the commits of others."""

    def append(self, parts: Sequence[Part], batch: Batch) -> int:
        """Commit data files and give the version that has them.

        Raises:
            VersionTakenError: look, and try again.
            OSError, DeltaError: the storage refused; it may have been written nevertheless.
        """


def open_log(storage: Storage, table: str, writer: str) -> TableLog:
    """The log of a table that is there and that this code knows.

    Raises:
        LakeError: it is not.
    """
    opened = open_table(storage, table)
    if storage.is_local and opened.protocol().min_writer_version <= _WRITER_VERSION:
        return LocalLog(storage, table, writer, opened)
    return DeltaLog(storage, table, writer, opened)


def look(storage: Storage, log: TableLog, table: str, *, writer: str, token: str) -> None:
    """Take notice of others' commits; refuse to go on if one was made under this writer's name.

    Raises:
        LakeBusyError: another process commits under this writer's name.
        LakeStorageError: the log cannot be read.
    """
    from deltalake.exceptions import DeltaError

    try:
        log.refresh()
    except (OSError, DeltaError) as error:
        raise explain(error, storage, f"looking for new commits of {table}") from None
    _refuse_rival(storage, log, table, writer=writer, token=token)


def _refuse_rival(storage: Storage, log: TableLog, table: str, *, writer: str, token: str) -> None:
    if any(other != token for other, _ in log.seen.values()):
        raise LakeBusyError(
            f"another process writes to {table} at {storage.uri} as {writer!r}, and was first. "
            "Stop one of the two, or resume under another run id."
        )


def commit(storage: Storage, log: TableLog, table: str, batch: Batch) -> int:
    """Commit a batch's data files to one table, once, however often it is called.

    Returns:
        A version of the table that has them.

    Raises:
        LakeBusyError: another process commits under this writer's name, or others all the time.
        LakeStorageError: the storage refuses.
    """
    from deltalake.exceptions import DeltaError

    doing = f"committing to {table}"
    conflicts = failures = 0
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            if conflicts or failures:
                log.refresh()
            token, met = log.seen.get(batch.seq, (None, log.version))
            if token == batch.token:
                return met  # in spite of an error
            _refuse_rival(storage, log, table, writer=batch.writer, token=batch.token)
            if log.last >= batch.seq:
                return met  # by a process that is dead
            if conflicts == _CONFLICTS:
                raise LakeBusyError(
                    f"{doing} at {storage.uri} lost against other writers {conflicts} times; "
                    "give batches more rows, so that there are fewer."
                )
            fail_point("commit.before")
            version = log.append(batch.parts[table], batch)
            fail_point("commit.after")
            return version
        except VersionTakenError:
            conflicts += 1
            end = time.monotonic() + PATIENCE_S
            wait(min(conflicts // 10, 2))
        except (OSError, DeltaError) as error:
            failures += 1
            if is_hopeless(error) or failures == _FAILURES or time.monotonic() > end:
                raise explain(error, storage, doing) from None
            wait(failures)
