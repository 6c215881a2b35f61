"""History, compaction and vacuum of real lakes, with real processes beside them."""

import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from offline import schemas as s
from offline.commits import live_files
from offline.compaction import compact
from offline.compaction_ledger import enter_compacted
from offline.doctor import doctor
from offline.doctor_repair import repair
from offline.errors import LakeError
from offline.files import file_sha256
from offline.ledger_check import check_table, read_ledger
from offline.selection import select
from offline.storage import Storage
from offline.table_history import history
from offline.tables import create_tables
from offline.vacuum import vacuum
from rl_ops import columns as c
from tests.offline.doctor_kit import (
    ROOT,
    age,
    append,
    commit_file,
    data_files,
    examined,
    flip,
    killed_writer,
    kinds,
    last_version,
    opened,
    rows_of,
    small_lake,
)

# History


def test_history_is_newest_first_and_says_who_wrote_what(tmp_path: Path) -> None:
    lake = small_lake(tmp_path, batches=3)
    versions = list(history(lake, tables=["steps"]))
    assert [v.version for v in versions] == [3, 2, 1, 0]
    newest = versions[0]
    assert (newest.operation, newest.rows_added, newest.files_added) == ("WRITE", 20, 1)
    assert newest.writer == "r0/0 #2"
    assert newest.fragments == (4, 5)
    assert newest.at is not None
    assert newest.at.tzinfo is not None
    assert versions[-1].operation == "CREATE TABLE"


def test_history_is_limited_and_goes_on_over_a_damaged_commit(tmp_path: Path) -> None:
    lake = small_lake(tmp_path, batches=3)
    commit_file(lake, 2).write_bytes(b"")
    versions = list(history(lake, tables=["steps", "episodes"], limit=3))
    assert [(v.table, v.version) for v in versions] == [
        *(("steps", 3), ("steps", 2), ("steps", 1)),
        *(("episodes", 3), ("episodes", 2), ("episodes", 1)),
    ]
    assert versions[1].problem == "is an empty file"


def test_history_tells_of_a_compaction(tmp_path: Path) -> None:
    lake = small_lake(tmp_path, batches=3)
    compact(lake, tables=["steps"])
    newest = next(history(lake, tables=["steps"]))
    assert (newest.operation, newest.files_added, newest.files_removed) == ("OPTIMIZE", 1, 3)
    assert newest.writer == "millrace-compact"


# Compaction


def test_compaction_changes_files_and_no_rows(tmp_path: Path) -> None:
    lake = small_lake(tmp_path)
    before = {table: rows_of(lake, table) for table in s.TABLES}
    done = {each.table: each for each in compact(lake)}
    assert set(done) == {"steps", "episodes", "consumption", "ledger"}
    assert (done["steps"].files_before, done["steps"].files_after) == (6, 1)
    assert done["steps"].rows == 120
    assert done["steps"].version == 7
    assert done["steps"].bytes_after < done["steps"].bytes_before
    for table in ("steps", "episodes", "consumption"):
        assert rows_of(lake, table) == before[table]
        check_table(lake, table)
    assert doctor(lake, deep=True) == []


def test_compaction_is_done_when_there_is_nothing_to_do(tmp_path: Path) -> None:
    lake = small_lake(tmp_path)
    compact(lake)
    versions = [last_version(lake, table) for table in s.TABLES]
    assert compact(lake) == []
    assert [last_version(lake, table) for table in s.TABLES] == versions


def test_the_steps_of_an_episode_stay_in_order(tmp_path: Path) -> None:
    lake = small_lake(tmp_path)
    compact(lake, tables=["steps"])
    (path,) = data_files(lake)
    rows = pq.read_table(path, partitioning=None).to_pylist()
    episodes: dict[str, list[int]] = {}
    for row in rows:
        episodes.setdefault(row[c.EPISODE_ID], []).append(row[c.T])
    assert len(episodes) == 24
    assert all(steps == [0, 1, 2, 3, 4] for steps in episodes.values())


def test_earlier_versions_stay_readable(tmp_path: Path) -> None:
    lake = small_lake(tmp_path)
    before = rows_of(lake, version=3)
    compact(lake)
    assert rows_of(lake, version=3) == before
    assert len(before) == 60
    check_table(lake, "steps", 3)


def test_the_ledger_has_the_new_files_and_what_they_replace(tmp_path: Path) -> None:
    lake = small_lake(tmp_path)
    old = {f"run_id=r0/{path.name}" for path in data_files(lake)}
    compact(lake, tables=["steps"])
    (path,) = live_files(opened(lake))
    entry = read_ledger(lake, opened(lake, "ledger"))["steps"][path]
    assert set(entry.replaces) == old
    assert entry.sha256 == file_sha256(lake, f"steps/{path}")
    assert (entry.rows, entry.run_id, entry.session) == (120, "r0", 0)
    assert entry.fragments == tuple(range(12))


