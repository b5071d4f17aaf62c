"""The doctor: every kind of damage is found and healed, and work in progress is no damage."""

from __future__ import annotations

import os
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import delete, select, update

from kb.db import reading, transaction
from kb.doctor import Kind, Report, examine
from kb.models import CachedEmbedding, Dataset, Document, Job, Segment
from kb.ports import Point, Space
from kb.resources import space_of
from kb.runner import Runner
from tests.kb.ingesting import PARENTS, Killed, Lab, dies, lines, open_lab


@pytest.fixture
def lab(database: str, tmp_path: Path) -> Iterator[Lab]:
    with open_lab(tmp_path) as opened:
        yield opened


@pytest.fixture
def dataset(lab: Lab) -> str:
    """A dataset with two documents, all work done; one has two versions behind it."""
    made = lab.dataset()
    lab.add(made, "a", lines(3, "old"))
    lab.settle()
    lab.add(made, "a", lines(6, "red"))
    lab.add(made, "b", lines(5, "blue"))
    lab.settle()
    assert examine(lab.resources, repair=False).healthy()
    lab.embedder.texts.clear()
    return made


def heal(lab: Lab, *, deep: bool = False) -> Report:
    """Repair, and check that a deep look finds nothing then; what was found."""
    found = examine(lab.resources, repair=False, deep=deep)
    repaired = examine(lab.resources, repair=True, deep=deep)
    assert repaired.shape() | {"repaired": False} == found.shape()
    after = examine(lab.resources, repair=False, deep=True)
    assert after.healthy(), after.shape()
    return found


def space(lab: Lab) -> Space:
    return Space(lab.embedder.id, lab.embedder.dim)


def test_a_healthy_base_is_counted_and_left_alone(lab: Lab, dataset: str) -> None:
    upserts = lab.index.upserts
    report = examine(lab.resources, repair=True)
    assert report.healthy()
    assert (report.datasets, report.points, report.pending_jobs) == (1, 11, 0)
    assert lab.index.upserts == upserts
    assert report.shape()["healthy"] is True


def test_missing_points_are_restored_from_the_cache_without_the_model(
    lab: Lab, dataset: str
) -> None:
    before = lab.points(dataset)
    lost = sorted(before)[::2]
    vectors = lab.resources.index.vectors(space(lab), lost)
    lab.resources.index.delete(space(lab), lost, up_to_version=99)
    report = heal(lab)
    assert report.first(Kind.MISSING) == [str(i) for i in lost]
    assert lab.points(dataset) == before
    after = lab.resources.index.vectors(space(lab), lost)
    for point in lost:
        assert after[point][0] == pytest.approx(vectors[point][0])
        assert after[point][1].ids.tolist() == vectors[point][1].ids.tolist()
        assert after[point][1].weights == pytest.approx(vectors[point][1].weights)
    assert lab.embedder.texts == []
    lab.assert_index_is_what_sql_says(dataset)


@pytest.mark.usefixtures("database")
def test_an_index_that_is_gone_whole_is_rebuilt_from_the_cache(tmp_path: Path) -> None:
    with open_lab(tmp_path / "data") as lab:
        dataset = lab.dataset()
        text = "\n\n".join(lines(3, f"w{n}") for n in range(4))
        lab.add(dataset, "d", text, **PARENTS)
        lab.settle()
        answers = lab.found(dataset, "number speaks of w2")
    shutil.rmtree(tmp_path / "data" / "index")
    with open_lab(tmp_path / "data") as lab:
        assert lab.points(dataset) == {}
        assert heal(lab).count(Kind.MISSING) == 12
        assert lab.embedder.texts == []
        assert lab.found(dataset, "number speaks of w2") == answers
        lab.assert_index_is_what_sql_says(dataset)


def test_only_texts_that_are_not_in_the_cache_go_to_the_model(lab: Lab, dataset: str) -> None:
    with transaction(lab.resources.sessions) as session:
        lost = session.scalars(select(Segment).where(Segment.live).order_by(Segment.id)).all()[:2]
        session.execute(
            delete(CachedEmbedding).where(CachedEmbedding.text_hash == lost[0].text_hash)
        )
    lab.resources.index.delete(space(lab), [s.id for s in lost], up_to_version=99)
    heal(lab)
    assert lab.embedder.texts == [lost[0].content]


def test_stale_points_are_written_anew(lab: Lab, dataset: str) -> None:
    before = lab.points(dataset)
    stale = sorted(before)[:3]
    vectors = lab.resources.index.vectors(space(lab), stale)
    lab.resources.index.upsert(
        space(lab),
        [
            Point(
                id=head.id,
                dataset_id=head.dataset_id,
                document_id=head.document_id,
                segment_id=head.segment_id,
                version=head.version,
                text_hash="0" * 64,
                dense=vectors[head.id][0],
                terms=vectors[head.id][1],
            )
            for head in (before[i] for i in stale)
        ],
    )
    assert heal(lab).first(Kind.STALE) == [str(i) for i in stale]
    assert lab.points(dataset) == before
    assert lab.embedder.texts == []


