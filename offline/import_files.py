"""The files of an import: found, in one order, checksummed, and none of them a pickle."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from offline.errors import ImportDataError

_PICKLED: Final = {".pkl", ".pickle", ".p", ".joblib", ".pt", ".pth", ".npy", ".npz", ".dill"}
_GLOB: Final = frozenset("*?[")
_CHUNK_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class SourceFile:
    """A file as it was when the import began."""

    path: str
    bytes_: int
    sha256: str
    modified_ns: int


def find_files(sources: Sequence[str], *, suffixes: Iterable[str], kind: str) -> tuple[str, ...]:
    """The files named, and those in the folders named, sorted within a folder.

    Args:
        sources: paths of files, folders or patterns on this machine.
        suffixes: of the files to take out of folders; a file named itself may have another.
        kind: what the files should be, for messages.

    Raises:
        ImportDataError: nothing is there, or something of it is a pickle.
    """
    wanted = tuple(suffixes)
    found: dict[str, None] = {}
    for source in sources:
        if "\0" in source or not source.strip():
            raise ImportDataError(f"source {source!r} is no path")
        if "://" in source:
            raise ImportDataError(
                f"{source}: sources are files on this machine; copy it here first"
            )
        path = Path(source).expanduser()
        if not path.exists() and _GLOB & set(source):
            matches = sorted(path.parent.glob(path.name))
        else:
            matches = [path]
        files = [file for match in matches for file in _in(match, wanted, kind)]
        if not files:
            raise ImportDataError(f"{source}: no {' or '.join(wanted)} files of {kind} there")
        found |= dict.fromkeys(str(file.absolute()) for file in files)
    for file in found:
        refuse_pickle(Path(file))
    return tuple(found)


def _in(path: Path, suffixes: tuple[str, ...], kind: str) -> list[Path]:
    if not path.exists():
        raise ImportDataError(f"{path} does not exist; give files or folders of {kind}")
    if not path.is_dir():
        return [path]
    # Spark, Ray and macOS leave files with such names beside the data.
    return sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() in suffixes
        and file.is_file()
        and not file.name.startswith((".", "_"))
    )


def refuse_pickle(path: Path) -> None:
    """Refuse a file that can only be read by running what is in it.

    Raises:
        ImportDataError: says how to convert it where it is trusted.
    """
    try:
        with path.open("rb") as file:
            start = file.read(2)
    except OSError as error:
        raise ImportDataError(f"{path} cannot be read: {error.strerror}") from error
    is_protocol = start[:1] == b"\x80" and start[1:] in (b"\x02", b"\x03", b"\x04", b"\x05")
    if is_protocol or path.suffix.lower() in _PICKLED:
        what = "is a pickle" if is_protocol else f"may hold pickled objects ({path.suffix})"
        raise ImportDataError(
            f"{path} {what}: reading it can run code of whoever wrote it, so it is never read. "
            "Where you trust it, load it yourself and save its arrays as parquet, CSV or HDF5."
        )


def fingerprint(files: Sequence[str]) -> tuple[SourceFile, ...]:
    """Size, time and sha256 of each file.

    Raises:
        ImportDataError: one cannot be read.
    """
    return tuple(_fingerprint(Path(file)) for file in files)


def _fingerprint(path: Path) -> SourceFile:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
        stat = path.stat()
    except OSError as error:
        raise ImportDataError(f"{path} cannot be read: {error.strerror}") from error
    return SourceFile(str(path), stat.st_size, digest.hexdigest(), stat.st_mtime_ns)


def require_unchanged(files: Sequence[SourceFile]) -> None:
    """Refuse to go on when a file is not what it was.

    Raises:
        ImportDataError: names the file.
    """
    for file in files:
        try:
            stat = Path(file.path).stat()
        except OSError as error:
            raise ImportDataError(f"{file.path} went away during the import") from error
        if (stat.st_size, stat.st_mtime_ns) != (file.bytes_, file.modified_ns):
            raise ImportDataError(
                f"{file.path} changed during the import; import again when it is written"
            )
