"""Which rows made a checkpoint, through every resume before it, and which checkpoints used rows."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from offline import schemas as s
from offline.errors import LakeError
from offline.sessions import CheckpointRow, History, Link, Origin, json_object
from rl_ops import columns as c

if TYPE_CHECKING:
    from offline.lake import Lake


@dataclass(frozen=True)
class SessionPart:
    """What one session of a run gave to a checkpoint.

    Attributes:
        resumed_from: None for a run's beginning.
        before: the session's fragments that count are those with smaller ids.
        fragments: how many of those an update used.
        rows: of them, as the learner counted.
        logged_rows: of them in table `steps`; fewer where only a part of the episodes is logged.
        episodes: with steps in them.
        config_sha256: of the configuration as canonical JSON.
        code: the version of the code, as the run noted it.
        packages: name → version.
    """

    run_id: str
    session: int
    resumed_from: Origin | None
    before: int
    fragments: int
    rows: int
    logged_rows: int
    episodes: int
    status: str | None
    algo: str | None
    env: str | None
    seed: int | None
    config_sha256: str | None
    code: str | None
    packages: Mapping[str, str]
    input_versions: Mapping[str, Any]
    started_at: datetime | None


@dataclass(frozen=True)
class Lineage:
    """How a checkpoint came about.

    Attributes:
        checkpoint: which.
        sessions: those that trained it, the latest first.
        gaps: what the lake does not know of it, in words.
    """

    checkpoint: CheckpointRow
    sessions: tuple[SessionPart, ...]
    gaps: tuple[str, ...]

    @property
    def fragments(self) -> int:
        """In all sessions."""
        return sum(part.fragments for part in self.sessions)

    @property
    def rows(self) -> int:
        """In all sessions."""
        return sum(part.rows for part in self.sessions)


@dataclass(frozen=True)
class FragmentRef:
    """A fragment; ids alone are not unique, because a resumed session counts on."""

    run_id: str
    session: int
    fragment_id: int


@dataclass(frozen=True)
class EpisodeRef:
    """An episode by its whole id."""

    run_id: str
    episode_id: str


@dataclass(frozen=True)
class Use:
    """A checkpoint that was trained on some rows, and which of their fragments it used."""

    checkpoint: CheckpointRow
    fragments: tuple[FragmentRef, ...]


def of_checkpoint(
    lake: "Lake", run_id: str, checkpoint_id: int, *, session: int | None = None
) -> Lineage:
    """How a checkpoint came about.

    Args:
        lake: where.
        run_id: of which run.
        checkpoint_id: the iteration.
        session: which wrote it; the latest that did when None.

    Raises:
        LakeError: the lake has no such checkpoint, and which it has; or resumes that go in circles.
    """
    history = History(lake)
    return _lineage(lake, history, history.checkpoint(run_id, checkpoint_id, session))


def of_unlisted(lake: "Lake", checkpoint: CheckpointRow) -> Lineage:
    """The same for a checkpoint of which the lake has no row, as one saved by hand elsewhere."""
    return _lineage(lake, History(lake), checkpoint)


def checkpoints_of(lake: "Lake", where: FragmentRef | EpisodeRef) -> tuple[Use, ...]:
    """The checkpoints that were trained on a fragment, or on steps of an episode.

    Those of sessions that were resumed from such a checkpoint included, in the order of time.

    Raises:
        LakeError: the lake does not know of the fragment or the episode.
    """
    fragments = _fragments_of(lake, where)
    history, used = History(lake), _consumed(lake, fragments)
    found = []
    for checkpoint in history.checkpoints:
        limits = {(link.run_id, link.session): link.before for link in history.chain(checkpoint)[0]}
        mine = tuple(
            ref for ref in used if ref.fragment_id < limits.get((ref.run_id, ref.session), 0)
        )
        if mine:
            found.append(Use(checkpoint, mine))
    return tuple(found)


def _lineage(lake: "Lake", history: History, checkpoint: CheckpointRow) -> Lineage:
    chain, gaps = history.chain(checkpoint)
    parts = tuple(_part(lake, link) for link in chain)
    for part in parts:
        if part.fragments == 0 and part.before > 0 and part.resumed_from is None:
            gaps.append(f"of session {part.session} there is no fragment in table consumption")
    return Lineage(checkpoint, parts, tuple(gaps))


def _part(lake: "Lake", link: Link) -> SessionPart:
    """Counts of one session's fragments, and what its row in `runs` says."""
    start: Mapping[str, Any] = link.row.start if link.row is not None else {}
    counted = lake.sql(
        """
        WITH used AS (
            SELECT fragment_id, max("rows") AS n FROM consumption
            WHERE run_id = $run AND session = $session AND fragment_id < $before
            GROUP BY fragment_id
        ), logged AS (
            SELECT episode_id FROM steps
            WHERE run_id = $run AND session = $session AND fragment_id < $before
                AND fragment_id IN (SELECT fragment_id FROM used)
        )
        SELECT (SELECT count(*) FROM used) AS fragments,
            (SELECT coalesce(sum(n), 0) FROM used)::BIGINT AS n,
            (SELECT count(*) FROM logged) AS logged,
            (SELECT count(DISTINCT episode_id) FROM logged) AS episodes
        """,
        {"run": link.run_id, "session": link.session, "before": link.before},
    ).to_pylist()[0]
    config = start.get("config")
    return SessionPart(
        run_id=link.run_id,
        session=link.session,
        resumed_from=link.origin,
        before=link.before,
        fragments=counted["fragments"],
        rows=counted["n"],
        logged_rows=counted["logged"],
        episodes=counted["episodes"],
        status=link.row.status if link.row is not None else None,
        algo=start.get("algo"),
        env=start.get(s.ENV),
        seed=start.get(s.SEED),
        config_sha256=None if config is None else config_sha256(json.loads(config)),
        code=start.get("code"),
        packages=json_object(start.get("packages"), "packages"),
        input_versions=json_object(start.get("input_versions"), "input_versions"),
        started_at=start.get(s.AT),
    )


