"""A workflow's file: its schedule, and its steps in their order."""

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, ConfigDict, Field, field_validator

from pipelines.config_errors import ConfigError, Problem
from pipelines.config_explain import nearest
from workflows.documents import place, read_document, validated
from workflows.scheduled.cron import Cron
from workflows.scheduled.references import TIMES, Reference, references
from workflows.scheduled.steps import ANY, AnyStep, Step

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
_MEANT = {
    "dag_id": "write workflow: NAME",
    "schedule_interval": "write schedule: {cron: ..., start: ...}",
    "start_date": "write schedule: {start: ...}",
    "tasks": "write steps: {NAME: {do: ...}}",
    "uses": "write do: with the kind of step",
}


class Schedule(BaseModel):
    """When runs are due, and what happens to those that were missed or fail."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    cron: str
    timezone: str = "UTC"
    start: str
    """Logical times from then on: a date, or a date and time in the time zone."""
    catchup: Literal["all", "latest", "none"] = "latest"
    """Which missed runs are made up for: all in turn, only the newest, or none."""
    grace_s: float = Field(default=300.0, gt=0, strict=False)
    """With catchup none, how late a run may still begin."""
    max_active: int = Field(default=1, ge=1)
    """Runs side by side."""
    timeout_s: float = Field(default=86_400.0, gt=0, strict=False)
    """Of each attempt of a step."""
    retries: int = Field(default=0, ge=0)
    """Further attempts of a step that failed."""
    retry_wait_s: float = Field(default=30.0, ge=0, strict=False)
    """Before the second attempt; twice as long before each further one, ten minutes at most."""

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError("no such time zone; write one as Europe/Berlin, or UTC") from None
        return value

    @field_validator("start")
    @classmethod
    def _is_time(cls, value: str) -> str:
        try:
            datetime.fromisoformat(value)
        except ValueError:
            raise ValueError("expected a date or time, as 2026-01-31 or 2026-01-31T06:00") from None
        return value

    @field_validator("cron")
    @classmethod
    def _is_cron(cls, value: str) -> str:
        Cron(value, ZoneInfo("UTC"))
        return value

    @property
    def zone(self) -> ZoneInfo:
        """Of local times."""
        return ZoneInfo(self.timezone)

    @property
    def times(self) -> Cron:
        """The logical times."""
        return Cron(self.cron, self.zone)

    @property
    def first(self) -> datetime:
        """`start` in UTC."""
        return in_utc(datetime.fromisoformat(self.start), self.zone)


class Spec(BaseModel):
    """What a workflow's file says."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    workflow: str
    description: str = ""
    schedule: Schedule | None = None
    lake: str | None = None
    """Where the lake is, s3://bucket/prefix for instance: its folder `lake`; None for --storage."""
    steps: dict[str, AnyStep] = Field(min_length=1)

    @field_validator("workflow")
    @classmethod
    def _is_name(cls, value: str) -> str:
        if not _NAME.fullmatch(value):
            raise ValueError("expected small letters, digits, - and _, at most 40")
        return value

    @field_validator("steps")
    @classmethod
    def _are_names(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if not _NAME.fullmatch(name):
                raise ValueError(f"a step's name is {name!r}; expected small letters, digits, - _")
        return value


@dataclass(frozen=True)
class Workflow:
    """A workflow that was read.

    Attributes:
        spec: what it says.
        path: of the file, absolute.
        sha256: of its text.
    """

    spec: Spec
    path: Path
    sha256: str

    @property
    def name(self) -> str:
        """Of the workflow."""
        return self.spec.workflow

    @property
    def schedule(self) -> Schedule:
        """Its schedule, or the defaults of one that is only run by hand."""
        return self.spec.schedule or Schedule(cron="@yearly", start="1970-01-01")

    def timeout_s(self, step: str) -> float:
        """Of an attempt of a step."""
        own = self.spec.steps[step].timeout_s
        return self.schedule.timeout_s if own is None else own

    def retries(self, step: str) -> int:
        """Of a step."""
        own = self.spec.steps[step].retries
        return self.schedule.retries if own is None else own


def load_workflow(source: str | Path) -> Workflow:
    """Read a workflow's file and check all that can be known before a run.

    Raises:
        ConfigError: everything that is wrong with it, with file:line.
    """
    document, text, name = read_document(source)
    spec = validated(Spec, document, name=name, meant=_MEANT)
    problems = []
    for step, settings in document.values["steps"].items():
        for found in references(settings):
            what = _wrong(found, step, spec)
            if what is not None:
                where = place(document, ("steps", step, *found.where), name=name)
                problems.append(Problem(where, f"${{{'.'.join(found.path)}}} {what[0]}", what[1]))
    if problems:
        raise ConfigError(*problems)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Workflow(spec, Path(source).expanduser().absolute(), digest)


def _wrong(found: Reference, step: str, spec: Spec) -> tuple[str, str] | None:
    """What is wrong with a reference in a step, and the fix; None for nothing."""
    path = found.path
    if path[0] in TIMES and len(path) == 1:
        return None
    if path[0] == "registry":
        fix = "write ${registry.MODEL.ALIAS}"
        return None if len(path) == 3 and all(path) else ("is no alias of a model", fix)
    if path[0] != "steps" or len(path) != 3:
        kinds = ", ".join(f"${{{t}}}" for t in TIMES)
        return "is unknown", f"there are ${{steps.STEP.OUTPUT}}, ${{registry.MODEL.ALIAS}}, {kinds}"
    _, other, output = path
    before = list(spec.steps)[: list(spec.steps).index(step)]
    if other not in before:
        later = other in spec.steps
        what = "is of a step that comes later" if later else "is of no step"
        close = nearest(other, before)
        meant = f"did you mean {close[0]}? " if close and not later else ""
        return what, f"{meant}before {step} there are {', '.join(before) or 'none'}"
    return _wrong_output(spec.steps[other], output)


def _wrong_output(step: Step, output: str) -> tuple[str, str] | None:
    known = step.outputs
    if output in known or ANY in known:
        return None
    close = nearest(output, known)
    meant = f"did you mean {close[0]}? " if close else ""
    return "is no output of that step", f"{meant}it gives {', '.join(known) or 'nothing'}"


def stamp(logical_time: datetime) -> str:
    """A logical time in names of runs and folders: 20261126T030000."""
    return logical_time.astimezone(UTC).strftime("%Y%m%dT%H%M%S")


def in_utc(time: datetime, zone: ZoneInfo) -> datetime:
    """A time, local where it does not say otherwise, in UTC."""
    return (time if time.tzinfo is not None else time.replace(tzinfo=zone)).astimezone(UTC)
