"""`millrace registry`: which checkpoint a model's alias names, since when, why, and what before."""

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workflows.logs import verbosity_options
from workflows.ope import conditions_of, rows_options
from workflows.options import F, json_option, storage_folder, storage_option

if TYPE_CHECKING:
    from offline.registry import Entry, Registry
    from offline.storage import Storage
    from pipelines.checkpoint import Checkpoint


@click.group(short_help="Aliases of checkpoints: champion, candidate; compare, set, roll back.")
def registry() -> None:
    """Names for checkpoints that are in use. Every change is a row of table `registry`."""


def _lake_options(command: F) -> F:
    lake = click.option(
        "--lake", metavar="DIR|s3://...", help="Where the registry's lake is.  [default: --storage]"
    )
    return storage_option(lake(json_option(verbosity_options(command))))


def _name(_: click.Context, __: click.Parameter, value: str) -> str:
    from pipelines.run_folder import RUN_ID

    if not RUN_ID.fullmatch(value):
        raise click.BadParameter(f"{value!r}: letters, digits, '.', '_' and '-', at most 128")
    return value


_MODEL = click.argument("model", callback=_name)


@registry.command("list", short_help="What each alias names.")
@_lake_options
def list_aliases(*, storage: Path | None, lake: str | None, as_json: bool) -> None:
    """List the aliases of all models."""
    newest: dict[tuple[str, str], Entry] = {}
    for entry in _registry(storage, lake).history():
        newest[entry.model, entry.alias] = entry
    _show([e for e in newest.values() if e.checkpoint is not None], as_json=as_json)


@registry.command(short_help="Every change of a model's aliases, the oldest first.")
@_MODEL
@click.option("--alias", callback=lambda c, p, v: v and _name(c, p, v), help="Only of this one.")
@_lake_options
def show(
    *, model: str, alias: str | None, storage: Path | None, lake: str | None, as_json: bool
) -> None:
    """Show what MODEL's aliases named, and why they changed."""
    _show(_registry(storage, lake).history(model, alias), as_json=as_json)


@registry.command("set", short_help="Let an alias name a checkpoint.")
@_MODEL
@click.argument("alias", callback=_name)
@click.argument("checkpoint")
@click.option("--reason", metavar="JSON|TEXT", help="Is kept beside it.")
@click.option("--workflow", metavar="NAME", help="Whose run does it: the same run does it once.")
@click.option("--logical-time", metavar="T", help="Of that run, ISO 8601.")
@_lake_options
def set_alias(
    *, model: str, alias: str, checkpoint: str, storage: Path | None, lake: str | None, **given: Any
) -> None:
    """Let ALIAS of MODEL name CHECKPOINT: its folder, a run's folder, or a run id."""
    from offline.registry import Entry

    opened = _checkpoint(checkpoint, storage)
    at = given["logical_time"]
    try:
        logical_time = None if at is None else datetime.fromisoformat(at)
    except ValueError:
        raise click.BadParameter(f"{at!r} is no ISO time", param_hint="--logical-time") from None
    entry = Entry(
        model,
        alias,
        str(opened.path.absolute()),
        None,
        run_id=str(opened.state["run_id"]),
        reason=_reason(given["reason"]),
        workflow=given["workflow"],
        logical_time=logical_time,
    )
    found, is_new = _registry(storage, lake).set(entry)
    if not is_new and not given["as_json"]:
        click.echo("set by that run already", err=True)
    _show([found], as_json=given["as_json"])


@registry.command(short_help="Let an alias name again what it named before.")
@_MODEL
@click.argument("alias", callback=_name, default="champion")
@click.option("--reason", default="", metavar="TEXT", help="Is kept beside it.")
@_lake_options
def rollback(
    *, model: str, alias: str, reason: str, storage: Path | None, lake: str | None, as_json: bool
) -> None:
    """Go back to the checkpoint that ALIAS of MODEL named before its present one.

    Several times goes further back.
    """
    found = _registry(storage, lake).rollback(model, alias, reason=reason)
    _show([found], as_json=as_json)


