"""Where a lake may lie, and what a storage that refuses is told as."""

import errno
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError
from gymnasium.spaces import Discrete

from offline.errors import LakeError, LakeStorageError
from offline.schemas import TABLES
from offline.spaces import register_space, spaces_of
from offline.storage import Storage, explain, require_writable
from offline.tables import create_tables, open_table
from tests.offline.race_kit import race
from tests.offline.s3_kit import BUCKET, SECRET, free_port, require_signatures, s3_options

KEYS = {"AWS_ACCESS_KEY_ID": "AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY": SECRET}
NOBODY = 65534


@pytest.fixture(autouse=True)
def _without_aws_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in [key for key in os.environ if key.startswith("AWS_") and key != "AWS_CA_BUNDLE"]:
        monkeypatch.delenv(key)


@pytest.fixture(scope="module")
def s3(s3_server: dict[str, str]) -> dict[str, str]:
    return s3_server


def test_a_folder_becomes_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert Storage.at("lake").uri == f"{tmp_path}/lake"
    assert Storage.at("~/ray_results/lake/").uri == "/home/someone/ray_results/lake"
    assert Storage.at(tmp_path / "a" / ".." / "b").uri == f"{tmp_path}/b"
    assert Storage.at("file:///data/my%20lake").uri == "/data/my lake"
    assert Storage.at("file://localhost/data").uri == "/data"
    assert Storage.at("//data").uri == "/data"
    assert Storage.at("/data").table_uri("steps") == "/data/steps"


def test_an_s3_address_keeps_its_bucket_and_prefix() -> None:
    assert Storage.at("s3://bucket/a//b/").uri == "s3://bucket/a/b"
    assert Storage.at("S3://bucket").table_uri("steps") == "s3://bucket/steps"
    assert not Storage.at("s3://bucket").is_local


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("", "no address"),
        ("  ", "no address"),
        (b"/lake", "no address"),
        ("/lake\0", "NUL byte"),
        ("file:///lake%00", "NUL byte"),
        ("gs://bucket/lake", "gs:// is not supported; give a folder, file:///folder or s3://"),
        ("s3a://bucket/lake", "s3a:// is not supported"),
        ("http://host/lake", "http:// is not supported"),
        ("file://elsewhere/lake", "not on this machine"),
        ("s3://", "names no bucket"),
        ("s3:///prefix", "names no bucket"),
        ("s3://bucket/../other", "'..' in its prefix"),
        ("s3://bucket/lake?region=x", "in its prefix"),
        ("/tmp/100%25/lake", "two hex digits"),
        (__file__, "is a file"),
    ],
)
def test_an_address_that_is_none_is_refused(uri: str, message: str) -> None:
    with pytest.raises(LakeError) as raised:
        Storage.at(uri)
    assert message in str(raised.value)


def test_credentials_in_an_address_are_refused_and_not_repeated() -> None:
    for uri in (f"s3://key:{SECRET}@bucket/lake", f"https://me:{SECRET}@host/lake"):
        with pytest.raises(LakeError) as raised:
            Storage.at(uri)
        assert SECRET not in str(raised.value)
    with pytest.raises(LakeError, match="AWS_ENDPOINT_URL is not an address") as raised:
        Storage.at("s3://bucket", {"AWS_ENDPOINT_URL": f"https://me:{SECRET}@host"})
    assert SECRET not in str(raised.value)


def test_options_come_from_the_environment_and_those_given_win(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of the environment")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://general")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://service")
    storage = Storage.at("s3://bucket", {"access_key_id": "given"})
    assert storage.options == {
        "AWS_ACCESS_KEY_ID": "given",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "eu-west-1",
        "AWS_ENDPOINT_URL": "https://service",
    }
    assert Storage.at("/lake").options == {}
    assert Storage.at(storage, {"region": "us-east-2"}).options["AWS_REGION"] == "us-east-2"


def test_a_repr_shows_no_option_and_a_copy_for_another_process_has_them() -> None:
    storage = Storage.at("s3://bucket/lake", KEYS)
    assert repr(storage) == "Storage(uri='s3://bucket/lake')"
    assert pickle.loads(pickle.dumps(storage)) == storage
    assert hash(storage) == hash(Storage.at("s3://bucket/lake"))


def test_unsafe_renames_are_refused_wherever_they_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for key in ("AWS_S3_ALLOW_UNSAFE_RENAME", "aws_s3_allow_unsafe_rename", "allow_unsafe_rename"):
        with pytest.raises(LakeError, match="two writers can overwrite each other's commits"):
            Storage.at("s3://bucket", {key: "true"})
    with pytest.raises(LakeError, match="MOUNT_ALLOW_UNSAFE_RENAME is set"):
        Storage.at("/lake", {"MOUNT_ALLOW_UNSAFE_RENAME": "1"})
    Storage.at("s3://bucket", {"AWS_S3_ALLOW_UNSAFE_RENAME": "false"})
    monkeypatch.setenv("AWS_S3_ALLOW_UNSAFE_RENAME", "true")
    with pytest.raises(LakeError, match="AWS_S3_ALLOW_UNSAFE_RENAME is set"):
        Storage.at("s3://bucket")
    Storage.at("/lake")


