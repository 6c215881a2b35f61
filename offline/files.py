"""Files that are whole or not there, whatever is killed when: on a disk and in an object store."""

import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import pyarrow as pa
from pyarrow import fs

from offline.failpoints import fail_point
from offline.patience import patiently
from offline.storage import Storage, explain

OWN_FOLDER: Final = "_millrace"
"""Beside the tables: journals, locks and unfinished files."""
PARTIAL: Final = "partial"


class HashedFile:
    """A file object that counts and hashes what is written to it; Arrow needs no more."""

    def __init__(self, target: io.RawIOBase | io.BufferedIOBase) -> None:
        self._target = target
        self._sha256 = hashlib.sha256()
        self.size = 0
        self.closed = False

    def write(self, data: bytes) -> int:
        self._sha256.update(data)
        self.size += len(data)
        self._target.write(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """The target is closed by who opened it."""
        self.closed = True

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()


@contextmanager
def new_file(storage: Storage, path: str, *, partial: str, point: str) -> Iterator[HashedFile]:
    """Write a file of a lake; it appears whole when the block ends, and not if the block raises.

    Args:
        storage: of the lake.
        path: of the file, relative to the lake; one that is there is replaced.
        partial: name of the unfinished file, one per writer; a later one of that name replaces it.
        point: fail point between the last byte and the file's appearance.

    Raises:
        LakeStorageError: it cannot be written.
    """
    try:
        if storage.is_local:
            with _local_file(
                Path(storage.uri, path), partial_path(storage, partial), point
            ) as file:
                yield file
            return
        # An upload that is given up half-way would end as a truncated object.
        memory = io.BytesIO()
        file = HashedFile(memory)
        yield file
        fail_point(point)
        patiently(lambda: _put(storage, path, memory.getbuffer()))
    except (OSError, pa.ArrowException) as error:
        raise explain(error, storage, f"writing {path}") from None


def partial_path(storage: Storage, name: str) -> Path:
    """Where a writer's unfinished files are; the next writer of that name removes them."""
    return Path(storage.uri, OWN_FOLDER, PARTIAL, name)


@contextmanager
def _local_file(path: Path, partial: Path, point: str) -> Iterator[HashedFile]:
    for folder in (path.parent, partial.parent):
        make_folder(folder)
    with partial.open("wb", buffering=0) as target:
        try:
            file = HashedFile(_Whole(target))
            yield file
            os.fsync(target.fileno())
            fail_point(point)
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    sync_folder(path.parent)


class _Whole(io.RawIOBase):
    """A disk that fills up may take a part of a write and say so by a number only."""

    def __init__(self, target: io.FileIO) -> None:
        self._target = target

    def write(self, data: bytes) -> int:  # type: ignore[override]
        view = memoryview(data)
        while len(view):
            view = view[self._target.write(view) :]
        return len(data)


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, and have the disk remember them."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Have the disk remember which files a folder has."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _filesystem(storage: Storage) -> fs.FileSystem:
    # The attempts are counted here, where there is an end to their time.
    return storage.filesystem(attempts=1)


def _put(storage: Storage, path: str, data: memoryview) -> None:
    with _filesystem(storage).open_output_stream(path) as stream:
        stream.write(data)


def read_file(storage: Storage, path: str) -> bytes | None:
    """A file's bytes; None if it is not there.

    Raises:
        LakeStorageError: it cannot be read.
    """

    def read() -> bytes | None:
        try:
            with _filesystem(storage).open_input_stream(path) as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return None

    try:
        return patiently(read)
    except (OSError, pa.ArrowException) as error:
        raise explain(error, storage, f"reading {path}") from None


def file_sha256(storage: Storage, path: str) -> str | None:
    """The checksum of a file as it is now; None if it is not there.

    Raises:
        LakeStorageError: it cannot be read.
    """

    def read() -> str | None:
        digest = hashlib.sha256()
        try:
            with _filesystem(storage).open_input_stream(path) as stream:
                while chunk := stream.read(1 << 20):
                    digest.update(chunk)
        except FileNotFoundError:
            return None
        return digest.hexdigest()

    try:
        return patiently(read)
    except (OSError, pa.ArrowException) as error:
        raise explain(error, storage, f"reading {path}") from None


def remove_file(storage: Storage, path: str) -> None:
    """Remove a file if it is there.

    Raises:
        LakeStorageError: it cannot be removed.
    """

    def remove() -> None:
        with suppress(FileNotFoundError):
            _filesystem(storage).delete_file(path)

    try:
        patiently(remove)
    except (OSError, pa.ArrowException) as error:
        raise explain(error, storage, f"removing {path}") from None


def list_files(storage: Storage, folder: str) -> list[str]:
    """Paths, relative to the lake, of the files below a folder; none if it is not there.

    Raises:
        LakeStorageError: it cannot be listed.
    """
    selector = fs.FileSelector(folder, allow_not_found=True, recursive=True)
    try:
        infos = patiently(lambda: _filesystem(storage).get_file_info(selector))
    except (OSError, pa.ArrowException) as error:
        raise explain(error, storage, f"listing {folder}") from None
    return sorted(info.path for info in infos if info.type == fs.FileType.File)


def remove_partials(storage: Storage, prefix: str) -> None:
    """Remove the unfinished files that a killed writer left behind."""
    if not storage.is_local:
        return
    for path in partial_path(storage, "").glob(f"{prefix}*"):
        path.unlink(missing_ok=True)
