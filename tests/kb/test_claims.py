"""Leases: one worker per document, a dead one's work goes on, a late one changes nothing."""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from kb.db import now, transaction
from kb.ingestion.claims import Claim, LeaseLost, claim_document, claim_next, release, renew
from kb.models import Document, IndexingStatus, Workspace
from kb.runner import Runner
from tests.kb.ingesting import Killed, Lab, dies, lines, open_lab


@pytest.fixture
def lab(database: str, tmp_path: Path) -> Iterator[Lab]:
    with open_lab(tmp_path) as opened:
        yield opened


def at_once(work: Callable[[int], Any], threads: int) -> list[Any]:
    """Run `work(0) ... work(threads - 1)` so that all begin at the same moment."""
    barrier = threading.Barrier(threads)

    def start(number: int) -> Any:
        barrier.wait()
        return work(number)

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(start, range(threads)))


def test_of_workers_racing_for_one_document_exactly_one_gets_it(lab: Lab) -> None:
    dataset = lab.dataset()
    for n in range(10):
        document = lab.add(dataset, f"d{n}", "text")
        claims = at_once(
            lambda w, d=document: claim_document(  # type: ignore[misc]
                lab.resources.sessions, d, f"w{w}", lease_s=60
            ),
            6,
        )
        won = [c for c in claims if c is not None]
        assert len(won) == 1
        assert lab.document(document).lease_owner == won[0].owner
        assert lab.document(document).attempts == 1


def test_workers_that_take_what_comes_take_every_document_once(lab: Lab) -> None:
    dataset = lab.dataset()
    documents = [lab.add(dataset, f"d{n}", "text") for n in range(24)]

    def take_all(worker: int) -> list[uuid.UUID]:
        taken = []
        while claim := claim_next(lab.resources.sessions, f"w{worker}", lease_s=60):
            taken.append(claim.document_id)
        return taken

    taken = Counter(d for part in at_once(take_all, 6) for d in part)
    assert taken == Counter(documents)


def test_a_lease_that_ran_out_is_claimed_by_anybody_and_a_held_one_by_nobody(lab: Lab) -> None:
    document = lab.add(lab.dataset(), "d", "text")
    first = lab.claim("w1", lease_s=60)
    assert first is not None
    assert lab.claim("w2") is None
    expire(lab, document)
    second = lab.claim("w2")
    assert second is not None
    assert (second.document_id, second.owner, second.attempt) == (document, "w2", 2)
    assert [r.status for r in lab.runs(document)] == ["lost", "running"]


def test_only_leases_of_what_is_in_work_are_renewed(lab: Lab) -> None:
    dataset = lab.dataset()
    a, b = lab.add(dataset, "a", "text"), lab.add(dataset, "b", "text")
    first, second = lab.claim("w1"), lab.claim("w1")
    assert first is not None
    assert second is not None
    expire(lab, a)
    expire(lab, b)
    renew(lab.resources.sessions, [first], lease_s=60)
    again = lab.claim("w2")
    assert again is not None
    assert again.document_id == second.document_id  # whose worker went on to something else
    assert lab.claim("w2") is None


def test_a_worker_that_lost_its_lease_changes_nothing(lab: Lab) -> None:
    dataset = lab.dataset()
    document = lab.add(dataset, "d", lines(6))
    late = lab.claim("late")
    assert late is not None
    expire(lab, document)
    lab.ingest(lab.claim("w2"))
    before, points = lab.document(document), lab.points(dataset)
    assert before.indexing_status is IndexingStatus.COMPLETED
    embedded = len(lab.embedder.texts)

    lab.ingest(late)
    with transaction(lab.resources.sessions) as session, pytest.raises(LeaseLost):
        late.move(session, IndexingStatus.ERROR, error="never seen")
    with transaction(lab.resources.sessions) as session:
        release(session, late)
    renew(lab.resources.sessions, [late], lease_s=60)

    after = lab.document(document)
    columns = Document.__table__.columns.keys()
    assert {c: getattr(after, c) for c in columns} == {c: getattr(before, c) for c in columns}
    assert lab.points(dataset) == points
    assert len(lab.embedder.texts) == embedded
    lab.jobs()
    lab.assert_index_is_what_sql_says(dataset)


