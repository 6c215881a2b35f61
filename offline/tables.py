"""The lake's tables: created up front, checked against their schema, upgraded, and opened."""

import random
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
from pyarrow import fs

from offline.commit_log import (
    CHECKPOINT_INTERVAL,
    files_without_log,
    first_version,
    has_commit,
    refuse_empty_commits,
    version_at,
)
from offline.errors import LakeBusyError, LakeError
from offline.patience import asking, is_hopeless
from offline.schemas import LATER, LEDGER, SCHEMA_VERSION, TABLES, TableSchema
from offline.storage import Storage, explain, require_writable

if TYPE_CHECKING:
    from deltalake import DeltaTable

Upgrade = Callable[["DeltaTable", TableSchema], None]

SCHEMA_VERSION_PROPERTY: Final = "millrace.schema_version"
VACUUMED_PROPERTY: Final = "millrace.vacuumed_at"
"""When files of old versions were last removed: ISO 8601, UTC."""

_PROPERTIES: Final = {
    "delta.checkpointInterval": str(CHECKPOINT_INTERVAL),
    # Time travel is a promise: nothing is forgotten unless `lake vacuum` is told to.
    "delta.logRetentionDuration": "interval 3650 days",
    "delta.deletedFileRetentionDuration": "interval 3650 days",
}
_ATTEMPTS: Final = 20
_LOST_ANSWERS: Final = 3


def create_tables(storage: Storage) -> None:
    """Make every table that is missing, upgrade older ones, refuse those that are not ours.

    Several processes may do this at once, and all of them find all tables afterwards.

    Raises:
        LakeStorageError: the storage cannot be written.
        LakeError: a table is newer than this code, has other columns, or a damaged log.
    """
    require_writable(storage)

    def ensure(expected: TableSchema) -> None:
        table = _load(storage, expected.name)
        if table is None:
            table = _create(storage, expected)
        if _checked(storage, expected.name, table) < SCHEMA_VERSION:
            _upgrade(storage, expected)

    # A folder answers in a millisecond; an object store makes each table wait for its requests.
    with ThreadPoolExecutor(1 if storage.is_local else len(TABLES)) as pool:
        list(pool.map(ensure, TABLES.values()))


def open_table(
    storage: Storage,
    table: str,
    *,
    version: int | None = None,
    timestamp: datetime | str | None = None,
) -> "DeltaTable":
    """A table as it is now, or as it was.

    A table of an older schema opens as it is: it lacks the columns that came later.

    Args:
        storage: of the lake.
        table: its name, one of `offline.schemas.TABLES`.
        version: as which version; the newest by default.
        timestamp: or as of when: ISO 8601 or a datetime, UTC unless it says otherwise.

    Raises:
        LakeError: no such table, version or time, and what there is instead; or a table that
            this code does not understand.
        LakeStorageError: the storage cannot be read.
    """
    if table not in TABLES:
        guess = get_close_matches(str(table), TABLES, n=1)
        hint = f"; did you mean {guess[0]!r}?" if guess else f"; tables are {', '.join(TABLES)}."
        raise LakeError(f"there is no table {table!r} in a lake{hint}")
    if version is not None and timestamp is not None:
        raise LakeError(f"{table}: give a version or a timestamp, not both.")
    if version is not None and (not isinstance(version, int) or version < 0):
        raise LakeError(f"version {version!r} of {table} is no version; they count from 0.")
    if version is not None and not has_commit(storage, table, version):
        _refuse_unknown_version(storage, table, version)
    found = _existing(storage, table, version)
    if timestamp is not None:
        at = version_at(storage, table, timestamp, latest=found.version())
        found = _existing(storage, table, at)
    _checked(storage, table, found)
    return found


def lacks(storage: Storage, table: str) -> bool:
    """Whether a lake is older than a table of `LATER`: that is no damage, it has no rows.

    Raises:
        LakeStorageError: the storage cannot be read.
    """
    if table not in LATER:
        return False
    logs = [f"{name}/_delta_log" for name in (table, LEDGER.name)]
    try:
        own, ledger = storage.filesystem().get_file_info(logs)
    except (OSError, pa.ArrowException) as error:
        raise explain(error, storage, f"looking for {table}") from None
    return bool(own.type == fs.FileType.NotFound != ledger.type)


