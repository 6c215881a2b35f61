"""SQL over a lake: DuckDB, shut in so that a query can read the lake and do nothing else."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from offline.errors import QueryError
from offline.schemas import TABLES
from offline.selection import Selection, select
from offline.sql_errors import Asked, explained, no_table
from offline.storage import Storage
from offline.tables import lacks
from offline.views import SOURCES, SQL_NAMES, VIEWS, needed

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

Parameters = Mapping[str, Any] | Sequence[Any] | None

_UNITS: Final = {
    unit: base**power
    for base, letters in ((1000, ("KB", "MB", "GB", "TB")), (1024, ("KiB", "MiB", "GiB", "TiB")))
    for power, unit in enumerate(letters, start=1)
}
_MIN_MEMORY: Final = 32 * 1024**2
_BATCH_ROWS: Final = 65_536
_INTERRUPT_PERIOD_S: Final = 0.05

_LEADING: Final = re.compile(r"(\s|--[^\n]*(\n|$)|/\*.*?\*/)*", re.DOTALL)
_EXPLAIN: Final = re.compile(r"explain(\s+analyze|\s*\([^()]*\))*\s+", re.IGNORECASE)
_SHUT: Final = ("python_enable_replacements", "enable_external_access")
"""Settings that are off while there is a query, also while it is only parsed."""
# A catalogue lists what is registered, so everything has to be.
_CATALOGUE: Final = re.compile(
    r"\b(show|information_schema|pg_\w+|duckdb_\w+|sqlite_\w+)\b", re.IGNORECASE
)


@dataclass(frozen=True)
class Limits:
    """What a query may take.

    Attributes:
        memory: of the engine before it spills, and of the answer; as 512MiB or 2GB.
        time_limit_s: seconds from its start to its last row.
        temp_dir: where it spills; None is the system's folder for temporary files.
    """

    memory: str = "1GiB"
    time_limit_s: float = 60.0
    temp_dir: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if self.memory_bytes < _MIN_MEMORY:
            raise QueryError(f"memory is {self.memory}; DuckDB needs 32MiB at least.")
        if not self.time_limit_s > 0:
            raise QueryError(f"time limit is {self.time_limit_s} s; it must be above 0.")
        if self.temp_dir is not None and not Path(self.temp_dir).is_dir():
            raise QueryError(f"there is no folder {os.fspath(self.temp_dir)!r} to spill to.")

    @property
    def memory_bytes(self) -> int:
        """`memory` as a number."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kKMGT]i?B)", str(self.memory).strip())
        unit = "" if found is None else found.group(2).replace("k", "K")
        if found is None or unit not in _UNITS:
            raise QueryError(f"memory is {self.memory!r}; write it as 512MiB or 2GB.")
        return int(float(found.group(1)) * _UNITS[unit])


def run_query(
    storage: Storage,
    query: str,
    parameters: Parameters = None,
    *,
    versions: Mapping[str, int] | None = None,
    limits: Limits | None = None,
) -> pa.Table:
    """The answer to one query over the newest commits; see `offline.lake.Lake.sql`.

    Raises:
        QueryError: the query is refused, wrong, or needs more than its limits.
        LakeError: a table cannot be opened, or a data file is damaged.
    """
    limits = limits or Limits()
    pinned = _checked_versions(versions or {})
    given = _checked_parameters(parameters)
    sources, views = needed(_names(_statement(query)))
    absent = [n for n in sources if SOURCES[n] not in pinned and lacks(storage, SOURCES[n])]
    opened = {
        name: select(storage, SOURCES[name], version=pinned.get(SOURCES[name]))
        for name in sources
        if name not in absent
    }
    with _shut_in(opened, views, limits, absent=absent) as connection:
        return _within(limits, Asked(query, given, connection, opened, tuple(views)))


def _engine_errors() -> tuple[type[BaseException], ...]:
    import duckdb

    # Arrow's are what a streamed answer raises.
    return (duckdb.Error, OSError, pa.ArrowException)


def _checked_versions(versions: Mapping[str, int]) -> Mapping[str, int]:
    for name in versions:
        if name in TABLES:
            continue
        if name in VIEWS:
            reads = ", ".join(SOURCES[source] for source in VIEWS[name].reads)
            raise QueryError(f"{name} is a view and has no versions; give that of {reads}.")
        raise QueryError(f"versions: {no_table(name, list(TABLES))}")
    return versions


