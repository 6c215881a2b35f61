"""The commits of a Delta table, each file read by itself, so that a damaged one hides no other."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

import pyarrow as pa
from pyarrow import fs

from offline.storage import Storage, explain

if TYPE_CHECKING:
    from deltalake import DeltaTable

LOG: Final = "_delta_log"
_COMMIT: Final = re.compile(r"(\d{20})\.json")
_CHECKPOINT: Final = re.compile(r"(\d{20})\.checkpoint\..*parquet")
_ROWS: Final = re.compile(r'"numRecords"\s*:\s*(\d+)')
_THREADS: Final = 8


@dataclass(frozen=True)
class DataFile:
    """A data file as a commit names it.

    Attributes:
        path: below the table's folder, as it is on disk (the log has it percent-encoded).
        size: bytes.
        rows: None where the commit has no statistics.
        partition: column to value.
    """

    path: str
    size: int
    rows: int | None
    partition: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Commit:
    """What one commit file says.

    Attributes:
        version: which it makes.
        info: of commitInfo: operation, time in ms, and what the writer added.
        adds, removes: data files that came, paths of those that went.
        transactions: application to its sequence number.
        problem: why not all of it could be read; empty if it could.
    """

    version: int
    info: Mapping[str, Any] = field(default_factory=dict)
    adds: tuple[DataFile, ...] = ()
    removes: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)
    transactions: Mapping[str, int] = field(default_factory=dict)
    problem: str = ""

    @property
    def operation(self) -> str:
        return str(self.info.get("operation", ""))

    @property
    def at(self) -> datetime | None:
        stamp = self.info.get("timestamp")
        try:
            return None if stamp is None else datetime.fromtimestamp(stamp / 1000, UTC)
        except (TypeError, ValueError, OverflowError, OSError):
            return None


@dataclass(frozen=True)
class Listing:
    """What lies in a log's folder.

    Attributes:
        commits: version to the file's bytes, ascending.
        checkpoints: version to its files, ascending.
    """

    commits: Mapping[int, int]
    checkpoints: Mapping[int, tuple[str, ...]]

    @property
    def last(self) -> int:
        return max([-1, *self.commits, *self.checkpoints])


def list_log(storage: Storage, table: str) -> Listing:
    """The log of a table, empty if there is none.

    Raises:
        LakeStorageError: the storage cannot be read.
    """
    selector = fs.FileSelector(LOG, allow_not_found=True)
    try:
        infos = storage.filesystem(table).get_file_info(selector)
    except (OSError, pa.ArrowException) as error:
        raise explain(error, storage, f"listing the commits of {table}") from None
    commits: dict[int, int] = {}
    checkpoints: dict[int, tuple[str, ...]] = {}
    for info in sorted(infos, key=lambda info: str(info.base_name)):
        if match := _COMMIT.fullmatch(info.base_name):
            commits[int(match[1])] = info.size or 0
        elif match := _CHECKPOINT.fullmatch(info.base_name):
            version = int(match[1])
            checkpoints[version] = (*checkpoints.get(version, ()), info.base_name)
    return Listing(commits, checkpoints)


def read_commits(storage: Storage, table: str, versions: Iterable[int]) -> Iterator[Commit]:
    """Commits by their versions, in the order asked for; some are read ahead.

    A file that is not there, or is not a commit, gives a Commit that says so.

    Raises:
        LakeStorageError: the storage cannot be read.
    """
    log = storage.filesystem(table, LOG)

    def read(version: int) -> Commit:
        try:
            with log.open_input_stream(f"{version:020d}.json") as stream:
                return parse_commit(version, stream.read())
        except FileNotFoundError:
            return Commit(version, problem="is missing")
        except (OSError, pa.ArrowException) as error:
            raise explain(error, storage, f"reading commit {version} of {table}") from None

    with ThreadPoolExecutor(_THREADS) as pool:
        for some in _batched(versions, 8 * _THREADS):
            yield from pool.map(read, some)


def _batched(values: Iterable[int], size: int) -> Iterator[list[int]]:
    batch: list[int] = []
    for value in values:
        batch.append(value)
        if len(batch) == size:
            yield batch
            batch = []
    yield batch


def parse_commit(version: int, content: bytes) -> Commit:
    """A commit from its file's bytes; whatever of it makes sense, and the problem if not all does.

    Args:
        version: by the file's name.
        content: one JSON action a line.
    """
    info: dict[str, Any] = {}
    adds: list[DataFile] = []
    removes: dict[str, Mapping[str, str | None]] = {}
    transactions: dict[str, int] = {}
    lines = content.splitlines()
    problem = "" if content.strip() else "is an empty file"
    for number, line in enumerate(lines, 1):
        try:
            action = json.loads(line) if line.strip() else {}
            if "add" in action:
                adds.append(_data_file(action["add"]))
            elif "remove" in action:
                removes[unquote(action["remove"]["path"])] = (
                    action["remove"].get("partitionValues") or {}
                )
            elif "txn" in action:
                transactions[action["txn"]["appId"]] = action["txn"]["version"]
            elif "commitInfo" in action:
                info = dict(action["commitInfo"])
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            problem = f"cannot be read in line {number}: {type(error).__name__}: {error}"
            break
    problem = problem or _missing_actions(info, len(adds), len(removes))
    return Commit(version, info, tuple(adds), removes, transactions, problem)


def _data_file(add: Mapping[str, Any]) -> DataFile:
    rows = _ROWS.search(add.get("stats") or "")
    return DataFile(
        unquote(add["path"]),
        int(add["size"]),
        int(rows[1]) if rows else None,
        add.get("partitionValues") or {},
    )


def _missing_actions(info: Mapping[str, Any], adds: int, removes: int) -> str:
    """A file cut between two lines is whole JSON; the metrics in its first line tell."""
    metrics = info.get("operationMetrics")
    if not isinstance(metrics, dict):
        return ""
    for (snake, camel), there in (
        (("num_added_files", "numFilesAdded"), adds),
        (("num_removed_files", "numFilesRemoved"), removes),
    ):
        wanted = metrics.get(snake, metrics.get(camel))
        if isinstance(wanted, int) and wanted > there:
            return f"lists {there} of the {wanted} files that its metrics count; it was cut short"
    return ""


def live_files(opened: "DeltaTable") -> dict[str, DataFile]:
    """The data files of an open table's version, by path."""
    actions = pa.table(opened.get_add_actions())
    partition = actions["partition"] if "partition" in actions.column_names else None
    values = [{}] * actions.num_rows if partition is None else partition.to_pylist()
    columns = (actions[name].to_pylist() for name in ("path", "size_bytes", "num_records"))
    return {
        unquote(path): DataFile(unquote(path), size, rows, parts or {})
        for path, size, rows, parts in zip(*columns, values, strict=True)
    }


