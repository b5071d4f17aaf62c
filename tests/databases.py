"""Which database a test runs on, and where it gets a fresh one.

A test that asks for the fixture `database`, directly or through another one (`settings`,
`resources`, `client` ...), runs once on SQLite and once on PostgreSQL; `--database` chooses one
of them, `@pytest.mark.sqlite_only` leaves PostgreSQL out of a test that is slow and not about SQL.
A fixture of a module or session that opens resources asks for `database` too, so that it is opened
anew for the other one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kb.db import open_database
from kb.migrations import upgrade
from tests.services import PostgreSQL

_server: PostgreSQL | None = None
_urls: dict[Path, str] = {}


def use(server: PostgreSQL | None) -> None:
    """From now on settings point to databases of this server; None: to SQLite."""
    global _server
    _server = server


def used() -> PostgreSQL | None:
    """The server that settings point to at this moment."""
    return _server


def url_for(data_dir: Path) -> str | None:
    """The database that belongs to a data directory: always the same; None: SQLite inside it."""
    if _server is None:
        return None
    if data_dir not in _urls:
        _urls[data_dir] = _server.url(_server.add_database(_server.template("migrated", _migrate)))
    return _urls[data_dir]


def drop_all() -> None:
    """Remove every database that was made."""
    for url in _urls.values():
        assert _server is not None
        _server.drop_database(url.rpartition("/")[2])
    _urls.clear()


@contextmanager
def empty_database(kind: str, directory: Path, server: PostgreSQL | None) -> Iterator[str]:
    """The URL of a database without any table."""
    if kind == "sqlite":
        yield f"sqlite:///{directory / 'empty.db'}"
        return
    assert server is not None
    with server.database() as url:
        yield url


def _migrate(url: str) -> None:
    sessions = open_database(url)
    upgrade(sessions.engine)
    sessions.close()