def commit_conflict(error: BaseException) -> bool:
    """Whether another process's commit came first, so that the same may succeed when repeated."""
    from deltalake.exceptions import CommitFailedError

    return isinstance(error, CommitFailedError)


def set_property(storage: Storage, table: str, key: str, value: str) -> None:
    """Put a property of a table, beside whatever other processes put at the same time.

    Raises:
        LakeBusyError: others commit faster than this process can.
    """
    _alter(
        storage,
        table,
        done=lambda found: found.metadata().configuration.get(key) == value,
        change=lambda found: found.alter.set_table_properties(
            {key: value}, raise_if_not_exists=False
        ),
    )


def add_missing_columns(table: "DeltaTable", expected: TableSchema) -> None:
    """The upgrade for new nullable columns: adds those of `expected` that the table lacks."""
    from deltalake import Field, Schema

    there = set(_columns(table))
    missing = [f for f in expected.schema if f.name not in there]
    if missing:
        fields: list[Field] = Schema.from_arrow(pa.schema(missing)).fields
        table.alter.add_columns(fields)


UPGRADES: Final[dict[int, Upgrade]] = {1: add_missing_columns}
"""By schema version: what brings a table from it to the next, safe to run twice.

It may be killed halfway, and then runs again; `add_missing_columns` is the usual one. Columns
are only ever added, nullable: old data files are never rewritten. 2 has `epsilon` and
`noise_scale` in `steps`.
"""


def schema_diff(table: "DeltaTable", expected: TableSchema, *, older: bool = False) -> list[str]:
    """How a table's columns and partitions differ from what they should be; empty if not at all.

    Args:
        table: an open table.
        expected: its schema of this code.
        older: the table is of an older schema version, so columns may be lacking.
    """
    there, wanted = _columns(table), {f.name: f.type for f in expected.schema}
    lost = [] if older else [f"- {n}: {wanted[n]}" for n in wanted if n not in there]
    foreign = [f"+ {n}: {there[n]}" for n in there if n not in wanted]
    changed = [
        f"~ {n}: {there[n]}, expected {wanted[n]}"
        for n in wanted
        if n in there and there[n] != wanted[n]
    ]
    partitions = tuple(table.metadata().partition_columns)
    if partitions != expected.partition_by:
        changed.append(f"~ partitions: {list(partitions)}, expected {list(expected.partition_by)}")
    return [*lost, *foreign, *changed]


def _columns(table: "DeltaTable") -> dict[str, pa.DataType]:
    return {f.name: f.type for f in pa.schema(table.schema().to_arrow())}


def _load(storage: Storage, name: str, version: int | None = None) -> "DeltaTable | None":
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError, TableNotFoundError

    options = storage.delta_options
    try:
        table = asking(
            storage,
            lambda: DeltaTable(storage.table_uri(name), version=version, storage_options=options),
        )
    except TableNotFoundError:
        return None
    except (DeltaError, OSError) as error:
        raise explain(error, storage, f"opening {name}") from None
    except BaseException as error:
        # What delta-rs raises over a damaged log checkpoint is no Exception.
        if type(error).__name__ != "PanicException":
            raise
        raise LakeError(
            f"opening {name} at {storage.uri}: its log cannot be read ({error}); "
            "`millrace lake doctor` shows what is left."
        ) from None
    refuse_empty_commits(storage, name, table.version())
    return table


def _existing(storage: Storage, name: str, version: int | None = None) -> "DeltaTable":
    table = _load(storage, name, version)
    if table is None:
        raise LakeError(
            f"{storage.uri} has no table {name!r}; train with trace on, or give --storage."
        )
    return table


def _refuse_unknown_version(storage: Storage, name: str, version: int) -> None:
    """Before delta-rs is asked for it: it looks for 10**18 commits without end."""
    last = _existing(storage, name).version()
    first = first_version(storage, name)
    if not first <= version <= last:
        raise LakeError(f"version {version} of {name} does not exist; it has {first} to {last}.")


