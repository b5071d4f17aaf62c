"""Base, engines, transaction(), reading(), after_commit()."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ClassVar

from sqlalchemy import DateTime, Engine, MetaData, create_engine, event
from sqlalchemy.engine import Connection, Dialect
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker
from sqlalchemy.types import JSON, TypeDecorator


class UtcDateTime(TypeDecorator[datetime]):
    """A moment with time zone; SQLite keeps it as naive UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value


class Base(DeclarativeBase):
    """All tables; constraints have names, so that migrations can speak of them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: UtcDateTime(),
        dict[str, Any]: JSON(none_as_null=True),
        list[Any]: JSON(none_as_null=True),
    }


def now() -> datetime:
    """The present moment, with time zone."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class Sessions:
    """Where sessions come from; see `transaction` and `reading`."""

    engine: Engine
    write: sessionmaker[Session]
    read: sessionmaker[Session]

    def close(self) -> None:
        """Let go of every connection."""
        self.engine.dispose()


def open_database(url: str) -> Sessions:
    """Connect; on SQLite with write-ahead log, full durability, foreign keys and patience."""
    if not url.startswith("sqlite"):
        engine = create_engine(url, pool_pre_ping=True)
        return _sessions(engine, engine)
    engine = create_engine(
        url,
        connect_args={"timeout": 30.0, "check_same_thread": False},
        pool_size=32,
        max_overflow=32,
        json_serializer=lambda value: json.dumps(value, ensure_ascii=False),
    )

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: object) -> None:
        # The driver would begin and commit on its own; we say BEGIN ourselves (below).
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",  # an accepted upload survives a loss of power
            "foreign_keys=ON",
            "busy_timeout=30000",
            "cache_size=-32000",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A transaction that will write says so at once: turning a read transaction into a
        # writing one fails with "database is locked" when another writer came in between.
        mode = connection.get_execution_options().get("begin", "DEFERRED")
        connection.exec_driver_sql(f"BEGIN {mode}")

    return _sessions(engine.execution_options(begin="IMMEDIATE"), engine)


def _sessions(write: Engine, read: Engine) -> Sessions:
    return Sessions(
        engine=read,
        write=sessionmaker(write, expire_on_commit=False),
        read=sessionmaker(read, expire_on_commit=False, autoflush=False),
    )


@contextmanager
def transaction(sessions: Sessions) -> Iterator[Session]:
    """A session that commits at the end, or rolls back on any exception; then after-commit work."""
    with sessions.write() as session:
        with session.begin():
            yield session
        _run_after_commit(session)


@contextmanager
def reading(sessions: Sessions) -> Iterator[Session]:
    """A session over one consistent snapshot; it never writes."""
    with sessions.read() as session:
        yield session


def after_commit(session: Session, work: Callable[[], None]) -> None:
    """Run `work` once the transaction is committed; never when it is rolled back."""
    session.info.setdefault("after_commit", []).append(work)


def _run_after_commit(session: Session) -> None:
    for work in session.info.pop("after_commit", []):
        work()


def new_id() -> uuid.UUID:
    """A random id."""
    return uuid.uuid4()
