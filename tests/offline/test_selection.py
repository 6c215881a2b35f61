"""What a read of the lake touches, returns and says when it cannot."""

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pds
import pyarrow.parquet as pq
import pytest

from offline.errors import LakeError
from offline.lake import Lake
from offline.schemas import STEPS, TABLES
from offline.storage import Storage
from tests.offline.s3_kit import BUCKET, SECRET
from tests.offline.sql_kit import append, episode, rows, small_lake, steps


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return small_lake(tmp_path_factory.mktemp("lake"))


@pytest.fixture
def lake(storage: Storage, tmp_path: Path) -> Lake:
    """A copy that a test may harm."""
    return Lake(shutil.copytree(storage.uri, tmp_path / "lake"))


def data_files(lake: Lake, table: str) -> list[Path]:
    root = Path(lake.storage.table_uri(table))
    return sorted(p for p in root.rglob("*.parquet") if "_delta_log" not in str(p))


def remove_others(lake: Lake, table: str, keep: set[Path]) -> None:
    gone = [path for path in data_files(lake, table) if path not in keep]
    assert gone
    for path in gone:
        path.unlink()


@pytest.mark.parametrize("table", sorted(TABLES))
def test_every_table_is_read_by_its_name(lake: Lake, table: str) -> None:
    by_name = getattr(lake, table)()
    assert by_name.table == table
    assert by_name.schema == TABLES[table].schema
    found = by_name.to_arrow()
    assert found.schema == TABLES[table].schema
    assert found.num_rows == by_name.count() == lake.table(table).to_arrow().num_rows


def test_rows_come_back_as_they_were_written(lake: Lake) -> None:
    found = lake.steps(where=[("episode_id", "==", "a0")]).to_arrow().sort_by("t")
    expected = steps("fast", "a0", [1, 1, 1], fragments=[0, 0, 1], values=[3.0, 2.25, 1.0])
    assert found.equals(rows("steps", expected))


def test_columns_come_in_the_order_asked_for(lake: Lake) -> None:
    chosen = lake.steps(columns=["t", "run_id", "obs"])
    assert chosen.schema.names == chosen.to_arrow().column_names == ["t", "run_id", "obs"]
    assert list(chosen.to_pandas().columns) == ["t", "run_id", "obs"]
    assert lake.steps(columns=[]).count() == 11


