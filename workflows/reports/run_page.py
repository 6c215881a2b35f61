"""The report of one run, or of several beside each other."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from workflows.reports.blocks import (
    Block,
    Chart,
    Details,
    Facts,
    Note,
    Report,
    Section,
    Series,
    Table,
    Traces,
    Videos,
    rounded,
    text,
)
from workflows.reports.curves import LEVEL, Curve, band, numbers, thinned
from workflows.reports.run_tables import RunData, grouped

POINTS: Final = 400
"""Of a line at most."""
_RETURN: Final = "episode_return_mean"
_EVALUATION: Final = "evaluation/episode_return_mean"
_MANY: Final = 6
"""Runs up to which each has a line of its own in every chart."""


def run_report(
    runs: Sequence[RunData],
    *,
    lake_sections: Sequence[Section],
    videos: Videos | None = None,
    traces: Traces | None = None,
) -> Report:
    """The page of runs.

    Args:
        runs: at least one.
        lake_sections: what more a lake knows of them (`workflows.reports.lake_sections`).
        videos: films of evaluations.
        traces: episodes with their steps.
    """
    one = runs[0]
    title = one.run_id if len(runs) == 1 else f"{len(runs)} runs"
    algo, env = text(one.about.get("algo")), text(one.about.get("env"))
    same = len({(run.about.get("algo"), run.about.get("env")) for run in runs}) == 1
    return Report(
        title=text(title),
        subtitle=f"{algo} on {env}" if same else "several algorithms or environments",
        sections=[
            Section("overview", "Overview", overview(runs)),
            Section("learning", "Learning", learning(runs)),
            Section("losses", "Losses", _small_charts(runs, "learner/", x=axis_of(runs))),
            Section("time", "Throughput and time", _time(runs)),
            *lake_sections,
            *closing_sections(videos, traces),
            Section("settings", "Settings", _settings(runs)),
        ],
    )


def closing_sections(videos: Videos | None, traces: Traces | None) -> list[Section]:
    """Films and the trace browser, as far as there are any."""
    return [
        Section("videos", "Videos", [videos] if videos is not None else []),
        Section("traces", "Traces", [traces] if traces is not None else []),
    ]


def axis_of(runs: Sequence[RunData]) -> str:
    """What the runs learned from: env steps, or gradient steps where they took none."""
    acts = any(points[1][-1] > 0 for run in runs for points in run.metrics.values())
    return "env_steps" if acts else "grad_steps"


def overview(runs: Sequence[RunData]) -> list[Block]:
    """A run in facts, or runs in a table."""
    if len(runs) == 1:
        return [Facts(_facts(runs[0]))]
    columns = ("run", "status", "algo", "env", "seed", "env steps", "grad steps", "return", "best")
    rows = [
        [
            text(run.run_id),
            {"text": text(run.about.get("status")), "tone": _tone(run.about.get("status"))},
            *(text(run.about.get(key)) for key in ("algo", "env")),
            run.about.get("seed"),
            *(_whole(run.last(key)) for key in ("env_steps", "grad_steps")),
            rounded(run.last(_RETURN)),
            rounded(_best(run)),
        ]
        for run in runs
    ]
    return [Table("runs", columns, rows, note="best: of the evaluations, else of the results")]


def _facts(run: RunData) -> list[tuple[str, str, str]]:
    about = run.about
    status = text(about.get("status"))
    rows = [
        ("status", f"{status} {text(about.get('message'))}".strip(), _tone(about.get("status"))),
        ("algorithm", text(about.get("algo")), ""),
        ("environment", text(about.get("env")), ""),
        ("seed", text(about.get("seed")), ""),
        ("started", text(about.get("started_at")), ""),
        ("ended", text(about.get("ended_at")), ""),
        ("sessions", text(about.get("sessions")), ""),
        ("env steps", _count(run.last("env_steps")), ""),
        ("gradient steps", _count(run.last("grad_steps")), ""),
        ("episodes", _count(run.last("episodes")), ""),
        ("return", _figure(run.last(_RETURN)), ""),
        ("best evaluation", _figure(_best(run)) if _EVALUATION in run.metrics else "", ""),
        ("wall time", _seconds(run.last("time_s")), ""),
        ("code", _code(about.get("code")), ""),
        ("host", text(about.get("host")), ""),
    ]
    return [row for row in rows if row[1]]


def learning(runs: Sequence[RunData]) -> list[Block]:
    """Returns over steps: of seeds as an interquartile mean, of evaluations as marks."""
    x = axis_of(runs)
    blocks: list[Block] = []
    if chart := returns_chart(runs, _RETURN, "Return of training episodes", x):
        blocks.append(chart)
    if chart := evaluations_chart(runs, x):
        blocks.append(chart)
    for key, title in (("episode_length_mean", "Length of episodes"), ("episodes", "Episodes")):
        if lines := _told(_lines(runs, key, x)):
            blocks.append(Chart(title, lines, x_label=_label(x), y_label=_units(key)))
    return blocks


def returns_chart(runs: Sequence[RunData], key: str, title: str, x: str) -> Chart | None:
    """A figure of runs; those that differ by seed alone as one curve with its interval."""
    groups = grouped(runs)
    seeds = max((len(members) for members in groups.values()), default=0)
    if seeds < 2:
        lines = _lines(runs, key, x)
        note = "" if len(runs) > 1 else "mean of the last episodes at each iteration"
        return Chart(title, lines, _label(x), _units(key), note) if lines else None
    series: list[Series] = []
    bands: list[Series] = []
    for number, (group, members) in enumerate(groups.items()):
        curves = {run.run_id: c for run in members if (c := run.curve(key, x)) is not None}
        series += [_series(name, c, number, faint=True) for name, c in curves.items()]
        found = band(list(curves.values()))
        if found is not None:
            bands.append(
                Series(
                    text(f"{group} ({len(curves)} seeds)"),
                    numbers(found.x),  # type: ignore[arg-type]
                    numbers(found.y),
                    low=numbers(found.low),
                    high=numbers(found.high),
                    group=number,
                )
            )
    lines = [line for line in series if len(line.x)] + bands
    note = (
        f"interquartile mean over seeds, {LEVEL:.0%} bootstrap intervals (Agarwal et al. 2021); "
        "thin: the runs"
    )
    return Chart(title, lines, _label(x), _units(key), note) if lines else None


def evaluations_chart(runs: Sequence[RunData], x: str) -> Chart | None:
    """Mean returns of evaluations, with their lowest and highest episode."""
    lines = []
    for number, run in enumerate(runs):
        mean = run.curve(_EVALUATION, x)
        if mean is None:
            continue
        low, high = (run.curve(f"evaluation/episode_return_{end}", x) for end in ("min", "max"))
        lines.append(
            Series(
                text(run.run_id),
                numbers(mean.x),  # type: ignore[arg-type]
                numbers(mean.y),
                low=None if low is None else numbers(low.y),
                high=None if high is None else numbers(high.y),
                points=True,
                group=number,
            )
        )
    note = "mean, lowest and highest episode of each evaluation"
    title = "Return of evaluations"
    return Chart(title, lines, _label(x), "return", note) if lines else None


def _small_charts(runs: Sequence[RunData], prefix: str, *, x: str) -> list[Block]:
    keys = sorted({key for run in runs for key in run.metrics if key.startswith(prefix)})
    charts: list[Block] = []
    constant: list[str] = []
    for key in keys:
        name, lines = text(key.removeprefix(prefix)), _lines(runs, key, x)
        values = {value for line in lines for value in line.y if value is not None}
        if len(values) == 1:
            constant.append(f"{name} {values.pop():g}")
        elif values:
            charts.append(Chart(name, lines, x_label=_label(x)))
    return [*charts, Note(f"The same throughout: {', '.join(constant)}.")] if constant else charts


def _time(runs: Sequence[RunData]) -> list[Block]:
    blocks: list[Block] = []
    for key, title in (
        ("env_steps_per_s", "Env steps per second"),
        ("grad_steps_per_s", "Gradient steps per second"),
        ("queue_fragments", "Fragments that wait for the learner"),
    ):
        if lines := _told(_lines(runs, key, "training_iteration")):
            blocks.append(Chart(title, lines, x_label="training iteration", y_label=_units(key)))
    for run in runs[:_MANY]:
        stages = [key for key in sorted(run.metrics) if key.startswith("time/")]
        stages = [key for key in stages if key not in ("time/iteration_s", "time/rollout_s")]
        lines = [_series(_stage(key), run.curve(key, "training_iteration")) for key in stages]
        if lines:
            title = "Seconds of each iteration" + (f", {text(run.run_id)}" if len(runs) > 1 else "")
            blocks.append(
                Chart(title, lines, "training iteration", "s", "the learner's stages", stacked=True)
            )
    if lines := _told(_lines(runs, "time/rollout_s", "training_iteration")):
        title = "Seconds in which a fragment was sampled"
        blocks.append(Chart(title, lines, "training iteration", "s"))
    return blocks


def _told(lines: list[Series]) -> list[Series]:
    """Lines, unless all of them are 0 throughout: a run on logged rows takes no env steps."""
    return lines if any(any(line.y) for line in lines) else []


def _lines(runs: Sequence[RunData], key: str, x: str) -> list[Series]:
    found = [
        _series(run.run_id, run.curve(key, x), number, faint=len(runs) > 4 * _MANY)
        for number, run in enumerate(runs)
    ]
    return [line for line in found if len(line.x)]


def _series(
    name: str, curve: Curve | None, group: int | None = None, *, faint: bool = False
) -> Series:
    known = None if curve is None else curve.known()
    if known is None or len(known.x) == 0:
        return Series(text(name), [], [])
    thin = thinned(known, points=POINTS)
    has_range = len(known.x) > POINTS and not faint
    return Series(
        text(name),
        numbers(thin.x, digits=9),  # type: ignore[arg-type]
        numbers(thin.y),
        low=numbers(thin.low) if has_range else None,
        high=numbers(thin.high) if has_range else None,
        group=group,
        faint=faint,
    )


def _settings(runs: Sequence[RunData]) -> list[Block]:
    shown = [
        Details(
            f"configuration of {text(run.run_id)}",
            json.dumps(run.config, indent=1, sort_keys=True, default=str)[:200_000],
        )
        for run in runs[:_MANY]
    ]
    left = len(runs) - len(shown)
    if left > 0:
        query = "SELECT run_id, config FROM runs"
        return [*shown, Note(f"{left} more are in the lake:", f'millrace sql "{query}"')]
    return list(shown)


def _best(run: RunData) -> float | None:
    for key in (_EVALUATION, _RETURN):
        if key in run.metrics:
            values = run.metrics[key][2]
            finite = values[np.isfinite(values)]
            if len(finite):
                return float(finite.max())
    return None


def _code(told: Any) -> str:
    """Version and commit out of what the lake has of the code."""
    try:
        known = json.loads(told or "{}")
    except ValueError:
        return text(told)
    if not isinstance(known, dict):
        return text(told)
    parts = [f"{name} {value}" for name, value in known.items() if isinstance(value, str | int)]
    return text(", ".join(part for part in parts if not part.startswith(("command", "argv"))))


def _tone(status: Any) -> str:
    tones: Mapping[Any, str] = {"failed": "bad", "finished": "good", "stopped": "warn"}
    return tones.get(status, "")


def _label(x: str) -> str:
    return {"env_steps": "env steps", "grad_steps": "gradient steps"}.get(x, "training iteration")


def _units(key: str) -> str:
    units = {_RETURN: "return", "episode_length_mean": "env steps", "env_steps_per_s": "1/s"}
    return units.get(key, "1/s" if key.endswith("_per_s") else "")


def _stage(key: str) -> str:
    return text(key.removeprefix("time/").removesuffix("_s"))


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _count(value: float | None) -> str:
    return "" if value is None else f"{int(value):,}"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:,.6g}"


def _seconds(value: float | None) -> str:
    if value is None:
        return ""
    minutes, seconds = divmod(value, 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds:.0f} s"
