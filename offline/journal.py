"""Journals of batches: what was promised to the lake before its tables say so, and who writes.

`_millrace/pending/<writer>/<seq>.json` is there from when all data files of a batch are until the
last of its commits is: whoever finds one finishes the batch.
"""

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote

from offline.errors import LakeBusyError, LakeError
from offline.files import OWN_FOLDER, list_files, make_folder, new_file, read_file, remove_file
from offline.parts import Part
from offline.storage import Storage, explain

PENDING: Final = f"{OWN_FOLDER}/pending"
LOCKS: Final = f"{OWN_FOLDER}/locks"
_FORMAT: Final = 1
_LONGEST_NAME: Final = 200


@dataclass(frozen=True)
class Batch:
    """A batch whose data files are whole, and whose commits may be made or not.

    Attributes:
        writer: application id of its Delta transactions.
        seq: its number, the transactions' version.
        token: of the process that wrote the files; tells its commits from a rival's.
        fragments: in it.
        parts: table to its data files, in the order of the commits; the ledger's are last.
    """

    writer: str
    seq: int
    token: str
    fragments: tuple[int, ...]
    parts: Mapping[str, tuple[Part, ...]]

    @property
    def path(self) -> str:
        """Of its journal, relative to the lake."""
        # Rivals for a writer's name, which only an object store lets both begin, do not meet.
        return f"{writer_folder(self.writer)}/{self.seq:010d}-{self.token}.json"

    @property
    def rows(self) -> dict[str, int]:
        return {table: sum(part.rows for part in parts) for table, parts in self.parts.items()}


def require_name(writer: str) -> None:
    """Refuse a writer's name that cannot be a folder's."""
    if not writer or "\0" in writer or len(quote(writer, safe="")) > _LONGEST_NAME:
        raise LakeError(
            f"writer {writer!r} is no name for one: give 1 to {_LONGEST_NAME} bytes, "
            "percent-encoded."
        )


def name_hash(writer: str) -> str:
    """Of a writer's name: the beginning of its files' names."""
    return sha256(writer.encode()).hexdigest()[:12]


def writer_folder(writer: str) -> str:
    # A folder's name of dots only would be another folder.
    return f"{PENDING}/{quote(writer, safe='').replace('.', '%2E')}"


def write_journal(storage: Storage, batch: Batch) -> None:
    """Promise a batch; from here on it will be in the lake.

    Raises:
        LakeStorageError: it cannot be written, and nothing is promised.
    """
    said = {"format": _FORMAT, **asdict(batch)}
    text = json.dumps(said, allow_nan=False, ensure_ascii=False)
    with new_file(
        storage,
        batch.path,
        partial=f"{name_hash(batch.writer)}-journal",
        point="journal.partial",
    ) as file:
        file.write(text.encode())


def read_journals(storage: Storage, writer: str | None = None) -> list[Batch]:
    """The pending batches of one writer or of all, those of each in their order.

    Raises:
        LakeError: a journal cannot be read; it is named.
        LakeStorageError: the storage cannot be read.
    """
    names = pending_writers(storage) if writer is None else [writer]
    batches: list[Batch] = []
    for name in names:
        for path in list_files(storage, writer_folder(name)):
            content = read_file(storage, path)
            if content is not None:
                batches.append(_parsed(storage, path, content))
    return batches


def _parsed(storage: Storage, path: str, content: bytes) -> Batch:
    try:
        said: dict[str, Any] = json.loads(content)
        if said["format"] != _FORMAT:
            raise ValueError(f"format {said['format']}, expected {_FORMAT}")
        parts = {
            table: tuple(Part(**part) for part in parts) for table, parts in said["parts"].items()
        }
        fragments = tuple(int(fragment) for fragment in said["fragments"])
        return Batch(said["writer"], int(said["seq"]), said["token"], fragments, parts)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise LakeError(
            f"journal {path} at {storage.uri} cannot be read: {type(error).__name__}: {error}. It "
            "may promise rows that no table has yet: keep a copy, then move it away to go on "
            "without them."
        ) from None


def remove_journal(storage: Storage, batch: Batch) -> None:
    """Forget a batch that is in all of its tables."""
    remove_file(storage, batch.path)


def pending_writers(storage: Storage) -> list[str]:
    """Names of the writers that have a batch under way, or had when they died."""
    folders = {path.rpartition("/")[0] for path in list_files(storage, PENDING)}
    return sorted(unquote(folder.rpartition("/")[2]) for folder in folders)


class WriterLock:
    """Held while a writer of that name lives; of folders only, as object stores have no locks.

    Raises:
        LakeBusyError: another writer of that name lives, in this process or in another.
        LakeStorageError: the lock's file cannot be made.
    """

    def __init__(self, storage: Storage, writer: str) -> None:
        self._folder: Path | None = None
        self._handle: int | None = None
        self._released = False
        if not storage.is_local:
            return
        self._folder = Path(storage.uri, writer_folder(writer))
        self._path = Path(storage.uri, LOCKS, f"{self._folder.name}.lock")
        try:
            make_folder(self._path.parent)
            self._handle = self._taken(storage, writer)
        except OSError as error:
            raise explain(error, storage, f"locking writer {writer!r}") from None

    def _taken(self, storage: Storage, writer: str) -> int:
        while True:
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_current(handle):
                    os.truncate(handle, 0)
                    os.write(handle, f"{os.getpid()}\n".encode())
                    return handle
                os.close(handle)
            except BlockingIOError:
                owner = os.read(handle, 20).decode(errors="replace").strip()
                os.close(handle)
                raise LakeBusyError(
                    f"process {owner or 'unknown'} writes to {storage.uri} as {writer!r} already; "
                    "stop it, or resume under another run id."
                ) from None
            except BaseException:
                os.close(handle)
                raise

    def _is_current(self, handle: int) -> bool:
        """Whether the file that is locked is still the one of that name."""
        try:
            return os.path.samestat(os.fstat(handle), os.stat(self._path))
        except FileNotFoundError:
            return False

    @property
    def released(self) -> bool:
        return self._released

    def release(self) -> None:
        """Let others write under the name; leaves no file behind."""
        self._released = True
        if self._handle is None or self._folder is None:
            return
        if self._folder.is_dir() and not any(self._folder.iterdir()):
            self._folder.rmdir()
        self._path.unlink(missing_ok=True)
        os.close(self._handle)
        self._handle = None
