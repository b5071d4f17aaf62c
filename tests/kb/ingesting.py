"""An embedded process without threads: every claim, run and job is a call of the test.

The vendors (model and index engine) are doubles that count, fail or die on demand; the index
double hands everything on to the real engine. A process that dies is `Killed`: nothing between
the engine and the test catches it, so database, index and files are left as a kill leaves them.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import func, select, update
from starlette.testclient import TestClient

from kb.api.app import create_app
from kb.db import now, reading, transaction
from kb.ingestion.claims import Claim, claim_next, release_all
from kb.ingestion.run import ingest
from kb.jobs import release_jobs
from kb.maintenance import run_next_job
from kb.metadata.facts import facts_of
from kb.models import (
    ChildChunk,
    Dataset,
    Document,
    DocumentVersion,
    Job,
    PipelineRun,
    Segment,
)
from kb.ports import Point, PointHead, SegmentIndex, Space
from kb.resources import Resources, space_of
from kb.settings import Database, Ingestion, Webhooks
from kb.wiring import open_resources
from pipelines.types import Vector, Vectors
from tests.kb.server import KEY, LINES, add_dataset, add_text, search, test_settings

ECONOMY = {"indexing_technique": "economy"}
PARENTS = {
    "doc_form": "hierarchical_model",
    "process_rule": {
        "mode": "hierarchical",
        "rules": {
            "pre_processing_rules": [],
            "segmentation": {"separator": "\n\n", "max_tokens": 500},
            "parent_mode": "paragraph",
            "subchunk_segmentation": {"separator": "\n", "max_tokens": 100},
        },
    },
}
"""Settings of a document whose paragraphs are parents and whose lines are children."""


class Killed(BaseException):
    """The process dies here."""


class WordsEmbedder:
    """A model whose vectors are counts of hashed words; it keeps what it was asked to embed.

    `before` is called with the texts of each call and may raise.
    """

    id = "words-16"
    dim = 16
    max_tokens = 256

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.before: Callable[[Sequence[str]], None] = lambda texts: None

    def embed_documents(self, texts: Sequence[str], *, urgent: bool = False) -> Vectors:
        self.before(texts)
        self.texts += texts
        return np.stack([self.embed_query(text) for text in texts])

    def embed_query(self, text: str) -> Vector:
        vector = np.full(self.dim, 0.01, dtype=np.float32)
        for word in text.split():
            vector[sha256(word.encode()).digest()[0] % self.dim] += 1
        return vector / np.linalg.norm(vector)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]

    def close(self) -> None:
        pass


class WatchedIndex:
    """The real index; `before_upsert` and `after_upsert` may look, fail, or let others in."""

    def __init__(self, inner: SegmentIndex) -> None:
        self._inner = inner
        self.before_upsert: Callable[[Sequence[Point]], None] = lambda points: None
        self.after_upsert: Callable[[Sequence[Point]], None] = lambda points: None
        self.upserts = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def upsert(self, space: Space, points: Sequence[Point]) -> None:
        self.before_upsert(points)
        self._inner.upsert(space, points)
        self.upserts += 1
        self.after_upsert(points)


@dataclass
class Lab:
    """One data directory, its API without workers, and what a test asks of it."""

    resources: Resources
    client: TestClient
    index: WatchedIndex
    embedder: WordsEmbedder
    stop: threading.Event = field(default_factory=threading.Event)

    # --- what clients do -----------------------------------------------------------------

    def dataset(self, name: str = "books", **body: Any) -> str:
        return add_dataset(self.client, name, **body)

    def add(self, dataset: str, name: str, text: str, **body: Any) -> uuid.UUID:
        """Upload a text, one segment per line unless told; the document's id."""
        created = add_text(self.client, dataset, name, text, **{"process_rule": LINES, **body})
        return uuid.UUID(created["document"]["id"])

    def found(self, dataset: str, query: str) -> list[str]:
        """The texts that a hybrid search gives."""
        return [r["segment"]["content"] for r in search(self.client, dataset, query)]

    def retry(self, dataset: str, document: uuid.UUID) -> None:
        answer = self.client.post(f"/v1/datasets/{dataset}/documents/{document}/retry")
        assert answer.status_code == 200, answer.text

    def delete(self, dataset: str, document: uuid.UUID | None = None) -> None:
        path = f"/v1/datasets/{dataset}" + (f"/documents/{document}" if document else "")
        answer = self.client.delete(path)
        assert answer.status_code == 204, answer.text

    # --- what workers do -----------------------------------------------------------------

    def claim(self, owner: str = "w1", *, lease_s: float = 60.0) -> Claim | None:
        return claim_next(self.resources.sessions, owner, lease_s=lease_s)

    def ingest(self, claim: Claim | None) -> None:
        assert claim is not None
        ingest(claim, self.resources, stopped=self.stop.is_set)

    def work(self, owner: str = "w1") -> int:
        """Ingest until nothing can be claimed; how many runs that took."""
        runs = 0
        while (claim := self.claim(owner)) is not None:
            self.ingest(claim)
            runs += 1
        return runs

    def jobs(self) -> int:
        """Do every job that is due; how many there were."""
        done = 0
        while run_next_job(self.resources, "upkeep"):
            done += 1
        return done

    def later(self) -> int:
        """Do every job, as if its time had come; how many there were."""
        with transaction(self.resources.sessions) as session:
            session.execute(update(Job).values(not_before=now() - timedelta(seconds=1)))
        return self.jobs()

    def settle(self) -> None:
        """Ingest and do jobs until nothing is left."""
        while self.work() + self.jobs():
            pass

    def restart(self) -> None:
        """What a process does first that alone owns the database."""
        release_all(self.resources.sessions)
        release_jobs(self.resources.sessions)

    # --- what is there -------------------------------------------------------------------

    def document(self, document: uuid.UUID) -> Document:
        with reading(self.resources.sessions) as session:
            return session.get_one(Document, document)

    def version(self, document: uuid.UUID, number: int) -> DocumentVersion:
        with reading(self.resources.sessions) as session:
            return session.scalars(
                select(DocumentVersion).where(
                    DocumentVersion.document_id == document, DocumentVersion.number == number
                )
            ).one()

    def runs(self, document: uuid.UUID) -> list[PipelineRun]:
        with reading(self.resources.sessions) as session:
            return list(
                session.scalars(
                    select(PipelineRun)
                    .where(PipelineRun.document_id == document)
                    .order_by(PipelineRun.started_at)
                )
            )

    def segments(self, document: uuid.UUID) -> list[Segment]:
        """Live ones, in order."""
        with reading(self.resources.sessions) as session:
            return list(
                session.scalars(
                    select(Segment)
                    .where(Segment.document_id == document, Segment.live)
                    .order_by(Segment.position)
                )
            )

    def waiting_jobs(self) -> list[Job]:
        with reading(self.resources.sessions) as session:
            return list(session.scalars(select(Job).order_by(Job.created_at)))

    def points(self, dataset: str) -> dict[uuid.UUID, PointHead]:
        with reading(self.resources.sessions) as session:
            row = session.get(Dataset, uuid.UUID(dataset))
        embedder = self.embedder
        space = (space_of(row) if row else None) or Space(embedder.id, embedder.dim)
        self.resources.index.ensure_space(space)
        return {h.id: h for h in self.resources.index.scan(space, uuid.UUID(dataset))}

    def assert_index_is_what_sql_says(self, dataset: str) -> None:
        """Every live leaf has its point, with its text, parent and metadata; no other is there."""
        with reading(self.resources.sessions) as session:
            wanted = {
                row[0]: (row[1], row[2])
                for statement in (
                    select(Segment.id, Segment.id, Segment.text_hash).where(
                        Segment.has_children.is_(False), Segment.live
                    ),
                    select(ChildChunk.id, ChildChunk.segment_id, ChildChunk.text_hash).where(
                        ChildChunk.live
                    ),
                )
                for row in session.execute(
                    statement.where(
                        statement.selected_columns[0].table.c.dataset_id == uuid.UUID(dataset)
                    )
                )
            }
            unfinished = session.scalar(
                select(func.count()).select_from(Segment).where(Segment.live.is_(False))
            )
            points = self.points(dataset)
            facts = facts_of(session, {head.document_id for head in points.values()})
        assert unfinished == 0
        assert {i: h.facts for i, h in points.items()} == {
            i: facts[h.document_id] for i, h in points.items()
        }
        found = {i: (h.segment_id, h.text_hash) for i, h in points.items()}
        assert found == wanted