def config_sha256(config: Mapping[str, Any]) -> str:
    """The same for configurations that are equal, however their JSON was written."""
    text = json.dumps(config, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _fragments_of(lake: "Lake", where: FragmentRef | EpisodeRef) -> list[FragmentRef]:
    if isinstance(where, FragmentRef):
        return [where]
    rows = lake.sql(
        "SELECT DISTINCT run_id, session, fragment_id FROM steps "
        "WHERE run_id = ? AND episode_id = ? ORDER BY ALL",
        [where.run_id, where.episode_id],
    ).to_pylist()
    if not rows:
        raise LakeError(
            f"the lake has no steps of episode {where.episode_id!r} of run {where.run_id!r}, so "
            "its fragments are not known"
        )
    return [FragmentRef(row[c.RUN_ID], row[s.SESSION], row[c.FRAGMENT_ID]) for row in rows]


def _consumed(lake: "Lake", fragments: Sequence[FragmentRef]) -> list[FragmentRef]:
    """Those of `fragments` that an update used."""
    (run_id,) = {ref.run_id for ref in fragments}
    ids = sorted({ref.fragment_id for ref in fragments})
    rows = lake.consumption(
        where=[(c.RUN_ID, "=", run_id), (c.FRAGMENT_ID, "in", ids)],
        columns=[s.SESSION, c.FRAGMENT_ID],
    ).to_arrow()
    there = {(row[s.SESSION], row[c.FRAGMENT_ID]) for row in rows.to_pylist()}
    used = [ref for ref in fragments if (ref.session, ref.fragment_id) in there]
    if used or any(_is_known(lake, ref) for ref in fragments):
        return used
    ref = fragments[0]
    raise LakeError(
        f"the lake knows no fragment {ref.fragment_id} of session {ref.session} of run "
        f"{ref.run_id!r}; neither steps nor consumption has it"
    )


def _is_known(lake: "Lake", ref: FragmentRef) -> bool:
    where = [(c.RUN_ID, "=", ref.run_id), (s.SESSION, "=", ref.session)]
    where.append((c.FRAGMENT_ID, "=", ref.fragment_id))
    return int(lake.steps(where=where).count()) > 0
