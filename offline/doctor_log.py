"""The doctor on a table's log: commits, checkpoints of the log, and whether it opens at all."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import pyarrow as pa
import pyarrow.parquet as pq

from offline.commits import LOG, Commit, DataFile, Listing, list_log, live_files, read_commits
from offline.compaction_ledger import OPTIMIZE
from offline.findings import Finding
from offline.schemas import SCHEMA_VERSION, TABLES
from offline.storage import Storage, explain
from offline.tables import SCHEMA_VERSION_PROPERTY, schema_diff

if TYPE_CHECKING:
    from deltalake import DeltaTable

_RESTORE: Final = "restore the file from a copy of the lake"


@dataclass(frozen=True)
class TableState:
    """A table as its log has it.

    Attributes:
        name: of the table.
        listing: of its log.
        opened: None if it cannot be opened, as when it does not exist.
        live: its files, by path.
        added: all paths that a readable commit ever added.
        removed: all paths that a readable commit removed.
        problems: version to what is the matter with its commit, if something is.
        optimized: those that a compaction added.
        later: those that came after the version that is opened.
    """

    name: str
    listing: Listing
    opened: "DeltaTable | None"
    live: dict[str, DataFile]
    problems: dict[int, str]
    added: frozenset[str]
    removed: frozenset[str]
    optimized: frozenset[str]
    later: frozenset[str]


def examine_log(storage: Storage, name: str, findings: list[Finding]) -> TableState:
    """A table's state; what is wrong with its log is added to `findings`.

    Raises:
        LakeStorageError: the storage cannot be read.
    """
    early = list_log(storage, name)
    checkpoints = list(damaged_checkpoints(storage, name, early))
    findings += checkpoints
    newest = early.checkpoints.get(max(early.checkpoints, default=-1), ())
    spoiled = [f for f in checkpoints if f.where.rpartition("/")[2] in newest]
    opened, problem = (None, spoiled[0].what) if spoiled else _open(storage, name)
    # Listed again: a commit that came meanwhile is then in it, and its file excused.
    listing = list_log(storage, name)
    if not listing.commits and not listing.checkpoints:
        findings.append(_no_log(storage, name))
        return TableState(name, listing, None, {}, {}, *[frozenset[str]()] * 4)
    version = -1 if opened is None else opened.version()
    said = _Said()
    for commit in read_commits(storage, name, listing.commits):
        said.take(commit, is_later=commit.version > version)
    problems = said.problems
    findings += [_damaged_commit(name, at, why, listing) for at, why in problems.items()]
    gaps = list(_gaps(listing))
    findings += [_missing_commit(name, version, listing) for version in gaps]
    problems |= dict.fromkeys(gaps, "is missing")
    if opened is None:
        fix = "repair what the other findings of this table name; no row of it can be read now"
        findings.append(Finding("error", "unreadable-table", name, problem, name, fix))
    else:
        findings += _foreign_schema(name, opened)
    live = {} if opened is None else live_files(opened)
    if opened is not None and newest and 0 in listing.commits and not problems:
        findings += _untrue_checkpoint(name, newest[0], live, said.files)
    sets = map(frozenset, (said.added, said.removed, said.optimized, said.later))
    return TableState(name, listing, opened, live, problems, *sets)


@dataclass
class _Said:
    """What commits say, taken in their order; sets as `TableState` has them."""

    problems: dict[int, str] = field(default_factory=dict)
    added: set[str] = field(default_factory=set)
    removed: set[str] = field(default_factory=set)
    optimized: set[str] = field(default_factory=set)
    later: set[str] = field(default_factory=set)
    files: dict[str, DataFile] = field(default_factory=dict)

    def take(self, commit: Commit, *, is_later: bool) -> None:
        if commit.problem:
            self.problems[commit.version] = commit.problem
        paths = [file.path for file in commit.adds]
        self.added.update(paths)
        self.removed.update(commit.removes)
        if commit.operation == OPTIMIZE:
            self.optimized.update(paths)
        if is_later:
            self.later.update(paths)
            return
        for path in commit.removes:
            self.files.pop(path, None)
        self.files.update((file.path, file) for file in commit.adds)


def _open(storage: Storage, name: str) -> "tuple[DeltaTable | None, str]":
    """As delta-rs opens it: `open_table` refuses what the doctor is to look at."""
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    options = storage.delta_options
    try:
        return DeltaTable(storage.table_uri(name), storage_options=options), ""
    except BaseException as error:
        # A damaged checkpoint can make delta-rs panic, which is no Exception.
        panicked = type(error).__name__ == "PanicException"
        if not panicked and not isinstance(error, DeltaError | OSError):
            raise
        return None, str(explain(error, storage, f"opening {name}"))


def _no_log(storage: Storage, name: str) -> Finding:
    fix = "`millrace train` makes missing tables; if there was one, restore its folder from a copy"
    return Finding(
        "error", "no-table", name, "there is no such table", storage.table_uri(name), fix
    )


def _damaged_commit(name: str, version: int, problem: str, listing: Listing) -> Finding:
    kind = "empty-commit" if problem == "is an empty file" else "damaged-commit"
    later = [at for at in listing.checkpoints if at >= version]
    fix = _RESTORE
    if later:
        fix += f"; versions from {min(later)} on do not need it, since there is a checkpoint"
    else:
        fix += ", or `millrace lake doctor --repair`, which knows from the ledger what it brought"
    where = f"{name}/{LOG}/{version:020d}.json"
    return Finding("error", kind, name, f"commit {version} {problem}", where, fix)


def _gaps(listing: Listing) -> Iterator[int]:
    """Versions without a commit, but for the oldest: Delta's own clean-up removes those."""
    first = 0
    if listing.checkpoints and 0 not in listing.commits:
        first = min(listing.commits, default=listing.last + 1)
    yield from (v for v in range(first, listing.last + 1) if v not in listing.commits)