@pytest.mark.parametrize(
    ("where", "number"),
    [
        (None, 11),
        ([], 11),
        ([("run_id", "==", "slow")], 3),
        ([("run_id", "=", "slow"), ("t", ">", 0)], 1),
        ([("run_id", "in", ["slow", "none"])], 3),
        ([("run_id", "not in", ("slow",))], 8),
        ([("reward", "<=", 0)], 2),
        ([("reward", "<", 0.5)], 2),
        ([("t", "!=", 0), ("t", ">=", 1)], 5),
        ([("value", "==", None)], 4),
        ([("value", "!=", None)], 7),
        ([("aborted", "==", True)], 1),
        ([("sampled_at", ">=", datetime(2026, 5, 1, 11, tzinfo=UTC))], 2),
        ([("sampled_at", ">=", "2026-05-01T11:00:00Z")], 2),
        ([("reward", "==", 5)], 2),
        ([("t", "==", np.int64(2))], 1),
        ([("run_id", "in", [])], 0),
        (pc.field("run_id") == "slow", 3),
        ((pc.field("reward") > 1) | pc.field("aborted"), 4),
        (pc.field("value").is_null(), 4),
    ],
)
def test_conditions_keep_the_rows_that_hold(lake: Lake, where: Any, number: int) -> None:
    chosen = lake.steps(where=where)
    assert chosen.count() == number
    assert chosen.to_arrow().num_rows == number
    assert len(chosen.to_pandas()) == number
    assert chosen.dataset().count_rows() == number
    assert sum(table.num_rows for table in chosen.batches(rows=2)) == number


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"columns": ["rewrd"]}, "steps has no column 'rewrd'; did you mean 'reward'"),
        ({"columns": ["qqqqq"]}, "there are run_id, session"),
        ({"columns": "reward"}, r"\['reward'\]"),
        ({"columns": ["t", "t"]}, "twice"),
        ({"where": [("rewrd", ">", 1)]}, "where: steps has no column 'rewrd'; did you mean"),
        ({"where": [("reward", "~", 1)]}, "operator '~'; there are =="),
        ({"where": [("reward", ">", "x")]}, "'reward', which is double"),
        ({"where": [("t", "==", 2**40)]}, "'t', which is int32"),
        ({"where": [("t", "==", 0.5)]}, "'t', which is int32"),
        ({"where": [("t", "<", None)]}, "== or != only"),
        ({"where": [("t", "==", "5")]}, "'t', which is int32"),
        ({"where": [("run_id", "==", 5)]}, "'run_id', which is string"),
        ({"where": [("t", "in", [0, 0.5])]}, "'t', which is int32"),
        ({"where": [("sampled_at", ">", "noon")]}, "'sampled_at', which is timestamp"),
        ({"where": [("t", "in", [None, "x"])]}, "'t', which is int32"),
        ({"where": [("t", "<")]}, r"\(column, operator, value\)"),
        ({"where": "t > 0"}, r"\(column, operator, value\)"),
        ({"where": pc.field("rewrd") > 1}, "did you mean 'reward'"),
        ({"where": pc.field("reward") > "x"}, "does not fit steps"),
        ({"where": pc.field("t") + 1}, "does not fit steps"),
        ({"version": 99}, "99"),
        ({"version": 0, "timestamp": "2026-01-01"}, "version or a timestamp"),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(
    lake: Lake, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(LakeError, match=message):
        lake.steps(**given)


def test_an_unknown_table_or_lake_is_refused(lake: Lake, tmp_path: Path) -> None:
    with pytest.raises(LakeError, match="did you mean 'steps'"):
        lake.table("step")
    with pytest.raises(LakeError, match="no table 'steps'"):
        Lake(tmp_path / "none").steps()
    with pytest.raises(LakeError, match="there is no lake"):
        Lake(tmp_path / "none").versions()
    assert not (tmp_path / "none").exists()


def test_a_version_stays_pinned_once_selected(lake: Lake) -> None:
    chosen = lake.episodes()
    before = chosen.to_arrow()
    append(lake.storage, "episodes", [episode("slow", "b2", 4.0, 4, 2)])
    assert chosen.to_arrow().equals(before)
    assert chosen.count() == 6
    newest = lake.episodes()
    assert (newest.version, newest.count()) == (chosen.version + 1, 7)
    old = lake.episodes(version=chosen.version)
    assert old.to_arrow().equals(before)
    assert lake.episodes(version=0).count() == 0
    assert lake.versions()["episodes"] == newest.version


def test_a_time_chooses_the_version_of_then(lake: Lake) -> None:
    then = datetime.now(UTC)
    append(lake.storage, "episodes", [episode("slow", "b2", 4.0, 4, 2)])
    assert lake.episodes(timestamp=then).count() == 6
    assert lake.episodes(timestamp=datetime.now(UTC).isoformat()).count() == 7


def test_a_selection_cannot_be_changed(lake: Lake) -> None:
    chosen = lake.steps()
    with pytest.raises(AttributeError):
        chosen.version = 3  # type: ignore[misc]
    assert "_delta" not in repr(chosen)


@pytest.mark.parametrize("size", [1, 3, 11, 100])
def test_batches_have_the_rows_asked_for(lake: Lake, size: int) -> None:
    tables = list(lake.steps().batches(rows=size))
    assert [t.num_rows for t in tables[:-1]] == [size] * (len(tables) - 1)
    assert 1 <= tables[-1].num_rows <= size
    assert pa.concat_tables(tables).equals(lake.steps().to_arrow())
    with pytest.raises(ValueError, match="at least one row"):
        next(lake.steps().batches(rows=0))


@pytest.mark.parametrize("where", [None, [("t", ">=", 1)]])
def test_the_first_row_is_that_of_the_batches(lake: Lake, where: Any) -> None:
    chosen = lake.steps(where=where, columns=["t", "run_id", "obs"])
    found = chosen.first()
    assert found is not None
    assert found.equals(next(chosen.batches(rows=1)))
    assert lake.steps(where=[("t", ">", 10**6)]).first() is None


def test_a_read_that_stops_early_ends_the_process_cleanly(lake: Lake) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from offline.lake import Lake\n"
        "print(next(Lake(sys.argv[1]).steps().batches(rows=1)).num_rows)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, lake.storage.uri],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


def test_the_dataset_lies_on_arrows_own_file_system(lake: Lake) -> None:
    from pyarrow import fs

    filesystem = lake.steps().dataset().filesystem
    assert isinstance(filesystem, fs.SubTreeFileSystem)
    assert isinstance(filesystem.base_fs, fs.LocalFileSystem)


PRUNED: list[Any] = [
    ("steps", [("run_id", "==", "new")]),
    ("steps", [("episode_id", "==", "z9")]),
    ("steps", [("t", ">=", 500)]),
    ("steps", [("fragment_id", ">", 1000)]),
    ("steps", [("fragment_id", "in", [5000, 6000])]),
    ("steps", (pc.field("fragment_id") == 5000) & (pc.field("t") == 500)),
    ("episodes", [("return", ">", 50.0)]),
    ("episodes", [("run_id", "==", "new"), ("return", "<", 100.0)]),
]


def only_the_new_file(lake: Lake, table: str) -> None:
    """A commit of one row, and nothing else is left of the table."""
    before = data_files(lake, table)
    if table == "episodes":
        append(lake.storage, table, [episode("new", "z9", 77.0, 9, 3)])
    else:
        row = steps("new", "z9", [1.0], fragments=[5000])[0]
        append(lake.storage, table, [row | {"t": 500}])
    remove_others(lake, table, set(data_files(lake, table)) - set(before))


@pytest.mark.parametrize(("table", "where"), PRUNED)
def test_files_that_cannot_have_the_rows_are_never_opened(
    lake: Lake, table: str, where: Any
) -> None:
    only_the_new_file(lake, table)
    chosen = lake.table(table, where=where)
    assert len(chosen.files()) == 1
    assert chosen.to_arrow().column("run_id").to_pylist() == ["new"]
    assert chosen.count() == 1
    assert sum(t.num_rows for t in chosen.batches()) == 1
    with pytest.raises(LakeError, match="is missing"):
        lake.table(table).to_arrow()


@pytest.mark.ray
@pytest.mark.parametrize(("table", "where"), PRUNED[:4] + PRUNED[6:7])
def test_ray_never_opens_files_that_cannot_have_the_rows(
    ray_session: None, lake: Lake, table: str, where: Any
) -> None:
    only_the_new_file(lake, table)
    found = lake.table(table, where=where).to_ray()
    assert [row["run_id"] for row in found.iter_rows()] == ["new"]


@pytest.mark.ray
def test_a_ray_dataset_has_the_rows_as_arrow_has_them(ray_session: None, lake: Lake) -> None:
    for chosen in (
        lake.steps(),
        lake.steps(columns=["t", "run_id", "obs"]),
        lake.steps(where=[("reward", ">", 0)], columns=["episode_id", "t", "run_id"]),
        lake.steps(where=[("t", ">", 10_000)], columns=["run_id", "t"]),
        lake.steps(where=[("run_id", "==", "nobody")]),
    ):
        dataset = chosen.to_ray()
        assert dataset.schema().base_schema == chosen.schema
        blocks = [block for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow")]
        keys = [name for name in ("run_id", "episode_id", "t") if name in chosen.schema.names]
        order = [(name, "ascending") for name in keys]
        expected = chosen.to_arrow().sort_by(order)
        got = pa.concat_tables([chosen.schema.empty_table(), *blocks]).sort_by(order)
        assert got.equals(expected)
        assert chosen.to_ray().count() == expected.num_rows


@pytest.mark.ray
def test_a_ray_task_names_the_file_that_is_missing(ray_session: None, lake: Lake) -> None:
    victim = data_files(lake, "steps")[0]
    dataset = lake.steps().to_ray()
    victim.unlink()
    with pytest.raises(Exception, match="lake doctor") as caught:
        dataset.materialize()
    assert victim.name in str(caught.value)


@pytest.mark.parametrize("harm", ["missing", "truncated", "empty", "no parquet"])
def test_a_damaged_file_is_named_with_what_to_do(lake: Lake, harm: str) -> None:
    victim = data_files(lake, "steps")[-1]
    content = victim.read_bytes()
    if harm == "missing":
        victim.unlink()
    else:
        kept = {"truncated": content[:-20], "empty": b"", "no parquet": b"x" * 300}
        victim.write_bytes(kept[harm])
    chosen = lake.steps()
    some = lake.steps(where=[("run_id", "==", "slow"), ("t", ">=", 0)], columns=["run_id", "t"])
    for read in (
        chosen.to_arrow,
        chosen.to_pandas,
        chosen.count,
        lambda: list(chosen.batches()),
        some.to_arrow,
    ):
        with pytest.raises(LakeError, match="millrace lake doctor") as caught:
            read()
        assert f"steps/{victim.relative_to(lake.storage.table_uri('steps'))}" in str(caught.value)


def test_a_flipped_byte_of_a_page_is_an_error_and_not_a_wrong_number(lake: Lake) -> None:
    victim = data_files(lake, "steps")[0]
    table = pq.read_table(victim, partitioning=None)
    pq.write_table(table, victim, write_page_checksum=True, compression="none")
    whole = lake.steps().to_arrow()
    content = victim.read_bytes()
    place = content.index(np.float64(10.0).tobytes())
    victim.write_bytes(content[:place] + b"\x7f" + content[place + 1 :])
    with pytest.raises(LakeError, match="is damaged") as caught:
        lake.steps().to_arrow()
    assert victim.name in str(caught.value)
    with pytest.raises(LakeError, match="is damaged"):
        lake.sql("SELECT sum(obs[2]) FROM steps")
    victim.write_bytes(content)
    assert lake.steps().to_arrow().equals(whole)


def test_a_vacuumed_version_has_expired_and_gives_no_wrong_rows(lake: Lake) -> None:
    from deltalake import DeltaTable

    old = lake.steps()
    before = old.to_arrow().sort_by([("run_id", "ascending"), ("episode_id", "ascending")])
    table = DeltaTable(lake.storage.table_uri("steps"))
    append(lake.storage, "steps", steps("slow", "b2", [1.0], fragments=[2]))
    table.update_incremental()
    table.optimize.compact()
    assert old.to_arrow().num_rows == before.num_rows
    table.vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False)
    message = rf"version {old.version} of steps expired: vacuumed 20\d\d-.*newest version is"
    # Only the partition that was compacted has lost files; what is left of it is still right.
    for read in (
        old.to_arrow,
        lambda: list(old.batches()),
        lake.steps(version=old.version).to_arrow,
        lake.steps(version=old.version).count,
        lambda: lake.sql("SELECT sum(reward) FROM steps", versions={"steps": old.version}),
    ):
        with pytest.raises(LakeError, match=message):
            read()
    assert lake.steps().count() == before.num_rows + 1


def test_a_file_that_may_not_be_read_is_no_damage(lake: Lake) -> None:
    victim = data_files(lake, "steps")[0]
    victim.unlink()
    victim.mkdir()
    with pytest.raises(LakeError) as caught:
        lake.steps().to_arrow()
    assert victim.name in str(caught.value)


@pytest.mark.parametrize("run_id", ["a b", "50%", "x=1&y", "ü/é", "a%20b", "'; --", "~.+"])
def test_a_runs_name_may_have_any_characters(lake: Lake, run_id: str) -> None:
    append(lake.storage, "steps", steps(run_id, "q0", [1.0, 2.0], fragments=[0, 0]))
    chosen = lake.steps(where=[("run_id", "==", run_id)])
    assert len(chosen.files()) == 1
    assert chosen.to_arrow().column("run_id").to_pylist() == [run_id] * 2
    found = lake.sql("SELECT sum(reward) AS r FROM steps WHERE run_id = ?", [run_id])
    assert found.to_pylist() == [{"r": 3.0}]


def test_files_that_no_commit_names_are_ignored(lake: Lake) -> None:
    victim = data_files(lake, "steps")[0]
    before = lake.steps().to_arrow()
    victim.with_name("part-stray.parquet").write_bytes(victim.read_bytes())
    (victim.parent / "notes.txt").write_text("mine")
    (victim.parents[1] / "run_id=ghost").mkdir()
    (victim.parents[1] / "run_id=ghost" / "x.parquet").write_bytes(b"junk")
    assert lake.steps().to_arrow().equals(before)
    assert lake.sql("SELECT count(*) AS n FROM steps").to_pylist() == [{"n": before.num_rows}]


def test_columns_that_an_older_table_lacks_are_told(lake: Lake) -> None:
    assert lake.steps().schema == STEPS.schema
    assert isinstance(lake.steps().dataset(), pds.Dataset)


def test_a_lake_on_s3_is_read_as_one_in_a_folder(s3_server: dict[str, str]) -> None:
    storage = Storage.at(f"s3://{BUCKET}/selected", s3_server)
    small_lake(storage)
    lake = Lake(storage)
    assert lake.exists()
    assert lake.steps(where=[("run_id", "==", "slow")]).to_arrow().num_rows == 3
    found = lake.sql("SELECT count(next_obs) AS n FROM transitions WHERE run_id = 'slow'")
    assert found.to_pylist() == [{"n": 3}]
    chosen = lake.steps()
    files = storage.filesystem("steps")
    files.delete_file(chosen.files()[0].path)
    with pytest.raises(LakeError, match="is missing") as caught:
        chosen.to_arrow()
    assert SECRET not in str(caught.value)
