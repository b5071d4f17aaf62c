"""What tests of edits by hand share: a lab with a document in it, the routes of its segments."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from kb.models import Dataset, Document
from kb.segments import Place
from tests.kb.ingesting import PARENTS, Lab, open_lab

BIRDS = "alpha owls hunt\nbravo fish swim\ncharlie cats sleep"
"""Three segments of a flat document."""
TREES = "oak is tall\noak is old\n\nelm is green\nelm is wet"
"""Two parents with two children each."""


class Book:
    """One document of one dataset, and its routes."""

    def __init__(self, lab: Lab, text: str = BIRDS, **body: Any) -> None:
        self.lab = lab
        technique = body.pop("technique", "high_quality")
        self.dataset = lab.dataset("books", indexing_technique=technique)
        self.body = body
        self.id = self.upload(text, settle=True)

    def upload(self, text: str, *, settle: bool = False, **body: Any) -> uuid.UUID:
        """Replace the document's text; its id."""
        added = self.lab.add(self.dataset, "book", text, **{**self.body, **body})
        if settle:
            self.lab.settle()
            assert self.lab.document(added).indexing_status == "completed"
        return added

    def call(self, method: str, path: str = "", status: int = 200, json: Any = None) -> Any:
        """A route below the document's segments; its answer."""
        path = f"/v1/datasets/{self.dataset}/documents/{self.id}/segments{path}"
        answer = self.lab.client.request(method, path, json=json)
        assert answer.status_code == status, answer.text
        return answer.json() if answer.content else None

    def place(self) -> Place:
        """The document as the service functions take it."""

        def find(session: Session) -> tuple[Dataset, Document]:
            dataset = session.get_one(Dataset, uuid.UUID(self.dataset))
            return dataset, session.get_one(Document, self.id)

        return Place(self.lab.resources, find)

    def rows(self) -> list[dict[str, Any]]:
        return list(self.call("GET", "?limit=100")["data"])

    def texts(self) -> list[str]:
        return [row["content"] for row in self.rows()]

    def segment(self, content: str) -> str:
        """The id of the segment with this text."""
        return str(next(row["id"] for row in self.rows() if row["content"] == content))

    def children(self, content: str) -> dict[str, str]:
        """The child chunks of the segment with this text: text -> id, in order."""
        listed = self.call("GET", f"/{self.segment(content)}/child_chunks?limit=100")
        return {row["content"]: row["id"] for row in listed["data"]}

    def add(self, *items: Any, status: int = 200) -> Any:
        wanted = [item if isinstance(item, dict) else {"content": item} for item in items]
        return self.call("POST", "", status, {"segments": wanted})

    def edit(self, old: str, status: int = 200, **change: Any) -> Any:
        """Change the segment with this text."""
        return self.call("POST", f"/{self.segment(old)}", status, {"segment": change})

    def delete(self, content: str) -> None:
        self.call("DELETE", f"/{self.segment(content)}", 204)

    def found(self, query: str) -> list[str]:
        """Texts of segments that hold a word of the query, best first."""
        return [hit["segment"]["content"] for hit in self.hits(query)]

    def hits(self, query: str) -> list[dict[str, Any]]:
        body = {
            "query": query,
            "retrieval_model": {"search_method": "full_text_search", "top_k": 20},
        }
        answer = self.lab.client.post(f"/v1/datasets/{self.dataset}/retrieve", json=body)
        assert answer.status_code == 200, answer.text
        return list(answer.json()["records"])

    def document(self) -> dict[str, Any]:
        answer = self.lab.client.get(f"/v1/datasets/{self.dataset}/documents/{self.id}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def overlays(self, state: str = "") -> list[tuple[str, str]]:
        """Hand edits as (kind, state)."""
        return [(row["kind"], row["state"]) for row in self.overlay_rows(state)]

    def overlay_rows(self, state: str = "") -> list[dict[str, Any]]:
        path = f"/v1/datasets/{self.dataset}/documents/{self.id}/overlays?limit=100&state={state}"
        answer = self.lab.client.get(path)
        assert answer.status_code == 200, answer.text
        return list(answer.json()["data"])

    def settle_conflict(self, overlay: str, status: int = 200, **target: Any) -> Any:
        """Apply a hand edit to a segment, or dismiss it when none is named."""
        path = f"/v1/datasets/{self.dataset}/documents/{self.id}/overlays/{overlay}"
        if target:
            answer = self.lab.client.post(f"{path}/apply", json=target)
        else:
            answer = self.lab.client.delete(path)
        assert answer.status_code == status, answer.text
        return answer.json() if answer.content else None

    def counts(self) -> tuple[int, int, int]:
        """Words, tokens and segments that the document says it has."""
        answer = self.lab.client.get(f"/v1/datasets/{self.dataset}/documents").json()
        row = next(row for row in answer["data"] if row["id"] == str(self.id))
        return row["word_count"], row["tokens"], self.document()["segment_count"]

    def sound(self) -> None:
        """Once all jobs are done, the index holds what SQL says, and the doctor finds nothing."""
        self.lab.settle()
        self.lab.later()
        self.lab.assert_index_is_what_sql_says(self.dataset)
        report = self.lab.client.post("/v1/doctor?deep=true").json()
        assert report["healthy"], report


@contextmanager
def book(path: Path, text: str = BIRDS, **body: Any) -> Iterator[Book]:
    """A lab with one document."""
    with open_lab(path / "lab") as lab:
        yield Book(lab, text, **body)


__all__ = ["BIRDS", "PARENTS", "TREES", "Book", "book"]