def test_points_that_nothing_stands_for_are_removed(lab: Lab, dataset: str) -> None:
    before = lab.points(dataset)
    heads = sorted(before.values(), key=lambda h: h.id)
    vectors = lab.resources.index.vectors(space(lab), [h.id for h in heads])
    strangers = []
    for head, of_dataset in (
        (heads[0], uuid.UUID(dataset)),
        (heads[1], uuid.UUID(dataset)),
        (heads[2], uuid.uuid4()),  # a dataset that is gone
    ):
        stranger = Point(
            id=uuid.uuid4(),
            dataset_id=of_dataset,
            document_id=head.document_id,
            segment_id=head.segment_id,
            version=7,
            text_hash=head.text_hash,
            dense=vectors[head.id][0],
            terms=vectors[head.id][1],
        )
        strangers.append(stranger)
    lab.resources.index.upsert(space(lab), strangers)
    assert sorted(heal(lab).first(Kind.EXTRA)) == sorted(str(s.id) for s in strangers)
    assert lab.points(dataset) == before
    assert lab.resources.index.count(space(lab)) == len(before)


def test_points_that_a_killed_worker_left_of_a_deleted_dataset_are_removed(lab: Lab) -> None:
    dataset = lab.dataset()
    lab.add(dataset, "d", lines(3))

    def deleted(_points: object) -> None:
        lab.index.before_upsert = lambda points: None
        lab.delete(dataset)
        lab.jobs()

    lab.index.before_upsert = deleted
    lab.index.after_upsert = dies  # before it can take back what it wrote
    with pytest.raises(Killed):
        lab.work()
    lab.restart()
    lab.settle()
    assert heal(lab).healthy(), "a job will see to them"
    with transaction(lab.resources.sessions) as session:
        session.execute(delete(Job))  # as if they had been written after it
    assert len(lab.points(dataset)) == 3
    assert heal(lab).count(Kind.EXTRA) == 3
    assert lab.points(dataset) == {}


def test_lost_files_are_named_and_do_not_hide(lab: Lab, dataset: str) -> None:
    upload = sorted(lab.resources.blobs.keys("uploads/"))
    for key in upload:
        lab.resources.blobs.delete(key)
    with reading(lab.resources.sessions) as session:
        a = session.scalars(select(Document).where(Document.name == "a")).one()
    lab.resources.blobs.delete(f"texts/{a.id}/2")
    found = examine(lab.resources, repair=True)
    assert not found.healthy()
    assert [line.split(" ")[0] for line in sorted(found.first(Kind.LOST_FILES))] == ["a", "a", "b"]
    assert not examine(lab.resources, repair=False).healthy()  # no one can make them again


def test_orphan_files_are_removed_once_no_upload_can_be_waiting_for_its_row(
    lab: Lab, dataset: str, tmp_path: Path
) -> None:
    lab.resources.blobs.put("uploads/of-a-request-that-died", b"x")
    lab.resources.blobs.put("texts/gone/1", b"x")
    assert examine(lab.resources, repair=False).healthy()
    for key in list(lab.resources.blobs.keys()):
        age(lab, key)
    assert heal(lab).first(Kind.ORPHAN_FILES) == ["texts/gone/1", "uploads/of-a-request-that-died"]
    assert len(list(lab.resources.blobs.keys())) == 6


def test_a_text_put_by_a_worker_that_died_is_not_an_orphan_while_its_version_is_queued(
    lab: Lab, dataset: str
) -> None:
    document = lab.add(dataset, "a", lines(2, "third"))
    key = f"texts/{document}/3"
    lab.resources.blobs.put(key, b"half done")
    age(lab, key)
    assert examine(lab.resources, repair=True).healthy()
    assert lab.resources.blobs.exists(key)


def test_what_jobs_will_remove_is_no_finding(lab: Lab, dataset: str) -> None:
    with reading(lab.resources.sessions) as session:
        b = session.scalars(select(Document.id).where(Document.name == "b")).one()
    other = lab.dataset("other")
    lab.add(other, "c", lines(3))
    lab.settle()
    lab.add(dataset, "a", lines(2, "third"))
    lab.work()
    lab.delete(dataset, b)
    lab.delete(other)
    for key in list(lab.resources.blobs.keys()):
        age(lab, key)
    report = examine(lab.resources, repair=True)
    assert report.healthy(), report.shape()
    assert report.pending_jobs >= 5
    lab.settle()
    assert examine(lab.resources, repair=False).healthy()
    lab.assert_index_is_what_sql_says(dataset)


@pytest.mark.parametrize("moment", ["before_upsert", "after_upsert"])
def test_a_document_in_work_is_no_damage_at_any_batch(lab: Lab, dataset: str, moment: str) -> None:
    reports: list[Report] = []

    def look(_points: object) -> None:
        setattr(lab.index, moment, lambda points: None)  # not at what the doctor itself writes
        reports.append(examine(lab.resources, repair=True))
        setattr(lab.index, moment, look)

    setattr(lab.index, moment, look)
    lab.add(dataset, "a", lines(9, "third"))
    lab.add(dataset, "new", lines(9, "new"))
    lab.work()
    assert len(reports) >= 6
    assert all(r.healthy() for r in reports), [r.shape() for r in reports]
    setattr(lab.index, moment, lambda points: None)
    lab.settle()
    lab.assert_index_is_what_sql_says(dataset)


