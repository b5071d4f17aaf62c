"""The whole process with an embedding model behind HTTP: uploads, queries, the doctor."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient

from kb.api.app import create_app
from kb.ports import Space
from kb.resources import Resources
from kb.runner import Runner
from kb.settings import Embedding, Ingestion
from kb.wiring import open_resources
from tests import embedding_provider as bad
from tests.embedding_provider import MODEL, Provider
from tests.kb.server import KEY, LINES, add_dataset, add_text, search, test_settings, wait

SECRET = "sk-the-secret-of-the-tests"

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("database")]


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider(api_key=SECRET) as opened:
        yield opened


@contextmanager
def serving(
    data_dir: Path, server: Provider, *, working: bool = True, **options: Any
) -> Iterator[tuple[TestClient, Resources]]:
    """The process on this data directory, its model at the provider."""
    values = {
        "provider": "openai",
        "url": server.url,
        "model": MODEL,
        "api_key": SecretStr(SECRET),
        "request_texts": 4,
        "retries": 1,
        "retry_base_s": 0.01,
        "retry_max_s": 0.2,
    }
    settings = test_settings(
        data_dir,
        embedding=Embedding(**{**values, **options}),
        ingestion=Ingestion(poll_s=0.02, retry_base_s=0.02, retry_max_s=0.1, max_attempts=1),
    )
    with open_resources(settings) as resources:
        runner = Runner(resources) if working else None
        app = create_app(resources, runner=runner, process_key=KEY)
        with TestClient(app, headers={"Authorization": f"Bearer {KEY}"}) as client:
            yield client, resources


def texts_of(document: int) -> list[str]:
    return [f"whale{document} of pod{line} sings song{document}x{line}" for line in range(9)]


@pytest.mark.parametrize("kind", ["openai", "tei"])
def test_with_a_third_of_the_calls_refused_all_documents_complete_and_none_is_embedded_twice(
    tmp_path: Path, provider: Provider, kind: str
) -> None:
    with serving(tmp_path, provider, provider=kind, retries=0) as (client, _):
        dataset = add_dataset(client)
        provider.forget()
        provider.always(bad.status(429, retry_after="0.02"), 0.3)
        made = [
            add_text(client, dataset, f"d{n}", "\n".join(texts_of(n)), process_rule=LINES)
            for n in range(12)
        ]
        outcomes = [wait(client, dataset, created) for created in made]
        assert outcomes == ["completed"] * 12
        assert provider.statuses[429] > 5
        expected = [text for n in range(12) for text in texts_of(n)]
        assert sorted(provider.embedded.elements()) == sorted(expected)
        provider.always(bad.well)
        found = search(client, dataset, texts_of(7)[3])
        assert found[0]["segment"]["content"] == texts_of(7)[3]
        report = client.post("/v1/doctor").json()
        assert (report["healthy"], report["points"]) == (True, 12 * 9)


def test_a_wrong_key_fails_a_document_at_once_with_the_setting_to_change(
    tmp_path: Path, provider: Provider
) -> None:
    options = {"api_key": SecretStr("sk-old-and-wrong"), "dimensions": 64}
    with serving(tmp_path, provider, **options) as (client, _):
        dataset = add_dataset(client)
        created = add_text(client, dataset, "d", "whales sing", process_rule=LINES)
        assert wait(client, dataset, created) == "error"
        document = client.get(f"/v1/datasets/{dataset}/documents/{created['document']['id']}")
        body = document.json()
        assert body["error_code"] == "provider_not_initialize"
        assert "KB_EMBEDDING__API_KEY" in body["error"]
        assert "sk-old-and-wrong" not in document.text
        answer = client.post(f"/v1/datasets/{dataset}/retrieve", json={"query": "whales"})
        assert (answer.status_code, answer.json()["code"]) == (400, "provider_not_initialize")
    with serving(tmp_path, provider, dimensions=64) as (client, _):
        path = f"/v1/datasets/{dataset}/documents/{created['document']['id']}/retry"
        assert client.post(path).status_code == 200
        assert wait(client, dataset, created) == "completed"


def test_while_the_server_is_away_words_are_found_and_meaning_is_503(
    tmp_path: Path, provider: Provider
) -> None:
    with serving(tmp_path, provider) as (client, _):
        dataset = add_dataset(client)
        created = add_text(client, dataset, "d", "whales sing", process_rule=LINES)
        assert wait(client, dataset, created) == "completed"
    provider.always(bad.status(503, retry_after="7"))
    with serving(tmp_path, provider) as (client, _):
        listed = client.get("/v1/datasets").json()["data"]
        assert [d["embedding_available"] for d in listed] == [True]
        assert client.get("/health/ready").status_code == 200
        path = f"/v1/datasets/{dataset}/retrieve"
        words = {"search_method": "full_text_search", "reranking_enable": False, "top_k": 3}
        answer = client.post(path, json={"query": "whales", "retrieval_model": words})
        assert len(answer.json()["records"]) == 1
        answer = client.post(path, json={"query": "whales"})
        assert (answer.status_code, answer.json()["code"]) == (503, "service_unavailable")
        assert answer.headers["retry-after"] == "7"
        external = {"knowledge_id": dataset, "query": "whales"}
        answer = client.post("/retrieval", json=external)
        assert (answer.status_code, answer.json()["error_code"]) == (503, 503)
        answer = client.post("/v1/datasets", json={"name": "n", "indexing_technique": "economy"})
        assert answer.status_code == 200
        answer = client.post(
            "/v1/datasets", json={"name": "m", "indexing_technique": "high_quality"}
        )
        assert answer.status_code == 503


def test_the_doctor_restores_points_without_the_server(tmp_path: Path, provider: Provider) -> None:
    with serving(tmp_path, provider) as (client, resources):
        dataset = add_dataset(client)
        created = add_text(client, dataset, "d", "\n".join(texts_of(1)), process_rule=LINES)
        assert wait(client, dataset, created) == "completed"
        space = f"openai-{MODEL}-64"
        assert resources.default_embedder.id == space
    provider.stop()
    with serving(tmp_path, provider, working=False) as (client, resources):
        resources.index.ensure_space(Space(space, 64))
        heads = list(resources.index.scan(Space(space, 64)))
        resources.index.delete(Space(space, 64), [head.id for head in heads[:4]], up_to_version=9)
        report = client.post("/v1/doctor?repair=true").json()
        assert report["findings"]["missing"]["count"] == 4
        report = client.post("/v1/doctor").json()
        assert (report["healthy"], report["points"]) == (True, 9)


def test_a_dataset_of_another_model_says_which_setting_brings_it_back(
    tmp_path: Path, provider: Provider
) -> None:
    with serving(tmp_path, provider) as (client, _):
        dataset = add_dataset(client)
        created = add_text(client, dataset, "d", "whales sing", process_rule=LINES)
        assert wait(client, dataset, created) == "completed"
        assert client.get(f"/v1/datasets/{dataset}").json()["embedding_model"] == MODEL
    with serving(tmp_path, provider, model="another") as (client, _):
        answer = client.post(f"/v1/datasets/{dataset}/retrieve", json={"query": "whales"})
        assert (answer.status_code, answer.json()["code"]) == (400, "provider_not_initialize")
        assert "KB_EMBEDDING__MODEL" in answer.json()["message"]
        assert f"openai-{MODEL}-64" in answer.json()["message"]


def test_a_pause_beyond_what_a_call_waits_delays_the_document(
    tmp_path: Path, provider: Provider
) -> None:
    with serving(tmp_path, provider) as (client, _):
        dataset = add_dataset(client)
        provider.next(bad.status(429, retry_after="1"))
        started = time.monotonic()
        created = add_text(client, dataset, "d", "whales sing", process_rule=LINES)
        path = f"/v1/datasets/{dataset}/documents/{created['document']['id']}"
        seen = set()
        while (body := client.get(path).json())["indexing_status"] != "completed":
            seen.add((body["indexing_status"], body["error_code"]))
            assert time.monotonic() - started < 30
        assert ("waiting", "rate_limited") in seen
        assert body["error"] is None
        assert time.monotonic() - started > 0.9
