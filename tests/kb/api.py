"""What tests of the REST routes share: a client per module, a real server, the shape of errors."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from starlette.testclient import TestClient

from kb.api.app import create_app
from kb.resources import Resources
from kb.runner import Runner
from kb.settings import Settings
from kb.wiring import open_resources
from tests.kb.server import KEY, add_dataset, add_file, add_text, test_settings, wait

HEADERS = {"Authorization": f"Bearer {KEY}"}
NOWHERE = "00000000-0000-4000-8000-000000000000"
"""A well-formed id that nothing has."""

_numbers = itertools.count(1)


def fresh_name(what: str = "dataset") -> str:
    """A name that no other test uses."""
    return f"{what} {next(_numbers)}"


def keys(listed: str) -> frozenset[str]:
    """The keys of a wire shape, written as words."""
    return frozenset(listed.split())


@contextmanager
def api(directory: Path, *, working: bool = True, **changes: Any) -> Iterator[TestClient]:
    """The REST API over a fresh data directory; every call carries a valid key.

    Args:
        working: with a runner; otherwise what is uploaded stays waiting.
    """
    with open_resources(test_settings(directory, **changes)) as resources:
        runner = Runner(resources) if working else None
        app = create_app(resources, runner=runner, process_key=KEY)
        with TestClient(app, headers=HEADERS) as client:
            yield client


def resources_of(client: TestClient) -> Resources:
    """The adapters behind a client."""
    resources: Resources = client.app.state.resources  # type: ignore[attr-defined]
    return resources


@contextmanager
def served(settings: Settings, *, working: bool = False) -> Iterator[tuple[str, int]]:
    """A real HTTP server over these settings, with or without workers: host and port."""
    with open_resources(settings) as resources:
        runner = Runner(resources) if working else None
        app = create_app(resources, runner=runner, process_key=KEY)
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        ends = time.monotonic() + 30
        while not server.started and time.monotonic() < ends:
            time.sleep(0.01)
        try:
            yield "127.0.0.1", server.servers[0].sockets[0].getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(30)


def refused(answer: Any, status: int, code: str) -> str:
    """Check the error body of the public API; its message."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"code", "message", "status"}
    assert (body["code"], body["status"]) == (code, status), body
    assert len(body["message"]) < 2000
    return str(body["message"])


def document(client: TestClient, dataset: str, document_id: str) -> dict[str, Any]:
    """A document as GET shows it."""
    answer = client.get(f"/v1/datasets/{dataset}/documents/{document_id}")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def indexed_text(client: TestClient, dataset: str, name: str, text: str, **body: Any) -> str:
    """Upload a text and wait until it is completed; its id."""
    return _completed(client, dataset, add_text(client, dataset, name, text, **body))


def indexed_file(client: TestClient, dataset: str, path: Path, **settings: Any) -> str:
    """Upload a file and wait until it is completed; its id."""
    return _completed(
        client, dataset, add_file(client, dataset, path.name, path.read_bytes(), **settings)
    )


def failed_text(client: TestClient, dataset: str, text: str, **body: Any) -> dict[str, Any]:
    """Upload a text whose indexing must fail; the document."""
    created = add_text(client, dataset, fresh_name("document"), text, **body)
    assert wait(client, dataset, created) == "error"
    return document(client, dataset, created["document"]["id"])


def _completed(client: TestClient, dataset: str, created: dict[str, Any]) -> str:
    document_id = str(created["document"]["id"])
    status = wait(client, dataset, created)
    assert status == "completed", document(client, dataset, document_id)["error"]
    return document_id


def segments(client: TestClient, dataset: str, document_id: str, **params: Any) -> list[Any]:
    """The segments of a document, in order."""
    answer = client.get(
        f"/v1/datasets/{dataset}/documents/{document_id}/segments",
        params={"limit": 100, **params},
    )
    assert answer.status_code == 200, answer.text
    return list(answer.json()["data"])


def contents(client: TestClient, dataset: str, document_id: str) -> list[str]:
    """The texts of a document's segments, in order."""
    return [segment["content"] for segment in segments(client, dataset, document_id)]


__all__ = [
    "HEADERS",
    "KEY",
    "NOWHERE",
    "add_dataset",
    "add_file",
    "add_text",
    "api",
    "contents",
    "document",
    "failed_text",
    "fresh_name",
    "indexed_file",
    "indexed_text",
    "keys",
    "refused",
    "resources_of",
    "segments",
    "served",
    "test_settings",
    "wait",
]
