"""The tables' columns, and golden lakes of every schema version so far, read by today's code."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from offline.doctor import doctor
from offline.errors import LakeError
from offline.lake import Lake
from offline.schemas import LATER, LEDGER, SCHEMA_VERSION, SPACE, STEPS, TABLES
from offline.spaces import spaces_of
from offline.storage import Storage
from offline.tables import create_tables, open_table
from rl_ops import columns as c
from rl_ops.tree import Tree, tree_leaves
from tests.offline.make_golden import (
    COLUMNS,
    GOLDEN,
    ROWS,
    RUNS,
    SPACES,
    golden_rows,
    is_last,
    runs_of,
    trees,
)

VERSIONS = sorted(path.name for path in GOLDEN.iterdir())
DELTA_KEEPS = (
    *(pa.string(), pa.int32(), pa.int64(), pa.bool_(), pa.float32(), pa.float64(), pa.binary()),
    pa.timestamp("us", tz="UTC"),
)


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_a_table_has_columns_that_delta_gives_back_as_they_are(table: Any) -> None:
    assert len(set(table.schema.names)) == len(table.schema)
    assert set(table.partition_by) <= set(table.schema.names)
    for field in table.schema:
        is_list = pa.types.is_list(field.type)
        assert (field.type.value_type if is_list else field.type) in DELTA_KEEPS
        assert field.nullable


def test_tables_are_found_under_their_names() -> None:
    assert {name: table.name for name, table in TABLES.items()} == {name: name for name in TABLES}


def test_every_schema_version_has_its_golden_lake() -> None:
    assert [f"v{number}" for number in range(1, SCHEMA_VERSION + 1)] == VERSIONS


@pytest.fixture(params=VERSIONS)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """A copy, for opening a lake to write may upgrade it."""
    shutil.copytree(GOLDEN / request.param, tmp_path / "lake")
    return Storage.at(tmp_path / "lake")


def rows_of(storage: Storage, table: str, run: str | None = None) -> pa.Table:
    dataset = open_table(storage, table).to_pyarrow_dataset(filesystem=storage.filesystem(table))
    rows: pa.Table = dataset.to_table(filter=None if run is None else pc.field(c.RUN_ID) == run)
    return rows


def columns_of(storage: Storage) -> dict[str, dict[str, str]]:
    noted: dict[str, dict[str, str]] = json.loads(Path(storage.uri, COLUMNS).read_text())
    return noted


def test_no_column_of_an_older_version_is_lost_or_changed(golden: Storage) -> None:
    for table, columns in columns_of(golden).items():
        today = {field.name: str(field.type) for field in TABLES[table].schema}
        assert columns.items() <= today.items()


@pytest.mark.parametrize("upgraded", [False, True])
def test_golden_rows_are_read_as_they_were_written(golden: Storage, upgraded: bool) -> None:
    if upgraded:
        create_tables(golden)
    for table, columns in columns_of(golden).items():
        if table == LEDGER.name:
            continue
        for run in runs_of(table):
            rows = rows_of(golden, table, run)
            assert rows.num_rows == ROWS
            for name, expected in golden_rows(run, table, columns).items():
                # By str: NaN is not equal to itself, and -0.0 is equal to 0.0.
                got = [str(value) for value in rows[name].to_pylist()]
                assert got == [str(value) for value in expected], f"{table}.{name} of {run}"


def same_bits(one: Tree, other: Tree) -> bool:
    pairs = zip(tree_leaves(one), tree_leaves(other), strict=True)
    return all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in pairs)


@pytest.mark.parametrize("run", RUNS)
def test_golden_observations_and_actions_come_back_bit_for_bit(golden: Storage, run: str) -> None:
    rows = rows_of(golden, STEPS.name, run)
    (key,) = set(rows[SPACE].to_pylist())
    codecs = spaces_of(golden, key)
    assert tuple(codec.space for codec in codecs) == SPACES[run]
    for name, codec, tree in zip((c.OBS, c.ACTION), codecs, trees(run), strict=True):
        assert same_bits(codec.tree(rows[name], rows[f"{name}_bytes"]), tree)
    final = rows.filter(pa.array(is_last()))
    obs_codec, last = codecs[0], np.flatnonzero(is_last())
    got = obs_codec.tree(final[c.FINAL_OBS], final[f"{c.FINAL_OBS}_bytes"])
    expected, _ = trees(run, shift=1)
    if isinstance(expected, dict):
        expected = {name: leaf[last] for name, leaf in expected.items()}
    else:
        expected = expected[last]
    assert same_bits(got, expected)
    assert rows[c.FINAL_OBS].is_valid().to_pylist() == is_last().tolist()


def test_the_golden_columns_of_a_space_are_laid_out_as_documented(golden: Storage) -> None:
    row = rows_of(golden, STEPS.name, "dict-1").slice(1, 1).to_pylist()[0]
    half = float(np.float16(1 / 3))
    assert row[c.OBS] == [1 / 7 - 0.5, -1 / 11, 0.0, half]
    assert row["obs_bytes"] == bytes(range(6, 12)) + b"\xfe" + b"\xff" * 7
    assert row[c.ACTION] == [float(np.float32(1 / 13)), 1.0, 1.0]
    assert row["action_bytes"] is None
    vector = rows_of(golden, STEPS.name, "vector-1").slice(6, 1).to_pylist()[0]
    assert repr(vector[c.OBS]) == repr([float(np.float32(0.1)), -1.5, -0.0, float("inf")])
    assert vector["obs_bytes"] is None


def test_the_golden_ledger_has_every_data_file_with_its_checksum(golden: Storage) -> None:
    ledger = rows_of(golden, LEDGER.name).to_pylist()
    assert {(row["table"], row["run_id"]) for row in ledger} == {
        (table, run)
        for table in columns_of(golden)
        if table != LEDGER.name
        for run in runs_of(table)
    }
    for row in ledger:
        content = Path(golden.table_uri(row["table"]), row["path"]).read_bytes()
        assert (row["sha256"], row["bytes"]) == (hashlib.sha256(content).hexdigest(), len(content))


def test_a_lake_that_is_older_than_a_table_reads_it_as_empty(golden: Storage) -> None:
    lake = Lake(golden)
    assert lake.versions().keys() == TABLES.keys() - LATER
    for name in LATER:
        assert lake.sql(f"SELECT * FROM {name}").schema.names == TABLES[name].schema.names
        assert lake.sql(f"SELECT count(*) AS n FROM {name}").to_pylist() == [{"n": 0}]
        with pytest.raises(LakeError, match="no table"):
            lake.sql(f"SELECT * FROM {name}", versions={name: 0})
    assert set(lake.sql("SHOW TABLES")["name"].to_pylist()) >= LATER
    assert not [found for found in doctor(golden) if found.table in LATER]


def test_writing_to_an_older_lake_makes_the_tables_that_it_lacks(golden: Storage) -> None:
    before = Lake(golden).versions()
    create_tables(golden)
    after = Lake(golden).versions()
    assert after.keys() == TABLES.keys()
    assert {name: after[name] for name in LATER} == dict.fromkeys(LATER, 0)
    assert before.keys() <= after.keys()


def test_where_there_is_no_lake_there_is_no_empty_table_either(tmp_path: Path) -> None:
    with pytest.raises(LakeError, match="has no table"):
        Lake(tmp_path / "nothing").sql("SELECT * FROM ope_results")


def test_the_golden_lake_can_be_opened_as_it_was(golden: Storage) -> None:
    for table in columns_of(golden):
        assert open_table(golden, table, version=0).to_pyarrow_table().num_rows == 0
    assert open_table(golden, STEPS.name, timestamp="2100-01-01").version() == 3
