"""What tests of the whole process share: settings, uploads, waiting for an outcome."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from kb.settings import Embedding, Ingestion, Settings
from tests.databases import url_for
from tests.models import model_cache

KEY = "dataset-key-of-the-tests"


def test_settings(data_dir: Path, **changes: Any) -> Settings:
    """Settings of a data directory whose model is exported once for all tests.

    The database is of the kind that the fixture `database` says, SQLite without it.
    """
    embedding = Embedding(cache_dir=model_cache())
    defaults: dict[str, Any] = {
        "data_dir": data_dir,
        "database_url": url_for(data_dir),
        "embedding": embedding,
        "ingestion": Ingestion(poll_s=0.05, retry_base_s=0.05),
    }
    return Settings(**{**defaults, **changes})


test_settings.__test__ = False  # type: ignore[attr-defined]


def add_dataset(client: TestClient, name: str = "books", **body: Any) -> str:
    """Create a dataset (high quality unless told) and give its id."""
    answer = client.post(
        "/v1/datasets", json={"name": name, "indexing_technique": "high_quality", **body}
    )
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def add_text(client: TestClient, dataset: str, name: str, text: str, **body: Any) -> dict[str, Any]:
    """Upload a text; the create answer."""
    answer = client.post(
        f"/v1/datasets/{dataset}/document/create-by-text", json={"name": name, "text": text, **body}
    )
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def add_file(
    client: TestClient, dataset: str, name: str, data: bytes, **settings: Any
) -> dict[str, Any]:
    """Upload a file; the create answer."""
    answer = client.post(
        f"/v1/datasets/{dataset}/document/create-by-file",
        data={"data": json.dumps(settings)},
        files={"file": (name, data)},
    )
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def wait(client: TestClient, dataset: str, created: dict[str, Any], limit_s: float = 120) -> str:
    """Poll until the upload is completed or failed; the final status."""
    ends = time.monotonic() + limit_s
    while time.monotonic() < ends:
        answer = client.get(f"/v1/datasets/{dataset}/documents/{created['batch']}/indexing-status")
        status = str(answer.json()["data"][0]["indexing_status"])
        if status in ("completed", "error"):
            return status
        time.sleep(0.05)
    raise AssertionError(f"still {status} after {limit_s} s")


def search(client: TestClient, dataset: str, query: str, **model: Any) -> list[dict[str, Any]]:
    """The records of a retrieve call, with explanations."""
    body = {"query": query, "retrieval_model": {"top_k": 10, **model}}
    answer = client.post(f"/v1/datasets/{dataset}/retrieve?explain=true", json=body)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["records"])


LINES = {
    "mode": "custom",
    "rules": {
        "pre_processing_rules": [],
        "segmentation": {"separator": "\n", "max_tokens": 500, "chunk_overlap": 0},
    },
}
"""A process rule that makes one segment of each line."""
