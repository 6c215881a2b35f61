"""A proxy before an S3 that fails as object stores and networks do, in the way it is told to.

A process of its own: deltalake may hold the GIL while it waits for an answer.
"""

import http.client
import json
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import urlsplit

_HOP_BY_HOP = {"connection", "transfer-encoding", "keep-alive", "content-length", "date", "server"}
_CONTROL = "/-proxy-"
_BUSY = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate</Message></Error>"


@dataclass(frozen=True)
class Fault:
    """Which requests fail, and how; a request that `kind` does not fit is answered.

    Attributes:
        kind: busy: 503, not done. forgotten: done, and then 503. dropped: done, and the connection
            closed without an answer. cut: half of the answer's body. torn: only the beginning of
            the request's body is taken. slow: done after `delay_s`. down: the connection closed
            at once. deaf: taken and never answered.
        first: only the first so many that match; 0 for all.
        every: only every so manieth that matches.
        frac: of those, chosen by chance.
        methods: that match, as ("PUT",); none for all.
        contains: what a path that matches has in it.
        delay_s: of slow.
    """

    kind: Literal["busy", "forgotten", "dropped", "cut", "torn", "slow", "down", "deaf"]
    first: int = 0
    every: int = 1
    frac: float = 1.0
    methods: tuple[str, ...] = ()
    contains: str = ""
    delay_s: float = 0.0


class Proxy:
    """A running proxy, as the test holds it.

    Attributes:
        options: storage options of the S3 behind it.
    """

    def __init__(self, options: dict[str, str], port: int) -> None:
        self.options = {**options, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}

    def fail(self, *faults: Fault) -> None:
        """From now on; the count of those that failed begins anew."""
        self._ask(json.dumps([asdict(fault) for fault in faults]).encode())

    def heal(self) -> int:
        """Answer everything; how many requests had failed."""
        failed = self.failed
        self.fail()
        return failed

    @property
    def failed(self) -> int:
        """Requests that failed since the faults were set."""
        return int(self._ask(None)["failed"])

    def _ask(self, body: bytes | None) -> dict[str, Any]:
        request = urllib.request.Request(f"{self.options['AWS_ENDPOINT_URL']}{_CONTROL}", body)
        with urllib.request.urlopen(request, timeout=10) as answer:
            told: dict[str, Any] = json.loads(answer.read())
        return told


@contextmanager
def proxy_of(options: dict[str, str]) -> Iterator[Proxy]:
    """A proxy before an S3, which answers everything until it is told otherwise."""
    target = urlsplit(options["AWS_ENDPOINT_URL"]).netloc
    command = [sys.executable, "-m", "tests.offline.flaky_proxy", target]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield Proxy(options, int(process.stdout.readline()))
        finally:
            process.kill()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, target: str) -> None:
        self.target = target
        self._lock = threading.Lock()
        self._rng = random.Random(0)
        self.set([])
        super().__init__(("127.0.0.1", 0), _Handler)

    def set(self, faults: list[dict[str, Any]]) -> None:
        with self._lock:
            self._faults = [Fault(**{**f, "methods": tuple(f["methods"])}) for f in faults]
            self._matched = [0] * len(faults)
            self.failed = 0

    def fault_for(self, method: str, path: str) -> Fault | None:
        with self._lock:
            for i, fault in enumerate(self._faults):
                if (fault.methods and method not in fault.methods) or fault.contains not in path:
                    continue
                self._matched[i] += 1
                if fault.first and self._matched[i] > fault.first:
                    continue
                if self._matched[i] % fault.every or self._rng.random() >= fault.frac:
                    continue
                self.failed += 1
                return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def handle_any(self) -> None:
        if self.path == _CONTROL:
            self._control()
            return
        fault = self.server.fault_for(self.command, self.path)
        kind = None if fault is None else fault.kind
        if kind == "down":
            self._hang_up()
            return
        if kind == "torn" and self._has_body():
            self._continue()
            self.rfile.read(40)
            self._hang_up()
            return
        self._continue()
        body = self._body()
        if fault is not None and kind == "slow":
            time.sleep(fault.delay_s)
        if kind == "deaf":
            time.sleep(3600)
        if kind == "busy":
            self._answer(503, {}, _BUSY)
            return
        status, headers, content = self._forward(body)
        if kind == "forgotten":
            self._answer(503, {}, _BUSY)
        elif kind == "dropped":
            self._hang_up()
        elif kind == "cut" and content and self.command != "HEAD":
            self._answer(status, headers, content, cut=True)
        else:
            self._answer(status, headers, content)

    def _control(self) -> None:
        if self.command == "POST":
            text = self.rfile.read(int(self.headers["Content-Length"]))
            self.server.set(json.loads(text))
        self._answer(200, {}, json.dumps({"failed": self.server.failed}).encode())

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _continue(self) -> None:
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.send_response_only(100)
            self.end_headers()

    def _has_body(self) -> bool:
        return self._is_chunked() or int(self.headers.get("Content-Length", "0")) > 0

    def _is_chunked(self) -> bool:
        return str(self.headers.get("Transfer-Encoding", "")).lower() == "chunked"

    def _body(self) -> bytes:
        if not self._is_chunked():
            return self.rfile.read(int(self.headers.get("Content-Length", "0")))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.server.target, timeout=30)
        left_out = {"expect", "transfer-encoding", "content-length"}
        headers = {k: v for k, v in self.headers.items() if k.lower() not in left_out}
        headers["Content-Length"] = str(len(body))
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        told = {k: v for k, v in answer.getheaders() if k.lower() not in _HOP_BY_HOP}
        length = answer.getheader("Content-Length")
        connection.close()
        if self.command == "HEAD" and length is not None:
            told["Content-Length"] = length
        return answer.status, told, content

    def _answer(
        self, status: int, headers: dict[str, str], content: bytes, *, cut: bool = False
    ) -> None:
        self.send_response_only(status)
        for key, value in headers.items():
            self.send_header(key, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self.wfile.flush()
            self._hang_up()

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Be quiet."""


def main() -> None:
    server = _Server(sys.argv[1])
    # A client that gives up is no error here.
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
