"""connect(): the REST client that every command uses, over the network or in this process."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import click

from kb.cli.options import CliError, Target
from kb.errors import KBError

if TYPE_CHECKING:
    import httpx2 as httpx
    from anyio.from_thread import BlockingPortal
    from starlette.types import ASGIApp

    from kb.adapters.data_directory import DataDirectory
    from kb.client import Client
    from kb.resources import Resources
    from kb.settings import Settings


@contextmanager
def connect(target: Target, *, create: bool = False, working: bool = True) -> Iterator[Client]:
    """A client of the knowledge base that the command line names.

    Without a URL this process takes the data directory, serves itself, and at the end hands work
    that is not done back to the queue.

    Args:
        create: make the data directory when it is not there.
        working: without a URL, work on waiting documents meanwhile.
    Raises:
        CliError: anything that the server or the data directory refuses.
    """
    from kb.client import ClientError

    try:
        with (
            _over_network(target) if target.url else _in_process(target, create, working)
        ) as client:
            yield client
    except (ClientError, KBError) as exc:
        raise CliError(str(exc)) from exc


def load_settings(target: Target) -> Settings:
    """The settings of this process.

    Raises:
        CliError: an environment variable does not validate; the message names it.
    """
    from pydantic import ValidationError
    from pydantic_settings import SettingsError

    from kb.settings import Settings

    try:
        return Settings(data_dir=target.data_dir) if target.data_dir else Settings()
    except ValidationError as exc:
        problems = "; ".join(
            f"KB_{'__'.join(map(str, e['loc'])).upper()}: {e['msg']} (got {e['input']!r})"
            for e in exc.errors(include_url=False)
        )
        raise CliError(problems) from exc
    except SettingsError as exc:
        raise CliError(f"settings: {exc}") from exc


@contextmanager
def open_data_directory(settings: Settings) -> Iterator[tuple[DataDirectory, Resources]]:
    """This process's resources on a data directory that it alone holds.

    Raises:
        CliError: another process holds it, or it cannot be read or written.
    """
    from alembic.util import CommandError
    from sqlalchemy.exc import SQLAlchemyError

    from kb.adapters.data_directory import DataDirectory
    from kb.wiring import open_resources

    with ExitStack() as stack:
        try:
            shared = settings.redis_url is not None
            directory = stack.enter_context(DataDirectory(settings.data_dir, shared=shared))
            resources = stack.enter_context(open_resources(settings))
        except KBError as exc:
            raise CliError(exc.message) from exc
        except OSError as exc:
            raise CliError(f"data directory {str(settings.data_dir)!r}: {exc}") from exc
        except (SQLAlchemyError, CommandError) as exc:
            raise CliError(
                f"the database of {str(settings.data_dir)!r} cannot be used: {exc}"
            ) from exc
        yield directory, resources


@contextmanager
def _over_network(target: Target) -> Iterator[Client]:
    from kb.client import Client

    key = target.api_key
    if key is None:
        configured = load_settings(target).api_key
        key = configured.get_secret_value() if configured else None
    if not key:
        raise CliError(
            "no API key; set KB_API_KEY or give --api-key: the server printed a key at its first "
            "start, or was given one in its KB_API_KEY"
        )
    assert target.url is not None
    with Client(target.url, key) as client:
        yield client


@contextmanager
def _in_process(target: Target, create: bool, working: bool) -> Iterator[Client]:
    settings = load_settings(target)
    if not create and not settings.data_dir.exists():
        raise CliError(
            f"there is no data directory {str(settings.data_dir)!r}; start one with: kb ingest "
            "PATH --dataset NAME, name another with --data-dir, or a server with --url"
        )
    # A bulk's failed files are reported one by one; the log need not say it again.
    configure_logging({"kb.ingestion": logging.ERROR, "kb.embedding": logging.INFO})
    from anyio.from_thread import start_blocking_portal

    from kb.api.app import create_app
    from kb.client import Client
    from kb.runner import runner_for

    key = secrets.token_urlsafe()
    with open_data_directory(settings) as (_, resources):
        runner = runner_for(resources) if working else None
        app = create_app(resources, runner=runner, process_key=key)
        with ExitStack() as stack:
            if working:
                stack.callback(_say_what_is_left, resources)
            portal = stack.enter_context(start_blocking_portal())
            lifespan = portal.wrap_async_context_manager(app.router.lifespan_context(app))
            lifespan.__enter__()
            # Not told of exceptions, as no server does: it would skip its shutdown.
            stack.callback(lifespan.__exit__, None, None, None)
            yield stack.enter_context(
                Client("http://in-process", key, transport=_transport(app, portal))
            )


def _transport(app: ASGIApp, portal: BlockingPortal) -> httpx.BaseTransport:
    """Answers requests with an application that runs on the portal's event loop.

    Bodies pass through in both directions, some parts at a time.
    """
    import httpx2 as httpx

    from kb.cli.in_process import Exchange

    class InProcess(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            exchange = Exchange(app, portal, request)
            return httpx.Response(exchange.status, headers=exchange.headers, stream=_Body(exchange))

    class _Body(httpx.SyncByteStream):
        def __init__(self, exchange: Exchange) -> None:
            self._exchange = exchange

        def __iter__(self) -> Iterator[bytes]:
            return self._exchange.parts()

        def close(self) -> None:
            self._exchange.close()

    return InProcess()


def _say_what_is_left(resources: Resources) -> None:
    from sqlalchemy import func, select

    from kb.db import reading
    from kb.models import UNFINISHED, Document

    queued = select(func.count()).where(
        Document.indexing_status.in_(UNFINISHED), Document.is_paused.is_(False)
    )
    with reading(resources.sessions) as session:
        left = session.scalar(queued)
    if left:
        click.echo(
            f"{left} {'document is' if left == 1 else 'documents are'} still queued; `kb serve` "
            "or the next command on this data directory goes on with "
            f"{'it' if left == 1 else 'them'}",
            err=True,
        )


class _ToStderr(logging.Handler):
    """Writes to what sys.stderr is at that moment, so that a progress bar can stand aside."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(self.format(record), err=True)


def configure_logging(levels: dict[str, int | str], lines: logging.Formatter | None = None) -> None:
    """Log to stderr: warnings, and of these loggers what is at least of this level.

    Args:
        lines: how they are written; None: the message alone.
    """
    handler = _ToStderr()
    handler.setFormatter(lines or logging.Formatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
