"""An installation of the service size in processes of its own, and what they cost.

PostgreSQL and Redis are started as the tests start theirs: on free ports, in a directory of their
own, without flushing to disk. Without a URL of a Qdrant server the tests' double stands in for one.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.report import cpu_s, family, resident_mb
from bench.serving import Api, await_ready, free_port
from tests.services import PostgreSQL, start_postgresql, start_redis

_STOPS_WITHIN_S = 60.0


@dataclass
class Program:
    """One of the installation's programs; `ours`: it is kb's, not a store's."""

    pid: int
    ours: bool

    def resident_mb(self) -> float:
        """Memory that it and its children hold now, in MiB; what they share counts for each."""
        return round(self._sum(resident_mb), 1)

    def cpu_s(self) -> float:
        """Processor time that it and its living children have used."""
        return self._sum(cpu_s)

    def _sum(self, measure: Callable[[int], float]) -> float:
        total = 0.0
        for pid in family(self.pid):
            with suppress(OSError, IndexError):  # it has ended meanwhile
                total += measure(pid)
        return total

    def pause(self) -> None:
        """Stop it in its tracks, children included."""
        os.killpg(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it run again."""
        os.killpg(self.pid, signal.SIGCONT)


@dataclass
class Installation:
    """Running programs by name: `api`, `worker-1` ..., `beat`, `postgresql`, `redis`, `qdrant`."""

    directory: Path
    port: int
    key: str
    postgresql: PostgreSQL
    database: str
    environment: Mapping[str, str]
    programs: dict[str, Program] = field(default_factory=dict)

    def api(self) -> Api:
        """A connection of its own to the API."""
        return Api(self.port, self.key)

    def query(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Ask the database directly, past kb; `%s` in the statement stands for a parameter."""
        import psycopg

        with psycopg.connect(self.postgresql.url(self.database), autocommit=True) as connection:
            return list(connection.execute(statement.encode(), parameters).fetchall())

    def workers(self) -> list[Program]:
        """The workers, in order."""
        return [program for name, program in self.programs.items() if name.startswith("worker")]

    def complaints(self) -> list[str]:
        """Lines that kb's programs logged as warnings or worse."""
        return [
            f"{log.stem}: {line}"
            for log in sorted(self.directory.glob("*.log"))
            for line in log.read_text(errors="replace").splitlines()
            if "level=WARNING" in line or "level=ERROR" in line or "Traceback" in line
        ]


@contextmanager
def installation(
    directory: Path,
    *,
    models: Path,
    workers: int,
    concurrency: int = 1,
    qdrant_url: str | None = None,
    settings: Mapping[str, str] | None = None,
) -> Iterator[Installation]:
    """A fresh installation: PostgreSQL, Redis, Qdrant, one API, workers, beat; gone at the end.

    Args:
        directory: for data and one log per program; must be empty or missing.
        models: keeps the exported model.
        concurrency: documents in work at once in each worker; each embeds with one thread.
        qdrant_url: a real server, which keeps the collections; None: the tests' double.
        settings: further environment variables for all of kb's programs.
    Raises:
        ServiceMissing: PostgreSQL or Redis is not installed.
        RuntimeError: a program did not start; the message ends with its log.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        postgresql = start_postgresql()
        stack.callback(postgresql.stop)
        redis = start_redis()
        stack.callback(redis.stop)
        database = postgresql.add_database()
        key = secrets.token_hex()
        made = Installation(directory, free_port(), key, postgresql, database, {})
        made.programs["postgresql"] = Program(postgresql.pid, ours=False)
        made.programs["redis"] = Program(redis.pid, ours=False)
        own: dict[str, str] = {}
        if qdrant_url is None:
            own = {"KB_QDRANT__PREFER_GRPC": "false"}
            arguments = ["-m", "tests.contracts.qdrant_double", str(directory / "qdrant")]
            qdrant_url = _start_double(stack, made, arguments)
        made.environment = {
            "KB_API_KEY": key,
            "KB_LOG_LEVEL": "warning",
            "KB_DATA_DIR": str(directory / "data"),
            "KB_DATABASE_URL": postgresql.url(database),
            "KB_REDIS_URL": redis.url,
            "KB_QDRANT__URL": qdrant_url,
            "KB_EMBEDDING__CACHE_DIR": str(models.resolve()),
            "KB_EMBEDDING__THREADS": "1",
            **own,
            **(settings or {}),
        }
        process = _start(stack, made, "api", "serve", "--port", str(made.port))
        with made.api() as api:
            await_ready(process, api, directory / "api.log")
        for number in range(1, workers + 1):
            options = [f"--concurrency={concurrency}", f"--name=w{number}"]
            _start(stack, made, f"worker-{number}", "worker", *options)
        _start(stack, made, "beat", "beat")
        try:
            yield made
        finally:
            _ask_to_end(made.programs.values())


def _start(
    stack: ExitStack, made: Installation, name: str, *arguments: str
) -> subprocess.Popen[bytes]:
    """`kb ...` in a process group of its own; asked to end with the stack, then made to."""
    return _spawn(stack, made, name, ["-m", "kb.cli", *arguments], ours=True)


def _start_double(stack: ExitStack, made: Installation, arguments: list[str]) -> str:
    process = _spawn(stack, made, "qdrant", [*arguments, "--port", "0"], ours=False)
    log, ends = made.directory / "qdrant.log", time.monotonic() + 60
    while not (said := log.read_text()).endswith("\n"):
        if process.poll() is not None or time.monotonic() > ends:
            raise RuntimeError(f"the double of Qdrant did not start: {said[-2000:]}")
        time.sleep(0.05)
    return said.splitlines()[0]


def _spawn(
    stack: ExitStack, made: Installation, name: str, arguments: list[str], *, ours: bool
) -> subprocess.Popen[bytes]:
    others = {k: v for k, v in os.environ.items() if not k.startswith("KB_")}
    with open(made.directory / f"{name}.log", "ab") as log:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            env=others | dict(made.environment),
            stdout=log,
            stderr=log,
            process_group=0,
        )
    made.programs[name] = Program(process.pid, ours)
    stack.callback(_wait_for_end, process)
    return process


def _ask_to_end(programs: Iterable[Program]) -> None:
    """All of kb's at once; each is waited for later."""
    for program in programs:
        if program.ours:
            with suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGCONT)
                os.kill(program.pid, signal.SIGTERM)


def _wait_for_end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOPS_WITHIN_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