def test_a_worker_overtaken_while_it_embeds_leaves_one_copy_of_everything(lab: Lab) -> None:
    dataset = lab.dataset()
    document = lab.add(dataset, "d", lines(10))
    late = lab.claim("late")

    def overtaken(_points: object) -> None:
        lab.index.before_upsert = lambda points: None
        expire(lab, document)
        lab.ingest(lab.claim("w2"))

    lab.index.before_upsert = overtaken
    lab.ingest(late)
    assert lab.document(document).indexing_status is IndexingStatus.COMPLETED
    assert [r.status for r in lab.runs(document)] == ["lost", "succeeded"] or [
        r.status for r in lab.runs(document)
    ] == ["stopped", "succeeded"]
    lab.jobs()
    lab.assert_index_is_what_sql_says(dataset)
    assert len(set(lab.embedder.texts)) == 10


@pytest.mark.parametrize("whole_dataset", [True, False])
def test_points_written_after_the_document_was_deleted_are_taken_back(
    lab: Lab, whole_dataset: bool
) -> None:
    dataset = lab.dataset()
    document = lab.add(dataset, "d", lines(3))
    late = lab.claim("late")
    assert late is not None

    def deleted(_points: object) -> None:
        lab.index.before_upsert = lambda points: None
        if whole_dataset:
            lab.delete(dataset)
        else:
            # A delete of a document in work is refused, so a client comes in between two leases.
            with transaction(lab.resources.sessions) as session:
                release(session, late)
            lab.delete(dataset, document)
        lab.jobs()

    lab.index.before_upsert = deleted
    lab.ingest(late)
    assert lab.points(dataset)  # they came after the job that deletes the document's points
    lab.jobs()
    assert lab.points(dataset) == {}
    assert list(lab.resources.blobs.keys()) == []


def test_a_text_staged_too_late_leaves_no_file(lab: Lab) -> None:
    dataset = lab.dataset()
    lab.add(dataset, "d", lines(3))
    late = lab.claim("late")
    count = lab.embedder.count_tokens

    def deleted(texts: Any) -> list[int]:
        lab.delete(dataset)
        lab.jobs()
        return count(texts)

    lab.embedder.count_tokens = deleted  # type: ignore[method-assign]
    lab.ingest(late)
    lab.jobs()
    assert list(lab.resources.blobs.keys()) == []


def test_a_document_handed_back_is_as_if_it_had_not_been_claimed(lab: Lab) -> None:
    document = lab.add(lab.dataset(), "d", lines(6))
    lab.stop.set()
    lab.ingest(lab.claim())
    row = lab.document(document)
    assert (row.indexing_status, row.attempts, row.lease_owner) == ("waiting", 0, None)
    assert [r.status for r in lab.runs(document)] == ["stopped"]
    lab.stop.clear()
    lab.work()
    assert lab.document(document).indexing_status is IndexingStatus.COMPLETED


def test_documents_come_in_queue_order_and_those_that_were_tried_come_last(lab: Lab) -> None:
    dataset = lab.dataset()
    a, b, c = (lab.add(dataset, name, "text") for name in "abc")
    first = lab.claim()
    assert first is not None
    assert first.document_id == a
    lab.restart()  # the process died while it worked on a
    order = []
    while claim := lab.claim():
        order.append(claim.document_id)
    assert order == [b, c, a]


def test_at_the_start_every_lease_is_freed_and_work_goes_on_at_once(lab: Lab) -> None:
    dataset = lab.dataset()
    documents = [lab.add(dataset, f"d{n}", lines(5)) for n in range(3)]
    lab.index.before_upsert = dies
    with pytest.raises(Killed):
        lab.work()
    lab.index.before_upsert = lambda points: None
    runner = Runner(lab.resources)
    runner.start()
    try:
        wait_until(lambda: all(lab.document(d).pending_version is None for d in documents))
    finally:
        assert runner.stop(timeout_s=20)
    lab.assert_index_is_what_sql_says(dataset)


