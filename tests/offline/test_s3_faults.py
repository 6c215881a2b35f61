"""Object stores that are slow, busy, cut off or gone, and killed writers: every row once."""

import logging
import threading
import time
from collections.abc import Iterator

import pyarrow as pa
import pytest

from offline import background
from offline.background import BackgroundWriter, Batch, WritePolicy
from offline.doctor import doctor
from offline.errors import LakeStorageError
from offline.failpoints import WRITER_POINTS
from offline.journal import read_journals
from offline.lake import Lake
from offline.storage import Storage
from offline.tables import create_tables, set_property
from offline.writer import LakeWriter, recover
from tests.offline.flaky_proxy import Fault, Proxy, proxy_of
from tests.offline.s3_kit import (
    BUCKET,
    assert_no_secret,
    free_port,
    require_signatures,
    s3_options,
    set_environment,
)
from tests.offline.writer_kit import WRITER, Nursery, batch_of, check, new_lake, nursery

TOTAL = 4
"""Batches of one fragment each."""
MOST_S = 60.0
"""Until a store that is gone is an error."""

OF_FOLDERS = {
    *("commit.partial", "commit.linked"),
    *("log_checkpoint.before", "log_checkpoint.after"),
}
KILLS = [point for point in WRITER_POINTS if point not in OF_FOLDERS]

FAULTS = {
    "the first requests are refused": [Fault("busy", first=5)],
    "every third is refused": [Fault("busy", every=3)],
    "every third is refused after it was done": [Fault("forgotten", every=3)],
    "every other commit is refused after it was done": [
        Fault("forgotten", every=2, methods=("PUT",), contains="_delta_log")
    ],
    "every other write is done and never told": [Fault("dropped", every=2, methods=("PUT",))],
    "answers to the first commits never come": [
        Fault("dropped", first=4, methods=("PUT",), contains="_delta_log")
    ],
    "connections break in answers": [Fault("cut", frac=0.1)],
    "connections break in what is sent": [Fault("torn", every=3, methods=("PUT",))],
    "connections are refused now and then": [Fault("down", every=4)],
    "all answers are slow": [Fault("slow", delay_s=0.15)],
    "one answer takes longer than Arrow waits by itself": [
        Fault("slow", first=1, methods=("PUT",), delay_s=5.0)
    ],
    "a data file's answer never comes": [
        Fault("deaf", first=1, methods=("PUT",), contains=".parquet")
    ],
    "a commit's answer never comes": [
        Fault("deaf", first=1, methods=("PUT",), contains="_delta_log")
    ],
    "all of it by chance": [
        *(Fault("busy", frac=0.05), Fault("forgotten", frac=0.05), Fault("cut", frac=0.05)),
        *(Fault("dropped", frac=0.05), Fault("torn", frac=0.05), Fault("down", frac=0.05)),
    ],
}


@pytest.fixture(scope="module")
def proxy(s3_server: dict[str, str]) -> Iterator[Proxy]:
    with proxy_of(s3_server) as made:
        yield made


@pytest.fixture
def direct(s3_folder: str) -> Storage:
    """A lake, past the proxy."""
    storage = Storage.at(f"{s3_folder}/lake")
    create_tables(storage)
    return storage


@pytest.fixture
def flaky(direct: Storage, proxy: Proxy) -> Iterator[Storage]:
    """The same lake, through the proxy."""
    yield Storage.at(direct.uri, proxy.options)
    proxy.heal()


def write(storage: Storage, fragments: range, writer: str = WRITER) -> None:
    with LakeWriter(storage, writer) as lake:
        for fragment in fragments:
            batch = batch_of([fragment], writer.partition("/")[0])
            lake.write(batch, fragments=[fragment])


def test_quick_every_fragment_is_there_once_behind_a_store_that_fails_by_chance(
    direct: Storage, flaky: Storage, proxy: Proxy
) -> None:
    faults = FAULTS["all of it by chance"]
    proxy.fail(*faults)
    write(flaky, range(2))
    assert proxy.heal() > 0
    check(direct, {"run": range(2)})


@pytest.mark.fault
@pytest.mark.parametrize("name", FAULTS)
def test_every_fragment_is_there_once(
    name: str, direct: Storage, flaky: Storage, proxy: Proxy
) -> None:
    proxy.fail(*FAULTS[name])
    write(flaky, range(TOTAL))
    assert proxy.heal() > 0
    assert read_journals(direct) == []
    check(direct, {"run": range(TOTAL)})
    assert [found for found in doctor(direct, deep=True) if found.severity == "error"] == []


