"""Runs and checkpoints on disk, by name or by path."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.address import is_address
from pipelines.checkpoint import latest_checkpoint, numbered, verify_checkpoint
from pipelines.errors import CheckpointError
from pipelines.remote import address_of, fetched, mirror_of
from workflows.options import storage_folder


@dataclass(frozen=True)
class Located:
    """A whole checkpoint.

    Attributes:
        path: its folder.
        skipped: why newer ones of its run were passed over.
    """

    path: Path
    skipped: tuple[str, ...] = ()


def locate(given: str, storage: Path | None) -> Located:
    """The checkpoint that a user names.

    Args:
        given: a checkpoint's folder, a run's folder, the s3:// address of either, or a run id
            under `storage`.
        storage: of --storage; None takes the default.

    Raises:
        CheckpointError: there is none, or no whole one; says what there is.
    """
    path = _elsewhere(given, storage) or _named(given)
    return Located(path) if path is not None else newest_whole(_run_folder(given, storage))


def locate_all(given: str, storage: Path | None) -> list[Located]:
    """Every whole checkpoint of the run that a user names, the oldest first, or the one named.

    Args:
        given: as for `locate`.
        storage: as for `locate`.

    Returns:
        Of them the newest has what is wrong with those of its run that are not whole.

    Raises:
        CheckpointError: there is none, or no whole one; says what there is.
    """
    path = _named(given)
    if path is not None:
        return [Located(path)]
    run = _run_folder(given, storage)
    whole: list[Path] = []
    skipped: list[str] = []
    for candidate in numbered(run / "checkpoints"):
        try:
            verify_checkpoint(candidate)
            whole.append(candidate)
        except CheckpointError as error:
            skipped.append(str(error))
    if not whole:
        return [newest_whole(run)]  # says why there is none
    return [*map(Located, whole[:-1]), Located(whole[-1], tuple(skipped))]


def _elsewhere(given: str, storage: Path | None) -> Path | None:
    """A checkpoint in an object store, copied here; None where it is none's name."""
    if storage is not None and "/" not in given and mirror_of(storage, given) is not None:
        given = f"{address_of(storage)}/{given}"
    return fetched(given) if is_address(given) else None


def _named(given: str) -> Path | None:
    """The checkpoint whose folder is given, verified; None where it is none's."""
    path = Path(given).expanduser().absolute()
    if not ((path / "manifest.json").is_file() or (path / "state.json").is_file()):
        return None
    verify_checkpoint(path)
    return path


def _run_folder(given: str, storage: Path | None) -> Path:
    path, folder = Path(given).expanduser(), storage_folder(storage)
    is_name = "/" not in given and given not in ("", ".", "..") and "\0" not in given
    run = folder / given if is_name and not (path / "checkpoints").is_dir() else path.absolute()
    if not run.is_dir():
        raise CheckpointError(_nothing_there(given, folder if is_name else None))
    return run


def newest_whole(run: Path) -> Located:
    """The newest whole checkpoint of a run's folder, with what is wrong with newer ones.

    Raises:
        CheckpointError: the run has no whole checkpoint.
    """
    latest = latest_checkpoint(run / "checkpoints")
    if latest.path is not None:
        return Located(latest.path, latest.skipped)
    if latest.skipped:
        raise CheckpointError("\n".join([f"{run} has no whole checkpoint", *latest.skipped]))
    raise CheckpointError(f"{run} has no checkpoint; it ended before the first was written")


def _nothing_there(given: str, storage: Path | None) -> str:
    from pipelines.config_errors import printable, shown

    name = shown(given, limit=200)
    if storage is None:
        return f"{name} is no folder; give a checkpoint, or a run id with --storage"
    if not storage.is_dir():
        return f"no run {name}: there is no folder {storage}; give another --storage"
    # difflib only here: it is not needed on the way that works.
    import difflib

    runs = sorted(p.name for p in storage.iterdir() if (p / "params.json").is_file())
    close = difflib.get_close_matches(given, runs, n=1, cutoff=0.4)
    hint = f"did you mean {printable(close[0])}?" if close else f"it has {len(runs)} runs"
    return f"no run {name} in {storage}; {hint}"


def shell(words: Sequence[str | Path]) -> str:
    """Words as a line that a shell takes back apart into the same words."""
    return shlex.join(map(str, words))
