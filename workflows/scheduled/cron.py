"""The logical times of a schedule: cron's five fields in a time zone, daylight saving included."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from itertools import takewhile
from zoneinfo import ZoneInfo

from apscheduler.triggers.cron import CronTrigger

_MACROS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_NAMES = ("minute", "hour", "day", "month", "day_of_week")
_DAY = timedelta(days=1)


class Cron:
    """When a schedule's runs are due, as cron has it.

    Fields are minute, hour, day of month, month, day of week (0 and 7 are Sunday); where both days
    are restricted, either is enough. Where the hour is `*` or `*/n`, runs are apart by real time:
    none in an hour that a clock skips, two in one that it repeats. Else each local time is one
    run: the first of two that it names, and the moment after the gap where it names none.

    Args:
        text: five fields, or a macro such as @daily.
        timezone: of the local times.

    Raises:
        ValueError: the text is no cron, or names no day that there is.
    """

    def __init__(self, text: str, timezone: ZoneInfo) -> None:
        fields = _MACROS.get(text.strip(), text).split()
        if len(fields) != 5:
            what = "minute hour day-of-month month day-of-week, or " + ", ".join(_MACROS)
            raise ValueError(f"{len(fields)} fields; cron has five: {what}")
        self.fields = tuple(fields)
        self.timezone = timezone
        minute, hour, day, month, weekday = fields
        days = _weekdays(weekday)
        self._every_hour = hour.startswith("*")
        wanted = [(day, days)]
        if not day.startswith("*") and not weekday.startswith("*"):
            wanted = [(day, "*"), ("*", days)]
        # In UTC, which has no gaps: these are times on a wall clock.
        self._triggers = [_trigger(minute, hour, d, month, w) for d, w in wanted]
        if self._next_wall(datetime(2024, 1, 1, tzinfo=UTC)) is None:
            raise ValueError("there is no such day in any year")

    def after(self, moment: datetime) -> Iterator[datetime]:
        """Logical times after a moment, in UTC, ascending, without end."""
        last = moment.astimezone(UTC)
        day = moment.astimezone(self.timezone).date() - _DAY
        while True:
            wall = self._next_wall(_midnight(day))
            if wall is None:
                return
            day = wall.date()
            for instant in self._instants(day):
                if instant > last:
                    last = instant
                    yield instant
            day += _DAY

    def between(self, first: datetime, last: datetime) -> Iterator[datetime]:
        """Logical times from `first` to `last`, both included."""
        return takewhile(lambda t: t <= last, self.after(first - timedelta(microseconds=1)))

    def latest(self, first: datetime, last: datetime) -> datetime | None:
        """The last logical time from `first` to `last`; None where there is none."""
        span = timedelta(hours=2)
        while True:
            begin = max(first, last - span)
            found = [*self.between(begin, last)]
            if found or begin == first:
                return found[-1] if found else None
            span *= 4

    def _instants(self, day: date) -> list[datetime]:
        """Those whose wall time is on a day."""
        found: set[datetime] = set()
        wall = self._next_wall(_midnight(day))
        while wall is not None and wall.date() == day:
            found.update(self._real(wall.replace(tzinfo=None)))
            wall = self._next_wall(wall + timedelta(minutes=1))
        return sorted(found)

    def _real(self, wall: datetime) -> list[datetime]:
        both = [wall.replace(tzinfo=self.timezone, fold=fold).astimezone(UTC) for fold in (0, 1)]
        exists = both[0].astimezone(self.timezone).replace(tzinfo=None) == wall
        if not exists:
            # With fold 0 the offset before the gap counts: as long after it as it would have been.
            return [] if self._every_hour else [both[0]]
        return both if self._every_hour else both[:1]

    def _next_wall(self, start: datetime) -> datetime | None:
        times = [t.get_next_fire_time(None, start) for t in self._triggers]
        return min((t for t in times if t is not None), default=None)


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def _trigger(minute: str, hour: str, day: str, month: str, weekdays: str) -> CronTrigger:
    values = (minute, hour, day, month, weekdays)
    for name, value in zip(_NAMES, values, strict=True):
        if "?" in value or "l" in value.lower().replace("jul", ""):
            raise ValueError(f"{name} is {value!r}; expected numbers, lists, ranges and */n")
    try:
        return CronTrigger(
            minute=minute, hour=hour, day=day, month=month, day_of_week=weekdays, timezone=UTC
        )
    except ValueError as error:
        raise ValueError(str(error)) from None


def _weekdays(text: str) -> str:
    """Days of the week as APScheduler has them, which counts from Monday."""
    if text == "*":
        return "*"
    chosen: set[int] = set()
    for part in text.lower().split(","):
        span, _, step = part.partition("/")
        low, dash, high = span.partition("-")
        if span == "*":
            first, last = 0, 6
        else:
            first = _weekday(low, text)
            last = _weekday(high, text) if dash else (6 if step else first)
        if step and not (step.isdecimal() and int(step) > 0):
            raise ValueError(f"day of week is {text!r}; a step is a number from 1")
        if last < first:
            raise ValueError(f"day of week is {text!r}; {span} ends before it begins")
        chosen.update(day % 7 for day in range(first, last + 1, int(step or 1)))
    return ",".join(_DAYS[day] for day in sorted(chosen))


def _weekday(text: str, whole: str) -> int:
    if text in _DAYS:
        return _DAYS.index(text)
    if text.isdecimal() and int(text) <= 7:
        return int(text)
    raise ValueError(f"day of week is {whole!r}; expected 0 to 7 or sun to sat")
