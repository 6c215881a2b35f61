"""Each damage is made by hand on a small real lake, and found by its name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from offline import schemas as s
from offline.doctor import doctor
from offline.doctor_repair import repair
from offline.errors import LakeError
from offline.findings import Finding, limited, ranges
from offline.ledger_check import check_table
from offline.storage import Storage
from offline.tables import open_table, set_property
from offline.writer import LakeWriter
from rl_ops import columns as c
from tests.offline.doctor_kit import (
    append,
    batch,
    commit_file,
    cut,
    data_files,
    examined,
    flip,
    killed_writer,
    kinds,
    last_version,
    opened,
    rows_of,
    small_lake,
    table_of,
)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake to copy."""
    folder = tmp_path_factory.mktemp("healthy") / "lake"
    small_lake(folder)
    return folder


@pytest.fixture
def lake(healthy: Path, tmp_path: Path) -> Storage:
    shutil.copytree(healthy, tmp_path / "lake")
    return Storage.at(tmp_path / "lake")


def damage(lake: Storage, how: Callable[[Storage], object]) -> dict[str, Finding]:
    how(lake)
    return examined(lake)


def test_a_healthy_lake_has_no_findings(lake: Storage) -> None:
    assert doctor(lake, deep=True) == []
    check_table(lake, "steps")


def test_a_healthy_lake_of_several_runs_and_sessions_has_none(lake: Storage) -> None:
    append(lake, range(2), run_id="r1")
    append(lake, range(2), session=1)
    assert doctor(lake, deep=True) == []


# The log


def test_an_empty_last_commit_is_found_by_the_ledger_too(lake: Storage) -> None:
    version = last_version(lake)
    commit_file(lake, version).write_bytes(b"")
    found = examined(lake)
    assert found["empty-commit"].where == f"steps/_delta_log/{version:020d}.json"
    assert "20 rows" in found["lost-commit"].what
    assert "fragments 10-11" in found["missing-fragment"].where
    assert found["episode-length"].severity == "error"
    assert "orphan-file" not in found


def test_an_empty_commit_before_others_is_found(lake: Storage) -> None:
    found = damage(lake, lambda storage: commit_file(storage, 3).write_bytes(b""))
    assert found["empty-commit"].what == "commit 3 is an empty file"
    assert "fragments 4-5" in found["missing-fragment"].where


def test_a_truncated_commit_is_found(lake: Storage) -> None:
    found = damage(lake, lambda storage: cut(commit_file(storage, last_version(storage)), 0.7))
    assert "cannot be read in line" in found["damaged-commit"].what
    assert found["unreadable-table"].table == "steps"


def test_a_commit_cut_between_two_lines_is_found(lake: Storage) -> None:
    def cut_lines(storage: Storage) -> None:
        path = commit_file(storage, last_version(storage))
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))

    found = damage(lake, cut_lines)
    assert "lists 0 of the 1 files" in found["damaged-commit"].what
    assert "lost-commit" in found


def test_a_missing_last_commit_is_found_by_the_ledger(lake: Storage) -> None:
    found = damage(lake, lambda storage: commit_file(storage, last_version(storage)).unlink())
    assert "20 rows" in found["lost-commit"].what


def test_a_gap_in_the_versions_is_found(lake: Storage) -> None:
    found = damage(lake, lambda storage: commit_file(storage, 2).unlink())
    assert found["missing-commit"].what == "commit 2 is missing"
    assert "unreadable-table" in found


def test_a_lost_commit_of_the_ledger_leaves_files_that_it_does_not_name(lake: Storage) -> None:
    found = damage(
        lake,
        lambda storage: commit_file(storage, last_version(storage, "ledger"), "ledger").unlink(),
    )
    # Its own data file is then one that no commit names.
    assert set(found) == {"unnamed-file", "orphan-file"}
    assert found["unnamed-file"].severity == "warning"


def test_a_table_whose_log_checkpoint_is_damaged_is_refused_by_name(lake: Storage) -> None:
    open_table(lake, "steps").create_checkpoint()
    (path,) = commit_file(lake, 0).parent.glob("*.checkpoint.parquet")
    path.write_bytes(path.read_bytes()[:-6] + b"abPAR1")  # delta-rs panics
    with pytest.raises(LakeError, match="opening steps"):
        open_table(lake, "steps")