def _statement(query: str) -> str:
    """The query, if it is one statement that reads."""
    import duckdb

    if not isinstance(query, str) or not query.strip():
        raise QueryError("the query is empty; give one SELECT.")
    kinds = duckdb.StatementType
    with duckdb.connect(":memory:") as connection:
        _shut(connection)
        try:
            found = connection.extract_statements(query)
            if len(found) == 1 and found[0].type == kinds.EXPLAIN:
                found = connection.extract_statements(_explained_part(query))
        except duckdb.Error as error:
            raise QueryError(f"the query is wrong: {error}") from None
    if len(found) != 1:
        raise QueryError(f"the query has {len(found)} statements; give one SELECT.")
    kind = found[0].type
    # MULTI is what PIVOT without a list of values is taken apart into.
    if kind not in (kinds.SELECT, kinds.MULTI):
        raise QueryError(
            f"{kind.name} is refused: a query can only read the lake. Write SELECT, WITH, FROM, "
            "DESCRIBE, SHOW TABLES, or EXPLAIN of such."
        )
    return query


def _explained_part(query: str) -> str:
    start = _LEADING.match(query)
    rest = query[start.end() :] if start else query
    explain = _EXPLAIN.match(rest)
    if explain is None:
        raise QueryError("only EXPLAIN and EXPLAIN ANALYZE of a SELECT are understood.")
    return rest[explain.end() :]


def _names(query: str) -> set[str]:
    """The tables that a query names; all of them where that cannot be told."""
    import duckdb

    if _CATALOGUE.search(query):
        return set(SQL_NAMES)
    # Of a connection that has no tables: names that it knows are left out.
    with duckdb.connect(":memory:") as connection:
        _shut(connection)
        try:
            return connection.get_table_names(query)
        except duckdb.Error:
            words = set(re.findall(r"\w+", query.lower()))
            return words.intersection(SQL_NAMES)


@contextmanager
def _shut_in(
    opened: Mapping[str, Selection], views: Sequence[str], limits: Limits, *, absent: Sequence[str]
) -> "Iterator[DuckDBPyConnection]":
    """A connection that has the tables and can read and write nothing else."""
    import duckdb

    folder = tempfile.mkdtemp(prefix="millrace-sql-", dir=limits.temp_dir)
    settings: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": f"{limits.memory_bytes}B",
        "temp_directory": folder,
    }
    try:
        with duckdb.connect(":memory:", config=settings) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            for name, selection in opened.items():
                connection.register(name, selection.dataset())
            for name in absent:
                connection.register(name, TABLES[SOURCES[name]].schema.empty_table())
            for name in views:
                connection.execute(f"CREATE VIEW {name} AS {VIEWS[name].text}")
            _shut(connection)
            # An INSERT inside a WITH or an EXPLAIN ANALYZE is a SELECT to the parser.
            connection.execute("BEGIN TRANSACTION READ ONLY")
            yield connection
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _shut(connection: "DuckDBPyConnection") -> None:
    for setting in _SHUT:
        connection.execute(f"SET {setting} = false")
    connection.execute("SET lock_configuration = true")


def _within(limits: Limits, asked: Asked) -> pa.Table:
    """The answer, from a thread of its own: the engine's calls let neither time nor Ctrl-C in."""
    with ThreadPoolExecutor(1, thread_name_prefix="sql") as pool:
        answer = pool.submit(_answer, asked, limits)
        try:
            wait([answer], limits.time_limit_s)
            is_late = not answer.done()
        finally:
            # Again and again: an interrupt that comes between two steps of the engine is lost.
            while not answer.done():
                asked.connection.interrupt()
                wait([answer], _INTERRUPT_PERIOD_S)
    try:
        return answer.result()
    except _engine_errors() as error:
        if is_late:
            raise QueryError(
                f"the query took longer than {limits.time_limit_s:g} s and was interrupted; "
                "narrow it, or raise the limit: time_limit_s=, --time-limit."
            ) from None
        raise explained(error, asked, memory=limits.memory) from None


def _answer(asked: Asked, limits: Limits) -> pa.Table:
    relation = asked.connection.sql(asked.query, params=asked.parameters)
    reader = relation.to_arrow_reader(_BATCH_ROWS)
    held: list[pa.RecordBatch] = []
    size = 0
    for batch in reader:
        held.append(batch)
        size += batch.nbytes
        if size > limits.memory_bytes:
            raise QueryError(
                f"the answer takes more than {limits.memory}; aggregate, add a LIMIT, raise the "
                "limit (memory=, --memory), or read the rows with Lake.table(…).batches()."
            )
    table = pa.Table.from_batches(held, reader.schema)
    return table.rename_columns(_unique(table.column_names))


def _checked_parameters(parameters: Parameters) -> Any:
    if parameters is None:
        return None
    if isinstance(parameters, str) or not isinstance(parameters, Mapping | Sequence):
        raise QueryError(
            f"parameters is {parameters!r}; give a list for ? in the query, or a dict for $name."
        )
    return dict(parameters) if isinstance(parameters, Mapping) else list(parameters)


def _unique(names: Sequence[str]) -> list[str]:
    """Names of columns, each once: a second `a` becomes `a_1`."""
    found: list[str] = []
    for name in names:
        number, unique = 0, name
        while unique in found or (number and unique in names):
            number += 1
            unique = f"{name}_{number}"
        found.append(unique)
    return found
