"""The thread that writes batches: when they are due, who waits, and what an error does."""

import threading
import time

import pyarrow as pa
import pytest

from offline import schemas as s
from offline.background import BackgroundWriter, Batch, WritePolicy
from offline.errors import LakeBusyError, LakeError, LakeStorageError
from offline.lake import Lake
from offline.storage import Storage
from offline.tables import create_tables
from offline.writer import LakeWriter

NEVER = WritePolicy(interval_s=3600.0)


@pytest.fixture
def storage(tmp_path):
    found = Storage.at(tmp_path / "lake")
    create_tables(found)
    return found


def rows(keys):
    table = [{"run_id": "run", "session": 0, "key": key, "value": 1.0} for key in keys]
    return Batch({"metrics": pa.Table.from_pylist(table, schema=s.METRICS.schema)})


def writer(storage, policy=NEVER, make=rows, name="run/0"):
    return BackgroundWriter(storage, name, make=make, policy=policy)


def keys(storage):
    return Lake(storage).metrics().to_arrow().column("key").to_pylist()


def put(background, *names, num_bytes=1):
    for name in names:
        background.put(name, rows=1, num_bytes=num_bytes)


def wait_for(condition, timeout_s=10.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_was_put_is_in_the_lake_after_a_flush_in_one_commit(storage) -> None:
    background = writer(storage)
    put(background, "a", "b")
    assert keys(storage) == []
    versions = background.flush()
    assert keys(storage) == ["a", "b"]
    assert versions == background.versions()
    assert Lake(storage).metrics(version=versions["metrics"]).count() == 2
    assert Lake(storage).metrics(version=versions["metrics"] - 1).count() == 0
    background.close()


def test_a_flush_of_nothing_returns_at_once(storage) -> None:
    background = writer(storage)
    assert background.flush() == {}
    assert background.close() == {}


@pytest.mark.parametrize("policy", [WritePolicy(interval_s=0.05), WritePolicy(3600.0, rows=2)])
def test_a_batch_is_written_by_time_or_by_rows_without_being_asked(storage, policy) -> None:
    background = writer(storage, policy)
    put(background, "a", "b")
    wait_for(lambda: keys(storage) == ["a", "b"])
    background.close()


def test_closing_writes_what_is_left(storage) -> None:
    background = writer(storage)
    put(background, "a")
    background.close()
    assert keys(storage) == ["a"]


def test_who_puts_waits_only_while_the_queue_is_full(storage) -> None:
    hold, made = threading.Event(), []

    def slow(items):
        made.append(list(items))
        hold.wait(10)
        return rows(items)

    background = writer(storage, WritePolicy(3600.0, max_queue_bytes=100), slow)
    put(background, "a", num_bytes=100)
    wait_for(lambda: made == [["a"]])
    other = threading.Thread(target=put, args=(background, "b"))
    other.start()
    time.sleep(0.2)
    assert other.is_alive(), "a hundred bytes are not written yet"
    hold.set()
    other.join(10)
    assert not other.is_alive()
    background.close()
    assert keys(storage) == ["a", "b"]


def test_nobody_waits_for_a_batch_that_is_being_written(storage) -> None:
    hold, made = threading.Event(), []

    def slow(items):
        made.append(list(items))
        hold.wait(10)
        return rows(items)

    background = writer(storage, WritePolicy(3600.0, rows=1), slow)
    put(background, "a")
    wait_for(lambda: made)
    start = time.monotonic()
    put(background, *"bcdef")
    assert time.monotonic() - start < 1.0
    hold.set()
    background.close()
    assert keys(storage) == list("abcdef")


def test_an_error_ends_it_and_is_raised_wherever_it_is_used(storage) -> None:
    def fail(items):
        raise ZeroDivisionError("no batch today")

    background = writer(storage, make=fail)
    put(background, "a")
    for call in (background.flush, lambda: put(background, "b"), background.close):
        with pytest.raises(LakeError, match="ZeroDivisionError: no batch today"):
            call()
    assert keys(storage) == []


def refusing(monkeypatch, times):
    write, refused = LakeWriter.write, []

    def refuse(self, tables, *, fragments=()):
        if len(refused) < times:
            refused.append(1)
            raise LakeStorageError("the disk is full")
        return write(self, tables, fragments=fragments)

    monkeypatch.setattr(LakeWriter, "write", refuse)
    monkeypatch.setattr("offline.background.RETRY_S", 0.01)


def test_a_full_disk_stops_it_whole(storage, monkeypatch) -> None:
    refusing(monkeypatch, 1)
    background = writer(storage)
    put(background, "a")
    with pytest.raises(LakeStorageError, match="the disk is full"):
        background.flush()
    assert keys(storage) == []


def test_a_full_disk_is_waited_for_when_that_is_the_policy(storage, monkeypatch) -> None:
    refusing(monkeypatch, 3)
    background = writer(storage, WritePolicy(3600.0, on_error="wait"))
    put(background, "a")
    background.flush()
    background.close()
    assert keys(storage) == ["a"]


def test_two_of_one_name_are_refused(storage) -> None:
    first = writer(storage)
    put(first, "a")
    first.flush()
    second = writer(storage)
    with pytest.raises(LakeBusyError, match="run/0"):
        second.flush()
    first.close()
    assert keys(storage) == ["a"]
