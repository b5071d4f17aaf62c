"""One document's way through the states, its failures, its checkpoints."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, select, update
from sqlalchemy.exc import OperationalError

from kb.db import now, reading, transaction
from kb.errors import StoreUnavailable
from kb.ingestion import run
from kb.models import Document, IndexingStatus, PipelineRun
from pipelines.errors import RateLimited, TransientError
from tests.kb.ingesting import PARENTS, Killed, Lab, dies, fails, lines, open_lab
from tests.kb.server import LINES, add_file


@pytest.fixture
def lab(database: str, tmp_path: Path) -> Iterator[Lab]:
    with open_lab(tmp_path) as opened:
        yield opened


# --- states ----------------------------------------------------------------------------------


def test_a_document_passes_through_the_states_in_order(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Stages that take less than half a second are not worth a commit; here each is shown.
    monkeypatch.setattr(run, "_SHOW_AFTER_S", 0.0)
    document = lab.add(lab.dataset(), "d", lines(10))
    seen = [lab.document(document).indexing_status]

    @event.listens_for(lab.resources.sessions.write, "after_commit")
    def look(_session: Any) -> None:
        status = lab.document(document).indexing_status
        if status is not seen[-1]:
            seen.append(status)

    lab.work()
    assert seen == ["waiting", "parsing", "cleaning", "splitting", "indexing", "completed"]


def test_the_times_of_the_stages_are_in_order(lab: Lab) -> None:
    document = lab.add(lab.dataset(), "d", lines(10))
    began = now()
    lab.work()
    row = lab.document(document)
    times = [
        row.created_at,
        began,
        row.processing_started_at,
        row.parsing_completed_at,
        row.cleaning_completed_at,
        row.splitting_completed_at,
        row.completed_at,
        now(),
    ]
    known = [t for t in times if t is not None]
    assert len(known) == len(times)
    assert known == sorted(known)
    assert row.completed_at is not None
    assert row.processing_started_at is not None
    assert row.indexing_latency == pytest.approx(
        (row.completed_at - row.processing_started_at).total_seconds()
    )
    assert row.lease_owner is None


def test_a_completed_document_is_in_the_index_whole(lab: Lab) -> None:
    dataset = lab.dataset()
    flat = lab.add(dataset, "flat", lines(11))
    lab.settle()
    assert [s.content for s in lab.segments(flat)] == lines(11).split("\n")
    assert lab.document(flat).version == 1
    lab.assert_index_is_what_sql_says(dataset)


def test_a_document_of_parents_and_children_is_in_the_index_whole(lab: Lab) -> None:
    dataset = lab.dataset()
    text = "\n\n".join(lines(3, word) for word in ("red", "green", "blue"))
    document = lab.add(dataset, "d", text, **PARENTS)
    lab.settle()
    assert len(lab.segments(document)) == 3
    assert len(lab.points(dataset)) == 9
    lab.assert_index_is_what_sql_says(dataset)


def test_a_document_of_an_economy_dataset_needs_no_model(lab: Lab) -> None:
    dataset = lab.dataset("cheap", indexing_technique="economy")
    lab.add(dataset, "d", lines(7))
    lab.settle()
    assert len(lab.points(dataset)) == 7
    assert lab.embedder.texts == []
    lab.assert_index_is_what_sql_says(dataset)


# --- failures --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "code"),
    [
        ("empty.txt", b"", "empty_file"),
        ("blank.txt", b" \n\n ", "no_text"),
        ("broken.pdf", b"%PDF-1.7 and then nothing of the kind", "corrupt"),
        ("broken.docx", b"PK\x03\x04 but not a zip archive", "corrupt"),
    ],
)
def test_a_bad_file_fails_at_once_and_is_not_tried_again(
    lab: Lab, name: str, data: bytes, code: str
) -> None:
    dataset = lab.dataset()
    created = add_file(lab.client, dataset, name, data)
    document = uuid.UUID(created["document"]["id"])
    assert lab.work() == 1
    row = lab.document(document)
    assert (row.indexing_status, row.error_code, row.error_stage) == ("error", code, "parsing")
    assert row.error
    assert row.stopped_at is not None
    assert row.lease_owner is None
    assert lab.claim() is None
    assert [(r.status, r.error_code) for r in lab.runs(document)] == [("failed", code)]


def test_a_rule_that_cannot_cut_fails_with_its_stage(lab: Lab) -> None:
    rule = {
        "mode": "custom",
        "rules": {
            "pre_processing_rules": [],
            "segmentation": {"separator": "\n", "max_tokens": 5, "chunk_overlap": 0},
        },
    }
    document = lab.add(lab.dataset(), "d", lines(3), process_rule=rule)
    assert lab.work() == 1
    row = lab.document(document)
    assert row.indexing_status is IndexingStatus.ERROR
    assert row.error is not None
    assert "50" in row.error


@pytest.mark.parametrize(
    ("part", "error"),
    [
        ("index", lambda: TransientError("the index answered nonsense")),
        ("model", lambda: TransientError("the model's server is busy")),
        ("model", lambda: ConnectionResetError("of a kind that nobody foresaw")),
    ],
)
@pytest.mark.usefixtures("database")
def test_a_transient_failure_is_tried_again_after_a_growing_wait(
    tmp_path: Path, part: str, error: Any
) -> None:
    with open_lab(tmp_path, retry_base_s=40.0) as lab:
        dataset = lab.dataset()
        document = lab.add(dataset, "d", lines(3))
        failing = fails(2, error)
        if part == "index":
            lab.index.before_upsert = failing
        else:
            lab.embedder.before = failing
        waits = []
        for failures in (1, 2):
            assert lab.work() == 1
            row = lab.document(document)
            assert (row.indexing_status, row.error_stage) == ("waiting", "indexing")
            assert row.error is not None
            assert str(error()) in row.error
            assert row.attempts == failures
            assert row.next_attempt_at is not None
            waits.append((row.next_attempt_at - now()).total_seconds())
            assert lab.claim() is None  # not before its time
            due(lab, document)
        assert waits[0] == pytest.approx(40, abs=5)
        assert waits[1] == pytest.approx(80, abs=5)
        assert lab.work() == 1
        row = lab.document(document)
        assert (row.indexing_status, row.error, row.attempts) == ("completed", None, 0)
        lab.assert_index_is_what_sql_says(dataset)


def test_the_other_side_may_ask_for_a_longer_wait(lab: Lab) -> None:
    document = lab.add(lab.dataset(), "d", lines(3))
    lab.embedder.before = fails(1, lambda: TransientError("busy", retry_after_s=90))
    lab.work()
    at = lab.document(document).next_attempt_at
    assert at is not None
    assert (at - now()).total_seconds() == pytest.approx(90, abs=5)


def test_being_told_to_come_later_is_no_failed_attempt(lab: Lab) -> None:
    dataset = lab.dataset()
    document = lab.add(dataset, "d", lines(3))
    lab.embedder.before = fails(20, lambda: RateLimited("429", retry_after_s=0.0))
    assert lab.work() == 21  # max_attempts is 3
    row = lab.document(document)
    assert (row.indexing_status, row.error) == ("completed", None)
    lab.assert_index_is_what_sql_says(dataset)


def test_a_document_that_was_told_to_come_later_is_not_suspected(lab: Lab) -> None:
    document = lab.add(lab.dataset(), "d", lines(3))
    lab.embedder.before = fails(9, lambda: RateLimited("429", retry_after_s=40.0))
    for _ in range(4):
        lab.work()
        row = lab.document(document)
        assert (row.indexing_status, row.attempts, row.error_code) == ("waiting", 0, "rate_limited")
        at = row.next_attempt_at
        assert at is not None
        assert (at - now()).total_seconds() == pytest.approx(40, abs=5)
        due(lab, document)


@pytest.mark.usefixtures("database")
def test_pauses_of_unknown_length_grow(tmp_path: Path) -> None:
    with open_lab(tmp_path, retry_base_s=40.0) as lab:
        document = lab.add(lab.dataset(), "d", lines(3))
        lab.embedder.before = fails(9, lambda: RateLimited("429"))
        waits = []
        for _ in range(6):
            lab.work()
            at = lab.document(document).next_attempt_at
            assert at is not None
            waits.append((at - now()).total_seconds())
            due(lab, document)
        assert waits == pytest.approx([40, 80, 160, 320, 600, 600], abs=5)


def test_pauses_and_failures_are_counted_apart(lab: Lab) -> None:
    document = lab.add(lab.dataset(), "d", lines(3))
    errors = [RateLimited("429"), TransientError("busy")] * 2 + [RateLimited("429")] * 3

    def fail(_texts: object) -> None:
        if errors:
            raise errors.pop(0)

    lab.embedder.before = fail
    assert lab.work() == 8  # two failures of three that are allowed
    assert lab.document(document).indexing_status is IndexingStatus.COMPLETED


@pytest.mark.usefixtures("database")
def test_a_document_is_given_up_when_it_was_told_to_come_later_for_too_long(
    tmp_path: Path,
) -> None:
    with open_lab(tmp_path, max_postponed_s=0.5) as lab:
        document = lab.add(lab.dataset(), "d", lines(3))
        lab.embedder.before = fails(10_000, lambda: RateLimited("429: come later"))
        assert lab.work() > 1
        row = lab.document(document)
        assert (row.indexing_status, row.error_code) == ("error", "rate_limited")
        assert row.error == "429: come later"


def test_what_was_embedded_before_a_pause_is_kept(lab: Lab) -> None:
    dataset = lab.dataset()
    document = lab.add(dataset, "d", lines(3))

    def half_way(texts: Sequence[str]) -> None:
        lab.embedder.before = lambda texts: None
        error = RateLimited("429")
        error.done = {1: lab.embedder.embed_documents(texts[1:2])[0]}
        raise error

    lab.embedder.before = half_way
    assert lab.work() == 2
    assert lab.document(document).indexing_status is IndexingStatus.COMPLETED
    assert sorted(lab.embedder.texts) == sorted(lines(3).split("\n"))  # none of them twice
    lab.assert_index_is_what_sql_says(dataset)


@pytest.mark.parametrize(
    "error",
    [
        lambda: StoreUnavailable("index", "upsert", "no answer"),
        lambda: OperationalError("SELECT", {}, Exception("the database system is starting up")),
    ],
)
def test_a_store_that_is_away_delays_a_document_and_fails_it_never(
    lab: Lab, error: Callable[[], Exception]
) -> None:
    dataset = lab.dataset()
    document = lab.add(dataset, "d", lines(3))
    lab.index.before_upsert = fails(9, error)
    assert lab.work() == 10  # max_attempts is 3
    row = lab.document(document)
    assert (row.indexing_status, row.error, row.attempts) == ("completed", None, 0)
    codes = [run.error_code for run in lab.runs(document)]
    assert codes == ["store_unavailable"] * 9 + [None]
    lab.assert_index_is_what_sql_says(dataset)


@pytest.mark.usefixtures("database")
def test_a_document_is_given_up_when_a_store_was_away_for_too_long(tmp_path: Path) -> None:
    with open_lab(tmp_path, max_postponed_s=0.5) as lab:
        document = lab.add(lab.dataset(), "d", lines(3))
        lab.index.before_upsert = fails(10_000, lambda: StoreUnavailable("index", "upsert", "gone"))
        assert lab.work() > 3
        row = lab.document(document)
        assert (row.indexing_status, row.error_code) == ("error", "store_unavailable")
        assert row.error == "index failed at upsert: gone"


def test_after_max_attempts_it_is_an_error_until_a_person_retries(lab: Lab) -> None:
    dataset = lab.dataset()
    document = lab.add(dataset, "d", lines(3))
    lab.index.before_upsert = fails(5, lambda: TransientError("no answer"))
    assert lab.work() == 3
    row = lab.document(document)
    assert (row.indexing_status, row.error_code) == ("error", "temporarily_unavailable")
    assert row.error == "no answer"
    assert lab.work() == 0

    lab.retry(dataset, document)
    row = lab.document(document)
    assert (row.indexing_status, row.attempts, row.error) == ("waiting", 0, None)
    assert lab.work() == 3  # two more failures, then it answers
    assert lab.document(document).indexing_status is IndexingStatus.COMPLETED
    assert [r.status for r in lab.runs(document)] == ["failed"] * 5 + ["succeeded"]
    lab.assert_index_is_what_sql_says(dataset)


def test_failures_are_counted_since_the_last_progress(lab: Lab) -> None:
    dataset = lab.dataset()
    document = lab.add(dataset, "d", lines(40))  # ten batches
    calls: list[int] = []

    def every_third_fails(_points: object) -> None:
        calls.append(1)
        if len(calls) % 3 == 0:
            raise TransientError("busy")

    lab.index.before_upsert = every_third_fails
    lab.work()
    assert [r.status for r in lab.runs(document)].count("failed") > 3
    assert lab.document(document).indexing_status is IndexingStatus.COMPLETED
    lab.assert_index_is_what_sql_says(dataset)


def test_crashes_before_it_do_not_make_the_first_failure_the_last(lab: Lab) -> None:
    document = lab.add(lab.dataset(), "d", lines(3))
    for _ in range(4):
        assert lab.claim() is not None
        lab.restart()
    lab.embedder.before = fails(2, lambda: TransientError("busy"))
    lab.work()
    assert lab.document(document).indexing_status is IndexingStatus.COMPLETED


@pytest.mark.usefixtures("database")
def test_a_document_that_kills_its_reader_is_given_up_and_holds_up_no_other(
    tmp_path: Path,
) -> None:
    with open_lab(tmp_path, max_crashes=3) as lab:
        dataset = lab.dataset()
        poison = lab.add(dataset, "poison", "the text that kills")
        others = [lab.add(dataset, f"d{n}", lines(3, f"w{n}")) for n in range(4)]
        count = lab.embedder.count_tokens

        def kills(texts: Any) -> list[int]:
            if "the text that kills" in texts:
                raise Killed
            return count(texts)

        lab.embedder.count_tokens = kills  # type: ignore[method-assign]
        deaths = 0
        while True:
            try:
                lab.work()
                break
            except Killed:
                deaths += 1
                lab.restart()
                if deaths == 1:  # the rest is done before it is looked at again
                    first = lab.claim("probe")
                    assert first is not None
                    assert first.document_id == others[0]
                    lab.ingest(first)
        assert deaths == 3
        row = lab.document(poison)
        assert (row.indexing_status, row.error_code) == ("error", "crashed_repeatedly")
        assert row.error_stage == "parsing"
        assert all(lab.document(d).indexing_status == "completed" for d in others)
        assert [r.status for r in lab.runs(poison)] == ["lost"] * 3 + ["failed"]

        lab.embedder.count_tokens = count  # type: ignore[method-assign]
        lab.retry(dataset, poison)
        lab.work()
        assert lab.document(poison).indexing_status is IndexingStatus.COMPLETED


@pytest.mark.usefixtures("database")
def test_one_that_kills_its_reader_while_it_is_embedded_is_given_up_in_that_stage(
    tmp_path: Path,
) -> None:
    with open_lab(tmp_path, max_crashes=2) as lab:
        document = lab.add(lab.dataset(), "d", lines(3))
        lab.embedder.before = dies
        for _ in range(2 + 1):  # staging was progress: the count begins there
            with pytest.raises(Killed):
                lab.work()
            lab.restart()
        lab.work()
        row = lab.document(document)
        assert (row.error_code, row.error_stage) == ("crashed_repeatedly", "indexing")


def test_a_lost_file_is_an_error_that_says_so(lab: Lab) -> None:
    document = lab.add(lab.dataset(), "d", lines(3))
    for key in list(lab.resources.blobs.keys("uploads/")):
        lab.resources.blobs.delete(key)
    assert lab.work() == 1
    row = lab.document(document)
    assert (row.indexing_status, row.error_code) == ("error", "not_found")


def test_an_outcome_that_cannot_be_recorded_leaves_the_document_to_the_next_worker(
    lab: Lab,
) -> None:
    dataset = lab.dataset()
    document = lab.add(dataset, "d", lines(3))
    claim = lab.claim(lease_s=0.0)
    assert claim is not None

    def disk_full(_session: Any) -> None:
        raise OSError("disk full")

    event.listen(lab.resources.sessions.write, "before_commit", disk_full)
    with pytest.raises(OSError, match="disk full"):
        lab.ingest(claim)
    event.remove(lab.resources.sessions.write, "before_commit", disk_full)
    assert lab.work("w2") == 1
    assert lab.document(document).indexing_status is IndexingStatus.COMPLETED
    lab.assert_index_is_what_sql_says(dataset)


# --- checkpoints -----------------------------------------------------------------------------


def test_after_staging_nothing_is_extracted_or_split_again(lab: Lab) -> None:
    dataset = lab.dataset()
    document = lab.add(dataset, "d", lines(6))
    lab.embedder.before = dies  # right after the segments were stored
    with pytest.raises(Killed):
        lab.work()
    lab.restart()
    lab.embedder.before = lambda texts: None
    staged_at = lab.version(document, 1).staged_at
    for key in list(lab.resources.blobs.keys("uploads/")):
        lab.resources.blobs.delete(key)  # who reads the file again fails

    lab.work()
    assert lab.document(document).indexing_status is IndexingStatus.COMPLETED
    assert lab.version(document, 1).staged_at == staged_at
    runs = lab.runs(document)
    assert [(r.status, r.resumed) for r in runs] == [("lost", False), ("succeeded", True)]
    kinds = [n["kind"] for n in runs[-1].nodes or []]
    assert kinds == ["embed", "index"]
    lab.assert_index_is_what_sql_says(dataset)


@pytest.mark.parametrize("acknowledged", [0, 1, 3])
def test_after_k_batches_only_the_rest_is_embedded_and_written(lab: Lab, acknowledged: int) -> None:
    dataset = lab.dataset()
    document = lab.add(dataset, "d", lines(18))  # batches of 4
    calls: list[int] = []

    def dies_after(_texts: object) -> None:
        if len(calls) == acknowledged:
            raise Killed
        calls.append(1)

    lab.embedder.before = dies_after
    with pytest.raises(Killed):
        lab.work()
    assert lab.embedder.texts == lines(18).split("\n")[: 4 * acknowledged]
    lab.restart()
    lab.embedder.texts.clear()
    lab.embedder.before = lambda texts: None
    upserts = lab.index.upserts
    lab.work()
    assert lab.embedder.texts == lines(18).split("\n")[4 * acknowledged :]
    assert lab.index.upserts - upserts == 5 - acknowledged
    assert lab.document(document).indexing_status is IndexingStatus.COMPLETED
    lab.assert_index_is_what_sql_says(dataset)


@pytest.mark.parametrize("where", ["before_upsert", "after_upsert"])
@pytest.mark.parametrize("form", ["flat", "parents"])
def test_dying_at_every_batch_embeds_nothing_twice(lab: Lab, where: str, form: str) -> None:
    dataset = lab.dataset()
    text = "\n\n".join(lines(4, f"w{n}") for n in range(5))
    settings = PARENTS if form == "parents" else {}
    document = lab.add(dataset, "d", text, **settings)
    deaths = 0
    while True:
        calls: list[int] = []

        def one_batch_each(_points: object, calls: list[int] = calls) -> None:
            calls.append(1)
            if len(calls) == 2:
                raise Killed

        setattr(lab.index, where, one_batch_each)
        try:
            lab.work()
            break
        except Killed:
            deaths += 1
            lab.restart()
    assert deaths == 4
    assert lab.document(document).indexing_status is IndexingStatus.COMPLETED
    assert len(lab.embedder.texts) == len(set(lab.embedder.texts)) == 20
    lab.assert_index_is_what_sql_says(dataset)


def test_what_is_in_the_cache_is_embedded_by_no_document(lab: Lab) -> None:
    dataset = lab.dataset()
    lab.add(dataset, "a", lines(5))
    lab.work()
    lab.add(dataset, "b", lines(7))
    other = lab.dataset("other")
    lab.add(other, "c", lines(7))
    lab.work()
    assert sorted(lab.embedder.texts) == sorted(lines(7).split("\n"))


def test_the_same_line_many_times_is_embedded_once_and_kept_every_time(lab: Lab) -> None:
    dataset = lab.dataset()
    document = lab.add(dataset, "d", "\n".join(["again and again"] * 9))
    lab.work()
    assert lab.embedder.texts == ["again and again"]
    assert len(lab.segments(document)) == 9
    assert len(lab.points(dataset)) == 9


def test_runs_that_ended_without_a_word_do_not_stay_running(lab: Lab) -> None:
    lab.add(lab.dataset(), "d", lines(3))
    for _ in range(2):
        assert lab.claim() is not None
        lab.restart()
    lab.work()
    with reading(lab.resources.sessions) as session:
        states = session.scalars(select(PipelineRun.status).order_by(PipelineRun.started_at)).all()
    assert states == ["lost", "lost", "succeeded"]


def due(lab: Lab, document: uuid.UUID) -> None:
    """Let the wait before a document's next attempt be over."""
    with transaction(lab.resources.sessions) as session:
        session.execute(
            update(Document)
            .where(Document.id == document)
            .values(next_attempt_at=now() - timedelta(seconds=1))
        )


