"""What happened to scheduled runs and their steps: the history that makes each happen once."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Final

import pyarrow as pa

from offline import schemas as s
from offline.errors import LakeError
from offline.lake import Lake
from offline.storage import Storage
from offline.transact import has_table, later_than, transact

WHOLE: Final = ""
"""Stands in column `step` for the run as a whole."""
STARTED: Final = "started"
SUCCEEDED: Final = "succeeded"
FAILED: Final = "failed"
SKIPPED: Final = "skipped"
STOPPED: Final = "stopped"


class ClaimError(LakeError):
    """A scheduled run that another process has, or has taken over."""


@dataclass(frozen=True)
class Event:
    """One row of `workflow_runs`."""

    workflow: str
    logical_time: datetime
    step: str
    attempt: int
    status: str
    owner: str
    outputs: Mapping[str, Any] = field(default_factory=dict)
    run_id: str | None = None
    spec_sha256: str | None = None
    command: str | None = None
    host: str | None = None
    pid: int | None = None
    message: str | None = None
    at: datetime | None = None


@dataclass(frozen=True)
class RunState:
    """A scheduled run as its events have it.

    Attributes:
        logical_time: which.
        whole: newest event of the run itself; None where only steps are known.
        steps: step → its newest event, in the order in which they began.
        began: when the first of all events was.
        step_began: step → when its first event was.
        attempts: step → the highest number of an attempt.
        failures: step → how many attempts failed since the run was last begun anew.
    """

    logical_time: datetime
    whole: Event | None
    steps: Mapping[str, Event]
    began: datetime | None
    step_began: Mapping[str, datetime]
    attempts: Mapping[str, int]
    failures: Mapping[str, int]

    @property
    def status(self) -> str:
        """Of the run: started, succeeded, failed or stopped."""
        return STARTED if self.whole is None else self.whole.status

    @property
    def is_over(self) -> bool:
        """Whether nothing is to be done for it without being asked."""
        return self.status in (SUCCEEDED, FAILED)

    @property
    def last_at(self) -> datetime | None:
        """When the newest event was."""
        events = [*self.steps.values(), *([self.whole] if self.whole else [])]
        return max((e.at for e in events if e.at is not None), default=None)


class WorkflowLog:
    """The events of one workflow in a lake.

    Args:
        storage: of the lake.
        workflow: its name.
    """

    def __init__(self, storage: Storage, workflow: str) -> None:
        self._storage, self.workflow = storage, workflow

    def runs(self, logical_time: datetime | None = None) -> dict[datetime, RunState]:
        """Logical time → state, ascending; of all runs or of one."""
        lake = Lake(self._storage)
        if not has_table(lake, s.WORKFLOW_RUNS.name):
            return {}
        return states(_read(lake, self.workflow, logical_time))

    def claim(
        self, first: Event, *, lease_s: float, is_dead: Callable[[Event], bool], again: bool = False
    ) -> RunState:
        """Take a run, so that no other process does its steps.

        Args:
            first: the event to be added, with the owner's name.
            lease_s: an owner that noted nothing for so long is taken for dead.
            is_dead: whether an owner is known to be.
            again: also a run that failed or succeeded; its failed steps are then tried anew.

        Returns:
            The run as it was before.

        Raises:
            ClaimError: it is over, or a living process has it.
        """
        found: list[RunState] = []

        def decide(lake: Lake) -> dict[str, pa.Table]:
            known = states(_read(lake, self.workflow, first.logical_time))
            state = known.get(first.logical_time) or _nothing(first.logical_time)
            whole = state.whole
            if state.is_over and not (again and state.status == FAILED):
                raise ClaimError(f"{_named(first)} has {state.status} already")
            if whole is not None and whole.status == STARTED and whole.owner != first.owner:
                _refuse_living(whole, state, lease_s=lease_s, is_dead=is_dead)
            found[:] = [state]
            attempt = 1 if whole is None else whole.attempt + 1
            return self._rows([replace(first, attempt=attempt)], state)

        transact(self._storage, _writer(self.workflow), decide)
        return found[0]

    def add(self, event: Event) -> None:
        """Add an event of the run's owner; one that is there already is not added again.

        Raises:
            ClaimError: another process has taken the run over.
        """

        def decide(lake: Lake) -> dict[str, pa.Table]:
            state = states(_read(lake, self.workflow, event.logical_time))[event.logical_time]
            if state.whole is None or state.whole.owner != event.owner:
                now = None if state.whole is None else state.whole.owner
                raise ClaimError(f"{_named(event)} was taken over by {now}")
            newest = state.whole if event.step == WHOLE else state.steps.get(event.step)
            if newest is not None and _key(newest) == _key(event):
                return {}
            return self._rows([event], state)

        transact(self._storage, _writer(self.workflow), decide)

    def _rows(self, events: Sequence[Event], state: RunState) -> dict[str, pa.Table]:
        at = later_than(state.last_at)
        rows = [{**e.__dict__, "outputs": json.dumps(dict(e.outputs)), s.AT: at} for e in events]
        return {s.WORKFLOW_RUNS.name: pa.Table.from_pylist(rows, schema=s.WORKFLOW_RUNS.schema)}


def workflows_in(storage: Storage) -> list[str]:
    """Names of the workflows that a lake has events of."""
    lake = Lake(storage)
    if not has_table(lake, s.WORKFLOW_RUNS.name):
        return []
    rows = lake.workflow_runs(columns=["workflow"]).to_arrow()
    return sorted(set(rows.column("workflow").to_pylist()))


def states(events: Iterable[Event]) -> dict[datetime, RunState]:
    """Logical time → state, ascending, from events in their order."""
    grouped: dict[datetime, list[Event]] = {}
    for event in events:
        grouped.setdefault(event.logical_time, []).append(event)
    return {at: _state(at, grouped[at]) for at in sorted(grouped)}


def _state(logical_time: datetime, events: list[Event]) -> RunState:
    whole: Event | None = None
    steps: dict[str, Event] = {}
    began: dict[str, datetime] = {}
    attempts: dict[str, int] = {}
    failures: dict[str, int] = {}
    for event in events:
        if event.step == WHOLE:
            if whole is not None and whole.status == FAILED and event.status == STARTED:
                failures.clear()
            whole = event
            continue
        steps[event.step] = event
        attempts[event.step] = max(event.attempt, attempts.get(event.step, 0))
        failures[event.step] = failures.get(event.step, 0) + (event.status == FAILED)
        if event.at is not None:
            began.setdefault(event.step, event.at)
    return RunState(logical_time, whole, steps, events[0].at, began, attempts, failures)


def _nothing(logical_time: datetime) -> RunState:
    return RunState(logical_time, None, {}, None, {}, {}, {})


def _refuse_living(
    whole: Event, state: RunState, *, lease_s: float, is_dead: Callable[[Event], bool]
) -> None:
    last = state.last_at
    assert last is not None  # of the event that is `whole`
    if is_dead(whole) or later_than(None) - last > timedelta(seconds=lease_s):
        return
    until = last + timedelta(seconds=lease_s)
    raise ClaimError(
        f"{_named(whole)} is being run by process {whole.pid} on {whole.host}; unless it notes "
        f"something it is taken for dead at {until.isoformat(timespec='seconds')}"
    )


def _named(event: Event) -> str:
    return f"{event.workflow} of {event.logical_time.isoformat()}"


def _key(event: Event) -> tuple[Any, ...]:
    return (event.step, event.attempt, event.status, event.owner)


def _writer(workflow: str) -> str:
    return f"workflow/{workflow}"


def _read(lake: Lake, workflow: str, logical_time: datetime | None) -> list[Event]:
    where: list[tuple[str, str, Any]] = [("workflow", "=", workflow)]
    if logical_time is not None:
        where.append(("logical_time", "=", logical_time))
    rows = lake.workflow_runs(where=where).to_arrow().sort_by([(s.AT, "ascending")]).to_pylist()
    return [Event(**{**row, "outputs": json.loads(row["outputs"] or "{}")}) for row in rows]
