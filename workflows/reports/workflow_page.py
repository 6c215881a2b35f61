"""The report of a scheduled workflow: its runs, their steps, gates and promotions."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from offline.registry import Entry
from offline.workflow_log import Event, RunState
from workflows.reports.blocks import (
    Block,
    Chart,
    Facts,
    Grid,
    Note,
    Report,
    Section,
    Series,
    Table,
    text,
)
from workflows.scheduled.history import seconds_of

_SHOWN: Final = 400
"""Runs in the grid at most: the newest."""


def workflow_report(
    name: str, states: Sequence[RunState], entries: Sequence[Entry], learning: Section
) -> Report:
    """The page of a workflow.

    Args:
        name: of the workflow.
        states: its runs by logical time, the oldest first.
        entries: changes of aliases that it made.
        learning: curves of its training runs.
    """
    newest = list(states)[-_SHOWN:]
    return Report(
        title=text(name),
        subtitle=f"scheduled workflow, {len(states):,} runs",
        sections=[
            Section("overview", "Overview", _overview(states)),
            Section("runs", "Runs", [_grid(newest)] if newest else []),
            Section("time", "Time", _durations(newest)),
            Section("figures", "Figures", _figures(newest)),
            Section("registry", "Promotions", _promotions(entries)),
            learning,
        ],
    )


def training_runs(states: Sequence[RunState]) -> list[str]:
    """Ids of the training runs, the newest first."""
    found = [
        event.run_id
        for state in reversed(states)
        for event in state.steps.values()
        if event.run_id and "checkpoint" in event.outputs
    ]
    return list(dict.fromkeys(found))


def _overview(states: Sequence[RunState]) -> list[Block]:
    counted = Counter(state.status for state in states)
    facts = [
        (status, f"{number:,}", "bad" if status == "failed" else "")
        for status, number in sorted(counted.items())
    ]
    if states:
        first, last = states[0].logical_time, states[-1].logical_time
        facts.append(("logical times", f"{first.isoformat()} to {last.isoformat()}", ""))
        message = states[-1].whole.message if states[-1].whole else None
        facts.append(("newest", f"{states[-1].status} {text(message)}".strip(), ""))
    return [Facts(facts)]


def _grid(states: Sequence[RunState]) -> Grid:
    names = _names(states)
    cells = [
        [_whole(state), *(_cell(state, state.steps.get(name)) for name in names)]
        for state in reversed(states)
    ]
    times = [state.logical_time.isoformat(timespec="minutes") for state in reversed(states)]
    note = "the newest first; a cell tells more"
    return Grid("Runs and steps", ["run", *map(text, names)], times, cells, note)


def _whole(state: RunState) -> dict[str, str]:
    message = text(state.whole.message if state.whole else None)
    began = state.began.isoformat(timespec="seconds") if state.began else ""
    return {
        "status": state.status,
        "text": state.status,
        "detail": f"{state.status}, began {began} {message}".strip(),
    }


def _cell(state: RunState, event: Event | None) -> dict[str, str] | None:
    if event is None:
        return None
    seconds = seconds_of(event, state)
    shown = event.status if seconds is None else f"{event.status} {seconds:.0f} s"
    again = f", attempt {event.attempt}" if event.attempt > 1 else ""
    outputs = text(json.dumps(dict(event.outputs), default=str), limit=1500)
    parts = [f"{event.status}{again}", text(event.message, limit=600), outputs]
    return {"status": event.status, "text": shown + again, "detail": "\n".join(filter(None, parts))}


def _durations(states: Sequence[RunState]) -> list[Block]:
    series = []
    for number, name in enumerate(_names(states)):
        points = [
            (state.logical_time.timestamp(), seconds)
            for state in states
            if (event := state.steps.get(name)) is not None
            and event.status in ("succeeded", "failed")
            and (seconds := seconds_of(event, state)) is not None
        ]
        if points:
            xs, ys = zip(*points, strict=True)
            series.append(Series(text(name), xs, ys, group=number))
    if not series:
        return []
    return [Chart("Seconds of each step", series, "logical time", "s", time=True)]


def _figures(states: Sequence[RunState]) -> list[Block]:
    """What steps gave, over logical times: every number of their outputs."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    gates: list[tuple[float, Any]] = []
    for state in states:
        at = state.logical_time.timestamp()
        for name, event in state.steps.items():
            if {"gain", "low", "high"} <= event.outputs.keys():
                gates.append((at, event.outputs))
                continue
            for key, value in event.outputs.items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    found.setdefault((name, key), []).append((at, float(value)))
    blocks: list[Block] = []
    known = [(at, outputs) for at, outputs in gates if outputs["gain"] is not None]
    if known:
        gain, low, high = ([o[key] for _, o in known] for key in ("gain", "low", "high"))
        line = Series("gain", [at for at, _ in known], gain, low=low, high=high, points=True)
        note = "candidate less champion, with its interval"
        blocks.append(Chart("Gates", [line], "logical time", "return", note, time=True))
    constant: list[str] = []
    for (step, key), points in found.items():
        xs, ys = zip(*points, strict=True)
        title = text(f"{step}: {key}")
        if len(set(ys)) == 1:
            constant.append(f"{title} {ys[0]:g}")
        else:
            blocks.append(Chart(title, [Series(title, xs, ys)], "logical time", time=True))
    return [*blocks, Note(f"The same each time: {', '.join(constant)}.")] if constant else blocks


def _promotions(entries: Sequence[Entry]) -> list[Block]:
    if not entries:
        return []
    columns = ("at", "model", "alias", "action", "checkpoint", "run", "logical time", "reason")
    table = [
        [
            text(entry.at),
            text(entry.model),
            text(entry.alias),
            text(entry.action),
            text(entry.checkpoint),
            text(entry.run_id),
            text(entry.logical_time),
            text(entry.reason),
        ]
        for entry in reversed(entries)
    ]
    return [Table("promotions", columns, table)]


def _names(states: Sequence[RunState]) -> list[str]:
    return list(dict.fromkeys(name for state in states for name in state.steps))
