"""Retrieval as the contract's table of differences and its checklist have it, over real HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.kb.api import add_dataset, api, fresh_name, indexed_text, refused
from tests.kb.server import LINES

ANIMALS = (
    "The walrus sleeps on ice.\nAn otter swims.\nOwls hunt at night.\nA walrus has tusks.\n"
    "Foxes dig dens.\nA seal barks."
)
TREE = {
    "mode": "hierarchical",
    "rules": {
        "pre_processing_rules": [],
        "segmentation": {"separator": "\n\n", "max_tokens": 500, "chunk_overlap": 0},
        "parent_mode": "paragraph",
        "subchunk_segmentation": {"separator": "\n", "max_tokens": 100, "chunk_overlap": 0},
    },
}


@pytest.fixture(scope="module")
def client(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """One process with workers for all tests of this module."""
    with api(tmp_path_factory.mktemp("contract")) as opened:
        yield opened


@pytest.fixture(scope="module")
def animals(client: TestClient) -> str:
    """A dataset of six sentences; its document has the field `year` 2020."""
    dataset = add_dataset(client, fresh_name("animals"))
    document = indexed_text(client, dataset, "animals.txt", ANIMALS, process_rule=LINES)
    path = f"/v1/datasets/{dataset}"
    field = client.post(f"{path}/metadata", json={"type": "number", "name": "year"}).json()
    value = {"id": field["id"], "name": "year", "value": 2020}
    body = {"operation_data": [{"document_id": document, "metadata_list": [value]}]}
    assert client.post(f"{path}/documents/metadata", json=body).status_code == 200
    return dataset


def ask(client: TestClient, dataset: str, query: str = "walrus", **model: Any) -> Any:
    body = {"query": query, **({"retrieval_model": model} if model else {})}
    return client.post(f"/v1/datasets/{dataset}/retrieve", json=body)


def found(answer: Any) -> list[tuple[str, float]]:
    assert answer.status_code == 200, answer.text
    return [(r["segment"]["content"], r["score"]) for r in answer.json()["records"]]


def hybrid(weight_type: str | None = None, **model: Any) -> dict[str, Any]:
    weights = {
        "weight_type": weight_type,
        "vector_setting": {"vector_weight": 0.7},
        "keyword_setting": {"keyword_weight": 0.3},
    }
    return {"search_method": "hybrid_search", "weights": weights, **model}


def year(operator: str, value: Any) -> dict[str, Any]:
    condition = {"name": "year", "comparison_operator": operator, "value": value}
    return {"logical_operator": "and", "conditions": [condition]}


def test_a_dataset_shows_a_top_k_of_2_and_is_searched_with_4(
    client: TestClient, animals: str
) -> None:
    shown = client.get(f"/v1/datasets/{animals}").json()["retrieval_model_dict"]
    assert shown["top_k"] == 2
    assert len(found(ask(client, animals))) == 4


def test_weights_count_without_reranking_and_their_type_does_not(
    client: TestClient, animals: str
) -> None:
    asked = hybrid(reranking_enable=False, reranking_mode="weighted_score")
    plain = found(ask(client, animals, **asked))
    for weight_type in ("semantic_first", "keyword_first", "customized"):
        asked = hybrid(weight_type, reranking_enable=True, reranking_mode="weighted_score")
        assert found(ask(client, animals, **asked)) == plain
    even = {"search_method": "hybrid_search"}
    assert found(ask(client, animals, **even)) != plain


def test_hybrid_search_without_a_reranker_is_cut_to_top_k_and_its_head_is_stable(
    client: TestClient, animals: str
) -> None:
    ten = found(ask(client, animals, **hybrid(top_k=10)))
    assert len(ten) == 6
    for top_k in (1, 3, 5):
        assert found(ask(client, animals, **hybrid(top_k=top_k))) == ten[:top_k]


def test_full_text_finds_texts_with_any_word_of_the_query(client: TestClient, animals: str) -> None:
    answer = ask(client, animals, "otter tusks", search_method="full_text_search")
    assert {text for text, _ in found(answer)} == {"An otter swims.", "A walrus has tusks."}


def test_an_economy_dataset_is_searched_by_words_whatever_is_asked(client: TestClient) -> None:
    dataset = add_dataset(client, fresh_name(), indexing_technique="economy")
    indexed_text(client, dataset, "a.txt", ANIMALS, process_rule=LINES)
    by_words = found(ask(client, dataset, search_method="keyword_search"))
    assert {text for text, _ in by_words} == {"The walrus sleeps on ice.", "A walrus has tusks."}
    for method in ("semantic_search", "hybrid_search", "full_text_search"):
        assert found(ask(client, dataset, search_method=method)) == by_words


def test_a_parent_comes_with_the_children_that_matched_best_first(client: TestClient) -> None:
    dataset = add_dataset(client, fresh_name())
    text = "A walrus sleeps.\nThe walrus has tusks.\nRain.\n\nOwls hunt.\nFoxes dig."
    indexed_text(client, dataset, "t.txt", text, doc_form="hierarchical_model", process_rule=TREE)
    answer = ask(client, dataset, search_method="full_text_search", top_k=5)
    (record,) = answer.json()["records"]
    children = record["child_chunks"]
    assert {c["content"] for c in children} == {"A walrus sleeps.", "The walrus has tusks."}
    scores = [child["score"] for child in children]
    assert scores == sorted(scores, reverse=True)
    assert record["score"] == scores[0]


def test_a_filter_without_a_match_gives_no_records(client: TestClient, animals: str) -> None:
    assert len(found(ask(client, animals, metadata_filtering_conditions=year("=", 2020)))) == 4
    assert found(ask(client, animals, metadata_filtering_conditions=year(">", 2020))) == []


def test_a_query_has_250_characters_at_most(client: TestClient, animals: str) -> None:
    assert found(ask(client, animals, "w" * 250))
    refused(ask(client, animals, "w" * 251), 400, "invalid_param")


def test_a_provider_s_condition_filters_by_one_name_or_any_of_several(
    client: TestClient, animals: str
) -> None:
    for name, operator, value, count in (
        ("year", "=", 2020, 2),
        (["author", "year"], "=", 2020, 2),
        (["author", "year"], "<", "2020", 0),
        ("year", "is", None, 2),
    ):
        condition = {"name": name, "comparison_operator": operator, "value": value}
        body = {
            "knowledge_id": animals,
            "query": "walrus",
            "retrieval_setting": {"top_k": 2, "score_threshold": 0.0},
            "metadata_condition": {"logical_operator": "and", "conditions": [condition]},
        }
        answer = client.post("/retrieval", json=body)
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["records"]) == count, condition


def test_a_filter_is_part_of_what_is_replayed(client: TestClient, animals: str) -> None:
    nested = {"conditions": [{"not": year("=", 2020)["conditions"][0]}]}
    assert found(ask(client, animals, metadata_filtering_conditions=nested)) == []
    body = {"knowledge_id": animals, "query": "walrus", "metadata_condition": year(">", 2020)}
    assert client.post("/retrieval", json=body).json() == {"records": []}
    rows = client.get(f"/v1/datasets/{animals}/queries", params={"limit": 2}).json()["data"]
    assert [row["source"] for row in rows] == ["external", "hit_testing"]
    for row in rows:
        again = client.post(f"/v1/queries/{row['id']}/replay").json()
        assert (again["identical"], again["hits"]) == (True, [])
