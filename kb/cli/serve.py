"""`kb serve`: REST API and ingestion in one process, until a signal asks it to end."""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

import click

from kb.cli.client import configure_logging, load_settings, open_data_directory
from kb.cli.options import CliError, Target, examples, target_options

if TYPE_CHECKING:
    import uvicorn

    from kb.resources import Resources
    from pipelines.ports import Embedder

log = logging.getLogger("kb.serve")


@click.command(
    epilog=examples(
        "kb serve",
        "kb serve --data-dir /var/lib/kb --host 0.0.0.0 --port 80",
        "KB_API_KEY=secret KB_LOG_LEVEL=warning kb serve",
    )
)
@click.option(
    "--host", metavar="ADDRESS", help="Address to listen on.  [env: KB_HOST; default: 127.0.0.1]"
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help="Port to listen on; 0 takes a free one.  [env: KB_PORT; default: 8000]",
)
@target_options(network=False)
@click.pass_obj
def serve(target: Target, host: str | None, port: int | None) -> None:
    """Serve the REST API and ingest documents, in one process.

    The first start makes an API key and prints it once, unless KB_API_KEY sets one. Ctrl-C or
    SIGTERM ends the process cleanly: requests are finished, documents in work are handed back to
    the queue and go on at the next start.
    """
    from kb.logs import formatter, secrets_of

    settings = load_settings(target)
    host, port = host or settings.host, settings.port if port is None else port
    lines = formatter(settings.log_format, secrets=secrets_of(settings))
    configure_logging({"kb": settings.log_level.upper()}, lines)
    with (
        stopping(settings.shutdown_s) as stop,
        open_data_directory(settings) as (directory, resources),
        _listen(host, port) as listener,
    ):
        url = _url(host, listener.getsockname()[1])
        directory.announce(url)
        # Who connects from here on waits in the listener's queue until the server has started.
        _announce(url, resources)
        server = _server(resources)
        stop.ends(server)
        warming = threading.Thread(target=_warm_up, args=[resources.default_embedder])
        warming.start()
        try:
            server.run(sockets=[listener])
        except SystemExit as exc:  # what uvicorn makes of a failed start
            raise CliError("the server could not start; the log above says why") from exc
        finally:
            # An interpreter that ends while a thread is inside native code aborts.
            warming.join()
    log.info("stopped; waiting work goes on at the next start")


class Stop:
    """What SIGINT and SIGTERM do: end the server if it is there yet, else this process.

    Whatever has not ended `deadline_s` after the first signal is cut off: everything that was
    acknowledged is on disk, and the next start goes on from there.
    """

    def __init__(self, deadline_s: float) -> None:
        self._asked = False
        self._server: uvicorn.Server | None = None
        self._cut = threading.Timer(deadline_s, self._cut_off, [deadline_s])
        self._cut.daemon = True

    def ends(self, server: uvicorn.Server) -> None:
        """From now on a signal ends this server; a second SIGINT does not wait for requests."""
        self._server = server

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not self._asked:
            self._asked = True
            self._cut.start()
        if self._server is None:
            raise SystemExit(0)
        self._server.handle_exit(number, frame)

    def close(self) -> None:
        """Nothing is left that could be cut off."""
        self._cut.cancel()

    @staticmethod
    def _cut_off(deadline_s: float) -> None:
        log.warning(
            "work did not end within %g s and is cut off; the next start goes on", deadline_s
        )
        os._exit(0)


@contextmanager
def stopping(deadline_s: float) -> Iterator[Stop]:
    """Handle SIGINT and SIGTERM while it lasts."""
    stop = Stop(deadline_s)
    before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        stop.close()
        for number, handler in before.items():
            signal.signal(number, handler)


def _server(resources: Resources) -> uvicorn.Server:
    import uvicorn

    from kb.api.app import create_app
    from kb.runner import runner_for

    class Server(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            # Uvicorn's own would raise the signal again at the end, and so hide a clean exit.
            yield

    return Server(
        uvicorn.Config(
            create_app(resources, runner=runner_for(resources)),
            log_config=None,
            access_log=False,
            lifespan="on",
            timeout_graceful_shutdown=max(1, int(resources.settings.shutdown_s / 2)),
        )
    )


def _listen(host: str, port: int) -> socket.socket:
    """Raises: CliError: the port is taken, or the address is not this machine's."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as exc:
        reason = (exc.strerror or str(exc)).partition(" (")[0]
        raise CliError(
            f"cannot listen on {host} port {port}: {reason}; choose another --port (0 takes a "
            "free one) or --host"
        ) from exc
    # asyncio does this only for sockets that name their protocol, which this one does not; an
    # answer would wait some 40 ms for the client's delayed acknowledgement. Accepted sockets
    # inherit it.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _url(host: str, port: int) -> str:
    """Where this machine's programs reach the server."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"http://{f'[{reachable}]' if ':' in reachable else reachable}:{port}"


def _announce(url: str, resources: Resources) -> None:
    """Say where the server is and which key opens it."""
    facts = [
        ("kb serves", url),
        ("API manual", f"{url}/docs"),
        ("data", str(resources.settings.data_dir.resolve())),
        *_keys(resources, url),
        ("stop", "Ctrl-C"),
    ]
    click.echo("\n".join(f"{label:<13} {text}" for label, text in facts))


def _keys(resources: Resources, url: str) -> list[tuple[str, str]]:
    """Make the first key if there is none; what to say about keys."""
    from kb.api_keys import add_first_api_key, list_hints
    from kb.db import transaction

    if resources.settings.api_key is not None:
        return [("API key", "that of KB_API_KEY")]
    with transaction(resources.sessions) as session:
        key = add_first_api_key(session, resources.workspace_id)
        hints = list_hints(session, resources.workspace_id)
    own = "KB_API_KEY sets one of your choice"
    if key is None:
        known = ", ".join(f"{hint}…" for hint in hints)
        return [("API key", f"{known} (shown in full when it was made; {own})")]
    return [
        ("API key", key),
        ("", f"shown this once, so keep it; {own}"),
        ("try", f"curl -H 'Authorization: Bearer {key}' {url}/v1/datasets"),
    ]


def _warm_up(embedder: Embedder) -> None:
    """Load the model, so that the first query need not wait for it."""
    started = time.monotonic()
    try:
        embedder.embed_query("warm up")
    except Exception as exc:  # noqa: BLE001 - a query will say it to whom it concerns
        log.warning("the embedding model is not ready: %s", exc)
    else:
        log.info("embedding model %s ready in %.1f s", embedder.id, time.monotonic() - started)
    # What is here by now stays to the end; looking through it took a query in two hundred 60 ms.
    gc.collect()
    gc.freeze()