@pytest.mark.fault
@pytest.mark.parametrize("name", ["every third is refused", "connections break in answers"])
def test_a_lake_is_made_and_read_behind_a_store_that_fails(
    name: str, s3_folder: str, proxy: Proxy
) -> None:
    storage = Storage.at(f"{s3_folder}/new", proxy.options)
    proxy.fail(*FAULTS[name])
    create_tables(storage)
    write(storage, range(2))
    found = Lake(storage).sql("SELECT count(*) AS n, count(DISTINCT fragment_id) AS f FROM steps")
    assert proxy.heal() > 0
    assert found.to_pylist() == [{"n": 10, "f": 2}]


@pytest.mark.fault
@pytest.mark.parametrize("kind", ["busy", "down", "deaf"])
@pytest.mark.parametrize("when", ["first", "data", "commit"])
def test_a_store_that_stays_away_is_one_error_within_a_minute(
    kind: str, when: str, direct: Storage, flaky: Storage, proxy: Proxy
) -> None:
    contains = {"first": "", "data": ".parquet", "commit": "_delta_log"}[when]
    methods = () if when == "first" else ("PUT",)
    with LakeWriter(flaky, WRITER) as lake:
        lake.write(batch_of([0]), fragments=[0])
        proxy.fail(Fault(kind, contains=contains, methods=methods))
        begin = time.monotonic()
        with pytest.raises(LakeStorageError, match="does not answer|overloaded|broke") as raised:
            lake.write(batch_of([1]), fragments=[1])
        assert time.monotonic() - begin < MOST_S
        assert_no_secret(str(raised.value))
        proxy.heal()
        # The same batch again, as the sink does when it is told to wait.
        lake.write(batch_of([1]), fragments=[1])
    check(direct, {"run": range(2)})


@pytest.mark.fault
def test_a_store_that_is_gone_for_good_is_an_error_at_once_and_loses_nothing(
    direct: Storage, flaky: Storage, proxy: Proxy
) -> None:
    with LakeWriter(flaky, WRITER) as lake:
        lake.write(batch_of([0]), fragments=[0])
        proxy.fail(Fault("down", methods=("PUT",), contains="episodes/_delta_log"))
        with pytest.raises(LakeStorageError):
            lake.write(batch_of([1]), fragments=[1])
    proxy.heal()
    # Steps were committed, episodes were not: another process makes up for it.
    assert [line.split(":")[0] for line in recover(direct)] == ["finished batch 1 of 'run/0'"]
    check(direct, {"run": range(2)})


