"""A whole process for tests: real database (of either kind), index, model and runner."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from kb.api.app import create_app
from kb.resources import Resources
from kb.runner import Runner
from kb.settings import Settings
from kb.wiring import open_resources
from tests.kb.server import KEY, test_settings


@pytest.fixture
def settings(database: str, tmp_path: Path) -> Settings:
    """Settings of a fresh data directory and database."""
    return test_settings(tmp_path / "data")


@pytest.fixture
def resources(settings: Settings) -> Iterator[Resources]:
    """The adapters of a fresh data directory; nothing works on documents."""
    with open_resources(settings) as opened:
        yield opened


@pytest.fixture
def client(resources: Resources) -> Iterator[TestClient]:
    """The REST API with workers running; every call carries a valid key."""
    app = create_app(resources, runner=Runner(resources), process_key=KEY)
    with TestClient(app, headers={"Authorization": f"Bearer {KEY}"}) as opened:
        yield opened


@pytest.fixture
def idle_client(resources: Resources) -> Iterator[TestClient]:
    """The REST API without workers: what is uploaded stays waiting."""
    app = create_app(resources, process_key=KEY)
    with TestClient(app, headers={"Authorization": f"Bearer {KEY}"}) as opened:
        yield opened