def test_a_file_of_two_sessions_leaves_their_fragments_to_what_it_replaced(tmp_path: Path) -> None:
    lake = small_lake(tmp_path, batches=2)
    append(lake, range(2), session=1)
    compact(lake, tables=["steps"])
    (path,) = live_files(opened(lake))
    entry = read_ledger(lake, opened(lake, "ledger"))["steps"][path]
    assert (entry.session, entry.fragments, len(entry.replaces)) == (None, (), 4)
    assert doctor(lake, deep=True) == []


def test_statistics_of_compacted_files_let_readers_skip_them(tmp_path: Path) -> None:
    lake = small_lake(tmp_path)
    append(lake, range(2), run_id="r1")
    # The target splits the run's files into several.
    compact(lake, tables=["steps"], target_bytes=11_000)
    assert 1 < len(data_files(lake)) < 8
    for where in ([(c.FRAGMENT_ID, "==", 1)], [(c.EPISODE_ID, "==", "0-11-1")]):
        chosen = select(lake, "steps", where=where)
        assert len(chosen.files()) < len(data_files(lake))
        assert chosen.count() > 0
    assert select(lake, "steps", where=[(c.FRAGMENT_ID, "==", 99)]).files() == []


def test_a_run_is_compacted_alone(tmp_path: Path) -> None:
    lake = small_lake(tmp_path, batches=3)
    append(lake, range(3), run_id="r1")
    done = compact(lake, run_id="r1")
    assert {each.table for each in done} == {"steps", "episodes", "consumption"}
    folders = [path.parent.name for path in data_files(lake)]
    assert (folders.count("run_id=r0"), folders.count("run_id=r1")) == (3, 1)


def test_a_damaged_file_is_not_compacted(tmp_path: Path) -> None:
    lake = small_lake(tmp_path)
    flip(data_files(lake)[2], 0.3)
    with pytest.raises(LakeError, match="sha256 differs from the ledger's"):
        compact(lake)
    assert last_version(lake) == 6


@pytest.mark.parametrize("finish", [compact, repair])
def test_a_compaction_killed_before_the_ledger_is_entered_later(tmp_path: Path, finish) -> None:
    lake = small_lake(tmp_path)
    opened(lake).optimize.compact()
    check_table(lake, "steps")
    assert kinds(doctor(lake)) == {"unentered-compaction"}
    finish(lake)
    assert doctor(lake, deep=True) == []
    rows = read_ledger(lake, opened(lake, "ledger"))["steps"]
    assert len(rows) == 7
    assert enter_compacted(lake, "steps") == []


def test_two_compactions_before_the_ledger_are_entered_later(tmp_path: Path) -> None:
    lake = small_lake(tmp_path, batches=3)
    opened(lake).optimize.compact()
    append(lake, range(3, 6))
    opened(lake).optimize.compact()
    assert len(enter_compacted(lake, "steps")) == 1
    assert doctor(lake, deep=True) == []


def test_who_enters_a_compaction_second_is_refused_and_looks_again(tmp_path: Path) -> None:
    from deltalake import CommitProperties, Transaction, write_deltalake
    from deltalake.exceptions import CommitFailedError

    from tests.offline.doctor_kit import table_of

    lake = small_lake(tmp_path, batches=2)
    first, second = opened(lake, "ledger"), opened(lake, "ledger")
    row = table_of("ledger", [{"writer": "x", s.TABLE: "steps"}])
    properties = CommitProperties(app_transactions=[Transaction("millrace-compact/steps", 1)])
    write_deltalake(first, row, mode="append", commit_properties=properties)
    with pytest.raises(CommitFailedError, match="[Cc]oncurrent transaction"):
        write_deltalake(second, row, mode="append", commit_properties=properties)


APPEND = """
import sys, time
from offline.storage import Storage
from tests.offline.doctor_kit import append
append(Storage.at(sys.argv[1]), range(int(sys.argv[3])), run_id=sys.argv[2])
"""
COMPACT = """
import sys, time
from offline.compaction import compact
from offline.storage import Storage
while True:
    for each in compact(Storage.at(sys.argv[1])):
        print(each.table, each.files_before, flush=True)
"""