# --- uploads whose outcome their client does not learn -------------------------------------------


def test_an_upload_whose_announcement_fails_keeps_its_file(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = lab.dataset()
    with monkeypatch.context() as patched:
        patched.setattr(type(lab.resources.jobs), "index_document", fails_always)
        with pytest.raises(RuntimeError, match="as ordered"):
            lab.add(dataset, "d", lines(3))
    lab.settle()
    lab.assert_index_is_what_sql_says(dataset)
    assert len(lab.points(dataset)) == 3, "the row was committed, so the file had to stay"


def test_an_upload_whose_commit_got_no_answer_keeps_its_file(lab: Lab) -> None:
    dataset = lab.dataset()
    lost = [True]

    @event.listens_for(lab.resources.sessions.write, "after_commit")
    def no_answer(_session: Any) -> None:
        if lost and lost.pop():
            reason = Exception("server closed the connection unexpectedly")
            raise OperationalError("COMMIT", {}, reason, connection_invalidated=True)

    path = f"/v1/datasets/{dataset}/document/create-by-text"
    answer = lab.client.post(path, json={"name": "d", "text": lines(3), "process_rule": LINES})
    assert answer.status_code == 503
    lab.settle()
    lab.assert_index_is_what_sql_says(dataset)
    assert len(lab.points(dataset)) == 3


def test_a_switch_whose_commit_got_no_answer_is_one_success(lab: Lab) -> None:
    dataset = lab.dataset()
    document = lab.add(dataset, "d", lines(3))
    claim = lab.claim()

    @event.listens_for(lab.resources.sessions.write, "after_commit")
    def no_answer(_session: Any) -> None:
        if lab.document(document).pending_version is None and not lost:
            lost.append(True)
            reason = Exception("server closed the connection unexpectedly")
            raise OperationalError("COMMIT", {}, reason, connection_invalidated=True)

    lost: list[bool] = []
    lab.ingest(claim)
    assert lost
    lab.settle()
    row = lab.document(document)
    assert (row.indexing_status, row.error, row.version) == ("completed", None, 1)
    assert [run.status for run in lab.runs(document)] == ["succeeded"]
    lab.assert_index_is_what_sql_says(dataset)


def fails_always(*_: object) -> None:
    raise RuntimeError("as ordered")
