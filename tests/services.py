"""A private PostgreSQL and a private Redis for the tests: on free ports, gone with the tests.

Both keep their data in a directory of their own and flush nothing to disk. They run as children of
the test process and are stopped by their process ids; should the test process be killed, the
kernel ends them (`setpriv --pdeathsig`). PostgreSQL refuses to run as root: then it runs as
`postgres`, or else as `nobody`.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

_STARTS_WITHIN_S = 30.0
_STOPS_WITHIN_S = 10.0
_DEBIAN_POSTGRESQL = Path("/usr/lib/postgresql")
_QUICK = {  # nothing of a test has to survive a loss of power
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "autovacuum_naptime": "5s",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "jit": "off",
}


class ServiceMissing(Exception):
    """The program is not installed; the message says which package holds it."""


class ServiceFailed(Exception):
    """The program did not come up; the message ends with its log."""


# --- PostgreSQL --------------------------------------------------------------------------------


@dataclass
class PostgreSQL:
    """A running server with a superuser `kb`; every test takes databases of its own from it."""

    port: int
    directory: Path
    _process: subprocess.Popen[bytes]
    _program: Path
    _user: str | None
    _options: dict[str, str]
    _templates: dict[str, Callable[[str], None]] = field(default_factory=dict)

    def url(self, database: str) -> str:
        """Where the product finds a database of this server."""
        return f"postgresql://kb@127.0.0.1:{self.port}/{database}"

    @property
    def pid(self) -> int:
        """The server's own process id."""
        return self._process.pid

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Run one statement outside any transaction."""
        import psycopg

        with psycopg.connect(self.url(database), autocommit=True) as connection:
            answer = connection.execute(statement.encode())
            return list(answer.fetchall()) if answer.description else []

    def add_database(self, template: str = "template0") -> str:
        """Make a database and give its name."""
        name = f"t{uuid.uuid4().hex[:16]}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        return name

    def drop_database(self, name: str) -> None:
        """Remove a database, whoever is still connected to it."""
        self.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    @contextmanager
    def database(self, template: str = "template0") -> Iterator[str]:
        """The URL of a fresh database that is removed at the end."""
        name = self.add_database(template)
        try:
            yield self.url(name)
        finally:
            self.drop_database(name)

    def template(self, name: str, fill: Callable[[str], None]) -> str:
        """The name of a database to copy from; `fill` gets its URL the first time."""
        if name not in self._templates:
            self.execute(f"CREATE DATABASE {name} TEMPLATE template0")
            fill(self.url(name))
            self._templates[name] = fill
        return name

    def restart(self) -> None:
        """End the server as a crash would, and start it again on the same port and data."""
        _stop(self._process, signal.SIGQUIT)
        self._process = _start_postgres(
            self._program, self.directory, self.port, self._user, self._options
        )
        _wait_for_postgres(self)

    def stop(self) -> None:
        """End the server and remove its data; repeats safely."""
        _stop(self._process, signal.SIGQUIT)
        shutil.rmtree(self.directory, ignore_errors=True)


def start_postgresql(**changes: str) -> PostgreSQL:
    """Start a server; `changes` are of its options, such as `synchronous_commit="on"`.

    Raises:
        ServiceMissing, ServiceFailed.
    """
    options = _QUICK | changes
    initdb, postgres = _postgres_programs()
    user = _unprivileged()
    directory = Path(tempfile.mkdtemp(prefix="kb-pg-"))
    try:
        if user is not None:
            owner = pwd.getpwnam(user)
            os.chown(directory, owner.pw_uid, owner.pw_gid)
        made = subprocess.run(
            [
                *_as_user(user),
                str(initdb),
                f"--pgdata={directory / 'data'}",
                "--username=kb",
                "--auth=trust",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
                "--no-sync",
            ],
            capture_output=True,
            cwd=directory,
            check=False,
        )
        if made.returncode:
            raise ServiceFailed(f"initdb: {(made.stdout + made.stderr).decode()}")
        port = free_port()
        process = _start_postgres(postgres, directory, port, user, options)
        server = PostgreSQL(port, directory, process, postgres, user, options)
        try:
            _wait_for_postgres(server)
        except BaseException:
            server.stop()
            raise
        return server
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise


def _start_postgres(
    program: Path, directory: Path, port: int, user: str | None, options: dict[str, str]
) -> subprocess.Popen[bytes]:
    given = {
        **options,
        "port": str(port),
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": str(directory),
    }
    command = [*_as_user(user), *_dies_with_us(), str(program), "-D", str(directory / "data")]
    for name, value in given.items():
        command += ["-c", f"{name}={value}"]
    return _spawn(command, directory)


def _wait_for_postgres(server: PostgreSQL) -> None:
    import psycopg

    def answers() -> bool:
        try:
            server.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    _wait(answers, server._process, server.directory)


def _postgres_programs() -> tuple[Path, Path]:
    """initdb and postgres: on the path, or the newest that Debian installed off it."""
    places = [Path(p) for p in os.environ.get("PATH", "").split(os.pathsep) if p]
    if _DEBIAN_POSTGRESQL.is_dir():
        versions = sorted(_DEBIAN_POSTGRESQL.iterdir(), key=lambda p: p.name.zfill(4))
        places = [v / "bin" for v in reversed(versions)] + places
    for place in places:
        initdb, postgres = place / "initdb", place / "postgres"
        if initdb.is_file() and postgres.is_file():
            return initdb.resolve(), postgres.resolve()
    raise ServiceMissing(
        "needs PostgreSQL (initdb, postgres): apt-get install postgresql, or make services as root"
    )


# --- Redis -------------------------------------------------------------------------------------


@dataclass
class Redis:
    """A running server without persistence."""

    port: int
    directory: Path
    _process: subprocess.Popen[bytes]
    _arguments: Sequence[str]

    @property
    def url(self) -> str:
        """Where the product finds it."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """The server's own process id."""
        return self._process.pid

    def restart(self) -> None:
        """Kill the server and start it again on the same port: everything in it is gone."""
        _stop(self._process, signal.SIGKILL)
        self._process = _spawn_redis(self.directory, self._arguments)
        _wait(lambda: _pings(self.port), self._process, self.directory)

    def stop(self) -> None:
        """End the server; repeats safely."""
        _stop(self._process, signal.SIGTERM)
        shutil.rmtree(self.directory, ignore_errors=True)


