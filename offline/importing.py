"""Imports: check the data first, then write it to the lake, each episode exactly once."""

import json
import re
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from offline import schemas as s
from offline.errors import ImportDataError, LakeError
from offline.exchange import Source, Spaces
from offline.import_batches import IMPORT, MAX_BYTES, MAX_ROWS, Batcher
from offline.import_contract import Contract, Rules
from offline.import_files import SourceFile, fingerprint, require_unchanged
from offline.import_report import ImportReport, Tally, described, explained, report_of
from offline.import_spaces import infer_spaces, spaces_to_json
from offline.lake import Lake
from offline.space_codec import SpaceCodec
from offline.spaces import describe_spaces, register_space
from offline.storage import Storage
from offline.tables import create_tables
from offline.writer import LakeWriter
from rl_ops import columns as c

_RUN_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class ImportRequest:
    """What is to be imported how.

    Attributes:
        run_id: under which the episodes are found; None makes one of the files' names and content.
        spaces: if given, those of the data; else what the files state, else inferred.
        env: environment id, noted with the import.
        rules: what may pass.
        options: how the files are read, noted with the import and compared when it goes on.
        max_rows, max_bytes: of a batch.
    """

    run_id: str | None = None
    spaces: Spaces | None = None
    env: str | None = None
    rules: Rules = field(default_factory=Rules)
    options: Mapping[str, Any] = field(default_factory=dict)
    max_rows: int = MAX_ROWS
    max_bytes: int = MAX_BYTES


def import_episodes(
    storage: Storage,
    source: Source,
    request: ImportRequest,
    *,
    resume: bool = False,
    dry_run: bool = False,
) -> ImportReport:
    """Import all episodes of a source into a lake, or, where one breaks the rules, none.

    All is checked before anything is written. Killed, the same call with `resume` goes on.

    Args:
        storage: of the lake; its tables are made if missing.
        source: the files.
        request: how.
        resume: go on with an import of that name that was cut short.
        dry_run: check, and write nothing.

    Raises:
        ImportDataError: the data breaks the contract; the message has counts, files and rows.
        LakeError: there is an import or a run of that name, or the lake cannot be written.
    """
    files = fingerprint(source.files)
    run_id = check_name(request.run_id or _made_name(files, source.kind))
    spaces = _spaces(source, request)
    describe_spaces(spaces.obs, spaces.action)
    config = _config(source, request, spaces, files)
    if dry_run:
        checked = _validated(source, request.rules, spaces)
        return report_of(run_id, checked, source, spaces, "checked")
    create_tables(storage)
    if _is_finished(Lake(storage), run_id, config, resume=resume):
        return _done_before(Lake(storage), run_id, spaces)
    _validated(source, request.rules, spaces)
    require_unchanged(files)
    tally = Tally(Contract(spaces, request.rules))
    about = {c.RUN_ID: run_id, "config": config}
    was_begun = _write(storage, source, request, tally, about=about, resume=resume)
    return report_of(run_id, tally, source, spaces, "resumed" if was_begun else "imported")


def _write(
    storage: Storage,
    source: Source,
    request: ImportRequest,
    tally: Tally,
    *,
    about: dict[str, Any],
    resume: bool,
) -> bool:
    """Write what is not written yet; whether some of it was.

    Batches are the same on every replay, so that their number says where to go on.
    """
    run_id, spaces = about[c.RUN_ID], tally.contract.spaces
    key = register_space(storage, spaces.obs, spaces.action)
    codecs = SpaceCodec(spaces.obs), SpaceCodec(spaces.action)
    batcher = Batcher(run_id, key, *codecs, max_rows=request.max_rows, max_bytes=request.max_bytes)
    about |= {s.ENV: request.env, "spaces": json.dumps(spaces_to_json(spaces))}
    name = f"{run_id}/import"
    with LakeWriter(storage, name, run_id=run_id, session=0) as writer:
        done = _batches_done(Lake(storage), name)
        if done and not resume:
            raise LakeError(f"another process has just imported {run_id!r}; give another --name")
        if not done:
            writer.write(_event(about, "running", ""))
        number = 0
        for number, batch in enumerate(batcher.batches(tally.outcomes(source)), 1):
            if number >= done:
                writer.write(batch.tables, fragments=batch.fragments)
        if number + 1 >= done:
            rest = batcher.rest()
            said = f"{tally.episodes:,} episodes, {tally.rows:,} rows, {tally.rejected:,} rejected"
            tables = {**rest.tables, **_event(about, "finished", said)}
            writer.write(tables, fragments=rest.fragments)
    return done > 0


def check_name(run_id: str) -> str:
    """`run_id` if it can name a folder and a partition.

    Raises:
        ImportDataError: it cannot, as '..', '/x', 'a/b' or anything with a NUL.
    """
    if not _RUN_ID.fullmatch(run_id):
        raise ImportDataError(
            f"--name {run_id!r} cannot name a run; use letters, digits, '.', '_' and '-', "
            "starting with a letter or digit, at most 128"
        )
    return run_id


