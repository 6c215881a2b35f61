"""The doctor on rows: what the learner used, and what episodes say, against the steps there are."""

import json
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from offline import schemas as s
from offline.doctor_log import TableState
from offline.findings import Finding, ranges
from offline.ledger_check import Ledger, files_of
from offline.storage import Storage, explain
from rl_ops import columns as c

if TYPE_CHECKING:
    import pyarrow.dataset as pds
    from duckdb import DuckDBPyConnection


MEMORY: Final = "512MiB"
_MOST: Final = 10_000
_READ: Final = {"batch_size": 65_536, "batch_readahead": 4, "fragment_readahead": 2}

_STEPS_OF_FRAGMENTS: Final = (s.SESSION, c.FRAGMENT_ID)
_STEPS_OF_EPISODES: Final = (s.SESSION, c.EPISODE_ID, c.AGENT_ID)
_USED: Final = (s.SESSION, c.FRAGMENT_ID, s.ROWS)
_ENDED: Final = (s.SESSION, c.EPISODE_ID, s.LENGTH, c.ABORTED, s.KIND)

_FRAGMENTS: Final = f"""
    with logged as (
        select {s.SESSION}, {c.FRAGMENT_ID}, count(*) as n from steps group by all
    ), used as (
        select {s.SESSION}, {c.FRAGMENT_ID}, sum({s.ROWS}) as n from consumption group by all
    )
    select u.{s.SESSION}, u.{c.FRAGMENT_ID}, u.n, coalesce(l.n, 0)
    from used u left join logged l using ({s.SESSION}, {c.FRAGMENT_ID})
    where coalesce(l.n, 0) <> u.n order by all limit {_MOST}
"""
# Of several agents the one that was there longest has as many rows as the episode has steps.
_EPISODES: Final = f"""
    with each_agent as (
        select {s.SESSION}, {c.EPISODE_ID}, {c.AGENT_ID}, count(*) as n from steps group by all
    ), logged as (
        select {s.SESSION}, {c.EPISODE_ID}, max(n) as n from each_agent group by all
    )
    select e.{s.SESSION}, e.{c.EPISODE_ID}, e.{s.LENGTH}, coalesce(l.n, 0)
    from episodes e left join logged l using ({s.SESSION}, {c.EPISODE_ID})
    where coalesce(l.n, 0) <> e.{s.LENGTH} and not e.{c.ABORTED}
      and (l.n is not null or e.{s.KIND} <> 'evaluation')
    order by all limit {_MOST}
"""


def check_rows(
    storage: Storage,
    states: Mapping[str, TableState],
    *,
    before: Ledger,
    unsound: Collection[tuple[str, str]],
) -> Iterator[Finding]:
    """Every consumed fragment is in `steps` with as many rows, every episode with its length.

    Run by run, so that memory is bounded by the largest run's ids, and by DuckDB, which spills.

    Args:
        storage: of the lake.
        states: of all tables that could be opened.
        before: the ledger, read before they were opened: batches that it names are whole.
        unsound: table and path of files that cannot be read.
    """
    yield from _written_twice(before)
    sources = _Sources(storage, states, before, unsound)
    if s.STEPS.name not in states:
        return
    sampled = _sampled_sessions(sources)
    for run_id, sessions in sources.logged_sessions().items():
        few = {session for session in sessions if (run_id, session) in sampled}
        try:
            yield from _check_run(sources, run_id, sessions, few)
        except (_engine_error(), OSError, pa.ArrowException) as error:
            what = f"rows cannot be read: {explain(error, storage, 'reading')}"
            fix = "`millrace lake doctor --deep` names the damaged file"
            yield Finding("error", "unreadable-rows", s.STEPS.name, what, f"run {run_id}", fix)


class _Sources:
    """The tables as far as they are sound and as far as their batches are whole."""

    def __init__(
        self,
        storage: Storage,
        states: Mapping[str, TableState],
        before: Ledger,
        unsound: Collection[tuple[str, str]],
    ) -> None:
        self._storage, self._states, self._before = storage, states, before
        self._unsound = unsound

    def logged_sessions(self) -> dict[str, set[int]]:
        """Runs to those of their sessions that logged steps."""
        found: dict[str, set[int]] = {}
        for entry in self._before[s.STEPS.name].values():
            if entry.run_id is not None and entry.session is not None:
                found.setdefault(entry.run_id, set()).add(entry.session)
        return found

    def scanner(
        self, name: str, columns: Sequence[str], run_id: str | None = None
    ) -> "pds.Scanner":
        """Rows of one run or of all, from the sound files, to be read once.

        Of `steps` every file, of the others those of whole batches.
        """
        state = self._states.get(name)
        live = {} if state is None or state.opened is None else state.live
        paths = [
            path
            for path, file in live.items()
            if (run_id is None or file.partition.get(c.RUN_ID) == run_id)
            and (name == s.STEPS.name or path in self._before[name])
            and (name, path) not in self._unsound
        ]
        # A new dataset each time: one that was read keeps the footers of all its files.
        return files_of(self._storage, name, paths, columns=columns).scanner(**_READ)


def _engine_error() -> type[BaseException]:
    import duckdb

    error: type[BaseException] = duckdb.Error
    return error


