"""create_app(): routers, error bodies, and the start and end of the process's work."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from itertools import chain
from math import ceil

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from sqlalchemy.exc import InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Lifespan

from kb.api import (
    archives,
    datasets,
    documents,
    external,
    files,
    knowledge,
    metadata,
    metrics,
    models,
    overlays,
    pipelines,
    queries,
    retrieval,
    segment_imports,
    segments,
    status,
    steering,
    switches,
    system,
    tags,
    webhooks,
)
from kb.api.manual import write_manual
from kb.api.observed import Observed
from kb.errors import BadSegments, KBError, Unavailable
from kb.metrics import ERRORS
from kb.query_log import QueryLog
from kb.resources import Resources
from kb.runner import Runner
from pipelines.errors import TransientError

log = logging.getLogger("kb.api")

ROUTERS = (
    archives.router,
    switches.router,
    tags.router,  # before the datasets', whose ids are any text
    external.router,  # its paths look like those of a dataset
    datasets.router,
    documents.router,
    files.router,
    files.links,
    pipelines.router,
    steering.router,
    segment_imports.router,
    segments.router,
    metadata.router,
    overlays.router,
    retrieval.router,
    knowledge.router,
    queries.router,
    webhooks.router,
    models.router,
    status.router,
    metrics.router,
    system.router,
)


def create_app(
    resources: Resources, *, runner: Runner | None = None, process_key: str | None = None
) -> FastAPI:
    """The REST API over these resources.

    Args:
        runner: the in-process task runner, started and stopped with the app; None when workers
            run elsewhere.
        process_key: a key that only this process knows, for its own calls.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.query_log = QueryLog(
            resources.sessions, history=resources.settings.ingestion.keep_queries > 0
        )
        if runner is not None:
            await run_in_threadpool(runner.start)
        try:
            yield
        finally:  # whatever ended the process's work: nothing may be left running
            app.state.stopping = True
            await run_in_threadpool(_stop, app, resources, runner)

    app = routed_app(lifespan)
    app.state.resources = resources
    app.state.process_key = process_key
    app.add_exception_handler(KBError, _public_error)
    app.add_exception_handler(BadSegments, _bad_segments)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(TransientError, _provider_away)
    app.add_exception_handler(OperationalError, _database_busy)
    app.add_exception_handler(InternalError, _database_busy)
    app.add_exception_handler(PoolTimeout, _database_busy)
    app.add_exception_handler(Exception, _unexpected)
    inner = app.build_middleware_stack
    app.build_middleware_stack = lambda: Observed(inner())  # type: ignore[method-assign]
    return app


def routed_app(lifespan: Lifespan[FastAPI] | None = None) -> FastAPI:
    """The routes with their manual, over nothing yet."""
    app = FastAPI(
        title="kb",
        summary="Knowledge bases: ingestion and retrieval",
        version="0.1.0",
        lifespan=lifespan,
        redirect_slashes=False,  # a redirect would turn a client's POST into a GET
    )
    for router in ROUTERS:
        app.include_router(router)
    write_manual(app)
    return app


def _stop(app: FastAPI, resources: Resources, runner: Runner | None) -> None:
    app.state.query_log.close()
    if runner is not None and not runner.stop(timeout_s=resources.settings.shutdown_s):
        log.warning("a document is still in work; it goes on at the next start")


def error_body(
    code: str, message: str, status: int, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """The error body of the public API."""
    ERRORS.labels(code).inc()
    added = {401: {"WWW-Authenticate": 'Bearer realm="api"'}, 503: {"Retry-After": "1"}}
    body = {"code": code, "message": message, "status": status}
    return JSONResponse(body, status, {**added.get(status, {}), **(headers or {})})


def _public_error(_request: Request, exc: Exception) -> JSONResponse:
    assert isinstance(exc, KBError)
    return error_body(exc.code, exc.message, exc.status)


def _bad_segments(_request: Request, exc: Exception) -> JSONResponse:
    """The contract's other shape, which one route has."""
    assert isinstance(exc, BadSegments)
    ERRORS.labels(exc.code).inc()
    return JSONResponse({"error": exc.message}, exc.status)


def _http_error(request: Request, exc: Exception) -> JSONResponse:
    """What the router says: no such route (404), not this method (405)."""
    assert isinstance(exc, HTTPException)
    status, message, headers = exc.status_code, str(exc.detail), dict(exc.headers or {})
    path = request.url.path[:200]
    if status == 404:
        message = f"no route {path!r}; GET /docs lists them (no trailing slashes)"
    elif status == 405:
        allowed = ", ".join(_methods(request))
        headers["Allow"] = allowed
        message = f"{request.method} is not allowed on {path!r}; allowed: {allowed}"
    return error_body(_snake_case(status), message, status, headers)


def _methods(request: Request) -> list[str]:
    """The methods that this path has; the router itself looks no further than its first match."""
    methods: set[str] = set()
    for route in chain(request.app.routes, *(router.routes for router in ROUTERS)):
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE:
            methods |= route.methods or set()
    return sorted(methods)


def _snake_case(status: int) -> str:
    return re.sub(r"\W+", "_", HTTPStatus(status).phrase.lower())


def _gone(_request: Request, _exc: Exception) -> Response:
    """The client left before its body was complete; nobody reads this."""
    return Response(status_code=400)


def _provider_away(_request: Request, exc: Exception) -> JSONResponse:
    """The embedding model's server does not answer, or asks to come later."""
    assert isinstance(exc, TransientError)
    wait_s = max(1, ceil(exc.retry_after_s or 0))
    return error_body(Unavailable.code, exc.message, 503, {"Retry-After": str(wait_s)})


def _database_busy(request: Request, exc: Exception) -> JSONResponse:
    log.error("%s %s: the database failed: %s", request.method, request.url.path, exc)
    busy = Unavailable("the database is busy or cannot be reached; try again in a moment")
    return _public_error(request, busy)


def _unexpected(request: Request, exc: Exception) -> JSONResponse:
    log.error("%s %s failed", request.method, request.url.path, exc_info=exc)
    return error_body("unknown", "unexpected error; the server's log says more", 500)
