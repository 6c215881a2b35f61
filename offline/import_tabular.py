"""CSV and parquet whose columns a mapping names: one row is one step."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from offline.errors import ImportDataError
from offline.exchange import Fault, Record, Spaces
from offline.import_arrow import Column, read_column
from offline.import_csv import csv_batches, with_numbers
from offline.import_rows import RowGrouper, Rows, ends_of
from offline.import_spaces import spaces_beside
from offline.tabular_columns import DEFAULTS, TREES, find_columns, flat_columns
from rl_ops.tree import Tree

Array = npt.NDArray[Any]

_BATCH_ROWS: Final = 16_384
_OPTIONAL: Final = frozenset({"logp", "seed"})
_REQUIRED: Final = ("obs", "action", "reward")


def parse_mapping(words: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """`NAME=COLUMN,COLUMN...` words as a mapping; an empty right side leaves the name out.

    Raises:
        ImportDataError: a word is not of that form, or its name is unknown or there twice.
    """
    mapping: dict[str, tuple[str, ...]] = {}
    for word in words:
        name, separator, columns = word.partition("=")
        if not separator:
            raise ImportDataError(f"--map {word!r}: expected NAME=COLUMN, as reward=r")
        if name not in DEFAULTS:
            close = difflib.get_close_matches(name, DEFAULTS, n=1, cutoff=0.5)
            meant = f"; did you mean {close[0]}?" if close else ""
            raise ImportDataError(
                f"--map {word!r}: there is no {name!r}{meant} Names are {', '.join(DEFAULTS)}."
            )
        if name in mapping:
            raise ImportDataError(f"--map {name}: given twice; separate its columns by commas")
        mapping[name] = tuple(column for column in columns.split(",") if column)
    return mapping


@dataclass
class TabularSource:
    """CSV or parquet files as episodes.

    Args:
        kind: "csv" or "parquet".
        files: read in this order.
        mapping: what is in which columns; names that are not there are found by their names.
    """

    kind: str
    files: tuple[str, ...]
    mapping: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ignored: set[str] = field(default_factory=set)
    notes: set[str] = field(default_factory=set)

    @property
    def untyped(self) -> bool:
        return self.kind == "csv"

    def stated_spaces(self) -> Spaces | None:
        """The spaces of spaces.json beside the files."""
        return spaces_beside(self.files)

    def records(self, spaces: Spaces | None) -> Iterator[Record]:
        """See Source."""
        grouper = RowGrouper()
        for file in self.files:
            if self.kind == "csv":
                yield from self._csv(file, spaces, grouper)
            else:
                yield from self._parquet(file, spaces, grouper)
        yield from grouper.finish()

    def _csv(self, file: str, spaces: Spaces | None, grouper: RowGrouper) -> Iterator[Record]:
        for batch in csv_batches(file):
            yield from batch.bad
            names = self._columns(file, batch.table.schema.names, spaces)
            ids = names.get("episode_id", ())
            wanted = {column for columns in names.values() for column in columns} - set(ids)
            table, faults = with_numbers(batch.table, wanted)
            rows = self._rows(file, table, batch.numbers, names, spaces)
            whole = replace(rows, faults=(*rows.faults, *faults, *_lost(rows, batch.gaps)))
            yield from grouper.add(whole)

    def _parquet(self, file: str, spaces: Spaces | None, grouper: RowGrouper) -> Iterator[Record]:
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(file) as reader:
                names = self._columns(file, reader.schema_arrow.names, spaces)
                wanted = sorted({column for columns in names.values() for column in columns})
                first = 0
                for batch in reader.iter_batches(_BATCH_ROWS, columns=wanted):
                    numbers = np.arange(first, first + len(batch))
                    first += len(batch)
                    yield from grouper.add(self._rows(file, batch, numbers, names, spaces))
        except (pa.ArrowException, OSError) as error:
            raise ImportDataError(f"{file} is no parquet that can be read: {error}") from error

    def _columns(
        self, file: str, there: Sequence[str], spaces: Spaces | None
    ) -> dict[str, tuple[str, ...]]:
        names = find_columns(there, self.mapping, spaces, where=file)
        missing = [name for name in _REQUIRED if name not in names]
        if missing:
            raise ImportDataError(
                f"{file} has no column for {', '.join(missing)}; name it, as --map "
                f"{missing[0]}=COLUMN. Its columns are {', '.join(there)}"
            )
        if not {"episode_id", "terminated", "truncated"} & names.keys():
            raise ImportDataError(
                f"{file} has neither episode ids nor ends, so that its episodes cannot be told "
                f"apart; name them by --map episode_id=COLUMN or --map terminated=COLUMN. Its "
                f"columns are {', '.join(there)}"
            )
        self.ignored |= set(there) - {column for columns in names.values() for column in columns}
        return names

    def _rows(
        self,
        file: str,
        batch: pa.RecordBatch,
        numbers: Array,
        names: Mapping[str, tuple[str, ...]],
        spaces: Spaces | None,
    ) -> Rows:
        read = {
            name: _read(batch, name, columns, spaces)
            for name, columns in names.items()
            if name != "episode_id"
        }
        faults = [fault for name, column in read.items() for fault in _faults(name, column)]
        trees = {name: column.tree for name, column in read.items()}
        final = read.get("final_obs")
        trees.pop("final_obs", None)
        for name in _OPTIONAL & trees.keys():
            trees[name] = np.where(read[name].valid, trees[name], np.nan)
        ids = episode_names(batch.column(names["episode_id"][0])) if "episode_id" in names else None
        return Rows(
            file=file,
            numbers=numbers,
            episode_ids=ids,
            final_obs=None if final is None else (final.tree, final.valid),
            faults=tuple(faults),
            unit="line" if self.kind == "csv" else "row",
            **trees,
        )


def episode_names(column: pa.Array) -> Array:
    """Episode ids as strings, whatever they are; null is empty, which the contract refuses."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.dictionary_decode()
    if pa.types.is_binary(column.type) or pa.types.is_nested(column.type):
        raise ImportDataError(f"episode ids are {column.type}; expected text or whole numbers")
    if pa.types.is_floating(column.type):
        values = [_whole(value) for value in column.to_pylist()]
    else:
        values = ["" if value is None else str(value) for value in column.to_pylist()]
    names = np.empty(len(values), dtype=object)
    names[:] = values
    return names


