"""The REST face: routes, strict validation, misbehaviour on the wire."""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import BaseModel, TypeAdapter, ValidationError
from qdrant_client.http import models

from tests.contracts.qdrant_double.engine import Engine
from tests.contracts.qdrant_double.faults import Faults
from tests.contracts.qdrant_double.translate import Refused

_BODIES: dict[str, TypeAdapter[Any]] = {
    "create": TypeAdapter(models.CreateCollection),
    "index": TypeAdapter(models.CreateFieldIndex),
    "upsert": TypeAdapter(models.PointsList),
    "delete": TypeAdapter(models.PointsSelector),
    "batch": TypeAdapter(models.UpdateOperations),
    "query": TypeAdapter(models.QueryRequest),
    "scroll": TypeAdapter(models.ScrollRequest),
    "count": TypeAdapter(models.CountRequest),
    "retrieve": TypeAdapter(models.PointRequest),
}
_NAME = r"/collections/([^/]+)"
_ROUTES = [
    ("GET", r"/", "version"),
    ("GET", r"/collections", "list"),
    ("GET", _NAME, "info"),
    ("GET", _NAME + "/exists", "exists"),
    ("PUT", _NAME, "create"),
    ("DELETE", _NAME, "drop"),
    ("PUT", _NAME + "/index", "index"),
    ("PUT", _NAME + "/points", "upsert"),
    ("POST", _NAME + "/points", "retrieve"),
    ("POST", _NAME + "/points/delete", "delete"),
    ("POST", _NAME + "/points/batch", "batch"),
    ("POST", _NAME + "/points/query", "query"),
    ("POST", _NAME + "/points/scroll", "scroll"),
    ("POST", _NAME + "/points/count", "count"),
]
_WRITES = {"index", "upsert", "delete", "batch"}


