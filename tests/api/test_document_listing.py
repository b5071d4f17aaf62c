"""Listings of documents: order, filters, pages; a page costs the same in a large dataset."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text, update
from starlette.testclient import TestClient

from kb.db import now, transaction
from kb.models import Document, IndexingStatus, Segment
from tests.kb.api import add_dataset, api, fresh_name, resources_of
from tests.kb.ingesting import ECONOMY, Lab, lines, open_lab
from tests.kb.server import add_text

NAMES = ("a.txt", "A.TXT", "100%.txt", "100.txt", "a_b", "a/b", "axb", "ü.txt")


@pytest.fixture(scope="module")
def client(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """One process without workers."""
    with api(tmp_path_factory.mktemp("listing"), working=False) as opened:
        yield opened


@pytest.fixture(scope="module")
def dataset(client: TestClient) -> str:
    """A dataset with these documents, in this order."""
    made = add_dataset(client, fresh_name(), **ECONOMY)
    for name in NAMES:
        add_text(client, made, name, "Some text.")
    return made


def listed(client: TestClient, dataset: str, **query: Any) -> Any:
    answer = client.get(f"/v1/datasets/{dataset}/documents", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def names(answer: Any) -> list[str]:
    return [row["name"] for row in answer["data"]]


@contextmanager
def statements(client: TestClient) -> Iterator[list[tuple[str, Any]]]:
    """What the database is asked meanwhile."""
    asked: list[tuple[str, Any]] = []

    def note(_c: Any, _cursor: Any, statement: str, values: Any, *_: object) -> None:
        asked.append((statement, values))

    engine = resources_of(client).sessions.engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        yield asked
    finally:
        event.remove(engine, "before_cursor_execute", note)


def test_pages_come_newest_first_and_hold_every_document_once(
    client: TestClient, dataset: str
) -> None:
    pages = [listed(client, dataset, page=page, limit=3) for page in range(1, 5)]
    assert [name for page in pages for name in names(page)] == list(reversed(NAMES))
    assert [page["total"] for page in pages] == [8] * 4
    assert [page["has_more"] for page in pages] == [True, True, False, False]


def test_documents_of_one_moment_come_by_their_position(client: TestClient) -> None:
    made = add_dataset(client, fresh_name(), **ECONOMY)
    for number in range(4):
        add_text(client, made, f"{number}", "Some text.")
    at = now()
    with transaction(resources_of(client).sessions) as session:
        mine = update(Document).where(Document.dataset_id == uuid.UUID(made))
        session.execute(mine.values(created_at=at))
        session.execute(mine.where(Document.position == 2).values(created_at=at + timedelta(1)))
    assert names(listed(client, made)) == ["1", "3", "2", "0"]


@pytest.mark.parametrize(
    ("keyword", "expected"),
    [
        ("%", ["100%.txt"]),
        ("_", ["a_b"]),
        ("/", ["a/b"]),
        ("0", ["100.txt", "100%.txt"]),
        ("ü", ["ü.txt"]),
        ("\\", []),
        ("", list(reversed(NAMES))),
    ],
)
def test_a_keyword_is_a_part_of_the_name_in_which_no_character_has_a_meaning(
    client: TestClient, dataset: str, keyword: str, expected: list[str]
) -> None:
    answer = listed(client, dataset, keyword=keyword)
    assert names(answer) == expected
    assert answer["total"] == len(expected)


@pytest.mark.parametrize("status", ["queuing", "indexing", "paused", "error", "available", None])
def test_a_page_takes_as_many_statements_for_one_document_as_for_many(
    client: TestClient, dataset: str, status: str | None
) -> None:
    counts = []
    for limit in (1, 8):
        query = {"limit": limit} | ({"status": status} if status else {})
        with statements(client) as asked:
            listed(client, dataset, **query)
        counts.append(len(asked))
    assert counts[0] == counts[1] <= 8


@pytest.mark.sqlite_only
@pytest.mark.parametrize("query", [{}, {"keyword": "a"}, {"status": "queuing"}, {"page": 2}])
def test_a_page_is_found_in_an_index_and_counted_there(
    client: TestClient, dataset: str, query: dict[str, Any]
) -> None:
    with statements(client) as asked:
        listed(client, dataset, limit=3, **query)
    with resources_of(client).sessions.engine.connect() as connection:
        plans = [
            [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", values)]
            for sql, values in asked
            if ("FROM documents" in sql and "count(" in sql) or ("LIMIT" in sql and "upload" in sql)
        ]
    assert len(plans) == 2, asked
    count, read = plans
    assert count[0].startswith("SEARCH documents USING COVERING INDEX"), count
    found = next(step for step in read if "documents " in step)
    assert found.startswith("SEARCH documents USING INDEX ix_documents_listing"), read
    hits = next(step for step in read if "segments" in step)
    assert hits.startswith("SEARCH segments USING COVERING INDEX ix_segments_hits"), read


def test_hits_are_those_of_live_segments(database: str, tmp_path: Path) -> None:
    with open_lab(tmp_path / "data") as lab:
        dataset = lab.dataset(**ECONOMY)
        document = lab.add(dataset, "guide", lines(3))
        lab.settle()
        with transaction(lab.resources.sessions) as session:
            for position in (1, 2):
                session.execute(
                    update(Segment).where(Segment.position == position).values(hit_count=position)
                )
        assert _hits(lab, dataset) == 3
        lab.add(dataset, "guide", "line number 1 speaks of line1")  # only that one stays
        lab.settle()
        assert _hits(lab, dataset) == 2
        with transaction(lab.resources.sessions) as session:
            session.execute(update(Segment).values(live=False))
            session.execute(text("SELECT 1"))
        assert _hits(lab, dataset) == 0
        assert lab.document(document).indexing_status is IndexingStatus.COMPLETED


def _hits(lab: Lab, dataset: str) -> int:
    (row,) = listed(lab.client, dataset)["data"]
    return int(row["hit_count"])