def _whole(value: float | None) -> str:
    if value is None or value != value:
        return ""
    return str(int(value)) if value.is_integer() else str(value)


def _read(
    batch: pa.RecordBatch, name: str, columns: tuple[str, ...], spaces: Spaces | None
) -> Column:
    space = None
    if spaces is not None and name in TREES:
        space = spaces.action if name == "action" else spaces.obs
    is_flat = space is not None and hasattr(space, "spaces")
    if len(columns) == 1 and (not is_flat or _is_nested(batch, columns[0])):
        return _one(batch, columns[0], space)
    parts = [_one(batch, column, None) for column in columns]
    arrays = [np.asarray(part.tree) for part in parts]
    for column, array in zip(columns, arrays, strict=True):
        if array.ndim != 1:
            raise ImportDataError(f"column {column!r} holds lists; map it alone: {name}={column}")
    faults = tuple(fault for part in parts for fault in part.faults)
    valid = np.logical_and.reduce([part.valid for part in parts])
    return Column(_assembled(arrays, space, name), valid, faults)


def _assembled(arrays: list[Array], space: Any, name: str) -> Tree:
    """Columns of single numbers as the space's tree, in its order."""
    if space is None:
        return np.stack(arrays, axis=1)
    return flat_columns(arrays, space, name)


def _one(batch: pa.RecordBatch, column: str, space: Any) -> Column:
    index = batch.schema.get_field_index(column)
    return read_column(batch.column(index), batch.schema.field(index), space, column)


def _is_nested(batch: pa.RecordBatch, column: str) -> bool:
    return bool(pa.types.is_struct(batch.schema.field(column).type))


def _faults(name: str, column: Column) -> tuple[Fault, ...]:
    if name in _OPTIONAL or name == "final_obs":
        return column.faults
    return column.required(name).faults


def _lost(rows: Rows, gaps: tuple[tuple[int, int], ...]) -> Iterator[Fault]:
    """Whose a lost line was is not known: the episode's after it, or that before it if open."""
    ends = ends_of(rows)
    for after, line in gaps:
        what = f"line {line} beside it could not be read"
        if after > 0 and not ends[after - 1]:
            yield Fault(after - 1, "bad_record", what)
        if after < len(rows):
            yield Fault(after, "bad_record", what)