def start_redis(*extra: str) -> Redis:
    """Start a server; `extra` are further arguments, such as `--requirepass`.

    Raises:
        ServiceMissing, ServiceFailed.
    """
    port = free_port()
    arguments = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    arguments += ["--daemonize", "no", *extra]
    directory = Path(tempfile.mkdtemp(prefix="kb-redis-"))
    server: Redis | None = None
    try:
        process = _spawn_redis(directory, arguments)
        server = Redis(port, directory, process, arguments)
        _wait(lambda: _pings(port), process, directory)
    except BaseException:
        if server is not None:
            server.stop()
        shutil.rmtree(directory, ignore_errors=True)
        raise
    return server


def redis_program() -> str:
    """Raises: ServiceMissing."""
    program = shutil.which("redis-server")
    if program is None:
        raise ServiceMissing(
            "needs Redis (redis-server): apt-get install redis-server, or make services as root"
        )
    return program


def _spawn_redis(directory: Path, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    return _spawn([*_dies_with_us(), redis_program(), *arguments], directory)


def _pings(port: int) -> bool:
    """Whether anything of Redis's kind answers there; a demand for a password is an answer."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16)[:5] in (b"+PONG", b"-NOAU")
    except OSError:
        return False


# --- processes ---------------------------------------------------------------------------------


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _unprivileged() -> str | None:
    """Whom to be instead of root; None: we are not root."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in known else "nobody"


def _as_user(user: str | None) -> list[str]:
    if user is None:
        return []
    owner = pwd.getpwnam(user)
    if shutil.which("setpriv") is None:
        raise ServiceMissing("needs setpriv, to run as another user: apt-get install util-linux")
    return ["setpriv", f"--reuid={owner.pw_uid}", f"--regid={owner.pw_gid}", "--clear-groups"]


def _dies_with_us() -> list[str]:
    # A change of user clears the wish, so this is a setpriv of its own, after that of _as_user.
    return ["setpriv", "--pdeathsig", "INT"] if shutil.which("setpriv") else []


def _spawn(command: Sequence[str], directory: Path) -> subprocess.Popen[bytes]:
    with open(directory / "log", "ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, cwd=directory)


def _wait(ready: Callable[[], bool], process: subprocess.Popen[bytes], directory: Path) -> None:
    ends = time.monotonic() + _STARTS_WITHIN_S
    while not ready():
        ended = process.poll()
        if ended is not None or time.monotonic() > ends:
            log = (directory / "log").read_text(errors="replace")[-2000:]
            raise ServiceFailed(f"{process.args!r} did not answer (exit {ended}):\n{log}")
        time.sleep(0.03)


def _stop(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    if process.poll() is None:
        process.send_signal(number)
    try:
        process.wait(_STOPS_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
