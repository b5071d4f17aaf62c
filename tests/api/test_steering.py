"""Pause, resume, retry, cancel and rechunk, one document or many; what running work does then."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from kb.db import now, transaction
from kb.doctor import examine
from kb.models import Document, IndexingStatus
from pipelines.errors import NodeError, TransientError
from tests.kb.api import NOWHERE, refused
from tests.kb.ingesting import ECONOMY, PARENTS, Killed, Lab, dies, fails, lines, open_lab
from tests.kb.server import LINES

WHOLE = {"mode": "automatic"}


@pytest.fixture
def lab(database: str, tmp_path: Path) -> Iterator[Lab]:
    """A process whose every run is a call of the test; batches of 4 segments."""
    with open_lab(tmp_path / "data") as opened:
        yield opened


def act(lab: Lab, dataset: str, document: uuid.UUID, action: str, **sent: Any) -> Any:
    return lab.client.post(f"/v1/datasets/{dataset}/documents/{document}/{action}", **sent)


def done(answer: Any) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    return dict(answer.json()["document"])


def act_on(lab: Lab, action: str, **asked: Any) -> dict[str, Any]:
    answer = lab.client.post(f"/v1/documents/{action}", json={"filter": asked})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def during(lab: Lab, batch: int, what: Callable[[], object]) -> None:
    """Have something happen while the worker embeds its n-th batch, n >= 1."""
    batches = [0]

    def before(_: Sequence[str]) -> None:
        batches[0] += 1
        if batches[0] == batch:
            what()

    lab.embedder.before = before


def assert_healthy(lab: Lab, dataset: str) -> None:
    """The index is what SQL says, and the doctor finds nothing, now and a minute later."""
    lab.settle()
    lab.later()
    lab.assert_index_is_what_sql_says(dataset)
    report = examine(lab.resources, repair=False, deep=True)
    assert report.healthy(), report.shape()


# --- pause and resume ----------------------------------------------------------------------------


def test_a_paused_document_is_taken_by_nobody_until_it_is_resumed(lab: Lab) -> None:
    dataset = lab.dataset()
    document = lab.add(dataset, "guide", lines(2))
    shown = done(act(lab, dataset, document, "pause"))
    assert (shown["display_status"], shown["indexing_status"]) == ("paused", "waiting")
    assert lab.work() == 0
    refused(act(lab, dataset, document, "pause"), 400, "invalid_action")
    shown = done(act(lab, dataset, document, "resume"))
    assert shown["display_status"] == "queuing"
    assert lab.work() == 1
    assert lab.document(document).indexing_status is IndexingStatus.COMPLETED
    refused(act(lab, dataset, document, "resume"), 400, "document_already_finished")
    refused(act(lab, dataset, document, "pause"), 400, "document_already_finished")


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_a_pause_stops_running_work_after_the_batch_in_hand_and_loses_none_of_it(
    lab: Lab, batch: int
) -> None:
    dataset = lab.dataset()
    document = lab.add(dataset, "guide", lines(10))  # batches of 4, 4 and 2
    during(lab, batch, lambda: done(act(lab, dataset, document, "pause")))
    lab.ingest(lab.claim())
    row = lab.document(document)
    assert (row.is_paused, row.version, row.lease_owner) == (True, 0, None)
    assert lab.claim() is None
    embedded = len(lab.embedder.texts)
    assert embedded == min(10, 4 * batch)
    status = lab.client.get(f"/v1/datasets/{dataset}/documents/{row.batch}/indexing-status")
    assert status.json()["data"][0]["indexing_status"] == "paused"
    assert status.json()["data"][0]["completed_segments"] == embedded
    assert isinstance(status.json()["data"][0]["paused_at"], int)
    done(act(lab, dataset, document, "resume"))
    assert lab.work() == 1
    assert lab.document(document).indexing_status is IndexingStatus.COMPLETED
    assert len(lab.embedder.texts) == 10, "nothing was embedded twice"
    assert [run.status for run in lab.runs(document)] == ["stopped", "succeeded"]
    assert_healthy(lab, dataset)


def test_a_pause_during_extraction_keeps_what_was_extracted(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = lab.dataset()
    document = lab.add(dataset, "guide", lines(3))
    get = lab.resources.blobs.get

    def slow_get(key: str) -> bytes:
        done(act(lab, dataset, document, "pause"))
        return get(key)

    monkeypatch.setattr(lab.resources.blobs, "get", slow_get)
    lab.ingest(lab.claim())
    monkeypatch.undo()
    assert lab.document(document).is_paused
    assert lab.version(document, 1).staged_at is not None
    assert lab.embedder.texts == []
    done(act(lab, dataset, document, "resume"))
    claim = lab.claim()
    assert claim is not None
    assert claim.staged, "it is not read again"
    lab.ingest(claim)
    assert lab.document(document).indexing_status is IndexingStatus.COMPLETED


def test_a_resume_that_comes_before_the_checkpoint_changes_nothing(lab: Lab) -> None:
    dataset = lab.dataset()
    document = lab.add(dataset, "guide", lines(10))

    def pause_and_resume() -> None:
        done(act(lab, dataset, document, "pause"))
        done(act(lab, dataset, document, "resume"))

    during(lab, 1, pause_and_resume)
    lab.ingest(lab.claim())
    assert lab.document(document).indexing_status is IndexingStatus.COMPLETED


def test_a_document_whose_worker_died_while_it_was_paused_goes_on_after_resume(lab: Lab) -> None:
    dataset = lab.dataset()
    document = lab.add(dataset, "guide", lines(10))
    during(lab, 2, lambda: (done(act(lab, dataset, document, "pause")), dies()))
    with pytest.raises(Killed):
        lab.ingest(lab.claim())
    lab.embedder.before = lambda texts: None
    lab.restart()
    assert lab.work() == 0
    done(act(lab, dataset, document, "resume"))
    assert lab.work() == 1
    assert lab.document(document).indexing_status is IndexingStatus.COMPLETED
    assert_healthy(lab, dataset)


def test_a_document_that_fails_while_it_is_paused_is_not_paused_any_more(lab: Lab) -> None:
    dataset = lab.dataset()
    document = lab.add(dataset, "guide", lines(2))

    def pause_and_fail() -> None:
        done(act(lab, dataset, document, "pause"))
        raise NodeError("the model refuses this", code="refused")

    during(lab, 1, pause_and_fail)
    lab.ingest(lab.claim())
    row = lab.document(document)
    assert (row.indexing_status, row.is_paused) == (IndexingStatus.ERROR, False)


def test_a_document_that_is_to_be_tried_again_stays_paused(lab: Lab) -> None:
    dataset = lab.dataset()
    document = lab.add(dataset, "guide", lines(2))

    def pause_and_fail() -> None:
        done(act(lab, dataset, document, "pause"))
        raise TransientError("the model is away")

    during(lab, 1, pause_and_fail)
    lab.ingest(lab.claim())
    assert lab.work() == 0
    done(act(lab, dataset, document, "resume"))
    lab.embedder.before = lambda texts: None
    assert lab.work() == 1


def test_an_upload_ends_a_pause(lab: Lab) -> None:
    dataset = lab.dataset()
    document = lab.add(dataset, "guide", lines(2))
    done(act(lab, dataset, document, "pause"))
    assert lab.add(dataset, "guide", lines(3)) == document
    assert lab.work() == 1
    assert len(lab.segments(document)) == 3


def test_the_old_version_answers_while_the_new_one_is_paused(lab: Lab) -> None:
    dataset = lab.dataset()
    document = lab.add(dataset, "guide", "The badger digs.")
    lab.settle()
    lab.add(dataset, "guide", "The otter swims.")
    during(lab, 1, lambda: done(act(lab, dataset, document, "pause")))
    lab.ingest(lab.claim())
    assert lab.found(dataset, "badger otter") == ["The badger digs."]
    done(act(lab, dataset, document, "resume"))
    lab.settle()
    assert lab.found(dataset, "badger otter") == ["The otter swims."]


def test_a_paused_document_can_be_deleted_under_its_worker(lab: Lab) -> None:
    dataset = lab.dataset()
    document = lab.add(dataset, "guide", lines(10))

    def pause_and_delete() -> None:
        done(act(lab, dataset, document, "pause"))
        lab.delete(dataset, document)

    during(lab, 2, pause_and_delete)
    lab.ingest(lab.claim())
    assert_healthy(lab, dataset)
    assert lab.points(dataset) == {}


# --- cancel --------------------------------------------------------------------------------------


def test_a_first_version_that_is_cancelled_is_an_error_and_a_retry_undoes_it(lab: Lab) -> None:
    dataset = lab.dataset()
    document = lab.add(dataset, "guide", lines(10))
    during(lab, 2, lambda: done(act(lab, dataset, document, "cancel")))
    lab.ingest(lab.claim())
    row = lab.document(document)
    assert (row.indexing_status, row.error_code) == (IndexingStatus.ERROR, "cancelled")
    assert (row.error_stage, row.lease_owner) == ("indexing", None)
    assert row.stopped_at is not None
    assert lab.work() == 0, "nobody takes it by itself"
    assert lab.found(dataset, "line") == []
    refused(act(lab, dataset, document, "cancel"), 400, "invalid_action")
    done(act(lab, dataset, document, "retry"))
    lab.embedder.before = lambda texts: None
    lab.settle()
    assert lab.document(document).indexing_status is IndexingStatus.COMPLETED
    assert len(lab.embedder.texts) == 10, "the first batches were kept"
    assert_healthy(lab, dataset)


@pytest.mark.parametrize("form", [{}, PARENTS])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_an_update_that_is_cancelled_leaves_the_old_version_as_it_was(
    lab: Lab, batch: int, form: dict[str, Any]
) -> None:
    dataset = lab.dataset()
    document = lab.add(dataset, "guide", "The badger digs.\nThe otter swims.", **form)
    lab.settle()
    before = lab.document(document)
    text = "The otter swims.\n\n" + lines(10)
    assert lab.add(dataset, "guide", text, **form) == document
    during(lab, batch, lambda: done(act(lab, dataset, document, "cancel")))
    lab.ingest(lab.claim())
    lab.embedder.before = lambda texts: None
    row = lab.document(document)
    assert (row.indexing_status, row.version, row.pending_version) == (
        IndexingStatus.COMPLETED,
        1,
        None,
    )
    assert (row.upload_file_id, row.process_rule_id) == (
        before.upload_file_id,
        before.process_rule_id,
    )
    assert (row.error, row.lease_owner, row.is_paused) == (None, None, False)
    assert row.completed_at == lab.version(document, 1).live_at
    assert lab.found(dataset, "badger")[0].startswith("The badger digs.")
    assert not any("line" in text for text in lab.found(dataset, "line number"))
    assert_healthy(lab, dataset)
    assert lab.add(dataset, "guide", text, **form) == document  # the same text comes back
    lab.settle()
    assert lab.document(document).version == 3
    assert_healthy(lab, dataset)


def test_an_update_that_waits_is_cancelled_before_anybody_took_it(lab: Lab) -> None:
    dataset = lab.dataset(**ECONOMY)
    document = lab.add(dataset, "guide", "The badger digs.")
    lab.settle()
    lab.add(dataset, "guide", "The otter swims.")
    shown = done(act(lab, dataset, document, "cancel"))
    assert shown["display_status"] == "available"
    assert lab.work() == 0
    assert lab.found(dataset, "badger otter") == ["The badger digs."]
    refused(act(lab, dataset, document, "cancel"), 400, "document_already_finished")


def test_an_update_that_failed_is_given_up_by_cancel(lab: Lab) -> None:
    dataset = lab.dataset()
    document = lab.add(dataset, "guide", "The badger digs.")
    lab.settle()
    lab.embedder.before = fails(1, lambda: NodeError("no", code="refused"))
    lab.add(dataset, "guide", "The otter swims.")
    lab.work()
    assert lab.document(document).indexing_status is IndexingStatus.ERROR
    assert done(act(lab, dataset, document, "cancel"))["display_status"] == "available"
    assert_healthy(lab, dataset)


def test_a_cancel_that_comes_after_the_switch_is_too_late(lab: Lab) -> None:
    dataset = lab.dataset()
    document = lab.add(dataset, "guide", lines(2))
    lab.settle()
    refused(act(lab, dataset, document, "cancel"), 400, "document_already_finished")
    assert len(lab.segments(document)) == 2


def test_a_worker_that_is_killed_after_a_cancel_leaves_no_point_behind(lab: Lab) -> None:
    dataset = lab.dataset()
    document = lab.add(dataset, "guide", "The badger digs.")
    lab.settle()
    lab.add(dataset, "guide", lines(10))
    claim = lab.claim()

    def cancel_then_die(_: object) -> None:
        done(act(lab, dataset, document, "cancel"))
        lab.jobs()  # the first delete came before the points did
        lab.index.after_upsert = dies

    lab.index.before_upsert = cancel_then_die
    with pytest.raises(Killed):
        lab.ingest(claim)
    lab.index.before_upsert = lab.index.after_upsert = lambda points: None
    lab.restart()
    assert len(lab.points(dataset)) > 1, "they were written late"
    assert_healthy(lab, dataset)


# --- retry and rechunk ---------------------------------------------------------------------------


def test_only_a_failed_document_is_retried(lab: Lab) -> None:
    dataset = lab.dataset(**ECONOMY)
    document = lab.add(dataset, "guide", "Some text.")
    refused(act(lab, dataset, document, "retry"), 400, "invalid_param")


def test_a_rechunk_cuts_the_same_file_by_another_rule_while_the_old_chunks_answer(
    lab: Lab,
) -> None:
    dataset = lab.dataset()
    document = lab.add(dataset, "guide", "The badger digs.\nThe otter swims.")
    lab.settle()
    file_id = lab.document(document).upload_file_id
    assert done(act(lab, dataset, document, "rechunk", json={"process_rule": WHOLE}))
    assert lab.found(dataset, "badger")[0] == "The badger digs."
    lab.settle()
    assert lab.found(dataset, "badger") == ["The badger digs.\nThe otter swims."]
    row = lab.document(document)
    assert (row.version, row.upload_file_id) == (2, file_id)
    answer = act(lab, dataset, document, "rechunk", json={"process_rule": {"mode": "other"}})
    refused(answer, 400, "invalid_param")
    assert_healthy(lab, dataset)


@pytest.mark.parametrize("state", [{"enabled": False}, {"archived": True}])
def test_a_document_that_is_out_is_not_rechunked(lab: Lab, state: dict[str, bool]) -> None:
    dataset = lab.dataset(**ECONOMY)
    document = lab.add(dataset, "guide", "Some text.")
    lab.settle()
    with transaction(lab.resources.sessions) as session:
        session.execute(update(Document).where(Document.id == document).values(**state))
    refused(act(lab, dataset, document, "rechunk"), 400, "invalid_action")


@pytest.mark.parametrize("action", ["pause", "resume", "retry", "cancel", "rechunk"])
def test_what_is_not_there_is_404(lab: Lab, action: str) -> None:
    dataset = lab.dataset(**ECONOMY)
    refused(act(lab, dataset, uuid.UUID(NOWHERE), action), 404, "not_found")
    refused(act(lab, NOWHERE, uuid.UUID(NOWHERE), action), 404, "not_found")


# --- many at once --------------------------------------------------------------------------------


def names(lab: Lab, answer: dict[str, Any]) -> set[str]:
    return {lab.document(uuid.UUID(i)).name for i in answer["document_ids"]}


@pytest.fixture
def shelf(lab: Lab) -> str:
    """A dataset with documents in several states; another one with one that waits."""
    dataset = lab.dataset("shelf", **ECONOMY)
    lab.add(dataset, "done", "Some text.")
    lab.settle()
    too_small = {**LINES, "rules": {**LINES["rules"], "segmentation": {"max_tokens": 1}}}  # type: ignore[dict-item]
    lab.add(dataset, "failed", "Some text.", process_rule=too_small)
    lab.add(dataset, "blank", "#", process_rule=LINES)
    lab.settle()
    lab.add(dataset, "waits", "Some text.")
    lab.add(dataset, "waits too", "Some text.")
    elsewhere = lab.dataset("elsewhere", **ECONOMY)
    lab.add(elsewhere, "far", "Some text.")
    return dataset


@pytest.mark.parametrize(
    ("action", "asked", "expected", "matched"),
    [
        ("pause", {"all": True}, {"waits", "waits too", "far"}, 6),
        ("pause", {"dataset_id": "shelf"}, {"waits", "waits too"}, 5),
        ("pause", {"dataset_id": "shelf", "status": "queuing"}, {"waits", "waits too"}, 2),
        ("pause", {"status": ["error", "available"]}, set(), 3),
        ("pause", {"status": []}, set(), 0),
        ("retry", {"all": True}, {"failed", "blank"}, 6),
        ("retry", {"error_code": "invalid_process_rule"}, {"failed"}, 1),
        ("retry", {"error_code": ["no_chunks", "other"]}, {"blank"}, 1),
        ("cancel", {"dataset_id": "shelf"}, {"waits", "waits too"}, 5),
        ("rechunk", {"dataset_id": "shelf", "status": "available"}, {"done"}, 1),
        ("cancel", {"created_from": "2100-01-01"}, set(), 0),
        ("cancel", {"created_to": "2100-01-01"}, {"waits", "waits too", "far"}, 6),
        ("cancel", {"created_to": 0}, set(), 0),
        ("cancel", {"document_ids": [NOWHERE]}, set(), 0),
        ("cancel", {"dataset_id": NOWHERE}, set(), 0),
    ],
)
def test_an_action_is_done_to_what_matches_and_is_in_a_state_for_it(
    lab: Lab, shelf: str, action: str, asked: dict[str, Any], expected: set[str], matched: int
) -> None:
    asked = {k: shelf if v == "shelf" else v for k, v in asked.items()}
    answer = act_on(lab, action, **asked)
    assert names(lab, answer) == expected
    assert (answer["action"], answer["matched"]) == (action, matched)
    assert answer["affected"] == len(expected)


def test_documents_are_found_by_their_ids_and_by_the_tag_of_their_dataset(
    lab: Lab, shelf: str
) -> None:
    listed = lab.client.get(f"/v1/datasets/{shelf}/documents").json()["data"]
    ids = {d["name"]: d["id"] for d in listed}
    answer = act_on(lab, "pause", document_ids=[ids["waits"], ids["done"], NOWHERE])
    assert names(lab, answer) == {"waits"}
    tag = lab.client.post("/v1/datasets/tags", json={"name": "urgent"}).json()
    bound = {"tag_ids": [tag["id"]], "target_id": shelf}
    assert lab.client.post("/v1/datasets/tags/binding", json=bound).status_code == 204
    for named in ("urgent", tag["id"]):
        assert act_on(lab, "pause", tag=named)["matched"] == 5
    assert act_on(lab, "resume", tag=["urgent", "other"])["document_ids"] == [
        ids["waits"],
        ids["waits too"],
    ]
    assert act_on(lab, "pause", tag="other")["matched"] == 0


def test_documents_of_a_time_are_those_that_were_created_in_it(lab: Lab) -> None:
    dataset = lab.dataset(**ECONOMY)
    for name in ("old", "new"):
        lab.add(dataset, name, "Some text.")
    at = now().replace(microsecond=0)
    with transaction(lab.resources.sessions) as session:
        for name, created_at in (("old", at - timedelta(days=2)), ("new", at)):
            mine = update(Document).where(Document.name == name)
            session.execute(mine.values(created_at=created_at))
    span = {"created_from": (at - timedelta(days=3)).timestamp(), "created_to": at.isoformat()}
    assert names(lab, act_on(lab, "pause", **span)) == {"old"}
    at_once = (at - timedelta(days=2)).isoformat()
    assert names(lab, act_on(lab, "resume", created_to=at_once)) == set(), "the end is open"
    assert names(lab, act_on(lab, "resume", created_from=at_once)) == {"old"}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "filter is required"),
        ({"filter": {}}, "there is no condition"),
        ({"filter": {"all": False, "status": None}}, "there is no condition"),
        ({"filter": {"status": "other"}}, "queuing"),
        ({"filter": {"statsu": "error", "dataset_id": NOWHERE}}, "statsu"),
        ({"filter": {"created_from": "yesterday"}}, "created_from"),
        ({"filter": {"created_from": "0001-01-01T00:00:00+14:00"}}, "years 1 to 9999"),
        ({"filter": {"created_to": 1e300}}, "created_to"),
        ({"filter": {"tag": ["a"] * 101}}, "tag"),
        ({"filter": {"document_ids": ["one"]}}, "document_ids"),
        ({"filter": {"all": True}, "other": 1}, "other"),
        ([], "send a JSON object"),
    ],
)
def test_a_filter_that_is_not_understood_is_400_and_nothing_is_done(
    lab: Lab, body: Any, said: str
) -> None:
    dataset = lab.dataset(**ECONOMY)
    document = lab.add(dataset, "guide", "Some text.")
    message = refused(lab.client.post("/v1/documents/cancel", json=body), 400, "invalid_param")
    assert said in message
    assert lab.document(document).indexing_status is IndexingStatus.WAITING


def test_an_unknown_action_is_400(lab: Lab) -> None:
    answer = lab.client.post("/v1/documents/explode", json={"filter": {"all": True}})
    assert "pause, resume" in refused(answer, 400, "invalid_action")


def test_many_documents_are_rechunked_by_one_rule(lab: Lab) -> None:
    dataset = lab.dataset(**ECONOMY)
    documents = [lab.add(dataset, f"guide {n}", "One.\nTwo.") for n in range(3)]
    lab.settle()
    body = {"filter": {"dataset_id": dataset}, "process_rule": WHOLE}
    answer = lab.client.post("/v1/documents/rechunk", json=body)
    assert answer.json()["affected"] == 3
    lab.settle()
    assert [len(lab.segments(document)) for document in documents] == [1, 1, 1]
    assert len({lab.document(document).process_rule_id for document in documents}) == 1
    bad = {"filter": {"dataset_id": dataset}, "process_rule": {"mode": "custom"}}
    refused(lab.client.post("/v1/documents/rechunk", json=bad), 400, "invalid_param")
