"""`millrace lineage`: what made a checkpoint, and which checkpoints were made of some rows."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from workflows.logs import verbosity_options
from workflows.options import json_option, lake_storage_option
from workflows.traces import open_lake

if TYPE_CHECKING:
    from offline.lake import Lake
    from offline.lineage import FragmentRef, Lineage, Use
    from offline.sessions import CheckpointRow
    from offline.storage import Storage
    from pipelines.checkpoint import Checkpoint
    from workflows.lineage_tables import Found


@click.command(short_help="What made a checkpoint; which checkpoints some rows made.")
@click.argument("checkpoint", required=False)
@click.option("--number", type=int, metavar="N", help="Of run CHECKPOINT this one, by the lake.")
@click.option("--episode", metavar="ID", help="Which checkpoints used this episode.")
@click.option("--fragment", metavar="RUN:SESSION:ID", help="Which checkpoints used this fragment.")
@lake_storage_option
@json_option
@verbosity_options
@click.pass_context
def lineage(
    ctx: click.Context,
    /,
    *,
    checkpoint: str | None,
    number: int | None,
    episode: str | None,
    fragment: str | None,
    storage: "Storage",
    as_json: bool,
) -> None:
    """Print how CHECKPOINT came about: its folder, a run's folder, or a run id (the latest).

    Session by session, back over every resume: the fragments and rows that trained it, the
    configuration, the versions of code, packages and tables. Rows that a session logged after
    the checkpoint that was resumed are no part of it. Exit code 1 when the folder is not what
    the lake noted.

    A run id is looked for in the folder of --storage, or in the default one where that is s3://.
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
        _of_folder(checkpoint, storage, preferred=_is_given(ctx))
        if number is None
        else _of_number(checkpoint, number, storage)
    )
    for line in [json_line(lineage_json(found))] if as_json else lineage_lines(found):
        click.echo(line)
    if found.manifest == "differs":
        raise click.exceptions.Exit(1)


def _of_number(run_id: str, number: int, storage: "Storage") -> "Found":
    from offline.lineage import of_checkpoint
    from workflows.lineage_tables import Found

    return Found(of_checkpoint(open_lake(storage), run_id, number), None, "unknown", "unknown")


def _is_given(ctx: click.Context) -> bool:
    return ctx.get_parameter_source("storage") is not ParameterSource.DEFAULT


def _of_folder(given: str, storage: "Storage", *, preferred: bool) -> "Found":
    from pipelines.checkpoint import Checkpoint
    from workflows.runs import locate

    located = locate(given, Path(storage.uri).parent if storage.is_local else None)
    for reason in located.skipped:
        click.echo(f"warning: {reason}", err=True)
    checkpoint = Checkpoint(located.path)
    lake = _lake_of(checkpoint, storage, preferred=preferred)
    return compare(lineage_of(lake, checkpoint), checkpoint)


def _lake_of(checkpoint: "Checkpoint", storage: "Storage", *, preferred: bool) -> "Lake":
    """The first that knows the checkpoint: as noted, beside the run's folder, and of --storage.

    That one first if `preferred`: then none of the others has to be within reach.
    """
    from offline.lake import Lake

    noted = (checkpoint.state.get("lake") or {}).get("uri")
    places: list[str | Path | Storage] = [noted] if noted else []
    if checkpoint.path.parent.name == "checkpoints":
        places.append(checkpoint.path.parent.parent.parent / "lake")
    places.insert(0 if preferred else len(places), storage)
    lakes: list[Lake] = []
    for place in places:
        lake = Lake(place)
        if not lake.exists():
            continue
        if _row_of(lake, checkpoint) is not None:
            return lake
        lakes.append(lake)
    return lakes[0] if lakes else open_lake(storage)


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
