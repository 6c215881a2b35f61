"""Lineages as lines for a terminal and as records for programs."""

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.config_errors import printable
from workflows.trace_tables import aligned

if TYPE_CHECKING:
    from offline.lineage import Lineage, SessionPart, Use


@dataclass(frozen=True)
class Found:
    """A checkpoint's lineage, and how its folder compares with what the lake noted.

    Attributes:
        folder: None where only the lake was asked.
        manifest: "same", "differs" or "unknown" where there is nothing to compare.
        config: likewise, of config.json and the session's configuration.
    """

    lineage: "Lineage"
    folder: Path | None
    manifest: str
    config: str


def lineage_lines(found: Found) -> Iterator[str]:
    """For a terminal; text of unknown origin is made printable."""
    made, row = found.lineage, found.lineage.checkpoint
    where = str(found.folder) if found.folder is not None else row.path or "unknown"
    yield f"checkpoint  {printable(where, limit=300)}"
    of = f"{printable(row.run_id)}, session {row.session}, iteration {row.checkpoint_id}"
    yield f"run         {of}"
    if row.policy_version is not None:
        yield f"policy      version {row.policy_version:,} after {row.env_steps or 0:,} env steps"
    yield f"manifest    {_verdict(found.manifest)}"
    yield f"config      {_verdict(found.config)}"
    yield f"trained on  {made.rows:,} rows in {made.fragments:,} fragments"
    versions = ", ".join(f"{table}={n}" for table, n in sorted((row.table_versions or {}).items()))
    yield f"tables      {printable(versions, limit=300) or 'unknown'}"
    for part in made.sessions:
        yield ""
        yield from _session_lines(part)
    for gap in made.gaps:
        yield f"unknown: {printable(gap, limit=400)}"


def _verdict(verdict: str) -> str:
    words = {
        "same": "as the lake noted it",
        "differs": "DIFFERS from what the lake noted",
        "unknown": "the lake notes none to compare with",
    }
    return words[verdict]


def _session_lines(part: "SessionPart") -> Iterator[str]:
    def text(value: Any, limit: int = 300) -> str:
        return printable(str(value), limit=limit) if value not in (None, "") else "unknown"

    start = "" if part.started_at is None else f", started {part.started_at.isoformat(sep=' ')}"
    yield f"session {part.session} of run {printable(part.run_id)}{start}"
    origin = part.resumed_from
    if origin is None:
        yield "  from       the beginning"
    else:
        run = "" if origin.run_id == part.run_id else f" of run {printable(origin.run_id)}"
        yield f"  from       checkpoint {origin.checkpoint_id} of session {origin.session}{run}"
    yield (
        f"  used       {part.fragments:,} fragments with ids below {part.before:,}: "
        f"{part.rows:,} rows"
    )
    yield f"  logged     {part.logged_rows:,} of the rows, in {part.episodes:,} episodes"
    yield f"  algorithm  {text(part.algo)} on {text(part.env)}, seed {text(part.seed)}"
    yield f"  config     sha256 {text(part.config_sha256)}"
    yield f"  code       {text(_code(part.code))}"
    packages = " ".join(f"{name} {version}" for name, version in sorted(part.packages.items()))
    yield f"  packages   {text(packages)}"
    if part.input_versions:
        yield f"  inputs     {text(dict(part.input_versions))}"


def _code(code: str | None) -> str | None:
    """The commit and the command, where the run noted them as JSON; else what it noted."""
    try:
        noted = json.loads(code or "")
    except ValueError:
        return code
    if not isinstance(noted, dict):
        return code
    command = shlex.join(map(str, noted.get("command") or []))
    return f"commit {noted.get('commit') or 'unknown'}" + (f", {command}" if command else "")


def lineage_json(found: Found) -> dict[str, Any]:
    """For programs."""
    made = found.lineage
    return {
        "checkpoint": _plain(made.checkpoint),
        "folder": None if found.folder is None else str(found.folder),
        "manifest": found.manifest,
        "config": found.config,
        "fragments": made.fragments,
        "rows": made.rows,
        "sessions": [_plain(part) for part in made.sessions],
        "gaps": list(made.gaps),
    }


def _plain(value: Any) -> Any:
    """Frozen values as JSON has them; times in ISO 8601."""
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    return value.isoformat() if isinstance(value, datetime) else value


def use_lines(uses: tuple["Use", ...]) -> list[str]:
    """For a terminal."""
    if not uses:
        return ["no checkpoint was trained on it"]
    head = ("checkpoint", "run", "session", "iteration", "its fragments used")
    rows = [
        (
            use.checkpoint.path or "-",
            use.checkpoint.run_id,
            str(use.checkpoint.session),
            str(use.checkpoint.checkpoint_id),
            ", ".join(f"{ref.session}:{ref.fragment_id}" for ref in use.fragments),
        )
        for use in uses
    ]
    return aligned([head, *rows], right={2, 3}, limits={0: 300, 1: 128})


def use_json(use: "Use") -> dict[str, Any]:
    """For programs."""
    fragments = [[ref.run_id, ref.session, ref.fragment_id] for ref in use.fragments]
    plain: dict[str, Any] = _plain(use.checkpoint)
    return {"checkpoint": plain, "fragments": fragments}