@registry.command(short_help="Is a checkpoint better than the champion?")
@_MODEL
@click.argument("checkpoint")
@click.option("--alias", callback=_name, default="champion", show_default=True)
@click.option(
    "--by",
    type=click.Choice(["simulation", "ope"]),
    default="simulation",
    show_default=True,
    help="Episodes on the same seeds, or estimates from logged episodes.",
)
@click.option("--episodes", type=click.IntRange(min=2), default=50, show_default=True)
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True)
@click.option("--level", type=click.FloatRange(0.5, 0.9999), default=0.95, show_default=True)
@click.option(
    "--min-gain", type=float, default=0.0, show_default=True, help="In units of the return."
)
@click.option(
    "--first",
    type=click.Choice(["pass", "hold"]),
    default="pass",
    show_default=True,
    help="Where there is no champion yet.",
)
@click.option("--estimator", default="wdr", show_default=True, help="With --by ope.")
@rows_options
@_lake_options
def compare(
    *, model: str, checkpoint: str, storage: Path | None, lake: str | None, **given: Any
) -> None:
    """Compare CHECKPOINT with what --alias of MODEL names, and say whether it may take its place.

    It passes where the lower end of the interval of its gain is above --min-gain. In simulation
    both act in the same environments, and the gain's interval is of their paired difference. By
    OPE both are estimated from the same logged episodes, and its estimate's lower end counts
    against the champion's estimate. The exit code is 0 either way.
    """
    from workflows.output import json_line
    from workflows.scheduled.gate import Question, compared

    question = Question(
        candidate=_checkpoint(checkpoint, storage),
        champion=None,
        episodes=given["episodes"],
        seed=given["seed"],
        level=given["level"],
        min_gain=given["min_gain"],
        first=given["first"],
    )
    champion = _registry(storage, lake).get(model, given["alias"])
    if champion is not None:
        assert champion.checkpoint is not None
        question = question.against(_checkpoint(champion.checkpoint, storage))
    rows = None
    if given["by"] == "ope":
        rows = _rows(_storage(storage, lake), given)
    found = compared(question, rows)
    if given["as_json"]:
        click.echo(json_line(found))
        return
    for name, value in found.items():
        click.echo(f"{name:<18} {value}")


def _rows(storage: "Storage", given: dict[str, Any]) -> Any:
    from workflows.scheduled.gate import LoggedRows

    conditions = conditions_of(given["where"])
    return LoggedRows(storage, given["version"], given["timestamp"], conditions, given["estimator"])


def _registry(storage: Path | None, lake: str | None) -> "Registry":
    from offline.registry import Registry

    return Registry(_storage(storage, lake))


def _storage(storage: Path | None, lake: str | None) -> "Storage":
    from offline.storage import Storage

    return Storage.at(f"{lake or storage_folder(storage)}/lake")


def _checkpoint(given: str, storage: Path | None) -> "Checkpoint":
    from pipelines.checkpoint import Checkpoint
    from workflows.runs import locate

    located = locate(given, storage)
    for reason in located.skipped:
        click.echo(f"warning: {reason}", err=True)
    return Checkpoint(located.path)


def _reason(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    return value if isinstance(value, dict) else {"reason": value}


def _show(entries: "list[Entry]", *, as_json: bool) -> None:
    from workflows.output import is_terminal, json_line, safe_text

    if as_json:
        for entry in entries:
            click.echo(json_line(entry.to_json()))
        return
    if not entries:
        click.echo("no alias is set")
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for name in ("model", "alias", "action", "at", "checkpoint", "reason"):
        table.add_column(name, overflow="fold")
    for e in entries:
        at = "" if e.at is None else e.at.isoformat(sep=" ", timespec="seconds")[:19]
        reason = json.dumps(dict(e.reason)) if e.reason else ""
        cells = (e.model, e.alias, e.action, at, e.checkpoint or "", reason)
        table.add_row(*(safe_text(cell) for cell in cells))
    Console(file=sys.stdout, width=None if is_terminal() else 160).print(table)