@dataclass(frozen=True)
class Replayed:
    """What a log's readable commits make of a table, without delta-rs.

    Attributes:
        live: paths of its files.
        removed: paths that were removed after the checkpoint it begins with.
        transactions: application to its last sequence number.
        times: version to when it was committed.
    """

    live: frozenset[str]
    removed: frozenset[str]
    transactions: Mapping[str, int]
    times: Mapping[int, datetime]


def replay(storage: Storage, table: str, listing: Listing, *, skip: Iterable[int] = ()) -> Replayed:
    """The newest state, from the newest checkpoint on, as if some commits had changed nothing.

    Raises:
        LakeStorageError: the storage, or the checkpoint, cannot be read.
    """
    start = max(listing.checkpoints, default=-1)
    live = _checkpointed(storage, table, listing.checkpoints.get(start, ()))
    removed: set[str] = set()
    transactions: dict[str, int] = {}
    times: dict[int, datetime] = {}
    left_out = set(skip)
    versions = [v for v in listing.commits if v > start and v not in left_out]
    for commit in read_commits(storage, table, versions):
        live.difference_update(commit.removes)
        live.update(file.path for file in commit.adds)
        removed.update(commit.removes)
        transactions.update(commit.transactions)
        if commit.at is not None:
            times[commit.version] = commit.at
    return Replayed(frozenset(live), frozenset(removed), transactions, times)


def _checkpointed(storage: Storage, table: str, files: Iterable[str]) -> set[str]:
    import pyarrow.parquet as pq

    log, paths = storage.filesystem(table, LOG), set[str]()
    try:
        for file in files:
            with pq.ParquetFile(file, filesystem=log) as parquet:
                for batch in parquet.iter_batches(columns=["add.path"]):
                    found = batch.column(0).field("path").drop_null()
                    paths.update(unquote(path) for path in found.to_pylist())
    except (OSError, pa.ArrowException) as error:
        raise explain(error, storage, f"reading a checkpoint of {table}'s log") from None
    return paths
