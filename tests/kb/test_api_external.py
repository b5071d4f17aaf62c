"""POST /retrieval: this server as an external knowledge base of other products."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.kb.api import (
    HEADERS,
    NOWHERE,
    add_dataset,
    api,
    document,
    fresh_name,
    indexed_text,
    segments,
)
from tests.kb.server import LINES

ANIMALS = "The walrus sleeps.\nAn otter swims.\nOwls hunt.\nA walrus has tusks."


@pytest.fixture(scope="module")
def client(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """One process with workers for all tests of this module."""
    with api(tmp_path_factory.mktemp("external")) as opened:
        yield opened


@pytest.fixture(scope="module")
def animals(client: TestClient) -> tuple[str, str]:
    """A dataset of four sentences: (dataset, document)."""
    dataset = add_dataset(client, fresh_name())
    return dataset, indexed_text(client, dataset, "animals.txt", ANIMALS, process_rule=LINES)


def ask(client: TestClient, knowledge_id: str, **more: Any) -> Any:
    setting = {"top_k": 3, "score_threshold": 0.0}
    body = {"retrieval_setting": setting, "query": "walrus", "knowledge_id": knowledge_id, **more}
    return client.post("/retrieval", json={k: v for k, v in body.items() if v is not ...})


def records(answer: Any) -> list[Any]:
    assert answer.status_code == 200, answer.text
    assert set(answer.json()) == {"records"}
    return list(answer.json()["records"])


def failed(answer: Any, status: int, code: int) -> str:
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error_code", "error_msg"}
    assert answer.json()["error_code"] == code
    return str(answer.json()["error_msg"])


def test_records_have_the_shape_of_the_contract(
    client: TestClient, animals: tuple[str, str]
) -> None:
    found = records(ask(client, animals[0]))
    assert len(found) == 3
    rows = {row["id"]: row for row in segments(client, *animals)}
    for record in found:
        assert set(record) == {"content", "score", "title", "metadata"}
        assert record["title"] == "animals.txt"
        assert 0 <= record["score"] <= 1
        metadata = record["metadata"]
        assert metadata["document_id"] == animals[1]
        row = rows[metadata["segment_id"]]
        assert record["content"] == row["content"]
        assert metadata["position"] == row["position"]
        assert ANIMALS[metadata["start"] : metadata["end"]] == record["content"]
    scores = [record["score"] for record in found]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("path", ["/retrieval", "//retrieval", "/v1/retrieval"])
def test_the_path_may_have_a_double_slash_or_the_prefix(
    client: TestClient, animals: tuple[str, str], path: str
) -> None:
    body = {"knowledge_id": animals[0], "query": "walrus", "retrieval_setting": {"top_k": 1}}
    answer = client.request("POST", f"http://testserver{path}", json=body)
    assert len(records(answer)) == 1


@pytest.mark.parametrize(
    "condition",
    [
        ...,
        None,
        {},
        {"logical_operator": "and", "conditions": []},
        {"logical_operator": None, "conditions": None},
    ],
)
def test_an_absent_null_or_empty_condition_changes_nothing(
    client: TestClient, animals: tuple[str, str], condition: Any
) -> None:
    answer = ask(client, animals[0], metadata_condition=condition)
    assert records(answer) == records(ask(client, animals[0]))


def test_a_condition_that_no_document_meets_leaves_nothing(
    client: TestClient, animals: tuple[str, str]
) -> None:
    condition = {"name": ["year"], "comparison_operator": "=", "value": "2024"}
    where = {"logical_operator": "and", "conditions": [condition]}
    assert records(ask(client, animals[0], metadata_condition=where)) == []


@pytest.mark.parametrize(
    ("setting", "count"),
    [
        ({"top_k": 1, "score_threshold": 0.0}, 1),
        ({"top_k": 2}, 2),
        ({"top_k": 4, "score_threshold": None}, 4),
        ({"top_k": None, "score_threshold": 0.0}, 4),
        ({"top_k": 4, "score_threshold": 1.0}, 0),
        ({"top_k": "2", "score_threshold": "0"}, 2),
        ({}, 4),
        (None, 4),
        (..., 4),
    ],
)
def test_retrieval_setting_limits_the_records(
    client: TestClient, animals: tuple[str, str], setting: Any, count: int
) -> None:
    assert len(records(ask(client, animals[0], retrieval_setting=setting))) == count


def test_the_dataset_s_method_is_used_with_the_request_s_numbers(client: TestClient) -> None:
    model = {"search_method": "full_text_search", "top_k": 1, "score_threshold": 0.99}
    model["score_threshold_enabled"] = True
    dataset = add_dataset(client, fresh_name(), retrieval_model=model)
    indexed_text(client, dataset, "animals.txt", ANIMALS, process_rule=LINES)
    found = records(ask(client, dataset))
    assert {record["content"] for record in found} == {"The walrus sleeps.", "A walrus has tusks."}


# --- probes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"{}",
        b'{"knowledge_id": "", "query": "", "retrieval_setting": {"top_k": 1}}',
        b'{"knowledge_id": "", "query": "walrus"}',
        b'{"knowledge_id": null, "query": null}',
    ],
)
def test_a_probe_is_answered_with_no_records(client: TestClient, body: bytes) -> None:
    assert records(client.post("/retrieval", content=body)) == []


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", [None, "", "Basic x", "Bearer", "key"])
def test_a_malformed_authorization_header_is_1001(client: TestClient, header: str | None) -> None:
    anonymous = TestClient(client.app)
    headers = {} if header is None else {"Authorization": header}
    answer = anonymous.post("/retrieval", json={}, headers=headers)
    assert "Bearer <key>" in failed(answer, 403, 1001)


def test_a_wrong_key_is_1002(client: TestClient) -> None:
    answer = TestClient(client.app).post(
        "/retrieval", json={}, headers={"Authorization": "Bearer wrong"}
    )
    failed(answer, 403, 1002)


@pytest.mark.parametrize("knowledge_id", [NOWHERE, "KB-42", "../x"])
def test_an_unknown_knowledge_base_is_2001(client: TestClient, knowledge_id: str) -> None:
    assert knowledge_id in failed(ask(client, knowledge_id), 404, 2001)


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"\xff",
        b"[1]",
        b'"x"',
        b'{"query": 7}',
        b'{"retrieval_setting": []}',
        b'{"query": NaN}',
        b"[" * 100_000,
    ],
)
def test_a_body_that_cannot_be_read_is_400(client: TestClient, body: bytes) -> None:
    failed(client.post("/retrieval", content=body), 400, 400)
    nobody = {"Authorization": "Bearer wrong"}
    failed(client.post("/retrieval", content=body, headers=nobody), 403, 1002)


def test_a_question_may_be_a_whole_message(client: TestClient, animals: tuple[str, str]) -> None:
    message = "Tell me all that you know about the walrus. " * 100
    found = records(ask(client, animals[0], query=message))
    assert "walrus" in found[0]["content"]
    said = failed(ask(client, animals[0], query="w" * 10_001), 400, 400)
    assert "10001 characters" in said
    assert "KB_LIMITS__LONG_QUERY_CHARS" in said


def test_queries_at_the_same_time_get_the_answers_that_they_get_alone(
    client: TestClient, animals: tuple[str, str]
) -> None:
    questions = ["walrus", "otter", "owls hunt", "tusks", "sleeps"]
    alone = {q: records(ask(client, animals[0], query=q)) for q in questions}
    assert all(alone.values())
    with ThreadPoolExecutor(12) as pool:
        asked = questions * 12
        together = list(pool.map(lambda q: records(ask(client, animals[0], query=q)), asked))
    assert together == [alone[q] for q in asked]


@pytest.mark.parametrize("top_k", [0, -1, 10**6])
def test_a_top_k_out_of_range_is_400(
    client: TestClient, animals: tuple[str, str], top_k: int
) -> None:
    answer = ask(client, animals[0], retrieval_setting={"top_k": top_k})
    assert "top_k" in failed(answer, 400, 400)


# --- hits ----------------------------------------------------------------------------------------


def test_hits_are_counted_for_the_segments_that_were_returned(client: TestClient) -> None:
    dataset = add_dataset(client, fresh_name())
    document_id = indexed_text(client, dataset, "animals.txt", ANIMALS, process_rule=LINES)
    (found,) = records(ask(client, dataset, retrieval_setting={"top_k": 1}))
    records(ask(client, dataset, retrieval_setting={"top_k": 1}))
    ends = time.monotonic() + 30
    while document(client, dataset, document_id)["hit_count"] < 2:
        assert time.monotonic() < ends
        time.sleep(0.05)
    hits = {row["id"]: row["hit_count"] for row in segments(client, dataset, document_id)}
    assert hits.pop(found["metadata"]["segment_id"]) == 2
    assert set(hits.values()) == {0}
    assert client.get(f"/v1/datasets/{dataset}/documents").json()["data"][0]["hit_count"] == 2


def test_a_call_without_a_content_type_is_read_as_json(
    client: TestClient, animals: tuple[str, str]
) -> None:
    body = f'{{"knowledge_id": "{animals[0]}", "query": "walrus"}}'
    answer = client.post("/retrieval", content=body, headers=HEADERS)
    assert records(answer)
