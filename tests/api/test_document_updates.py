"""Updates of documents by text and by file: what changes, what stays, what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from kb.settings import Limits
from tests.kb.api import (
    NOWHERE,
    add_dataset,
    add_text,
    api,
    contents,
    document,
    fresh_name,
    indexed_text,
    refused,
    wait,
)
from tests.kb.server import LINES, search

ECONOMY = {"indexing_technique": "economy"}


@pytest.fixture(scope="module")
def client(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """One process with workers for all tests of this module."""
    with api(tmp_path_factory.mktemp("updates")) as opened:
        yield opened


@pytest.fixture(scope="module")
def idle(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """One process without workers: what is uploaded stays waiting."""
    limits = Limits(file_bytes=100_000, text_chars=5_000)
    with api(tmp_path_factory.mktemp("idle"), working=False, limits=limits) as opened:
        yield opened


def update(client: TestClient, dataset: str, document_id: str, route: str, **sent: Any) -> Any:
    """POST to a legacy route of updates, or PATCH the document."""
    path = f"/v1/datasets/{dataset}/documents/{document_id}"
    if route == "PATCH":
        return client.patch(path, **sent)
    return client.post(f"{path}/{route}", **sent)


def found(client: TestClient, dataset: str, query: str) -> list[str]:
    return [r["segment"]["content"] for r in search(client, dataset, query)]


@pytest.mark.parametrize("route", ["update-by-text", "update_by_text"])
def test_a_text_is_replaced_in_place_and_its_batch_stays(client: TestClient, route: str) -> None:
    dataset = add_dataset(client, fresh_name(), **ECONOMY)
    created = add_text(client, dataset, "guide", "The badger digs.")
    assert wait(client, dataset, created) == "completed"
    first = created["document"]
    body = {"name": "guide 2", "text": "The otter swims.", "doc_language": "German"}
    answer = update(client, dataset, first["id"], route, json=body)
    assert answer.status_code == 200, answer.text
    second = answer.json()["document"]
    assert (second["id"], second["position"], second["name"]) == (first["id"], 1, "guide 2")
    assert (second["indexing_status"], second["display_status"]) == ("waiting", "queuing")
    assert second["created_from"] == "api"
    assert answer.json()["batch"] == created["batch"], "clients go on polling it"
    assert wait(client, dataset, created) == "completed"
    assert contents(client, dataset, first["id"]) == ["The otter swims."]
    assert found(client, dataset, "badger") == []
    assert document(client, dataset, first["id"])["doc_language"] == "German"


@pytest.mark.parametrize("route", ["PATCH", "update-by-file", "update_by_file"])
def test_a_file_is_replaced_in_place_and_may_be_renamed(client: TestClient, route: str) -> None:
    dataset = add_dataset(client, fresh_name(), **ECONOMY)
    document_id = indexed_text(client, dataset, "guide", "The badger digs.")
    answer = update(
        client,
        dataset,
        document_id,
        route,
        data={"data": json.dumps({"name": "renamed"})},
        files={"file": ("swim.txt", b"The otter swims.")},
    )
    assert answer.status_code == 200, answer.text
    assert wait(client, dataset, answer.json()) == "completed"
    shown = document(client, dataset, document_id)
    assert shown["name"] == "renamed"
    assert shown["data_source_info"]["upload_file"]["name"] == "swim.txt"
    assert contents(client, dataset, document_id) == ["The otter swims."]


def test_a_file_without_a_name_in_the_settings_gives_the_document_its_own(idle: TestClient) -> None:
    dataset = add_dataset(idle, fresh_name(), **ECONOMY)
    created = add_text(idle, dataset, "guide", "Some text.")["document"]
    files = {"file": ("swim.txt", b"The otter swims.")}
    answer = update(idle, dataset, created["id"], "PATCH", files=files)
    assert answer.json()["document"]["name"] == "swim.txt"


@pytest.mark.parametrize("shape", ["multipart", "form", "json", "text route"])
def test_a_rule_alone_cuts_the_same_file_anew(client: TestClient, shape: str) -> None:
    dataset = add_dataset(client, fresh_name(), **ECONOMY)
    document_id = indexed_text(client, dataset, "guide", "The badger digs.\nThe otter swims.")
    assert len(contents(client, dataset, document_id)) == 1
    settings = {"process_rule": LINES}
    sent: dict[str, dict[str, Any]] = {
        "multipart": {"files": {"data": (None, json.dumps(settings))}},
        "form": {"data": {"data": json.dumps(settings)}},
        "json": {"json": settings},
        "text route": {"json": settings},
    }
    route = "update-by-text" if shape == "text route" else "PATCH"
    answer = update(client, dataset, document_id, route, **sent[shape])
    assert answer.status_code == 200, answer.text
    assert wait(client, dataset, answer.json()) == "completed"
    assert contents(client, dataset, document_id) == ["The badger digs.", "The otter swims."]
    shown = document(client, dataset, document_id)
    assert (shown["name"], shown["document_process_rule"]["mode"]) == ("guide", "custom")


def test_a_document_of_another_form_keeps_it_when_the_update_does_not_say(
    client: TestClient,
) -> None:
    dataset = add_dataset(client, fresh_name())
    rule = {
        "mode": "hierarchical",
        "rules": {
            "pre_processing_rules": [],
            "segmentation": {"separator": "\n\n", "max_tokens": 500},
            "parent_mode": "paragraph",
            "subchunk_segmentation": {"separator": "\n", "max_tokens": 100},
        },
    }
    form = {"doc_form": "hierarchical_model", "process_rule": rule}
    document_id = indexed_text(client, dataset, "guide", "One.\nTwo.", **form)
    answer = update(
        client, dataset, document_id, "update-by-text", json={"name": "guide", "text": "Three."}
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["document"]["doc_form"] == "hierarchical_model"
    other = {"name": "guide", "text": "Four.", "doc_form": "text_model"}
    refused(
        update(client, dataset, document_id, "update-by-text", json=other), 400, "invalid_param"
    )


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "neither a text nor a process_rule"),
        ({"name": "guide"}, "neither a text nor a process_rule"),
        ({"text": "Some text."}, "name is missing"),
        ({"name": " ", "text": "Some text."}, "name"),
        ({"name": "guide", "text": " "}, "blank"),
        ({"name": "guide", "text": "x" * 5_001}, "5,001 characters"),
        ({"name": "guide", "text": "x", "doc_form": "other"}, "doc_form"),
        ({"name": "guide", "text": "x", "process_rule": {"mode": "other"}}, "process_rule.mode"),
    ],
)
def test_an_update_by_text_that_cannot_be_is_400_and_says_why(
    idle: TestClient, body: dict[str, Any], said: str
) -> None:
    dataset = add_dataset(idle, fresh_name(), **ECONOMY)
    created = add_text(idle, dataset, "guide", "Some text.")["document"]
    answer = update(idle, dataset, created["id"], "update-by-text", json=body)
    assert said in refused(answer, 400, "invalid_param")


@pytest.mark.parametrize(
    ("parts", "status", "code"),
    [
        ([("data", (None, "{}"))], 400, "invalid_param"),
        ([("data", (None, "no json"))], 400, "invalid_param"),
        ([("file", ("a.txt", b"x")), ("file", ("b.txt", b"y"))], 400, "too_many_files"),
        ([("file", ("", b"x"))], 400, "filename_not_exists_error"),
        ([("file", ("a.exe", b"x"))], 415, "unsupported_file_type"),
        ([("file", ("a.txt", b"x" * 100_001))], 413, "file_too_large"),
        ([("file", ("a/b.txt", b"x"))], 400, "invalid_param"),
    ],
)
def test_an_update_by_file_that_cannot_be_is_refused_with_its_code(
    idle: TestClient, parts: list[tuple[str, Any]], status: int, code: str
) -> None:
    dataset = add_dataset(idle, fresh_name(), **ECONOMY)
    created = add_text(idle, dataset, "guide", "Some text.")["document"]
    refused(update(idle, dataset, created["id"], "PATCH", files=parts), status, code)
    assert document(idle, dataset, created["id"])["pending_version"] == 1


def test_an_update_of_what_is_not_there_is_404_and_leaves_no_file(idle: TestClient) -> None:
    dataset = add_dataset(idle, fresh_name(), **ECONOMY)
    body = {"name": "guide", "text": "Some text."}
    refused(update(idle, dataset, NOWHERE, "update-by-text", json=body), 404, "not_found")
    other = add_dataset(idle, fresh_name(), **ECONOMY)
    elsewhere = add_text(idle, other, "guide", "Some text.")["document"]["id"]
    refused(update(idle, dataset, elsewhere, "update-by-text", json=body), 404, "not_found")
    resources = idle.app.state.resources  # type: ignore[attr-defined]
    assert len(list(resources.blobs.keys("uploads/"))) == len(_uploads(idle))


def test_progress_counts_the_segments_of_the_new_version_alone(client: TestClient) -> None:
    dataset = add_dataset(client, fresh_name(), **ECONOMY)
    created = add_text(client, dataset, "guide", "One.\nTwo.\nThree.", process_rule=LINES)
    assert wait(client, dataset, created) == "completed"
    body = {"name": "guide", "text": "Four.\nFive."}
    update(client, dataset, created["document"]["id"], "update-by-text", json=body)
    assert wait(client, dataset, created) == "completed"
    path = f"/v1/datasets/{dataset}/documents/{created['batch']}/indexing-status"
    (status,) = client.get(path).json()["data"]
    assert (status["completed_segments"], status["total_segments"]) == (2, 2)


def _uploads(client: TestClient) -> list[Any]:
    from sqlalchemy import select

    from kb.db import reading
    from kb.models import UploadFile

    resources = client.app.state.resources  # type: ignore[attr-defined]
    with reading(resources.sessions) as session:
        return list(session.scalars(select(UploadFile.id)))


def test_of_two_updates_while_nobody_has_worked_the_last_one_counts(client: TestClient) -> None:
    dataset = add_dataset(client, fresh_name(), **ECONOMY)
    created = add_text(client, dataset, "guide", "The badger digs.")
    document_id = created["document"]["id"]
    for text in ("The otter swims.", "The heron waits."):
        body = {"name": "guide", "text": text}
        answer = update(client, dataset, document_id, "update-by-text", json=body)
        assert answer.status_code == 200, answer.text
    assert wait(client, dataset, created) == "completed"
    assert contents(client, dataset, document_id) == ["The heron waits."]
    assert found(client, dataset, "badger otter heron") == ["The heron waits."]
    listed = client.get(f"/v1/datasets/{dataset}/documents").json()
    assert (listed["total"], listed["data"][0]["id"]) == (1, document_id)