def test_plain_http_must_be_meant() -> None:
    with pytest.raises(LakeError, match="AWS_ALLOW_HTTP=true if that is meant"):
        Storage.at("s3://bucket", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9000"})


@pytest.mark.parametrize("name", ["plain", "a b", "ü", "h#x", "q?x", "[x]", "a:b", "*", "100%"])
def test_a_folder_of_any_name_holds_a_table(tmp_path: Path, name: str) -> None:
    storage = Storage.at(tmp_path / name)
    DeltaTable.create(storage.table_uri("ledger"), TABLES["ledger"].schema)
    assert (tmp_path / name / "ledger" / "_delta_log").is_dir()
    assert DeltaTable(storage.table_uri("ledger")).version() == 0
    files = storage.filesystem("ledger", "_delta_log").get_file_info(["0" * 20 + ".json"])
    assert files[0].is_file


def test_a_missing_folder_is_made_and_left_clean(tmp_path: Path) -> None:
    require_writable(Storage.at(tmp_path / "a" / "b"))
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    storage = Storage.at(tmp_path / "file" / "lake")
    with pytest.raises(LakeStorageError, match="a part of the path is a file") as raised:
        require_writable(storage)
    assert storage.uri in str(raised.value)
    with pytest.raises(LakeStorageError):
        create_tables(storage)


def test_a_folder_without_write_access_is_refused_before_anything_runs(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    code = (
        "from offline.storage import Storage, require_writable\n"
        "from offline.errors import LakeStorageError\n"
        "import os, sys\n"
        "if os.getuid() == 0: os.setuid(65534)\n"
        "try: require_writable(Storage.at(sys.argv[1]))\n"
        "except LakeStorageError as error: print(error)\n"
    )
    (tmp_path / "closed").mkdir(mode=0o555)
    command = [sys.executable, "-c", code, str(tmp_path / "closed" / "lake")]
    # The folders pytest makes are closed to other users.
    for parent in tmp_path.parents[:2]:
        parent.chmod(0o755)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "permission denied; give this user write access, or another --storage" in done.stdout
    assert str(tmp_path / "closed") in done.stdout


def test_a_full_disk_is_said_so_whoever_reports_it() -> None:
    storage = Storage.at("/lake")
    for error in (
        OSError(errno.ENOSPC, "No space left on device"),
        DeltaError("Generic error: Unable to copy: No space left on device (os error 28)"),
    ):
        told = explain(error, storage, "committing to steps")
        assert isinstance(told, LakeStorageError)
        assert "committing to steps at /lake failed: the disk is full" in str(told)


def test_an_error_that_is_already_told_stays_as_it_is() -> None:
    error = LakeError("as it is")
    assert explain(error, Storage.at("/lake"), "reading") is error


def test_messages_lose_colours_stack_frames_and_secrets() -> None:
    storage = Storage.at("s3://bucket", KEYS)
    text = f"\x1b[31mGeneric\x1b[0m {SECRET}\n   0: <unknown>\n   1: clone3\n      at ./x.S:81:0\n"
    told = str(explain(DeltaError(text), storage, "reading"))
    assert told == "reading at s3://bucket failed: DeltaError: Generic ***"


def test_s3_holds_a_lake(s3: dict[str, str]) -> None:
    storage = Storage.at(f"s3://{BUCKET}/some/lake", s3)
    with pytest.raises(LakeError, match="has no table 'steps'"):
        open_table(storage, "steps")
    create_tables(storage)
    create_tables(storage)
    for name in TABLES:
        assert open_table(storage, name).version() == 0
    with pytest.raises(LakeError, match="version 9 of runs does not exist; it has 0 to 0"):
        open_table(storage, "runs", version=9)
    with pytest.raises(LakeError, match="before the first commit of runs"):
        open_table(storage, "runs", timestamp="2020-01-01")
    key = register_space(storage, Discrete(3), Discrete(2))
    assert spaces_of(storage, key)[0].space == Discrete(3)
    with storage.filesystem("extra").open_output_stream("file") as stream:
        stream.write(b"bytes")
    with storage.filesystem().open_input_stream("extra/file") as stream:
        assert stream.read() == b"bytes"


def test_racing_creators_share_a_lake_on_s3(
    s3: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in s3.items():
        monkeypatch.setenv(key, value)
    uri = f"s3://{BUCKET}/race"
    race(
        "from offline.storage import Storage\nfrom offline.tables import create_tables\n",
        "create_tables(Storage.at(sys.argv[1]))\n",
        [[uri]] * 3,
    )
    assert {open_table(Storage.at(uri), name).version() for name in TABLES} == {0}


def test_a_bucket_that_is_not_there_is_said_so(s3: dict[str, str]) -> None:
    storage = Storage.at("s3://another-bucket/lake", s3)
    with pytest.raises(LakeStorageError, match="the bucket does not exist"):
        create_tables(storage)
    with pytest.raises(LakeStorageError, match="the bucket does not exist"):
        open_table(storage, "steps")


def test_an_endpoint_that_does_not_answer_is_said_so(s3: dict[str, str]) -> None:
    dead = {**s3, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}"}
    with pytest.raises(LakeStorageError, match="endpoint does not answer") as raised:
        create_tables(Storage.at(f"s3://{BUCKET}/lake", dead))
    assert SECRET not in str(raised.value)


def test_wrong_credentials_are_one_error_without_a_secret() -> None:
    with s3_options() as options:
        require_signatures(options)
        storage = Storage.at(f"s3://{BUCKET}/lake", options)
        for attempt in (
            lambda: create_tables(storage),
            lambda: open_table(storage, "steps"),
        ):
            with pytest.raises(LakeStorageError, match="the credentials are wrong") as raised:
                attempt()
            assert SECRET not in str(raised.value)
            assert "AKIAEXAMPLE" not in str(raised.value)
            assert raised.value.__suppress_context__
