"""Fixtures of every test: no hub is asked, hypothesis runs the same examples everywhere, and the
services (PostgreSQL, Redis) that a test asks for are started once for all of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

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
