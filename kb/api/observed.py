"""What is noted of every request: its id, its time, its status; in the log and in the metrics."""

from __future__ import annotations

import logging
import re
import time
import uuid
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kb.logs import fields, log_ids
from kb.metrics import REQUEST_SECONDS, REQUESTS
from kb.tracing import request_span

log = logging.getLogger("kb.access")

_HEADER = b"x-request-id"
_SANE = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_UNMATCHED = "(none)"
_QUIET = ("/health/live", "/health/ready", "/metrics")
"""Asked for by machines, every few seconds."""
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
_LEFT = 499
"""The status of a request whose client did not wait for the answer, as nginx writes it."""


class Observed:
    """The application with a look at each request; outside of everything, so that it sees all.

    The caller's `X-Request-ID` is taken when it is 1 to 128 of `A-Za-z0-9._:-`, otherwise one is
    made; the answer carries it, and so does every line that is logged meanwhile.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._seen: dict[tuple[str, str, int], tuple[Any, Any]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        status = _LEFT

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (_HEADER, request_id.encode())]
            await send(message)

        started = time.perf_counter()
        with (
            log_ids(request_id=request_id),
            request_span(scope["headers"], request_id=request_id) as opened,
        ):
            try:
                await self._app(scope, receive, answer)
            finally:
                self._note(scope, status, time.perf_counter() - started)
                if opened is not None:
                    _describe(opened, scope, status)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", _UNMATCHED)
        method = scope["method"] if scope["method"] in _METHODS else "(other)"
        key = method, route, status
        if key not in self._seen:  # finding the children of a metric costs more than using them
            self._seen[key] = (
                REQUESTS.labels(*map(str, key)),
                REQUEST_SECONDS.labels(method, route),
            )
        count, histogram = self._seen[key]
        count.inc()
        histogram.observe(seconds)
        level = logging.DEBUG if route in _QUIET else logging.INFO
        if log.isEnabledFor(level):
            ms = round(seconds * 1000, 2)
            path = scope["path"][:200]
            log.log(
                level,
                "request",
                extra=fields(method=method, route=route, status=status, ms=ms, path=path),
            )


def _describe(span: Any, scope: Scope, status: int) -> None:
    """Name and attributes as the semantic conventions of OpenTelemetry have them."""
    route = getattr(scope.get("route"), "path", _UNMATCHED)
    span.update_name(f"{scope['method']} {route}")
    span.set_attributes(
        {
            "http.request.method": scope["method"],
            "http.route": route,
            "http.response.status_code": status,
        }
    )


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == _HEADER and _SANE.fullmatch(value):
            return str(value.decode())
    return uuid.uuid4().hex
