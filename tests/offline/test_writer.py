"""The transactional writer: batches once, whatever fails, restarts or writes beside it."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from offline import delta_log, files, journal, local_log, parts, table_log, writer
from offline import schemas as s
from offline.errors import LakeBusyError, LakeError, LakeStorageError
from offline.failpoints import WRITER_POINTS
from offline.journal import read_journals
from offline.storage import Storage
from offline.tables import create_tables, open_table, set_property
from offline.writer import LakeWriter, recover
from tests.offline.s3_kit import BUCKET
from tests.offline.writer_kit import TABLES, WRITER, batch_of, check, fragments_of, new_lake, read

ERRORS = {"full": OSError(errno.ENOSPC, "No space left on device"), "broken": OSError(5, "I/O")}
REST = [(1, "broken"), (3, "full")]
"""Pairs of a batch and an error that the nightly tests take up."""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template") / "lake"
    new_lake(folder, checkpoint_period=2)
    return folder


@pytest.fixture
def storage(template: Path, tmp_path: Path) -> Storage:
    shutil.copytree(template, tmp_path / "lake")
    return Storage.at(tmp_path / "lake")


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Back off for no time."""
    monkeypatch.setattr("offline.patience.time.sleep", lambda _: None)


@pytest.fixture(params=["own", "delta_rs"])
def log(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Commits written here, and through delta-rs as in an object store."""
    if request.param == "delta_rs":
        monkeypatch.setattr(table_log, "_WRITER_VERSION", 0)
    return str(request.param)


def fail_once(
    monkeypatch: pytest.MonkeyPatch, point: str, error: Exception, *, hit: int = 1
) -> None:
    """Raise at a fail point, at one of the times it is passed."""
    hits = 0

    def trap(name: str) -> None:
        nonlocal hits
        hits += name == point
        if name == point and hits == hit:
            raise error

    for module in (files, parts, table_log, local_log, delta_log, writer):
        monkeypatch.setattr(module, "fail_point", trap)


def test_a_batch_is_in_all_of_its_tables_and_the_ledger(storage: Storage, log: str) -> None:
    with LakeWriter(storage, WRITER) as lake:
        first = lake.write(batch_of([0, 1]), fragments=[0, 1])
        second = lake.write(batch_of([2]), fragments=[2])
    assert (first.seq, second.seq) == (0, 1)
    assert first.rows == {"steps": 10, "episodes": 2, "consumption": 2, "ledger": 3}
    assert first.fragments == (0, 1)
    for name, version in first.versions.items():
        assert open_table(storage, name, version=version).count() == first.rows[name]
    check(storage, {"run": range(3)})
    assert sorted(fragments_of(storage)) == [0, 1, 2]


def test_commits_tell_writer_fragments_and_rows(storage: Storage, log: str) -> None:
    with LakeWriter(storage, WRITER) as lake:
        lake.write(batch_of([7]), fragments=[7])
    opened = open_table(storage, s.STEPS.name)
    told = json.loads(opened.history(1)[0]["millrace"])
    assert {key: told[key] for key in ("writer", "seq", "fragments", "rows")} == {
        **{"writer": WRITER, "seq": 0, "fragments": [7], "rows": 5}
    }
    assert opened.transaction_version(WRITER) == 0


def test_numbers_go_on_after_a_restart(storage: Storage, log: str) -> None:
    for number in range(5):
        with LakeWriter(storage, WRITER) as lake:
            assert lake.recovered == ()
            assert lake.write(batch_of([number]), fragments=[number]).seq == number
    check(storage, {"run": range(5)})


def test_a_removed_journal_does_not_let_a_number_be_used_twice(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, hurried: None
) -> None:
    fail_once(monkeypatch, "commit.before", ERRORS["full"], hit=2)
    with LakeWriter(storage, WRITER) as lake, pytest.raises(LakeStorageError):
        lake.write(batch_of([0]))
    for path in Path(storage.uri, "_millrace", "pending").rglob("*.json"):
        path.unlink()
    with LakeWriter(storage, WRITER) as lake:
        assert lake.write(batch_of([1])).seq == 1
    # The steps of fragment 0 were committed, and are still there.
    assert open_table(storage, s.STEPS.name).count() == 10


def test_nothing_to_write_writes_nothing(storage: Storage) -> None:
    with LakeWriter(storage, WRITER) as lake:
        empty = lake.write({s.STEPS.name: s.STEPS.schema.empty_table()}, fragments=[3])
        assert lake.write({}).versions == empty.versions == {}
        assert lake.write(batch_of([0])).seq == 0
    check(storage, {"run": [0]})


@pytest.mark.parametrize("table", ["stepps", "ledger"])
def test_other_tables_are_refused(storage: Storage, table: str) -> None:
    with LakeWriter(storage, WRITER) as lake, pytest.raises(LakeError, match=table):
        lake.write({table: batch_of([0])[s.STEPS.name]})


def test_rows_that_do_not_fit_leave_nothing_behind(storage: Storage) -> None:
    tables = batch_of([0])
    wrong = tables[s.CONSUMPTION.name].drop_columns([s.LAG])
    with LakeWriter(storage, WRITER) as lake, pytest.raises(LakeError, match="- lag: int64"):
        lake.write({**tables, s.CONSUMPTION.name: wrong})
    check(storage, {})
    with LakeWriter(storage, WRITER) as lake:
        assert lake.write(tables).seq == 0
    check(storage, {"run": [0]})


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(LakeError, match="ledger"):
        LakeWriter(Storage.at(tmp_path), WRITER)


@pytest.mark.parametrize("name", ["", "a\0b", "é" * 100])
def test_names_that_no_folder_can_have_are_refused(storage: Storage, name: str) -> None:
    with pytest.raises(LakeError, match="no name"):
        LakeWriter(storage, name)


@pytest.mark.parametrize("name", ["..", ".", "a/../../b", "~!*'()", "ü ü"])
def test_odd_names_write_inside_the_lake(storage: Storage, name: str) -> None:
    with LakeWriter(storage, name) as lake:
        lake.write(batch_of([0], run_id="../../x"))
    check(storage, {"../../x": [0]})
    assert [path.name for path in Path(storage.uri).parent.iterdir()] == ["lake"]


def test_a_second_writer_of_the_name_is_refused_until_the_first_is_closed(
    storage: Storage,
) -> None:
    first = LakeWriter(storage, WRITER)
    with pytest.raises(LakeBusyError, match=f"process {os.getpid()} writes"):
        LakeWriter(storage, WRITER)
    LakeWriter(storage, "run/1").close()
    first.write(batch_of([0]))
    first.close()
    with LakeWriter(storage, WRITER) as second:
        assert second.write(batch_of([1])).seq == 1
    with pytest.raises(LakeError, match="closed"):
        first.write(batch_of([2]))
    check(storage, {"run": [0, 1]})


@pytest.mark.parametrize(
    ("hit", "error"),
    [(1, "full"), (3, "broken"), *(pytest.param(*x, marks=pytest.mark.fault) for x in REST)],
)
@pytest.mark.parametrize("point", WRITER_POINTS)
def test_a_batch_that_failed_is_there_once_when_it_is_written_again(
    point: str,
    hit: int,
    error: str,
    storage: Storage,
    monkeypatch: pytest.MonkeyPatch,
    hurried: None,
) -> None:
    fail_once(monkeypatch, point, ERRORS[error], hit=hit)
    with LakeWriter(storage, WRITER) as lake:
        for number in range(4):
            tables = batch_of([number])
            for _ in range(3):
                try:
                    lake.write(tables, fragments=[number])
                    break
                except (LakeStorageError, OSError):
                    continue
    check(storage, {"run": range(4)})


@pytest.mark.parametrize("point", WRITER_POINTS)
def test_another_batch_after_one_that_failed_does_not_lose_it_if_it_was_promised(
    point: str, storage: Storage, monkeypatch: pytest.MonkeyPatch, hurried: None
) -> None:
    fail_once(monkeypatch, point, ERRORS["full"])
    with LakeWriter(storage, WRITER) as lake:
        try:
            lake.write(batch_of([0]), fragments=[0])
        except (LakeStorageError, OSError):
            promised = bool(read_journals(storage))
        else:
            promised = True
        lake.write(batch_of([1]), fragments=[1])
    whole = promised or point == "journal.removed"
    check(storage, {"run": [0, 1] if whole else [1]})


def test_a_batch_that_failed_half_way_is_finished_by_the_next_process(
    storage: Storage, log: str, monkeypatch: pytest.MonkeyPatch, hurried: None
) -> None:
    fail_once(monkeypatch, "commit.before", ERRORS["full"], hit=3)
    with LakeWriter(storage, WRITER) as lake, pytest.raises(LakeStorageError, match="disk is full"):
        lake.write(batch_of([0, 1]), fragments=[0, 1])
    with LakeWriter(storage, WRITER) as lake:
        (finished,) = lake.recovered
        assert (finished.seq, finished.fragments) == (0, (0, 1))
        assert lake.write(batch_of([2])).seq == 1
    check(storage, {"run": range(3)})


def test_the_ledger_names_only_what_is_in_the_tables(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    for commits, rows in enumerate([[0, 0, 0, 0], [5, 0, 0, 0], [5, 1, 0, 0], [5, 1, 1, 0]]):
        name = f"{WRITER}{commits}"
        fail_once(monkeypatch, "commit.before", ERRORS["full"], hit=commits + 1)
        with LakeWriter(storage, name) as lake, pytest.raises(LakeStorageError):
            lake.write(batch_of([0], run_id=name))
        tables = [*TABLES, s.LEDGER.name]
        assert [read(storage, table).num_rows for table in tables] == rows
        recover(storage)
        for table in tables:
            opened = open_table(storage, table)
            opened.delete()


def test_recover_finishes_the_batches_of_the_dead_and_leaves_the_living_alone(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, hurried: None
) -> None:
    fail_once(monkeypatch, "commit.before", ERRORS["full"], hit=2)
    with LakeWriter(storage, "dead/0") as lake, pytest.raises(LakeStorageError):
        lake.write(batch_of([0], run_id="dead"))
    fail_once(monkeypatch, "commit.before", ERRORS["full"], hit=2)
    living = LakeWriter(storage, "run/0")
    with pytest.raises(LakeStorageError):
        living.write(batch_of([0]))
    finished, left = recover(storage)
    assert finished == (
        "finished batch 0 of 'dead/0': 5 rows of steps, 1 rows of episodes, "
        "1 rows of consumption, 3 rows of ledger"
    )
    assert "left the batches of 'run/0' alone" in left
    living.write(batch_of([0]))
    living.close()
    assert recover(storage) == []
    check(storage, {"run": [0], "dead": [0]})


def promised_only(storage: Storage, monkeypatch: pytest.MonkeyPatch, *, commits: int) -> list[Path]:
    """A batch with some of its commits made; its data files."""
    fail_once(monkeypatch, "commit.before", ERRORS["full"], hit=commits + 1)
    with LakeWriter(storage, WRITER) as lake, pytest.raises(LakeStorageError):
        lake.write(batch_of([0]), fragments=[0])
    return [path for path in Path(storage.uri).rglob("*.parquet") if path.name[:5] != "00000"]


def test_a_promise_whose_data_is_gone_is_dropped_if_nobody_saw_any_of_it(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    promised_only(storage, monkeypatch, commits=0)[0].write_bytes(b"spoiled")
    with LakeWriter(storage, WRITER) as lake:
        assert lake.recovered == ()
        lake.write(batch_of([1]))
    check(storage, {"run": [1]})


def test_a_half_kept_promise_whose_data_is_gone_is_an_error(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in promised_only(storage, monkeypatch, commits=1):
        if "consumption" in str(path):
            path.unlink()
    for _ in range(2):
        with pytest.raises(LakeError, match=r"consumption/.*gone or altered"):
            LakeWriter(storage, WRITER)


def test_a_journal_that_is_none_is_named(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    promised_only(storage, monkeypatch, commits=0)
    (path,) = Path(storage.uri, "_millrace", "pending").rglob("*.json")
    path.write_text(path.read_text()[:50])
    with pytest.raises(LakeError, match=f"journal .*{path.name}"):
        LakeWriter(storage, WRITER)


def test_an_error_after_the_commit_was_made_does_not_make_it_twice(
    storage: Storage, log: str, monkeypatch: pytest.MonkeyPatch, hurried: None
) -> None:
    def then_fail(commits: Callable[..., Any], error: Exception) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> None:
            commits(*args, **options)
            if len(failed) < 3:
                failed.append(True)
                raise error

        return wrapped

    failed: list[bool] = []
    if log == "own":
        monkeypatch.setattr("offline.local_log.os.link", then_fail(os.link, OSError(5, "I/O")))
    else:
        real = DeltaTable.create_write_transaction
        error = OSError("Generic S3 error: 503 Service Unavailable")
        monkeypatch.setattr(DeltaTable, "create_write_transaction", then_fail(real, error))
    with LakeWriter(storage, WRITER) as lake:
        for number in range(3):
            lake.write(batch_of([number]), fragments=[number])
    assert len(failed) == 3
    check(storage, {"run": range(3)})


def test_commits_that_fail_for_a_while_are_repeated_and_then_given_up(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, hurried: None
) -> None:
    def broken(*_: object) -> None:
        tries.append(True)
        raise OSError(5, "Input/output error")

    tries: list[bool] = []
    with LakeWriter(storage, WRITER) as lake:
        with monkeypatch.context() as patch:
            patch.setattr("offline.local_log.os.link", broken)
            with pytest.raises(LakeStorageError, match="committing to steps"):
                lake.write(batch_of([0]))
        assert 3 <= len(tries) <= 10
        lake.write(batch_of([0]))
    check(storage, {"run": [0]})


def test_writers_side_by_side_and_a_compaction_all_land(storage: Storage, log: str) -> None:
    def write(name: str) -> None:
        try:
            with LakeWriter(storage, f"{name}/0") as lake:
                for number in range(8):
                    lake.write(batch_of([number], run_id=name), fragments=[number])
        except BaseException as error:  # noqa: BLE001 - raised below
            failed.append(error)

    failed: list[BaseException] = []
    names = ["a", "b", "c"]
    threads = [threading.Thread(target=write, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        open_table(storage, s.STEPS.name).optimize.compact()
    for thread in threads:
        thread.join()
    assert not failed
    check(storage, dict.fromkeys(names, range(8)), orphans=True)


def test_properties_put_meanwhile_are_no_conflict(storage: Storage, log: str) -> None:
    with LakeWriter(storage, WRITER) as lake:
        lake.write(batch_of([0]))
        set_property(storage, s.STEPS.name, "millrace.space.abc", "{}")
        lake.write(batch_of([1]))
    assert open_table(storage, s.STEPS.name).metadata().configuration["millrace.space.abc"] == "{}"
    check(storage, {"run": [0, 1]})


def test_a_column_added_meanwhile_stops_the_writer(storage: Storage) -> None:
    from deltalake import Field, Schema

    with LakeWriter(storage, WRITER) as lake:
        lake.write(batch_of([0]))
        fields: list[Field] = Schema.from_arrow(pa.schema([("extra", pa.int64())])).fields
        open_table(storage, s.STEPS.name).alter.add_columns(fields)
        with pytest.raises(LakeError, match="extra"):
            lake.write(batch_of([1]))


@pytest.mark.parametrize("content", ["", '{"commitInfo":{"times'])
def test_a_damaged_commit_of_another_stops_the_writer(storage: Storage, content: str) -> None:
    with LakeWriter(storage, WRITER) as lake:
        version = lake.write(batch_of([0])).versions[s.STEPS.name]
        path = Path(storage.table_uri(s.STEPS.name), "_delta_log", f"{version + 1:020d}.json")
        path.write_text(content)
        with pytest.raises(LakeError, match=f"commit {version + 1} of steps"):
            lake.write(batch_of([1]))


def test_logs_get_their_checkpoints(storage: Storage) -> None:
    with LakeWriter(storage, WRITER) as lake:
        for number in range(4):
            lake.write(batch_of([number]))
    logs = Path(storage.table_uri(s.STEPS.name), "_delta_log")
    assert len(list(logs.glob("*.checkpoint.parquet"))) >= 2
    check(storage, {"run": range(4)})


def test_stray_files_are_ignored(storage: Storage) -> None:
    with LakeWriter(storage, WRITER) as lake:
        lake.write(batch_of([0]))
        for folder in ("steps", "steps/run_id=run", "steps/_delta_log"):
            Path(storage.uri, folder, "stray.parquet").write_bytes(b"junk")
            Path(storage.uri, folder, "notes.txt").write_text("junk")
        lake.write(batch_of([1]))
    assert sorted(read(storage, s.STEPS.name)["fragment_id"].to_pylist()) == [0] * 5 + [1] * 5


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_batch_that_fills_the_disk_fails_whole_and_is_written_once_there_is_space(
    small_disk: Path,
) -> None:
    storage = new_lake(small_disk / "lake")
    filler = small_disk / "filler"
    fragments, said = 0, []
    with LakeWriter(storage, WRITER) as lake:
        for spare in range(0, 40_960, 4096):
            lake.write(batch_of([fragments]), fragments=[fragments])
            fragments += 1
            _fill(filler, spare)
            tables = batch_of([fragments])
            try:
                lake.write(tables, fragments=[fragments])
            except LakeStorageError as error:
                said.append(str(error))
                filler.unlink()
                lake.write(tables, fragments=[fragments])
            fragments += 1
            filler.unlink(missing_ok=True)
    assert said
    assert all("disk is full" in text for text in said)
    check(storage, {"run": range(fragments)})


def _fill(path: Path, spare: int) -> None:
    """Take what the disk has but for some bytes."""
    free = os.statvfs(path.parent)
    path.write_bytes(bytes(max(0, free.f_bavail * free.f_bsize - spare)))


def test_a_read_only_disk_is_an_error_at_once(small_disk: Path) -> None:
    storage = new_lake(small_disk / "lake")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(LakeStorageError, match="read-only"):
        LakeWriter(storage, WRITER)


@pytest.fixture
def s3(s3_server: dict[str, str], request: pytest.FixtureRequest) -> Storage:
    storage = Storage.at(f"s3://{BUCKET}/{request.node.name}", s3_server)
    create_tables(storage)
    return storage


def test_an_object_store_has_batches_restarts_and_promises_too(
    s3: Storage, monkeypatch: pytest.MonkeyPatch, hurried: None
) -> None:
    with LakeWriter(s3, WRITER) as lake:
        lake.write(batch_of([0]), fragments=[0])
        fail_once(monkeypatch, "commit.before", ERRORS["full"], hit=2)
        with pytest.raises(LakeStorageError):
            lake.write(batch_of([1]), fragments=[1])
    with LakeWriter(s3, WRITER) as lake:
        assert [written.fragments for written in lake.recovered] == [(1,)]
        lake.write(batch_of([2]), fragments=[2])
    assert recover(s3) == []
    assert journal.pending_writers(s3) == []
    check(s3, {"run": range(3)})


def test_of_two_processes_of_one_name_in_an_object_store_one_wins(s3: Storage) -> None:
    first, second = LakeWriter(s3, WRITER), LakeWriter(s3, WRITER)
    first.write(batch_of([0]), fragments=[0])
    with pytest.raises(LakeBusyError, match="another process writes to ledger"):
        second.write(batch_of([1]), fragments=[1])
    first.write(batch_of([2]), fragments=[2])
    assert recover(s3) == []
    check(s3, {"run": [0, 2]})


def test_of_two_batches_of_one_number_in_an_object_store_one_lands(
    s3: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meanwhile(name: str) -> None:
        if name == "journal.written" and not others:
            others.append(first.write(batch_of([0]), fragments=[0]))

    others: list[Any] = []
    first, second = LakeWriter(s3, WRITER), LakeWriter(s3, WRITER)
    for lake in (first, second):
        lake.write({})  # both are ready
    monkeypatch.setattr(writer, "fail_point", meanwhile)
    with pytest.raises(LakeBusyError, match="another process writes to steps"):
        second.write(batch_of([1]), fragments=[1])
    assert others[0].seq == 0
    assert read_journals(s3) == []
    check(s3, {"run": [0]})


def test_importing_the_writer_is_cheap() -> None:
    heavy = ("torch", "ray", "duckdb", "pandas", "deltalake")
    code = f"import sys, offline.writer; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
