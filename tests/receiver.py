"""A webhook's receiver for tests: a real HTTP server that answers as it is told, or not at all."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Message:
    """A request as it arrived; header names in lower case."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def event(self) -> str:
        return str(json.loads(self.body)["type"])

    @property
    def data(self) -> dict[str, Any]:
        return dict(json.loads(self.body)["data"])


Behaviour = int | Callable[[BaseHTTPRequestHandler], None]


@dataclass
class Receiver:
    """`then` are the behaviours of the next requests, one each; afterwards it answers 204.

    A number is a status; a function does what it likes with the connection.
    """

    port: int
    scheme: str = "http"
    then: list[Behaviour] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/hook?a=1"


def says_later(status: int, seconds: int) -> Behaviour:
    """Answers with `Retry-After`."""

    def behave(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Retry-After", str(seconds))
        handler.end_headers()

    return behave


def redirects(to: str) -> Behaviour:
    def behave(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(307)
        handler.send_header("Location", to)
        handler.end_headers()

    return behave


def hangs(handler: BaseHTTPRequestHandler) -> None:
    """Reads and says nothing."""
    time.sleep(3)


def drips(handler: BaseHTTPRequestHandler) -> None:
    """Sends a byte now and then, so that no single wait is long."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    for _ in range(30):
        handler.wfile.write(b"z")
        handler.wfile.flush()
        time.sleep(0.1)


def dies(handler: BaseHTTPRequestHandler) -> None:
    """Closes the connection without a word."""
    handler.connection.shutdown(socket.SHUT_RDWR)


def talks_nonsense(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"\x00\x01 not HTTP at all\r\n\r\n")


@contextmanager
def receiving(port: int = 0, tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """A receiver on 127.0.0.1; port 0 takes a free one."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            receiver.messages.append(Message(self.path, headers, body))
            behave = receiver.then.pop(0) if receiver.then else 204
            if isinstance(behave, int):
                self.send_response(behave)
                self.end_headers()
                return
            try:
                behave(self)
            except OSError:
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    receiver = Receiver(server.server_address[1], "https" if tls else "http")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
