"""Turns: no dataset's documents hold up another's, and a queue of ten thousand is no slower."""

from __future__ import annotations

import random
import statistics
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import insert, select, text, update
from sqlalchemy.orm import Session

from kb.db import Sessions, now, reading, transaction
from kb.ingestion.claims import Claim, claim_next, waiting_documents
from kb.models import Dataset, Document, DocumentVersion, IndexingStatus, UploadFile, Workspace
from kb.ports import Queue
from kb.resources import Resources

LEASE_S = 60.0


class Shelf:
    """Datasets with waiting documents; the rows that claims look at and no others."""

    def __init__(self, resources: Resources) -> None:
        self.sessions: Sessions = resources.sessions
        self._workspace = resources.workspace_id
        self._owner = resources.owner_id
        self._at = now() - timedelta(hours=1)
        self.names: dict[uuid.UUID, str] = {}

    def workspace(self, name: str) -> uuid.UUID:
        with transaction(self.sessions) as session:
            row = Workspace(name=name)
            session.add(row)
        return row.id

    def add(
        self,
        name: str,
        documents: int,
        *,
        queue: Queue = Queue.BULK,
        workspace: uuid.UUID | None = None,
        **row: Any,
    ) -> uuid.UUID:
        """A dataset with so many waiting documents, queued after all that there are."""
        with transaction(self.sessions) as session:
            return self._add(session, name, documents, queue, workspace or self._workspace, row)

    def add_many(self, datasets: int, documents: int) -> None:
        """So many datasets with so many waiting documents each."""
        with transaction(self.sessions) as session:
            for number in range(datasets):
                self._add(session, f"d{number}", documents, Queue.BULK, self._workspace, {})

    def _add(
        self,
        session: Session,
        name: str,
        documents: int,
        queue: Queue,
        workspace: uuid.UUID,
        row: dict[str, Any],
    ) -> uuid.UUID:
        dataset_id, file_id = uuid.uuid4(), uuid.uuid4()
        self.names[dataset_id] = name
        rows = [
            {
                "id": uuid.uuid4(),
                "dataset_id": dataset_id,
                "position": number,
                "name": f"{name} {number}",
                "batch": "1",
                "upload_file_id": file_id,
                "created_by": self._owner,
                "pending_version": 1,
                "indexing_status": IndexingStatus.WAITING,
                "queue": queue,
                "queued_at": self._later(),
                **row,
            }
            for number in range(1, documents + 1)
        ]
        session.add(
            Dataset(id=dataset_id, workspace_id=workspace, name=name, created_by=self._owner)
        )
        session.add(
            UploadFile(
                id=file_id,
                workspace_id=workspace,
                name="f",
                size_bytes=1,
                extension="txt",
                sha256="0" * 64,
                blob_key=f"uploads/{file_id}",
                created_by=self._owner,
            )
        )
        session.flush()
        session.execute(insert(Document), rows)
        session.execute(
            insert(DocumentVersion),
            [{"document_id": r["id"], "number": 1, "upload_file_id": file_id} for r in rows],
        )
        return dataset_id

    def _later(self) -> Any:
        self._at += timedelta(milliseconds=1)
        return self._at

    def claim(self, owner: str = "w", queues: Sequence[Queue] = (Queue.BULK,)) -> Claim | None:
        return claim_next(self.sessions, owner, lease_s=LEASE_S, queues=queues)

    def finish(self, claim: Claim) -> None:
        with transaction(self.sessions) as session:
            session.execute(
                update(Document)
                .where(Document.id == claim.document_id)
                .values(
                    indexing_status=IndexingStatus.COMPLETED,
                    pending_version=None,
                    version=1,
                    lease_owner=None,
                    lease_expires_at=None,
                    attempts=0,
                )
            )

    def served(self, count: int, owner: str = "w") -> str:
        """The names of the datasets that one worker serves, in order."""
        names = []
        for _ in range(count):
            claim = self.claim(owner)
            if claim is None:
                break
            names.append(self.names[claim.dataset_id])
            self.finish(claim)
        return "".join(names)


@pytest.fixture
def shelf(resources: Resources) -> Shelf:
    return Shelf(resources)


def test_one_worker_serves_datasets_in_turns(shelf: Shelf) -> None:
    shelf.add("a", 20)
    shelf.add("b", 3)
    shelf.add("c", 2)
    assert shelf.served(9) == "abcabcaba"


def test_a_dataset_that_arrives_late_is_served_next(shelf: Shelf) -> None:
    shelf.add("a", 20)
    assert shelf.served(5) == "aaaaa"
    shelf.add("b", 2)
    assert shelf.served(5) == "babaa"


def test_within_a_dataset_the_oldest_comes_first(shelf: Shelf) -> None:
    shelf.add("a", 5)
    positions = []
    while claim := shelf.claim():
        with reading(shelf.sessions) as session:
            positions.append(session.get_one(Document, claim.document_id).position)
        shelf.finish(claim)
    assert positions == [1, 2, 3, 4, 5]


