"""The outbox: deletes and rebuilds happen at least once, whatever dies or fails in between."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select, update

from kb.crew import Crew
from kb.db import now, reading, transaction
from kb.ingestion.sink import DocumentSink
from kb.jobs import claim_job, enqueue, release_jobs, retry_wait_s
from kb.maintenance import rebuild_dataset, run_next_job, write_points
from kb.models import Dataset, Job, JobKind, Segment
from kb.resources import space_of
from kb.retrieval.analysis import terms_of_query
from tests.kb.ingesting import Killed, Lab, dies, lines, open_lab
from tests.kb.server import add_file


@pytest.fixture
def lab(database: str, tmp_path: Path) -> Iterator[Lab]:
    with open_lab(tmp_path) as opened:
        yield opened


# --- at least once ---------------------------------------------------------------------------


def test_a_job_exists_exactly_when_its_transaction_commits(lab: Lab) -> None:
    def write_down_and_die() -> None:
        with transaction(lab.resources.sessions) as session:
            enqueue(session, JobKind.DELETE_BLOBS, keys=["uploads/x"])
            raise Killed

    with pytest.raises(Killed):
        write_down_and_die()
    assert lab.waiting_jobs() == []
    with transaction(lab.resources.sessions) as session:
        enqueue(session, JobKind.DELETE_BLOBS, keys=["uploads/x"])
    assert [j.payload for j in lab.waiting_jobs()] == [{"keys": ["uploads/x"]}]
    assert lab.jobs() == 1
    assert lab.waiting_jobs() == []


def test_a_job_of_a_process_that_died_is_done_again(lab: Lab) -> None:
    dataset = lab.dataset()
    document = lab.add(dataset, "d", lines(3))
    lab.settle()
    lab.delete(dataset, document)
    flush = lab.index.flush

    def dies_after_the_delete(*_: object) -> None:
        raise Killed

    lab.index.flush = dies_after_the_delete  # type: ignore[attr-defined]
    with pytest.raises(Killed):
        lab.jobs()
    lab.index.flush = flush  # type: ignore[attr-defined]
    lab.jobs()
    assert [j.kind for j in lab.waiting_jobs()] == ["delete_document"]  # still leased
    lab.restart()
    assert lab.jobs() == 1
    assert lab.waiting_jobs() == []
    assert lab.points(dataset) == {}


def test_a_job_that_fails_is_postponed_with_its_reason_and_holds_up_no_other(lab: Lab) -> None:
    with transaction(lab.resources.sessions) as session:
        enqueue(session, JobKind.DELETE_BLOBS, keys=["../outside"])
    lab.resources.blobs.put("uploads/a", b"a")
    with transaction(lab.resources.sessions) as session:
        enqueue(session, JobKind.DELETE_BLOBS, keys=["uploads/a"])
    assert lab.jobs() == 2
    assert not lab.resources.blobs.exists("uploads/a")
    (job,) = lab.waiting_jobs()
    assert job.error is not None
    assert "../outside" in job.error
    assert job.attempts == 1
    assert job.lease_owner is None
    assert (job.not_before - now()).total_seconds() == pytest.approx(5, abs=2)
    assert not run_next_job(lab.resources, "upkeep")  # not before its time


def test_a_job_waits_longer_with_each_failure_up_to_ten_minutes() -> None:
    assert [retry_wait_s(n) for n in (1, 2, 3, 7, 8, 100)] == [5, 10, 20, 320, 600, 600]


def test_a_job_that_was_in_work_at_several_crashes_waits_before_it_is_tried_again(
    lab: Lab,
) -> None:
    with transaction(lab.resources.sessions) as session:
        enqueue(session, JobKind.DELETE_BLOBS, keys=["uploads/x"])
    for crash in (1, 2, 3):
        job = claim_job(lab.resources.sessions, "upkeep", lease_s=60)
        assert job is not None
        assert job.attempts == crash
        release_jobs(lab.resources.sessions)
    assert claim_job(lab.resources.sessions, "upkeep", lease_s=60) is None
    (job,) = lab.waiting_jobs()
    assert job.error == "the process ended 3 times while it did this"
    assert (job.not_before - now()).total_seconds() == pytest.approx(5, abs=2)


def test_a_leased_job_is_nobody_elses_until_the_lease_runs_out(lab: Lab) -> None:
    with transaction(lab.resources.sessions) as session:
        enqueue(session, JobKind.DELETE_BLOBS, keys=[])
    assert claim_job(lab.resources.sessions, "a", lease_s=60) is not None
    assert claim_job(lab.resources.sessions, "b", lease_s=60) is None
    with transaction(lab.resources.sessions) as session:
        session.execute(update(Job).values(lease_expires_at=now() - timedelta(seconds=1)))
    again = claim_job(lab.resources.sessions, "b", lease_s=60)
    assert again is not None
    assert again.lease_owner == "b"


# --- deletes ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("database")
def test_a_job_whose_end_could_not_be_recorded_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_lab(tmp_path, lease_s=0.4) as lab:
        with transaction(lab.resources.sessions) as session:
            enqueue(session, JobKind.DELETE_BLOBS, keys=[])
        crew = Crew(lab.resources)
        crew.start()
        try:
            with monkeypatch.context() as patched:
                patched.setattr("kb.maintenance.finish_job", away)
                with pytest.raises(ConnectionError):
                    crew.run_next_job()
            time.sleep(1.0)  # its process lives, and renews what is in work: this is not
            assert lab.jobs() == 1
        finally:
            crew.stop()
        assert lab.waiting_jobs() == []


@pytest.mark.usefixtures("database")
def test_a_job_that_takes_longer_than_its_lease_is_nobody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_lab(tmp_path, lease_s=0.4) as lab:
        with transaction(lab.resources.sessions) as session:
            enqueue(session, JobKind.DELETE_BLOBS, keys=["a"])
        others: list[int] = []

        def long(_key: str) -> None:
            time.sleep(1.0)
            others.append(lab.jobs())

        crew = Crew(lab.resources)
        crew.start()
        try:
            monkeypatch.setattr(lab.resources.blobs, "delete", long)
            assert crew.run_next_job()
        finally:
            crew.stop()
        assert others == [0]


def away(*_: object) -> None:
    raise ConnectionError("the database is away")


def test_a_deleted_document_is_found_by_nobody_at_once_and_its_traces_vanish(lab: Lab) -> None:
    dataset = lab.dataset()
    stays = lab.add(dataset, "stays", lines(3, "stays"))
    goes = lab.add(dataset, "goes", lines(3, "goes"))
    lab.settle()
    lab.add(dataset, "goes", lines(4, "again"))  # a second version, so two files and two texts
    lab.settle()
    assert len(list(lab.resources.blobs.keys())) == 6
    lab.delete(dataset, goes)
    assert set(lab.found(dataset, "number speaks of")) == set(lines(3, "stays").split("\n"))
    assert len(lab.points(dataset)) == 7
    lab.jobs()
    assert {h.document_id for h in lab.points(dataset).values()} == {stays}
    keys = list(lab.resources.blobs.keys())
    assert len(keys) == 2
    assert f"texts/{stays}/1" in keys
    lab.assert_index_is_what_sql_says(dataset)


def test_a_deleted_dataset_leaves_no_points_and_no_files(lab: Lab) -> None:
    kept, gone = lab.dataset("kept"), lab.dataset("gone")
    lab.add(kept, "a", lines(3))
    lab.add(gone, "b", lines(3))
    lab.settle()
    lab.add(gone, "waiting", lines(3))
    lab.delete(gone)
    answer = lab.client.post(f"/v1/datasets/{gone}/retrieve", json={"query": "number"})
    assert answer.status_code == 404
    lab.settle()
    assert lab.points(gone) == {}
    assert len(lab.points(kept)) == 3
    assert len(list(lab.resources.blobs.keys())) == 2
    lab.assert_index_is_what_sql_says(kept)


def test_a_dataset_deleted_while_its_documents_are_in_work_leaves_nothing(lab: Lab) -> None:
    dataset = lab.dataset()
    for n in range(3):
        add_file(lab.client, dataset, f"d{n}.txt", lines(9, f"w{n}").encode())
    calls: list[int] = []

    def deleted_in_second_batch(_points: object) -> None:
        calls.append(1)
        if len(calls) == 2:
            lab.delete(dataset)
            lab.jobs()

    lab.index.before_upsert = deleted_in_second_batch
    lab.settle()
    assert lab.points(dataset) == {}
    assert list(lab.resources.blobs.keys()) == []
    lab.later()
    assert lab.waiting_jobs() == []


@pytest.mark.parametrize("whole_dataset", [True, False])
def test_what_a_worker_wrote_after_the_delete_and_before_it_was_killed_is_removed_later(
    lab: Lab, whole_dataset: bool
) -> None:
    dataset = lab.dataset()
    document = lab.add(dataset, "d", lines(3))

    def deleted(_points: object) -> None:
        if not whole_dataset:
            lab.add(dataset, "d", lines(3, "new"))  # takes it out of the worker's hands
        lab.delete(dataset, None if whole_dataset else document)
        lab.jobs()

    lab.index.before_upsert, lab.index.after_upsert = deleted, dies
    with pytest.raises(Killed):
        lab.ingest(lab.claim())
    lab.jobs()
    assert len(lab.points(dataset)) == 3, "it could not take them back"
    lab.later()
    assert lab.points(dataset) == {}
    assert list(lab.resources.blobs.keys()) == []
    assert lab.waiting_jobs() == []


def test_a_delete_that_no_worker_knows_of_is_done_once(lab: Lab) -> None:
    dataset = lab.dataset()
    document = lab.add(dataset, "d", lines(3))
    lab.settle()
    lab.delete(dataset, document)
    lab.jobs()
    assert lab.waiting_jobs() == []


@pytest.mark.parametrize("then", ["replaced", "deleted"])
def test_the_text_that_a_killed_worker_kept_goes_with_its_version(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    dataset = lab.dataset()
    document = lab.add(dataset, "d", lines(3))
    with monkeypatch.context() as patched:
        patched.setattr(DocumentSink, "_commit_stage", dies)
        with pytest.raises(Killed):
            lab.ingest(lab.claim())
    assert lab.resources.blobs.exists(f"texts/{document}/1")
    lab.restart()
    lab.add(dataset, "d", lines(4))
    if then == "deleted":
        lab.delete(dataset, document)
    lab.settle()
    lab.later()
    texts = set(lab.resources.blobs.keys("texts/"))
    assert texts == (set() if then == "deleted" else {f"texts/{document}/2"})
    assert lab.waiting_jobs() == []


# --- drift -----------------------------------------------------------------------------------

LONG = " ".join(f"{a}{b}" for a in "bdfgkm" for b in ("alo", "eri", "ina", "odu", "uva"))


def test_the_weights_are_rebuilt_when_the_texts_have_become_longer(lab: Lab) -> None:
    dataset = lab.dataset()
    lab.add(dataset, "short", "red fish\nblue fish\none fish")
    lab.settle()
    assert average(lab, dataset) == pytest.approx(2)
    written = lab.index.upserts
    long = "\n".join(f"fish{n} fish {LONG}" for n in range(9))
    lab.add(dataset, "long", long)
    lab.work()
    embedded = len(lab.embedder.texts)
    lab.jobs()
    assert lab.index.upserts > written
    assert average(lab, dataset) == pytest.approx(true_average(lab, dataset)) != 2
    assert len(lab.embedder.texts) == embedded  # from the cache, without the model

    fresh = lab.dataset("fresh")  # whose average length is right from the start
    lab.add(fresh, "all", f"red fish\nblue fish\none fish\n{long}")
    lab.settle()
    assert average(lab, fresh) == pytest.approx(average(lab, dataset))
    for query in ("fish", "red fish", "fish3 word7"):
        assert text_scores(lab, dataset, query) == pytest.approx(
            text_scores(lab, fresh, query), rel=1e-5
        )
    lab.assert_index_is_what_sql_says(dataset)


def test_the_weights_stay_when_the_average_moved_by_less(lab: Lab) -> None:
    dataset = lab.dataset()
    lab.add(dataset, "a", "four words are here")
    lab.settle()
    before = average(lab, dataset)
    lab.add(dataset, "b", "five words are in here\nfive words are in here too")
    lab.settle()
    assert average(lab, dataset) == before
    assert lab.waiting_jobs() == []


def test_a_batch_written_during_a_rebuild_gets_the_new_weights(lab: Lab) -> None:
    dataset = lab.dataset()
    lab.add(dataset, "short", "red fish\nblue fish")
    lab.settle()
    lab.add(dataset, "long", "\n".join(f"fish{n} fish {LONG}" for n in range(6)))
    rebuilt: list[float] = []

    def rebuild(_points: object) -> None:
        lab.index.before_upsert = lambda points: None
        rebuild_dataset(lab.resources, uuid.UUID(dataset))
        rebuilt.append(average(lab, dataset))

    lab.index.before_upsert = rebuild  # its weights are computed, it is not written yet
    lab.settle()
    assert average(lab, dataset) == pytest.approx(rebuilt[0])
    fresh = lab.dataset("fresh")
    text = "\n".join(["red fish", "blue fish", *(f"fish{n} fish {LONG}" for n in range(6))])
    lab.add(fresh, "all", text)
    lab.settle()
    with transaction(lab.resources.sessions) as session:
        row = session.get_one(Dataset, uuid.UUID(fresh))
        row.average_length = rebuilt[0]
    rebuild_with(lab, fresh, rebuilt[0])
    assert text_scores(lab, dataset, "red fish") == pytest.approx(
        text_scores(lab, fresh, "red fish"), rel=1e-5
    )


def test_points_restored_during_a_rebuild_get_the_new_weights(lab: Lab) -> None:
    dataset = lab.dataset()
    lab.add(dataset, "a", "red fish\nblue fish")
    lab.settle()
    lab.add(dataset, "b", "green fish swim")
    lab.settle()
    before = average(lab, dataset)

    def rebuild(_points: object) -> None:
        lab.index.before_upsert = lambda points: None
        rebuild_dataset(lab.resources, uuid.UUID(dataset))

    lab.index.before_upsert = rebuild
    write_points(lab.resources, uuid.UUID(dataset), None)  # read before, written after it
    assert average(lab, dataset) != before
    scores = text_scores(lab, dataset, "red fish")
    rebuild_dataset(lab.resources, uuid.UUID(dataset))
    assert text_scores(lab, dataset, "red fish") == scores


def test_a_rebuild_does_not_bring_back_what_is_deleted_meanwhile(lab: Lab) -> None:
    dataset = lab.dataset()
    lab.add(dataset, "stays", lines(2, "stays"))
    goes = lab.add(dataset, "goes", lines(2, "goes"))
    lab.settle()

    def deleted(_points: object) -> None:
        lab.index.before_upsert = lambda points: None
        lab.delete(dataset, goes)
        lab.jobs()

    lab.index.before_upsert = deleted
    rebuild_dataset(lab.resources, uuid.UUID(dataset))
    lab.jobs()
    lab.assert_index_is_what_sql_says(dataset)


def test_a_rebuild_during_the_next_version_does_not_expose_its_points_to_older_deletes(
    lab: Lab,
) -> None:
    dataset = lab.dataset()
    document = lab.add(dataset, "d", "first")
    lab.settle()
    lab.add(dataset, "d", lines(4))  # version 2 is written whole, but never goes live
    lab.index.after_upsert = lambda points: lab.add(dataset, "d", lines(4) + "\nmore\nand more")
    lab.ingest(lab.claim())
    lab.index.after_upsert = lambda points: None
    third = lab.claim()
    calls: list[int] = []

    def rebuilt_in_second_batch(_points: object) -> None:
        calls.append(1)
        if len(calls) == 2:
            lab.index.before_upsert = lambda points: None
            rebuild_dataset(lab.resources, uuid.UUID(dataset))

    lab.index.before_upsert = rebuilt_in_second_batch
    lab.ingest(third)
    assert "delete_points" in [j.kind for j in lab.waiting_jobs()]
    versions = {i: head.version for i, head in lab.points(dataset).items()}
    assert [versions[s.id] for s in lab.segments(document)] == [3] * 6
    lab.jobs()
    lab.assert_index_is_what_sql_says(dataset)


def average(lab: Lab, dataset: str) -> float:
    with reading(lab.resources.sessions) as session:
        found = session.get_one(Dataset, uuid.UUID(dataset)).average_length
    assert found is not None
    return found


def true_average(lab: Lab, dataset: str) -> float:
    with reading(lab.resources.sessions) as session:
        lengths = session.scalars(
            select(Segment.term_count).where(Segment.dataset_id == uuid.UUID(dataset))
        ).all()
    return sum(lengths) / len(lengths)


def rebuild_with(lab: Lab, dataset: str, value: float) -> None:
    """Rebuild, and check that it came to this average length."""
    rebuild_dataset(lab.resources, uuid.UUID(dataset))
    assert average(lab, dataset) == pytest.approx(value)


def text_scores(lab: Lab, dataset: str, query: str) -> dict[str, float]:
    """Raw BM25 score by text."""
    terms, _ = terms_of_query(query)
    with reading(lab.resources.sessions) as session:
        space = space_of(session.get_one(Dataset, uuid.UUID(dataset)))
        assert space is not None
        hits = lab.resources.index.best(space, uuid.UUID(dataset), terms, 50)
        return {session.get_one(Segment, hit.id).content: hit.score for hit in hits}