@pytest.mark.usefixtures("database")
def test_a_doctor_among_workers_uploads_replacements_and_deletes_finds_and_harms_nothing(
    tmp_path: Path,
) -> None:
    with open_lab(tmp_path, poll_s=0.01) as lab:
        dataset = lab.dataset()
        ended = threading.Event()
        reports: list[Report] = []

        def doctor() -> None:
            while not ended.is_set():
                reports.append(examine(lab.resources, repair=True))

        runner, thread = Runner(lab.resources), threading.Thread(target=doctor)
        runner.start()
        thread.start()
        try:
            for turn in range(6):
                made = [lab.add(dataset, f"d{n}", lines(6, f"w{(turn + n) % 4}")) for n in range(3)]
                short = lab.dataset(f"short-lived {turn}")
                lab.add(short, "d", lines(9, f"s{turn}"))
                runner.wake()
                ended.wait(0.15)
                lab.delete(short)
                runner.wake()
                wait_until_done(lab, made)
            ended.set()
            thread.join()
            wait_for_no_jobs(lab)
        finally:
            ended.set()
            thread.join()
            assert runner.stop(timeout_s=30)
        assert len(reports) > 3
        assert all(r.healthy() for r in reports), [r.shape() for r in reports if not r.healthy()]
        lab.assert_index_is_what_sql_says(dataset)
        with reading(lab.resources.sessions) as session:
            known = set(session.scalars(select(Dataset.id)))
        assert {h.dataset_id for h in lab.resources.index.scan(space(lab))} <= known


def test_a_dataset_made_while_the_doctor_looks_is_not_taken_for_a_stranger(
    lab: Lab, dataset: str
) -> None:
    made: list[str] = []
    scan = lab.index.scan

    def a_dataset_comes_first(*args: object) -> object:
        if not made:
            made.append(lab.dataset("late"))
            lab.add(made[0], "d", lines(3))
            lab.settle()
        return scan(*args)

    lab.index.scan = a_dataset_comes_first  # type: ignore[attr-defined]
    assert examine(lab.resources, repair=True).healthy()
    assert len(lab.points(made[0])) == 3


def test_a_repair_spares_a_text_that_comes_back_in_that_moment(lab: Lab, dataset: str) -> None:
    text = lines(6, "red")
    point = sorted(lab.points(dataset))[0]
    with reading(lab.resources.sessions) as session:
        segment = session.get_one(Segment, point)
        name = session.get_one(Document, segment.document_id).name
        text = lines(6, "red") if name == "a" else lines(5, "blue")
    rest = "\n".join(line for line in text.split("\n") if line != segment.content)
    lab.add(dataset, name, rest)
    lab.work()
    with transaction(lab.resources.sessions) as session:  # its delete was lost, so it is extra
        session.execute(delete(Job))
    remove = lab.index.delete

    def comes_back_first(*args: object, **kwargs: object) -> None:
        lab.index.delete = remove  # type: ignore[attr-defined]
        lab.add(dataset, name, text)
        lab.work()
        remove(*args, **kwargs)

    lab.index.delete = comes_back_first  # type: ignore[attr-defined]
    assert str(point) in examine(lab.resources, repair=True).first(Kind.EXTRA)
    lab.settle()
    lab.assert_index_is_what_sql_says(dataset)


def test_an_economy_dataset_is_healed_too(lab: Lab) -> None:
    dataset = lab.dataset("cheap", indexing_technique="economy")
    lab.add(dataset, "d", lines(5))
    lab.settle()
    with reading(lab.resources.sessions) as session:
        place = space_of(session.get_one(Dataset, uuid.UUID(dataset)))
    assert place is not None
    lab.resources.index.delete(place, list(lab.points(dataset))[:2], up_to_version=99)
    assert heal(lab).count(Kind.MISSING) == 2
    lab.assert_index_is_what_sql_says(dataset)


def age(lab: Lab, key: str) -> None:
    """Make a blob two hours old."""
    path = lab.resources.settings.data_dir / "blobs" / key
    then = time.time() - 7200
    os.utime(path, (then, then))


def wait_until_done(lab: Lab, documents: list[uuid.UUID]) -> None:
    pause = threading.Event()
    for _ in range(3000):
        if all(lab.document(d).pending_version is None for d in documents):
            return
        pause.wait(0.02)
    raise AssertionError("not done within a minute")


def wait_for_no_jobs(lab: Lab) -> None:
    pause = threading.Event()
    for _ in range(600):
        if not lab.waiting_jobs():
            return
        with transaction(lab.resources.sessions) as session:  # some are for a minute later
            session.execute(update(Job).values(not_before=Job.created_at))
        pause.wait(0.1)
    raise AssertionError(f"jobs left: {[(j.kind, j.error) for j in lab.waiting_jobs()]}")
