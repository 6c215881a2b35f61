"""An S3 of this machine: moto in a process of its own, with one bucket.

Of its own, because deltalake's `alter` keeps the GIL while it waits for the server.
"""

import hashlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from pyarrow import fs

from offline.storage import Storage

BUCKET = "bucket"
KEY_ID = "AKIAEXAMPLE"
SECRET = "a-secret-that-must-not-be-seen"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def s3_options() -> Iterator[dict[str, str]]:
    """Storage options of an S3 that has `BUCKET` and takes any credentials."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=quiet, stderr=quiet) as server:
        try:
            _wait_for(f"http://127.0.0.1:{port}/moto-api/", server)
            client = fs.S3FileSystem(
                access_key=KEY_ID,
                secret_key=SECRET,
                region="us-east-1",
                scheme="http",
                endpoint_override=f"127.0.0.1:{port}",
                allow_bucket_creation=True,
            )
            client.create_dir(BUCKET)
            yield {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
                "AWS_ACCESS_KEY_ID": KEY_ID,
                "AWS_SECRET_ACCESS_KEY": SECRET,
                "AWS_REGION": "us-east-1",
                "AWS_ALLOW_HTTP": "true",
            }
        finally:
            server.kill()


def require_signatures(options: dict[str, str]) -> None:
    """From now on the server refuses keys that it has not handed out: all of them."""
    address = f"{options['AWS_ENDPOINT_URL']}/moto-api/reset-auth"
    request = urllib.request.Request(address, b"0", {"Content-Type": "text/plain"})
    with urllib.request.urlopen(request) as answer:
        answer.read()


def set_environment(monkeypatch: pytest.MonkeyPatch, options: dict[str, str]) -> None:
    """Options become the process's environment, and those that there were go."""
    for key in [k for k in os.environ if k.startswith("AWS_") and k != "AWS_CA_BUNDLE"]:
        monkeypatch.delenv(key)
    for key, value in options.items():
        monkeypatch.setenv(key, value)


def address_of(name: str) -> str:
    """An address in the bucket that no other name has."""
    return f"s3://{BUCKET}/{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def objects_of(address: str) -> dict[str, bytes]:
    """All that lies below an address, by path."""
    files = Storage.at(address).filesystem()
    infos = files.get_file_info(fs.FileSelector("", recursive=True))
    found = {}
    for info in infos:
        if info.is_file:
            with files.open_input_stream(info.path) as stream:
                found[info.path] = stream.read()
    return found


def assert_no_secret(*texts: bytes | str) -> None:
    """Neither the secret key nor the id of the key is in any of them."""
    for text in texts:
        content = text.encode() if isinstance(text, str) else text
        for word in (SECRET, KEY_ID):
            assert word.encode() not in content, content[:500]


def _wait_for(address: str, server: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(address):
                return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"moto did not start: exit code {server.poll()}")
