"""The route that lists segments: every key of the wire shape, filters, pages, children."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import select
from starlette.testclient import TestClient

from kb.db import transaction
from kb.models import ChildChunk
from tests.kb.api import (
    add_dataset,
    add_text,
    api,
    document,
    fresh_name,
    indexed_text,
    keys,
    refused,
    resources_of,
    segments,
    wait,
)
from tests.kb.server import LINES

KEYS = keys(
    """id document_id position content sign_content answer word_count tokens keywords index_node_id
    index_node_hash hit_count enabled disabled_at indexing_at completed_at stopped_at disabled_by
    updated_by status created_by created_at updated_at error child_chunks attachments summary"""
)
OUR_KEYS = keys("source")
CHILD_KEYS = keys("id segment_id content position word_count type created_at updated_at")
PARENTS: dict[str, Any] = {
    "mode": "hierarchical",
    "rules": {
        "pre_processing_rules": [],
        "parent_mode": "paragraph",
        "segmentation": {"separator": "\n\n", "max_tokens": 500},
        "subchunk_segmentation": {"separator": "\n", "max_tokens": 200},
    },
}


@pytest.fixture(scope="module")
def client(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """One process with workers for all tests of this module."""
    with api(tmp_path_factory.mktemp("segments")) as opened:
        yield opened


@pytest.fixture(scope="module")
def birds(client: TestClient) -> tuple[str, str]:
    """A document of seven lines: (dataset, document)."""
    dataset = add_dataset(client, fresh_name())
    lines = [
        "Owls hunt.",
        "OWLS sleep.",
        "Fish swim.",
        "100% sure.",
        "snake_case.",
        "Größe.",
        "End.",
    ]
    return dataset, indexed_text(client, dataset, "birds", "\n".join(lines), process_rule=LINES)


def listing(client: TestClient, of: tuple[str, str], query: str = "") -> dict[str, Any]:
    answer = client.get(f"/v1/datasets/{of[0]}/documents/{of[1]}/segments{query}")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_a_segment_has_every_key_of_the_contract(
    client: TestClient, birds: tuple[str, str]
) -> None:
    body = listing(client, birds)
    assert set(body) == keys("data doc_form total has_more limit page")
    assert (body["doc_form"], body["total"], body["limit"], body["page"]) == (
        "text_model",
        7,
        20,
        1,
    )
    assert body["has_more"] is False
    assert [row["position"] for row in body["data"]] == [1, 2, 3, 4, 5, 6, 7]
    row = body["data"][5]
    assert set(row) == KEYS | OUR_KEYS
    expected: dict[str, Any] = {
        "document_id": birds[1],
        "content": "Größe.",
        "sign_content": "Größe.",
        "answer": None,
        "word_count": 6,
        "keywords": [],
        "hit_count": 0,
        "enabled": True,
        "disabled_at": None,
        "disabled_by": None,
        "updated_by": None,
        "stopped_at": None,
        "status": "completed",
        "error": None,
        "child_chunks": [],
        "attachments": [],
        "summary": None,
    }
    assert {key: row[key] for key in expected} == expected
    assert row["tokens"] > 0
    assert len(row["index_node_hash"]) == 64
    assert all(uuid.UUID(row[key]) for key in ("id", "index_node_id", "created_by"))
    times = [row[key] for key in ("created_at", "indexing_at", "completed_at")]
    assert times == sorted(times)
    assert all(isinstance(moment, int) for moment in [*times, row["updated_at"]])


def test_an_economy_segment_has_no_tokens(client: TestClient) -> None:
    dataset = add_dataset(client, fresh_name(), indexing_technique="economy")
    document_id = indexed_text(client, dataset, "a", "Owls hunt.")
    (row,) = segments(client, dataset, document_id)
    assert (row["tokens"], row["status"]) == (0, "completed")


@pytest.mark.parametrize(
    ("query", "positions"),
    [
        ("?keyword=owls", [1, 2]),
        ("?keyword=.", [1, 2, 3, 4, 5, 6, 7]),
        ("?keyword=%25", [4]),
        ("?keyword=_", [5]),
        ("?keyword=zebra", []),
        ("?keyword=%00", []),
        ("?status=completed", [1, 2, 3, 4, 5, 6, 7]),
        ("?status=waiting", []),
        ("?status=error&status=re_segment&status=paused", []),
        ("?status=error&status=completed", [1, 2, 3, 4, 5, 6, 7]),
        ("?status=completed&keyword=fish&user=me", [3]),
    ],
)
def test_segments_are_filtered_by_content_and_status(
    client: TestClient, birds: tuple[str, str], query: str, positions: list[int]
) -> None:
    body = listing(client, birds, query)
    assert [row["position"] for row in body["data"]] == positions
    assert body["total"] == len(positions)


@pytest.mark.parametrize(
    ("query", "positions", "limit", "has_more"),
    [
        ("?limit=3", [1, 2, 3], 3, True),
        ("?limit=3&page=3", [7], 3, False),
        ("?limit=7", [1, 2, 3, 4, 5, 6, 7], 7, True),  # as the contract has it
        ("?limit=500", [1, 2, 3, 4, 5, 6, 7], 500, False),
        ("?page=5", [], 20, False),
    ],
)
def test_pages_of_segments_echo_the_limit_as_the_contract_does(
    client: TestClient,
    birds: tuple[str, str],
    query: str,
    positions: list[int],
    limit: int,
    has_more: bool,
) -> None:
    body = listing(client, birds, query)
    assert [row["position"] for row in body["data"]] == positions
    assert (body["limit"], body["has_more"], body["total"]) == (limit, has_more, 7)


@pytest.mark.parametrize("query", ["?page=0", "?limit=x", "?limit=-3", f"?page={10**40}"])
def test_a_page_that_is_no_positive_integer_is_refused(
    client: TestClient, birds: tuple[str, str], query: str
) -> None:
    answer = client.get(f"/v1/datasets/{birds[0]}/documents/{birds[1]}/segments{query}")
    assert "integer" in refused(answer, 400, "invalid_param")


def test_a_waiting_document_has_no_segments(tmp_path_factory: pytest.TempPathFactory) -> None:
    with api(tmp_path_factory.mktemp("idle"), working=False) as idle:
        dataset = add_dataset(idle)
        document_id = add_text(idle, dataset, "a", "Owls hunt.")["document"]["id"]
        assert listing(idle, (dataset, document_id))["data"] == []


def test_hierarchical_segments_come_with_their_children(client: TestClient) -> None:
    dataset = add_dataset(client, fresh_name())
    text = "Owls hunt.\nOwls sleep.\n\nFish swim."
    document_id = indexed_text(
        client, dataset, "a", text, process_rule=PARENTS, doc_form="hierarchical_model"
    )
    body = listing(client, (dataset, document_id))
    assert body["doc_form"] == "hierarchical_model"
    first, second = body["data"]
    assert all(set(child) == CHILD_KEYS for child in first["child_chunks"])
    assert [c["content"] for c in first["child_chunks"]] == ["Owls hunt.", "Owls sleep."]
    assert [c["position"] for c in first["child_chunks"]] == [1, 2]
    assert {c["segment_id"] for c in first["child_chunks"]} == {first["id"]}
    assert {c["type"] for c in first["child_chunks"]} == {"automatic"}
    assert [c["word_count"] for c in second["child_chunks"]] == [10]


def test_a_new_version_shows_only_its_own_children(client: TestClient) -> None:
    dataset = add_dataset(client, fresh_name())
    text = "Owls hunt. Owls sleep.\n\nFish swim."
    indexed_text(client, dataset, "a", text, process_rule=PARENTS, doc_form="hierarchical_model")
    finer = {
        **PARENTS,
        "rules": {
            **PARENTS["rules"],
            "subchunk_segmentation": {"separator": ". ", "max_tokens": 200},
        },
    }
    created = add_text(client, dataset, "a", text, process_rule=finer)
    assert wait(client, dataset, created) == "completed"
    rows = segments(client, dataset, created["document"]["id"])
    assert [[c["content"] for c in row["child_chunks"]] for row in rows] == [
        ["Owls hunt", "Owls sleep."],
        ["Fish swim."],
    ]


def test_children_of_a_version_in_preparation_are_not_shown(client: TestClient) -> None:
    dataset = add_dataset(client, fresh_name())
    document_id = indexed_text(
        client, dataset, "a", "Owls hunt.", process_rule=PARENTS, doc_form="hierarchical_model"
    )
    with transaction(resources_of(client).sessions) as session:
        live = session.scalars(
            select(ChildChunk).where(ChildChunk.document_id == uuid.UUID(document_id))
        ).one()
        columns = {c.key: getattr(live, c.key) for c in ChildChunk.__table__.columns}
        staged = {"id": uuid.uuid4(), "content": "hunt", "live": False, "staged_version": 2}
        session.add(ChildChunk(**{**columns, **staged}))
    (row,) = segments(client, dataset, document_id)
    assert [child["content"] for child in row["child_chunks"]] == ["Owls hunt."]


def test_segments_of_unchanged_text_keep_their_ids_in_a_new_version(client: TestClient) -> None:
    dataset = add_dataset(client, fresh_name())
    indexed_text(client, dataset, "a", "Owls hunt.\nFish swim.", process_rule=LINES)
    (row,) = client.get(f"/v1/datasets/{dataset}/documents").json()["data"]
    before = {s["content"]: s["id"] for s in segments(client, dataset, row["id"])}
    created = add_text(client, dataset, "a", "New first line.\nFish swim.", process_rule=LINES)
    assert wait(client, dataset, created) == "completed"
    rows = segments(client, dataset, row["id"])
    assert [(s["position"], s["content"]) for s in rows] == [
        (1, "New first line."),
        (2, "Fish swim."),
    ]
    assert rows[1]["id"] == before["Fish swim."]
    assert rows[0]["id"] not in before.values()
    assert document(client, dataset, row["id"])["segment_count"] == 2
