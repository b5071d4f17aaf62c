"""Migrations and models say the same; every step goes both ways."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, inspect, select

from kb.db import Base, Sessions, open_database, transaction
from kb.migrations import downgrade, upgrade
from kb.models import Dataset, Member, Workspace


@pytest.fixture
def sessions(tmp_path: Path) -> Iterator[Sessions]:
    opened = open_database(f"sqlite:///{tmp_path / 'kb.db'}")
    yield opened
    opened.close()


def differences(engine: Engine) -> list[object]:
    """What autogenerate would put into a new revision."""
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        return list(compare_metadata(context, Base.metadata))


def tables(engine: Engine) -> set[str]:
    return set(inspect(engine).get_table_names()) - {"alembic_version"}


def test_an_empty_database_becomes_what_the_models_say(sessions: Sessions) -> None:
    assert differences(sessions.engine)  # the comparison can see something
    upgrade(sessions.engine)
    assert tables(sessions.engine) == set(Base.metadata.tables)
    assert differences(sessions.engine) == []


def test_down_to_nothing_and_up_again(sessions: Sessions) -> None:
    upgrade(sessions.engine)
    downgrade(sessions.engine, "base")
    assert tables(sessions.engine) == set()
    upgrade(sessions.engine)
    assert differences(sessions.engine) == []


def test_an_upgrade_of_an_up_to_date_database_changes_nothing(sessions: Sessions) -> None:
    upgrade(sessions.engine)
    with transaction(sessions) as session:
        session.add(Workspace(name="kept"))
    upgrade(sessions.engine)
    with transaction(sessions) as session:
        assert session.scalars(select(Workspace.name)).all() == ["kept"]


def test_what_belongs_to_a_dataset_goes_with_it(sessions: Sessions) -> None:
    upgrade(sessions.engine)
    with transaction(sessions) as session:
        workspace = Workspace(name="w")
        session.add(workspace)
        session.flush()
        member = Member(workspace_id=workspace.id, name="owner")
        session.add(member)
        session.flush()
        session.add(Dataset(workspace_id=workspace.id, name="d", created_by=member.id))
        session.flush()
        session.delete(workspace)
        session.flush()
        assert session.scalars(select(Dataset.id)).all() == []
