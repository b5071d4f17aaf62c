"""`kill -9` of a real server while a dataset switches: it answers whole after every start."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.server_process import KEY, ServerProcess

pytestmark = pytest.mark.e2e

LINES = 48
KILLS = 2


def test_a_server_killed_while_a_dataset_switches_goes_on_where_it_was(tmp_path: Path) -> None:
    settings = {"KB_INGESTION__BATCH_SEGMENTS": "4", "KB_INGESTION__POLL_S": "0.1"}
    server = ServerProcess(tmp_path / "data", settings=settings)
    moments, found = random.Random(7), 0
    with server, httpx.Client(headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as http:
        server.start()
        url = f"{server.url}/v1/datasets"
        made = http.post(url, json={"name": "a", "indexing_technique": "economy"}).json()
        dataset = f"{url}/{made['id']}"
        text = "\n".join(f"entry number {n}" for n in range(LINES))
        rules = {"segmentation": {"separator": "\n", "max_tokens": 100}, "pre_processing_rules": []}
        rule = {"mode": "custom", "rules": rules}
        body = {"name": "entries", "text": text, "process_rule": rule}
        assert http.post(f"{dataset}/document/create-by-text", json=body).status_code == 200
        until(lambda: answers(http, dataset) == LINES)
        changed = http.patch(dataset, json={"indexing_technique": "high_quality"})
        assert changed.status_code == 200, changed.text
        for _ in range(KILLS):
            time.sleep(moments.uniform(0.1, 0.6))
            server.kill()
            server.start()
            assert answers(http, dataset) == LINES
            found += http.get(f"{dataset}/switch").json()["status"] == "running"
        until(lambda: http.get(f"{dataset}/switch").json()["status"] == "completed")
        assert found, "it was killed while it switched"
        assert answers(http, dataset, method="semantic_search") == LINES
        report = http.post(f"{server.url}/v1/doctor", params={"deep": "true"}).json()
        assert report["healthy"], report
        assert http.get(f"{dataset}").json()["embedding_model"] == "all-MiniLM-L6-v2"


def answers(http: httpx.Client, dataset: str, method: str = "full_text_search") -> int:
    model = {"search_method": method, "top_k": 100}
    found: set[str] = set()
    for query in ("entry number", "number entry"):
        answer = http.post(f"{dataset}/retrieve", json={"query": query, "retrieval_model": model})
        assert answer.status_code == 200, answer.text
        found |= {record["segment"]["id"] for record in answer.json()["records"]}
    return len(found)


def until(ready: Any, limit_s: float = 90) -> None:
    ends = time.monotonic() + limit_s
    while not ready():
        assert time.monotonic() < ends, "it takes too long"
        time.sleep(0.1)
