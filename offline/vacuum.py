"""Vacuum: data files that no recent version needs are removed, killed writers' leftovers too."""

from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pyarrow as pa
from pyarrow import fs

from offline import schemas as s
from offline.errors import LakeError
from offline.ledger_check import pending_files, read_ledger
from offline.storage import Storage, explain
from offline.table_history import chosen
from offline.tables import VACUUMED_PROPERTY, open_table, set_property

RETENTION_HOURS: Final = 7 * 24
SAFETY_S: Final = 3600.0
"""A file younger than this may be a live writer's, which no commit and no journal names yet."""
_THREADS: Final = 8


@dataclass(frozen=True)
class Vacuum:
    """What vacuum removed of a table, or would remove.

    Attributes:
        table: its name.
        files: paths below the table's folder.
        num_bytes: of these files.
        kept: files that no version needs, and that stay because a batch is still to be
            finished with them, because they may be a live writer's, or because the ledger
            names them while the commit that brought them is lost.
        removed: whether they are gone.
    """

    table: str
    files: tuple[str, ...]
    num_bytes: int
    kept: tuple[str, ...]
    removed: bool

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


def vacuum(
    storage: Storage,
    *,
    tables: Sequence[str] | None = None,
    retention_hours: int = RETENTION_HOURS,
    force: bool = False,
    dry_run: bool = True,
    safety_s: float = SAFETY_S,
) -> list[Vacuum]:
    """Remove data files that no version of the last `retention_hours` needs.

    Those are files that compaction replaced before then, and files of killed writers that no
    commit ever named. Older versions can no longer be read afterwards.

    Args:
        storage: of the lake.
        tables: names; all by default.
        retention_hours: for how long a version stays readable after a newer one replaced it.
        force: allow less than a week, which fails readers that are at work on an old version.
        dry_run: only say what would go.
        safety_s: files younger than this stay in any case.

    Raises:
        LakeError: less than a week without `force`, or a table that cannot be opened.
        LakeStorageError: the storage cannot be read, or a file not be removed.
    """
    if retention_hours < 0 or (retention_hours < RETENTION_HOURS and not force):
        raise LakeError(
            f"retention of {retention_hours} hours: runs and readers at work on a version that is "
            f"older would fail. Give {RETENTION_HOURS} or more, or force it (--force) while "
            "nothing else uses the lake."
        )
    return [
        _vacuum(storage, table, hours=retention_hours, dry_run=dry_run, safety_s=safety_s)
        for table in chosen(storage, tables)
    ]


def _vacuum(storage: Storage, table: str, *, hours: int, dry_run: bool, safety_s: float) -> Vacuum:
    candidates = _unneeded(storage, table, hours)
    # Looked for after the listing: a batch that begins later writes its files anew.
    kept = _protected(storage, table, candidates)
    infos = _infos(storage, table, [path for path in candidates if path not in kept])
    before = datetime.now(UTC) - timedelta(seconds=safety_s)
    old = [info for info in infos if info.mtime is not None and info.mtime < before]
    kept |= {info.path for info in infos} - {info.path for info in old}
    if not dry_run and old:
        # Before they go: who misses one of them later is told when it went.
        now = datetime.now(UTC).isoformat(timespec="seconds")
        set_property(storage, table, VACUUMED_PROPERTY, now)
        old = _remove(storage, table, old)
    paths = tuple(sorted(info.path for info in old))
    return Vacuum(table, paths, sum(info.size for info in old), tuple(sorted(kept)), not dry_run)


def _unneeded(storage: Storage, table: str, hours: int) -> list[str]:
    """By delta-rs, which knows when each file was replaced; only what Millrace would write."""
    from deltalake.exceptions import DeltaError

    opened = open_table(storage, table)
    try:
        # Listed only: it would remove the files of a batch that waits to be finished, too.
        paths = opened.vacuum(
            retention_hours=hours, dry_run=True, full=True, enforce_retention_duration=False
        )
    except (DeltaError, OSError) as error:
        raise explain(error, storage, f"looking for unneeded files of {table}") from None
    return sorted(path for path in paths if path.endswith(".parquet"))


def _protected(storage: Storage, table: str, candidates: Collection[str]) -> set[str]:
    """Those that may still become, or be made again, a part of the table."""
    pending = {path for name, path in pending_files(storage) if name == table}
    named: set[str] = set()
    if table != s.LEDGER.name:
        entries = read_ledger(storage, open_table(storage, s.LEDGER.name))[table]
        replaced = {path for entry in entries.values() for path in entry.replaces}
        named = entries.keys() - replaced
    return {path for path in candidates if path in pending or path in named}


def _infos(storage: Storage, table: str, paths: Sequence[str]) -> list[fs.FileInfo]:
    """Of those that are there."""
    filesystem = storage.filesystem(table)
    try:
        with ThreadPoolExecutor(_THREADS) as pool:
            infos = list(pool.map(filesystem.get_file_info, paths))
    except (OSError, pa.ArrowException) as error:
        raise explain(error, storage, f"looking at files of {table}") from None
    return [info for info in infos if info.type == fs.FileType.File]


def _remove(storage: Storage, table: str, infos: Iterable[fs.FileInfo]) -> list[fs.FileInfo]:
    filesystem = storage.filesystem(table)

    def remove(info: fs.FileInfo) -> bool:
        # A resumed writer uses the names of its killed predecessor's files again.
        if filesystem.get_file_info(info.path).mtime != info.mtime:
            return False
        filesystem.delete_file(info.path)
        return True

    infos = list(infos)
    try:
        with ThreadPoolExecutor(_THREADS) as pool:
            gone = list(pool.map(remove, infos))
    except (OSError, pa.ArrowException) as error:
        raise explain(error, storage, f"removing files of {table}") from None
    return [info for info, removed in zip(infos, gone, strict=True) if removed]
