"""Tables of a lake: made by many at once, checked, upgraded, and opened as they were."""

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, Field, Schema, write_deltalake

from offline import tables
from offline.errors import LakeBusyError, LakeError
from offline.schemas import SCHEMA_VERSION, TABLES, TableSchema
from offline.storage import Storage
from offline.tables import (
    UPGRADES,
    add_missing_columns,
    create_tables,
    open_table,
    schema_diff,
    set_property,
)
from tests.offline.race_kit import race

NEW = pa.field("colour", pa.string())


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    made = Storage.at(tmp_path / "lake")
    create_tables(made)
    return made


def row(name: str, run_id: str = "run") -> pa.Table:
    """One row that is null but for its run."""
    schema = TABLES[name].schema
    return pa.table(
        {f.name: [run_id] if f.name == "run_id" else pa.nulls(1, f.type) for f in schema},
        schema=schema,
    )


def append(storage: Storage, name: str, times: int = 1) -> None:
    for _ in range(times):
        write_deltalake(storage.table_uri(name), row(name), mode="append")


def commit_file(storage: Storage, name: str, version: int) -> Path:
    return Path(storage.table_uri(name)) / "_delta_log" / f"{version:020d}.json"


def test_every_table_has_its_columns_partitions_and_properties(storage: Storage) -> None:
    for name, expected in TABLES.items():
        table = open_table(storage, name)
        assert pa.schema(table.schema().to_arrow()) == expected.schema
        assert tuple(table.metadata().partition_columns) == expected.partition_by
        assert table.metadata().name == name
        assert table.metadata().configuration == {
            "millrace.schema_version": str(SCHEMA_VERSION),
            "delta.checkpointInterval": "20",
            "delta.logRetentionDuration": "interval 3650 days",
            "delta.deletedFileRetentionDuration": "interval 3650 days",
        }


def test_making_them_again_commits_nothing(storage: Storage) -> None:
    append(storage, "steps")
    create_tables(storage)
    assert {name: open_table(storage, name).version() for name in TABLES} == {
        name: int(name == "steps") for name in TABLES
    }


def test_racing_creators_all_continue_with_one_table_each(tmp_path: Path) -> None:
    printed = race(
        "from pathlib import Path\n"
        "from offline.storage import Storage\n"
        "from offline.tables import create_tables, open_table\n",
        "for number in range(4):\n"
        "    storage = Storage.at(Path(sys.argv[1]) / str(number))\n"
        "    create_tables(storage)\n"
        "    print(open_table(storage, 'steps').metadata().id)\n",
        [[str(tmp_path)]] * 4,
    )
    assert len(set(printed)) == 1
    assert len(set(printed[0].split())) == 4
    for number in range(4):
        for name in TABLES:
            assert open_table(Storage.at(tmp_path / str(number)), name).version() == 0


def test_a_table_that_is_missing_beside_others_is_made(storage: Storage) -> None:
    shutil.rmtree(storage.table_uri("ledger"))
    create_tables(storage)
    assert open_table(storage, "ledger").version() == 0


def test_data_files_without_a_log_are_not_buried_under_a_new_table(storage: Storage) -> None:
    append(storage, "steps")
    shutil.rmtree(Path(storage.table_uri("steps")) / "_delta_log")
    with pytest.raises(LakeError, match=r"steps at .* has files \(run_id=run\) but no commit log"):
        create_tables(storage)


