"""`millrace lake doctor`: whether a lake holds what was written to it."""

import os
from collections.abc import Iterator, Sequence

from offline import schemas as s
from offline.doctor_files import (
    check_folder,
    check_footers,
    check_ledger,
    check_sums,
    check_unnamed,
    folder_files,
    is_checked,
)
from offline.doctor_log import TableState, examine_log
from offline.doctor_rows import check_rows
from offline.errors import LakeError
from offline.findings import Finding, limited
from offline.journal import LOCKS, Batch, read_journals, writer_folder
from offline.ledger_check import Ledger, ledger_of
from offline.storage import Storage
from offline.table_history import chosen
from offline.tables import lacks

_UNSOUND = ("missing-file", "size-differs", "checksum-differs", "unreadable-file")
_ROWS_OF = (s.STEPS.name, s.EPISODES.name, s.CONSUMPTION.name)


def doctor(
    storage: Storage, *, tables: Sequence[str] | None = None, deep: bool = False
) -> list[Finding]:
    """Look for damage. Nothing is changed, and runs may go on writing meanwhile.

    Reads the logs, the ledger, every file's size and footer, and of `steps` the columns that say
    which fragment and episode a row belongs to. Flipped bytes are found by `deep` only.

    Args:
        storage: of the lake.
        tables: names; all by default. Rows are compared when `steps` is among them.
        deep: also read every byte and compare its file's sha256 with the ledger's.

    Returns:
        What was found, tables in their order; empty if all is well.

    Raises:
        LakeError: no such table, or no lake.
        LakeStorageError: the storage cannot be read.
    """
    names = chosen(storage, tables) if tables else list(s.TABLES)
    chosen(storage, None)
    return list(limited(_findings(storage, names, deep=deep)))


def _findings(storage: Storage, names: Sequence[str], *, deep: bool) -> Iterator[Finding]:
    # The order matters while runs write: a batch's ledger rows come last, and its journal goes
    # after them. So what the first ledger names is in tables opened later, and what such a table
    # holds is in a journal or in a ledger read later still.
    found: list[Finding] = []
    first = _ledger(storage, found)
    before = first[0]
    # One that came later has no rows yet, unless the ledger says otherwise.
    names = [name for name in names if before[name] or not lacks(storage, name)]
    states = {name: examine_log(storage, name, found) for name in names if is_checked(name)}
    journals = _journals(storage, found)
    pending = {(t, part.path) for b in journals for t, parts in b.parts.items() for part in parts}
    after, ledger_state = _ledger(storage, [], earlier=first)
    if s.LEDGER.name in names:
        states[s.LEDGER.name] = ledger_state
    else:
        found = [finding for finding in found if finding.table != s.LEDGER.name]
    yield from found
    yield from (_pending(storage, batch) for batch in journals)
    unsound: set[tuple[str, str]] = set()
    for name, state in states.items():
        here = list(_check_files(storage, state, before, after, pending=pending, deep=deep))
        unsound |= {(name, f.where.removeprefix(f"{name}/")) for f in here if f.kind in _UNSOUND}
        yield from here
    if all(name in states for name in _ROWS_OF[:1]):
        missing = [name for name in (*_ROWS_OF, s.RUNS.name) if name not in states]
        quiet: list[Finding] = []
        others = {name: examine_log(storage, name, quiet) for name in missing}
        yield from check_rows(storage, {**states, **others}, before=before, unsound=unsound)


def _ledger(
    storage: Storage, found: list[Finding], *, earlier: tuple[Ledger, TableState] | None = None
) -> tuple[Ledger, TableState]:
    """The ledger as it is now; rows are never changed, so of an earlier look only more is read."""
    state = examine_log(storage, s.LEDGER.name, found)
    known: Ledger = {name: {} for name in s.TABLES} if earlier is None else earlier[0]
    paths = state.live.keys() - (set() if earlier is None else earlier[1].live.keys())
    try:
        new = ledger_of(storage, paths)
    except LakeError as error:
        fix = "restore the ledger from a copy; without it lost rows are not noticed"
        name = s.LEDGER.name
        found.append(Finding("error", "unreadable-ledger", name, str(error), name, fix))
        return known, state
    return {name: {**known[name], **new[name]} for name in s.TABLES}, state


def _check_files(
    storage: Storage,
    state: TableState,
    before: Ledger,
    after: Ledger,
    *,
    pending: set[tuple[str, str]],
    deep: bool,
) -> Iterator[Finding]:
    name = state.name
    there = folder_files(storage, name)
    names = after.get(name, {}).keys()
    in_folder = list(check_folder(state, there, named=names, pending=pending))
    yield from in_folder
    if state.opened is None:
        return
    if is_checked(name):
        yield from check_ledger(state, before=before[name], after=after[name])
        yield from check_unnamed(state, after=after[name], pending=pending)
    spoiled = {f.where.removeprefix(f"{name}/") for f in in_folder if f.severity == "error"}
    yield from check_footers(storage, state, there, skip=spoiled)
    if deep:
        yield from check_sums(storage, state, there, after.get(name, {}))


def _journals(storage: Storage, found: list[Finding]) -> list[Batch]:
    try:
        return read_journals(storage)
    except LakeError as error:
        fix = "keep a copy of the journal, then move it away to go on without its rows"
        found.append(Finding("error", "damaged-journal", "", str(error), "_millrace/pending", fix))
        return []


def _pending(storage: Storage, batch: Batch) -> Finding:
    rows = ", ".join(f"{count:,} of {table}" for table, count in batch.rows.items())
    what = f"batch {batch.seq} of {batch.writer!r} is promised and not finished: rows: {rows}"
    if _lives(storage, batch.writer):
        return Finding("info", "pending-batch", "", what, batch.path, "none: its writer is at it")
    fix = "`millrace lake doctor --repair` finishes it, and so does the run's next start"
    return Finding("warning", "pending-batch", "", what, batch.path, fix)


def _lives(storage: Storage, writer: str) -> bool:
    """Whether the process that holds a writer's lock is there; object stores have no locks."""
    if not storage.is_local:
        return False
    name = writer_folder(writer).rpartition("/")[2]
    try:
        with open(f"{storage.uri}/{LOCKS}/{name}.lock", encoding="ascii") as file:
            os.kill(int(file.read()), 0)
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False
    return True
