"""A dataset changes its model or technique over HTTP, while others query it and upload to it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from click.testing import CliRunner
from starlette.testclient import TestClient

from kb.cli.main import kb
from kb.settings import Ingestion
from tests import embedding_provider as bad
from tests.embedding_provider import MODEL, Provider
from tests.kb.api import (
    HEADERS,
    NOWHERE,
    add_dataset,
    add_text,
    api,
    fresh_name,
    indexed_text,
    keys,
    refused,
    served,
    test_settings,
)
from tests.kb.server import KEY, LINES, search

SWITCH_KEYS = keys(
    """id dataset_id status from to done total error error_code failures retry_at created_by
    created_at progress_at finished_at"""
)
WAITS = Ingestion(
    poll_s=0.05,
    retry_base_s=0.05,
    batch_segments=8,
    switch_patience_s=0.5,
    keep_replaced_s=1.0,
)


@pytest.fixture(scope="module")
def first() -> Iterator[Provider]:
    with Provider(dim=64) as opened:
        yield opened


@pytest.fixture(scope="module")
def second() -> Iterator[Provider]:
    with Provider(dim=32) as opened:
        yield opened


@pytest.fixture(scope="module")
def client(
    database: str, tmp_path_factory: pytest.TempPathFactory, first: Provider, second: Provider
) -> Iterator[TestClient]:
    """One process with workers and two models for all tests of this module."""
    with api(tmp_path_factory.mktemp("switch"), ingestion=WAITS) as opened:
        for name, provider in (("first", first), ("second", second)):
            body = {
                "type": "text-embedding",
                "provider": name,
                "model": MODEL,
                "kind": "openai",
                "url": provider.url,
                "options": {"retries": 0, "retry_base_s": 0.01},
            }
            assert opened.post("/v1/models", json=body).status_code == 201
        yield opened


@pytest.fixture(autouse=True)
def _well(second: Provider) -> Iterator[None]:
    yield
    second.always(bad.well)


def filled(client: TestClient, count: int = 40, **body: Any) -> str:
    """A dataset of so many segments, indexed by the first model unless told."""
    model = {"embedding_model": MODEL, "embedding_model_provider": "first"}
    dataset = add_dataset(client, fresh_name(), **(body or model))
    text = "\n".join(f"entry number {n}" for n in range(count))
    indexed_text(client, dataset, "entries", text, process_rule=LINES)
    return dataset


TO_SECOND = {"embedding_model": MODEL, "embedding_model_provider": "second"}


def change(client: TestClient, dataset: str, **body: Any) -> None:
    answer = client.patch(f"/v1/datasets/{dataset}", json=body)
    assert answer.status_code == 200, answer.text


def switch(client: TestClient, dataset: str) -> dict[str, Any]:
    answer = client.get(f"/v1/datasets/{dataset}/switch")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def ended(client: TestClient, dataset: str, limit_s: float = 60) -> dict[str, Any]:
    ends = time.monotonic() + limit_s
    while time.monotonic() < ends:
        if (shown := switch(client, dataset))["status"] != "running":
            return shown
        time.sleep(0.05)
    raise AssertionError(f"still running: {shown}")


class Asking:
    """Somebody who asks all the time; `answers` are how many segments each query gave."""

    def __init__(self, client: TestClient, dataset: str) -> None:
        self.answers: list[int] = []
        self._client, self._dataset = client, dataset
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Asking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _ask(self) -> None:
        while not self._stop.is_set():
            methods = ("hybrid_search", "semantic_search")
            for method in methods:
                model = {"top_k": 100, "search_method": method}
                self.answers.append(len(search(self._client, self._dataset, "entry", **model)))


def test_queries_get_whole_answers_all_through_a_switch(
    client: TestClient, second: Provider
) -> None:
    dataset = filled(client, 24)
    before = second.embedded["entry number 7"]
    second.always(bad.slow(0.05))
    with Asking(client, dataset) as asking:
        change(client, dataset, **TO_SECOND)
        uploaded = threading.Thread(
            target=lambda: indexed_text(client, dataset, "more", "one entry more")
        )
        uploaded.start()
        shown = ended(client, dataset)
        uploaded.join()
        time.sleep(0.3)
    assert shown["status"] == "completed", shown
    assert set(shown) == SWITCH_KEYS
    assert (shown["from"]["embedding_model_provider"], shown["to"]) == (
        "first",
        {"indexing_technique": "high_quality", **TO_SECOND},
    )
    assert len(asking.answers) > 5
    assert set(asking.answers) <= {24, 25}, "never an empty or half answer"
    assert asking.answers == sorted(asking.answers), "what was uploaded stays found"
    assert asking.answers[-1] == 25
    dataset_shown = client.get(f"/v1/datasets/{dataset}").json()
    assert dataset_shown["embedding_model_provider"] == "second"
    assert dataset_shown["embedding_available"] is True
    assert second.embedded["entry number 7"] == before + 1


def test_words_become_vectors_and_words_again(client: TestClient, second: Provider) -> None:
    dataset = filled(client, 10, indexing_technique="economy")
    with Asking(client, dataset) as asking:
        change(client, dataset, indexing_technique="high_quality", **TO_SECOND)
        assert ended(client, dataset)["status"] == "completed"
        change(client, dataset, indexing_technique="economy")
        assert ended(client, dataset)["status"] == "completed"
    assert set(asking.answers) == {10}
    shown = client.get(f"/v1/datasets/{dataset}").json()
    assert (shown["indexing_technique"], shown["embedding_model"]) == ("economy", None)
    assert shown["retrieval_model_dict"]["search_method"] == "keyword_search"


def test_a_provider_that_stays_away_leaves_the_dataset_as_it_was(
    client: TestClient, second: Provider
) -> None:
    dataset = filled(client, 5)
    second.always(bad.status(503, "out of order"))
    # Not what the first test has embedded.
    indexed_text(client, dataset, "own", "a text of its own")
    change(client, dataset, **TO_SECOND)
    failed = ended(client, dataset)
    assert (failed["status"], failed["done"] < failed["total"]) == ("failed", True)
    assert "503" in failed["error"]
    assert failed["error_code"] == "temporarily_unavailable"
    assert client.get(f"/v1/datasets/{dataset}").json()["embedding_model_provider"] == "first"
    assert len(search(client, dataset, "entry", top_k=50)) == 6
    second.always(bad.well)
    change(client, dataset, **TO_SECOND)
    assert ended(client, dataset)["status"] == "completed"


def test_a_cancelled_switch_can_be_seen_and_no_other_may_start_before(
    client: TestClient, second: Provider
) -> None:
    dataset = filled(client, 5)
    indexed_text(client, dataset, "own", fresh_name("a text of its own"))
    second.always(bad.status(503))
    change(client, dataset, **TO_SECOND)
    listed = client.get("/v1/switches", params={"status": "running"}).json()
    assert [row["dataset_id"] for row in listed["data"]] == [dataset]
    assert (listed["total"], listed["has_more"]) == (1, False)
    other = client.patch(f"/v1/datasets/{dataset}", json={"indexing_technique": "economy"})
    refused(other, 409, "conflict")
    models = client.get("/v1/models", params={"type": "text-embedding"}).json()["data"]
    (model,) = [m for m in models if m["provider"] == "second"]
    refused(client.delete(f"/v1/models/{model['id']}"), 409, "model_in_use")
    answer = client.delete(f"/v1/datasets/{dataset}/switch")
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    assert set(answer.json()) == SWITCH_KEYS
    assert len(search(client, dataset, "entry", top_k=50)) == 6
    assert client.get("/v1/switches", params={"status": "running"}).json()["data"] == []


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_a_dataset_that_was_never_switched_has_no_switch(client: TestClient, method: str) -> None:
    dataset = add_dataset(client, fresh_name(), indexing_technique="economy")
    refused(client.request(method, f"/v1/datasets/{dataset}/switch"), 404, "not_found")
    refused(client.request(method, f"/v1/datasets/{NOWHERE}/switch"), 404, "not_found")


def test_an_unknown_state_is_refused(client: TestClient) -> None:
    answer = client.get("/v1/switches", params={"status": "resting"})
    assert "completed" in refused(answer, 400, "invalid_param")


def test_the_command_line_starts_shows_and_cancels_a_switch(tmp_path: Path) -> None:
    def run(*asked: str, code: int = 0) -> str:
        done = CliRunner().invoke(kb, ["datasets", *asked], env=env)
        assert done.exit_code == code, done.output
        return done.output

    settings = test_settings(tmp_path / "data", api_key=KEY)
    with served(settings) as (host, port):
        env = {"KB_URL": f"http://{host}:{port}", "KB_API_KEY": KEY}
        run("create", "words", "--technique", "economy")
        assert "nothing to change" in run("update", "words", code=1)
        assert "changed dataset 'lists'" in run("update", "words", "--name", "lists")
        with httpx.Client(base_url=env["KB_URL"], headers=HEADERS) as http:
            (found,) = http.get("/v1/datasets").json()["data"]
            add_text(http, found["id"], "a", "a text")  # type: ignore[arg-type]
        told = run("update", "lists", "--technique", "high_quality")
        assert "running: economy -> high_quality (all-MiniLM-L6-v2), 0 of 0 texts" in told
        assert "economy, 0% to high_quality (all-MiniLM-L6-v2)" in run("list")
        assert "running: economy" in run("switch", "lists")
        assert '"status": "running"' in run("switch", "lists", "--json")
        assert "cancelled: economy" in run("switch", "lists", "--cancel")
        assert "economy, " not in run("list")
