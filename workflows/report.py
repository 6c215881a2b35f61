"""`millrace report`: runs, a sweep or a workflow as one HTML file that opens without a server."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from workflows.exits import BAD_INPUT, Failure
from workflows.logs import verbosity_options
from workflows.options import json_option, lake_storage_option
from workflows.traces import new_file

if TYPE_CHECKING:
    from offline.lake import Lake
    from offline.storage import Storage
    from workflows.reports.blocks import Report, Traces, Videos

MARK: Final = b'name="generator" content="millrace report"'
"""In the head of every report: such a file may be replaced."""
KINDS: Final = ("run", "sweep", "workflow")
_TRAINING_RUNS: Final = 12
"""Of a workflow, the newest of which curves are drawn."""


def _out(_: click.Context, __: click.Parameter, value: str | None) -> Path | None:
    return None if value is None else _page_file(value)


def _page_file(value: str) -> Path:
    """Where a page is to be written: a new file, or a report that is made anew.

    Raises:
        click.BadParameter: something else is there, or nothing can be written there.
    """
    path = Path(value).expanduser().absolute()
    if "\0" not in value and path.is_file() and not path.is_symlink():
        with path.open("rb") as file:
            if MARK in file.read(2000):
                return path
    return new_file(value, suffix=".html")


@click.command(short_help="Runs, a sweep or a workflow as one HTML file.")
@click.argument("names", nargs=-1, required=True, metavar="RUN...|SWEEP|WORKFLOW")
@click.option("--out", metavar="FILE.html", callback=_out, help="[default: report-NAME.html here]")
@click.option("--kind", type=click.Choice(KINDS), help="What NAME is, where several have it.")
@click.option(
    "--episodes",
    type=click.IntRange(0, 200),
    default=20,
    show_default=True,
    metavar="N",
    help="Episodes that get every step, chosen to tell most.",
)
@click.option("--episode", "named", metavar="ID", multiple=True, help="One of them. Repeatable.")
@click.option(
    "--video-mb",
    type=click.FloatRange(0, 200),
    default=3.0,
    show_default=True,
    metavar="MB",
    help="Room for films of evaluations.",
)
@lake_storage_option
@json_option
@verbosity_options
def report(
    *,
    names: tuple[str, ...],
    out: Path | None,
    kind: str | None,
    episodes: int,
    named: tuple[str, ...],
    video_mb: float,
    storage: "Storage",
    as_json: bool,
) -> None:
    """Write a report of RUNs beside each other, of a SWEEP or of a WORKFLOW.

    One file: curves with intervals over seeds, losses, time of stages, lag, faults, lineage,
    trials, films, and a browser of episodes and steps. It opens without a server or a network.
    """
    from workflows.output import bytes_text, json_line
    from workflows.reports.page import write_page

    room = Room(storage, episodes=episodes, named=named, video_bytes=int(video_mb * 1e6))
    found = kind or _kind_of(names[0], room)
    if found != "run" and len(names) > 1:
        raise click.UsageError(f"a {found} is reported alone; give one name")
    page = _MAKERS[found](names, room)
    path = out or _page_file(f"report-{_file_name(names)}.html")
    size = write_page(page, path)
    if as_json:
        click.echo(json_line({"kind": found, "names": names, "path": str(path), "bytes": size}))
    else:
        click.echo(f"report     {path} ({bytes_text(size)})")


class Room:
    """Where a report's data is, and how much of it is wanted.

    Args:
        storage: of the lake; runs' folders are beside it.
        episodes: how many get every step.
        named: episodes that are wanted for certain.
        video_bytes: of films.
    """

    def __init__(
        self, storage: "Storage", *, episodes: int, named: tuple[str, ...], video_bytes: int
    ) -> None:
        self.storage, self.episodes = storage, episodes
        self.named, self.video_bytes = named, video_bytes

    @cached_property
    def folder(self) -> Path | None:
        """Of runs; None where the storage is no folder of this machine."""
        from workflows.ope import folder_of_runs

        return folder_of_runs(self.storage)

    @cached_property
    def lake(self) -> "Lake | None":
        """The lake, if there is one."""
        from offline.lake import Lake

        lake = Lake(self.storage)
        return lake if lake.exists() else None

    def traces(self, lake: "Lake", run_ids: Sequence[str]) -> "Traces | None":
        """The trace browser of runs."""
        from workflows.reports.episodes import traces_of
        from workflows.reports.run_tables import Rows

        if not run_ids or (self.episodes == 0 and not self.named):
            return None
        where = str(self.folder) if self.folder is not None else self.storage.uri
        rows = Rows(lake, tuple(run_ids))
        return traces_of(rows, count=self.episodes, named=self.named, storage=where)

    def films(self, run_ids: Sequence[str]) -> "Videos | None":
        """Films of runs."""
        from workflows.reports.films import films_of

        if self.folder is None:
            return None
        return films_of([self.folder / name for name in run_ids], budget_bytes=self.video_bytes)


def _runs(names: Sequence[str], room: Room) -> "Report":
    from workflows.reports.lake_sections import lake_sections
    from workflows.reports.run_page import run_report
    from workflows.reports.run_tables import Rows, run_on_disk, runs_in

    lake = room.lake
    found = [] if lake is None else runs_in(lake, list(dict.fromkeys(names)))
    known = [run.run_id for run in found]
    for name in (name for name in dict.fromkeys(names) if name not in known):
        if room.folder is None or not (room.folder / name / "result.json").is_file():
            raise _unknown(name, room)
        found.append(run_on_disk(room.folder / name))
    sections = [] if lake is None or not known else lake_sections(Rows(lake, tuple(known)), found)
    traces = None if lake is None else room.traces(lake, known)
    films = room.films([run.run_id for run in found])
    return run_report(found, lake_sections=sections, videos=films, traces=traces)


def _sweep(names: Sequence[str], room: Room) -> "Report":
    from workflows.reports.blocks import Section
    from workflows.reports.lake_sections import faults_of
    from workflows.reports.run_tables import Rows, runs_in
    from workflows.reports.sweep_page import run_ids_of, sweep_report
    from workflows.sweeps.trials import Record

    if not _is_sweep(names[0], room):
        raise _unknown(names[0], room)
    assert room.folder is not None
    sweep = Record.read(room.folder / names[0])
    lake, ids = room.lake, run_ids_of(sweep)
    faults = Section("faults", "Faults", [])
    runs, traces = [], None
    if lake is not None and ids:
        rows = Rows(lake, tuple(ids))
        runs, faults = runs_in(lake, ids), Section("faults", "Faults", faults_of(rows))
        traces = room.traces(lake, [run.run_id for run in runs][:3])
    return sweep_report(sweep, runs, faults=faults, videos=room.films(ids[:3]), traces=traces)


def _workflow(names: Sequence[str], room: Room) -> "Report":
    from offline.registry import Registry
    from offline.workflow_log import WorkflowLog
    from workflows.reports.blocks import Section
    from workflows.reports.run_page import learning
    from workflows.reports.run_tables import runs_in
    from workflows.reports.workflow_page import training_runs, workflow_report

    name, lake = names[0], room.lake
    if lake is None or not _is_workflow(name, room):
        raise _unknown(name, room)
    states = list(WorkflowLog(room.storage, name).runs().values())
    entries = [entry for entry in Registry(room.storage).history() if entry.workflow == name]
    runs = runs_in(lake, training_runs(states)[:_TRAINING_RUNS])
    curves = Section("learning", "Learning", learning(runs) if runs else [])
    return workflow_report(name, states, entries, curves)


_MAKERS: Final[dict[str, Any]] = {"run": _runs, "sweep": _sweep, "workflow": _workflow}


def _kind_of(name: str, room: Room) -> str:
    """What a name is.

    Raises:
        UsageError: it is several things.
    """
    tests = {"run": _is_run, "sweep": _is_sweep, "workflow": _is_workflow}
    found = [kind for kind, is_one in tests.items() if is_one(name, room)]
    if len(found) > 1:
        raise click.UsageError(f"{name!r} is a {' and a '.join(found)}; say which by --kind")
    return found[0] if found else "run"


def _is_run(name: str, room: Room) -> bool:
    if _has(name, room, "params.json"):
        return True
    if room.lake is None:
        return False
    return bool(room.lake.sql("SELECT 1 FROM runs WHERE run_id = ? LIMIT 1", [name]).num_rows)


def _is_sweep(name: str, room: Room) -> bool:
    from workflows.sweeps.trials import SWEEP

    return _has(name, room, SWEEP)


def _has(name: str, room: Room, file: str) -> bool:
    """Whether a folder of that name beside the lake has a file."""
    from pipelines.run_folder import RUN_ID

    if room.folder is None or RUN_ID.fullmatch(name) is None:
        return False
    return (room.folder / name / file).is_file()


def _is_workflow(name: str, room: Room) -> bool:
    from offline.workflow_log import workflows_in

    return room.lake is not None and name in workflows_in(room.storage)


def _unknown(name: str, room: Room) -> Failure:
    """What there is instead; the nearest names first."""
    import difflib

    from offline.workflow_log import workflows_in
    from pipelines.config_errors import printable

    known: list[str] = []
    if room.lake is not None:
        recent = room.lake.sql("SELECT run_id FROM runs ORDER BY started_at DESC LIMIT 1000")
        known = [*recent.column("run_id").to_pylist(), *workflows_in(room.storage)]
    if room.folder is not None and room.folder.is_dir():
        known += sorted(path.parent.name for path in room.folder.glob("*/sweep.json"))
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or known[:3]
    there = ", ".join(printable(text) for text in close)
    hint = f"There are {there}." if there else "There is nothing yet; give --storage."
    where = room.folder if room.folder is not None else room.storage.uri
    return Failure(
        f"Error: no run, sweep or workflow {printable(name)!r} in {where}. {hint}", code=BAD_INPUT
    )


def _file_name(names: Sequence[str]) -> str:
    name = names[0] if len(names) == 1 else f"{names[0]}-and-{len(names) - 1}-more"
    return "".join(ch if ch.isalnum() or ch in "-_." else "-" for ch in name)[:120]
