"""An object store for the tests: a server process that speaks S3 over HTTP, and a line to it that
fails on demand.

The server is moto's, in memory, on a free port, gone with the tests. `KB_TEST_S3_URL`, with
`KB_TEST_S3_BUCKET`, `KB_TEST_S3_KEY_ID` and `KB_TEST_S3_SECRET`, puts a real store in its place.
"""

from __future__ import annotations

import os
import select
import shutil
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import SecretStr

from kb.settings import Blobs

_STARTS_WITHIN_S = 60.0
_HEAD_END = b"\r\n\r\n"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(frozen=True)
class S3Server:
    """Where a store is, and a bucket in it."""

    url: str
    bucket: str
    key_id: str = "test"
    secret: str = "test-secret"

    def options(self, **changes: Any) -> Blobs:
        """Settings of a store of its own: a fresh prefix in the bucket."""
        values: dict[str, Any] = {
            "bucket": self.bucket,
            "prefix": f"kb/{uuid.uuid4().hex}",
            "endpoint_url": self.url,
            "region": "us-east-1",
            "access_key_id": SecretStr(self.key_id),
            "secret_access_key": SecretStr(self.secret),
            "path_style": True,
            "connect_timeout_s": 5,
            "read_timeout_s": 20,
            "part_bytes": 5 * 1024**2,
        }
        return Blobs(**{**values, **changes})

    def client(self) -> Any:
        """The vendor's own client, to look behind the adapter."""
        import boto3

        return boto3.session.Session(self.key_id, self.secret, region_name="us-east-1").client(
            "s3", endpoint_url=self.url
        )


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """A store with an empty bucket, or the one that the environment names."""
    if url := os.environ.get("KB_TEST_S3_URL"):
        yield S3Server(
            url,
            os.environ["KB_TEST_S3_BUCKET"],
            os.environ["KB_TEST_S3_KEY_ID"],
            os.environ["KB_TEST_S3_SECRET"],
        )
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="kb-s3-") as directory:
        log = Path(directory, "log")
        process = _start(port, log)
        try:
            _wait(port, process, log)
            server = S3Server(f"http://127.0.0.1:{port}", "kb-tests")
            client = server.client()
            client.create_bucket(Bucket=server.bucket)
            client.close()
            yield server
        finally:
            process.kill()
            process.wait()


def _start(port: int, log: Path) -> subprocess.Popen[bytes]:
    # Should the test process be killed, the kernel ends the server.
    tied = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p"]
    with log.open("wb") as file:
        return subprocess.Popen([*tied, *command, str(port)], stdout=file, stderr=file)


def _wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    ends = time.monotonic() + _STARTS_WITHIN_S
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/", timeout=5).close()
        except OSError as exc:
            if isinstance(exc, urllib.error.HTTPError):
                exc.close()
                return
            if process.poll() is not None or time.monotonic() > ends:
                raise RuntimeError(f"no S3 server:\n{log.read_text()[-2000:]}") from exc
            time.sleep(0.05)
        else:
            return


class Line:
    """A proxy in front of a server; what comes back of a connection can be spoilt.

    `spoil(n, how)`: the answers on the next n connections go through `how`, which gets what the
    server sent and gives what the client gets before the connection ends. Every connection
    carries one request. `seen` counts connections.
    """

    def __init__(self, url: str) -> None:
        host, _, port = url.removeprefix("http://").partition(":")
        self._target = (host, int(port))
        self._spoilt: list[Callable[[bytes], bytes]] = []
        self.seen = 0
        line = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                line.carry(self.request)

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def spoil(self, connections: int, how: Callable[[bytes], bytes]) -> None:
        """Let the next connections fail."""
        self._spoilt += [how] * connections

    def mend(self) -> None:
        """Let nothing fail any more."""
        self._spoilt.clear()

    def carry(self, client: socket.socket) -> None:
        """Carry one request over and its answer back."""
        self.seen += 1
        how = self._spoilt.pop(0) if self._spoilt else None
        with socket.create_connection(self._target, timeout=30) as server:
            answer = b""
            while True:
                for source in select.select([client, server], [], [])[0]:
                    data = source.recv(65536)
                    if source is client:
                        if not data:
                            return
                        server.sendall(_closing(data))
                    elif data:
                        answer += data
                        if answer.startswith(_CONTINUE):  # the client waits for it with its body
                            client.sendall(_CONTINUE)
                            answer = answer[len(_CONTINUE) :]
                    else:
                        client.sendall(how(answer) if how else answer)
                        return

    def __enter__(self) -> Line:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _closing(data: bytes) -> bytes:
    """A request's head with the wish to close the connection after the answer."""
    first, mark, rest = data.partition(_HEAD_END)
    if mark and first.split(b" ", 1)[0] in (b"GET", b"PUT", b"POST", b"HEAD", b"DELETE"):
        return first + b"\r\nConnection: close" + mark + rest
    return data


def busy(_: bytes) -> bytes:
    """What S3 answers when it has too much to do."""
    return _error("503 Slow Down", "SlowDown")


def refused(_: bytes) -> bytes:
    """What S3 answers to credentials that may not do this."""
    return _error("403 Forbidden", "AccessDenied")


def cut(answer: bytes) -> bytes:
    """An answer that breaks off in the middle of its body."""
    head, mark, body = answer.partition(_HEAD_END)
    return head + mark + body[: len(body) // 2]


def dropped(_: bytes) -> bytes:
    """A connection that ends without an answer."""
    return b""


def _error(status: str, code: str) -> bytes:
    body = f"<Error><Code>{code}</Code><Message>as ordered</Message></Error>".encode()
    return (
        f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    ).encode() + body
