"""What `millrace select` prints: a table or JSON, and what uses the best checkpoint."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from offline.ope.settings import OpeSettings
from pipelines.config_errors import printable
from workflows.ope import record_of
from workflows.output import is_terminal, safe_text
from workflows.runs import shell
from workflows.select_rows import RETURN, Row, agreement


@dataclass(frozen=True)
class Logged:
    """Of each checkpoint, by its folder: the evaluation's id, and whether estimates were added."""

    evaluation_id: dict[str, str | None]
    is_new: dict[str, bool]

    def text(self) -> str:
        """What the lake got."""
        evaluations = sum(name is not None for name in self.evaluation_id.values())
        new, asked = sum(self.is_new.values()), len(self.is_new)
        told = [f"{evaluations} evaluations"] * bool(self.evaluation_id)
        told += [f"estimates of {new} checkpoints, {asked - new} were there already"] * bool(asked)
        return "; ".join(told)


@dataclass(frozen=True)
class Report:
    """What is printed.

    Attributes:
        rows: the best first.
        by: what they are ranked by.
        settings: of the estimates; None where there are none.
        logged: what the lake got; None where it was to get nothing.
        program: how this command was started, in words.
        episodes, seed, explore: of the simulation.
    """

    rows: Sequence[Row]
    by: str
    settings: OpeSettings | None
    logged: Logged | None
    program: tuple[str, ...]
    episodes: int
    seed: int
    explore: bool

    @property
    def estimators(self) -> tuple[str, ...]:
        return () if self.settings is None else self.settings.estimators

    def commands(self) -> dict[str, str]:
        """What uses the best checkpoint."""
        path = self.rows[0].checkpoint.path
        python = f"from pipelines import load_policy; policy = load_policy({str(path)!r})"
        if not self.rows[0].has_env:
            return {"python": python}
        words: list[str] = ["--episodes", str(self.episodes)]
        words += ["--seed", str(self.seed), *["--explore"] * self.explore]
        return {"shell": shell([*self.program, "evaluate", path, *words]), "python": python}

    def record(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {
            "best": str(self.rows[0].checkpoint.path),
            "by": self.by,
            "use": self.commands(),
            "rank_correlation": {
                name: {"spearman": value, "checkpoints": count}
                for name, (value, count) in agreement(self.rows, self.estimators).items()
            },
            "checkpoints": [self._row_record(row) for row in self.rows],
        }

    def _row_record(self, row: Row) -> dict[str, Any]:
        path, checkpoint = str(row.checkpoint.path), row.checkpoint
        simulated = estimated = None
        if row.simulated is not None:
            figures = row.simulated.figures()
            evaluation_id = None if self.logged is None else self.logged.evaluation_id[path]
            simulated = {
                "env": checkpoint.config["env"]["id"],
                **figures,
                "returns": row.simulated.returns,
                "lengths": row.simulated.lengths,
                "logged": evaluation_id,
            }
        if row.answer is not None and self.settings is not None:
            is_new = self.logged is not None and self.logged.is_new[path]
            estimated = record_of(row.answer, self.settings, logged=is_new)
        return {
            "checkpoint": path,
            "run_id": checkpoint.state["run_id"],
            "iteration": row.iteration,
            "score": row.score(self.by),
            "simulated": simulated,
            "ope": estimated,
        }

    def show(self) -> None:
        """Print the table, what to know about it, and what to do with the best."""
        table = table_of(self.rows, self.rows[0], self.settings)
        wide = 80 + 45 * len(self.estimators)
        Console(file=sys.stdout, width=None if is_terminal() else wide).print(table)
        for line in (*self._about(), *remarks(self.rows)):
            click.echo(safe_text(line))
        for name, (value, count) in agreement(self.rows, self.estimators).items():
            shown = "not defined, all of one side are equal" if value is None else f"{value:+.2f}"
            click.echo(f"agreement  {name} with simulation: Spearman {shown} ({count} checkpoints)")
        if self.logged is not None:
            click.echo(f"logged     {self.logged.text()}")
        best = self.rows[0]
        chosen = f"{best.label}, by {criterion_text(self.by, self.settings)}"
        click.echo(safe_text(f"best       {chosen}: {best.score(self.by):.4g}"))
        for command in self.commands().values():
            click.echo(f"use        {safe_text(command)}")

    def _about(self) -> list[str]:
        """What the figures are of."""
        way = "explore" if self.explore else "greedy"
        lines: list[str] = []
        if any(row.simulated is not None for row in self.rows):
            episodes = self.episodes
            lines.append(f"simulated  {episodes} episodes each, {way}, mean ± std, undiscounted")
        answer = next((row.answer for row in self.rows if row.answer is not None), None)
        if answer is not None and self.settings is not None:
            about, found = answer.subject, answer.found
            lines.append(
                f"estimated  {way}, gamma {self.settings.gamma:g}, "
                f"{self.settings.level * 100:.4g} % intervals, version {about.table_version} of "
                f"steps at {about.lake}: {found.episodes:,} episodes, {found.rows:,} rows"
            )
        return lines


def criterion_text(by: str, settings: OpeSettings | None) -> str:
    """The criterion in words."""
    if by == RETURN or settings is None:
        return "simulated return"
    return f"lower end of {by}'s {settings.level * 100:.4g} % interval"


def table_of(rows: Sequence[Row], best: Row, settings: OpeSettings | None) -> Table:
    """A row per checkpoint, in the order given, for rich to print."""
    estimators = () if settings is None else settings.estimators
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("", "checkpoint"):
        table.add_column(name)
    for name in ("iteration", "simulated return"):
        table.add_column(name, justify="right")
    for name in estimators:
        table.add_column(name, justify="right", no_wrap=True)
    if settings is not None:
        table.add_column("behaviour", justify="right")
    for row in rows:
        cells = [
            "*" if row is best else "",
            printable(row.label),
            f"{row.iteration:,}",
            _simulated(row),
            *(_estimated(row, name) for name in estimators),
        ]
        if row.answer is not None:
            cells.append(f"{row.answer.found.behavior.value:.4g}")
        table.add_row(*map(Text, cells), style="bold" if row is best else "")
    return table


def _simulated(row: Row) -> str:
    if row.simulated is None:
        return "–"
    figures = row.simulated.figures()
    return f"{figures['episode_return_mean']:.4g} ± {figures['episode_return_std']:.4g}"


def _estimated(row: Row, name: str) -> str:
    """An estimate, its interval, its ESS; with ! where there is a warning of it."""
    found = row.estimate(name)
    mark = " !" if row.warnings(name) else ""
    if found is None:
        return f"–{mark}"
    ess = "" if found.ess is None else f" ESS {found.ess:,.0f}"
    return f"{found.value:.4g} [{found.low:.4g}, {found.high:.4g}]{ess}{mark}"


def remarks(rows: Sequence[Row]) -> list[str]:
    """Refusals and warnings in lines, each once, with the checkpoints that it is of."""
    told: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.answer is None:
            continue
        for name, why in row.answer.found.refused.items():
            told.setdefault(("refused", f"{name}: {why}"), []).append(row.label)
        for warning in row.answer.found.warnings:
            told.setdefault(("warning", warning), []).append(row.label)
    every = sum(row.answer is not None for row in rows)
    return [
        f"{kind:<10} {'all' if len(labels) == every > 1 else ', '.join(labels)}: {text}"
        for (kind, text), labels in told.items()
    ]
