"""The query history: listed, and asked again with the same outcome, or told what differs."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from hashlib import sha256
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select, update
from starlette.testclient import TestClient

from kb.db import now, reading, transaction
from kb.models import ApiKey, DatasetQuery, Document, Segment
from kb.settings import Ingestion
from kb.sweeper import clean_up
from tests.kb.api import (
    NOWHERE,
    add_dataset,
    api,
    fresh_name,
    indexed_text,
    keys,
    refused,
    resources_of,
)
from tests.kb.server import LINES

ANIMALS = "The walrus sleeps on ice.\nAn otter swims.\nOwls hunt.\nA walrus has long tusks."
ROW = keys("id dataset_id call_id query source created_by created_at settings hits latency_ms")


@pytest.fixture(scope="module")
def client(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """One process with workers for all tests of this module."""
    ingestion = Ingestion(poll_s=0.05, retry_base_s=0.05, keep_queries=20)
    with api(tmp_path_factory.mktemp("queries"), ingestion=ingestion) as opened:
        yield opened


@pytest.fixture
def animals(client: TestClient) -> str:
    """A dataset of four sentences that nobody has asked yet."""
    dataset = add_dataset(client, fresh_name())
    indexed_text(client, dataset, "animals.txt", ANIMALS, process_rule=LINES)
    return dataset


def ask(client: TestClient, dataset: str, query: str, **model: Any) -> list[Any]:
    body = {"query": query, "retrieval_model": {"search_method": "hybrid_search", **model}}
    answer = client.post(f"/v1/datasets/{dataset}/retrieve", json=body)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["records"])


def history(client: TestClient, dataset: str, **params: Any) -> list[dict[str, Any]]:
    answer = client.get(f"/v1/datasets/{dataset}/queries", params=params)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["data"])


def replay(client: TestClient, query_id: str) -> dict[str, Any]:
    answer = client.post(f"/v1/queries/{query_id}/replay")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_an_answered_query_is_listed_with_settings_hits_and_latency(
    client: TestClient, animals: str
) -> None:
    records = ask(client, animals, "walrus", top_k=2, score_threshold_enabled=False)
    (row,) = history(client, animals)
    assert set(row) == ROW
    assert (row["query"], row["source"], row["dataset_id"]) == ("walrus", "hit_testing", animals)
    assert row["hits"] == [
        {"segment_id": r["segment"]["id"], "score": r["score"], "rank": rank}
        for rank, r in enumerate(records, start=1)
    ]
    model = row["settings"]["retrieval_model"]
    assert (model["search_method"], model["top_k"]) == ("hybrid_search", 2)
    assert model["weights"]["vector_setting"]["vector_weight"] == 0.5
    assert 0 < row["latency_ms"] < 60_000
    assert client.get(f"/v1/queries/{row['id']}").json() == row


def test_a_query_through_the_external_contract_is_listed_with_its_source(
    client: TestClient, animals: str
) -> None:
    setting = {"top_k": 1, "score_threshold": 0.1}
    body = {"knowledge_id": animals, "query": "otter", "retrieval_setting": setting}
    (record,) = client.post("/retrieval", json=body).json()["records"]
    (row,) = history(client, animals, source="external")
    assert row["hits"] == [
        {"segment_id": record["metadata"]["segment_id"], "score": record["score"], "rank": 1}
    ]
    assert replay(client, row["id"])["identical"] is True
    assert history(client, animals, source="hit_testing") == []


def test_the_list_is_newest_first_in_pages_and_filtered_by_a_part_of_the_query(
    client: TestClient, animals: str
) -> None:
    for query in ("first walrus", "second otter", "third Walrus", "50% of_owls"):
        ask(client, animals, query)
    assert [row["query"] for row in history(client, animals)][::-1][:2] == [
        "first walrus",
        "second otter",
    ]
    found = [row["query"] for row in history(client, animals, keyword="walrus")]
    assert found == ["third Walrus", "first walrus"]
    assert [row["query"] for row in history(client, animals, keyword="50%")] == ["50% of_owls"]
    page = client.get(f"/v1/datasets/{animals}/queries", params={"limit": 3, "page": 2}).json()
    assert [row["query"] for row in page["data"]] == ["first walrus"]
    assert (page["total"], page["has_more"], page["limit"], page["page"]) == (4, False, 3, 2)


@pytest.mark.parametrize(
    "model",
    [
        {},
        {"search_method": "semantic_search", "top_k": 3},
        {"search_method": "full_text_search", "score_threshold_enabled": True,
         "score_threshold": 0.2},
        {"weights": {"vector_setting": {"vector_weight": 0.9},
                     "keyword_setting": {"keyword_weight": 0.1}}},
    ],
)  # fmt: skip
def test_a_replay_on_the_same_data_gives_identical_ids_and_scores(
    client: TestClient, animals: str, model: dict[str, Any]
) -> None:
    ask(client, animals, "a walrus with tusks", **model)
    (row,) = history(client, animals)
    again = replay(client, row["id"])
    assert again["hits"] == row["hits"]
    assert again["hits"]
    assert (again["identical"], again["differences"]) == (True, [])
    assert again["query"] == row
    assert len(history(client, animals)) == 1, "a replay is no query of its own"


def test_a_replay_asks_with_the_settings_of_then_not_with_those_of_now(
    client: TestClient, animals: str
) -> None:
    client.patch(
        f"/v1/datasets/{animals}",
        json={"retrieval_model": {"search_method": "full_text_search", "top_k": 1}},
    )
    answer = client.post(f"/v1/datasets/{animals}/retrieve", json={"query": "walrus"})
    assert len(answer.json()["records"]) == 1
    client.patch(
        f"/v1/datasets/{animals}",
        json={"retrieval_model": {"search_method": "semantic_search", "top_k": 3}},
    )
    (row,) = history(client, animals)
    assert replay(client, row["id"])["hits"] == row["hits"]


def test_a_replay_says_which_segment_went_and_why_and_which_came(
    client: TestClient, animals: str
) -> None:
    before = ask(client, animals, "walrus", search_method="full_text_search", top_k=10)
    (row,) = history(client, animals)
    assert len(before) == 2
    gone = before[0]["segment"]["id"]
    with transaction(resources_of(client).sessions) as session:
        session.execute(update(Segment).values(enabled=False).where(Segment.id == _id(gone)))
    indexed_text(client, animals, "more.txt", "A walrus is a walrus.", process_rule=LINES)
    again = replay(client, row["id"])
    assert again["identical"] is False
    reasons = {d["segment_id"]: (d["before"], d["now"], d["reason"]) for d in again["differences"]}
    assert reasons[gone][1:] == (None, "disabled")
    assert reasons[gone][0] == {"rank": 1, "score": before[0]["score"]}
    came = [v for v in reasons.values() if v[0] is None]
    assert [v[2] for v in came] == ["added"]
    now_ids = [hit["segment_id"] for hit in again["hits"]]
    assert gone not in now_ids
    assert len(now_ids) == 2


def test_a_replay_after_a_document_was_deleted_says_so(client: TestClient, animals: str) -> None:
    other = indexed_text(client, animals, "seals.txt", "A seal is no walrus.", process_rule=LINES)
    ask(client, animals, "seal", search_method="full_text_search", top_k=10)
    (row,) = history(client, animals)
    with transaction(resources_of(client).sessions) as session:
        session.execute(update(Document).values(archived=True).where(Document.id == _id(other)))
    assert [d["reason"] for d in replay(client, row["id"])["differences"]] == ["archived"]
    with transaction(resources_of(client).sessions) as session:
        session.execute(update(Document).values(archived=False).where(Document.id == _id(other)))
    client.delete(f"/v1/datasets/{animals}/documents/{other}")
    again = replay(client, row["id"])
    assert [(d["reason"], d["now"]) for d in again["differences"]] == [("deleted", None)]


def test_a_replay_that_gives_another_score_in_the_same_place_is_not_identical(
    client: TestClient, animals: str
) -> None:
    ask(client, animals, "walrus", top_k=2)
    (row,) = history(client, animals)
    first, second = row["hits"]
    for off, identical in ((1e-4, False), (1e-8, True)):
        kept = [
            [first["segment_id"], first["score"], 1],
            [second["segment_id"], second["score"] - off, 2],
        ]
        with transaction(resources_of(client).sessions) as session:
            session.execute(
                update(DatasetQuery).values(hits=kept).where(DatasetQuery.id == _id(row["id"]))
            )
        again = replay(client, row["id"])
        assert again["identical"] is identical
        assert [(d["segment_id"], d["reason"]) for d in again["differences"]] == (
            [] if identical else [(second["segment_id"], "others")]
        )


def test_what_was_asked_before_settings_were_kept_cannot_be_replayed(
    client: TestClient, animals: str
) -> None:
    ask(client, animals, "walrus")
    (row,) = history(client, animals)
    with transaction(resources_of(client).sessions) as session:
        session.execute(
            update(DatasetQuery)
            .values(settings=None, hits=None)
            .where(DatasetQuery.id == _id(row["id"]))
        )
    assert history(client, animals)[0]["hits"] is None
    said = refused(client.post(f"/v1/queries/{row['id']}/replay"), 400, "invalid_param")
    assert "before settings were kept" in said


@pytest.mark.parametrize("query_id", [NOWHERE, "x"])
def test_a_query_that_is_not_there_is_404(client: TestClient, query_id: str) -> None:
    refused(client.get(f"/v1/queries/{query_id}"), 404, "not_found")
    refused(client.post(f"/v1/queries/{query_id}/replay"), 404, "not_found")
    refused(client.get(f"/v1/datasets/{NOWHERE}/queries"), 404, "not_found")


def test_a_key_of_one_dataset_sees_the_queries_of_that_one_only(
    client: TestClient, animals: str
) -> None:
    other = add_dataset(client, fresh_name())
    ask(client, other, "hidden")
    ask(client, animals, "seen")
    (hidden,) = history(client, other)
    resources = resources_of(client)
    with transaction(resources.sessions) as session:
        session.add(
            ApiKey(
                workspace_id=resources.workspace_id,
                dataset_id=_id(animals),
                hint="ds-1",
                sha256=_sha256("ds-1" + animals),
            )
        )
    narrow = TestClient(client.app, headers={"Authorization": f"Bearer ds-1{animals}"})
    listed = narrow.get("/v1/queries").json()["data"]
    assert [row["query"] for row in listed] == ["seen"]
    refused(narrow.get(f"/v1/queries/{hidden['id']}"), 404, "not_found")
    assert "hidden" in [row["query"] for row in client.get("/v1/queries").json()["data"]]


def test_only_the_newest_queries_of_a_dataset_are_kept(client: TestClient, animals: str) -> None:
    other = add_dataset(client, fresh_name())
    for n in range(23):
        ask(client, animals, f"walrus {n}")
    ask(client, other, "alone")
    history(client, animals)
    with transaction(resources_of(client).sessions) as session:  # one of them is too old, too
        session.execute(
            update(DatasetQuery)
            .values(created_at=now() - timedelta(days=400))
            .where(DatasetQuery.content == "walrus 22")
        )
    clean_up(resources_of(client))
    with reading(resources_of(client).sessions) as session:
        kept = session.scalars(
            select(DatasetQuery.content).where(DatasetQuery.dataset_id == _id(animals))
        ).all()
    assert sorted(kept) == sorted(f"walrus {n}" for n in range(2, 22))
    assert [row["query"] for row in history(client, other)] == ["alone"]


def _id(text: str) -> UUID:
    return UUID(text)


def _sha256(text: str) -> str:
    return sha256(text.encode()).hexdigest()
