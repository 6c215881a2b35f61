"""`millrace lineage`: what made a checkpoint, and which checkpoints were made of some rows."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workflows.logs import verbosity_options
from workflows.options import json_option, storage_option
from workflows.traces import open_lake

if TYPE_CHECKING:
    from offline.lake import Lake
    from offline.lineage import FragmentRef, Lineage, Use
    from offline.sessions import CheckpointRow
    from pipelines.checkpoint import Checkpoint
    from workflows.lineage_tables import Found


@click.command(short_help="What made a checkpoint; which checkpoints some rows made.")
@click.argument("checkpoint", required=False)
@click.option("--number", type=int, metavar="N", help="Of run CHECKPOINT this one, by the lake.")
@click.option("--episode", metavar="ID", help="Which checkpoints used this episode.")
@click.option("--fragment", metavar="RUN:SESSION:ID", help="Which checkpoints used this fragment.")
@storage_option
@json_option
@verbosity_options
def lineage(
    *,
    checkpoint: str | None,
    number: int | None,
    episode: str | None,
    fragment: str | None,
    storage: Path | None,
    as_json: bool,
) -> None:
    """Print how CHECKPOINT came about: its folder, a run's folder, or a run id (the latest).

    Session by session, back over every resume: the fragments and rows that trained it, the
    configuration, the versions of code, packages and tables. Rows that a session logged after
    the checkpoint that was resumed are no part of it. Exit code 1 when the folder is not what
    the lake noted.
    """
    from workflows.lineage_tables import lineage_json, lineage_lines, use_json, use_lines
    from workflows.output import json_line

    asked = [name for name in (checkpoint, episode, fragment) if name is not None]
    if len(asked) != 1:
        raise click.UsageError("give one of CHECKPOINT, --episode and --fragment")
    if checkpoint is None:
        uses = _uses(open_lake(storage), episode=episode, fragment=fragment)
        records = [use_json(use) for use in uses]
        for line in [json_line(records)] if as_json else use_lines(uses):
            click.echo(line)
        return
    found = (
        _of_folder(checkpoint, storage)
        if number is None
        else _of_number(checkpoint, number, storage)
    )
    for line in [json_line(lineage_json(found))] if as_json else lineage_lines(found):
        click.echo(line)
    if found.manifest == "differs":
        raise click.exceptions.Exit(1)


def _of_number(run_id: str, number: int, storage: Path | None) -> "Found":
    from offline.lineage import of_checkpoint
    from workflows.lineage_tables import Found

    return Found(of_checkpoint(open_lake(storage), run_id, number), None, "unknown", "unknown")


def _of_folder(given: str, storage: Path | None) -> "Found":
    from pipelines.checkpoint import Checkpoint
    from workflows.runs import locate

    located = locate(given, storage)
    for reason in located.skipped:
        click.echo(f"warning: {reason}", err=True)
    checkpoint = Checkpoint(located.path)
    lake = _lake_of(checkpoint, storage)
    return compare(lineage_of(lake, checkpoint), checkpoint)


def _lake_of(checkpoint: "Checkpoint", storage: Path | None) -> "Lake":
    """The first that knows the checkpoint: of --storage, as noted, beside the run's folder."""
    from offline.lake import Lake

    noted = (checkpoint.state.get("lake") or {}).get("uri")
    lakes = [] if storage is None else [open_lake(storage)]
    lakes += [Lake(noted)] if noted else []
    if checkpoint.path.parent.name == "checkpoints":
        lakes.append(Lake(checkpoint.path.parent.parent.parent / "lake"))
    lakes = [lake for lake in [*lakes, open_lake(None)] if lake.exists()]
    knowing = (lake for lake in lakes if _row_of(lake, checkpoint) is not None)
    return next(knowing, lakes[0] if lakes else open_lake(storage))


def _row_of(lake: "Lake", checkpoint: "Checkpoint") -> "CheckpointRow | None":
    from offline.sessions import History

    run_id, number, session = _name_of(checkpoint)
    return History(lake).find(run_id, number, session)


def _name_of(checkpoint: "Checkpoint") -> tuple[str, int, int]:
    """Run, iteration and session."""
    state = checkpoint.state
    noted: Mapping[str, Any] = state.get("lake") or {}
    session = int(noted.get("session", state["loop"]["incarnation"]))
    return str(state["run_id"]), int(state["loop"]["iteration"]), session


def lineage_of(lake: "Lake", checkpoint: "Checkpoint") -> "Lineage":
    """By the lake's row of the checkpoint; by what the checkpoint itself notes where it has none.

    Raises:
        LakeError: neither knows; the run wrote no lake.
    """
    from offline.errors import LakeError
    from offline.lineage import of_checkpoint, of_unlisted
    from offline.sessions import CheckpointRow

    run_id, number, session = _name_of(checkpoint)
    if _row_of(lake, checkpoint) is not None:
        return of_checkpoint(lake, run_id, number, session=session)
    noted: Mapping[str, Any] = checkpoint.state.get("lake") or {}
    if "fragments" not in noted:
        raise LakeError(
            f"the lake at {lake.storage.uri} has no row of {checkpoint.path}, and the checkpoint "
            "notes no lake: its run logged none. Train with traces on, or give --storage"
        )
    row = CheckpointRow(
        run_id=run_id,
        session=session,
        checkpoint_id=number,
        fragments=int(noted["fragments"]),
        path=str(checkpoint.path),
        table_versions=dict(noted.get("versions") or {}),
    )
    return of_unlisted(lake, row)


def compare(found: "Lineage", checkpoint: "Checkpoint") -> "Found":
    """A folder's manifest and configuration beside what the lake noted of them."""
    from offline.lineage import config_sha256
    from workflows.lineage_tables import Found

    text = (checkpoint.path / "manifest.json").read_bytes()
    manifest = _same(found.checkpoint.sha256, hashlib.sha256(text).hexdigest())
    config = _same(found.sessions[0].config_sha256, config_sha256(checkpoint.config))
    return Found(found, checkpoint.path, manifest, config)


def _same(noted: str | None, here: str) -> str:
    if noted is None:
        return "unknown"
    return "same" if noted == here else "differs"


def _uses(lake: "Lake", *, episode: str | None, fragment: str | None) -> tuple["Use", ...]:
    from offline.lineage import EpisodeRef, checkpoints_of
    from offline.traces import find_episode

    if fragment is not None:
        return checkpoints_of(lake, parse_fragment(fragment))
    assert episode is not None
    row = find_episode(lake, episode)
    return checkpoints_of(lake, EpisodeRef(row.run_id, row.episode_id))


def parse_fragment(text: str) -> "FragmentRef":
    """RUN:SESSION:ID.

    Raises:
        click.BadParameter: it is not of that form.
    """
    from offline.lineage import FragmentRef

    run_id, session, number = ([*text.rsplit(":", 2), "", ""])[:3]
    if not run_id or not session.isdecimal() or not number.isdecimal():
        raise click.BadParameter(
            f"{text!r} is no RUN:SESSION:ID, as my-run:0:17", param_hint="--fragment"
        )
    return FragmentRef(run_id, int(session), int(number))