def _sampled_sessions(sources: _Sources) -> set[tuple[str, int]]:
    """Sessions that were configured to log the steps of a share of their episodes only."""
    found: set[tuple[str, int]] = set()
    for batch in sources.scanner(s.RUNS.name, (c.RUN_ID, s.SESSION, "config")).to_batches():
        for row in batch.to_pylist():
            try:
                frac = json.loads(row["config"] or "{}").get("trace", {}).get("episode_frac", 1.0)
            except (ValueError, AttributeError):
                continue
            if isinstance(frac, int | float) and frac < 1:
                found.add((row[c.RUN_ID], row[s.SESSION]))
    return found


def _check_run(
    sources: _Sources, run_id: str, sessions: Collection[int], sampled: Collection[int]
) -> Iterator[Finding]:
    with tempfile.TemporaryDirectory(prefix="millrace-doctor-") as folder:
        with _engine(folder) as engine:
            steps = sources.scanner(s.STEPS.name, _STEPS_OF_FRAGMENTS, run_id)
            used = sources.scanner(s.CONSUMPTION.name, _USED, run_id)
            wrong = _rows(engine, _FRAGMENTS, steps=steps, consumption=used)
        yield from _wrong_fragments(run_id, [w for w in wrong if w[0] in sessions], sampled)
        with _engine(folder) as engine:
            steps = sources.scanner(s.STEPS.name, _STEPS_OF_EPISODES, run_id)
            ended = sources.scanner(s.EPISODES.name, _ENDED, run_id)
            wrong = _rows(engine, _EPISODES, steps=steps, episodes=ended)
        yield from _wrong_episodes(run_id, [w for w in wrong if w[0] in sessions], sampled)


def _engine(folder: str) -> "DuckDBPyConnection":
    import duckdb

    engine = duckdb.connect(":memory:")
    engine.execute("set memory_limit = ?", [MEMORY])
    engine.execute("set temp_directory = ?", [folder])
    engine.execute("set preserve_insertion_order = false")
    return engine


def _rows(
    engine: "DuckDBPyConnection", query: str, **scanners: "pds.Scanner"
) -> list[tuple[Any, ...]]:
    for name, scanner in scanners.items():
        engine.register(name, scanner)
    found: list[tuple[Any, ...]] = engine.execute(query).fetchall()
    return found


def _wrong_fragments(
    run_id: str, wrong: Sequence[tuple[Any, ...]], sampled: Collection[int]
) -> Iterator[Finding]:
    """(session, fragment, rows used, rows logged), one finding a session and kind."""
    kinds: dict[tuple[int, str], list[tuple[Any, ...]]] = {}
    for row in wrong:
        session, _, used, logged = row
        if logged > used:
            kinds.setdefault((session, "doubled-fragment"), []).append(row)
        elif session not in sampled:
            kind = "missing-fragment" if logged == 0 else "short-fragment"
            kinds.setdefault((session, kind), []).append(row)
    for (session, kind), rows in kinds.items():
        used, logged = sum(row[2] for row in rows), sum(row[3] for row in rows)
        what = f"{len(rows):,} consumed fragments have {logged:,} rows in steps, {used:,} were used"
        where = f"run {run_id} session {session}, fragments {ranges(row[1] for row in rows)}"
        fix = "see damaged commits and files of steps; train on a version before the damage"
        yield Finding("error", kind, s.STEPS.name, what, where, fix)


def _wrong_episodes(
    run_id: str, wrong: Sequence[tuple[Any, ...]], sampled: Collection[int]
) -> Iterator[Finding]:
    """(session, episode, length, rows logged), one finding a session."""
    sessions: dict[int, list[tuple[Any, ...]]] = {}
    for row in wrong:
        if row[3] > 0 or row[0] not in sampled:
            sessions.setdefault(row[0], []).append(row)
    for session, rows in sessions.items():
        length, logged = sum(row[2] for row in rows), sum(row[3] for row in rows)
        what = f"{len(rows):,} finished episodes have {logged:,} rows in steps, of {length:,} steps"
        ids = ", ".join(str(row[1]) for row in rows[:3]) + (", …" if len(rows) > 3 else "")
        where = f"run {run_id} session {session}, episodes {ids}"
        fix = "see damaged commits and files of steps; leave these episodes out when training"
        yield Finding("error", "episode-length", s.STEPS.name, what, where, fix)


def _written_twice(ledger: Ledger) -> Iterator[Finding]:
    """Fragments that two batches brought, used or not; compaction's entries repeat the batches'."""
    seen: dict[tuple[str | None, int | None, int], tuple[str, int]] = {}
    twice: dict[tuple[str | None, int | None], set[int]] = {}
    for entry in ledger[s.STEPS.name].values():
        for fragment in entry.fragments if not entry.replaces else ():
            key = (entry.run_id, entry.session, fragment)
            if seen.setdefault(key, (entry.writer, entry.seq)) != (entry.writer, entry.seq):
                twice.setdefault(key[:2], set()).add(fragment)
    for (run_id, session), fragments in twice.items():
        what = f"{len(fragments):,} fragments were written by two batches: their rows are doubled"
        where = f"run {run_id} session {session}, fragments {ranges(fragments)}"
        fix = "two processes wrote this run; leave one batch's file out when training"
        yield Finding("error", "doubled-fragment", s.STEPS.name, what, where, fix)
