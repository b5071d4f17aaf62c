"""Databases: which URLs are taken, what a transaction sees, and what happens in a conflict."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy import func, select, text, update
from sqlalchemy.exc import (
    DBAPIError,
    IntegrityError,
    OperationalError,
    StatementError,
    TimeoutError,
)

from kb.db import (
    Pool,
    Sessions,
    after_commit,
    exclusive,
    is_conflict,
    moment,
    now,
    open_database,
    reading,
    retried,
    transaction,
)
from kb.models import (
    ApiKey,
    CachedEmbedding,
    Dataset,
    IndexingTechnique,
    Job,
    JobKind,
    Member,
    Workspace,
)
from kb.resources import Resources
from tests.services import PostgreSQL


@pytest.fixture
def sessions(resources: Resources) -> Sessions:
    """Sessions on a migrated database that holds one workspace."""
    return resources.sessions


def add_dataset(sessions: Sessions, resources: Resources, name: str = "books", **row: Any) -> Any:
    with transaction(sessions) as session:
        dataset = Dataset(
            workspace_id=resources.workspace_id, name=name, created_by=resources.owner_id, **row
        )
        session.add(dataset)
    return dataset.id


# --- URLs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_the_usual_spellings_of_postgresql_are_one_driver(scheme: str) -> None:
    sessions = open_database(f"{scheme}://kb:p%40ss@db.example:5433/kb?sslmode=require")
    url = sessions.engine.url
    assert (url.drivername, url.password, url.port) == ("postgresql+psycopg", "p@ss", 5433)
    assert url.query == {"sslmode": "require"}


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("mysql://kb@db/kb", "no database of kind 'mysql'; known: postgresql://"),
        ("postgresql+asyncpg://kb@db/kb", "no database of kind 'postgresql\\+asyncpg'"),
        ("not a url", "postgresql://USER:PASSWORD@HOST:PORT/NAME"),
        ("", "postgresql://USER:PASSWORD@HOST:PORT/NAME"),
        ("postgresql://kb:secret@db:port/kb", "postgresql://USER:PASSWORD@HOST:PORT/NAME"),
    ],
)
def test_another_database_is_refused_with_the_ones_that_work(url: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        open_database(url)
    assert "secret" not in str(caught.value)


# --- values --------------------------------------------------------------------------------------


def test_a_moment_is_told_by_the_database_at_each_execution(sessions: Sessions) -> None:
    statement = select(moment(), moment(90), moment(-0.5))
    with reading(sessions) as session:
        first, later, earlier = session.execute(statement).one()
    assert abs((first - now()).total_seconds()) < 5, "the clocks are those of one machine here"
    assert first.tzinfo is not None
    assert (later - first).total_seconds() == pytest.approx(90, abs=0.01)
    assert (earlier - first).total_seconds() == pytest.approx(-0.5, abs=0.01)
    time.sleep(0.01)
    with reading(sessions) as session:
        again = session.execute(statement).one()
    assert again[0] > first


def test_of_several_machines_none_uses_its_own_clock(
    sessions: Sessions, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kb.db.now", lambda: now() + timedelta(days=1))
    with reading(sessions) as session:
        told = session.execute(select(moment(60))).scalar_one()
    wrong = timedelta(days=1) if database == "sqlite" else timedelta()
    assert abs((told - now() - wrong).total_seconds() - 60) < 5


def test_moments_come_back_with_their_zone_and_microseconds(
    sessions: Sessions, resources: Resources
) -> None:
    zone = timezone(timedelta(hours=5, minutes=45))
    at = datetime(2024, 3, 31, 2, 30, 0, 123456, zone)
    made = add_dataset(sessions, resources, updated_at=at)
    with reading(sessions) as session:
        read = session.scalar(select(Dataset.updated_at).where(Dataset.id == made))
        assert read == at
        assert read is not None
        assert read.utcoffset() == timedelta(0)
        earlier = at - timedelta(microseconds=1)
        count = select(func.count()).select_from(Dataset)
        assert session.scalar(count.where(Dataset.updated_at > earlier)) == 1
        assert session.scalar(count.where(Dataset.updated_at < at.astimezone(UTC))) == 0


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"none": None, "nested": [1, 2.5, {"a": "Grüße, 世界 😀"}], "yes": True},
        {"nul": "a\u0000b", "quote": "'\"\\", "empty": ""},
        {"large": 2**53, "small": 1e-9},
    ],
)
def test_json_comes_back_as_it_went_in(
    sessions: Sessions, resources: Resources, value: dict[str, Any]
) -> None:
    made = add_dataset(sessions, resources, retrieval_model=value)
    with reading(sessions) as session:
        assert session.get_one(Dataset, made).retrieval_model == value


def test_no_json_is_null_in_sql(sessions: Sessions, resources: Resources) -> None:
    made = add_dataset(sessions, resources, retrieval_model=None)
    with reading(sessions) as session:
        empty = select(Dataset.id).where(Dataset.retrieval_model.is_(None))
        assert session.scalars(empty).all() == [made]


def test_bytes_come_back_as_they_went_in(sessions: Sessions) -> None:
    vector = bytes(range(256))
    with transaction(sessions) as session:
        session.add(CachedEmbedding(model="m", text_hash="0" * 64, vector=vector))
    with reading(sessions) as session:
        assert session.get_one(CachedEmbedding, ("m", "0" * 64)).vector == vector


def test_a_state_that_does_not_exist_is_refused(sessions: Sessions, resources: Resources) -> None:
    with pytest.raises(StatementError, match="fast"), transaction(sessions) as session:
        session.execute(update(Dataset).values(indexing_technique="fast"))
    made = add_dataset(sessions, resources, indexing_technique=IndexingTechnique.ECONOMY)
    with reading(sessions) as session:
        raw = text("SELECT indexing_technique FROM datasets")
        assert session.scalar(raw) == "economy", "the value is stored, not the name"
        assert session.get_one(Dataset, made).indexing_technique is IndexingTechnique.ECONOMY


def test_what_refers_to_a_row_goes_with_it(sessions: Sessions, resources: Resources) -> None:
    with pytest.raises(IntegrityError), transaction(sessions) as session:
        session.add(Member(workspace_id=resources.owner_id, name="nobody's"))
    with transaction(sessions) as session:
        workspace = Workspace(name="other")
        session.add(workspace)
        session.flush()
        session.add(ApiKey(workspace_id=workspace.id, hint="h", sha256="0" * 64))
    with transaction(sessions) as session:
        session.delete(session.get_one(Workspace, workspace.id))
    with reading(sessions) as session:
        assert session.scalar(select(func.count()).select_from(ApiKey)) == 0


# --- transactions --------------------------------------------------------------------------------


def test_a_failed_transaction_leaves_nothing_and_sends_nothing(
    sessions: Sessions, resources: Resources
) -> None:
    sent: list[str] = []

    def write(name: str, fail: bool) -> None:
        with transaction(sessions) as session:
            session.add(
                Dataset(
                    workspace_id=resources.workspace_id, name=name, created_by=resources.owner_id
                )
            )
            after_commit(session, lambda: sent.append(name))
            session.flush()
            if fail:
                raise RuntimeError(name)

    with pytest.raises(RuntimeError):
        write("lost", fail=True)
    write("kept", fail=False)
    with reading(sessions) as session:
        assert session.scalars(select(Dataset.name)).all() == ["kept"]
    assert sent == ["kept"]


def test_a_reader_sees_one_moment_however_long_it_reads(
    sessions: Sessions, resources: Resources
) -> None:
    count = select(func.count()).select_from(Dataset)
    with reading(sessions) as session:
        assert session.scalar(count) == 0
        add_dataset(sessions, resources)
        assert session.scalar(count) == 0
    with reading(sessions) as session:
        assert session.scalar(count) == 1


def test_a_savepoint_undoes_only_its_own(sessions: Sessions, resources: Resources) -> None:
    add_dataset(sessions, resources, "taken")
    with transaction(sessions) as session:
        session.add(
            Dataset(workspace_id=resources.workspace_id, name="new", created_by=resources.owner_id)
        )
        session.flush()
        with pytest.raises(IntegrityError), session.begin_nested():
            session.add(
                Dataset(
                    workspace_id=resources.workspace_id,
                    name="taken",
                    created_by=resources.owner_id,
                )
            )
    with reading(sessions) as session:
        assert sorted(session.scalars(select(Dataset.name))) == ["new", "taken"]


def test_one_name_is_held_by_one_transaction_at_a_time(sessions: Sessions) -> None:
    inside, most, seen = 0, 0, []
    lock = threading.Lock()

    def enter(number: int) -> None:
        nonlocal inside, most
        with transaction(sessions) as session:
            exclusive(session, "a name")
            with lock:
                inside += 1
                most = max(most, inside)
            time.sleep(0.02)
            seen.append(number)
            with lock:
                inside -= 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(enter, range(4)))
    assert most == 1
    assert sorted(seen) == [0, 1, 2, 3]


def test_two_increments_at_once_are_two(sessions: Sessions) -> None:
    with transaction(sessions) as session:
        session.add(Job(kind=JobKind.DELETE_BLOBS, payload={}))

    def add(_: int) -> None:
        with transaction(sessions) as session:
            session.execute(update(Job).values(attempts=Job.attempts + 1))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(40)))
    with reading(sessions) as session:
        assert session.scalar(select(Job.attempts)) == 40


# --- conflicts and outages (PostgreSQL) ----------------------------------------------------------


@pytest.fixture
def server_sessions(postgresql: PostgreSQL) -> Any:
    """A database with one table of two rows."""
    with postgresql.database() as url:
        sessions = open_database(
            url, Pool(size=2, most=3, timeout_s=0.3, connect_timeout_s=2, lock_timeout_s=5)
        )
        with transaction(sessions) as session:
            session.execute(text("CREATE TABLE sums (id int PRIMARY KEY, n int NOT NULL)"))
            session.execute(text("INSERT INTO sums VALUES (1, 0), (2, 0)"))
        yield sessions
        sessions.close()


def raise_both(sessions: Sessions, first: int, second: int, met: threading.Barrier) -> None:
    """Add one to two rows, one after the other, meeting the opponent in between."""
    with transaction(sessions) as session:
        add = text("UPDATE sums SET n = n + 1 WHERE id = :id")
        session.execute(add, {"id": first})
        if not met.broken:
            with suppress(threading.BrokenBarrierError):
                met.wait(2)
            met.abort()
        session.execute(add, {"id": second})


@pytest.mark.integration
def test_a_deadlock_is_worked_off_by_trying_again(server_sessions: Sessions) -> None:
    met = threading.Barrier(2)
    tries: list[int] = []

    def work(first: int, second: int) -> Callable[[], None]:
        def once() -> None:
            tries.append(first)
            raise_both(server_sessions, first, second, met)

        return once

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(retried, [work(1, 2), work(2, 1)]))
    with reading(server_sessions) as session:
        assert session.scalars(text("SELECT n FROM sums ORDER BY id")).all() == [2, 2]
    assert len(tries) == 3, "one of the two was undone, and done again"


@pytest.mark.integration
def test_only_conflicts_are_tried_again(server_sessions: Sessions) -> None:
    tries = []

    def work() -> None:
        tries.append(1)
        with transaction(server_sessions) as session:
            session.execute(text("INSERT INTO sums VALUES (1, 0)"))

    with pytest.raises(IntegrityError) as caught:
        retried(work)
    assert len(tries) == 1
    assert not is_conflict(caught.value)


@pytest.mark.integration
def test_a_conflict_that_does_not_end_is_passed_on(server_sessions: Sessions) -> None:
    tries = []

    def work() -> None:
        tries.append(1)
        with transaction(server_sessions) as session:
            session.execute(
                text("DO $$ BEGIN RAISE EXCEPTION 'again' USING ERRCODE = '40001'; END $$")
            )

    with pytest.raises(OperationalError) as caught:
        retried(work)
    assert is_conflict(caught.value)
    assert len(tries) == 6


@pytest.mark.integration
def test_readers_cannot_write(server_sessions: Sessions) -> None:
    with pytest.raises(DBAPIError, match="read-only"), reading(server_sessions) as session:
        session.execute(text("UPDATE sums SET n = 9"))
    with transaction(server_sessions) as session:  # the connection goes on as a writer's
        session.execute(text("UPDATE sums SET n = 1"))


@pytest.mark.integration
def test_who_finds_no_free_connection_is_told_in_time(server_sessions: Sessions) -> None:
    held = [server_sessions.engine.connect() for _ in range(3)]
    started = time.monotonic()
    with pytest.raises(TimeoutError), reading(server_sessions) as session:
        session.execute(text("SELECT 1"))
    assert time.monotonic() - started < 2
    for connection in held:
        connection.close()


@pytest.mark.integration
def test_after_a_restart_of_the_server_work_goes_on(
    server_sessions: Sessions, postgresql: PostgreSQL
) -> None:
    with transaction(server_sessions) as session:
        session.execute(text("UPDATE sums SET n = 7"))
    postgresql.execute("CHECKPOINT")
    with server_sessions.read() as open_then:
        open_then.execute(text("SELECT 1"))
        postgresql.restart()
        with pytest.raises(DBAPIError):
            open_then.execute(text("SELECT 1"))
    for _ in range(4):  # more than the pool kept
        with reading(server_sessions) as session:
            assert session.scalar(text("SELECT min(n) FROM sums")) == 7


@pytest.mark.integration
def test_the_server_keeps_moments_in_utc(server_sessions: Sessions) -> None:
    with reading(server_sessions) as session:
        assert session.scalar(text("SHOW timezone")) == "UTC"
        at = session.scalar(text("SELECT now()"))
        assert abs(at - now()) < timedelta(minutes=1)


@pytest.mark.integration
def test_a_client_that_froze_in_a_transaction_does_not_keep_its_locks(
    postgresql: PostgreSQL,
) -> None:
    with postgresql.database() as url:
        frozen = open_database(url, Pool(idle_transaction_s=0.4))
        other = open_database(url, Pool(lock_timeout_s=10))
        try:
            with transaction(other) as session:
                session.execute(text("CREATE TABLE t AS SELECT 1 AS n"))
            session = frozen.write()
            session.execute(text("UPDATE t SET n = 2"))
            with transaction(other) as second:  # waits until the first is ended
                second.execute(text("UPDATE t SET n = 3"))
            with pytest.raises(DBAPIError, match="idle-in-transaction"):
                session.execute(text("UPDATE t SET n = 4"))
            session.close()
            with reading(other) as session:
                assert session.execute(text("SELECT n FROM t")).scalar_one() == 3
        finally:
            frozen.close()
            other.close()
