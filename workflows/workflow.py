"""`millrace workflow`: run a workflow's steps at a logical time, on schedule, or for the past."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workflows.exits import BAD_INPUT, FAILED, Failure
from workflows.logs import verbosity_options
from workflows.options import json_option, storage_folder, storage_option
from workflows.signals import GracefulStop

if TYPE_CHECKING:
    from workflows.scheduled.places import Places
    from workflows.scheduled.spec import Workflow

TARGETS = ("cron", "systemd", "ray-job", "raycronjob", "airflow")


@click.group(short_help="Scheduled runs: collect, train, evaluate, promote, each step once.")
def workflow() -> None:
    """Runs of a workflow's file: steps in turn, each once, at logical times.

    History is table `workflow_runs` of the lake: a run that was killed goes on at its first
    unfinished step, and one that is over is not done again. See docs/workflows.md.
    """


@workflow.command("run", short_help="One run, at a logical time.")
@click.argument("file")
@click.option(
    "--logical-time",
    metavar="T",
    help="Of the run, local to the schedule's time zone unless it says otherwise.  [default: now]",
)
@click.option("--again", is_flag=True, help="Also a run that failed: from its failed step on.")
@storage_option
@json_option
@verbosity_options
def run_command(
    *, file: str, logical_time: str | None, again: bool, storage: Path | None, as_json: bool
) -> None:
    """Do what is left of one run of FILE; a run that succeeded is left as it is."""
    places = _places(file, storage)
    at = _now() if logical_time is None else _when(logical_time, places.workflow)
    _check_trainings(places.workflow)
    with GracefulStop() as stop:
        stop.hold()
        status = _executed(places, at, stop, again=again, as_json=as_json)
    _leave(stop, failed=status == "failed")


@workflow.command(short_help="Runs of the past that are missing.")
@click.argument("file")
@click.option("--from", "first", required=True, metavar="T", help="The first logical time.")
@click.option("--to", "last", required=True, metavar="T", help="The last one.")
@click.option("--again", is_flag=True, help="Also runs that failed.")
@storage_option
@json_option
@verbosity_options
def backfill(
    *, file: str, first: str, last: str, again: bool, storage: Path | None, as_json: bool
) -> None:
    """Do every run of FILE from one logical time to another that did not succeed.

    The oldest first, `max_active` side by side. The schedule's start does not matter.
    """
    from offline.workflow_log import WorkflowLog

    places = _places(file, storage)
    schedule = _scheduled(places.workflow)
    begin, end = (_when(text, places.workflow) for text in (first, last))
    if end < begin:
        raise click.BadParameter(f"{last} is before --from {first}", param_hint="--to")
    known = WorkflowLog(places.lake, places.workflow.name).runs()
    over = {"succeeded"} if again else {"succeeded", "failed"}
    wanted = [
        t
        for t in schedule.times.between(begin, end)
        if t not in known or known[t].status not in over
    ]
    _check_trainings(places.workflow)
    with GracefulStop() as stop, ThreadPoolExecutor(schedule.max_active) as pool:
        stop.hold()
        # Threads: a signal comes to this one, which waits for the others.
        futures = [
            pool.submit(_executed, places, at, stop, again=again, as_json=as_json) for at in wanted
        ]
        ended = [future.result() for future in futures]
    if not as_json:
        click.echo(f"{len(ended)} runs: {ended.count('succeeded')} succeeded")
    _leave(stop, failed="failed" in ended)


@workflow.command(short_help="Begin runs when they are due.")
@click.argument("files", nargs=-1, required=True)
@click.option("--once", is_flag=True, help="Do what is due now and end; for cron and timers.")
@storage_option
@verbosity_options
def serve(*, files: tuple[str, ...], once: bool, storage: Path | None) -> None:
    """Begin the runs of FILES when they are due, until a signal comes.

    Two servers share the work: each run is done by one of them. A signal stops the running steps,
    and the next server goes on with them.
    """
    from workflows.scheduled.server import Server

    places = [_places(file, storage) for file in files]
    for each in places:
        _scheduled(each.workflow)
        _check_trainings(each.workflow)
    names = [each.workflow.name for each in places]
    if len(set(names)) < len(names):
        raise click.UsageError(f"two files are of one workflow: {', '.join(sorted(names))}")
    server = Server(places, _say)
    succeeded = True
    with GracefulStop() as stop:
        stop.hold()
        _set_when_signalled(stop, server.stopping)
        if once:
            succeeded = server.once()
        else:
            _say(f"serving {', '.join(names)} below {places[0].storage}")
            server.serve()
    _leave(stop, failed=not succeeded)


@workflow.command(short_help="Runs and their steps, newest first.")
@click.argument("names", metavar="[FILE|NAME]...", nargs=-1)
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, metavar="N")
@click.option(
    "--lake", metavar="DIR|s3://...", help="Where the history's lake is.  [default: --storage]"
)
@storage_option
@json_option
@verbosity_options
def status(
    *, names: tuple[str, ...], limit: int, lake: str | None, storage: Path | None, as_json: bool
) -> None:
    """Show the runs of workflows, by default of all that the lake has."""
    from rich.console import Console

    from offline.storage import Storage
    from offline.workflow_log import WorkflowLog, workflows_in
    from workflows.output import is_terminal, json_line, safe_text
    from workflows.scheduled.history import record_of, table_of

    at = Storage.at(f"{lake or storage_folder(storage)}/lake")
    found: list[tuple[str, Storage]] = []
    for name in names or workflows_in(at):
        if name.endswith((".yaml", ".yml")):
            places = _places(name, storage)
            found.append((places.workflow.name, places.lake))
        else:
            found.append((name, at))
    console = Console(file=sys.stdout, width=None if is_terminal() else 160)
    for name, where in found:
        runs = [*WorkflowLog(where, name).runs().values()][-limit:][::-1]
        if as_json:
            click.echo("\n".join(json_line(record_of(name, state)) for state in runs))
            continue
        console.print(table_of(name, runs))
        for state in runs:
            for step in (e for e in state.steps.values() if e.status == "failed"):
                at_step = f"{state.logical_time.isoformat()} {step.step}: {step.message}"
                click.echo(safe_text(at_step))
    if not found and not as_json:
        click.echo(f"no workflow has run in {at.uri}")


@workflow.command(short_help="What another scheduler needs to begin runs.")
@click.argument("file")
@click.option("--target", type=click.Choice(TARGETS), required=True)
@click.option(
    "--ray-address", metavar="ADDRESS", help="Of a cluster's dashboard, for ray-job: http://..."
)
@click.option("--image", metavar="IMAGE", help="Of the containers, for raycronjob.")
@storage_option
def export(
    *, file: str, target: str, ray_address: str | None, image: str | None, storage: Path | None
) -> None:
    """Print what cron, systemd, Ray, KubeRay or Airflow takes to begin the runs of FILE.

    Each calls `millrace workflow`, which keeps the history: no run is done twice.
    """
    from workflows.scheduled.exports import Exported, exported

    places = _places(file, storage)
    _scheduled(places.workflow)
    try:
        click.echo(exported(target, Exported(places, ray_address, image)), nl=False)
    except ValueError as error:
        raise Failure(f"Error: {error}", code=BAD_INPUT) from error


def _places(file: str, storage: Path | None) -> "Places":
    from workflows.scheduled.places import Places
    from workflows.scheduled.spec import load_workflow

    return Places(load_workflow(file), storage_folder(storage).absolute())


def _scheduled(found: "Workflow") -> Any:
    if found.spec.schedule is None:
        raise Failure(
            f"Error: {found.path}: schedule is missing; write schedule: {{cron: '0 3 * * *', "
            "start: 2026-01-01}, or use `millrace workflow run`",
            code=BAD_INPUT,
        )
    return found.spec.schedule


def _check_trainings(found: "Workflow") -> None:
    """Refuse settings of trainings that are wrong, before anything is begun."""
    from workflows.scheduled.trainings import check_trainings

    check_trainings(found)


def _executed(
    places: "Places", at: datetime, stop: GracefulStop, *, again: bool, as_json: bool
) -> str:
    from offline.workflow_log import ClaimError, WorkflowLog
    from workflows.output import json_line
    from workflows.scheduled.engine import Execution
    from workflows.scheduled.history import record_of

    try:
        execution = Execution(places, at, lambda: stop.signal is not None, _say, again=again)
        status = execution.run()
    except ClaimError as error:
        _say(str(error))
        known = WorkflowLog(places.lake, places.workflow.name).runs(at)
        status = known[at].status if at in known else "failed"
    if as_json:
        state = WorkflowLog(places.lake, places.workflow.name).runs(at)[at]
        click.echo(json_line(record_of(places.workflow.name, state)))
    return status


def _say(line: str) -> None:
    click.echo(line, err=True)


def _set_when_signalled(stop: GracefulStop, event: threading.Event) -> None:
    """A server waits on an event."""

    def watch() -> None:
        import time

        while stop.signal is None:
            time.sleep(0.1)
        event.set()

    threading.Thread(target=watch, name="signals", daemon=True).start()


def _leave(stop: GracefulStop, *, failed: bool) -> None:
    if stop.exit_code:
        raise click.exceptions.Exit(stop.exit_code)
    if failed:
        raise click.exceptions.Exit(FAILED)


def _now() -> datetime:
    from datetime import UTC

    return datetime.now(UTC).replace(microsecond=0)


def _when(text: str, found: "Workflow") -> datetime:
    from workflows.scheduled.history import when

    try:
        return when(text, found.schedule.zone)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
