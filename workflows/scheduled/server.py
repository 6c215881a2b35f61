"""Which runs are due, and the server that begins them: APScheduler is only what wakes it."""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.cron import CronTrigger

from offline.errors import LakeError
from offline.workflow_log import ClaimError, RunState, WorkflowLog
from workflows.scheduled.engine import Execution, Say
from workflows.scheduled.places import Places
from workflows.scheduled.spec import Schedule

LOOK_S: Final = 60.0
"""Between two looks, whatever the clock was set to meanwhile."""
_STOP_POLL_S: Final = 0.2

Now = Callable[[], datetime]


def due(schedule: Schedule, known: Mapping[datetime, RunState], now: datetime) -> list[datetime]:
    """Logical times whose runs are to be begun or to go on, the oldest first.

    A run that was begun and is not over goes on in any case; one that is over is never done
    again, whatever the clock says. Of those that were not begun `catchup` says which are made up
    for: all since `start`; the newest, if no later one was ever begun; or those that are at most
    `grace_s` late.
    """
    unfinished = [t for t, state in known.items() if not state.is_over and t <= now]
    times, first = schedule.times, schedule.first
    missing: list[datetime] = []
    if schedule.catchup == "all":
        missing = [t for t in times.between(first, now) if t not in known]
    elif schedule.catchup == "latest":
        newest = times.latest(first, now) if first <= now else None
        begun = max((t for t in known if t <= now), default=None)
        if newest is not None and (begun is None or begun < newest):
            missing = [newest]
    else:
        since = max(first, now - timedelta(seconds=schedule.grace_s))
        missing = [t for t in times.between(since, now) if t not in known]
    return sorted({*unfinished, *missing})


@dataclass
class Server:
    """Begins the runs of workflows when they are due.

    Args:
        places: of each workflow.
        say: gets a line for each thing that happens.
        stopping: set to make it end; runs stop at once, and go on with the next server.
        now: the clock.
    """

    places: Sequence[Places]
    say: Say
    stopping: threading.Event = field(default_factory=threading.Event)
    now: Now = lambda: datetime.now(UTC)
    _active: dict[tuple[str, datetime], "Future[str]"] = field(default_factory=dict)
    _elsewhere: set[tuple[str, datetime]] = field(default_factory=set)
    _told: set[tuple[str, datetime]] = field(default_factory=set)
    _failed: bool = False

    def once(self) -> bool:
        """Do all that is due now; whether none of it failed.

        Raises:
            LakeError: a history cannot be read or written.
        """
        with self._pool() as pool:
            while self._look(pool) or self._active:
                self._collect(wait_s=_STOP_POLL_S)
        return not self._failed

    def serve(self) -> None:
        """Go on until `stopping` is set.

        A history that cannot be read is looked for again: an object store may be back.
        """
        wake = threading.Event()
        scheduler = BackgroundScheduler(timezone=UTC)
        for each in self.places:
            for trigger in _wakes(each.workflow.schedule):
                scheduler.add_job(wake.set, trigger, misfire_grace_time=None, coalesce=True)
        scheduler.start()
        try:
            with self._pool() as pool:
                self._until_stopped(pool, wake)
        finally:
            scheduler.shutdown(wait=False)

    def _until_stopped(self, pool: ThreadPoolExecutor, wake: threading.Event) -> None:
        looked = -LOOK_S
        elapsed = 0.0
        while not self.stopping.is_set():
            ended = self._collect(wait_s=0.0)
            if wake.is_set() or ended or elapsed - looked >= LOOK_S:
                wake.clear()
                looked = elapsed
                try:
                    self._look(pool)
                except LakeError as error:
                    self.say(f"the history cannot be read, and is looked for again: {error}")
            self.stopping.wait(_STOP_POLL_S)
            elapsed += _STOP_POLL_S
        while self._active:
            self._collect(wait_s=_STOP_POLL_S)

    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(sum(p.workflow.schedule.max_active for p in self.places))

    def _look(self, pool: ThreadPoolExecutor) -> int:
        """Begin what is due and has room; how many runs."""
        if self.stopping.is_set():
            return 0
        begun = 0
        for places in self.places:
            workflow = places.workflow
            mine = [key for key in self._active if key[0] == workflow.name]
            room = workflow.schedule.max_active - len(mine)
            known = WorkflowLog(places.lake, workflow.name).runs()
            for logical_time in due(workflow.schedule, known, self.now()):
                key = (workflow.name, logical_time)
                if room <= 0:
                    break
                if key in self._active or key in self._elsewhere:
                    continue
                execution = Execution(places, logical_time, self.stopping.is_set, self.say)
                self._active[key] = pool.submit(execution.run)
                room -= 1
                begun += 1
        self._elsewhere.clear()
        return begun

    def _collect(self, *, wait_s: float) -> int:
        """Take in runs that ended; how many."""
        if wait_s and self._active:
            self.stopping.wait(wait_s)
        done = [key for key, future in self._active.items() if future.done()]
        for key in done:
            future = self._active.pop(key)
            try:
                self._failed |= future.result() == "failed"
            except ClaimError as error:
                # Another server has it, which is all right: it is done once.
                self._elsewhere.add(key)
                if key not in self._told:
                    self._told.add(key)
                    self.say(str(error))
            except LakeError as error:
                self._failed = True
                self.say(f"{key[0]} {key[1].isoformat()}  failed: {error}")
        return len(done)


def _wakes(schedule: Schedule) -> list[CronTrigger]:
    """Triggers that fire at the schedule's local times; which run that means is ours to say."""
    minute, hour, *_ = schedule.times.fields
    return [CronTrigger(minute=minute, hour=hour, timezone=schedule.zone)]
