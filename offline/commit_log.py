"""A table's commit log: its versions and their times, and the damages delta-rs does not see."""

import json
import os
import re
from bisect import bisect_right
from datetime import UTC, datetime
from typing import Final

import pyarrow as pa
from pyarrow import fs

from offline.errors import LakeError
from offline.storage import Storage, explain

CHECKPOINT_INTERVAL: Final = 20


def log_files(storage: Storage, name: str) -> list[str]:
    """Names of the files of a table's commit log, which must be there."""
    try:
        log = storage.filesystem(name, "_delta_log")
        return [info.base_name for info in log.get_file_info(fs.FileSelector(""))]
    except (OSError, pa.ArrowException) as error:
        raise explain(error, storage, f"listing the commits of {name}") from None


def _commits_of(files: list[str]) -> list[int]:
    return sorted(int(file[:20]) for file in files if re.fullmatch(r"\d{20}\.json", file))


def has_commit(storage: Storage, name: str, version: int) -> bool:
    """Whether the file of a commit is there; the log of an old table keeps only the newer ones."""
    try:
        info = storage.filesystem(name, "_delta_log").get_file_info(f"{version:020d}.json")
    except (OSError, pa.ArrowException) as error:
        raise explain(error, storage, f"looking up version {version} of {name}") from None
    return bool(info.is_file)


def first_version(storage: Storage, name: str) -> int:
    """The oldest version that can still be put together: the first commit, or a checkpoint."""
    files = log_files(storage, name)
    checkpoints = [int(f[:20]) for f in files if re.fullmatch(r"\d{20}\.checkpoint\..*", f)]
    if 0 in _commits_of(files) or not checkpoints:
        return 0
    return min(checkpoints)


def refuse_empty_commits(storage: Storage, name: str, version: int) -> None:
    """delta-rs reads an empty commit as one that changed nothing, and its rows are not missed.

    Only a file system leaves such files; an object store's put is whole or not there. Commits
    before the last checkpoint no longer matter to what is read.
    """
    if not storage.is_local:
        return
    for number in range(max(0, version - CHECKPOINT_INTERVAL), version + 1):
        path = f"{storage.table_uri(name)}/_delta_log/{number:020d}.json"
        if os.path.exists(path) and os.path.getsize(path) == 0:
            raise LakeError(
                f"commit {number} of {name} at {storage.uri} is an empty file, so its rows are "
                "lost to every reader. `millrace lake doctor` lists them from the ledger."
            )


def files_without_log(storage: Storage, name: str) -> list[str]:
    """What lies in a table's folder beside the log: a new table over old data would hide it."""
    try:
        infos = storage.filesystem().get_file_info(fs.FileSelector(name, allow_not_found=True))
    except FileNotFoundError:
        # Arrow looks twice, and another process may be making the folder between the looks.
        return []
    except (OSError, pa.ArrowException) as error:
        raise explain(error, storage, f"listing {name}") from None
    return [info.base_name for info in infos if info.base_name != "_delta_log"]


def version_at(storage: Storage, name: str, timestamp: datetime | str, *, latest: int) -> int:
    """The last version committed at a time or before.

    By the time within each commit: delta-rs goes by the file's, which a copy of the lake or a
    checkout changes, and gives version 0 for times before it.

    Args:
        storage: of the lake.
        name: of the table.
        timestamp: ISO 8601 or a datetime; UTC unless it says otherwise.
        latest: the newest version there is.

    Raises:
        LakeError: not a time, or one before the first commit.
    """
    instant = _instant(timestamp)
    first = first_version(storage, name)
    commits = [n for n in _commits_of(log_files(storage, name)) if first <= n <= latest]
    position = bisect_right(commits, instant, key=lambda n: committed_at(storage, name, n))
    if position == 0:
        oldest = committed_at(storage, name, commits[0]).isoformat(timespec="milliseconds")
        raise LakeError(
            f"timestamp {instant.isoformat()} is before the first commit of {name}, {oldest}."
        )
    return commits[position - 1]


def _instant(timestamp: datetime | str) -> datetime:
    try:
        instant = (
            timestamp if isinstance(timestamp, datetime) else datetime.fromisoformat(timestamp)
        )
    except (TypeError, ValueError):
        raise LakeError(
            f"timestamp {timestamp!r} is no time; give ISO 8601, as 2026-10-07T12:00:00Z."
        ) from None
    return instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant.astimezone(UTC)


def committed_at(storage: Storage, name: str, number: int) -> datetime:
    """When a commit was made, by its own account.

    Raises:
        LakeError: the commit cannot be read, or says no time.
    """
    log, file = storage.filesystem(name, "_delta_log"), f"{number:020d}.json"
    try:
        with log.open_input_stream(file) as stream:
            lines = stream.read().splitlines()
        infos = [json.loads(line)["commitInfo"] for line in lines if b'"commitInfo"' in line]
        return datetime.fromtimestamp(infos[0]["timestamp"] / 1000, UTC)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise LakeError(
            f"commit {number} of {name} at {storage.uri} has no readable time "
            f"({type(error).__name__}); read by version, and see `millrace lake doctor`."
        ) from None
