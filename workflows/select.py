"""`millrace select`: which checkpoint to use, by simulation where there is one, else by OPE."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from click.core import ParameterSource

from workflows.evaluate import log_to_lake, task_of
from workflows.exits import BAD_INPUT, Failure
from workflows.logs import verbosity_options
from workflows.ope import rows_options, settings_options
from workflows.options import F, json_option, lake_storage_option
from workflows.startup import Start

if TYPE_CHECKING:
    from offline.ope import OpeSettings
    from offline.storage import Storage
    from pipelines.checkpoint import Checkpoint
    from pipelines.evaluation import Evaluation, EvaluationTask
    from workflows.ope import Answer
    from workflows.select_rows import Row
    from workflows.select_table import Logged

_SAYS_OPE: Final = ("table", "version", "timestamp", "where", "estimators")
"""Options that ask for estimates by being given."""


def _by(_: click.Context, __: click.Parameter, value: str) -> str:
    from offline.ope.settings import ESTIMATORS
    from workflows.select_rows import AUTO, RETURN

    if value.lower() not in (known := (AUTO, RETURN, *ESTIMATORS)):
        raise click.BadParameter(f"{value!r} is none of {', '.join(known)}")
    return value.lower()


def _estimator_options(command: F) -> F:
    return settings_options(command, estimators="dr,fqe")


def _options(command: F) -> F:
    for option in (
        verbosity_options,
        json_option,
        lake_storage_option,
        click.option("--no-log", is_flag=True, help="Add nothing to the lake."),
        click.option(
            "--by",
            default="auto",
            show_default=True,
            callback=_by,
            help="What decides: return (simulated), or an estimator (the lower end of its "
            "interval). auto: return, else dr, else fqe.",
        ),
        _estimator_options,
        rows_options,
        click.option(
            "--table", type=click.Choice(["steps"]), help="Estimate from it, beside simulating."
        ),
        click.option("--no-simulation", is_flag=True, help="Estimate only, even with an env."),
        click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True),
        click.option("--explore", is_flag=True, help="Sample actions, not the most likely ones."),
        click.option(
            "--episodes",
            type=click.IntRange(min=1),
            default=20,
            show_default=True,
            help="To simulate of each checkpoint.",
        ),
    ):
        command = option(command)
    return command


@click.command(short_help="Compare checkpoints by simulation or OPE, and name the best.")
@click.argument("checkpoints", metavar="CKPT_OR_RUN...", nargs=-1, required=True)
@_options
@click.pass_context
def select(
    ctx: click.Context, /, *, checkpoints: tuple[str, ...], storage: "Storage", **given: Any
) -> None:
    """Compare all checkpoints of a run, or those named, and say which is the best.

    CKPT_OR_RUN is a checkpoint's folder, or a run's folder or id, of which every checkpoint is
    taken. Each acts in its environment; what it would earn is estimated from the lake's rows where
    --table, --version, --timestamp, --where or --estimators is given, or a checkpoint has no
    environment. Evaluations and estimates are logged as `evaluate` and `ope` do. Logged rows are
    those of --storage. See docs/ope.md.
    """
    from workflows.select_rows import AUTO, RETURN, criterion, has_env, ranked
    from workflows.select_table import Report

    opened = _opened(checkpoints, storage)
    simulates = [not given["no_simulation"] and has_env(each) for each in opened]
    _require_possible(given, simulates)
    settings: OpeSettings | None = None
    answers: Sequence[Answer | None] = [None] * len(opened)
    says_ope = any(ctx.get_parameter_source(n) is ParameterSource.COMMANDLINE for n in _SAYS_OPE)
    # Estimates of some only could not be compared with the returns of others: they are discounted.
    if says_ope or given["by"] not in (AUTO, RETURN) or not all(simulates):
        settings, answers = _estimated(opened, storage, given)
    rows = _rows(opened, simulates, answers, given)
    by = criterion(rows, given["by"], () if settings is None else settings.estimators)
    if by is None:
        raise Failure(_undecided(rows, given["by"]), code=BAD_INPUT)
    logged = _log(rows, storage, settings, given)
    program = (ctx.find_object(Start) or Start.of_a_call()).command
    report = Report(ranked(rows, by), by, settings, logged, program, **_acting(given))
    if given["as_json"]:
        from workflows.output import json_line

        click.echo(json_line(report.record()))
    else:
        report.show()


def _opened(names: Sequence[str], storage: "Storage") -> list["Checkpoint"]:
    """The checkpoints that are meant, each once, in the order in which they were named."""
    from pipelines.checkpoint import Checkpoint
    from workflows.ope import folder_of_runs
    from workflows.runs import locate_all

    paths: dict[Path, Path] = {}
    for name in names:
        for located in locate_all(name, folder_of_runs(storage)):
            for reason in located.skipped:
                click.echo(f"warning: {reason}", err=True)
            paths.setdefault(located.path.resolve(), located.path)
    return [Checkpoint(path) for path in paths.values()]


def _require_possible(given: Mapping[str, Any], simulates: Sequence[bool]) -> None:
    by = given["by"]
    if by == "return" and not any(simulates):
        what = "--no-simulation" if given["no_simulation"] else "there is no environment"
        raise click.UsageError(f"--by return, but {what}: nothing is simulated; give --by dr")
    if by not in ("auto", "return", *given["estimators"]):
        names = ",".join((*given["estimators"], by))
        raise click.UsageError(f"--by {by} is none of the estimators; give --estimators {names}")


def _estimated(
    opened: Sequence["Checkpoint"], storage: "Storage", given: Mapping[str, Any]
) -> tuple["OpeSettings", list["Answer"]]:
    from workflows.ope import ask, conditions_of, load_rows, policy_of, settings_of

    conditions = conditions_of(given["where"])
    settings = settings_of(given, [checkpoint.config for checkpoint in opened])
    policies = [policy_of(checkpoint, greedy=not given["explore"]) for checkpoint in opened]
    data = load_rows(
        storage, version=given["version"], timestamp=given["timestamp"], conditions=conditions
    )
    answers: list[Answer] = []
    for number, policy in enumerate(policies, 1):
        _progress(f"estimating {number} of {len(policies)}: {policy.checkpoint.path}")
        answers.append(ask(policy, data, settings, conditions))
    return settings, answers


def _rows(
    opened: Sequence["Checkpoint"],
    simulates: Sequence[bool],
    answers: Sequence["Answer | None"],
    given: Mapping[str, Any],
) -> list["Row"]:
    from workflows.output import stdout_alone
    from workflows.select_rows import Row

    found: list[Row] = []
    with stdout_alone():
        for checkpoint, simulates_it, answer in zip(opened, simulates, answers, strict=True):
            simulated: Evaluation | None = None
            if simulates_it:
                _progress(f"simulating {len(found) + 1} of {len(opened)}: {checkpoint.path}")
                simulated = _task(checkpoint, given).run(checkpoint.weights())
            found.append(Row(checkpoint, simulated, answer))
    return found


def _task(checkpoint: "Checkpoint", given: Mapping[str, Any]) -> "EvaluationTask":
    # One seed for all: they meet the same first states, and differ less by luck.
    return task_of(checkpoint, **_acting(given))


def _acting(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: given[name] for name in ("episodes", "seed", "explore")}


def _progress(text: str) -> None:
    """Fits take minutes; whoever watches is told, a pipe or a log is not."""
    from workflows.output import safe_text

    if sys.stderr.isatty():
        click.echo(safe_text(text), err=True)


def _undecided(rows: Sequence["Row"], by: str) -> str:
    from workflows.select_table import remarks

    return "\n".join([f"Error: no checkpoint has what --by {by} compares", *remarks(rows)])


def _log(
    rows: Sequence["Row"],
    storage: "Storage",
    settings: "OpeSettings | None",
    given: Mapping[str, Any],
) -> "Logged | None":
    if given["no_log"]:
        return None
    from workflows.ope import log_answers
    from workflows.select_table import Logged

    answers = [row.answer for row in rows if row.answer is not None]
    # Before the evaluations: if this fails, whoever asks again has nothing in the lake twice.
    added = [] if settings is None else log_answers(storage, answers, settings)
    ids = {
        str(row.checkpoint.path): log_to_lake(
            row.checkpoint, row.simulated, _task(row.checkpoint, given)
        )
        for row in rows
        if row.simulated is not None
    }
    paths = [answer.subject.checkpoint for answer in answers]
    return Logged(ids, dict(zip(paths, added, strict=True)))
