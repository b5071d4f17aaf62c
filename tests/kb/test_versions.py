"""Replacing a document: the old version answers until the new one is complete, then only that."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select, update

from kb.db import reading, transaction
from kb.models import ChildChunk, IndexingStatus, Segment
from kb.runner import Runner
from pipelines.errors import TransientError
from tests.kb.ingesting import PARENTS, Killed, Lab, dies, fails, lines, open_lab
from tests.kb.server import add_file


@pytest.fixture
def lab(database: str, tmp_path: Path) -> Iterator[Lab]:
    with open_lab(tmp_path) as opened:
        yield opened


def test_a_document_of_the_same_name_is_the_next_version_of_the_same_document(lab: Lab) -> None:
    dataset = lab.dataset()
    first = lab.add(dataset, "d", "old text")
    lab.settle()
    assert lab.add(dataset, "d", "new text") == first
    row = lab.document(first)
    assert (row.version, row.pending_version, row.indexing_status) == (1, 2, "waiting")
    lab.settle()
    row = lab.document(first)
    assert (row.version, row.pending_version, row.indexing_status) == (2, None, "completed")
    lab.assert_index_is_what_sql_says(dataset)


def test_the_old_text_is_found_until_the_new_version_is_complete_and_then_only_the_new(
    lab: Lab,
) -> None:
    dataset = lab.dataset()
    old, new = lines(10, "old"), lines(10, "new")
    lab.add(dataset, "d", old)
    lab.settle()
    lab.add(dataset, "d", new)
    answers: list[set[str]] = []

    def ask(_points: object) -> None:
        answers.append(set(lab.found(dataset, "number speaks of")))

    lab.index.before_upsert = lab.index.after_upsert = ask
    lab.work()
    assert len(answers) == 6  # around each of three batches
    assert all(answer == set(old.split("\n")) for answer in answers)
    # The switch has happened; the points of the old version are still there.
    assert len(lab.points(dataset)) == 20
    assert set(lab.found(dataset, "number speaks of")) == set(new.split("\n"))
    lab.jobs()
    assert set(lab.found(dataset, "number speaks of")) == set(new.split("\n"))
    lab.assert_index_is_what_sql_says(dataset)


@pytest.mark.usefixtures("database")
def test_a_search_that_runs_all_the_time_finds_one_version_and_never_none_or_both(
    tmp_path: Path,
) -> None:
    with open_lab(tmp_path, keep_replaced_s=1.0, poll_s=0.01) as lab:
        dataset = lab.dataset()
        versions = [lines(3, f"v{n}") for n in range(6)]
        document = lab.add(dataset, "d", versions[0])
        lab.settle()
        ended = threading.Event()
        seen: list[frozenset[str]] = []

        def ask() -> None:
            while not ended.is_set():
                seen.append(frozenset(lab.found(dataset, "number speaks of")))

        runner, asker = Runner(lab.resources), threading.Thread(target=ask)
        runner.start()
        asker.start()
        try:
            for number, text in enumerate(versions[1:], start=2):
                lab.add(dataset, "d", text)
                runner.wake()
                while lab.document(document).version != number:
                    ended.wait(0.005)
        finally:
            ended.set()
            asker.join()
            assert runner.stop(timeout_s=30)
        allowed = [frozenset(text.split("\n")) for text in versions]
        assert set(seen) <= set(allowed)
        order = [allowed.index(answer) for answer in seen]
        assert order == sorted(order)
        assert len(set(order)) > 1


@pytest.mark.usefixtures("database")
def test_a_query_that_began_before_the_switch_still_finds_the_old_text(tmp_path: Path) -> None:
    with open_lab(tmp_path, keep_replaced_s=60.0) as lab:
        dataset = lab.dataset()
        lab.add(dataset, "d", "old text")
        lab.settle()
        lab.add(dataset, "d", "new text")
        query = lab.embedder.embed_query

        def replaced_meanwhile(text: str) -> object:
            lab.embedder.embed_query = query  # type: ignore[method-assign]
            lab.settle()
            return query(text)

        lab.embedder.embed_query = replaced_meanwhile  # type: ignore[assignment,method-assign]
        assert lab.found(dataset, "text") == ["old text"]
        assert lab.found(dataset, "text") == ["new text"]
        assert len(lab.points(dataset)) == 2
        assert [j.kind for j in lab.waiting_jobs()] == ["delete_points"]


def test_unchanged_chunks_keep_what_they_are_and_are_not_embedded_or_written_again(
    lab: Lab,
) -> None:
    dataset = lab.dataset()
    document = lab.add(dataset, "d", lines(8))
    lab.settle()
    before = {s.content: s for s in lab.segments(document)}
    lab.found(dataset, "line number 3")
    with transaction(lab.resources.sessions) as session:
        session.execute(update(Segment).values(hit_count=7))
    lab.embedder.texts.clear()
    written: list[uuid.UUID] = []
    lab.index.before_upsert = lambda points: written.extend(p.id for p in points)

    old = lines(8).split("\n")
    new = ["a new first line", *old[4:], *old[:2], "a new last line"]
    lab.add(dataset, "d", "\n".join(new))
    lab.settle()
    after = lab.segments(document)
    assert [s.content for s in after] == new
    assert [s.position for s in after] == list(range(after[0].position, after[0].position + 8))
    assert lab.embedder.texts == ["a new first line", "a new last line"]
    assert written == [after[0].id, after[-1].id]
    text = "\n".join(new)
    assert all(text[s.start_offset : s.end_offset] == s.content for s in after)
    for segment in after[1:-1]:
        was = before[segment.content]
        assert (segment.id, segment.created_at, segment.indexed_at, segment.hit_count) == (
            was.id,
            was.created_at,
            was.indexed_at,
            7,
        )
    assert [s.hit_count for s in (after[0], after[-1])] == [0, 0]
    lab.assert_index_is_what_sql_says(dataset)


def test_repeated_lines_are_kept_by_how_often_they_occur(lab: Lab) -> None:
    dataset = lab.dataset()
    document = lab.add(dataset, "d", "same\nsame\nother\nsame")
    lab.settle()
    lab.add(dataset, "d", "other\nsame\nsame")
    lab.settle()
    assert [s.content for s in lab.segments(document)] == ["other", "same", "same"]
    lab.assert_index_is_what_sql_says(dataset)


def test_points_of_removed_chunks_leave_the_index_through_a_job(lab: Lab) -> None:
    dataset = lab.dataset()
    document = lab.add(dataset, "d", "stays\ngoes")
    lab.settle()
    lab.add(dataset, "d", "stays\ncomes")
    lab.work()
    assert len(lab.points(dataset)) == 3
    assert lab.jobs() >= 1
    assert set(lab.points(dataset)) == {s.id for s in lab.segments(document)}
    assert lab.waiting_jobs() == []


def test_a_text_that_comes_back_survives_the_late_delete_of_its_point(lab: Lab) -> None:
    dataset = lab.dataset()
    document = lab.add(dataset, "d", "keeps\ncomes back")
    lab.settle()
    point = next(s.id for s in lab.segments(document) if s.content == "comes back")
    lab.add(dataset, "d", "keeps")
    lab.work()
    lab.add(dataset, "d", "keeps\ncomes back")
    lab.work()
    late = [j for j in lab.waiting_jobs() if j.kind == "delete_points"]
    assert [j.payload["ids"] for j in late] == [[str(point)]]
    lab.jobs()
    assert lab.points(dataset)[point].version == 3
    lab.assert_index_is_what_sql_says(dataset)


def test_a_delete_that_looked_before_the_text_came_back_spares_its_new_point(lab: Lab) -> None:
    dataset = lab.dataset()
    lab.add(dataset, "d", "keeps\ncomes back")
    lab.settle()
    lab.add(dataset, "d", "keeps")
    lab.work()
    delete = lab.index.delete

    def comes_back_first(*args: object, **kwargs: object) -> None:
        del lab.index.delete  # type: ignore[attr-defined]
        lab.add(dataset, "d", "keeps\ncomes back")
        lab.work()
        delete(*args, **kwargs)

    lab.index.delete = comes_back_first  # type: ignore[attr-defined]
    lab.jobs()
    lab.assert_index_is_what_sql_says(dataset)


def test_a_late_write_of_an_older_version_does_not_expose_the_point_to_an_older_delete(
    lab: Lab,
) -> None:
    """Version 2 is overtaken by 3, which holds the same text; then the writer of 2 awakes."""
    dataset = lab.dataset()
    lab.add(dataset, "d", "first words")
    lab.settle()
    lab.add(dataset, "d", "shared words\nsecond words")
    late = lab.claim("late")

    def overtaken(_points: object) -> None:
        lab.index.before_upsert = lambda points: None
        lab.add(dataset, "d", "shared words\nthird words")
        lab.ingest(lab.claim("w2"))

    lab.index.before_upsert = overtaken
    lab.ingest(late)  # writes the points of "shared words" and "second words", as of version 2
    assert "delete_points" in [j.kind for j in lab.waiting_jobs()]
    lab.jobs()
    assert lab.found(dataset, "shared")[0] == "shared words"
    lab.assert_index_is_what_sql_says(dataset)


def test_nor_does_one_that_nobody_takes_back(lab: Lab) -> None:
    """As before, but the process dies right after the late write."""
    dataset = lab.dataset()
    lab.add(dataset, "d", "first words")
    lab.settle()
    lab.add(dataset, "d", "shared words\nsecond words")
    late = lab.claim("late")

    def overtaken(_points: object) -> None:
        lab.index.before_upsert = lambda points: None
        lab.add(dataset, "d", "shared words\nthird words")
        lab.ingest(lab.claim("w2"))
        lab.index.after_upsert = dies

    lab.index.before_upsert = overtaken
    with pytest.raises(Killed):
        lab.ingest(late)
    lab.index.after_upsert = lambda points: None
    lab.restart()
    lab.settle()
    assert lab.found(dataset, "shared")[0] == "shared words"
    lab.assert_index_is_what_sql_says(dataset)


def test_a_second_replacement_while_the_first_is_in_work_wins(lab: Lab) -> None:
    dataset = lab.dataset()
    document = lab.add(dataset, "d", lines(6, "one"))
    lab.settle()
    lab.add(dataset, "d", lines(10, "two"))
    calls: list[int] = []

    def replaced_in_second_batch(_points: object) -> None:
        calls.append(1)
        if len(calls) == 2:
            lab.add(dataset, "d", lines(5, "three") + "\n" + lines(2, "two"))

    lab.index.before_upsert = replaced_in_second_batch
    lab.work()
    row = lab.document(document)
    assert (row.version, row.indexing_status) == (3, "completed")
    assert [r.status for r in lab.runs(document)] == ["succeeded", "stopped", "succeeded"]
    lab.jobs()
    texts = [s.content for s in lab.segments(document)]
    assert texts == (lines(5, "three") + "\n" + lines(2, "two")).split("\n")
    assert len(set(lab.embedder.texts)) == len(lab.embedder.texts)
    lab.assert_index_is_what_sql_says(dataset)


def test_a_replacement_of_a_version_that_died_half_written_leaves_nothing_of_it(lab: Lab) -> None:
    dataset = lab.dataset()
    document = lab.add(dataset, "d", lines(6, "one"))
    lab.settle()
    lab.add(dataset, "d", lines(10, "two"))
    lab.index.after_upsert = dies  # written, not acknowledged
    with pytest.raises(Killed):
        lab.work()
    lab.restart()
    lab.index.after_upsert = lambda points: None
    lab.add(dataset, "d", lines(3, "three"))
    lab.settle()
    assert lab.document(document).version == 3
    lab.assert_index_is_what_sql_says(dataset)


def test_a_failed_new_version_leaves_the_old_one_answering(lab: Lab) -> None:
    dataset = lab.dataset()
    created = add_file(lab.client, dataset, "d.txt", b"the old text")
    document = uuid.UUID(created["document"]["id"])
    lab.settle()
    add_file(lab.client, dataset, "d.txt", b" ")
    lab.settle()
    row = lab.document(document)
    assert (row.indexing_status, row.error_code, row.version) == ("error", "no_text", 1)
    assert lab.found(dataset, "old text") == ["the old text"]
    lab.assert_index_is_what_sql_says(dataset)

    add_file(lab.client, dataset, "d.txt", b"the third text")
    lab.settle()
    row = lab.document(document)
    assert (row.indexing_status, row.error, row.version) == ("completed", None, 3)
    assert lab.found(dataset, "text") == ["the third text"]
    lab.assert_index_is_what_sql_says(dataset)


def test_a_version_that_failed_in_the_index_is_found_by_nobody_and_completed_by_a_retry(
    lab: Lab,
) -> None:
    dataset = lab.dataset()
    document = lab.add(dataset, "d", "old one\nold two")
    lab.settle()
    lab.add(dataset, "d", lines(10, "new"))
    calls: list[int] = []
    down = fails(3, lambda: TransientError("busy"))

    def from_the_second_batch(points: object) -> None:
        calls.append(1)
        if len(calls) > 1:
            down(points)

    lab.index.before_upsert = from_the_second_batch
    lab.settle()
    assert lab.document(document).indexing_status is IndexingStatus.ERROR
    assert set(lab.found(dataset, "one two number speaks")) == {"old one", "old two"}
    lab.retry(dataset, document)
    lab.settle()
    assert lab.document(document).version == 2
    assert set(lab.found(dataset, "number speaks of")) == set(lines(10, "new").split("\n"))
    assert len(lab.embedder.texts) == 12
    lab.assert_index_is_what_sql_says(dataset)


def test_a_replaced_document_of_parents_keeps_unchanged_parents_and_children(lab: Lab) -> None:
    dataset = lab.dataset()
    red, green, blue = (lines(3, word) for word in ("red", "green", "blue"))
    document = lab.add(dataset, "d", f"{red}\n\n{green}", **PARENTS)
    lab.settle()
    kept = {s.content: s.id for s in lab.segments(document)}
    children = child_ids(lab, document)
    points = set(lab.points(dataset))
    lab.embedder.texts.clear()
    lab.add(dataset, "d", f"{blue}\n\n{green}", **PARENTS)
    lab.settle()
    after = {s.content: s.id for s in lab.segments(document)}
    assert set(after) == {green, blue}
    assert after[green] == kept[green]
    assert child_ids(lab, document)[green] == children[green]
    assert lab.embedder.texts == blue.split("\n")
    assert len(set(lab.points(dataset)) & points) == 3
    found = lab.found(dataset, "number speaks of")
    assert set(found) == {green, blue}
    lab.assert_index_is_what_sql_says(dataset)


def child_ids(lab: Lab, document: uuid.UUID) -> dict[str, list[uuid.UUID]]:
    """Of each live parent's text, its live children in order."""
    with reading(lab.resources.sessions) as session:
        rows = session.execute(
            select(Segment.content, ChildChunk.id)
            .join(ChildChunk, ChildChunk.segment_id == Segment.id)
            .where(Segment.document_id == document, Segment.live, ChildChunk.live)
            .order_by(Segment.position, ChildChunk.position)
        ).all()
    found: dict[str, list[uuid.UUID]] = {}
    for content, child in rows:
        found.setdefault(content, []).append(child)
    return found