def test_a_damaged_checkpoint_of_the_log_is_found(lake: Storage) -> None:
    append(lake, range(6, 21))
    assert doctor(lake) == []
    (path,) = commit_file(lake, 0).parent.glob("*.checkpoint.parquet")
    path.write_bytes(path.read_bytes()[:-6] + b"abPAR1")
    found = examined(lake)
    assert found["damaged-checkpoint"].where.endswith(path.name)
    assert "unreadable-table" in found


def test_a_checkpoint_of_the_log_that_says_something_else_is_found(lake: Storage) -> None:
    append(lake, range(6, 21))
    (path,) = commit_file(lake, 0).parent.glob("*.checkpoint.parquet")
    table = pq.read_table(path)
    rows = table.to_pylist()
    next(row for row in rows if row["add"])["add"]["size"] += 1
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    assert examined(lake)["untrue-checkpoint"].where.endswith(path.name)


def test_commits_that_delta_itself_cleaned_up_are_not_missing(lake: Storage) -> None:
    append(lake, range(6, 21))
    for version in range(20):
        commit_file(lake, version).unlink()
    assert not kinds(doctor(lake)) & {"missing-commit", "lost-commit", "unreadable-table"}


def test_a_table_that_is_not_there_is_found(lake: Storage) -> None:
    found = damage(lake, lambda storage: shutil.rmtree(storage.table_uri("metrics")))
    assert found["no-table"].table == "metrics"


def test_a_lake_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LakeError, match="there is no lake at"):
        doctor(Storage.at(tmp_path / "nothing"))
    assert not (tmp_path / "nothing").exists()


def test_a_table_of_a_newer_schema_version_is_found(lake: Storage) -> None:
    set_property(lake, "metrics", "millrace.schema_version", "99")
    found = examined(lake)
    assert "schema version 99" in found["schema-version"].what


def test_a_damaged_ledger_does_not_hide_the_other_tables(lake: Storage) -> None:
    for path in commit_file(lake, 0, "ledger").parent.glob("*.json"):
        cut(path)
    found = examined(lake)
    assert found["unreadable-table"].table == "ledger"
    assert "unnamed-file" in found


# Data files


def test_a_missing_data_file_is_found(lake: Storage) -> None:
    path = data_files(lake)[0]
    path.unlink()
    found = examined(lake)
    assert found["missing-file"].where.endswith(path.name)
    assert "20 rows" in found["missing-file"].what
    assert "missing-fragment" in found


def test_a_truncated_data_file_is_found_by_its_size(lake: Storage) -> None:
    found = damage(lake, lambda storage: cut(data_files(storage)[0]))
    assert found["size-differs"].where == f"steps/run_id=r0/{data_files(lake)[0].name}"


def test_a_flipped_byte_is_found_by_its_checksum(lake: Storage) -> None:
    path = data_files(lake)[0]
    flip(path, 0.3)
    assert "checksum-differs" not in examined(lake)
    found = examined(lake, deep=True)
    assert found["checksum-differs"].where.endswith(path.name)


def test_a_file_of_the_same_size_with_another_number_of_rows_is_found(lake: Storage) -> None:
    first = data_files(lake)[0]
    log = commit_file(lake, 1)
    log.write_text(log.read_text().replace('\\"numRecords\\":20', '\\"numRecords\\":21'))
    found = examined(lake)
    assert found["rows-differ"].where.endswith(first.name)
    assert "21 rows in the log, 20 in the ledger" in found["log-differs"].what


def test_a_foreign_writers_file_is_in_no_row_of_the_ledger(lake: Storage) -> None:
    from deltalake import write_deltalake

    rows = table_of("metrics", [{c.RUN_ID: "r0", s.KEY: "x"}])
    write_deltalake(lake.table_uri("metrics"), rows, mode="append", partition_by=[c.RUN_ID])
    assert examined(lake)["unnamed-file"].table == "metrics"


def test_stray_files_are_named_and_ignored(lake: Storage) -> None:
    before = rows_of(lake)
    Path(lake.table_uri("steps"), "notes.txt").write_text("mine")
    Path(lake.table_uri("steps"), "run_id=r0", "x.parquet").write_bytes(b"no parquet")
    found = examined(lake)
    assert found["stray-file"].where == "steps/notes.txt"
    assert found["orphan-file"].where == "steps/run_id=r0/x.parquet"
    assert {finding.severity for finding in found.values()} == {"info"}
    assert rows_of(lake) == before
    check_table(lake, "steps")


# Rows