@pytest.mark.parametrize("reason", ["busy", "down"])
def test_a_run_that_waits_goes_on_when_the_store_is_back(
    reason: str,
    direct: Storage,
    flaky: Storage,
    proxy: Proxy,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(background, "RETRY_S", 0.05)
    monkeypatch.setattr("offline.patience.time.sleep", lambda _: None)
    policy = WritePolicy(interval_s=0.01, on_error="wait")
    make = lambda items: Batch(batch_of(items), items)  # noqa: E731
    writer = BackgroundWriter[int](flaky, WRITER, make=make, policy=policy)
    with caplog.at_level(logging.WARNING):
        writer.put(0, rows=5, num_bytes=100)
        writer.flush()
        proxy.fail(Fault(reason, methods=("PUT",)))
        writer.put(1, rows=5, num_bytes=100)
        while "trying again" not in caplog.text:
            time.sleep(0.01)
        proxy.heal()
        writer.close()
    assert_no_secret(caplog.text)
    check(direct, {"run": range(2)})


def test_writers_of_other_names_write_side_by_side(direct: Storage) -> None:
    failed: list[BaseException] = []

    def run(name: str) -> None:
        try:
            write(direct, range(3), name)
        except BaseException as error:  # noqa: BLE001 - raised below
            failed.append(error)

    threads = [threading.Thread(target=run, args=(name,)) for name in ("one/0", "two/0")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    check(direct, {"one": range(3), "two": range(3)})


@pytest.mark.fault
def test_processes_of_other_names_write_side_by_side_behind_a_store_that_fails(
    direct: Storage, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, proxy.options)
    proxy.fail(Fault("busy", frac=0.05), Fault("forgotten", frac=0.05))
    names = ["one/0", "two/0", "three/0"]

    def run(name: str) -> None:
        with nursery() as own:
            assert own.run(direct, total=8, batch=1, writer=name)

    threads = [threading.Thread(target=run, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert proxy.heal() > 0
    check(direct, {name.partition("/")[0]: range(8) for name in names})


@pytest.fixture
def children(s3: dict[str, str]) -> Iterator[Nursery]:
    """Their environment has the options."""
    with nursery() as made:
        yield made


@pytest.mark.parametrize("point", ["journal.written", "commit.written"])
def test_quick_a_writer_killed_in_a_batch_is_made_up_for(
    point: str, direct: Storage, children: Nursery
) -> None:
    assert not children.run(direct, total=2, batch=1, fail_point=f"{point}:1")
    assert children.run(direct, total=2, batch=1)
    check(direct, {"run": range(2)})


@pytest.mark.fault
@pytest.mark.parametrize("hit", [1, 3])
@pytest.mark.parametrize("point", KILLS)
def test_a_writer_killed_at_any_point_is_made_up_for(
    point: str, hit: int, s3_folder: str, children: Nursery
) -> None:
    # A checkpoint of the logs every second commit: delta-rs makes them in stores.
    storage = new_lake(f"{s3_folder}/lake", checkpoint_period=2)
    assert not children.run(storage, total=TOTAL, batch=1, fail_point=f"{point}:{hit}")
    children.run(storage, total=TOTAL, batch=1, fail_point=point)
    assert children.run(storage, total=TOTAL, batch=1)
    assert read_journals(storage) == []
    check(storage, {"run": range(TOTAL)})
    assert [found for found in doctor(storage, deep=True) if found.severity == "error"] == []


@pytest.mark.fault
def test_writers_killed_again_and_again_behind_a_store_that_fails_lose_nothing(
    direct: Storage, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, proxy.options)
    proxy.fail(Fault("busy", frac=0.05), Fault("forgotten", frac=0.05))
    with nursery() as own:
        for number in range(8):
            own.run(direct, total=2 * number + 2, batch=1, kill_after_s=0.4 + 0.1 * number)
        assert own.run(direct, total=16, batch=4)
        assert own.kills > 3
    assert proxy.heal() > 0
    check(direct, {"run": range(16)})


def test_an_endpoint_where_nobody_listens_is_one_error(direct: Storage) -> None:
    dead = Storage.at(direct, {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}"})
    begin = time.monotonic()
    with pytest.raises(LakeStorageError, match="endpoint does not answer") as raised:
        create_tables(dead)
    assert time.monotonic() - begin < MOST_S / 2
    assert_no_secret(str(raised.value))


def test_credentials_that_expire_while_a_run_writes_are_one_error_without_a_secret() -> None:
    with s3_options() as options:
        storage = Storage.at(f"s3://{BUCKET}/lake", options)
        create_tables(storage)
        with LakeWriter(storage, WRITER) as lake:
            lake.write(batch_of([0]), fragments=[0])
            require_signatures(options)
            begin = time.monotonic()
            with pytest.raises(LakeStorageError, match="the credentials are wrong") as raised:
                lake.write(batch_of([1]), fragments=[1])
        assert time.monotonic() - begin < 2
        assert_no_secret(str(raised.value), repr(raised.value), repr(storage))
        with pytest.raises(LakeStorageError, match="the credentials are wrong"):
            Lake(storage).exists()


def test_settings_of_patience_reach_delta_rs_however_they_are_spelled() -> None:
    storage = Storage.at("s3://bucket", {"MAX_RETRIES": "1", "Retry_Timeout": "2s"})
    assert storage.delta_options is not None
    assert storage.delta_options["max_retries"] == "1"
    assert storage.delta_options["retry_timeout"] == "2s"
    assert Storage.at("/lake").delta_options is None


def test_small_files_are_one_request_each(direct: Storage, flaky: Storage, proxy: Proxy) -> None:
    proxy.fail(Fault("slow", contains="file"))
    with flaky.filesystem().open_output_stream("file") as stream:
        stream.write(b"content")
    assert proxy.failed == 1
    with direct.filesystem().open_input_stream("file") as stream:
        assert stream.read() == b"content"


def test_rows_survive_a_checkpoint_of_the_log(direct: Storage) -> None:
    set_property(direct, "steps", "delta.checkpointInterval", "2")
    write(direct, range(3))
    check(direct, {"run": range(3)})
    assert isinstance(Lake(direct).steps().to_arrow(), pa.Table)
