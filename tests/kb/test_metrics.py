"""Metrics: what is counted is what happened, whoever may see it, and no label holds an id."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr
from starlette.testclient import TestClient

from kb.api.app import create_app
from kb.db import now, transaction
from kb.jobs import enqueue
from kb.models import IndexingStatus, JobKind
from kb.settings import Metrics
from kb.wiring import open_resources
from pipelines.errors import TransientError
from tests.kb.api import indexed_text, refused
from tests.kb.ingesting import Lab, fails, lines, open_lab
from tests.kb.server import KEY, add_dataset, add_file, search, test_settings
from tests.kb.shelf import Shelf

TOKEN = "token-of-the-scraper"
Samples = dict[tuple[str, ...], float]


@pytest.fixture
def lab(database: str, tmp_path: Path) -> Iterator[Lab]:
    with open_lab(tmp_path / "data") as opened:
        yield opened


def parsed(text: str) -> Samples:
    """Samples by name and the values of their labels."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scrape(app: Any) -> Samples:
    """What a program of this machine reads."""
    with_address = TestClient(app, client=("127.0.0.1", 50000))
    answer = with_address.get("/metrics")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return parsed(answer.text)


@contextmanager
def counted(app: Any) -> Iterator[Samples]:
    """By how much every counter grows meanwhile; filled at the end."""
    before = scrape(app)
    grown: Samples = {}
    yield grown
    after = scrape(app)
    grown.update({k: v - before.get(k, 0) for k, v in after.items() if v != before.get(k, 0)})


def test_ingestion_is_counted(lab: Lab) -> None:
    dataset = lab.dataset()
    with counted(lab.client.app) as grown:
        lab.add(dataset, "one", lines(6))
        lab.settle()
        lab.add(dataset, "same text again", lines(6))
        lab.settle()
        add_file(lab.client, dataset, "blank.txt", b"  ")
        lab.embedder.before = fails(1, lambda: TransientError("later"))
        lab.add(dataset, "tried twice", lines(1, "other"))
        lab.settle()
        lab.add(dataset, "taken over", lines(1, "third"))
        lab.claim("dies", lease_s=-1)
        lab.settle()
    outcomes = {k[1]: v for k, v in grown.items() if k[0] == "kb_document_outcomes_total"}
    assert outcomes == {"completed": 4, "failed": 1, "retried": 1}
    assert grown["kb_document_errors_total", "no_text", "parsing"] == 1
    assert grown["kb_document_errors_total", "temporarily_unavailable", "indexing"] == 1
    assert grown["kb_leases_expired_total",] == 1
    stages = {k[1]: v for k, v in grown.items() if k[0] == "kb_stage_seconds_count"}
    assert stages == dict.fromkeys(["extract", "clean", "chunk", "embed", "index"], 4)
    assert grown["kb_embedded_texts_total", "model"] == 8
    assert grown["kb_embedded_texts_total", "cache"] == 6
    assert grown["kb_embedding_seconds_count",] == 5
    assert grown["kb_index_points_total",] == 14
    assert grown["kb_index_write_seconds_count",] == 6


def test_jobs_are_counted_by_outcome(lab: Lab) -> None:
    with counted(lab.client.app) as grown:
        with transaction(lab.resources.sessions) as session:
            enqueue(session, JobKind.DELETE_BLOBS, keys=["../outside"])
            enqueue(session, JobKind.DELETE_BLOBS, keys=[])
        lab.jobs()
    assert grown["kb_jobs_done_total", "delete_blobs", "done"] == 1
    assert grown["kb_jobs_done_total", "delete_blobs", "failed"] == 1
    assert grown["kb_jobs", "delete_blobs", "retrying"] == 1


