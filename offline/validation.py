"""Is logged data fit to learn from: a report by kind of problem, and the data without them."""

import dataclasses
import json
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import pyarrow as pa

from offline import schemas as s
from offline import validation_checks as check
from offline.errors import LakeError, NoRowsError
from offline.trajectories import EPISODE_KEY, Ints, Mask, Trajectories
from offline.validation_checks import Fault, faults_of
from rl_ops import columns as c
from rl_ops.tree import tree_concat, tree_leaves, tree_take

OnInvalid: TypeAlias = Literal["skip", "fail"]

NO_ROWS: Final = "no_rows"
SEVERAL_SPACES: Final = "several_spaces"
NOT_OF_SPACE: Final = "not_of_space"
NO_T: Final = "no_t"

_EPISODE, _ROWS, _ALL = "the episodes", "the rows", "everything"


@dataclass(frozen=True)
class Kind:
    """A kind of problem.

    Attributes:
        what: it is, in words.
        left_out: what `cleaned` leaves out; of a gap in steps that have to be contiguous also
            what is behind it.
    """

    what: str
    left_out: str


KINDS: Final[Mapping[str, Kind]] = {
    NO_ROWS: Kind("there are no such rows", _ALL),
    SEVERAL_SPACES: Kind("rows of more than one pair of spaces", _ALL),
    NOT_OF_SPACE: Kind("a value is missing, or of another shape or dtype than its space", _EPISODE),
    NO_T: Kind("no step number, or one below 0", _EPISODE),
    check.DOUBLED: Kind("the same step twice", _EPISODE),
    check.LATE_START: Kind("the episode does not begin at t=0", _EPISODE),
    check.END_INSIDE: Kind("rows after the episode's end", _EPISODE),
    check.GAP: Kind("steps are missing after the row", _ROWS),
    check.NO_FINAL_OBS: Kind("cut, and the observation after it is not known", _ROWS),
    check.NOT_FINITE: Kind("NaN, Inf or nothing where a number is needed", _EPISODE),
    check.OUT_OF_BOUNDS: Kind("values outside of the space", _EPISODE),
    check.NO_LOGP: Kind("no log-probability, which importance weights need", _EPISODE),
    check.POSITIVE_LOGP: Kind("a probability above 1", _EPISODE),
}
"""Every kind of problem; docs/offline-data.md explains what is left out and why."""

MAX_PLACES: Final = 100
"""Of a kind in a report, and so in table `rejected`."""
_SHOWN: Final = 3
_MAX_CHARS: Final = 2000

_LOGGER: Final = logging.getLogger(__name__)


@dataclass(frozen=True)
class Needs:
    """What will be made of the data.

    Attributes:
        logp: log-probabilities of the policy that acted, as importance weights need.
        contiguous: each episode's steps from t=0 on without a gap, as returns, advantages and
            sequences need. False for what learns from single transitions: late starts are fine
            then, and so is a gap behind a row whose next observation is known.
    """

    logp: bool = False
    contiguous: bool = True


@dataclass(frozen=True)
class Place:
    """A row with a problem."""

    run_id: str | None
    session: int | None
    episode_id: str | None
    agent_id: str | None
    t: int | None
    found: str

    def __str__(self) -> str:
        session = f" session {self.session}" if self.session else ""
        t = "" if self.t is None else f", t={self.t}"
        return f"{self.episode_id} of {self.run_id}{session}{t}: {self.found}"


def place_of(name: Mapping[str, Any], t: int | None, found: str) -> Place:
    """The place of a row of the episode with these names."""
    return Place(
        run_id=name[c.RUN_ID],
        session=name[s.SESSION],
        episode_id=name[c.EPISODE_ID],
        agent_id=name[c.AGENT_ID],
        t=t,
        found=found,
    )


@dataclass(frozen=True)
class Problem:
    """One kind of problem, of one column.

    Attributes:
        kind: one of `KINDS`.
        column: whose values it is about; empty for none.
        rows, episodes: that have it.
        places: the first `MAX_PLACES` rows.
    """

    kind: str
    column: str
    rows: int
    episodes: int
    places: tuple[Place, ...] = ()

    @property
    def name(self) -> str:
        """Kind and column, as not_finite:reward."""
        return f"{self.kind}:{self.column}" if self.column else self.kind

    def __str__(self) -> str:
        counts = f"{_count(self.rows, 'row')} of {_count(self.episodes, 'episode')}"
        return f"{self.name}: {counts}: {KINDS[self.kind].what}"

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        places = [dataclasses.asdict(place) for place in self.places]
        own = {"kind": self.kind, "column": self.column, "places": places}
        return own | {"rows": self.rows, "episodes": self.episodes}