def _create(storage: Storage, expected: TableSchema) -> "DeltaTable":
    from deltalake import CommitProperties, DeltaTable
    from deltalake.exceptions import DeltaError

    data = files_without_log(storage, expected.name)
    if data and _load(storage, expected.name) is None:
        raise LakeError(
            f"{expected.name} at {storage.uri} has files ({data[0]}) but no commit log. Restore "
            "its _delta_log, or move the folder away to begin anew."
        )
    properties = _PROPERTIES | {SCHEMA_VERSION_PROPERTY: str(SCHEMA_VERSION)}

    def create() -> None:
        DeltaTable.create(
            storage.table_uri(expected.name),
            expected.schema,
            mode="ignore",
            partition_by=list(expected.partition_by),
            name=expected.name,
            configuration=properties,
            storage_options=storage.delta_options,
            # deltalake knows none of our keys.
            raise_if_key_not_exists=False,
            # A retry commits a second creation over the first, and over properties put since.
            commit_properties=CommitProperties(max_commit_retries=0),
        )

    try:
        asking(storage, create)
    except (DeltaError, OSError) as error:
        # Another process may have made it between the look and the commit.
        table = _load(storage, expected.name)
        if table is None:
            raise explain(error, storage, f"creating {expected.name}") from None
        return table
    return _existing(storage, expected.name)


def _checked(storage: Storage, name: str, table: "DeltaTable") -> int:
    """The table's schema version; refuses what this code would misread or spoil."""
    properties: Mapping[str, Any] = table.metadata().configuration
    where = f"table {name!r} at {storage.uri}"
    stated = properties.get(SCHEMA_VERSION_PROPERTY)
    if stated is None:
        raise LakeError(
            f"{where} is not Millrace's: it has no property {SCHEMA_VERSION_PROPERTY}. Give "
            "another --storage."
        )
    if not str(stated).isdecimal() or int(stated) < 1:
        raise LakeError(f"{where} has schema version {stated!r}, which is none.")
    version = int(stated)
    diff = schema_diff(table, TABLES[name], older=version < SCHEMA_VERSION)
    shown = "".join(f"\n  {line}" for line in diff)
    if version > SCHEMA_VERSION:
        raise LakeError(
            f"{where} has schema version {version}; this Millrace knows up to {SCHEMA_VERSION}. "
            f"Update Millrace.{shown}"
        )
    if diff:
        raise LakeError(
            f"{where} has other columns than schema version {version} "
            f"(- lost, + foreign, ~ changed):{shown}\nRestore it, or give another --storage."
        )
    return version


def _upgrade(storage: Storage, expected: TableSchema) -> None:
    def stated(table: "DeltaTable") -> int:
        return int(table.metadata().configuration[SCHEMA_VERSION_PROPERTY])

    def step(table: "DeltaTable") -> None:
        version = stated(table)
        UPGRADES[version](table, expected)
        table.alter.set_table_properties(
            {SCHEMA_VERSION_PROPERTY: str(version + 1)}, raise_if_not_exists=False
        )

    for _ in range(SCHEMA_VERSION):
        _alter(storage, expected.name, done=lambda t: stated(t) >= SCHEMA_VERSION, change=step)
    _checked(storage, expected.name, _existing(storage, expected.name))


def _alter(
    storage: Storage,
    name: str,
    *,
    done: "Callable[[DeltaTable], bool]",
    change: "Callable[[DeltaTable], None]",
) -> None:
    """Change a table's metadata unless that is done; from the start again after a conflict."""
    from deltalake.exceptions import DeltaError

    for attempt in range(_ATTEMPTS):
        table = _existing(storage, name)
        if done(table):
            return
        try:
            return change(table)
        except (DeltaError, OSError) as error:
            lost = not storage.is_local and isinstance(error, OSError) and not is_hopeless(error)
            if not commit_conflict(error) and not (lost and attempt < _LOST_ANSWERS):
                raise explain(error, storage, f"altering {name}") from None
        time.sleep(random.uniform(0, 0.02 * (attempt + 1)))
    raise LakeBusyError(
        f"{name} at {storage.uri} could not be altered in {_ATTEMPTS} attempts: others commit all "
        "the time. Try again."
    )
