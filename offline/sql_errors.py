"""What goes wrong with a query, in words: where in its text, and what there is instead."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final

from offline.errors import LakeError, QueryError
from offline.selection import Selection
from offline.views import SQL_NAMES, VIEWS

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_NO_TABLE: Final = re.compile(r'Table with name "?(.+?)"? does not exist!')
_NO_COLUMN: Final = re.compile(r"(column|field) .*not found|does not have a column", re.IGNORECASE)


@dataclass(frozen=True)
class Asked:
    """A query and what it runs on.

    Attributes:
        query: its text.
        parameters: a list, a dict, or None.
        connection: that has the tables.
        opened: the tables by their name in SQL.
        views: the views.
    """

    query: str
    parameters: Any
    connection: "DuckDBPyConnection"
    opened: Mapping[str, Selection]
    views: tuple[str, ...]


def explained(error: BaseException, asked: Asked, *, memory: str) -> QueryError | LakeError:
    """What an error of the engine means.

    Args:
        error: of DuckDB, or of Arrow while the answer streamed.
        asked: what was asked.
        memory: the limit, as the caller wrote it.
    """
    import duckdb

    text = _with_position(error, asked)
    if isinstance(error, duckdb.OutOfMemoryException):
        return QueryError(
            f"the query needs more than {memory} of memory, though it spills to disk; narrow it, "
            f"or raise the limit: memory=, --memory. ({text.splitlines()[0]})"
        )
    if isinstance(error, duckdb.PermissionException):
        return QueryError(f"refused: a query can read the lake's tables only. {text}")
    missing = _NO_TABLE.search(text)
    if isinstance(error, duckdb.CatalogException) and missing:
        where = "\n".join(line for line in text.splitlines()[1:] if "Did you mean" not in line)
        return QueryError(f"{no_table(missing.group(1), SQL_NAMES)}{where.rstrip()}")
    if isinstance(error, duckdb.BinderException) and _NO_COLUMN.search(text):
        return QueryError(f"the query is wrong: {text}\n{_columns(asked)}")
    for selection in asked.opened.values() if _is_of_reading(error) else ():
        damaged = selection.damage()
        if damaged is not None:
            return damaged
    return QueryError(f"the query is wrong: {text}")


def no_table(name: str, there: Sequence[str]) -> str:
    """What a message says of a table that does not exist: the nearest one, or all."""
    close = get_close_matches(name.lower(), there, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(there)}."
    return f"there is no table {name!r}; {hint}"


def _with_position(error: BaseException, asked: Asked) -> str:
    """The error's text with the line it is about, which a relation's errors lack."""
    import duckdb

    if not isinstance(error, duckdb.CatalogException | duckdb.BinderException):
        return str(error)
    try:
        # Fails as it did before, before it reads anything.
        asked.connection.execute(asked.query, asked.parameters)
    except duckdb.Error as again:
        return str(again) if type(again) is type(error) else str(error)
    return str(error)


def _is_of_reading(error: BaseException) -> bool:
    import duckdb

    own = (duckdb.InvalidInputException, duckdb.IOException, duckdb.InterruptException)
    return not isinstance(error, duckdb.Error) or isinstance(error, own)


def _columns(asked: Asked) -> str:
    """The columns of what the query names, a line each."""
    import duckdb

    found = {name: selection.schema.names for name, selection in asked.opened.items()}
    with duckdb.connect(":memory:") as scratch:
        for name, selection in asked.opened.items():
            scratch.register(name, selection.schema.empty_table())
        for view in asked.views:
            found[view] = scratch.sql(VIEWS[view].text).columns
    return "\n".join(f"{name} has {', '.join(names)}." for name, names in found.items())
