"""POST .../retrieve and /hit-testing: wire shape, which settings are in force, what is refused."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from starlette.testclient import TestClient

from kb.db import transaction
from kb.models import Dataset, Document, Segment
from tests.kb.api import (
    add_dataset,
    api,
    document,
    fresh_name,
    indexed_file,
    indexed_text,
    keys,
    refused,
    resources_of,
    segments,
)
from tests.kb.server import LINES

FILES = Path(__file__).parents[1] / "data" / "extract"

RECORD_KEYS = keys("segment child_chunks score tsne_position files summary")
SEGMENT_KEYS = keys(
    """id position document_id content sign_content answer word_count tokens keywords index_node_id
    index_node_hash hit_count enabled disabled_at disabled_by status created_by created_at
    indexing_at completed_at error stopped_at document"""
)
DOCUMENT_KEYS = keys("id data_source_type name doc_type doc_metadata")
ANIMALS = [
    "The walrus sleeps on the ice.",
    "An otter swims in the river.",
    "Owls hunt mice at night.",
    "A walrus has long tusks.",
    "Penguins walk to the sea.",
    "The whale sings in the deep.",
    "Foxes live in the forest.",
]
METHODS = ["semantic_search", "full_text_search", "hybrid_search", "keyword_search"]


@pytest.fixture(scope="module")
def client(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """One process with workers for all tests of this module."""
    with api(tmp_path_factory.mktemp("retrieve")) as opened:
        yield opened


@pytest.fixture(scope="module")
def animals(client: TestClient) -> str:
    """A dataset of seven sentences, without retrieval settings of its own."""
    dataset = add_dataset(client, fresh_name())
    indexed_text(client, dataset, "animals", "\n".join(ANIMALS), process_rule=LINES)
    return dataset


def ask(client: TestClient, dataset: str, query: str = "walrus", **model: Any) -> list[Any]:
    """The records of a call with this retrieval model (none: without one)."""
    body = {"query": query} | ({"retrieval_model": model} if model else {})
    answer = client.post(f"/v1/datasets/{dataset}/retrieve", json=body)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["records"])


def texts(records: list[Any]) -> list[str]:
    return [record["segment"]["content"] for record in records]


@pytest.mark.parametrize("route", ["retrieve", "hit-testing"])
def test_an_answer_has_every_key_of_the_contract(
    client: TestClient, animals: str, route: str
) -> None:
    answer = client.post(f"/v1/datasets/{animals}/{route}", json={"query": "walrus tusks"})
    assert answer.status_code == 200
    body = answer.json()
    assert set(body) == {"query", "records"}
    assert body["query"] == {"content": "walrus tusks"}
    assert all(set(record) == RECORD_KEYS for record in body["records"])
    first = body["records"][0]
    assert set(first["segment"]) == SEGMENT_KEYS | {"source"}
    assert set(first["segment"]["document"]) == DOCUMENT_KEYS
    (row,) = client.get(f"/v1/datasets/{animals}/documents").json()["data"]
    assert first["segment"]["document"] == {
        "id": row["id"],
        "data_source_type": "upload_file",
        "name": "animals",
        "doc_type": None,
        "doc_metadata": None,
    }
    expected: dict[str, Any] = {
        "child_chunks": [],
        "tsne_position": None,
        "files": [],
        "summary": None,
    }
    assert {key: first[key] for key in expected} == expected
    shown: dict[str, Any] = {
        "content": "A walrus has long tusks.",
        "sign_content": "A walrus has long tusks.",
        "answer": None,
        "position": 4,
        "keywords": [],
        "enabled": True,
        "status": "completed",
        "hit_count": 0,
        "error": None,
    }
    assert {key: first["segment"][key] for key in shown} == shown
    text = "\n".join(ANIMALS)
    source = first["segment"]["source"]
    assert text[source["start"] : source["end"]] == "A walrus has long tusks."


@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_what_was_asked_for_best_first(
    client: TestClient, animals: str, method: str
) -> None:
    records = ask(client, animals, "walrus tusks", search_method=method, top_k=5)
    assert texts(records)[0] == "A walrus has long tusks."
    scores = [record["score"] for record in records]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)


def test_without_any_settings_four_are_found_by_meaning(client: TestClient, animals: str) -> None:
    shown = client.get(f"/v1/datasets/{animals}").json()["retrieval_model_dict"]
    assert (shown["search_method"], shown["top_k"]) == ("semantic_search", 2)
    records = ask(client, animals)
    assert len(records) == 4
    assert records == ask(client, animals, search_method="semantic_search", top_k=4)


@pytest.mark.parametrize(
    "model", [{"top_k": None, "search_method": None}, {"reranking_enable": False}, {"unknown": 1}]
)
def test_a_partial_model_is_filled_with_the_executed_defaults(
    client: TestClient, animals: str, model: dict[str, Any]
) -> None:
    assert ask(client, animals, **model) == ask(client, animals)


def test_the_dataset_s_settings_hold_until_a_request_brings_its_own(client: TestClient) -> None:
    strict = {"top_k": 1, "score_threshold_enabled": True, "score_threshold": 0.999}
    dataset = add_dataset(client, fresh_name(), retrieval_model=strict)
    indexed_text(client, dataset, "animals", "\n".join(ANIMALS), process_rule=LINES)
    assert ask(client, dataset) == []
    assert len(ask(client, dataset, search_method="semantic_search")) == 4, "all replaced"
    patch = {"retrieval_model": {"search_method": "full_text_search", "top_k": 1}}
    client.patch(f"/v1/datasets/{dataset}", json=patch)
    assert len(ask(client, dataset)) == 1
    assert len(ask(client, dataset, search_method="full_text_search")) == 2


@pytest.mark.parametrize("value", ["3", 3, 3.0])
def test_numbers_may_be_sent_as_text(client: TestClient, animals: str, value: Any) -> None:
    assert len(ask(client, animals, top_k=value, search_method="semantic_search")) == 3


@pytest.mark.parametrize("method", METHODS)
def test_the_head_of_the_results_does_not_depend_on_top_k(
    client: TestClient, animals: str, method: str
) -> None:
    wide = ask(client, animals, "the walrus in the sea", search_method=method, top_k=7)
    for top_k in (1, 3):
        narrow = ask(client, animals, "the walrus in the sea", search_method=method, top_k=top_k)
        assert narrow == wide[:top_k]


def test_a_threshold_counts_only_when_it_is_enabled(client: TestClient, animals: str) -> None:
    all_of_them = ask(client, animals, top_k=7, search_method="hybrid_search")
    middle = all_of_them[2]["score"]
    cut = {"top_k": 7, "search_method": "hybrid_search", "score_threshold": middle}
    assert ask(client, animals, **cut) == all_of_them
    assert ask(client, animals, **cut, score_threshold_enabled=True) == all_of_them[:3]


def test_weights_count_whether_or_not_reranking_is_enabled(
    client: TestClient, animals: str
) -> None:
    def weighted(dense: float, text: float, **more: Any) -> list[str]:
        weights = {
            "weight_type": "customized",
            "vector_setting": {
                "vector_weight": dense,
                "embedding_provider_name": "local",
                "embedding_model_name": "all-MiniLM-L6-v2",
            },
            "keyword_setting": {"keyword_weight": text},
        }
        model = {"search_method": "hybrid_search", "top_k": 7, "weights": weights, **more}
        return texts(ask(client, animals, "sea animals in the deep", **model))

    mode = {"reranking_mode": "weighted_score"}
    assert weighted(1, 0, **mode) == weighted(1, 0, **mode, reranking_enable=True)
    dense = texts(ask(client, animals, "sea animals in the deep", top_k=7))
    assert weighted(1, 0) == dense
    by_words = {"search_method": "full_text_search", "top_k": 7}
    text = texts(ask(client, animals, "sea animals in the deep", **by_words))
    assert weighted(0, 1)[: len(text)] == text != dense[: len(text)]


def test_an_economy_dataset_is_searched_by_words_whatever_is_asked(client: TestClient) -> None:
    dataset = add_dataset(client, fresh_name(), indexing_technique="economy")
    indexed_text(client, dataset, "animals", "\n".join(ANIMALS), process_rule=LINES)
    for method in METHODS:
        records = ask(client, dataset, "walruses", search_method=method, top_k=7)
        assert set(texts(records)) == {ANIMALS[0], ANIMALS[3]}
    assert ask(client, dataset, "sea mammal with tusk-like teeth", top_k=7) != []
    assert ask(client, dataset, "zebra") == []


def test_hierarchical_records_are_parents_with_the_children_that_matched(
    client: TestClient,
) -> None:
    rule = {
        "mode": "hierarchical",
        "rules": {
            "pre_processing_rules": [],
            "parent_mode": "paragraph",
            "segmentation": {"separator": "\n\n", "max_tokens": 500},
            "subchunk_segmentation": {"separator": "\n", "max_tokens": 200},
        },
    }
    dataset = add_dataset(client, fresh_name())
    text = "Walrus one.\nOtters here.\nWalrus and walrus.\n\nOwls hunt.\nWalrus three.\n\nFoxes."
    indexed_text(client, dataset, "a", text, process_rule=rule, doc_form="hierarchical_model")
    records = ask(client, dataset, "walrus", search_method="full_text_search", top_k=5)
    assert set(texts(records)) == {
        "Walrus one.\nOtters here.\nWalrus and walrus.",
        "Owls hunt.\nWalrus three.",
    }
    for record in records:
        children = record["child_chunks"]
        assert all(set(child) == keys("id content position score") for child in children)
        scores = [child["score"] for child in children]
        assert scores == sorted(scores, reverse=True)
        assert record["score"] == scores[0]
        assert all("Walrus" in child["content"] for child in children)
    assert len(ask(client, dataset, "walrus", search_method="full_text_search", top_k=1)) == 1


def test_where_a_record_stands_in_its_file_is_told(client: TestClient) -> None:
    dataset = add_dataset(client, fresh_name())
    document_id = indexed_file(client, dataset, FILES / "layout-parser-paper-fast.pdf")
    (record,) = ask(
        client,
        dataset,
        "notoriously convoluted for reuse",
        search_method="full_text_search",
        top_k=1,
    )
    rows = {row["id"]: row for row in segments(client, dataset, document_id)}
    source = record["segment"]["source"]
    assert source == rows[record["segment"]["id"]]["source"]
    assert source["page"] in (1, 2)


# --- what is refused -----------------------------------------------------------------------------


def post(client: TestClient, dataset: str, body: Any) -> Any:
    return client.post(f"/v1/datasets/{dataset}/retrieve", json=body)


@pytest.mark.parametrize("letter", ["x", "名", "😀"])
def test_a_query_may_have_250_characters_and_not_251(
    client: TestClient, animals: str, letter: str
) -> None:
    assert post(client, animals, {"query": letter * 250}).status_code == 200
    message = refused(post(client, animals, {"query": letter * 251}), 400, "invalid_param")
    assert "251" in message
    assert "250" in message


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, "query is required"),
        ({"query": None}, "query"),
        ({"query": ""}, "query is empty"),
        ({"query": " \n"}, "query is empty"),
        ({"query": 7}, "query"),
        ({"query": ["walrus"]}, "query"),
        ({"query": "x", "attachment_ids": "a"}, "attachment_ids"),
        ({"query": "x", "retrieval_model": []}, "retrieval_model"),
        ({"query": "x", "retrieval_model": {"search_method": "magic"}}, "'hybrid_search'"),
        ({"query": "x", "retrieval_model": {"top_k": 0}}, "top_k is 0"),
        ({"query": "x", "retrieval_model": {"top_k": -1}}, "top_k is -1"),
        ({"query": "x", "retrieval_model": {"top_k": 101}}, "KB_LIMITS__TOP_K"),
        ({"query": "x", "retrieval_model": {"top_k": 10**30}}, "KB_LIMITS__TOP_K"),
        ({"query": "x", "retrieval_model": {"top_k": 1.5}}, "top_k"),
        ({"query": "x", "retrieval_model": {"score_threshold": "high"}}, "score_threshold"),
        ({"query": "x", "retrieval_model": {"score_threshold": "inf"}}, "score_threshold"),
    ],
)
def test_what_cannot_be_searched_is_400_and_named(
    client: TestClient, animals: str, body: Any, named: str
) -> None:
    assert named in refused(post(client, animals, body), 400, "invalid_param")


@pytest.mark.parametrize("body", [b"", b"null", b"{", b"\xff", b'{"query": NaN}', b"[" * 100_000])
def test_a_body_that_is_not_json_is_400(client: TestClient, animals: str, body: bytes) -> None:
    answer = client.post(f"/v1/datasets/{animals}/retrieve", content=body)
    assert "JSON" in refused(answer, 400, "bad_request")


@pytest.mark.parametrize("where", ["retrieval_model", None])
def test_a_rerank_model_that_is_not_configured_is_refused_only_when_it_would_be_used(
    client: TestClient, animals: str, where: str | None
) -> None:
    model = {
        "search_method": "hybrid_search",
        "reranking_enable": True,
        "reranking_mode": "reranking_model",
        "reranking_model": {
            "reranking_provider_name": "vendor",
            "reranking_model_name": "bge-reranker",
        },
    }
    answer = post(client, animals, {"query": "x", "retrieval_model": model})
    message = refused(answer, 400, "provider_not_initialize")
    assert "'bge-reranker'" in message
    assert "weighted_score" in message
    for harmless in ({"reranking_enable": False}, {"reranking_mode": "weighted_score"}):
        body = {"query": "x", "retrieval_model": model | harmless}
        assert post(client, animals, body).status_code == 200


@pytest.mark.parametrize(
    ("conditions", "matches"),
    [
        ([{"name": "year", "comparison_operator": "=", "value": 2024}], False),
        ([{"name": "year", "comparison_operator": "empty"}], True),
        ([{"name": "tags", "comparison_operator": "in", "value": ["a"]}], False),
        ([{"name": "year", "comparison_operator": "=", "value": None}], True),
        ([], True),
        (None, True),
    ],
)
def test_a_field_that_the_dataset_does_not_have_is_empty(
    client: TestClient, animals: str, conditions: Any, matches: bool
) -> None:
    where = {"logical_operator": "and", "conditions": conditions}
    body = {"query": "walrus", "retrieval_model": {"metadata_filtering_conditions": where}}
    answer = post(client, animals, body)
    assert answer.status_code == 200
    assert bool(answer.json()["records"]) is matches


def test_a_dataset_whose_model_is_gone_cannot_be_searched_by_meaning(client: TestClient) -> None:
    dataset = add_dataset(client, fresh_name())
    indexed_text(client, dataset, "a", "The walrus sleeps.")
    with transaction(resources_of(client).sessions) as session:
        moved = update(Dataset).where(Dataset.id == uuid.UUID(dataset))
        session.execute(moved.values(space_name="another-model-00000000"))
    answer = post(client, dataset, {"query": "walrus"})
    assert "another-model" in refused(answer, 400, "provider_not_initialize")


# --- what answers --------------------------------------------------------------------------------


def test_a_dataset_without_documents_answers_with_no_records(client: TestClient) -> None:
    for technique in ("high_quality", "economy", None):
        dataset = add_dataset(client, fresh_name(), indexing_technique=technique)
        assert ask(client, dataset) == []


def test_hit_testing_does_not_count_as_a_hit(client: TestClient) -> None:
    dataset = add_dataset(client, fresh_name())
    document_id = indexed_text(client, dataset, "a", "The walrus sleeps.")
    ask(client, dataset)
    assert document(client, dataset, document_id)["hit_count"] == 0


def test_the_query_is_echoed_as_it_was_read(client: TestClient, animals: str) -> None:
    body = rb'{"query": " Wal\ud800rus \"tusks\" \u0000 "}'
    answer = client.post(f"/v1/datasets/{animals}/retrieve", content=body)
    assert answer.json()["query"]["content"] == ' Wal\ufffdrus "tusks" \ufffd '


def test_external_settings_and_unknown_keys_have_no_effect(
    client: TestClient, animals: str
) -> None:
    body = {
        "query": "walrus",
        "retrieval_model": None,
        "external_retrieval_model": {"top_k": 1, "score_threshold": 0.99},
        "attachment_ids": None,
        "user": "me",
    }
    assert post(client, animals, body).json()["records"] == ask(client, animals)


@pytest.mark.parametrize("state", [{"enabled": False}, {"archived": True}])
def test_a_document_that_is_disabled_or_archived_does_not_answer(
    client: TestClient, state: dict[str, bool]
) -> None:
    dataset = add_dataset(client, fresh_name())
    document_id = indexed_text(client, dataset, "a", "The walrus sleeps.")
    kept = indexed_text(client, dataset, "b", "The walrus eats.")
    with transaction(resources_of(client).sessions) as session:
        mine = update(Document).where(Document.id == uuid.UUID(document_id))
        session.execute(mine.values(**state))
    for method in METHODS:
        records = ask(client, dataset, search_method=method)
        assert [record["segment"]["document_id"] for record in records] == [kept]


def test_a_disabled_segment_does_not_answer(client: TestClient) -> None:
    dataset = add_dataset(client, fresh_name())
    indexed_text(client, dataset, "a", "The walrus sleeps.\nThe walrus eats.", process_rule=LINES)
    hidden = ask(client, dataset)[0]["segment"]["id"]
    with transaction(resources_of(client).sessions) as session:
        mine = update(Segment).where(Segment.id == uuid.UUID(hidden))
        session.execute(mine.values(enabled=False))
    assert [r["segment"]["id"] == hidden for r in ask(client, dataset)] == [False]


def test_a_deleted_document_does_not_answer_any_more(client: TestClient) -> None:
    dataset = add_dataset(client, fresh_name())
    document_id = indexed_text(client, dataset, "a", "The walrus sleeps.")
    assert texts(ask(client, dataset)) == ["The walrus sleeps."]
    client.delete(f"/v1/datasets/{dataset}/documents/{document_id}")
    assert ask(client, dataset) == []


def test_explain_says_how_each_score_came_about(client: TestClient, animals: str) -> None:
    body = {"query": "walrus", "retrieval_model": {"search_method": "hybrid_search"}}
    plain = client.post(f"/v1/datasets/{animals}/retrieve?explain=no", json=body).json()
    told = client.post(f"/v1/datasets/{animals}/retrieve?explain=true", json=body).json()
    assert set(told) == {"query", "records", "timings_ms"}
    for record, same in zip(told["records"], plain["records"], strict=True):
        why = record.pop("explain")
        assert record == same
        parts = [why[leg]["contribution"] for leg in ("vector", "full_text") if why[leg]]
        assert sum(parts) == pytest.approx(record["score"], abs=1e-6)
    assert json.dumps(told)
