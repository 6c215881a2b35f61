"""What happened to a table: a line per version, from the commits themselves."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from offline.commits import Commit, list_log, read_commits
from offline.errors import LakeError
from offline.schemas import TABLES
from offline.storage import Storage
from offline.table_log import INFO


@dataclass(frozen=True)
class Version:
    """One version of a table.

    Attributes:
        table, version: which.
        at: when it was committed; None if the commit does not say.
        operation: as Delta calls it: WRITE, OPTIMIZE, CREATE TABLE, …
        rows_added, files_added, bytes_added: of the files that came; a compaction's rows are
            those of the files that went.
        files_removed: how many went.
        writer: the application that wrote it, with its sequence number; empty if it says none.
        fragments: that the writer says it brought.
        problem: why the commit could not be read; empty if it could.
    """

    table: str
    version: int
    at: datetime | None
    operation: str
    rows_added: int
    files_added: int
    bytes_added: int
    files_removed: int
    writer: str
    fragments: tuple[int, ...]
    problem: str

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self) | {"at": None if self.at is None else self.at.isoformat()}


def history(
    storage: Storage, *, tables: Sequence[str] | None = None, limit: int | None = None
) -> Iterator[Version]:
    """The versions of tables, newest first; of each table no more than `limit`.

    A commit that is damaged is a version with a problem, and hides no other.

    Raises:
        LakeError: there is no such table.
        LakeStorageError: the storage cannot be read.
    """
    for table in chosen(storage, tables):
        versions = sorted(list_log(storage, table).commits, reverse=True)[:limit]
        for commit in read_commits(storage, table, versions):
            yield _version(table, commit)


def chosen(storage: Storage, tables: Sequence[str] | None) -> list[str]:
    """The tables that a command is about: those named, or all that are there.

    Raises:
        LakeError: there is no table of such a name, or no lake.
        LakeStorageError: the storage cannot be read.
    """
    for table in tables or ():
        if table not in TABLES:
            raise LakeError(f"there is no table {table!r} in a lake; tables: {', '.join(TABLES)}.")
    there = [table for table in tables or TABLES if list_log(storage, table).last >= 0]
    if not there:
        what = f"table {' or '.join(tables)}" if tables else "lake"
        raise LakeError(
            f"there is no {what} at {storage.uri}; train with trace.enabled, or give another "
            "--storage."
        )
    return list(dict.fromkeys(tables)) if tables else there


def _version(table: str, commit: Commit) -> Version:
    said = _said(commit)
    writers = [f"{name} #{number}" for name, number in commit.transactions.items()]
    return Version(
        table=table,
        version=commit.version,
        at=commit.at,
        operation=commit.operation,
        rows_added=sum(file.rows or 0 for file in commit.adds),
        files_added=len(commit.adds),
        bytes_added=sum(file.size for file in commit.adds),
        files_removed=len(commit.removes),
        writer=", ".join(writers) or str(said.get("writer", "")),
        fragments=tuple(said.get("fragments", ())),
        problem=commit.problem,
    )


def _said(commit: Commit) -> dict[str, Any]:
    """What our own writers put into a commit beside Delta's keys."""
    try:
        said = json.loads(commit.info[INFO])
    except (ValueError, LookupError, TypeError):
        return {}
    return said if isinstance(said, dict) else {}
