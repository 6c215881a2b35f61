"""CSV in batches of numbers; a cell or a line that cannot be read is named, not the whole file."""

import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from offline.errors import ImportDataError
from offline.exchange import BadRecord, Fault

Array = npt.NDArray[Any]

_BLOCK_BYTES: Final = 4 << 20
_INTEGER: Final = r"^(\+?\d+|-0*[1-9]\d*)$"
"""Not -0, which only a float is."""
_NUMBER: Final = r"^([+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(nan|inf|infinity))$"
_FLAG: Final = r"^(true|false)$"


@dataclass(frozen=True)
class CsvBatch:
    """Some lines of a file; every column is text.

    Attributes:
        numbers: [B] line of each row; the header is line 1.
        bad: lines with too many or too few fields.
        gaps: where such a line was missing: the row after it, and the line's number.
    """

    table: pa.RecordBatch
    numbers: Array
    bad: tuple[BadRecord, ...]
    gaps: tuple[tuple[int, int], ...]


class _Odd:
    """Lines that Arrow's reader, on its own thread, could not split into the header's fields."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.lines: dict[int, BadRecord] = {}
        self.lock = threading.Lock()

    def __call__(self, row: Any) -> str:
        what = f"the line has {row.actual_columns} fields, the header {row.expected_columns}"
        with self.lock:
            self.lines[row.number] = BadRecord(self.file, row.number, what, row.text[:200], "line")
        return "skip"

    def take(self, last: int) -> list[BadRecord]:
        with self.lock:
            return [self.lines.pop(n) for n in sorted(self.lines) if n <= last]

    def numbers(self, first: int, count: int) -> Array:
        """The lines of the next `count` good rows."""
        with self.lock:
            odd = sorted(n for n in self.lines if n >= first)
        numbers = np.arange(first, first + count)
        for line in odd:
            numbers[numbers >= line] += 1
        return numbers


def csv_batches(file: str) -> Iterator[CsvBatch]:
    """The file, a few MiB at a time.

    Raises:
        ImportDataError: it is no CSV, or has no header.
    """
    from pyarrow import csv

    odd = _Odd(file)
    reading = csv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES)
    parsing = csv.ParseOptions(invalid_row_handler=odd, newlines_in_values=False)
    try:
        names = _header(file, csv)
        # Types found in a file's first block fail at "1.5" in its second; text never does.
        converting = csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            strings_can_be_null=True,
            null_values=[""],
        )
        reader = csv.open_csv(file, reading, parsing, converting)
        line = 2
        with reader:
            for block in reader:
                batch = _batch(block, odd, line)
                line = int(batch.numbers[-1]) + 1 if len(batch.numbers) else line
                yield batch
        left = odd.take(2**62)
        if left:
            nothing = pa.RecordBatch.from_pylist([], schema=reader.schema)
            yield CsvBatch(nothing, np.zeros(0, np.int64), tuple(left), ())
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ImportDataError(f"{file} is no CSV that can be read: {error}") from error


def _header(file: str, csv: Any) -> list[str]:
    reading = csv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES)
    skipping = csv.ParseOptions(invalid_row_handler=lambda _: "skip")
    with csv.open_csv(file, reading, skipping) as reader:
        names: list[str] = reader.schema.names
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ImportDataError(f"{file} has two columns {sorted(twice)[0]!r}; name them apart")
    return names


def _batch(block: pa.RecordBatch, odd: _Odd, first: int) -> CsvBatch:
    numbers = odd.numbers(first, len(block))
    bad = odd.take(int(numbers[-1]) + 1 if len(numbers) else first)
    gaps = tuple((int(np.searchsorted(numbers, record.row)), record.row) for record in bad)
    return CsvBatch(block, numbers, tuple(bad), gaps)


def with_numbers(
    batch: pa.RecordBatch, columns: Collection[str]
) -> tuple[pa.RecordBatch, list[Fault]]:
    """Those columns as int64, float64 or bool; a cell that is none of them is a fault, and 0."""
    arrays, faults = [], []
    for name in batch.schema.names:
        array = batch.column(name)
        if name in columns:
            array, bad = _numbers(pc.utf8_trim_whitespace(array))
            faults += [
                Fault(row, "wrong_dtype", f"{text[:40]!r} in column {name!r} is no number")
                for row, text in bad
            ]
        arrays.append(array)
    return pa.RecordBatch.from_arrays(arrays, names=batch.schema.names), faults


def _numbers(text: pa.Array) -> tuple[pa.Array, list[tuple[int, str]]]:
    if pc.all(pc.match_substring_regex(text, _INTEGER), min_count=0).as_py():
        try:
            return text.cast(pa.int64()), []
        except pa.ArrowInvalid:
            return text.cast(pa.float64()), []  # beyond int64
    try:
        return text.cast(pa.float64()), []
    except pa.ArrowInvalid:
        pass
    lowered = pc.utf8_lower(text)
    if pc.all(pc.match_substring_regex(lowered, _FLAG), min_count=0).as_py():
        return pc.equal(lowered, "true"), []
    is_number = pc.fill_null(pc.match_substring_regex(lowered, _NUMBER), True)
    rows = np.flatnonzero(~is_number.to_numpy(zero_copy_only=False))
    bad = [(int(row), text[int(row)].as_py()) for row in rows]
    return pc.if_else(is_number, text, "0").cast(pa.float64()), bad
