"""create_app(): routers, error bodies, and the start and end of the process's work."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from kb.api import datasets, documents, retrieval, segments, system
from kb.errors import KBError
from kb.resources import Resources
from kb.runner import Runner

log = logging.getLogger("kb.api")


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
        if runner is not None:
            await run_in_threadpool(runner.start)
        yield
        app.state.stopping = True
        if runner is not None:
            ended = await run_in_threadpool(runner.stop, timeout_s=resources.settings.shutdown_s)
            if not ended:
                log.warning("a document is still in work; it goes on at the next start")

    app = FastAPI(
        title="kb",
        summary="Knowledge bases: ingestion and retrieval",
        version="0.1.0",
        lifespan=lifespan,
        redirect_slashes=False,  # a redirect would turn a client's POST into a GET
    )
    app.state.resources = resources
    app.state.runner = runner
    app.state.process_key = process_key
    for router in (
        datasets.router,
        documents.router,
        segments.router,
        retrieval.router,
        system.router,
    ):
        app.include_router(router)
    app.add_exception_handler(KBError, _public_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected)
    return app


def error_body(code: str, message: str, status: int) -> JSONResponse:
    """The error body of the public API."""
    headers = {"WWW-Authenticate": 'Bearer realm="api"'} if status == 401 else None
    body = {"code": code, "message": message, "status": status}
    return JSONResponse(body, status_code=status, headers=headers)


def _public_error(_request: Request, exc: Exception) -> JSONResponse:
    assert isinstance(exc, KBError)
    return error_body(exc.code, exc.message, exc.status)


def _http_error(_request: Request, exc: Exception) -> JSONResponse:
    assert isinstance(exc, HTTPException)
    return error_body(_snake_case(exc.status_code), str(exc.detail), exc.status_code)


def _snake_case(status: int) -> str:
    from http import HTTPStatus

    return re.sub(r"\W+", "_", HTTPStatus(status).phrase.lower())


def _unexpected(request: Request, exc: Exception) -> JSONResponse:
    log.error("%s %s failed", request.method, request.url.path, exc_info=exc)
    message = "unexpected error; the server's log says more"
    return JSONResponse({"message": message, "code": "unknown", "status": 500}, status_code=500)