@pytest.mark.parametrize("batches", [12, pytest.param(100, marks=pytest.mark.fault)])
def test_nothing_is_lost_or_doubled_while_runs_append(tmp_path: Path, batches: int) -> None:
    lake = small_lake(tmp_path, batches=2)
    writers = [
        subprocess.Popen([sys.executable, "-c", APPEND, lake.uri, run, str(batches)], cwd=ROOT)
        for run in ("a", "b")
    ]
    compactor = subprocess.Popen(
        [sys.executable, "-c", COMPACT, lake.uri], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert [writer.wait(120) for writer in writers] == [0, 0]
        assert compactor.stdout is not None
        lines = [compactor.stdout.readline()]
        assert compactor.poll() is None
    finally:
        for process in writers:
            process.kill()
        # Wherever it is, also between a commit and the ledger.
        compactor.kill()
        compactor.communicate()
    assert lines[0].startswith("steps ")
    assert len(rows_of(lake)) == 40 + 2 * batches * 20
    assert kinds(doctor(lake, deep=True)) <= {"unentered-compaction", "orphan-file"}
    compact(lake)
    assert kinds(doctor(lake, deep=True)) <= {"orphan-file"}
    for table in s.TABLES:
        check_table(lake, table)


def test_a_lake_in_an_object_store_is_kept_as_well(s3_folder: str) -> None:
    storage = Storage.at(s3_folder)
    create_tables(storage)
    append(storage, range(3))
    before = rows_of(storage)
    assert compact(storage, tables=["steps"])[0].files_before == 3
    assert doctor(storage, deep=True) == []
    (steps,) = vacuum(
        storage, tables=["steps"], retention_hours=0, force=True, dry_run=False, safety_s=0
    )
    assert len(steps.files) == 3
    assert rows_of(storage) == before
    assert doctor(storage, deep=True) == []
    assert repair(storage) == []
    assert "OPTIMIZE" in [each.operation for each in history(storage, tables=["steps"])]


# Vacuum


def test_vacuum_says_what_it_would_remove_and_removes_nothing(tmp_path: Path) -> None:
    lake = small_lake(tmp_path)
    old = data_files(lake)
    compact(lake, tables=["steps"])
    would = {v.table: v for v in vacuum(lake, retention_hours=0, force=True, safety_s=0)}
    assert len(would["steps"].files) == 6
    assert would["steps"].num_bytes == sum(path.stat().st_size for path in old)
    assert not would["steps"].removed
    assert all(path.exists() for path in old)


def test_vacuum_keeps_what_a_recent_version_needs(tmp_path: Path) -> None:
    lake = small_lake(tmp_path)
    compact(lake, tables=["steps"])
    assert all(v.files == () for v in vacuum(lake, dry_run=False))
    assert len(rows_of(lake, version=3)) == 60


def test_after_vacuum_the_newest_version_is_whole_and_an_old_one_has_expired(
    tmp_path: Path,
) -> None:
    lake = small_lake(tmp_path)
    before = rows_of(lake)
    compact(lake)
    done = vacuum(lake, retention_hours=0, force=True, dry_run=False, safety_s=0)
    assert sum(len(v.files) for v in done) > 18
    assert rows_of(lake) == before
    assert doctor(lake, deep=True) == []
    with pytest.raises(LakeError, match="expired"):
        rows_of(lake, version=3)


def test_less_than_a_week_asks_for_force(tmp_path: Path) -> None:
    lake = small_lake(tmp_path, batches=1)
    with pytest.raises(LakeError, match="--force"):
        vacuum(lake, retention_hours=100)


def test_vacuum_removes_the_orphans_of_killed_writers_when_they_are_old(tmp_path: Path) -> None:
    lake = small_lake(tmp_path)
    killed_writer(lake, "parts.written")
    (orphan,) = [
        Path(lake.uri, finding.where)
        for finding in doctor(lake)
        if finding.kind == "orphan-file" and finding.table == "steps"
    ]
    assert all(v.files == () for v in vacuum(lake, dry_run=False))
    (steps,) = vacuum(lake, tables=["steps"], retention_hours=0, force=True, dry_run=False)
    assert steps.kept == (f"run_id=r0/{orphan.name}",)
    age(orphan, hours=24 * 8)
    (steps,) = vacuum(lake, tables=["steps"], dry_run=False)
    assert steps.files == (f"run_id=r0/{orphan.name}",)
    assert not orphan.exists()


def test_vacuum_never_removes_what_a_pending_batch_needs(tmp_path: Path) -> None:
    lake = small_lake(tmp_path)
    killed_writer(lake, "journal.written")
    for path in Path(lake.uri).rglob("*.parquet"):
        age(path, hours=24 * 30)
    done = vacuum(lake, retention_hours=0, force=True, dry_run=False, safety_s=0)
    assert all(v.files == () for v in done)
    assert {v.table for v in done if v.kept} == {"steps", "episodes", "consumption", "ledger"}
    repair(lake)
    assert len(rows_of(lake)) == 140
    assert doctor(lake, deep=True) == []


def test_vacuum_never_removes_the_data_of_a_lost_commit(tmp_path: Path) -> None:
    lake = small_lake(tmp_path)
    (lost,) = [p for p in data_files(lake) if p.name.endswith("-00000005.parquet")]
    commit_file(lake, 6).unlink()
    age(lost, hours=24 * 30)
    (steps,) = vacuum(lake, tables=["steps"], dry_run=False)
    assert steps.files == ()
    assert lost.exists()
    assert "lost-commit" in examined(lake)


def test_vacuum_leaves_stray_files_alone(tmp_path: Path) -> None:
    lake = small_lake(tmp_path, batches=1)
    stray = Path(lake.table_uri("steps"), "notes.txt")
    stray.write_text("mine")
    age(stray, hours=24 * 30)
    vacuum(lake, retention_hours=0, force=True, dry_run=False, safety_s=0)
    assert stray.exists()
