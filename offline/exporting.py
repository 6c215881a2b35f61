"""Exports: whole episodes of a lake as files of other tools, in a folder that is new or nothing."""

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from offline.errors import LakeError
from offline.exchange import Episode, Spaces
from offline.export_episodes import EpisodeQuery, LakeEpisodes
from offline.import_spaces import SPACES_FILE, spaces_to_json
from offline.lake import Lake

MANIFEST: Final = "export.json"


@dataclass(frozen=True)
class Exported:
    """What a format's writer wrote.

    Attributes:
        files: relative to the folder.
        notes: what the format cannot hold.
    """

    files: tuple[str, ...]
    notes: tuple[str, ...] = ()


Write = Callable[[Iterator[Episode], Path, Spaces], Exported]


@dataclass(frozen=True)
class ExportReport:
    """What an export did.

    Attributes:
        folder: that holds it.
        format: of the files.
        episodes, rows: in it.
        incomplete: episodes that were left out, as steps of them are not in the lake's versions.
        files: relative to the folder.
        notes: what the format cannot hold.
        versions: of the tables that were read.
    """

    folder: str
    format: str
    episodes: int
    rows: int
    incomplete: int
    files: tuple[str, ...]
    notes: tuple[str, ...]
    versions: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON."""
        return asdict(self)


@dataclass
class _Counted:
    episodes: int = 0
    rows: int = 0
    unknown_finals: int = 0

    def of(self, episodes: Iterator[Episode]) -> Iterator[Episode]:
        for episode in episodes:
            self.episodes += 1
            self.rows += len(episode)
            self.unknown_finals += episode.final_obs is None
            yield episode


def export_episodes(
    lake: Lake,
    query: EpisodeQuery,
    folder: str | os.PathLike[str],
    write: Write,
    *,
    format_: str,
    overwrite: bool = False,
) -> ExportReport:
    """Write the episodes of a query into a folder.

    It comes into being when all is written. No name in it is made of what is in the lake.

    Args:
        lake: to read.
        query: which episodes.
        folder: new, empty, or with `overwrite` an earlier export.
        write: of the format.
        format_: its name.
        overwrite: replace an earlier export.

    Raises:
        LakeError: nothing matches, or the folder is in use.
    """
    target = checked_target(folder, overwrite=overwrite)
    found = LakeEpisodes(lake, query)
    counted = _Counted()
    partial = target.with_name(f".{target.name}.partial-{uuid.uuid4().hex[:8]}")
    try:
        partial.mkdir(parents=True)
        exported = write(counted.of(iter(found)), partial, found.spaces)
        report = _report(target, format_, exported, counted, found)
        _write_json(partial / SPACES_FILE, spaces_to_json(found.spaces))
        _write_json(partial / MANIFEST, {**report.to_json(), "query": asdict(query)})
        _replace(target, partial)
    except OSError as error:
        raise LakeError(f"cannot write to {target}: {error.strerror}; give another") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return report


def _report(
    target: Path, format_: str, exported: Exported, counted: _Counted, found: LakeEpisodes
) -> ExportReport:
    if not counted.episodes:
        raise LakeError(
            f"all {found.incomplete:,} episodes of the selection lack steps in the lake; see "
            "--version, or trace.episode_frac of the run"
        )
    notes = exported.notes
    if counted.unknown_finals:
        text = f"{counted.unknown_finals:,} terminated episodes have no known final observation"
        notes = (*notes, f"{text}; their last observation stands in for it where one is needed")
    return ExportReport(
        folder=str(target),
        format=format_,
        episodes=counted.episodes,
        rows=counted.rows,
        incomplete=found.incomplete,
        files=(*exported.files, SPACES_FILE, MANIFEST),
        notes=notes,
        versions=found.versions,
    )


def checked_target(folder: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """The folder as an absolute path, if an export may be put there.

    Raises:
        LakeError: it is a link, a file, or a folder with anything in it but an earlier export.
    """
    text = os.fspath(folder)
    if "\0" in text or not text.strip() or "://" in text:
        raise LakeError(f"{text!r} is no folder on this machine to export to")
    target = Path(os.path.normpath(Path(text).expanduser().absolute()))
    if target.is_symlink():
        raise LakeError(f"{target} is a link; give the folder that it points to")
    if not target.exists():
        return target
    if not target.is_dir():
        raise LakeError(f"{target} is a file; exports are folders")
    if not any(target.iterdir()):
        return target
    if not (target / MANIFEST).is_file():
        raise LakeError(f"{target} is not empty and no export; give another folder")
    if not overwrite:
        raise LakeError(f"{target} holds an export; --overwrite replaces it")
    return target


def _replace(target: Path, partial: Path) -> None:
    if not target.exists():
        partial.rename(target)
        return
    aside = target.with_name(f".{target.name}.replaced-{uuid.uuid4().hex[:8]}")
    target.rename(aside)
    try:
        partial.rename(target)
    except OSError:
        aside.rename(target)
        raise
    _remove_export(aside)


def _remove_export(folder: Path) -> None:
    """The files that the export's manifest lists; what somebody put beside them stays."""
    manifest = folder / MANIFEST
    listed = json.loads(manifest.read_text())["files"] if manifest.is_file() else []
    for name in listed:
        path = folder / name
        if path.resolve().is_relative_to(folder.resolve()) and path.is_file():
            path.unlink()
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
            path.rmdir()
    if not any(folder.iterdir()):
        folder.rmdir()


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, default=str) + "\n", encoding="utf-8")