def _missing_commit(name: str, version: int, listing: Listing) -> Finding:
    where = f"{name}/{LOG}/{version:020d}.json"
    later = [at for at in listing.checkpoints if at >= version]
    fix = (
        f"{_RESTORE}; versions from {min(later)} on do not need it"
        if later
        else (
            f"{_RESTORE}, or `millrace lake doctor --repair`, which knows from the ledger what it "
            "brought"
        )
    )
    return Finding("error", "missing-commit", name, f"commit {version} is missing", where, fix)


def damaged_checkpoints(storage: Storage, name: str, listing: Listing) -> Iterator[Finding]:
    """Checkpoints that cannot be read: the newest in full, older ones by their footers.

    Nothing but time travel reads the older ones.
    """
    log = storage.filesystem(name, LOG)
    newest = max(listing.checkpoints, default=-1)
    for version, files in listing.checkpoints.items():
        for file in files:
            try:
                with pq.ParquetFile(file, filesystem=log) as parquet:
                    for _ in parquet.iter_batches() if version == newest else ():
                        pass
            except (OSError, pa.ArrowException) as error:
                what = f"checkpoint {version} of the log: {explain(error, storage, 'reading it')}"
                fix = (
                    "`millrace lake doctor --repair` sets it aside if all commits since an "
                    "earlier one are there"
                )
                where = f"{name}/{LOG}/{file}"
                yield Finding("error", "damaged-checkpoint", name, what, where, fix)


def _untrue_checkpoint(
    name: str, file: str, live: Mapping[str, DataFile], replayed: Mapping[str, DataFile]
) -> Iterator[Finding]:
    """A flipped bit in a checkpoint can be read, and is then what every reader goes by."""
    wrong = [p for p in live.keys() | replayed.keys() if live.get(p) != replayed.get(p)]
    if wrong:
        what = f"differs from the commits in {len(wrong):,} files, {min(wrong)!r} among them"
        fix = "move it and _last_checkpoint out of the log's folder; the commits are all there"
        where = f"{name}/{LOG}/{file}"
        yield Finding("error", "untrue-checkpoint", name, what, where, fix)


def _foreign_schema(name: str, opened: "DeltaTable") -> Iterator[Finding]:
    stated = opened.metadata().configuration.get(SCHEMA_VERSION_PROPERTY)
    version = int(stated) if stated is not None and str(stated).isdecimal() else None
    diff = schema_diff(opened, TABLES[name], older=version is not None and version < SCHEMA_VERSION)
    columns = f": {'; '.join(diff)}" if diff else ""
    if version is None or version > SCHEMA_VERSION:
        which = "no schema version" if stated is None else f"schema version {stated}"
        what = f"has {which}; this Millrace knows up to {SCHEMA_VERSION}{columns}"
        fix = "update Millrace" if version is not None else "it is not Millrace's: move it away"
        yield Finding("error", "schema-version", name, what, name, fix)
    elif diff:
        fix = "restore the table's columns, or move the folder away"
        yield Finding("error", "schema-version", name, f"has other columns{columns}", name, fix)
    elif version < SCHEMA_VERSION:
        what = f"has schema version {version}; this Millrace writes {SCHEMA_VERSION}"
        yield Finding("warning", "schema-version", name, what, name, "the next run upgrades it")
