"""Base, engines, moment(), transaction(), reading(), after_commit(), exclusive(), retried()."""

from __future__ import annotations

import json
import random
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import sha256
from typing import Any, ClassVar, TypeVar

from sqlalchemy import (
    DateTime,
    Engine,
    Float,
    MetaData,
    Text,
    bindparam,
    create_engine,
    event,
    make_url,
    text,
)
from sqlalchemy.engine import URL, Connection, Dialect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import JSON, TypeDecorator

Result = TypeVar("Result")

_POSTGRESQL = ("postgresql", "postgres", "postgresql+psycopg")
_CONFLICTS = ("40001", "40P01")
"""SQLSTATE of a serialisation failure and of a deadlock: all is undone, the same may work now."""
_TRIES = 6
_to_json = partial(json.dumps, ensure_ascii=False)


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


class Sealed(TypeDecorator[str]):
    """A text that `kb.secrets` seals; tables, archives and moves can tell by the column's type."""

    impl = Text
    cache_ok = True


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
    """The present moment on this machine's clock, with time zone; for people to read.

    What processes agree upon (leases, waits, turns) is told by `moment`.
    """
    return datetime.now(UTC)


class moment(FunctionElement[datetime]):
    """The moment of the statement on the database's clock, and so many seconds later.

    All machines share that clock, so one whose own clock is wrong neither takes another's lease
    nor loses its own. SQLite has the clock of its only process.
    """

    type = UtcDateTime()
    inherit_cache = True
    name = "moment"

    def __init__(self, plus_s: float = 0.0) -> None:
        plus = timedelta(seconds=plus_s)
        super().__init__(
            bindparam(None, plus_s, Float, unique=True),
            bindparam(None, callable_=lambda: now() + plus, type_=UtcDateTime(), unique=True),
        )


@compiles(moment, "postgresql")
def _moment_of_postgresql(element: moment, compiler: SQLCompiler, **given: Any) -> str:
    plus_s, _ = element.clauses
    # Not now(): that is when the transaction began, which may have waited for a lock since.
    return f"(statement_timestamp() + make_interval(secs => {compiler.process(plus_s, **given)}))"


@compiles(moment, "sqlite")
def _moment_of_sqlite(element: moment, compiler: SQLCompiler, **given: Any) -> str:
    _, here = element.clauses
    return compiler.process(here, **given)


@dataclass(frozen=True)
class Sessions:
    """Where sessions come from; see `transaction` and `reading`."""

    engine: Engine
    write: sessionmaker[Session]
    read: sessionmaker[Session]

    def close(self) -> None:
        """Let go of every connection."""
        self.engine.dispose()


@dataclass(frozen=True)
class Pool:
    """How a process uses a database server; SQLite needs none of it.

    Attributes:
        size: connections kept open.
        most: connections open at once; who asks for one more waits `timeout_s`.
        connect_timeout_s: how long opening one may take.
        lock_timeout_s: how long a statement waits for a row that another transaction changes.
        idle_transaction_s: the server ends a transaction whose client says nothing for this long.
    """

    size: int = 10
    most: int = 40
    timeout_s: float = 30.0
    connect_timeout_s: float = 10.0
    lock_timeout_s: float = 30.0
    idle_transaction_s: float = 120.0


def open_database(url: str, pool: Pool | None = None) -> Sessions:
    """Connect to `sqlite:///PATH` or `postgresql://USER:PASSWORD@HOST:PORT/NAME`.

    Raises:
        ValueError: another kind of database, a URL that cannot be read, or no driver for it.
    """
    parsed = _database_url(url)
    if parsed.get_backend_name() == "sqlite":
        return _open_sqlite(parsed)
    return _open_postgresql(parsed, pool or Pool())


def _database_url(url: str) -> URL:
    try:
        parsed = make_url(url)
    except Exception as exc:
        raise ValueError(
            "the database URL cannot be read; write postgresql://USER:PASSWORD@HOST:PORT/NAME, "
            "with reserved characters of the password as %XX"
        ) from exc
    if parsed.drivername in _POSTGRESQL:
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() == "sqlite":
        return parsed
    raise ValueError(
        f"no database of kind {parsed.drivername!r}; known: postgresql://... and sqlite:///..."
    )


