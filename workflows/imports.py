"""`millrace import`: episodes of other tools into the lake."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from workflows.logs import verbosity_options
from workflows.options import json_option, lake_storage_option

if TYPE_CHECKING:
    from offline.exchange import Source, Spaces
    from offline.import_report import ImportReport

F = TypeVar("F", bound=Callable[..., Any])


@click.group("import", short_help="Import episodes of other tools into the lake.")
def import_data() -> None:
    """Import episodes into the lake, where training and SQL find them as a run.

    All data is checked before anything is written. Importing the same files again is noticed.
    """


def _choice(name: str, *values: str, text: str) -> Callable[[F], F]:
    kind = click.Choice(list(values))
    return click.option(name, type=kind, default=values[0], show_default=True, help=text)


def _import_options(command: F) -> F:
    options = (
        click.argument("sources", nargs=-1, required=True, metavar="SOURCE..."),
        lake_storage_option,
        click.option("--name", metavar="N", help="Of the import; made of the source by default."),
        click.option("--env", metavar="ID", help="Gymnasium id: its spaces are the data's."),
        click.option("--spaces", metavar="FILE", help='JSON: {"obs": SPACE, "action": SPACE}.'),
        _choice("--on-error", "fail", "skip", text="Import nothing, or all but bad episodes."),
        _choice("--missing-end", "fail", "reject", "truncate", text="Of episodes without an end."),
        _choice("--bounds", "check", "ignore", text="Whether actions have to be in their space."),
        _choice("--next-obs", "check", "ignore", text="Whether they have to be the next rows'."),
        click.option("--resume", is_flag=True, help="Go on with an import that was cut short."),
        click.option("--dry-run", is_flag=True, help="Check everything, write nothing."),
        json_option,
        verbosity_options,
    )
    for option in reversed(options):
        command = option(command)
    return command


_MAP = click.option(
    "--map",
    "mapping",
    metavar="NAME=COLUMN,...",
    multiple=True,
    help="What is in which columns: --map obs=x,v --map reward=r. Repeatable.",
)


@import_data.command(short_help="A Minari 0.5 dataset.")
@_import_options
def minari(**given: Any) -> None:
    """Import the Minari dataset in the folder SOURCE: arrow, parquet or hdf5."""
    from offline.import_minari import MinariSource

    _run(MinariSource.at(given["sources"]), {}, given)


@import_data.command(short_help="RLlib's recordings, JSON or parquet.")
@_import_options
def rllib(**given: Any) -> None:
    """Import files, or folders of them, that RLlib's `output` wrote: JSON lines or parquet."""
    from offline.import_files import find_files
    from offline.import_rllib import RllibSource

    suffixes = (".json", ".jsonl", ".parquet")
    files = find_files(given["sources"], suffixes=suffixes, kind="RLlib")
    # An export of ours has JSON beside its data that is no data.
    kept = tuple(f for f in files if Path(f).name not in ("spaces.json", "export.json"))
    _run(RllibSource(kept), {}, given)


@import_data.command(short_help="Parquet, one row a step.")
@_MAP
@_import_options
def parquet(**given: Any) -> None:
    """Import parquet files, or folders of them, with one row for each step."""
    _tabular("parquet", given)


@import_data.command(short_help="CSV, one line a step.")
@_MAP
@_import_options
def csv(**given: Any) -> None:
    """Import CSV files, or folders of them, with a header and one line for each step."""
    _tabular("csv", given)


@import_data.command(short_help="HDF5 as D4RL's.")
@click.option(
    "--timeouts",
    metavar="N|none",
    help="For files without timeouts: truncate after N steps, or never.",
)
@_import_options
def hdf5(**given: Any) -> None:
    """Import HDF5 files with observations, actions, rewards, terminals and timeouts."""
    from offline.import_files import find_files
    from offline.import_hdf5 import Hdf5Source

    files = find_files(given["sources"], suffixes=(".hdf5", ".h5"), kind="HDF5")
    timeouts = _timeouts(given["timeouts"])
    _run(Hdf5Source(files, timeouts=timeouts), {"timeouts": timeouts}, given)


def _timeouts(value: str | None) -> Any:
    if value is None:
        return "refuse"
    if value == "none":
        return "none"
    if not value.isdecimal() or int(value) < 1:
        raise click.BadParameter(f"--timeouts {value!r}: a number of steps, or none")
    return int(value)


def _tabular(kind: str, given: Mapping[str, Any]) -> None:
    from offline.import_files import find_files
    from offline.import_tabular import TabularSource, parse_mapping

    mapping = parse_mapping(given["mapping"])
    files = find_files(given["sources"], suffixes=(f".{kind}",), kind=kind)
    options = {name: list(columns) for name, columns in mapping.items()}
    _run(TabularSource(kind, files, mapping), {"map": options}, given)


def _run(source: "Source", options: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    from offline.import_contract import Rules
    from offline.importing import ImportRequest, import_episodes
    from workflows.output import json_line, stdout_alone

    rules = Rules(
        on_error=given["on_error"],
        missing_end=given["missing_end"],
        bounds=given["bounds"] == "check",
        next_obs=given["next_obs"] == "check",
    )
    with stdout_alone():  # environments print
        request = ImportRequest(
            run_id=given["name"],
            spaces=_spaces(given["spaces"], given["env"]),
            env=given["env"],
            rules=rules,
            options=options,
        )
        report = import_episodes(
            given["storage"], source, request, resume=given["resume"], dry_run=given["dry_run"]
        )
    click.echo(json_line(report.to_json()) if given["as_json"] else text_of(report))


def _spaces(file: str | None, env: str | None) -> "Spaces | None":
    from offline.import_spaces import spaces_from_text, spaces_of_env

    if file is not None:
        if file.lstrip().startswith("{"):
            return spaces_from_text(file, origin="--spaces")
        try:
            text = Path(file).expanduser().read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise click.BadParameter(f"--spaces {file}: {error}") from error
        return spaces_from_text(text, origin=f"--spaces {file}")
    return None if env is None else spaces_of_env(env)


def text_of(report: "ImportReport") -> str:
    """A report in lines, safe for a terminal."""
    from workflows.output import safe_text

    lines = [
        f"import     {report.run_id} ({report.status})",
        f"episodes   {report.episodes:,}",
        f"rows       {report.rows:,}",
        f"rejected   {report.rejected:,}",
    ]
    lines += [f"  {count:>6,} x {reason}" for reason, count in report.reasons.items()]
    lines += [f"  {violation}" for violation in report.violations]
    spaces = report.spaces
    lines.append(f"spaces     obs {spaces['obs']}, action {spaces['action']}; {spaces['origin']}")
    if report.ends_made:
        lines.append(f"cut        {report.ends_made:,} episodes without an end are truncated")
    if report.rows_cut:
        lines.append(
            f"dropped    the last step of {report.rows_cut:,} truncated episodes, whose "
            "observation is now the final one"
        )
    if report.ignored:
        lines.append(f"ignored    {', '.join(report.ignored)}")
    lines += [f"note       {note}" for note in report.notes]
    return safe_text("\n".join(lines))