@dataclass(frozen=True)
class ValidationReport:
    """What is wrong with some logged steps.

    Attributes:
        uri, version: of the lake and of table `steps`.
        rows, episodes: that were looked at.
        needs: what was asked of them.
        problems: those there are, by kind and column.
        usable_rows, usable_episodes: that `cleaned` leaves.
        keep: [N] rows of the trajectories that `cleaned` leaves.
        moved: rows that it leaves out whose observation becomes the final one of the row before.
    """

    uri: str
    version: int
    rows: int
    episodes: int
    needs: Needs
    problems: tuple[Problem, ...]
    usable_rows: int
    usable_episodes: int
    keep: Mask = field(repr=False, compare=False)
    moved: Ints = field(repr=False, compare=False)

    @property
    def counts(self) -> dict[str, int]:
        """Rows by the name of their problem."""
        return {problem.name: problem.rows for problem in self.problems}

    def is_clean(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def usable(self) -> bool:
        """Whether something is left once what is wrong is left out."""
        return self.usable_rows > 0

    def left_out(self, problem: Problem) -> str:
        """What `cleaned` leaves out because of a problem, in words."""
        left_out = KINDS[problem.kind].left_out
        is_cut = problem.kind == check.GAP and self.needs.contiguous
        return f"{left_out} and what is behind them" if is_cut else left_out

    def lines(self) -> Iterator[str]:
        """The report in lines; names in it come from the data and may hold anything."""
        yield f"data       version {self.version} of steps at {self.uri}"
        yield f"rows       {self.rows:,} of {_count(self.episodes, 'episode')}"
        yield f"problems   {len(self.problems) or 'none'}"
        for problem in self.problems:
            yield f"  {problem}; left out: {self.left_out(problem)}"
            yield from (f"    {place}" for place in problem.places[:_SHOWN])
            if problem.rows > _SHOWN < len(problem.places):
                yield f"    and {problem.rows - _SHOWN:,} more"
        if self.problems:
            left = f"{self.usable_rows:,} of {_count(self.usable_episodes, 'episode')}"
            yield f"usable     {left}, the rest left out"

    def text(self) -> str:
        """The report as one text."""
        return "\n".join(self.lines())

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        own = {name: getattr(self, name) for name in ("uri", "version", "rows", "episodes")}
        usable = {"usable_rows": self.usable_rows, "usable_episodes": self.usable_episodes}
        problems = [problem.to_json() for problem in self.problems]
        return own | usable | {"needs": dataclasses.asdict(self.needs), "problems": problems}


def validate(found: Trajectories, needs: Needs | None = None) -> ValidationReport:
    """Look for every kind of problem that steps in memory can have.

    Args:
        found: the steps, which stay as they are.
        needs: what will be made of them; `Needs()` by default.

    Raises:
        ValueError: log-probabilities are needed and were not read.
    """
    needs = needs or Needs()
    if needs.logp and c.LOGP not in found.columns:
        raise ValueError(
            f"log-probabilities are needed, and the trajectories have {list(found.columns)}; load "
            f"them with DataSpec(columns=({c.LOGP!r},))."
        )
    faults = tuple(faults_of(found, needs_logp=needs.logp, contiguous=needs.contiguous))
    keep, moved = _kept(found, faults, needs)
    problems = tuple(_problem(found, fault) for fault in faults)
    return ValidationReport(
        uri=found.uri,
        version=found.version,
        rows=found.rows,
        episodes=found.num_episodes,
        needs=needs,
        problems=problems if found.rows else (Problem(NO_ROWS, "", 0, 0),),
        usable_rows=int(np.count_nonzero(keep)),
        usable_episodes=_distinct(found.episode[keep]),
        keep=keep,
        moved=moved,
    )


def _problem(found: Trajectories, fault: Fault) -> Problem:
    first = fault.rows[:MAX_PLACES]
    names = found.names.take(pa.array(found.episode[first])).to_pylist()
    places = tuple(
        place_of(name, t, text)
        for name, t, text in zip(
            names, found.t[first].tolist(), map(fault.found, first.tolist()), strict=True
        )
    )
    episodes = _distinct(found.episode[fault.rows])
    return Problem(fault.kind, fault.column, len(fault.rows), episodes, places)


def _kept(found: Trajectories, faults: tuple[Fault, ...], needs: Needs) -> tuple[Mask, Ints]:
    """Which rows stay, and which of the others' observations end what stays before them.

    Of an episode with a gap the steps before it stay. A row after which nothing is known goes:
    its observation is all that is known, and it is what came after the row before.
    """
    is_bad = np.zeros(found.num_episodes, np.bool_)
    is_lost = np.zeros(found.rows, np.bool_)
    is_tail = np.zeros(found.rows, np.bool_)
    for fault in faults:
        if KINDS[fault.kind].left_out == _EPISODE:
            is_bad[found.episode[fault.rows]] = True
            continue
        is_lost[fault.rows] = True
        if fault.kind == check.GAP and needs.contiguous:
            episode, first = np.unique(found.episode[fault.rows], return_index=True)
            last = np.full(found.num_episodes, found.rows)
            last[episode] = fault.rows[first]
            is_tail = np.arange(found.rows) > last[found.episode]
    stays = ~is_bad[found.episode] & ~is_tail
    is_lost &= stays & ~found.is_usable
    lost = np.flatnonzero(is_lost)
    before = lost[lost > 0]
    return stays & ~is_lost, before[found.has_next[before - 1]]


def _distinct(ascending: Ints) -> int:
    return int(np.count_nonzero(np.diff(ascending, prepend=-1)))


def cleaned(found: Trajectories, report: ValidationReport) -> Trajectories:
    """The trajectories without what their report says is wrong; `validate` finds nothing in it.

    Raises:
        ValueError: the report is of other trajectories.
    """
    if len(report.keep) != found.rows:
        raise ValueError(f"the report is of {len(report.keep)} rows; there are {found.rows}.")
    if report.keep.all():
        return found
    moved = report.moved
    final_index, truncated = found.final_index.copy(), found.truncated.copy()
    is_new = final_index[moved - 1] < 0
    moved = moved[is_new]
    final_index[moved - 1] = len(next(tree_leaves(found.final_obs))) + np.arange(len(moved))
    truncated[report.moved - 1] |= found.truncated[report.moved]
    ended = dataclasses.replace(
        found,
        final_obs=tree_concat([found.final_obs, tree_take(found.obs, moved)]),
        final_index=final_index,
        truncated=truncated,
    )
    return ended.take(report.keep)


def settle(
    found: Trajectories, report: ValidationReport, *, on_invalid: OnInvalid
) -> tuple[Trajectories, dict[str, int]]:
    """Trajectories that are fit to learn from, by policy.

    Args:
        found: the steps.
        report: of `validate` on them.
        on_invalid: "fail" refuses if anything is wrong; "skip" leaves it out and logs a line for
            each kind.

    Returns:
        The trajectories, and the rows by the name of their problem.

    Raises:
        LakeError: something is wrong under "fail", or nothing is left; has the whole report.
    """
    refuse(report, on_invalid=on_invalid)
    for problem in report.problems:
        left_out = report.left_out(problem)
        _LOGGER.warning("steps version %d: %s; left out: %s", report.version, problem, left_out)
    return cleaned(found, report), report.counts


def refuse(report: ValidationReport, *, on_invalid: OnInvalid) -> None:
    """Raise what a report means under a policy, if it does.

    Raises:
        LakeError: see `settle`.
    """
    if not report.usable():
        raise NoRowsError(f"there is nothing to learn from.\n{report.text()}")
    if on_invalid == "fail" and report.problems:
        fix = 'on_invalid="skip" (--on-invalid skip) leaves it out.'
        raise LakeError(f"the logged data is not valid; {fix}\n{report.text()}")


def rejected_rows(report: ValidationReport, *, run_id: str, session: int = 0) -> pa.Table:
    """What a report names, as rows of table `rejected`: at most `MAX_PLACES` of each problem.

    Args:
        report: of `validate`.
        run_id: of the run that did not take them.
        session: of that run.
    """
    source = f"steps version {report.version} of {report.uri}"
    rows = [
        {
            c.RUN_ID: run_id,
            s.SESSION: session,
            "source": source,
            c.EPISODE_ID: place.episode_id,
            "row": place.t,
            s.REASON: problem.name,
            "content": json.dumps(_content(problem, place))[:_MAX_CHARS],
            s.AT: time.time_ns() // 1000,
        }
        for problem in report.problems
        for place in problem.places
    ]
    return pa.Table.from_pylist(rows, schema=s.REJECTED.schema)


def _content(problem: Problem, place: Place) -> dict[str, Any]:
    name = {key: getattr(place, key) for key in EPISODE_KEY}
    message = KINDS[problem.kind].what
    return name | {"message": message, "found": place.found, "rows": problem.rows}


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}" + ("" if number == 1 else "s")