class RestServer(ThreadingHTTPServer):
    """One thread per connection; `close` ends them all."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        engine: Engine,
        faults: Faults,
        *,
        version: str,
        api_key: str | None,
        port: int,
        most_bytes: int,
    ) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.most_bytes = most_bytes
        self.engine, self.faults, self.version, self.api_key = engine, faults, version, api_key
        self.seen: list[tuple[str, int]] = []
        """Operation and body length of every request, in order."""
        self._connections: set[socket.socket] = set()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that a peer or a fault ended is no news."""

    def close(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()
        for connection in list(self._connections):
            connection.close()


class _Handler(BaseHTTPRequestHandler):
    server: RestServer
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet
    disable_nagle_algorithm = True
    _results: ClassVar[dict[str, Callable[[Engine, str, Any], Any]]] = {
        "list": lambda engine, name, body: models.CollectionsResponse(
            collections=[models.CollectionDescription(name=name) for name in engine.names()]
        ),
        "info": lambda engine, name, body: engine.get(name).info(),
        "exists": lambda engine, name, body: {"exists": name in engine.names()},
        "create": lambda engine, name, body: engine.create(name, body) or True,
        "drop": lambda engine, name, body: engine.delete(name),
        "index": lambda engine, name, body: engine.get(name).create_index(body),
        "upsert": lambda engine, name, body: engine.get(name).upsert(body),
        "delete": lambda engine, name, body: engine.get(name).delete(body),
        "batch": lambda engine, name, body: engine.get(name).batch(body),
        "query": lambda engine, name, body: engine.get(name).query(body),
        "scroll": lambda engine, name, body: engine.get(name).scroll(body),
        "count": lambda engine, name, body: engine.get(name).count(body),
        "retrieve": lambda engine, name, body: engine.get(name).retrieve(body),
    }

    def do_GET(self) -> None:
        self._handle()

    do_PUT = do_POST = do_DELETE = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        address = urlsplit(self.path)
        if address.path.startswith("/double/"):
            self._administer(address.path, body)
            return
        try:
            operation, name = _route(self.command, address.path)
        except Refused as refusal:
            self._refuse(refusal)
            return
        self.server.seen.append((operation, len(body)))
        fault = self.server.faults.draw(operation)
        if fault in ("timeout", "reset"):
            self._drop(self.server.faults.timeout_s if fault == "timeout" else 0)
        elif fault == "garbage":
            self._send(200, b"<html>welcome</html>")
        elif fault in ("500", "503", "429", "429-bare"):
            error = Refused(int(fault[:3]), f"made to fail ({fault})")
            self._refuse(error, {"Retry-After": "1"} if fault == "429" else {})
        else:
            self._answer(operation, name, dict(parse_qsl(address.query)), body, fault)

    def _answer(
        self, operation: str, name: str, query: dict[str, str], body: bytes, fault: str | None
    ) -> None:
        try:
            self._check(operation, query, body)
            if operation == "version":
                content: Any = {"title": "qdrant double", "version": self.server.version}
            else:
                value = _parsed(operation, body)
                result = self._results[operation](self.server.engine, name, value)
                if operation in _WRITES:
                    waited = "acknowledged" if query.get("wait") != "true" else "completed"
                    status = "wait_timeout" if fault == "unfinished" else waited
                    result = {"operation_id": 0, "status": status}
                    if isinstance(value, models.UpdateOperations):
                        result = [result] * len(value.operations)
                content = {"result": _plain(result), "status": "ok", "time": 0.0}
        except Refused as refusal:
            self._refuse(refusal)
            return
        except Exception as exc:  # noqa: BLE001 -- the engine raises nothing narrower
            self._refuse(Refused(500, f"Service internal error: {exc}"))
            return
        if fault == "lost":
            self._drop(0)
        else:
            self._send(200, json.dumps(content).encode())

    def _check(self, operation: str, query: dict[str, str], body: bytes) -> None:
        server = self.server
        known = server.api_key is None or self.headers.get("api-key") == server.api_key
        if not known and operation != "version":
            raise Refused(401, "Must provide an API key or an Authorization bearer token")
        if len(body) > server.most_bytes:
            raise Refused(413, f"Payload reached size limit: {len(body)} bytes")
        allowed = {"wait": {"true", "false"}, "ordering": {"weak", "medium", "strong"}}
        for key, value in query.items():
            if operation not in _WRITES or value not in allowed.get(key, ()):
                raise Refused(400, f"unknown parameter {key}={value} of {operation}")

    def _administer(self, path: str, body: bytes) -> None:
        if (self.command, path) == ("PUT", "/double/faults"):
            wanted = json.loads(body)
            self.server.faults.clear()
            for kind, times in wanted.pop("next", []):
                self.server.faults.next(kind, times)
            if wanted:
                self.server.faults.some(**wanted)
            self._send(200, b"{}")
        elif (self.command, path) == ("GET", "/double/faults"):
            self._send(200, json.dumps(self.server.faults.drawn).encode())
        else:
            self._send(404, b"{}")

    def _refuse(self, refusal: Refused, headers: dict[str, str] | None = None) -> None:
        content = {"status": {"error": refusal.message}, "time": 0.0}
        self._send(refusal.status, json.dumps(content).encode(), headers)

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()

    def _drop(self, after_s: float) -> None:
        time.sleep(after_s)
        # Lingering for 0 s: the peer sees a reset, not an orderly end.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()


def _route(method: str, path: str) -> tuple[str, str]:
    for wanted, pattern, operation in _ROUTES:
        found = re.fullmatch(pattern, path)
        if found and method == wanted:
            return operation, unquote(found[1]) if found.groups() else ""
    raise Refused(404, f"no route {method} {path}")


def _parsed(operation: str, body: bytes) -> Any:
    if operation not in _BODIES:
        if body:
            raise Refused(400, f"{operation} takes no body")
        return None
    try:
        return _BODIES[operation].validate_json(body)
    except ValidationError as exc:
        raise Refused(400, f"Format error in JSON body: {exc}") from exc


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_none=True)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value