@contextmanager
def open_lab(
    data_dir: Path,
    *,
    database: Database | None = None,
    changes: dict[str, Any] | None = None,
    webhooks: Webhooks | None = None,
    **ingestion: Any,
) -> Iterator[Lab]:
    """A lab on a data directory, which may have been used before.

    Args:
        database, webhooks: how they are used.
        changes: other settings than the defaults.
        ingestion: settings; batches of 4 segments, no waits before a retry or a removal unless
            told.
    """
    defaults = {"batch_segments": 4, "retry_base_s": 0.0, "keep_replaced_s": 0.0}
    settings = test_settings(
        data_dir,
        ingestion=Ingestion(**{**defaults, **ingestion}),
        database=database or Database(),
        **(changes or {}),
        webhooks=webhooks or Webhooks(),
    )
    embedder = WordsEmbedder()
    with open_resources(settings) as opened:
        index = WatchedIndex(opened.index)
        resources = replace(
            opened,
            index=index,  # type: ignore[arg-type]
            embedders=lambda name: embedder,
            default_embedder=embedder,
        )
        app = create_app(resources, process_key=KEY)
        with TestClient(app, headers={"Authorization": f"Bearer {KEY}"}) as client:
            yield Lab(resources, client, index, embedder)


def lines(count: int, word: str = "line") -> str:
    """A text of so many different lines."""
    return "\n".join(f"{word} number {n} speaks of {word}{n}" for n in range(count))


def dies(*_: object) -> None:
    """The process dies when this is called."""
    raise Killed


def fails(times: int, error: Callable[[], Exception]) -> Callable[[object], None]:
    """Raises the first `times` that it is called."""
    left = [times]

    def fail(_: object) -> None:
        if left[0] > 0:
            left[0] -= 1
            raise error()

    return fail