def test_workers_are_shared_evenly_whatever_a_document_takes(shelf: Shelf) -> None:
    shelf.add("a", 20)
    shelf.add("b", 20)
    shelf.add("c", 20)
    first = [shelf.claim(f"w{n}") for n in range(6)]
    assert Counter(shelf.names[c.dataset_id] for c in first if c) == {"a": 2, "b": 2, "c": 2}
    done = next(c for c in first if c and shelf.names[c.dataset_id] == "b")
    shelf.finish(done)
    again = shelf.claim("w9")
    assert again is not None
    assert shelf.names[again.dataset_id] == "b", "it has the fewest in work"


def test_a_workspace_with_many_datasets_gets_no_more_than_one_with_few(shelf: Shelf) -> None:
    crowded, small = shelf.workspace("crowded"), shelf.workspace("small")
    for name in "abcd":
        shelf.add(name, 5, workspace=crowded)
    shelf.add("z", 5, workspace=small)
    served = shelf.served(10)
    assert served.count("z") == 5, served
    assert Counter(served) == {"z": 5, "a": 2, "b": 1, "c": 1, "d": 1}, served


def test_a_worker_takes_from_its_queues_only(shelf: Shelf) -> None:
    shelf.add("a", 1, queue=Queue.BULK)
    shelf.add("b", 1, queue=Queue.INTERACTIVE)
    taken = shelf.claim("w", (Queue.INTERACTIVE,))
    assert taken is not None
    assert shelf.names[taken.dataset_id] == "b"
    assert shelf.claim("w", (Queue.INTERACTIVE,)) is None
    other = shelf.claim("v", (Queue.INTERACTIVE, Queue.BULK))
    assert other is not None
    assert shelf.names[other.dataset_id] == "a"


@pytest.mark.parametrize(
    "state",
    [
        {"is_paused": True},
        {"next_attempt_at": now() + timedelta(hours=1)},
        {"lease_owner": "other", "lease_expires_at": now() + timedelta(hours=1)},
        {"indexing_status": IndexingStatus.ERROR},
        {"indexing_status": IndexingStatus.COMPLETED},
        {"pending_version": None},
    ],
    ids=lambda state: "-".join(state),
)
def test_documents_that_nobody_may_take_hold_nobody_up(shelf: Shelf, state: dict[str, Any]) -> None:
    shelf.add("a", 3, **state)
    shelf.add("b", 2)
    assert shelf.served(9) == "bb"
    with reading(shelf.sessions) as session:
        assert waiting_documents(session, Queue.BULK, 10) == []


def test_a_lease_that_ran_out_is_anybodys_turn(shelf: Shelf) -> None:
    shelf.add("a", 1, lease_owner="dead", lease_expires_at=now() - timedelta(seconds=1))
    with reading(shelf.sessions) as session:
        assert len(waiting_documents(session, Queue.BULK, 10)) == 1
    assert shelf.served(2) == "a"


def test_a_document_that_was_there_at_crashes_waits_for_the_others(shelf: Shelf) -> None:
    shelf.add("a", 2, attempts=2, indexing_status=IndexingStatus.PARSING)
    shelf.add("b", 3)
    assert shelf.served(5) == "bbbaa"


def test_no_document_is_taken_twice_and_none_is_left(shelf: Shelf) -> None:
    for name in "abcde":
        shelf.add(name, 12)

    def work(owner: str) -> list[uuid.UUID]:
        mine = []
        while claim := shelf.claim(owner):
            mine.append(claim.document_id)
            time.sleep(random.uniform(0, 0.002))
            shelf.finish(claim)
        return mine

    with ThreadPoolExecutor(8) as pool:
        taken = [i for part in pool.map(work, [f"w{n}" for n in range(8)]) for i in part]
    assert len(taken) == len(set(taken)) == 60


def timed(work: Callable[[], Any], count: int) -> list[float]:
    seconds = []
    for _ in range(count):
        started = time.perf_counter()
        assert work() is not None
        seconds.append(time.perf_counter() - started)
    return seconds


@pytest.mark.parametrize(("datasets", "documents"), [(1, 10_000), (500, 20)])
def test_a_claim_takes_milliseconds_with_ten_thousand_documents_queued(
    shelf: Shelf, database: str, datasets: int, documents: int
) -> None:
    shelf.add_many(datasets, documents)
    if database == "postgresql":
        with transaction(shelf.sessions) as session:
            session.execute(text("ANALYZE"))
    seconds = timed(shelf.claim, 20)
    median = statistics.median(seconds)
    print(f"{database} {datasets}x{documents}: median {median * 1000:.1f} ms")
    # The bound is 100 ms on a machine without other load; this one may have others.
    assert median < 0.3
    with reading(shelf.sessions) as session:
        in_work = session.scalars(select(Document.id).where(Document.lease_owner == "w")).all()
    assert len(in_work) == 20
