"""`millrace ope`: what logged episodes say of policies that did not act in them."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from workflows.logs import verbosity_options
from workflows.options import F, json_option, lake_storage_option, storage_problem

if TYPE_CHECKING:
    from offline.ope import Evaluation, OpeSettings, Target
    from offline.ope.results import Subject
    from offline.storage import Storage
    from offline.trajectories import Trajectories
    from pipelines.checkpoint import Checkpoint

_DEFAULT_GAMMA: Final = 0.99


def rows_options(command: F) -> F:
    """Add what chooses rows of `steps`: --version, --timestamp, --where."""
    return _all_of(
        command,
        click.option("--version", type=click.IntRange(min=0), metavar="N", help="Of the table."),
        click.option("--timestamp", metavar="TIME", help="Or as of when: ISO 8601, UTC."),
        click.option(
            "--where",
            metavar="CONDITION",
            multiple=True,
            help="On a column of `steps`: 'run_id == ppo-1', or JSON: "
            '[["run_id", "in", ["a", "b"]]]. Repeatable; all have to hold.',
        ),
    )


def settings_options(command: F, *, estimators: str | None = None) -> F:
    """Add what `settings_of` reads, but for --seed.

    Args:
        command: which gets them.
        estimators: names with commas, by default; None for all of them.
    """
    return _all_of(
        command,
        click.option(
            "--estimators",
            metavar="NAMES",
            callback=_estimators,
            default=estimators,
            help="Of is, wis, pdis, cwpdis, dr, wdr, dm, fqe, with commas.  "
            f"[default: {estimators or 'all'}]",
        ),
        click.option("--gamma", type=float, help="Discount.  [default: the checkpoint's]"),
        click.option("--level", type=float, default=0.95, show_default=True, help="Of intervals."),
        click.option(
            "--interval",
            "method",
            type=click.Choice(["bca", "percentile", "t"]),
            default="bca",
            show_default=True,
            help="Bootstrap over episodes, or Student's t.",
        ),
        click.option(
            "--behavior",
            type=click.Choice(["logged", "estimate"]),
            default="logged",
            show_default=True,
            help="Where the logged actions' probabilities are from: column logp, or a clone.",
        ),
        click.option("--max-weight", type=float, metavar="W", help="Bound of importance weights."),
        click.option("--folds", type=int, default=5, show_default=True, help="Of cross-fitting."),
    )


def _ope_options(command: F) -> F:
    table = click.option(
        "--table", type=click.Choice(["steps"]), default="steps", show_default=True
    )
    rest = _all_of(
        command,
        click.option(
            "--explore/--greedy",
            default=True,
            help="The policy as it acts in rollouts, or its mode.  [default: --explore]",
        ),
        click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True),
        click.option("--no-log", is_flag=True, help="Do not add the estimates to the lake."),
        click.option("--plot", metavar="FILE.html", callback=_plot, help="Draw the intervals."),
        lake_storage_option,
        json_option,
        verbosity_options,
    )
    return table(rows_options(settings_options(rest)))


def _all_of(command: F, *options: Callable[[F], F]) -> F:
    """A command with options, the first of them first in --help."""
    for option in reversed(options):
        command = option(command)
    return command


def _estimators(_: click.Context, __: click.Parameter, value: str | None) -> tuple[str, ...]:
    from offline.ope.settings import ESTIMATORS

    if value is None:
        return ESTIMATORS
    names = tuple(name.strip().lower() for name in value.split(","))
    for name in names:
        if name not in ESTIMATORS:
            raise click.BadParameter(f"{name!r} is none of {', '.join(ESTIMATORS)}")
    return names


def _plot(_: click.Context, __: click.Parameter, value: str | None) -> Path | None:
    if value is None:
        return None
    path = Path(value).expanduser().absolute()
    if path.suffix.lower() not in (".html", ".htm"):
        raise click.BadParameter(f"{value}: an .html file is what is written")
    if path.is_dir() or (problem := storage_problem(path.parent)):
        raise click.BadParameter(f"{path} is a folder" if path.is_dir() else problem)
    return path


@click.command(short_help="Off-policy estimates of checkpoints' returns, from logged episodes.")
@click.argument("checkpoints", metavar="CKPT...", nargs=-1, required=True)
@_ope_options
def ope(*, checkpoints: tuple[str, ...], storage: "Storage", **given: Any) -> None:
    """Estimate what CKPT would earn from episodes that other policies acted in.

    CKPT is a checkpoint's folder, a run's folder, or a run id of --storage, of which the latest
    is taken. Every estimate has an interval over episodes, importance sampling an effective
    number of them, with a warning where that is small. Results are added to the lake's table
    `ope_results`, the same question once. See docs/ope.md for which estimator when.
    """
    from pipelines.checkpoint import Checkpoint
    from workflows.output import json_line

    conditions = conditions_of(given["where"])
    opened = [Checkpoint(_path(name, storage)) for name in checkpoints]
    policies = [policy_of(checkpoint, greedy=not given["explore"]) for checkpoint in opened]
    settings = settings_of(given, [checkpoint.config for checkpoint in opened])
    data = load_rows(
        storage,
        version=given["version"],
        timestamp=given["timestamp"],
        conditions=conditions,
    )
    asked = [ask(policy, data, settings, conditions) for policy in policies]
    logged = [] if given["no_log"] else log_answers(storage, asked, settings)
    if given["plot"] is not None:
        from workflows.reports.ope_page import ope_report
        from workflows.reports.page import write_page

        found = [(label_of(each.subject), each.found) for each in asked]
        write_page(ope_report(found, settings), given["plot"])
    for number, each in enumerate(asked):
        was_logged = bool(logged) and logged[number]
        if given["as_json"]:
            click.echo(json_line(record_of(each, settings, logged=was_logged)))
        else:
            _show(each, settings, logged=was_logged if logged else None)
    if given["plot"] is not None and not given["as_json"]:
        click.echo(f"plot       {given['plot']}")


@dataclass(frozen=True)
class OpePolicy:
    """A checkpoint that is to be evaluated.

    Attributes:
        checkpoint: which one.
        target: its policy.
        way: "explore" or "greedy", of which the latter also where both are the same.
    """

    checkpoint: "Checkpoint"
    target: "Target"
    way: str


@dataclass(frozen=True)
class Answer:
    """One evaluation and its answer."""

    subject: "Subject"
    found: "Evaluation"


def folder_of_runs(storage: "Storage") -> Path | None:
    """Where runs beside a lake are; None, which is the default, for a lake in an object store."""
    return Path(storage.uri).parent if storage.is_local else None


def _path(given: str, storage: "Storage") -> Path:
    from workflows.runs import locate

    located = locate(given, folder_of_runs(storage))
    for reason in located.skipped:
        click.echo(f"warning: {reason}", err=True)
    return located.path


def policy_of(checkpoint: "Checkpoint", *, greedy: bool) -> OpePolicy:
    """What is to be evaluated of a checkpoint.

    Raises:
        OpeError: its policy is none that can be.
    """
    from offline.ope import PolicyTarget
    from rl_ops.policy import Policy

    target = PolicyTarget(Policy(checkpoint.policy, checkpoint.weights()), greedy=greedy)
    return OpePolicy(checkpoint, target, "greedy" if target.is_deterministic else "explore")


def load_rows(
    storage: "Storage",
    *,
    version: int | None,
    timestamp: str | None,
    conditions: Sequence[tuple[str, str, Any]],
) -> "Trajectories":
    """The logged rows that are asked about, with their probabilities.

    Raises:
        LakeError: there are none, or no such version.
    """
    from offline.lake import Lake
    from offline.trajectories import DataSpec, load_trajectories
    from rl_ops import columns as c

    where = tuple(conditions) or None
    spec = DataSpec(version=version, timestamp=timestamp, where=where, columns=(c.LOGP,))
    return load_trajectories(Lake(storage), spec)


def log_answers(storage: "Storage", asked: Sequence[Answer], settings: "OpeSettings") -> list[bool]:
    """Add answers to table `ope_results`; of each whether it was added now."""
    from offline.ope.results import log_results, rows_of

    return log_results(storage, [rows_of(a.subject, settings, a.found) for a in asked])


def conditions_of(words: Sequence[str]) -> tuple[tuple[str, str, Any], ...]:
    """What --where asks for.

    Raises:
        click.BadParameter: a word is no condition.
    """
    from offline.schemas import STEPS
    from workflows.conditions import condition

    found: list[tuple[str, str, Any]] = []
    for text in words:
        if not text.lstrip().startswith("["):
            found.append(condition(text, STEPS.schema))
            continue
        try:
            listed = json.loads(text)
        except ValueError as error:
            raise click.BadParameter(f"--where {text!r} is not JSON: {error}") from None
        if not all(isinstance(each, list) and len(each) == 3 for each in listed):
            raise click.BadParameter(f"--where {text!r}: expected [[COLUMN, OPERATOR, VALUE], ...]")
        found += [(str(name), str(operator), value) for name, operator, value in listed]
    return tuple(found)


def settings_of(given: Mapping[str, Any], configs: Sequence[Mapping[str, Any]]) -> "OpeSettings":
    """What `settings_options` and --seed say, with the gamma of the checkpoints' configurations.

    Raises:
        click.UsageError: they differ in gamma.
        OpeError: a value is out of its range.
    """
    from offline.ope import OpeSettings

    gammas = {float(config.get("gamma", _DEFAULT_GAMMA)) for config in configs}
    if given["gamma"] is None and len(gammas) > 1:
        raise click.UsageError(
            f"the checkpoints were trained with gamma {', '.join(map(str, sorted(gammas)))}; give "
            "--gamma, by which all of them are compared"
        )
    names = ("estimators", "level", "method", "folds", "max_weight", "behavior", "seed")
    gamma = gammas.pop() if given["gamma"] is None else given["gamma"]
    return OpeSettings(gamma=gamma, **{name: given[name] for name in names})


def ask(
    policy: OpePolicy,
    data: "Trajectories",
    settings: "OpeSettings",
    conditions: tuple[tuple[str, str, Any], ...],
) -> Answer:
    """Estimate what a policy would earn.

    Raises:
        OpeError: the rows are not such that it can be.
    """
    import hashlib

    from offline.ope import evaluate
    from offline.ope.results import Subject

    checkpoint, state = policy.checkpoint, policy.checkpoint.state
    subject = Subject(
        run_id=str(state["run_id"]),
        session=int(state["loop"]["incarnation"]),
        checkpoint=str(checkpoint.path),
        sha256=hashlib.sha256((checkpoint.path / "manifest.json").read_bytes()).hexdigest(),
        policy_version=int(state["learner"]["version"]),
        target=policy.way,
        table_version=data.version,
        conditions=conditions,
        lake=data.uri,
    )
    return Answer(subject, evaluate(data, policy.target, settings))


def label_of(subject: "Subject") -> str:
    """RUN/CHECKPOINT, for tables and plots."""
    path = Path(subject.checkpoint)
    return f"{subject.run_id}/{path.name}"


def record_of(asked: Answer, settings: "OpeSettings", *, logged: bool) -> dict[str, Any]:
    """One checkpoint's answer as JSON-able values."""
    import dataclasses

    found = asked.found
    return {
        **dataclasses.asdict(asked.subject),
        "ope_id": asked.subject.ope_id(settings),
        "estimates": [dataclasses.asdict(each) for each in found.estimates],
        "behavior": dataclasses.asdict(found.behavior),
        "episodes": found.episodes,
        "rows": found.rows,
        "warnings": list(found.warnings),
        "refused": found.refused,
        "details": found.details,
        "settings": settings.to_json(),
        "logged": logged,
    }