def test_a_path_that_is_no_lake_says_how_to_get_one(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(LakeError) as raised:
            open_table(Storage.at(path), "steps")
        expected = f"{path} has no table 'steps'; train with trace on, or give --storage."
        assert str(raised.value) == expected


def test_a_table_of_another_name_is_refused_with_a_suggestion(storage: Storage) -> None:
    with pytest.raises(LakeError, match="no table 'step' in a lake; did you mean 'steps'"):
        open_table(storage, "step")
    with pytest.raises(LakeError, match="tables are steps, episodes, runs"):
        open_table(storage, "../../etc")


def test_a_table_opens_as_it_was(storage: Storage) -> None:
    append(storage, "runs", times=3)
    assert open_table(storage, "runs").version() == 3
    assert open_table(storage, "runs", version=1).to_pyarrow_table().num_rows == 1
    assert open_table(storage, "runs", version=0).to_pyarrow_table().num_rows == 0


@pytest.mark.parametrize("version", [4, 12, 10**18, 2**70])
def test_a_version_that_is_not_there_is_refused_with_those_that_are(
    storage: Storage, version: int
) -> None:
    append(storage, "runs", times=3)
    with pytest.raises(LakeError) as raised:
        open_table(storage, "runs", version=version)
    assert str(raised.value) == f"version {version} of runs does not exist; it has 0 to 3."


@pytest.mark.parametrize("version", [-1, "3", 1.0])
def test_what_is_no_version_is_refused(storage: Storage, version: int) -> None:
    with pytest.raises(LakeError, match="they count from 0"):
        open_table(storage, "runs", version=version)


def test_versions_that_were_cleaned_from_the_log_are_not_promised(storage: Storage) -> None:
    append(storage, "runs", times=5)
    open_table(storage, "runs", version=3).create_checkpoint()
    for version in range(3):
        commit_file(storage, "runs", version).unlink()
    with pytest.raises(LakeError, match="version 1 of runs does not exist; it has 3 to 5"):
        open_table(storage, "runs", version=1)
    assert open_table(storage, "runs", version=4).to_pyarrow_table().num_rows == 4


def commit_times(storage: Storage, name: str, times: list[datetime]) -> None:
    """Let the commits of a table say that they were made at these times."""
    for version, at in enumerate(times):
        path = commit_file(storage, name, version)
        actions = [json.loads(line) for line in path.read_text().splitlines()]
        for action in actions:
            if "commitInfo" in action:
                action["commitInfo"]["timestamp"] = int(at.timestamp() * 1000)
        path.write_text("\n".join(json.dumps(action) for action in actions))


def test_a_time_means_the_last_commit_before_it_wherever_the_lake_was_copied(
    storage: Storage, tmp_path: Path
) -> None:
    append(storage, "runs", times=4)
    start = datetime(2026, 1, 1, 12, tzinfo=UTC)
    commit_times(storage, "runs", [start + timedelta(hours=n) for n in range(5)])
    shutil.copytree(storage.uri, tmp_path / "copy")
    expected: list[tuple[datetime | str, int]] = [
        ("2026-01-01T12:00:00Z", 0),
        ("2026-01-01T12:59:59", 0),
        ("2026-01-01 15:00:00+02:00", 1),
        ("2026-01-02", 4),
        (datetime(2026, 1, 1, 14, 30), 2),
        (start + timedelta(hours=3), 3),
        ("2100-01-01", 4),
    ]
    for lake in (storage, Storage.at(tmp_path / "copy")):
        for timestamp, version in expected:
            assert open_table(lake, "runs", timestamp=timestamp).version() == version


def test_a_time_before_the_first_commit_is_refused_with_that(storage: Storage) -> None:
    commit_times(storage, "runs", [datetime(2026, 1, 1, tzinfo=UTC)])
    with pytest.raises(LakeError) as raised:
        open_table(storage, "runs", timestamp="2025-12-31")
    assert str(raised.value) == (
        "timestamp 2025-12-31T00:00:00+00:00 is before the first commit of runs, "
        "2026-01-01T00:00:00.000+00:00."
    )


def test_what_is_no_time_is_refused(storage: Storage) -> None:
    with pytest.raises(LakeError, match="timestamp 'yesterday' is no time; give ISO 8601"):
        open_table(storage, "runs", timestamp="yesterday")
    with pytest.raises(LakeError, match="a version or a timestamp, not both"):
        open_table(storage, "runs", version=0, timestamp="2026-01-01")


@pytest.mark.parametrize("content", ['{"commitInfo":{"timesta', "not json at all\n", "\0" * 40])
def test_a_truncated_commit_is_refused(storage: Storage, content: str) -> None:
    append(storage, "steps", times=2)
    commit_file(storage, "steps", 1).write_text(content)
    for attempt in (lambda: open_table(storage, "steps"), lambda: create_tables(storage)):
        with pytest.raises(LakeError, match="the commit log is damaged .*lake doctor") as raised:
            attempt()
        assert "<unknown>" not in str(raised.value)
    assert open_table(storage, "steps", version=0).version() == 0


def test_an_empty_commit_is_refused_though_delta_reads_over_it(storage: Storage) -> None:
    append(storage, "steps", times=2)
    commit_file(storage, "steps", 1).write_bytes(b"")
    assert DeltaTable(storage.table_uri("steps")).version() == 2
    with pytest.raises(LakeError, match="commit 1 of steps at .* is an empty file"):
        open_table(storage, "steps")
    with pytest.raises(LakeError, match="is an empty file"):
        create_tables(storage)


@pytest.mark.parametrize("version", [0, 1])
def test_a_missing_commit_is_refused(storage: Storage, version: int) -> None:
    append(storage, "steps", times=3)
    commit_file(storage, "steps", version).unlink()
    with pytest.raises(LakeError, match="the commit log is damaged"):
        create_tables(storage)
    with pytest.raises(LakeError, match="the commit log is damaged"):
        open_table(storage, "steps")


def test_a_table_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    storage = Storage.at(tmp_path)
    write_deltalake(storage.table_uri("steps"), pa.table({"a": [1]}))
    for attempt in (lambda: open_table(storage, "steps"), lambda: create_tables(storage)):
        with pytest.raises(LakeError, match="table 'steps' at .* is not Millrace's"):
            attempt()


@pytest.mark.parametrize("version", ["none", "", "0", "-1", "1.0"])
def test_a_schema_version_that_is_none_is_refused(storage: Storage, version: str) -> None:
    set_property(storage, "runs", "millrace.schema_version", version)
    with pytest.raises(LakeError, match="which is none"):
        open_table(storage, "runs")


def test_a_newer_schema_is_refused_with_what_it_has_more(storage: Storage) -> None:
    table = open_table(storage, "steps")
    table.alter.add_columns(Schema.from_arrow(pa.schema([NEW])).fields)
    set_property(storage, "steps", "millrace.schema_version", str(SCHEMA_VERSION + 1))
    for attempt in (lambda: open_table(storage, "steps"), lambda: create_tables(storage)):
        with pytest.raises(LakeError) as raised:
            attempt()
        assert f"knows up to {SCHEMA_VERSION}. Update Millrace.\n  + colour: string" in str(
            raised.value
        )


def drifted(tmp_path: Path, schema: pa.Schema, partition_by: list[str]) -> Storage:
    storage = Storage.at(tmp_path)
    DeltaTable.create(
        storage.table_uri("runs"),
        schema,
        partition_by=partition_by,
        configuration={"millrace.schema_version": str(SCHEMA_VERSION)},
        raise_if_key_not_exists=False,
    )
    return storage


def test_drifted_columns_are_refused_with_a_diff(tmp_path: Path) -> None:
    schema = TABLES["runs"].schema
    status, seed = schema.get_field_index("status"), schema.get_field_index("seed")
    schema = schema.set(seed, pa.field("seed", pa.string())).remove(status).append(NEW)
    storage = drifted(tmp_path, schema, ["algo"])
    for attempt in (lambda: open_table(storage, "runs"), lambda: create_tables(storage)):
        with pytest.raises(LakeError) as raised:
            attempt()
        for line in (
            "- status: string",
            "+ colour: string",
            "~ seed: string, expected int64",
            "~ partitions: ['algo'], expected []",
        ):
            assert f"\n  {line}" in str(raised.value)


def test_the_order_of_columns_does_not_matter(tmp_path: Path) -> None:
    storage = drifted(tmp_path, pa.schema(reversed(list(TABLES["runs"].schema))), [])
    assert schema_diff(open_table(storage, "runs"), TABLES["runs"]) == []


def test_every_older_schema_has_an_upgrade() -> None:
    assert sorted(UPGRADES) == list(range(1, SCHEMA_VERSION))


@pytest.fixture
def next_schema(monkeypatch: pytest.MonkeyPatch) -> TableSchema:
    """The code of the next version, in which steps have a colour."""
    steps = TABLES["steps"]
    widened = TableSchema("steps", steps.schema.append(NEW), steps.partition_by)
    monkeypatch.setitem(TABLES, "steps", widened)
    monkeypatch.setattr(tables, "SCHEMA_VERSION", SCHEMA_VERSION + 1)
    monkeypatch.setitem(UPGRADES, SCHEMA_VERSION, add_missing_columns)
    return widened


@pytest.fixture
def old(storage: Storage) -> Storage:
    """A lake with rows, made before `next_schema` is."""
    append(storage, "steps", times=2)
    return storage


def test_an_older_lake_is_upgraded_and_its_rows_stay(
    old: Storage, next_schema: TableSchema
) -> None:
    before = open_table(old, "steps")
    assert "colour" not in before.schema().to_arrow().names
    create_tables(old)
    table = open_table(old, "steps")
    assert table.metadata().configuration["millrace.schema_version"] == str(SCHEMA_VERSION + 1)
    rows = table.to_pyarrow_table()
    assert rows["colour"].to_pylist() == [None, None]
    assert rows["run_id"].to_pylist() == ["run", "run"]
    append(old, "steps")
    assert open_table(old, "steps").to_pyarrow_table().num_rows == 3
    assert open_table(old, "steps", version=2).to_pyarrow_table().num_rows == 2
    settled = {name: open_table(old, name).version() for name in TABLES}
    create_tables(old)
    assert settled == {name: open_table(old, name).version() for name in TABLES}


def test_code_of_the_older_schema_refuses_the_upgraded_lake(
    old: Storage, next_schema: TableSchema, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_tables(old)
    monkeypatch.undo()
    newer = f"has schema version {SCHEMA_VERSION + 1}; this Millrace knows up to {SCHEMA_VERSION}"
    with pytest.raises(LakeError, match=newer):
        open_table(old, "steps")


def test_an_upgrade_that_was_killed_halfway_is_finished(
    old: Storage, next_schema: TableSchema
) -> None:
    add_missing_columns(DeltaTable(old.table_uri("steps")), next_schema)
    create_tables(old)
    names = open_table(old, "steps").schema().to_arrow().names
    assert names.count("colour") == 1


def test_an_upgrade_that_meets_another_begins_again(
    old: Storage, next_schema: TableSchema, monkeypatch: pytest.MonkeyPatch
) -> None:
    meetings: list[str] = []

    def overtaken(table: DeltaTable, expected: TableSchema) -> None:
        if not meetings:
            meetings.append(expected.name)
            add_missing_columns(DeltaTable(table.table_uri), expected)
        add_missing_columns(table, expected)

    monkeypatch.setitem(UPGRADES, SCHEMA_VERSION, overtaken)
    create_tables(old)
    assert meetings == ["steps"]
    assert open_table(old, "steps").schema().to_arrow().names.count("colour") == 1


def test_a_foreign_column_in_an_older_table_is_refused(
    old: Storage, next_schema: TableSchema
) -> None:
    field = Field.from_arrow(pa.field("foreign", pa.int64()))
    DeltaTable(old.table_uri("steps")).alter.add_columns(field)
    with pytest.raises(LakeError, match=r"\+ foreign: int64"):
        create_tables(old)


def test_racing_properties_are_all_kept(storage: Storage) -> None:
    printed = race(
        "from offline.storage import Storage\nfrom offline.tables import set_property\n",
        "for number in range(5):\n"
        "    set_property(Storage.at(sys.argv[1]), 'steps', f'test.{sys.argv[2]}.{number}', 'x')\n",
        [[storage.uri, str(process)] for process in range(3)],
    )
    assert printed == ["", "", ""]
    properties = open_table(storage, "steps").metadata().configuration
    assert sorted(key for key in properties if key.startswith("test.")) == [
        f"test.{process}.{number}" for process in range(3) for number in range(5)
    ]


def test_a_property_that_is_there_commits_nothing(storage: Storage) -> None:
    set_property(storage, "steps", "test.key", '{"a": "ü\\"\\n"}')
    set_property(storage, "steps", "test.key", '{"a": "ü\\"\\n"}')
    table = open_table(storage, "steps")
    assert table.version() == 1
    assert table.metadata().configuration["test.key"] == '{"a": "ü\\"\\n"}'


def test_a_property_that_others_always_overtake_is_given_up(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = tables._load

    def overtaken(storage: Storage, name: str, version: int | None = None) -> DeltaTable | None:
        table, other = load(storage, name, version), load(storage, name)
        assert other is not None
        changes = {"test.other": str(other.version())}
        other.alter.set_table_properties(changes, raise_if_not_exists=False)
        return table

    monkeypatch.setattr(tables, "_load", overtaken)
    monkeypatch.setattr(tables, "_ATTEMPTS", 3)
    with pytest.raises(LakeBusyError, match="could not be altered in 3 attempts"):
        set_property(storage, "steps", "test.key", "x")
