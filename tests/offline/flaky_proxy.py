"""A proxy before an S3 that answers 503 now and then, also after it has done what was asked.

A process of its own: deltalake may hold the GIL while it waits for an answer.
"""

import http.client
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_HOP_BY_HOP = {"connection", "transfer-encoding", "keep-alive", "content-length", "date", "server"}

_OURS = {"expect", "transfer-encoding", "content-length"}


@contextmanager
def flaky(options: dict[str, str], *, frac: float, seed: int = 0) -> Iterator[dict[str, str]]:
    """Storage options of the same S3 behind a proxy.

    Args:
        options: of the S3.
        frac: of the requests that are answered with 503, half of them after they were done.
        seed: which ones.
    """
    target = urlsplit(options["AWS_ENDPOINT_URL"]).netloc
    command = [sys.executable, "-m", "tests.offline.flaky_proxy", target, str(frac), str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            yield {**options, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
        finally:
            process.kill()


def _handler(target: str, frac: float, seed: int) -> type[BaseHTTPRequestHandler]:
    rng = random.Random(seed)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self._body()
            chance = rng.random()
            if chance < frac / 2:
                self._answer(503, {}, b"<Error><Code>SlowDown</Code></Error>")
                return
            status, headers, content = self._forward(body)
            if chance < frac:
                self._answer(503, {}, b"<Error><Code>SlowDown</Code></Error>")
            else:
                self._answer(status, headers, content)

        def _body(self) -> bytes:
            if self.headers.get("Expect", "").lower() == "100-continue":
                self.send_response_only(100)
                self.end_headers()
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers.get("Content-Length", "0")))
            chunks = []
            while size := int(self.rfile.readline().partition(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)

        def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
            connection = http.client.HTTPConnection(target, timeout=30)
            headers = {k: v for k, v in self.headers.items() if k.lower() not in _OURS}
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
            told = {k: v for k, v in answer.getheaders() if k.lower() not in _HOP_BY_HOP}
            length = answer.getheader("Content-Length")
            connection.close()
            if self.command == "HEAD" and length is not None:
                told["Content-Length"] = length
            return answer.status, told, content

        def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
            self.send_response_only(status)
            for key, value in headers.items():
                self.send_header(key, value)
            if "Content-Length" not in headers:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                with suppress(ConnectionError):  # the client had enough
                    self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Be quiet."""

    return Handler


def main() -> None:
    target, frac, seed = sys.argv[1:]
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(target, float(frac), int(seed)))
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
