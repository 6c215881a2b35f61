"""Data files: names, encodings, statistics and checksums; what does not fit is refused."""

import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from hypothesis import given, settings
from hypothesis import strategies as st

from offline import parts as parts_module
from offline import schemas as s
from offline.conform import conform
from offline.errors import LakeError, LakeStorageError
from offline.part_stats import delta_stats
from offline.parts import Part, partition_folder, write_parts
from offline.storage import Storage
from offline.writer import LakeWriter
from rl_ops import columns as c
from tests.offline.writer_kit import batch_of, new_lake

US = pa.timestamp("us", "UTC")
ODD_NAMES = ["a b", "a/b", "ü", "a%b", "a=b", "~.-_", "..", "a\\b", "x'y", '{a}!*()&@$,;"|<>^`[]?#']


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.at(tmp_path)


def steps(rows: int = 3, run_id: str = "run") -> pa.Table:
    table = pa.concat_tables([batch_of([f], run_id)[s.STEPS.name] for f in range(-(-rows // 5))])
    return table.slice(0, rows)


def written(storage: Storage, rows: pa.Table, **changes: Any) -> list[Part]:
    return list(write_parts(storage, s.STEPS, rows, **{"stem": "w-1", **changes}))


def file_of(storage: Storage, part: Part) -> Path:
    return Path(storage.uri, s.STEPS.name, part.path)


def test_a_part_is_a_file_without_its_partition_column(storage: Storage) -> None:
    rows = steps(7)
    (part,) = written(storage, rows)
    assert part.path == "run_id=run/w-1.parquet"
    assert part.partition == {"run_id": "run"}
    assert (part.rows, part.run_id, part.session) == (7, "run", 0)
    there = pq.ParquetFile(file_of(storage, part)).read()
    assert there.equals(rows.drop_columns(["run_id"]))


def test_checksum_and_size_are_the_files(storage: Storage) -> None:
    (part,) = written(storage, steps(7))
    content = file_of(storage, part).read_bytes()
    assert part.size == len(content)
    assert part.sha256 == hashlib.sha256(content).hexdigest()


def test_each_run_has_a_part_with_its_rows_in_order(storage: Storage) -> None:
    a, b = steps(5, "a"), steps(5, "b")
    mixed = pa.concat_tables([a.slice(0, 2), b.slice(0, 3), a.slice(2), b.slice(3)])
    first, second = written(storage, mixed)
    assert [first.run_id, second.run_id] == ["a", "b"]
    for part, rows in ((first, a), (second, b)):
        there = pq.ParquetFile(file_of(storage, part)).read()
        assert there.equals(rows.drop_columns(["run_id"]))


def test_no_rows_give_no_part(storage: Storage) -> None:
    assert written(storage, s.STEPS.schema.empty_table()) == []
    assert not Path(storage.uri, s.STEPS.name).exists()


def test_tables_without_partitions_have_files_in_their_folder(storage: Storage) -> None:
    rows = pa.Table.from_pylist([{c.RUN_ID: "a"}, {c.RUN_ID: "b"}], schema=s.RUNS.schema)
    (part,) = write_parts(storage, s.RUNS, rows, stem="w-1")
    assert (part.path, part.partition, part.run_id) == ("w-1.parquet", {}, None)
    assert pq.read_table(Path(storage.uri, s.RUNS.name, part.path)).equals(rows)


def test_folders_are_named_as_delta_rs_names_them(tmp_path: Path) -> None:
    write_deltalake(
        tmp_path, pa.table({"run_id": ODD_NAMES, "x": [1.0] * 10}), partition_by="run_id"
    )
    theirs = {path.name for path in tmp_path.iterdir() if path.name != "_delta_log"}
    assert {partition_folder("run_id", name) for name in ODD_NAMES} == theirs


@pytest.mark.parametrize("run_id", [None, "", "x" * 300])
def test_a_run_id_that_no_folder_can_have_is_refused(storage: Storage, run_id: str | None) -> None:
    rows = steps(3)
    column = pa.array(["run", run_id, "run"], pa.string())
    with pytest.raises(LakeError, match="cannot be a partition"):
        written(storage, rows.set_column(0, c.RUN_ID, column))
    assert list(Path(storage.uri).rglob("*.parquet")) == []


def test_floats_are_split_into_bytes_and_the_rest_is_a_dictionary(storage: Storage) -> None:
    (part,) = written(storage, steps(7))
    group = pq.read_metadata(file_of(storage, part)).row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    assert "BYTE_STREAM_SPLIT" in columns["obs.list.element"].encodings
    assert "RLE_DICTIONARY" in columns[c.EPISODE_ID].encodings
    assert {column.compression for column in columns.values()} == {"ZSTD"}
    assert columns[c.T].statistics.max == 4


def test_row_groups_are_bounded_by_rows_and_by_bytes(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def groups(rows: pa.Table) -> list[int]:
        (part,) = written(storage, rows)
        footer = pq.read_metadata(file_of(storage, part))
        return [footer.row_group(i).num_rows for i in range(footer.num_row_groups)]

    rows = steps(10)
    monkeypatch.setattr(parts_module, "GROUP_ROWS", 4)
    assert groups(rows) == [4, 4, 2]
    frames = pa.array([bytes(1000)] * 10, pa.binary())
    monkeypatch.setattr(parts_module, "GROUP_BYTES", 2500)
    position = rows.column_names.index(s.OBS_BYTES)
    assert groups(rows.set_column(position, s.OBS_BYTES, frames)) == [2] * 5


def test_an_unknown_codec_is_refused(storage: Storage) -> None:
    with pytest.raises(ValueError, match="gzip"):
        written(storage, steps(1), compression="gzip")


def test_what_fails_half_way_leaves_no_file(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("offline.files.os.fsync", full)
    monkeypatch.setattr("offline.files.sync_folder", lambda folder: None)
    with pytest.raises(LakeStorageError, match="disk is full"):
        written(storage, steps(3))
    assert [path for path in Path(storage.uri).rglob("*") if path.is_file()] == []


def stats_of(columns: dict[str, pa.Array], *, group_rows: int = 1000) -> dict[str, Any]:
    rows = pa.table(columns)
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, row_group_size=group_rows)
    footer = pq.read_metadata(pa.BufferReader(sink.getvalue()))
    found: dict[str, Any] = json.loads(delta_stats(footer, rows))
    return found


def test_statistics_of_each_kind_of_column() -> None:
    at = [datetime(2026, 1, 1, 1, 2, 3, 456789, UTC), None, datetime(2027, 1, 1, tzinfo=UTC)]
    stats = stats_of(
        {
            "int": pa.array([3, None, -1], pa.int32()),
            "flag": pa.array([True, False, None]),
            "text": pa.array(["b", "a", None]),
            "time": pa.array(at, US),
            "float": pa.array([1.5, -0.0, 0.0]),
            "single": pa.array([0.1, None, 0.1], pa.float32()),
            "nothing": pa.nulls(3, pa.int64()),
            "list": pa.array([[1.0], None, []]),
            "bytes": pa.array([b"a", None, None]),
        },
        group_rows=2,
    )
    assert stats == {
        "numRecords": 3,
        "minValues": {
            **{"int": -1, "flag": False, "text": "a", "time": "2026-01-01T01:02:03.456Z"},
            **{"float": -0.0, "single": float(np.float32(0.1))},
        },
        "maxValues": {
            **{"int": 3, "flag": True, "text": "b", "time": "2027-01-01T00:00:00.000Z"},
            **{"float": 1.5, "single": float(np.float32(0.1))},
        },
        "nullCount": {
            **{"int": 1, "flag": 1, "text": 1, "time": 1, "float": 0, "single": 1},
            **{"nothing": 3, "list": 1, "bytes": 2},
        },
    }


def test_nan_has_no_bounds_and_infinity_none_on_its_side() -> None:
    stats = stats_of({"nan": pa.array([1.0, float("nan")]), "high": pa.array([1.0, float("inf")])})
    assert stats["minValues"] == {"high": 1.0}
    assert stats["maxValues"] == {}


@given(st.lists(st.text(), min_size=1))
@settings(max_examples=150)
def test_bounds_of_strings_hold_and_are_short(values: list[str]) -> None:
    stats = stats_of({"text": pa.array(values)})
    low, high = stats["minValues"].get("text"), stats["maxValues"].get("text")
    for value in values:
        # Readers compare code points, or bytes of UTF-8, which is the same order.
        assert low is None or low <= value
        assert high is None or value <= high
        assert high is None or value.encode() <= high.encode()
    assert all(bound is None or len(bound) <= 32 for bound in (low, high))


@given(st.lists(st.integers(-(2**62), 2**62), min_size=1))
def test_bounds_of_times_hold(values: list[int]) -> None:
    stats = stats_of({"time": pa.array(values, US)})
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    for name, holds in (("minValues", int.__le__), ("maxValues", int.__ge__)):
        bound = stats[name].get("time")
        if bound is not None:
            microseconds = (datetime.fromisoformat(bound) - epoch) // timedelta(microseconds=1)
            assert all(holds(microseconds, value) for value in values)


def test_long_strings_of_the_last_character_have_no_upper_bound() -> None:
    stats = stats_of({"text": pa.array(["\U0010ffff" * 40]), "edge": pa.array(["\ud7ff" * 40])})
    assert stats["maxValues"] == {"edge": "\ud7ff" * 31 + "\ue000"}


def test_delta_rs_skips_files_by_our_statistics(tmp_path: Path) -> None:
    lake = new_lake(tmp_path / "lake")
    with LakeWriter(lake, "w") as writer:
        for fragment in range(3):
            writer.write(batch_of([fragment]))
    opened = DeltaTable(lake.table_uri(s.STEPS.name))
    files = opened.file_uris(file_pruning_predicate="fragment_id = 1")
    assert len(files) == 1


WANTED = pa.schema(
    [
        *(("i", pa.int32()), ("s", pa.string()), ("l", s.VALUES), ("b", pa.binary())),
        *(("u", US), ("d", pa.float64()), ("f", pa.float32())),
    ]
)
FITTING = {
    "i": pa.array([1], pa.int32()),
    "s": pa.array(["x"]),
    "l": pa.array([[1.0]]),
    "b": pa.array([b"x"]),
    "u": pa.array([5], US),
    "d": pa.array([0.1]),
    "f": pa.array([0.5], pa.float32()),
}


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        ("i", pa.array([7], pa.int64()), 7),
        ("s", pa.array(["x"]).dictionary_encode(), "x"),
        ("s", pa.array(["x"], pa.large_string()), "x"),
        ("l", pa.array([[1, 2]], pa.list_(pa.float32(), 2)), [1.0, 2.0]),
        ("b", pa.array([b"xy"], pa.binary(2)), b"xy"),
        ("u", pa.array([5000], pa.timestamp("ns", "Europe/Berlin")), None),
        ("d", pa.array([3], pa.int16()), 3.0),
        ("d", pa.array([0.5], pa.float32()), 0.5),
        ("f", pa.nulls(1), None),
    ],
)
def test_a_cast_that_loses_nothing_is_made(column: str, values: pa.Array, expected: Any) -> None:
    table = conform(pa.table({**FITTING, column: values}), WANTED, name="t")
    assert table.schema.equals(WANTED)
    if expected is not None:
        assert table[column][0].as_py() == expected


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("i", pa.array([1], pa.uint8())),
        ("i", pa.array([2**40])),
        ("d", pa.array([2**60 + 1])),
        ("d", pa.array([1.0], pa.float16())),
        ("f", pa.array([0.1])),
        ("l", pa.array([[1]], pa.list_(pa.uint64()))),
        ("u", pa.array([5], pa.timestamp("us"))),
        ("u", pa.array([5001], pa.timestamp("ns", "UTC"))),
        ("s", pa.array([1])),
        ("b", pa.ExtensionArray.from_storage(pa.uuid(), pa.array([bytes(16)], pa.binary(16)))),
    ],
)
def test_what_does_not_fit_is_refused_by_column(column: str, values: pa.Array) -> None:
    with pytest.raises(LakeError, match=rf"(~ {column}: |column '{column}')"):
        conform(pa.table({**FITTING, column: values}), WANTED, name="t")


def test_lost_and_foreign_columns_are_listed() -> None:
    table = pa.table({**FITTING, "extra": pa.array([1])}).drop_columns(["d"])
    with pytest.raises(LakeError, match=r"(?s)- d: double.*\+ extra: int64"):
        conform(table, WANTED, name="t")
