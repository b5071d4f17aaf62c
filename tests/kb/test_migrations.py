"""Migrations: they make what the models say, they lose no row, and they run one at a time."""

from __future__ import annotations

import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, MetaData, Table, insert, inspect, select, text
from sqlalchemy import types as sa

import kb.migrations
import kb.models
from kb.db import Base, open_database
from kb.migrations import downgrade, upgrade
from tests.databases import empty_database
from tests.services import PostgreSQL


@pytest.fixture
def url(database: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """A database without any table."""
    server: PostgreSQL | None = (
        request.getfixturevalue("postgresql") if database == "postgresql" else None
    )
    with empty_database(database, tmp_path, server) as opened:
        yield opened


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    """An engine on it."""
    sessions = open_database(url)
    yield sessions.engine
    sessions.close()


def revisions() -> list[str]:
    """All of them, oldest first."""
    config = Config()
    config.set_main_option("script_location", str(Path(kb.migrations.__file__).parent))
    found = ScriptDirectory.from_config(config).walk_revisions()
    return [script.revision for script in reversed(list(found))]


def differences(engine: Engine) -> list[Any]:
    """What autogenerate would put into a new revision."""
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        return list(compare_metadata(context, Base.metadata))


def tables_of(engine: Engine) -> list[Table]:
    """As they are in the database, parents first."""
    metadata = MetaData()
    with engine.connect() as connection:
        metadata.reflect(connection)
    return [table for table in metadata.sorted_tables if table.name != "alembic_version"]


def some_value(column: Any, number: int) -> Any:
    """A value that the column takes and that is told from others, with text from everywhere."""
    kind = column.type
    if isinstance(kind, sa.Uuid) or (isinstance(kind, sa.CHAR) and kind.length == 32):
        made = uuid.UUID(int=number + 1)
        return made if isinstance(kind, sa.Uuid) else made.hex
    if isinstance(kind, sa.DateTime):
        at = datetime(2024, 2, 29, 23, 59, 59, 123456 + number, UTC)
        return at if getattr(kind, "timezone", False) else at.replace(tzinfo=None)
    if isinstance(kind, sa.JSON):
        return {"name": "Grüße, 世界 😀", "n": number, "none": None, "nul": "\u0000"}
    if isinstance(kind, sa.Boolean):
        return True
    if isinstance(kind, sa.Numeric | sa.Float):
        return 1.5
    if isinstance(kind, sa.Integer):
        return number
    if isinstance(kind, sa.LargeBinary):
        return b"\x00\xff" + bytes([number])
    return f"{number} ß世😀"[: getattr(kind, "length", None) or 100]


def fill(engine: Engine) -> dict[str, list[tuple[Any, ...]]]:
    """Put two rows into every table, all columns set and references right; what is there then.

    Row n of each table refers to row n of the others.
    """
    tables = tables_of(engine)
    with engine.begin() as connection:
        for table in tables:
            for number in range(2):
                row = {column.name: some_value(column, number) for column in table.columns}
                connection.execute(insert(table).values(row))
    return contents(engine)


def contents(engine: Engine) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table."""
    tables = tables_of(engine)
    with engine.connect() as connection:
        return {
            table.name: sorted((tuple(row) for row in connection.execute(select(table))), key=repr)
            for table in tables
        }


def test_an_empty_database_becomes_what_the_models_say(engine: Engine) -> None:
    assert differences(engine), "the comparison can see something"
    upgrade(engine)
    assert {table.name for table in tables_of(engine)} == set(Base.metadata.tables)
    assert differences(engine) == []


def test_an_upgrade_of_an_up_to_date_database_changes_nothing(engine: Engine) -> None:
    upgrade(engine)
    before = fill(engine)
    upgrade(engine)
    assert contents(engine) == before


@pytest.mark.parametrize("revision", revisions())
def test_no_row_is_lost_on_the_way_up_and_back(engine: Engine, revision: str) -> None:
    upgrade(engine, revision)
    before = fill(engine)
    assert all(len(rows) == 2 for rows in before.values())
    upgrade(engine)
    after = contents(engine)
    assert {name: len(after[name]) for name in before} == dict.fromkeys(before, 2)
    downgrade(engine, revision)
    assert contents(engine) == before


@pytest.mark.parametrize("revision", revisions())
def test_no_row_of_an_older_table_is_lost_on_the_way_down_and_up(
    engine: Engine, revision: str
) -> None:
    upgrade(engine)
    fill(engine)
    downgrade(engine, revision)
    kept = contents(engine)
    assert {len(rows) for rows in kept.values()} == {2}
    upgrade(engine)
    assert differences(engine) == []
    after = contents(engine)
    assert {name: len(after[name]) for name in kept} == dict.fromkeys(kept, 2)


def test_the_way_back_ends_with_an_empty_database(engine: Engine) -> None:
    upgrade(engine)
    fill(engine)
    downgrade(engine, "base")
    assert tables_of(engine) == []
    upgrade(engine)
    assert contents(engine) == {t.name: [] for t in Base.metadata.sorted_tables}
    assert differences(engine) == []


def test_a_migration_that_fails_leaves_nothing_behind(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE child_chunks (id INTEGER)"))  # in the way of ours
    with pytest.raises(Exception, match="child_chunks"):
        upgrade(engine)
    with engine.connect() as connection:
        assert inspect(connection).get_table_names() == ["child_chunks"]


def test_processes_that_start_together_migrate_once(url: str) -> None:
    program = (
        "import sys; from kb.db import open_database; from kb.migrations import upgrade;"
        "from kb.wiring import _first_workspace; s = open_database(sys.argv[1]);"
        "sys.stdin.read(); upgrade(s.engine); print(_first_workspace(s))"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    time.sleep(1.5)  # until they have imported what they need
    for process in started:
        assert process.stdin is not None
        process.stdin.close()  # go
        process.stdin = None
    answers = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0] * 4, answers
    assert len({out for out, _ in answers}) == 1, "each sees the same workspace and owner"
    sessions = open_database(url)
    with sessions.engine.connect() as connection:
        counted = {
            table: connection.execute(text(f"SELECT count(*) FROM {table}")).scalar()  # noqa: S608
            for table in ("workspaces", "members", "alembic_version")
        }
    sessions.close()
    assert counted == {"workspaces": 1, "members": 1, "alembic_version": 1}
