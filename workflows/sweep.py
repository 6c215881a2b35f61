"""`millrace sweep`: trials of many settings, or versions of data, through Ray Tune."""

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workflows.exits import BAD_INPUT, FAILED, Failure
from workflows.logs import verbosity_options
from workflows.options import json_option, storage_folder, storage_option
from workflows.startup import Start

if TYPE_CHECKING:
    from workflows.sweeps.trials import Record


def _name(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    if value is None:
        return None
    from pipelines.run_folder import check_run_id

    try:
        return check_run_id(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command(short_help="Train many settings side by side, and compare.")
@click.argument("file", required=False)
@click.option(
    "--name", callback=_name, metavar="N", help="Of the sweep; by default one is made up."
)
@click.option("--resume", metavar="SWEEP", help="Go on with a sweep of --storage.")
@click.option(
    "--num-samples", type=click.IntRange(min=1), metavar="N", help="Instead of the file's."
)
@click.option(
    "--concurrency", type=click.IntRange(min=1), metavar="N", help="Instead of the file's."
)
@click.option("--ray-address", metavar="ADDRESS", help="Of a cluster, or auto.")
@storage_option
@json_option
@verbosity_options
@click.pass_obj
def sweep(start: Start | None, /, **given: Any) -> None:
    """Run the trials of FILE: grids, draws, ASHA, population-based training, Optuna.

    Every trial is a run of its own in the lake. A sweep that was killed goes on with --resume:
    trials that are over stay, the others go on from their last checkpoint. See docs/sweeps.md.
    """
    from workflows.sweeps.spec import load_sweep
    from workflows.sweeps.trials import Record, about

    storage = storage_folder(given["storage"])
    if (given["file"] is None) == (given["resume"] is None):
        raise click.UsageError("give either FILE or --resume SWEEP")
    if given["resume"] is not None:
        folder = storage / given["resume"]
        found = _saved(folder)
    else:
        found = load_sweep(given["file"])
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        folder = storage / (given["name"] or f"sweep-{found.spec.algo}-{stamp}")
        if folder.exists():
            what = f"{folder} exists already; choose another --name, or --resume {folder.name}"
            raise Failure(f"Error: {what}", code=BAD_INPUT)
    config = found.check()
    record = Record(folder, about(found, sweep_id=folder.name))
    status, number = _run(found, record, storage, given, ships=_ships(config, given))
    _summarize(record, status, given["as_json"], start)
    if number is not None:
        raise click.exceptions.Exit(128 + number)
    if any(trial["status"] == "error" for trial in record.trials.values()):
        raise click.exceptions.Exit(FAILED)


def _saved(folder: Path) -> Any:
    from workflows.sweeps.spec import load_sweep
    from workflows.sweeps.trials import SWEEP

    if not (folder / SWEEP).is_file():
        raise Failure(f"Error: {folder} is no sweep: it has no {SWEEP}", code=BAD_INPUT)
    path = folder / "sweep.yaml"
    path.write_text(json.loads((folder / SWEEP).read_text())["file"])
    return load_sweep(path)


def _ships(config: Any, given: dict[str, Any]) -> Path | None:
    """The folder with the user's code that a cluster is to have."""
    if given["ray_address"] is None or config is None:
        return None
    from pipelines.own_code import own_code

    return own_code(config)


def _run(
    found: Any, record: "Record", storage: Path, given: dict[str, Any], *, ships: Path | None
) -> tuple[str, int | None]:
    from pipelines.ray_session import start_ray, stop_ray
    from workflows.output import stdout_alone

    storage.mkdir(parents=True, exist_ok=True)
    owns_ray = start_ray(address=given["ray_address"], ships=ships)
    try:
        from workflows.sweeps.running import Running

        running = Running(
            found,
            record,
            storage,
            given["num_samples"],
            given["concurrency"],
            _reporter(as_json=given["as_json"]),
        )
        with stdout_alone():
            status = running.run(resume=given["resume"] is not None)
    finally:
        if owns_ray:
            stop_ray()
    stopped = running.interrupted or (2 if status == "stopped" else None)
    return status, None if stopped is None else int(stopped)


def _reporter(*, as_json: bool) -> Any:
    """Shows trials that changed their status, or how far all are, in lines."""
    from workflows.progress import number

    told: dict[str, str] = {}

    def show(record: "Record") -> None:
        for trial in record.trials.values():
            if told.get(trial["trial_id"]) != trial["status"]:
                told[trial["trial_id"]] = trial["status"]
                if as_json or trial["status"] == "pending":
                    continue
                config = ", ".join(f"{k}={_short(v)}" for k, v in trial["config"].items())
                figure = number(record.figure(trial))
                why = f": {trial['error']}" if trial["error"] else ""
                click.echo(
                    f"{trial['trial_id']}  {trial['status']:<10} {config}  "
                    f"{record.about['metric']} {figure}{why}",
                    err=True,
                )

    return show


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _summarize(record: "Record", status: str, as_json: bool, start: Start | None) -> None:
    from workflows.output import is_terminal, json_line
    from workflows.runs import shell
    from workflows.sweeps.trials import table_of

    command = start.command if start is not None else ["millrace"]
    best = next((t for t in record.ordered() if record.figure(t) is not None), None)
    checkpoint = None if best is None else best["checkpoint"]
    evaluate = (
        None
        if checkpoint is None
        else shell([*command, "evaluate", checkpoint, "--episodes", "10"])
    )
    where = ["--storage", str(record.folder.parent)]
    resume = shell([*command, "sweep", "--resume", record.folder.name, *where])
    query = (
        f"SELECT run_id, max(value) AS best FROM metrics WHERE key = '{record.about['metric']}' "
        f"AND starts_with(run_id, '{record.folder.name}-') GROUP BY ALL ORDER BY ALL"
    )
    summary = {
        "sweep_id": record.folder.name,
        "folder": str(record.folder),
        "status": status,
        "best": best,
        "evaluate": evaluate,
        "sql": shell([*command, "sql", query, *where]),
        "resume": resume if status == "stopped" else None,
    }
    if as_json:
        click.echo(json_line({**summary, "trials": record.ordered()}))
        return
    from rich.console import Console

    Console(file=sys.stdout, width=None if is_terminal() else 160).print(table_of(record))
    shown = {**summary, "best": None if best is None else f"{best['run_id']}, {checkpoint}"}
    click.echo("\n".join(f"{k:<11}{v}" for k, v in shown.items() if v is not None))
