"""The services that the tests start are private, fresh, and gone afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

from tests.services import PostgreSQL, Redis, ServiceMissing, redis_program, start_redis


@pytest.mark.integration
def test_every_test_gets_a_database_of_its_own(postgresql: PostgreSQL) -> None:
    with postgresql.database() as first, postgresql.database() as second:
        with psycopg.connect(first) as connection:
            connection.execute("CREATE TABLE mine (id int)")
        with psycopg.connect(second) as connection:
            found = connection.execute("SELECT to_regclass('mine')").fetchone()
        assert found == (None,)
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(first.replace("127.0.0.1", "127.0.0.2"))


@pytest.mark.integration
def test_a_template_is_filled_once_and_copied_often(postgresql: PostgreSQL) -> None:
    filled: list[str] = []

    def fill(url: str) -> None:
        filled.append(url)
        with psycopg.connect(url) as connection:
            connection.execute("CREATE TABLE kept (id int)")

    for _ in range(2):
        template = postgresql.template("of_this_test", fill)
        with postgresql.database(template) as url, psycopg.connect(url) as connection:
            found = connection.execute("SELECT to_regclass('kept')").fetchone()
            assert found == ("kept",)
    assert len(filled) == 1


@pytest.mark.integration
def test_a_restarted_database_server_keeps_its_data_and_port(postgresql: PostgreSQL) -> None:
    with postgresql.database() as url:
        with psycopg.connect(url) as connection:
            connection.execute("CREATE TABLE kept (id int)")
        postgresql.execute("CHECKPOINT")
        postgresql.restart()
        with psycopg.connect(url) as connection:
            assert connection.execute("SELECT to_regclass('kept')").fetchone() == ("kept",)


@pytest.mark.integration
def test_a_restarted_broker_has_forgotten_everything(redis_server: Redis) -> None:
    import redis

    with redis.Redis.from_url(redis_server.url) as connection:
        connection.set("kept", "no")
    redis_server.restart()
    with redis.Redis.from_url(redis_server.url) as connection:
        assert connection.get("kept") is None


@pytest.mark.integration
def test_services_end_with_a_test_process_that_is_killed(redis_server: Redis) -> None:
    program = (
        "import os, signal; from tests.services import start_redis; r = start_redis();"
        "print(r.pid, r.directory, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    pid, directory = ran.stdout.split()
    ends = time.monotonic() + 10
    while Path(f"/proc/{pid}/exe").exists() and time.monotonic() < ends:
        time.sleep(0.05)
    assert not _runs(int(pid))
    for left in Path(directory).iterdir():
        left.unlink()
    Path(directory).rmdir()
    assert _runs(redis_server.pid)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state != "Z"


def test_a_missing_program_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ServiceMissing, match="apt-get install redis-server"):
        redis_program()
    with pytest.raises(ServiceMissing, match="redis-server"):
        start_redis()
