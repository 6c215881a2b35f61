"""Runs in an object store: while a run is written its folder is here, and its copy there.

Such a storage has a folder below the user's cache, with a file that says which address it stands
for. Everything that takes a storage's path takes that folder, and `address_of` says what to call
a path in it.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
from pyarrow import fs

from offline.storage import Storage, explain
from pipelines.address import is_address
from pipelines.errors import CheckpointError

_MARK: Final = ".millrace-address"
_MANIFEST: Final = "manifest.json"
_CHECKPOINTS: Final = "checkpoints"
_NOT_COPIED: Final = (_CHECKPOINTS, "ray_train")
_PERIOD_S: Final = 10.0
_SHARE: Final = 0.02
"""Of a run's time, at most, that goes into copying its files between checkpoints."""


def folder_for(uri: str, *, to: str = "write") -> Path:
    """The folder here that stands for an object store's address; made if it is not there.

    Args:
        uri: the address.
        to: write, or read: what is fetched to be read must not get in the way of a run that is
            being written.

    Raises:
        LakeError: the address is none.
    """
    address = Storage.at(uri).uri
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    folder = cache / "millrace" / to / hashlib.sha256(address.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / _MARK
    if not mark.exists():
        temporary = folder / f"{_MARK}.{os.getpid()}"
        temporary.write_text(address)
        temporary.replace(mark)
    return folder


def address_of(path: Path) -> str:
    """What a path is called: its address in the store that its storage stands for, or itself."""
    for parent in (path, *path.parents):
        mark = parent / _MARK
        if mark.is_file():
            return "/".join([mark.read_text(), *path.relative_to(parent).parts])
    return str(path)


def fetched(given: str | os.PathLike[str]) -> Path:
    """A checkpoint here: the path itself, or what is at an address, copied.

    Args:
        given: path, or s3://.../RUN/checkpoints/N, or s3://.../RUN for its newest checkpoint.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: nothing is there.
    """
    if not is_address(given):
        return Path(given).expanduser()
    parts = Storage.at(str(given)).uri.removeprefix("s3://").split("/")
    is_checkpoint = len(parts) > 3 and parts[-2] == _CHECKPOINTS and parts[-1].isdecimal()
    number = int(parts[-1]) if is_checkpoint else None
    run = parts[:-2] if is_checkpoint else parts
    if len(run) < 2:
        raise CheckpointError(f"{given} is no run; give s3://bucket/prefix/RUN, or its checkpoint")
    return Mirror(folder_for("s3://" + "/".join(run[:-1]), to="read"), run[-1]).fetch(number)


def mirror_of(storage: Path, run_id: str) -> "Mirror | None":
    """The copy of a run in an object store; None where its storage is a folder like others."""
    return Mirror(storage, run_id) if (storage / _MARK).is_file() else None


@dataclass
class Mirror:
    """A run's files here and there.

    Args:
        storage: folder that stands for the address.
        run_id: of the run.
    """

    storage: Path
    run_id: str
    _sent: dict[str, tuple[int, int]] = field(default_factory=dict, init=False)
    _due: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._there = Storage.at((self.storage / _MARK).read_text())

    @property
    def folder(self) -> Path:
        """The run's, here."""
        return self.storage / self.run_id

    @property
    def address(self) -> str:
        """The run's, there."""
        return f"{self._there.uri}/{self.run_id}"

    def exists(self) -> bool:
        """Whether the run is there."""
        with _told(self._there, "reading"):
            return bool(self._root().get_file_info("params.json").type == fs.FileType.File)

    def begin_anew(self) -> None:
        """Forget what is here of a run that is not there (any more)."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def fetch(self, number: int | None = None) -> Path:
        """Copy a run's files here, and of its checkpoints one: the newest whole, or `number`.

        Returns:
            The checkpoint's folder.

        Raises:
            CheckpointError: there is no such run or checkpoint.
        """
        listed = self._listed()
        if "params.json" not in listed:
            raise CheckpointError(f"there is no run at {self.address}")
        whole = numbers_of([path for path in listed if path.endswith(f"/{_MANIFEST}")])
        if number is None and whole:
            number = whole[-1]
        if number not in whole:
            which = "" if number is None else f" {number}"
            there = ", ".join(map(str, whole)) or "none"
            raise CheckpointError(f"{self.address} has no whole checkpoint{which}; it has {there}")
        for path in (path for path in listed if not path.startswith(f"{_CHECKPOINTS}/")):
            self._write(path, self._read(path))
        self._fetch_checkpoint(f"{_CHECKPOINTS}/{number}/", listed)
        return self.folder / _CHECKPOINTS / str(number)

    def _fetch_checkpoint(self, start: str, listed: Sequence[str]) -> None:
        """Copy a checkpoint here, unless it is here: its manifest has the sha256 of each file."""
        manifest, here = self._read(start + _MANIFEST), self.folder / start
        known = here / _MANIFEST
        if known.is_file() and known.read_bytes() == manifest:
            return
        shutil.rmtree(here, ignore_errors=True)  # another run's of that name, or part of one
        for path in (path for path in listed if path.startswith(start)):
            if not path.endswith(f"/{_MANIFEST}"):
                self._write(path, self._read(path))
        self._write(start + _MANIFEST, manifest)

    def push(self, *, now: bool = False) -> None:
        """Copy files that changed there, but checkpoints: at once, or when it is time again."""
        if not now and time.monotonic() < self._due:
            return
        start = time.monotonic()
        for path in self._files():
            stat = path.stat()
            name, version = str(path.relative_to(self.folder)), (stat.st_mtime_ns, stat.st_size)
            if self._sent.get(name) != version:
                self._upload(path, name)
                self._sent[name] = version
        spent = time.monotonic() - start
        self._due = time.monotonic() + max(_PERIOD_S, spent / _SHARE)

    def push_checkpoint(self, folder: Path) -> None:
        """Copy a checkpoint there, its manifest last: one that has it is whole."""
        files = sorted(folder.iterdir(), key=lambda path: path.name == _MANIFEST)
        for path in files:
            self._upload(path, f"{_CHECKPOINTS}/{folder.name}/{path.name}")

    def prune(self, keep: int) -> None:
        """Remove all checkpoints there but the newest, each one's manifest first."""
        listed = self._listed(_CHECKPOINTS)
        for number in numbers_of(listed)[:-keep]:
            self._move_checkpoint(number, None, listed)

    def set_aside(self, after: int) -> None:
        """Rename checkpoints of later iterations than `after`, as `RunFolder` does here."""
        listed = self._listed(_CHECKPOINTS)
        for number in numbers_of(listed):
            if number > after:
                to = f"{_CHECKPOINTS}/set-aside-{number}-{time.time_ns()}"
                self._move_checkpoint(number, to, listed)

    def _move_checkpoint(self, number: int, to: str | None, listed: Sequence[str]) -> None:
        start = f"{_CHECKPOINTS}/{number}/"
        files = [path for path in listed if path.startswith(start)]
        root = self._root()
        for path in sorted(files, key=lambda name: not name.endswith(_MANIFEST)):
            with _told(self._there, "writing"):
                if to is not None:
                    root.copy_file(path, f"{to}/{path.removeprefix(start)}")
                root.delete_file(path)

    def _files(self) -> Iterator[Path]:
        for path in sorted(self.folder.rglob("*")):
            parts = path.relative_to(self.folder).parts
            is_own = parts[0] not in _NOT_COPIED and not path.name.startswith(".")
            if is_own and path.is_file() and not path.name.endswith(".new"):
                yield path

    def _root(self) -> Any:
        return self._there.filesystem(self.run_id)

    def _listed(self, below: str = "") -> list[str]:
        selector = fs.FileSelector(below, recursive=True, allow_not_found=True)
        with _told(self._there, "reading"):
            infos = self._root().get_file_info(selector)
        files = [info.path.lstrip("/") for info in infos if info.type == fs.FileType.File]
        return [path for path in files if ".." not in path.split("/")]

    def _upload(self, path: Path, name: str) -> None:
        with _told(self._there, "writing"), self._root().open_output_stream(name) as stream:
            stream.write(path.read_bytes())

    def _read(self, name: str) -> bytes:
        with _told(self._there, "reading"), self._root().open_input_stream(name) as stream:
            data: bytes = stream.read()
        return data

    def _write(self, name: str, data: bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_bytes(data)
        temporary.replace(path)


def numbers_of(paths: Sequence[str]) -> list[int]:
    """Numbers of the checkpoints that paths below a run are of, ascending."""
    found = set()
    for path in paths:
        parts = path.split("/")
        if len(parts) == 3 and parts[0] == _CHECKPOINTS and parts[1].isdecimal():
            found.add(int(parts[1]))
    return sorted(found)


@contextmanager
def _told(storage: Storage, doing: str) -> Iterator[None]:
    """Errors of a store as those that a lake's storage has, with what was tried."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise explain(error, storage, doing) from None
