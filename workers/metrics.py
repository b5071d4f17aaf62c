"""A worker's own metrics on a port of its own; several processes are added up."""

from __future__ import annotations

import hmac
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.multiprocess import MultiProcessCollector

from kb.metrics import REGISTRY
from kb.settings import Metrics

log = logging.getLogger("kb.worker")

FILES = "PROMETHEUS_MULTIPROC_DIR"
"""The library's own variable: where the processes of one worker keep their counts."""


def serve_metrics(settings: Metrics, *, several: bool) -> WSGIServer | None:
    """Answer `/metrics` in a thread until the process ends; None when no port is set.

    Args:
        several: the work is done by child processes, whose counts are added up.
    """
    if settings.worker_port is None:
        return None
    try:
        server = make_server(
            settings.worker_host,
            settings.worker_port,
            _guarded(_application(several), settings),
            ThreadingWSGIServer,
            handler_class=_Silent,
        )
    except (OSError, ValueError) as exc:
        log.error("no metrics on port %d: %s", settings.worker_port, exc)
        return None
    threading.Thread(target=server.serve_forever, name="kb-metrics", daemon=True).start()
    log.info("metrics on http://%s:%d/metrics", settings.worker_host, server.server_port)
    return server


def forget_counts() -> None:
    """Remove what the processes of this worker counted; it ends."""
    if FILES in os.environ:
        shutil.rmtree(os.environ[FILES], ignore_errors=True)


def _application(several: bool) -> Callable[..., Any]:
    if not several:
        return make_wsgi_app(REGISTRY)
    added_up = CollectorRegistry()
    MultiProcessCollector(added_up)  # type: ignore[no-untyped-call]
    return make_wsgi_app(added_up)


def _guarded(application: Callable[..., Any], settings: Metrics) -> Callable[..., Iterable[bytes]]:
    """The application behind the token, if there is one."""
    if settings.token is None:
        return application
    wanted = f"Bearer {settings.token.get_secret_value()}".encode()

    def guarded(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        given = environ.get("HTTP_AUTHORIZATION", "").encode()
        if hmac.compare_digest(given, wanted):
            answer: Iterable[bytes] = application(environ, start_response)
            return answer
        start_response("401 Unauthorized", [("WWW-Authenticate", "Bearer")])
        return [b"send the token of KB_METRICS__TOKEN\n"]

    return guarded


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a scrape is no event."""
