"""What a history says of runs and steps, for people and as JSON."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from offline.workflow_log import Event, RunState


def record_of(workflow: str, state: RunState) -> dict[str, Any]:
    """A run as JSON-able values."""
    return {
        "workflow": workflow,
        "logical_time": state.logical_time.isoformat(),
        "status": state.status,
        "message": state.whole.message if state.whole else None,
        "began": state.began and state.began.isoformat(),
        "last": state.last_at and state.last_at.isoformat(),
        "steps": {name: _step(event, state) for name, event in state.steps.items()},
    }


def _step(event: Event, state: RunState) -> dict[str, Any]:
    return {
        "status": event.status,
        "attempt": event.attempt,
        "seconds": seconds_of(event, state),
        "run_id": event.run_id,
        "outputs": dict(event.outputs),
        "message": event.message,
    }


def seconds_of(event: Event, state: RunState) -> float | None:
    """From the first attempt's begin to the newest event."""
    began = state.step_began.get(event.step)
    return None if began is None or event.at is None else (event.at - began).total_seconds()


def table_of(workflow: str, states: Sequence[RunState]) -> Any:
    """A rich table: a line for each run, its steps in a column each."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    names = list(dict.fromkeys(name for state in states for name in state.steps))
    table = Table(box=box.SIMPLE_HEAD, title=workflow, title_justify="left")
    for column in ("logical time", "status", *names):
        table.add_column(column)
    for state in states:
        cells = [
            Text(_cell(state.steps.get(name), state), style=_style(state, name)) for name in names
        ]
        table.add_row(
            state.logical_time.isoformat(timespec="minutes"),
            Text(state.status, style=_COLOURS.get(state.status, "")),
            *cells,
        )
    return table


_COLOURS: Mapping[str, str] = {
    "succeeded": "green",
    "failed": "red",
    "stopped": "yellow",
    "started": "cyan",
    "skipped": "dim",
}


def _style(state: RunState, name: str) -> str:
    event = state.steps.get(name)
    return "" if event is None else _COLOURS.get(event.status, "")


def _cell(event: Event | None, state: RunState) -> str:
    if event is None:
        return ""
    seconds = seconds_of(event, state)
    took = f" {seconds:.0f} s" if seconds and event.status != "skipped" else ""
    again = f" (attempt {event.attempt})" if event.attempt > 1 else ""
    return f"{event.status}{took}{again}"


def when(text: str, zone: Any) -> datetime:
    """A logical time as a user writes it, local where it does not say otherwise.

    Raises:
        ValueError: it is none.
    """
    from workflows.scheduled.spec import in_utc

    try:
        return in_utc(datetime.fromisoformat(text), zone)
    except ValueError:
        raise ValueError(
            f"{text!r} is no time; write one as 2026-01-31T06:00, or 2026-01-31T05:00Z"
        ) from None