def test_a_consumed_fragment_that_is_not_in_steps_is_found(lake: Storage) -> None:
    with LakeWriter(lake, "r0/0") as writer:
        tables = batch("r0", range(20, 23))
        tables["steps"] = tables["steps"].slice(0, 20)
        tables["episodes"] = tables["episodes"].slice(0, 4)
        writer.write(tables, fragments=[20, 21, 22])
    found = examined(lake)
    assert set(found) == {"missing-fragment"}
    assert found["missing-fragment"].where == "run r0 session 0, fragments 22"


def test_a_fragment_with_fewer_rows_than_were_used_is_found(lake: Storage) -> None:
    with LakeWriter(lake, "r0/0") as writer:
        tables = batch("r0", range(20, 21))
        tables["steps"] = tables["steps"].slice(0, 9)
        writer.write(tables, fragments=[20])
    found = examined(lake)
    assert set(found) == {"short-fragment", "episode-length"}
    assert "20-1" in found["episode-length"].where


def test_a_fragment_that_two_batches_brought_is_found(lake: Storage) -> None:
    append(lake, range(5, 6), writer="r0/another")
    found = examined(lake)
    assert "doubled-fragment" in found
    assert found["doubled-fragment"].where == "run r0 session 0, fragments 10-11"


def test_sampled_steps_are_not_missed(lake: Storage) -> None:
    with LakeWriter(lake, "r2/0") as writer:
        config = json.dumps({"trace": {"episode_frac": 0.5}})
        runs = table_of("runs", [{c.RUN_ID: "r2", s.SESSION: 0, "config": config}])
        tables = batch("r2", range(2)) | {"runs": runs}
        tables["steps"] = tables["steps"].slice(0, 10)
        writer.write(tables, fragments=[0, 1])
    assert doctor(lake) == []


def test_evaluation_episodes_have_no_steps(lake: Storage) -> None:
    row = {c.RUN_ID: "r0", s.SESSION: 0, c.EPISODE_ID: "e", s.KIND: "evaluation", s.LENGTH: 7}
    with LakeWriter(lake, "evaluate") as writer:
        writer.write({"episodes": table_of("episodes", [{**row, c.ABORTED: False}])})
    assert doctor(lake) == []


# Batches under way


def test_a_pending_batch_is_told_and_repaired(lake: Storage) -> None:
    killed_writer(lake, "commit.before:2")
    found = examined(lake)
    assert set(found) == {"pending-batch"}
    assert found["pending-batch"].severity == "warning"
    (line,) = repair(lake)
    assert "finished batch" in line
    assert doctor(lake, deep=True) == []
    assert len(rows_of(lake)) == 140


def test_a_batch_killed_before_its_journal_leaves_orphans_only(
    lake: Storage,
) -> None:
    killed_writer(lake, "parts.written")
    assert set(examined(lake)) == {"orphan-file"}
    assert repair(lake) == []
    assert len(rows_of(lake)) == 120


def test_a_damaged_journal_is_named(lake: Storage) -> None:
    killed_writer(lake, "journal.written")
    (journal,) = Path(lake.uri, "_millrace", "pending").rglob("*.json")
    cut(journal)
    assert journal.name in examined(lake)["damaged-journal"].what


# What training asks


@pytest.mark.parametrize("version", [None, 6])
def test_training_refuses_a_table_with_an_empty_commit(lake: Storage, version: int | None) -> None:
    commit_file(lake, 6).write_bytes(b"")
    with pytest.raises(LakeError, match="commit 6 .* is an empty file"):
        check_table(lake, "steps", version)


def test_training_refuses_a_table_whose_last_commit_is_gone(lake: Storage) -> None:
    commit_file(lake, 6).unlink()
    with pytest.raises(LakeError, match=r"20 rows of run_id=r0/.* in no commit"):
        check_table(lake, "steps")


def test_training_refuses_a_commit_without_its_files(lake: Storage) -> None:
    path = commit_file(lake, 3)
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    with pytest.raises(LakeError, match="version 6 of steps .* does not hold what was written"):
        check_table(lake, "steps")


def test_training_takes_an_older_version_of_a_table(lake: Storage) -> None:
    for version in range(1, 7):
        check_table(lake, "steps", version)


@pytest.mark.parametrize("cut_commit", [b"", b'{"commitInfo":{}}'])
def test_training_takes_the_versions_before_a_damage(lake: Storage, cut_commit: bytes) -> None:
    commit_file(lake, 6).write_bytes(cut_commit)
    with pytest.raises(LakeError, match="commit 6|does not hold"):
        check_table(lake, "steps")
    for version in range(6):
        check_table(lake, "steps", version)


# Reports