def _made_name(files: tuple[SourceFile, ...], kind: str) -> str:
    """The same for the same content, so that importing it again is noticed."""
    import hashlib

    digest = hashlib.sha256("".join(file.sha256 for file in files).encode()).hexdigest()
    first = Path(files[0].path)
    # Minari's first file is <dataset>/data/metadata.json.
    stem = first.parent.parent.name if kind == "minari" else first.stem
    words = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:60]
    return f"{words or kind}-{digest[:8]}"


def _spaces(source: Source, request: ImportRequest) -> Spaces:
    if request.spaces is not None:
        return request.spaces
    stated = source.stated_spaces()
    if stated is not None:
        return stated
    return infer_spaces(source.records(None), untyped=source.untyped)


def _config(
    source: Source, request: ImportRequest, spaces: Spaces, files: tuple[SourceFile, ...]
) -> str:
    config = {
        "format": source.kind,
        "files": [{"path": f.path, "sha256": f.sha256, "bytes": f.bytes_} for f in files],
        "options": dict(request.options),
        "rules": asdict(request.rules),
        "spaces": spaces_to_json(spaces),
        "spaces_from": spaces.origin,
        "batch": [request.max_rows, request.max_bytes],
    }
    return json.dumps(config, sort_keys=True)


def _validated(source: Source, rules: Rules, spaces: Spaces) -> Tally:
    """Read everything once; a breach that fails the import leaves nothing written."""
    tally = Tally(Contract(spaces, rules))
    for _ in tally.outcomes(source):
        pass
    counts = tally.contract.counts
    if counts and (
        rules.on_error == "fail" or ("no_end" in counts and rules.missing_end == "fail")
    ):
        raise ImportDataError(explained(tally, rules))
    if not tally.episodes:
        raise ImportDataError(f"{explained(tally, rules)}\nThere is no episode to import.")
    return tally


def _is_finished(lake: Lake, run_id: str, config: str, *, resume: bool) -> bool:
    """Whether the import is there already.

    Raises:
        LakeError: the name is taken, or the import is there and `resume` was not asked for.
    """
    events = lake.runs(where=[(c.RUN_ID, "==", run_id)]).to_arrow().to_pylist()
    if not events:
        return False
    if any(event["algo"] != IMPORT for event in events):
        raise LakeError(f"there is a run {run_id!r} in the lake that is no import; give --name")
    is_finished = any(event[s.STATUS] == "finished" for event in events)
    if not resume:
        what = "is in the lake already" if is_finished else "was cut short"
        fix = "" if is_finished else "go on with it by --resume, or "
        raise LakeError(
            f"import {run_id!r} {what}; importing it again would double its episodes: {fix}give "
            "another --name"
        )
    differing = _differing(json.loads(events[0]["config"]), json.loads(config))
    if differing:
        raise LakeError(
            f"import {run_id!r} began with other {', '.join(differing)}; go on with the same "
            "files and options, or give another --name"
        )
    return is_finished


def _differing(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    def without_paths(config: dict[str, Any]) -> dict[str, Any]:
        files = [{**file, "path": Path(file["path"]).name} for file in config["files"]]
        return {**config, "files": files, "spaces_from": ""}

    before, now = without_paths(before), without_paths(now)
    return [name for name in now if before.get(name) != now[name]]


def _batches_done(lake: Lake, writer: str) -> int:
    ledger = lake.ledger(where=[("writer", "==", writer)], columns=["seq"]).to_arrow()
    return len(set(ledger.column("seq").to_pylist()))


def _event(about: Mapping[str, Any], status: str, message: str) -> dict[str, pa.Table]:
    row = {
        **about,
        s.SESSION: 0,
        "algo": IMPORT,
        s.STATUS: status,
        s.MESSAGE: message,
        "host": socket.gethostname(),
        s.AT: time.time_ns() // 1000,
    }
    return {s.RUNS.name: pa.Table.from_pylist([row], schema=s.RUNS.schema)}


def _done_before(lake: Lake, run_id: str, spaces: Spaces) -> ImportReport:
    where = [(c.RUN_ID, "==", run_id)]
    episodes = lake.episodes(where=where, columns=[s.LENGTH]).to_arrow().column(s.LENGTH)
    rejected = lake.rejected(where=where, columns=[c.EPISODE_ID, s.REASON]).to_arrow()
    reasons = rejected.column(s.REASON).to_pylist()
    return ImportReport(
        run_id=run_id,
        episodes=len(episodes),
        rows=sum(episodes.to_pylist()),
        rejected=len(set(rejected.column(c.EPISODE_ID).to_pylist())),
        reasons={reason: reasons.count(reason) for reason in sorted(set(reasons))},
        violations=(),
        rows_cut=0,
        ends_made=0,
        spaces=described(spaces),
        ignored=(),
        notes=("the import was complete already; nothing was written",),
        status="already imported",
    )