def test_what_may_have_killed_the_process_is_worked_on_alone(lab: Lab) -> None:
    dataset = lab.dataset()
    a, b = lab.add(dataset, "a", "text"), lab.add(dataset, "b", "text")
    team = ["w1", "w2"]

    def claim(owner: str) -> Claim | None:
        return claim_next(lab.resources.sessions, owner, lease_s=60, colleagues=team)

    for _ in range(2):  # both were in work at two crashes: one of them may be the cause
        assert claim("w1") is not None
        assert claim("w2") is not None
        lab.restart()
    fresh = lab.add(dataset, "fresh", "text")
    harmless = claim("w1")
    assert harmless is not None
    assert harmless.document_id == fresh
    assert claim("w2") is None  # no suspect beside it
    lab.ingest(harmless)
    suspect = claim("w1")
    assert suspect is not None
    assert suspect.document_id == a
    lab.add(dataset, "later", "text")
    assert claim("w2") is None  # nothing beside a suspect
    assert claim_next(lab.resources.sessions, "elsewhere", lease_s=60) is not None
    lab.ingest(suspect)
    lab.settle()
    assert lab.document(b).indexing_status is IndexingStatus.COMPLETED


def test_a_stop_that_cannot_wait_hands_the_document_back_and_blames_nothing_on_it(
    lab: Lab,
) -> None:
    dataset = lab.dataset()
    document = lab.add(dataset, "d", lines(3))
    begun, go_on = threading.Event(), threading.Event()

    def hold(_texts: object) -> None:
        begun.set()
        assert go_on.wait(30)

    lab.embedder.before = hold
    runner = Runner(lab.resources)
    runner.start()
    assert begun.wait(30)
    assert not runner.stop(timeout_s=0.05)
    row = lab.document(document)
    assert (row.indexing_status, row.attempts, row.lease_owner) == ("waiting", 0, None)
    go_on.set()
    assert runner.stop(timeout_s=30)
    lab.embedder.before = lambda texts: None
    lab.settle()
    assert lab.document(document).indexing_status is IndexingStatus.COMPLETED
    lab.assert_index_is_what_sql_says(dataset)


@pytest.mark.usefixtures("database")
def test_a_worker_survives_a_panic_of_a_native_library_and_its_document_comes_again(
    tmp_path: Path,
) -> None:
    with open_lab(tmp_path, lease_s=0.3, poll_s=0.05) as lab:
        dataset = lab.dataset()
        document = lab.add(dataset, "d", lines(3))
        calls: list[int] = []

        def panic_once(_points: object) -> None:
            calls.append(1)
            if len(calls) == 1:
                raise Killed

        lab.index.before_upsert = panic_once
        runner = Runner(lab.resources)
        runner.start()
        try:
            wait_until(lambda: lab.document(document).pending_version is None)
        finally:
            assert runner.stop(timeout_s=20)
        assert lab.document(document).indexing_status is IndexingStatus.COMPLETED


def test_concurrent_writers_wait_for_each_other(lab: Lab) -> None:
    sessions = lab.resources.sessions
    with transaction(sessions) as session:
        workspace = session.scalars(select(Workspace.id)).one()
        session.execute(update(Workspace).values(name="0"))

    def add_one_50_times(_worker: int) -> None:
        for _ in range(50):
            with transaction(sessions) as session:
                row = session.get_one(Workspace, workspace, with_for_update=True)
                row.name = str(int(row.name) + 1)

    at_once(add_one_50_times, 8)  # "database is locked" would come out of here
    with transaction(sessions) as session:
        assert session.get_one(Workspace, workspace).name == "400"


def expire(lab: Lab, document: uuid.UUID) -> None:
    """Let the lease on a document run out."""
    with transaction(lab.resources.sessions) as session:
        session.execute(
            update(Document)
            .where(Document.id == document)
            .values(lease_expires_at=now() - timedelta(seconds=1))
        )


def wait_until(done: Callable[[], bool], limit_s: float = 60.0) -> None:
    """Poll; fails when it takes too long."""
    pause = threading.Event()
    for _ in range(int(limit_s / 0.02)):
        if done():
            return
        pause.wait(0.02)
    raise AssertionError(f"not within {limit_s} s")
