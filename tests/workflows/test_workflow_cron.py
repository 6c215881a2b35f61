"""Logical times against a clock that is looked at each minute, daylight saving included."""

from datetime import UTC, date, datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workflows.scheduled.cron import Cron

ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Sao_Paulo"]
MINUTE = timedelta(minutes=1)


@cache
def values(field: str, low: int, high: int) -> set[int]:
    """What a field of numbers allows, slowly."""
    found: set[int] = set()
    for part in field.split(","):
        span, _, step = part.partition("/")
        if span == "*":
            first, last = low, high
        elif "-" in span:
            first, last = map(int, span.split("-"))
        else:
            first = int(span)
            last = high if step else first
        found.update(range(first, last + 1, int(step or 1)))
    return found


def matches(fields: list[str], wall: datetime) -> bool:
    minute, hour, day, month, weekday = fields
    at_time = wall.minute in values(minute, 0, 59) and wall.hour in values(hour, 0, 23)
    in_month = wall.month in values(month, 1, 12)
    by_day = wall.day in values(day, 1, 31)
    by_week = (wall.weekday() + 1) % 7 in {d % 7 for d in values(weekday, 0, 7)}
    if not day.startswith("*") and not weekday.startswith("*"):
        return at_time and in_month and (by_day or by_week)
    return at_time and in_month and by_day and by_week


def slowly(text: str, zone: ZoneInfo, first: datetime, last: datetime) -> list[datetime]:
    fields = text.split()
    found: set[datetime] = set()
    if fields[1].startswith("*"):
        at = first
        while at <= last:
            if matches(fields, at.astimezone(zone).replace(tzinfo=None)):
                found.add(at)
            at += MINUTE
        return sorted(found)
    # Every minute that a wall clock could show, also those that it skips.
    wall = (first - timedelta(days=1)).replace(tzinfo=None)
    while wall <= last.replace(tzinfo=None) + timedelta(days=1):
        if matches(fields, wall):
            found.add(wall.replace(tzinfo=zone, fold=0).astimezone(UTC))
        wall += MINUTE
    return sorted(t for t in found if first <= t <= last)


minutes = st.sampled_from(["0", "30", "*/20", "5,50", "*"])
hours = st.sampled_from(["*", "*/2", "2", "1-3", "0", "0,23", "3/7"])
weekdays = st.sampled_from(["*", "0", "7", "1-5", "6", "*/3"])


@settings(max_examples=30, deadline=None)
@given(
    minute=minutes,
    hour=hours,
    day=st.sampled_from(["*", "*", "28-30", "1"]),
    weekday=weekdays,
    zone=st.sampled_from(ZONES),
    begin=st.sampled_from(
        [
            *(date(2026, 3, 7), date(2026, 3, 28), date(2026, 4, 4), date(2026, 10, 3)),
            *(date(2026, 10, 24), date(2026, 11, 1), date(2026, 2, 27), date(2018, 11, 3)),
        ]
    ),
)
def test_times_are_those_of_a_clock_that_is_looked_at_each_minute(
    minute, hour, day, weekday, zone, begin
):
    first = datetime(begin.year, begin.month, begin.day, tzinfo=UTC)
    last = first + timedelta(days=2, hours=12)
    text = f"{minute} {hour} {day} * {weekday}"
    found = [*Cron(text, ZoneInfo(zone)).between(first, last)]
    assert found == slowly(text, ZoneInfo(zone), first, last)
    latest = Cron(text, ZoneInfo(zone)).latest(first, last)
    assert latest == (found[-1] if found else None)


def test_a_nightly_run_is_once_a_night_when_the_clock_is_changed():
    nightly = Cron("30 2 * * *", ZoneInfo("Europe/Berlin"))

    def after_noon_of(month: int, day: int) -> list[str]:
        noon = datetime(2026, month, day, 12, tzinfo=UTC)
        return [t.isoformat()[:16] for t in nightly.between(noon, noon + timedelta(days=2))]

    assert after_noon_of(3, 28) == ["2026-03-29T01:30", "2026-03-30T00:30"]
    assert after_noon_of(10, 24) == ["2026-10-25T00:30", "2026-10-26T01:30"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("* *", "2 fields"),
        ("0 0 30 2 *", "no such day"),
        ("61 * * * *", "61"),
        ("0 0 * * 8", "0 to 7"),
        ("0 0 L * *", "day is 'L'"),
        ("0 0 ? * *", r"day is '\?'"),
        ("0 0 * * 5-1", "ends before"),
    ],
)
def test_what_is_no_cron_is_refused(text, said):
    with pytest.raises(ValueError, match=said):
        Cron(text, ZoneInfo("UTC"))


def test_macros_and_sunday_under_both_numbers():
    week = datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 11, 30, tzinfo=UTC)
    sundays = [*Cron("@weekly", ZoneInfo("UTC")).between(*week)]
    assert all(t.weekday() == 6 for t in sundays)
    assert len(sundays) == 5
    assert sundays == [*Cron("0 0 * * 7", ZoneInfo("UTC")).between(*week)]
    assert sundays == [*Cron("0 0 * * sun", ZoneInfo("UTC")).between(*week)]
