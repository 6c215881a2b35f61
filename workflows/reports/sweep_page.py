"""The report of a sweep: its trials, what their settings did, and the runs they were."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from workflows.reports.blocks import (
    Block,
    Chart,
    Details,
    Facts,
    Note,
    Parallel,
    Report,
    Section,
    Series,
    Table,
    Traces,
    Videos,
    rounded,
    text,
)
from workflows.reports.run_page import axis_of, closing_sections, returns_chart
from workflows.reports.run_tables import RunData
from workflows.sweeps.trials import Record

_LINES: Final = 40
"""Trials of which the curve is drawn: the best."""
_SPREAD: Final = 30.0
"""A setting whose greatest value is so many times its least is drawn on a logarithmic axis."""


def run_ids_of(sweep: Record) -> list[str]:
    """Of the trials that began, the best first."""
    return [trial["run_id"] for trial in sweep.ordered() if trial.get("run_id")]


def sweep_report(
    sweep: Record,
    runs: Sequence[RunData],
    *,
    faults: Section,
    videos: Videos | None = None,
    traces: Traces | None = None,
) -> Report:
    """The page of a sweep.

    Args:
        sweep: what it was.
        runs: of its trials, as far as the lake knows them.
        faults: what went wrong in them.
        videos: films of the best trials.
        traces: episodes of the best trials.
    """
    about = sweep.about
    return Report(
        title=text(about["sweep_id"]),
        subtitle=text(
            f"sweep of {about['algo']} on {about['env']}, {about['metric']} {about['mode']}"
        ),
        sections=[
            Section("overview", "Overview", _overview(sweep)),
            Section("settings-and-results", "Settings and results", _settings(sweep)),
            Section("learning", "Learning", _learning(sweep, runs)),
            faults,
            *closing_sections(videos, traces),
            Section("file", "File", [Details("the sweep's file", str(about.get("file", "")))]),
        ],
    )


def _overview(sweep: Record) -> list[Block]:
    about, trials = sweep.about, sweep.ordered()
    counted = Counter(trial["status"] for trial in trials)
    states = ", ".join(f"{number} {text(status)}" for status, number in sorted(counted.items()))
    best = trials[0] if trials and sweep.figure(trials[0]) is not None else None
    tone = {"finished": "good", "failed": "bad"}.get(str(about.get("status")), "warn")
    facts = [
        ("status", text(about.get("status")), tone),
        ("created", text(about.get("created_at")), ""),
        ("trials", f"{len(trials)}: {states}", ""),
    ]
    blocks: list[Block] = [Facts(facts)]
    if best is not None:
        config = ", ".join(f"{name}={_cell(value)}" for name, value in best["config"].items())
        steps = best["metrics"].get("env_steps", 0)
        rows = [
            ("best", text(best["run_id"]), "good"),
            (text(about["metric"]), f"{sweep.figure(best):.6g}", ""),
            ("settings", text(config), ""),
            ("env steps", f"{steps:,}", ""),
            ("checkpoint", text(best.get("checkpoint")), ""),
        ]
        blocks.append(Facts(rows, title="best trial"))
    names = about["parameters"]
    columns = ("trial", "status", *names, about["metric"], "env steps", "time s", "error")
    table = [
        [
            text(trial["run_id"] or trial["trial_id"]),
            {
                "text": text(trial["status"]),
                "tone": "bad" if trial["status"] == "error" else "",
            },
            *(_cell(trial["config"].get(name)) for name in names),
            rounded(sweep.figure(trial)),
            trial["metrics"].get("env_steps"),
            rounded(trial["metrics"].get("time_s")),
            text(trial.get("error"), limit=160),
        ]
        for trial in trials
    ]
    return [*blocks, Table("trials", [text(name) for name in columns], table)]


def _settings(sweep: Record) -> list[Block]:
    known = [trial for trial in sweep.ordered() if sweep.figure(trial) is not None]
    if not known:
        return [Note("No trial has a figure yet.")]
    metric = text(sweep.about["metric"])
    figures = [sweep.figure(trial) for trial in known]
    columns = {
        name: [_cell(trial["config"].get(name)) for trial in known]
        for name in sweep.about["parameters"]
    }
    log = [name for name, values in columns.items() if _spreads(values)]
    axes = [*((text(name), values) for name, values in columns.items()), (metric, figures)]
    labels = [text(trial["run_id"] or trial["trial_id"]) for trial in known]
    parallel = Parallel("Trials", axes, labels, [text(name) for name in log], metric)
    charts = [
        _scatter(text(name), values, figures, metric, is_log=name in log)
        for name, values in columns.items()
        if name != "seed" and all(isinstance(value, int | float) for value in values)
    ]
    return [parallel, *charts]


def _scatter(
    name: str, values: Sequence[Any], figures: Sequence[Any], metric: str, *, is_log: bool
) -> Chart:
    # A line has one point at each x, so what shares one goes to a line of its own.
    layers: list[dict[float, float]] = []
    for x, y in sorted(zip(values, figures, strict=True)):
        layer = next((layer for layer in layers if x not in layer), None)
        if layer is None:
            layers.append(layer := {})
        layer[x] = y
    series = [
        Series(metric, list(layer), list(layer.values()), points=True, group=0, faint=number > 0)
        for number, layer in enumerate(layers)
    ]
    return Chart(f"{metric} by {name}", series, name, metric, log_x=is_log)


def _learning(sweep: Record, runs: Sequence[RunData]) -> list[Block]:
    by_id = {run.run_id: run for run in runs}
    ordered = [by_id[name] for name in run_ids_of(sweep) if name in by_id][:_LINES]
    if not ordered:
        return []
    x, metric = axis_of(ordered), sweep.about["metric"]
    charts = [returns_chart(ordered, metric, text(f"{metric} of the {len(ordered)} best"), x)]
    if metric != "episode_return_mean":
        title = "Return of training episodes"
        charts.append(returns_chart(ordered, "episode_return_mean", title, x))
    return [chart for chart in charts if chart is not None]


def _spreads(values: Sequence[Any]) -> bool:
    if not all(isinstance(value, int | float) and value > 0 for value in values):
        return False
    return bool(max(values) / min(values) >= _SPREAD)


def _cell(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float | str | None):
        return text(json.dumps(value, default=str), limit=60)
    if isinstance(value, float):
        return rounded(value, digits=5)
    return text(value) if isinstance(value, str) else value
