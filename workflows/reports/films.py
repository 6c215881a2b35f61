"""Films of a run's evaluations, within the page."""

import base64
from collections.abc import Sequence
from pathlib import Path

from workflows.reports.blocks import Videos, text

SUFFIXES = {".mp4": "video/mp4", ".webm": "video/webm"}


def films_of(folders: Sequence[Path], *, budget_bytes: int) -> Videos | None:
    """The newest films of each run that fit, the newest first; None where there are none.

    Args:
        folders: of runs; films lie below their `videos`.
        budget_bytes: of all films, before they are encoded (a third more).
    """
    found = sorted(
        (
            (path.stat().st_mtime, folder.name, path)
            for folder in folders
            for path in (folder / "videos").rglob("*")
            if path.suffix in SUFFIXES and path.is_file() and not path.is_symlink()
        ),
        reverse=True,
    )
    films: list[tuple[str, str]] = []
    left, skipped = budget_bytes, 0
    for _, run_id, path in found:
        size = path.stat().st_size
        if size > left:
            skipped += 1
            continue
        left -= size
        data = base64.b64encode(path.read_bytes()).decode()
        name = f"{run_id} {path.relative_to(path.parents[1])}"
        films.append((text(name), f"data:{SUFFIXES[path.suffix]};base64,{data}"))
    if not found:
        return None
    note = f"{skipped} more do not fit; --video-mb gives them room" if skipped else ""
    return Videos(films, note)
