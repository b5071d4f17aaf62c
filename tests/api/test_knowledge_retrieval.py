"""POST /v1/knowledge-retrieval: the node's output, and what it stands for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import update
from starlette.testclient import TestClient

from kb.db import transaction
from kb.models import Dataset, Segment
from tests.kb.api import (
    NOWHERE,
    add_dataset,
    api,
    fresh_name,
    indexed_text,
    keys,
    refused,
    resources_of,
    segments,
)
from tests.kb.server import LINES

SEA = "The walrus sleeps on ice.\nAn otter floats on its back.\nA seal barks at night."
LAND = "Owls hunt at night.\nA fox sleeps in its den.\nThe walrus is no animal of the land."
ARCHIVE = "Walrus ivory was carved.\nOtter skins were traded.\nNobody kept a seal."

ITEM = keys("metadata title files content summary")
METADATA = keys(
    "_source dataset_id dataset_name document_id document_name data_source_type segment_id "
    "retriever_from score child_chunks segment_hit_count segment_word_count segment_position "
    "segment_index_node_hash doc_metadata position"
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
    with api(tmp_path_factory.mktemp("node")) as opened:
        yield opened


@pytest.fixture(scope="module")
def shelf(client: TestClient) -> dict[str, str]:
    """Three datasets by name: sea and land with vectors, archive without."""
    texts = {"sea": SEA, "land": LAND, "archive": ARCHIVE}
    made = {}
    for name, text in texts.items():
        technique = "economy" if name == "archive" else "high_quality"
        made[name] = add_dataset(client, fresh_name(name), indexing_technique=technique)
        indexed_text(client, made[name], f"{name}.txt", text, process_rule=LINES)
    return made


def call(client: TestClient, dataset_ids: list[str], query: Any = "walrus", **body: Any) -> Any:
    multiple = {"top_k": 4, "reranking_enable": False, **body.pop("multiple", {})}
    node = {"dataset_ids": dataset_ids, "query": query, "retrieval_mode": "multiple", **body}
    return client.post(
        "/v1/knowledge-retrieval", json={"multiple_retrieval_config": multiple, **node}
    )


def result(answer: Any, *, partial: bool = False) -> list[Any]:
    assert answer.status_code == 200, answer.text
    assert answer.json()["partial"] is partial, answer.text
    return list(answer.json()["result"])


def errors(answer: Any) -> dict[str, str]:
    """Codes by dataset id."""
    assert answer.status_code == 200, answer.text
    return {error["dataset_id"]: error["code"] for error in answer.json()["errors"]}


def contents(items: list[Any]) -> list[str]:
    return [item["content"] for item in items]


def test_every_item_has_the_node_s_shape_and_its_place(
    client: TestClient, shelf: dict[str, str]
) -> None:
    items = result(call(client, [shelf["sea"], shelf["land"]]))
    assert [item["metadata"]["position"] for item in items] == [1, 2, 3, 4]
    scores = [item["metadata"]["score"] for item in items]
    assert scores == sorted(scores, reverse=True)
    rows = {
        row["id"]: row
        for name in ("sea", "land")
        for document in client.get(f"/v1/datasets/{shelf[name]}/documents").json()["data"]
        for row in segments(client, shelf[name], document["id"])
    }
    for item in items:
        assert set(item) == ITEM
        metadata = item["metadata"]
        assert set(metadata) == METADATA
        assert (metadata["_source"], metadata["retriever_from"]) == ("knowledge", "workflow")
        name = next(name for name, i in shelf.items() if i == metadata["dataset_id"])
        assert metadata["dataset_name"].startswith(name)
        assert metadata["document_name"] == item["title"] == f"{name}.txt"
        assert metadata["data_source_type"] == "upload_file"
        row = rows[metadata["segment_id"]]
        assert metadata["document_id"] == row["document_id"]
        assert item["content"] == row["content"]
        assert metadata["segment_word_count"] == row["word_count"]
        assert metadata["segment_position"] == row["position"]
        assert metadata["segment_index_node_hash"] == row["index_node_hash"]
        assert (metadata["child_chunks"], item["files"], item["summary"]) == ([], None, None)
        assert 0 <= metadata["score"] <= 1


def test_what_one_dataset_gives_is_what_retrieve_gives(
    client: TestClient, shelf: dict[str, str]
) -> None:
    own = {"search_method": "semantic_search", "top_k": 4}
    answer = client.post(
        f"/v1/datasets/{shelf['sea']}/retrieve", json={"query": "walrus", "retrieval_model": own}
    )
    expected = [(r["segment"]["id"], r["score"]) for r in answer.json()["records"]]
    items = result(call(client, [shelf["sea"]]))
    assert [(i["metadata"]["segment_id"], i["metadata"]["score"]) for i in items] == expected


def test_top_k_counts_over_all_datasets_and_fewer_are_the_head_of_more(
    client: TestClient, shelf: dict[str, str]
) -> None:
    both = [shelf["sea"], shelf["land"]]
    most = contents(result(call(client, both, multiple={"top_k": 6})))
    assert len(most) == 6
    for top_k in (1, 2, 5):
        assert contents(result(call(client, both, multiple={"top_k": top_k}))) == most[:top_k]


def test_the_threshold_applies_to_the_final_score(
    client: TestClient, shelf: dict[str, str]
) -> None:
    both = [shelf["sea"], shelf["land"]]
    every = result(call(client, both, multiple={"top_k": 6}))
    edge = every[2]["metadata"]["score"]
    some = result(call(client, both, multiple={"top_k": 6, "score_threshold": edge}))
    assert contents(some) == contents(every)[:3]


def test_weights_score_all_datasets_by_hybrid_search(
    client: TestClient, shelf: dict[str, str]
) -> None:
    def weighted(dense: float) -> list[Any]:
        weights = {
            "vector_setting": {"vector_weight": dense},
            "keyword_setting": {"keyword_weight": 1 - dense},
        }
        config = {"reranking_enable": True, "reranking_mode": "weighted_score", "weights": weights}
        return result(call(client, [shelf["sea"], shelf["land"]], "walrus", multiple=config))

    by_words = weighted(0.0)
    assert set(contents(by_words)) == {
        "The walrus sleeps on ice.",
        "The walrus is no animal of the land.",
    }
    assert by_words[0]["metadata"]["score"] == 1.0
    mixed = weighted(0.5)
    assert len(mixed) == 4
    assert set(contents(mixed)[:2]) == set(contents(by_words))


def test_economy_datasets_answer_beside_those_with_vectors(
    client: TestClient, shelf: dict[str, str]
) -> None:
    items = result(call(client, list(shelf.values()), "otter", multiple={"top_k": 9}))
    assert "Otter skins were traded." in contents(items)
    assert "An otter floats on its back." in contents(items)
    assert all(0 <= item["metadata"]["score"] <= 1 for item in items)
    alone = contents(result(call(client, [shelf["archive"]], "otter")))
    assert alone == ["Otter skins were traded."]


def test_datasets_that_are_set_up_differently_are_all_searched_by_hybrid_search(
    client: TestClient, shelf: dict[str, str]
) -> None:
    words = {"search_method": "full_text_search"}
    other = add_dataset(client, fresh_name("words"), retrieval_model=words)
    indexed_text(client, other, "words.txt", "A walrus is a word, too.", process_rule=LINES)
    (alone,) = result(call(client, [other], "walrus", multiple={"top_k": 1}))
    assert alone["metadata"]["score"] == 1.0, "by words: the best match"
    items = result(call(client, [other, shelf["sea"]], "walrus"))
    scores = {i["content"]: i["metadata"]["score"] for i in items}
    assert scores["A walrus is a word, too."] < 1.0
    assert "A seal barks at night." in scores, "found by meaning alone"


def test_a_parent_comes_with_the_children_that_matched(client: TestClient) -> None:
    dataset = add_dataset(client, fresh_name("tree"))
    text = "The walrus sleeps.\nAn otter floats.\n\nOwls hunt.\nA fox digs."
    indexed_text(
        client, dataset, "tree.txt", text, doc_form="hierarchical_model", process_rule=TREE
    )
    items = result(call(client, [dataset], "walrus", multiple={"top_k": 1}))
    (item,) = items
    children = item["metadata"]["child_chunks"]
    assert [set(child) for child in children] == [{"id", "content", "position", "score"}] * 2
    assert children[0]["content"] == "The walrus sleeps."
    assert children[0]["score"] == item["metadata"]["score"]
    assert [c["score"] for c in children] == sorted((c["score"] for c in children), reverse=True)


def test_a_question_with_an_answer_shows_both(client: TestClient, shelf: dict[str, str]) -> None:
    dataset = add_dataset(client, fresh_name("qa"))
    document = indexed_text(client, dataset, "qa.txt", "Who sleeps?", process_rule=LINES)
    (row,) = segments(client, dataset, document)
    with transaction(resources_of(client).sessions) as session:
        session.execute(
            update(Segment)
            .values(answer="The walrus.")
            .where(Segment.document_id == UUID(document))
        )
    (item,) = result(call(client, [dataset], "who sleeps"))
    assert item["content"] == "question:Who sleeps? \nanswer:The walrus."
    assert item["metadata"]["segment_id"] == row["id"]


@pytest.mark.parametrize("query", [None, "", "  "])
def test_without_a_question_the_answer_is_empty(
    client: TestClient, shelf: dict[str, str], query: str | None
) -> None:
    assert result(call(client, [shelf["sea"]], query)) == []


def test_no_dataset_gives_nothing(client: TestClient) -> None:
    assert result(call(client, [])) == []
    empty = add_dataset(client, fresh_name("empty"))
    assert result(call(client, [empty])) == []


# --- one that fails ------------------------------------------------------------------------------


def test_a_dataset_that_is_not_there_is_reported_and_the_others_answer(
    client: TestClient, shelf: dict[str, str]
) -> None:
    answer = call(client, [NOWHERE, shelf["sea"], "KB-42"])
    assert contents(result(answer, partial=True)) == contents(result(call(client, [shelf["sea"]])))
    assert errors(answer) == {NOWHERE: "not_found", "KB-42": "not_found"}
    assert contents(result(call(client, [NOWHERE]), partial=True)) == []


def test_a_dataset_whose_model_is_gone_is_reported_and_the_others_answer(
    client: TestClient, shelf: dict[str, str]
) -> None:
    broken = add_dataset(client, fresh_name("broken"))
    indexed_text(client, broken, "broken.txt", "A walrus.", process_rule=LINES)
    with transaction(resources_of(client).sessions) as session:
        session.execute(
            update(Dataset).values(space_name="gone", space_dim=3).where(Dataset.id == UUID(broken))
        )
    answer = call(client, [broken, shelf["sea"], shelf["land"]])
    expected = result(call(client, [shelf["sea"], shelf["land"]]))
    assert contents(result(answer, partial=True)) == contents(expected)
    (error,) = answer.json()["errors"]
    assert set(error) == {"dataset_id", "dataset_name", "code", "message"}
    assert (error["dataset_id"], error["code"]) == (broken, "provider_not_initialize")
    assert error["dataset_name"].startswith("broken")
    refused(call(client, [broken]), 400, "provider_not_initialize")


def test_a_dataset_without_api_access_is_reported(
    client: TestClient, shelf: dict[str, str]
) -> None:
    closed = add_dataset(client, fresh_name("closed"))
    with transaction(resources_of(client).sessions) as session:
        session.execute(update(Dataset).values(enable_api=False).where(Dataset.id == UUID(closed)))
    answer = call(client, [closed, shelf["sea"]])
    assert errors(answer) == {closed: "forbidden"}
    assert result(answer, partial=True)


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"query": 7}, "query"),
        ({"query": ["walrus"]}, "query"),
        ({"query": "w" * 10_001}, "KB_LIMITS__LONG_QUERY_CHARS"),
        ({"dataset_ids": None}, "dataset_ids"),
        ({"dataset_ids": "x"}, "dataset_ids"),
        ({"dataset_ids": [NOWHERE] * 101}, "KB_LIMITS__DATASETS_PER_QUERY"),
        ({"retrieval_mode": "several"}, "retrieval_mode"),
        ({"metadata_filtering_mode": "auto"}, "metadata_filtering_mode"),
        ({"multiple": {"top_k": 0}}, "top_k"),
        ({"multiple": {"top_k": 101}}, "KB_LIMITS__TOP_K"),
        ({"multiple": {"reranking_enable": True, "reranking_mode": "weighted_score"}}, "weights"),
    ],
)
def test_bad_input_is_named(
    client: TestClient, shelf: dict[str, str], body: dict[str, Any], said: str
) -> None:
    given = {"dataset_ids": [shelf["sea"]], "query": "walrus", **body}
    answer = call(client, given.pop("dataset_ids"), given.pop("query"), **given)
    assert said in refused(answer, 400, "invalid_param")


def test_a_call_needs_a_key(client: TestClient) -> None:
    answer = TestClient(client.app).post("/v1/knowledge-retrieval", json={"dataset_ids": []})
    assert answer.status_code == 401
    refused(client.post("/v1/knowledge-retrieval"), 400, "bad_request")


# --- what it leaves behind -----------------------------------------------------------------------


def test_hits_are_counted_and_the_question_is_in_the_history_of_every_dataset(
    client: TestClient,
) -> None:
    made = [add_dataset(client, fresh_name()) for _ in range(3)]
    for dataset, text in zip(made, (SEA, LAND, "Nothing of the kind."), strict=True):
        indexed_text(client, dataset, "a.txt", text, process_rule=LINES)
    items = result(call(client, made, "a walrus on ice", multiple={"top_k": 3}))
    rows = [client.get(f"/v1/datasets/{d}/queries").json()["data"] for d in made]
    assert [len(r) for r in rows] == [1, 1, 1]
    assert {r[0]["call_id"] for r in rows} == {rows[0][0]["call_id"]}
    assert {r[0]["source"] for r in rows} == {"app"}
    kept = sorted((hit["rank"], hit["segment_id"]) for r in rows for hit in r[0]["hits"])
    assert kept == [(n, i["metadata"]["segment_id"]) for n, i in enumerate(items, start=1)]
    ends = time.monotonic() + 30
    while result(call(client, made[:1], "a walrus on ice"))[0]["metadata"]["segment_hit_count"] < 1:
        assert time.monotonic() < ends
        time.sleep(0.05)


def test_a_question_to_several_datasets_can_be_replayed_as_a_whole(client: TestClient) -> None:
    made = [add_dataset(client, fresh_name()) for _ in range(2)]
    for dataset, text in zip(made, (SEA, LAND), strict=True):
        indexed_text(client, dataset, "a.txt", text, process_rule=LINES)
    items = result(call(client, made, "a walrus on ice", multiple={"top_k": 4}))
    (row,) = client.get(f"/v1/datasets/{made[1]}/queries").json()["data"]
    again = client.post(f"/v1/queries/{row['id']}/replay").json()
    assert again["identical"] is True
    assert [(hit["segment_id"], hit["score"]) for hit in again["hits"]] == [
        (i["metadata"]["segment_id"], i["metadata"]["score"]) for i in items
    ]
    client.delete(f"/v1/datasets/{made[0]}")
    again = client.post(f"/v1/queries/{row['id']}/replay").json()
    assert again["identical"] is False
