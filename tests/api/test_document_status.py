"""Batch status of documents: enable, disable, archive, un_archive; in force at once."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import update
from starlette.testclient import TestClient

from kb.db import transaction
from kb.models import Document, IndexingStatus
from tests.kb.api import (
    NOWHERE,
    add_dataset,
    add_text,
    api,
    document,
    fresh_name,
    indexed_text,
    refused,
    resources_of,
    wait,
)
from tests.kb.server import search


@pytest.fixture(scope="module")
def client(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """One process with workers for all tests of this module."""
    with api(tmp_path_factory.mktemp("status")) as opened:
        yield opened


@pytest.fixture
def dataset(client: TestClient) -> str:
    """A fresh dataset."""
    return add_dataset(client, fresh_name())


def act(client: TestClient, dataset: str, action: str, *ids: str) -> Any:
    path = f"/v1/datasets/{dataset}/documents/status/{action}"
    return client.patch(path, json={"document_ids": list(ids)})


def done(answer: Any) -> None:
    assert (answer.status_code, answer.json()) == (200, {"result": "success"}), answer.text


def answering(client: TestClient, dataset: str, query: str) -> set[str]:
    """Documents that a search of each method finds."""
    by_method = {
        method: {r["segment"]["document"]["id"] for r in search(client, dataset, query, **asked)}
        for method in ("semantic_search", "full_text_search", "hybrid_search")
        for asked in [{"search_method": method, "top_k": 100}]
    }
    assert len({frozenset(ids) for ids in by_method.values()}) == 1, by_method
    return by_method["hybrid_search"]


@pytest.mark.parametrize(
    ("out", "back", "shown"),
    [("disable", "enable", "disabled"), ("archive", "un_archive", "archived")],
)
def test_what_is_out_is_not_found_when_the_call_returns_and_found_again_when_it_is_back(
    client: TestClient, dataset: str, out: str, back: str, shown: str
) -> None:
    word = f"capybara{out}"
    ids = [indexed_text(client, dataset, fresh_name(word), f"The {word} {n}.") for n in range(2)]
    assert answering(client, dataset, word) == set(ids)
    done(act(client, dataset, out, ids[0]))
    assert answering(client, dataset, word) == {ids[1]}
    row = document(client, dataset, ids[0])
    assert row["display_status"] == shown
    if out == "disable":
        assert row["enabled"] is False
        assert isinstance(row["disabled_at"], int)
        uuid.UUID(row["disabled_by"])
    else:
        assert (row["archived"], row["enabled"]) == (True, True)
    listed = client.get(f"/v1/datasets/{dataset}/documents", params={"status": shown}).json()
    assert ids[0] in {d["id"] for d in listed["data"]}
    done(act(client, dataset, out, *ids))  # the first is out already
    assert answering(client, dataset, word) == set()
    done(act(client, dataset, back, *ids))
    assert answering(client, dataset, word) == set(ids)
    row = document(client, dataset, ids[0])
    assert (row["display_status"], row["disabled_at"], row["disabled_by"]) == (
        "available",
        None,
        None,
    )


def test_an_archived_document_is_not_deleted_until_it_is_back(
    client: TestClient, dataset: str
) -> None:
    document_id = indexed_text(client, dataset, fresh_name(), "Some text.")
    path = f"/v1/datasets/{dataset}/documents/{document_id}"
    done(act(client, dataset, "archive", document_id))
    refused(client.delete(path), 403, "archived_document_immutable")
    done(act(client, dataset, "un_archive", document_id))
    assert client.delete(path).status_code == 204


@pytest.mark.parametrize("ids", [[], [NOWHERE], ["no id", NOWHERE]])
def test_nothing_to_do_is_a_success(client: TestClient, dataset: str, ids: list[str]) -> None:
    done(act(client, dataset, "disable", *ids))


@pytest.mark.parametrize("ids", [[], [NOWHERE]])
def test_an_unknown_action_is_400_whatever_it_is_for(
    client: TestClient, dataset: str, ids: list[str]
) -> None:
    message = refused(act(client, dataset, "frozen", *ids), 400, "invalid_action")
    assert "enable, disable, archive, un_archive" in message


@pytest.mark.parametrize("body", [{}, {"document_ids": "one"}, {"document_ids": [1]}, []])
def test_ids_that_are_none_are_400(client: TestClient, dataset: str, body: Any) -> None:
    path = f"/v1/datasets/{dataset}/documents/status/enable"
    assert "document_ids" in refused(client.patch(path, json=body), 400, "invalid_param")


@pytest.mark.parametrize("action", ["disable", "archive"])
@pytest.mark.parametrize("status", ["waiting", "parsing", "indexing"])
def test_a_document_that_is_being_indexed_is_refused_and_so_is_the_whole_call(
    client: TestClient, dataset: str, action: str, status: str
) -> None:
    first = indexed_text(client, dataset, fresh_name(), "Some text.")
    busy = indexed_text(client, dataset, fresh_name(), "Some text.")
    mine = update(Document).where(Document.id == uuid.UUID(busy))
    sessions = resources_of(client).sessions
    with transaction(sessions) as session:
        session.execute(mine.values(indexing_status=IndexingStatus(status)))
    try:
        refused(act(client, dataset, action, first, busy), 400, "invalid_action")
    finally:
        with transaction(sessions) as session:
            session.execute(mine.values(indexing_status=IndexingStatus.COMPLETED))
    assert document(client, dataset, first)["display_status"] == "available", "none was changed"


def test_a_document_that_failed_is_disabled_only_when_an_older_version_answers(
    client: TestClient, dataset: str
) -> None:
    bad = {
        "process_rule": {
            "mode": "custom",
            "rules": {
                "pre_processing_rules": [],
                "segmentation": {"separator": "\n", "max_tokens": 49},
            },
        }
    }
    never = add_text(client, dataset, fresh_name(), "Some text.", **bad)
    assert wait(client, dataset, never) == "error"
    refused(act(client, dataset, "disable", never["document"]["id"]), 400, "invalid_action")
    name = fresh_name("wombat")
    kept = indexed_text(
        client, dataset, name, "The wombat digs.", process_rule={"mode": "automatic"}
    )
    assert wait(client, dataset, add_text(client, dataset, name, "Other.", **bad)) == "error"
    assert kept in answering(client, dataset, "wombat")
    done(act(client, dataset, "disable", kept))
    assert kept not in answering(client, dataset, "wombat")


def test_documents_of_another_dataset_are_passed_over(client: TestClient, dataset: str) -> None:
    elsewhere = indexed_text(client, add_dataset(client, fresh_name()), "guide", "Some text.")
    done(act(client, dataset, "disable", elsewhere))