def test_many_of_a_kind_are_counted() -> None:
    many = [Finding("info", "stray-file", "steps", "what", str(i)) for i in range(50)]
    shown = list(limited(many))
    assert len(shown) == 21
    assert "30 more" in shown[-1].what


def test_ranges_are_short() -> None:
    assert ranges([3, 1, 2, 7, 9, 10]) == "1-3, 7, 9-10"
    assert ranges(range(0, 40, 2), most=2) == "0, 2, …"


def test_unknown_tables_are_refused(lake: Storage) -> None:
    with pytest.raises(LakeError, match="no table 'step'"):
        doctor(lake, tables=["step"])


def test_one_table_is_examined_alone(lake: Storage) -> None:
    data_files(lake, "metrics")
    data_files(lake)[0].unlink()
    assert doctor(lake, tables=["episodes"]) == []
    assert "missing-file" in kinds(doctor(lake, tables=["steps"]))


def test_the_version_that_is_read_is_what_delta_reads(lake: Storage) -> None:
    assert opened(lake).version() == last_version(lake)


# Repair


@pytest.mark.parametrize("table", ["steps", "consumption", "ledger"])
@pytest.mark.parametrize("how", [Path.unlink, cut, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("version", [6, pytest.param(4, marks=pytest.mark.fault)])
def test_a_commit_is_made_again_from_the_ledger_and_the_files(
    lake: Storage, table: str, how: Callable[[Path], object], version: int
) -> None:
    before = {name: rows_of(lake, name) for name in s.TABLES}
    how(commit_file(lake, version, table))
    if not (table == "ledger" and version == 6 and how is Path.unlink):
        assert any(finding.severity == "error" for finding in doctor(lake))
        (line,) = repair(lake)
        assert line.startswith(f"made commit {version} of {table} again")
    else:
        # The one damage that leaves no trace but files without a name.
        repair(lake)
    assert doctor(lake, deep=True) == []
    assert {name: rows_of(lake, name) for name in s.TABLES} == before
    append(lake, range(6, 8))
    assert doctor(lake, deep=True) == []
    assert len(rows_of(lake)) == 160


def test_several_commits_are_made_again_in_their_order(lake: Storage) -> None:
    before = rows_of(lake, version=5)
    for version in (3, 5, 6):
        commit_file(lake, version).write_bytes(b"")
    assert len(repair(lake)) == 3
    assert rows_of(lake, version=5) == before
    assert doctor(lake, deep=True) == []


def test_a_commit_whose_file_is_altered_is_not_made_again(lake: Storage) -> None:
    (path,) = [path for path in data_files(lake) if path.name.endswith("-00000003.parquet")]
    commit_file(lake, 4).write_bytes(b"")
    flip(path, 0.3)
    with pytest.raises(LakeError, match="commit 4 of steps .* empty"):
        repair(lake)
    assert "lost-commit" in examined(lake)


def test_an_empty_commit_that_brought_no_rows_is_made_again(lake: Storage) -> None:
    before = rows_of(lake)
    opened(lake).optimize.compact()
    commit_file(lake, 7).write_bytes(b"")
    assert repair(lake) == ["made commit 7 of steps again, with 0 rows"]
    assert rows_of(lake) == before
    assert not {f.severity for f in doctor(lake)} & {"error", "warning"}


def test_a_damaged_checkpoint_is_set_aside(lake: Storage) -> None:
    append(lake, range(6, 21))
    before = rows_of(lake)
    (path,) = commit_file(lake, 0).parent.glob("*.checkpoint.parquet")
    cut(path)
    with pytest.raises(LakeError):
        rows_of(lake)
    (line,) = repair(lake)
    assert path.name in line
    assert rows_of(lake) == before
    assert doctor(lake, deep=True) == []
    assert len(list(Path(lake.uri, "_millrace", "damaged").rglob("*.parquet"))) == 1


def test_a_checkpoint_that_holds_what_no_commit_does_is_left_where_it_is(lake: Storage) -> None:
    append(lake, range(6, 21))
    (path,) = commit_file(lake, 0).parent.glob("*.checkpoint.parquet")
    commit_file(lake, 4).unlink()
    assert repair(lake) == []
    assert path.exists()
    assert "missing-commit" in examined(lake)


def test_a_repair_of_a_healthy_lake_does_nothing(lake: Storage) -> None:
    versions = [last_version(lake, table) for table in s.TABLES]
    assert repair(lake) == []
    assert [last_version(lake, table) for table in s.TABLES] == versions