def _show(asked: Answer, settings: "OpeSettings", *, logged: bool | None) -> None:
    """Print one checkpoint's answer; `logged` None where nothing was to be."""
    import sys

    from rich.console import Console

    from workflows.output import is_terminal, safe_text

    subject, found = asked.subject, asked.found
    click.echo(safe_text(f"checkpoint {subject.checkpoint} ({subject.target})"))
    click.echo(
        safe_text(
            f"data       version {subject.table_version} of steps at {subject.lake}: "
            f"{found.episodes:,} episodes, {found.rows:,} rows"
        )
    )
    Console(file=sys.stdout, width=None if is_terminal() else 120).print(_table(found, settings))
    for name, why in found.refused.items():
        click.echo(safe_text(f"refused    {name}: {why}"))
    for warning in found.warnings:
        click.echo(safe_text(f"warning    {warning}"))
    if logged is not None:
        how = "added to ope_results" if logged else "in ope_results already"
        click.echo(f"logged     {subject.ope_id(settings)}, {how}")


def _table(found: "Evaluation", settings: "OpeSettings") -> Any:
    from rich import box
    from rich.table import Table

    title = f"discounted return, gamma {settings.gamma:g}"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    table.add_column("estimator")
    for name in ("estimate", f"{settings.level:.4g} low", "high", "ESS", "vs. behaviour"):
        table.add_column(name, justify="right")
    table.add_column("interval")
    for each in (found.behavior, *found.estimates):
        is_own = each is found.behavior
        table.add_row(
            each.estimator,
            *(f"{x:.4f}" for x in (each.value, each.low, each.high)),
            "" if each.ess is None else f"{each.ess:,.1f}",
            "" if is_own else f"{each.value - found.behavior.value:+.4f}",
            each.method,
        )
    return table
