"""What a lake says of its runs' sessions and checkpoints, and the chain of resumes between them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from offline import schemas as s
from offline.errors import LakeError
from rl_ops import columns as c

if TYPE_CHECKING:
    from offline.lake import Lake


@dataclass(frozen=True)
class CheckpointRow:
    """A checkpoint as table `checkpoints` has it.

    Attributes:
        checkpoint_id: the iteration; several sessions of a run may have written the same.
        fragments: how many were consumed when it was written; its session used those below.
        path: where it was written; None where it is not known.
        sha256: of its manifest.json.
        table_versions: table → version that holds all rows that trained it.
    """

    run_id: str
    session: int
    checkpoint_id: int
    fragments: int
    path: str | None = None
    sha256: str | None = None
    policy_version: int | None = None
    env_steps: int | None = None
    table_versions: Mapping[str, int] | None = None
    at: datetime | None = None


@dataclass(frozen=True)
class Origin:
    """What a session was resumed from; `checkpoint` is None where the lake has no row of it."""

    run_id: str
    session: int
    checkpoint_id: int
    path: str | None
    checkpoint: CheckpointRow | None


@dataclass(frozen=True)
class Session:
    """The rows of table `runs` of one session, taken together.

    Attributes:
        start: the first of them.
        status: of the last.
        resumed_from: {"session", "checkpoint_id"} and perhaps "path", and "run_id" where it is
            another run's; None for a run's beginning.
    """

    run_id: str
    session: int
    start: Mapping[str, Any]
    status: str | None
    resumed_from: Mapping[str, Any] | None


@dataclass(frozen=True)
class Link:
    """A session that led to a checkpoint; `row` is None where table `runs` has none of it.

    Attributes:
        before: the session's fragments with smaller ids are those that led there.
    """

    run_id: str
    session: int
    before: int
    row: Session | None
    origin: Origin | None


class History:
    """All sessions and checkpoints of a lake: few rows, whatever was trained."""

    def __init__(self, lake: "Lake") -> None:
        self.sessions = {(x.run_id, x.session): x for x in _sessions(lake.runs().to_arrow())}
        rows = lake.checkpoints().to_arrow().sort_by([(s.AT, "ascending")]).to_pylist()
        self.checkpoints = [_checkpoint(row) for row in rows]

    def checkpoint(self, run_id: str, checkpoint_id: int, session: int | None) -> CheckpointRow:
        """The row of a checkpoint, of the latest session that wrote it unless one is given.

        Raises:
            LakeError: there is none, and which there are.
        """
        found = self.find(run_id, checkpoint_id, session)
        if found is not None:
            return found
        mine = [row for row in self.checkpoints if row.run_id == run_id]
        if not mine:
            raise LakeError(f"the lake has no checkpoints of run {run_id!r}{self._near(run_id)}")
        of = "" if session is None else f" by session {session}"
        there = sorted({(row.session, row.checkpoint_id) for row in mine})
        listed = ", ".join(f"{number} (session {x})" for x, number in there[-8:])
        raise LakeError(f"run {run_id!r} has no checkpoint {checkpoint_id}{of}; it has {listed}")

    def find(
        self, run_id: str, checkpoint_id: int, session: int | None = None
    ) -> CheckpointRow | None:
        """The same, None where there is none."""
        found = [
            row
            for row in self.checkpoints
            if (row.run_id, row.checkpoint_id) == (run_id, checkpoint_id)
            and session in (None, row.session)
        ]
        # The last of those written at one number by one session is the one on disk.
        return max(reversed(found), key=lambda row: row.session) if found else None

    def chain(self, checkpoint: CheckpointRow) -> tuple[list[Link], list[str]]:
        """Sessions that led to a checkpoint, the latest first, and what is not known of them.

        Raises:
            LakeError: the resumes go in circles.
        """
        links, gaps, seen = list[Link](), list[str](), set[tuple[str, int]]()
        at: CheckpointRow | None = checkpoint
        while at is not None:
            key = (at.run_id, at.session)
            if key in seen:
                raise LakeError(
                    f"session {at.session} of run {at.run_id!r} was resumed from a checkpoint of "
                    "its own: table 'runs' is wrong"
                )
            seen.add(key)
            session = self.sessions.get(key)
            if session is None:
                gaps.append(f"of session {at.session} of run {at.run_id!r} there is no row in runs")
            origin = None if session is None else self._origin(session)
            links.append(Link(at.run_id, at.session, at.fragments, session, origin))
            if origin is not None and origin.checkpoint is None:
                gaps.append(
                    f"session {at.session} was resumed from checkpoint {origin.checkpoint_id} of "
                    f"session {origin.session} of run {origin.run_id!r}, of which there is no row "
                    "in checkpoints: what trained it is not known"
                )
            at = None if origin is None else origin.checkpoint
        return links, gaps

    def _origin(self, session: Session) -> Origin | None:
        said = session.resumed_from
        if said is None:
            return None
        run_id = str(said.get("run_id") or session.run_id)
        number, before = int(said["checkpoint_id"]), int(said[s.SESSION])
        row = self.find(run_id, number, before)
        return Origin(run_id, before, number, said.get("path"), row)

    def _near(self, run_id: str) -> str:
        # difflib only here: it is not needed on the way that works.
        from difflib import get_close_matches

        close = get_close_matches(run_id, {x.run_id for x in self.checkpoints}, n=1, cutoff=0.4)
        return f"; did you mean {close[0]!r}?" if close else ""


def json_object(text: str | None, name: str) -> Mapping[str, Any]:
    """A JSON object that column `name` holds; empty where there is none.

    Raises:
        LakeError: it is no JSON.
    """
    if not text:
        return {}
    try:
        value = json.loads(text)
    except ValueError as error:
        raise LakeError(f"column {name} holds {text[:80]!r}, which is no JSON: {error}") from error
    return value if isinstance(value, dict) else {}


def _sessions(table: pa.Table) -> list[Session]:
    grouped: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in table.sort_by([(s.AT, "ascending")]).to_pylist():
        grouped.setdefault((row[c.RUN_ID], row[s.SESSION]), []).append(row)
    return [
        Session(run_id, session, rows[0], rows[-1][s.STATUS], _resumed_from(rows))
        for (run_id, session), rows in grouped.items()
    ]


def _resumed_from(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    for row in rows:
        said = json_object(row["resumed_from"], "resumed_from")
        if said and not {s.SESSION, "checkpoint_id"} <= said.keys():
            raise LakeError(
                f"runs.resumed_from of run {row[c.RUN_ID]!r} is {dict(said)}; expected session and "
                "checkpoint_id"
            )
        if said:
            return said
    return None


def _checkpoint(row: Mapping[str, Any]) -> CheckpointRow:
    known = {field: row[field] for field in CheckpointRow.__dataclass_fields__}
    known["table_versions"] = json_object(row["table_versions"], "table_versions")
    known["fragments"] = row["fragments"] or 0
    return CheckpointRow(**known)
