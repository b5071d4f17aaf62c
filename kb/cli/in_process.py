"""One request to an application in this process; its answer is read while it is made."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from anyio import Event, to_thread

if TYPE_CHECKING:
    import httpx2 as httpx
    from anyio.from_thread import BlockingPortal
    from starlette.types import ASGIApp, Message

_PARTS = 8
"""Of an answer that nobody has read yet."""


class Exchange:
    """Attributes `status` and `headers` are there when it is made; `parts` is the body."""

    def __init__(self, app: ASGIApp, portal: BlockingPortal, request: httpx.Request) -> None:
        self._app = app
        self._request = request
        self._sent: Iterator[bytes] = iter(request.stream)  # type: ignore[arg-type]
        self._received: queue.Queue[bytes | None] = queue.Queue(_PARTS)
        self._started: Future[tuple[int, list[tuple[bytes, bytes]]]] = Future()
        self._closed = False
        self._done = portal.start_task_soon(self._run)
        self.status, self.headers = self._started.result()

    def parts(self) -> Iterator[bytes]:
        """The body, once."""
        while (part := self._received.get()) is not None:
            yield part
        self._received.put(None)

    def close(self) -> None:
        """Read no more; the application may end."""
        self._closed = True
        while not self._done.done():
            try:
                self._received.get(timeout=0.01)
            except queue.Empty:
                continue

    async def _run(self) -> None:
        self._answered = Event()
        try:
            await self._app(self._scope(), self._receive, self._send)
        except Exception:  # noqa: BLE001 - as a server does; the application has logged it
            if not self._started.done():
                self._started.set_result((500, []))
        finally:
            if not self._started.done():
                self._started.set_result((500, []))
            await self._put(None)

    def _scope(self) -> dict[str, Any]:
        url = self._request.url
        return {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": self._request.method,
            "scheme": url.scheme,
            "path": url.path,
            "raw_path": url.raw_path.split(b"?")[0],
            "query_string": url.query,
            "root_path": "",
            "headers": [(name.lower(), value) for name, value in self._request.headers.raw],
            "server": (url.host, url.port),
            "client": ("127.0.0.1", 123),
        }

    async def _receive(self) -> Message:
        part = await to_thread.run_sync(next, self._sent, None)
        if part is not None:
            return {"type": "http.request", "body": part, "more_body": True}
        if not self._answered.is_set() and not getattr(self, "_ended", False):
            self._ended = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._answered.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._started.set_result((message["status"], list(message.get("headers", []))))
            return
        if body := message.get("body"):
            await self._put(body)
        if not message.get("more_body", False):
            self._answered.set()

    async def _put(self, part: bytes | None) -> None:
        while not self._closed:
            try:
                self._received.put_nowait(part)
                return
            except queue.Full:
                await to_thread.run_sync(self._wait)

    def _wait(self) -> None:
        import time

        time.sleep(0.005)
