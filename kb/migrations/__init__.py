"""Alembic, one revision per schema change; `upgrade` runs them from code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine

from kb.db import exclusive

if TYPE_CHECKING:
    from alembic.config import Config


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Bring the database to `revision`, all or nothing; does nothing when it is there already.

    Processes that start at the same moment do it one after the other.
    """
    from alembic import command

    _run(engine, lambda config: command.upgrade(config, revision))


def downgrade(engine: Engine, revision: str) -> None:
    """Take the database back to `revision` (`base`: empty), all or nothing."""
    from alembic import command

    _run(engine, lambda config: command.downgrade(config, revision))


def _run(engine: Engine, work: Callable[[Config], None]) -> None:
    # Alembic leaves a transaction alone that it finds; its own, on SQLite, end with each revision.
    with _connection(engine) as connection, connection.begin():
        exclusive(connection, "migrations", wait_for_ever=True)
        work(_config(connection))


@contextmanager
def _connection(engine: Engine) -> Iterator[Connection]:
    if engine.dialect.name != "sqlite":
        with engine.connect() as connection:
            yield connection
        return
    # SQLite changes a table by making a new one and dropping the old: with foreign keys on, the
    # drop would delete every row that refers to it. The pragma counts only outside a transaction.
    with engine.execution_options(begin="IMMEDIATE").connect() as connection:
        driver = connection.connection.driver_connection
        assert driver is not None
        driver.execute("PRAGMA foreign_keys=OFF")
        try:
            yield connection
        finally:
            driver.execute("PRAGMA foreign_keys=ON")


def _config(connection: Connection) -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
