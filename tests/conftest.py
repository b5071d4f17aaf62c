"""Fixtures of every test: no hub is asked, hypothesis runs the same examples everywhere, and the
services (PostgreSQL, Redis) that a test asks for are started once for all of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests import databases
from tests.services import PostgreSQL, Redis, ServiceMissing, start_postgresql, start_redis

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
for name in list(os.environ):
    if name.startswith("KB_") and not name.startswith("KB_TEST_"):
        del os.environ[name]

settings.register_profile(
    "kb", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("kb")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Which database the tests that touch SQL run on."""
    parser.addoption(
        "--database",
        choices=("sqlite", "postgresql", "both"),
        default="both",
        help="run tests that touch SQL on this database (default: both)",
    )
    parser.addoption(
        "--seeds",
        type=int,
        default=2,
        help="how many random sequences of calls are tried (default: 2)",
    )


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A private PostgreSQL server, one for the whole run."""
    try:
        server = start_postgresql()
    except ServiceMissing as exc:
        pytest.skip(str(exc))
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Redis]:
    """A private Redis server, one for the whole run; `restart` empties it."""
    try:
        server = start_redis()
    except ServiceMissing as exc:
        pytest.skip(str(exc))
    try:
        yield server
    finally:
        server.stop()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that asks for `database` runs on each that `--database` names."""
    if "database" not in metafunc.fixturenames:
        return
    asked = metafunc.config.getoption("--database")
    kinds = ["sqlite", "postgresql"] if asked == "both" else [asked]
    if metafunc.definition.get_closest_marker("sqlite_only"):
        kinds = ["sqlite"]
    metafunc.parametrize("database", kinds, indirect=True, scope="session")


@pytest.fixture(scope="session")
def database(request: pytest.FixtureRequest) -> Iterator[str]:
    """`sqlite` or `postgresql`; settings made while it is in use point to such a database."""
    kind: str = request.param
    before = databases.used()
    databases.use(request.getfixturevalue("postgresql") if kind == "postgresql" else None)
    yield kind
    databases.drop_all()
    databases.use(before)


@pytest.fixture(scope="session", autouse=True)
def _everything_on_postgresql(request: pytest.FixtureRequest) -> None:
    """With `--database=postgresql`, also settings of tests that do not ask for `database`."""
    if request.config.getoption("--database") == "postgresql":
        databases.use(request.getfixturevalue("postgresql"))


@pytest.fixture(scope="module", autouse=True)
def _databases_end_with_their_module() -> Iterator[None]:
    yield
    databases.drop_all()