def test_queries_and_requests_are_counted_by_route(lab: Lab) -> None:
    dataset = lab.dataset()
    lab.add(dataset, "one", lines(3))
    lab.settle()
    with counted(lab.client.app) as grown:
        for _ in range(3):
            search(lab.client, dataset, "line")
        search(lab.client, dataset, "line", search_method="hybrid_search")
        lab.client.get(f"/v1/datasets/{dataset}/documents")
        lab.client.get(f"/v1/datasets/{uuid.uuid4()}/documents")
        lab.client.get("/v1/nowhere/at/all")
        lab.client.request("PURGE7", "/v1/datasets")
    assert grown["kb_retrieval_seconds_count", "semantic_search"] == 3
    assert grown["kb_retrieval_seconds_count", "hybrid_search"] == 1
    assert grown["kb_retrieval_leg_seconds_count", "dense"] == 4
    assert grown["kb_retrieval_leg_seconds_count", "text"] == 1
    assert grown["kb_retrieval_stage_seconds_count", "hydrate"] == 4
    route = "/v1/datasets/{dataset_id}/retrieve"
    assert grown["kb_http_requests_total", "POST", route, "200"] == 4
    assert grown["kb_http_request_seconds_count", "POST", route] == 4
    listing = "/v1/datasets/{dataset_id}/documents"
    assert grown["kb_http_requests_total", "GET", listing, "200"] == 1
    assert grown["kb_http_requests_total", "GET", listing, "404"] == 1
    assert grown["kb_http_requests_total", "GET", "(none)", "404"] == 1
    assert grown["kb_errors_total", "not_found"] == 2
    unknown = [k for k in grown if k[0] == "kb_http_requests_total" and k[1] == "(other)"]
    assert len(unknown) == 1


def test_no_label_holds_an_id_or_a_name(lab: Lab) -> None:
    dataset = lab.dataset("a dataset of this test")
    document = lab.add(dataset, "a document of this test", lines(1))
    lab.settle()
    for path in (f"/v1/datasets/{dataset}", f"/v1/datasets/{dataset}/documents/{document}"):
        lab.client.get(path)
        lab.client.get(path + "/nothing")
    text = TestClient(lab.client.app, client=("127.0.0.1", 1)).get("/metrics").text
    assert re.search("[0-9a-f]{8}-[0-9a-f]{4}", text) is None
    assert "of this test" not in text


def test_the_queue_is_read_from_the_database(lab: Lab) -> None:
    shelf = Shelf(lab.resources)
    shelf.add("a", 3)
    shelf.add("b", 2, next_attempt_at=now() + timedelta(hours=1))
    shelf.add("c", 4, indexing_status=IndexingStatus.ERROR, error_code="no_text")
    found = scrape(lab.client.app)
    queue = {k[2]: v for k, v in found.items() if k[:2] == ("kb_queue_documents", "bulk")}
    assert queue == {"waiting": 3, "retrying": 2, "in_work": 0, "stalled": 0, "paused": 0}
    assert found["kb_queue_oldest_seconds", "bulk"] == pytest.approx(3600, abs=10)
    assert found["kb_queue_oldest_seconds", "interactive"] == 0
    assert found["kb_documents_in_error", "no_text"] == 4


def test_tokens_of_the_real_model_are_counted(client: TestClient) -> None:
    dataset = add_dataset(client)
    with counted(client.app) as grown:
        indexed_text(client, dataset, "a", "The whale is a mammal.")
    assert grown["kb_embedded_tokens_total",] == 8


# --- who may see them ----------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.8.8", "::1"])
def test_programs_of_this_machine_need_no_token(lab: Lab, address: str) -> None:
    local = TestClient(lab.client.app, client=(address, 1))
    assert local.get("/metrics").status_code == 200
    for header in ("X-Forwarded-For", "Forwarded", "X-Real-IP"):
        answer = local.get("/metrics", headers={header: "127.0.0.1"})
        assert answer.status_code == 401, "a proxy speaks for somebody else"


@pytest.mark.parametrize("address", ["10.1.2.3", "192.168.0.1", "2001:db8::1", "testclient"])
def test_others_are_told_to_use_a_token(lab: Lab, address: str) -> None:
    remote = TestClient(lab.client.app, client=(address, 1))
    said = refused(remote.get("/metrics"), 401, "unauthorized")
    assert "set KB_METRICS__TOKEN" in said


@pytest.mark.sqlite_only
def test_with_a_token_everybody_needs_it(database: str, tmp_path: Path) -> None:
    settings = test_settings(tmp_path, metrics=Metrics(token=SecretStr(TOKEN)))
    with open_resources(settings) as resources:
        app = create_app(resources, process_key=KEY)
        for address in ("127.0.0.1", "10.1.2.3"):
            caller = TestClient(app, client=(address, 1))
            refused(caller.get("/metrics"), 401, "unauthorized")
            for wrong in ("", KEY, TOKEN[:-1]):
                answer = caller.get("/metrics", headers={"Authorization": f"Bearer {wrong}"})
                assert answer.status_code == 401
            right = caller.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
            assert right.status_code == 200
        assert app.state.resources.settings.metrics.token.get_secret_value() == TOKEN
        answer = TestClient(app).get("/v1/datasets", headers={"Authorization": f"Bearer {TOKEN}"})
        assert answer.status_code == 401, "the token opens nothing else"
