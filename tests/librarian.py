"""A service that holds knowledge, for tests: a real HTTP server that answers as it is told."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Asked:
    """A request as it arrived; header names in lower case, the body parsed."""

    path: str
    headers: dict[str, str]
    body: Any


@dataclass(frozen=True)
class Says:
    """One answer: `body` is sent as it is when it is bytes, otherwise as JSON."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    after_s: float = 0.0
    dies: bool = False


@dataclass
class Librarian:
    """`then` are the next answers, one each; afterwards it answers with `records`."""

    port: int
    records: list[dict[str, Any]] = field(default_factory=list)
    then: list[Says] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}/base"

    @property
    def questions(self) -> list[Asked]:
        """What was asked of it, without probes."""
        return [a for a in self.asked if a.body["query"]]


def record(content: str, score: Any, title: Any = "notes.txt", **metadata: Any) -> dict[str, Any]:
    return {"content": content, "score": score, "title": title, "metadata": metadata}


@contextmanager
def librarian() -> Iterator[Librarian]:
    """One on 127.0.0.1."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            opened.asked.append(Asked(self.path, headers, json.loads(raw)))
            says = opened.then.pop(0) if opened.then else Says({"records": opened.records})
            time.sleep(says.after_s)
            if says.dies:
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            body = says.body if isinstance(says.body, bytes) else json.dumps(says.body).encode()
            self.send_response(says.status)
            for name, value in {"Content-Length": str(len(body)), **says.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    opened = Librarian(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield opened
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