def _open_postgresql(url: URL, pool: Pool) -> Sessions:
    """Writers see what is committed at each statement; readers see one snapshot."""
    try:
        engine = create_engine(
            url,
            # A connection that the server dropped (a restart) is replaced before it is used.
            pool_pre_ping=True,
            pool_size=min(pool.size, pool.most),
            max_overflow=max(0, pool.most - pool.size),
            pool_timeout=pool.timeout_s,
            pool_recycle=1800,
            json_serializer=_to_json,
            connect_args={
                "connect_timeout": max(1, round(pool.connect_timeout_s)),
                "application_name": "kb",
                "options": _server_options(pool),
                # A server that vanished without a word is noticed after about a minute.
                "keepalives_idle": 30,
                "keepalives_interval": 10,
                "keepalives_count": 3,
            },
        )
    except ImportError as exc:
        raise ValueError(
            "PostgreSQL needs a driver that is not installed; pip install 'kb-engine[service]'"
        ) from exc
    read = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    return Sessions(engine=engine, write=_factory(engine), read=_factory(read, autoflush=False))


def _server_options(pool: Pool) -> str:
    options = {
        "timezone": "UTC",
        "lock_timeout": int(pool.lock_timeout_s * 1000),
        # A client that froze, or vanished without a word, does not keep its locks for hours.
        "idle_in_transaction_session_timeout": int(pool.idle_transaction_s * 1000),
        "tcp_keepalives_idle": 30,
        "tcp_keepalives_interval": 10,
        "tcp_keepalives_count": 3,
    }
    return " ".join(f"-c {name}={value}" for name, value in options.items())


def _open_sqlite(url: URL) -> Sessions:
    """With write-ahead log, full durability, foreign keys and patience."""
    engine = create_engine(
        url,
        connect_args={"timeout": 30.0, "check_same_thread": False},
        pool_size=32,
        max_overflow=32,
        json_serializer=_to_json,
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

    write = engine.execution_options(begin="IMMEDIATE")
    return Sessions(engine=engine, write=_factory(write), read=_factory(engine, autoflush=False))


def _factory(engine: Engine, *, autoflush: bool = True) -> sessionmaker[Session]:
    return sessionmaker(engine, expire_on_commit=False, autoflush=autoflush)


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


def exclusive(session: Session | Connection, name: str, *, wait_for_ever: bool = False) -> None:
    """Wait until no other transaction holds this name; hold it until the transaction ends.

    On SQLite a writing transaction is alone anyway.

    Args:
        wait_for_ever: what others do meanwhile may take longer than `lock_timeout_s`.
    """
    connection = session.connection() if isinstance(session, Session) else session
    if connection.dialect.name != "postgresql":
        return
    if wait_for_ever:
        connection.execute(text("SET LOCAL lock_timeout = 0"))
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": lock_key(name)})
    if wait_for_ever:
        connection.execute(text("SET LOCAL lock_timeout TO DEFAULT"))


def shared(session: Session, name: str) -> None:
    """Hold this name together with others who share it; `exclusive` waits for all of them."""
    if session.get_bind().dialect.name == "postgresql":
        statement = text("SELECT pg_advisory_xact_lock_shared(:key)")
        session.execute(statement, {"key": lock_key(name)})


def lock_key(name: str) -> int:
    """The 64-bit number under which PostgreSQL knows an advisory lock."""
    return int.from_bytes(sha256(f"kb {name}".encode()).digest()[:8], signed=True)


def is_conflict(error: BaseException) -> bool:
    """Whether the database undid a transaction because of another one: then it may be repeated."""
    if not isinstance(error, DBAPIError) or error.orig is None:
        return False
    return getattr(error.orig, "sqlstate", None) in _CONFLICTS


def retried(work: Callable[[], Result]) -> Result:
    """What `work` returns; it is done again when the database undid it in favour of another.

    `work` runs its transactions from beginning to end, so that nothing of a failed try is left.

    Raises:
        DBAPIError: six tries were undone, or it failed for another reason.
    """
    for tried in range(1, _TRIES):
        try:
            return work()
        except DBAPIError as exc:
            if not is_conflict(exc):
                raise
            time.sleep(random.uniform(0, 0.01 * 2**tried))
    return work()


def new_id() -> uuid.UUID:
    """A random id."""
    return uuid.uuid4()
