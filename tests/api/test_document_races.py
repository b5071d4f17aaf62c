"""What callers do while workers are at it: real worker threads, both databases."""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from kb.doctor import examine
from kb.models import IndexingStatus
from kb.runner import Runner
from tests.kb.api import refused
from tests.kb.ingesting import Lab, lines, open_lab

FINAL = (IndexingStatus.COMPLETED, IndexingStatus.ERROR)


@pytest.fixture
def lab(database: str, tmp_path: Path) -> Iterator[Lab]:
    """A process with two workers; batches of 4 segments."""
    with open_lab(tmp_path / "data", poll_s=0.05) as opened:
        runner = Runner(opened.resources)
        runner.start()
        try:
            yield opened
        finally:
            assert runner.stop(timeout_s=20)


class Gate:
    """Holds workers where they embed their n-th batch until it is opened."""

    def __init__(self, lab: Lab, batch: int = 1) -> None:
        self._left = batch
        self._reached, self._opened = threading.Event(), threading.Event()
        lab.embedder.before = self._hold

    def _hold(self, _: Sequence[str]) -> None:
        self._left -= 1
        if self._left == 0:
            self._reached.set()
            assert self._opened.wait(20)

    def await_worker(self) -> None:
        assert self._reached.wait(20)

    def open(self) -> None:
        self._opened.set()


def until(what: Callable[[], object]) -> None:
    ends = time.monotonic() + 30
    while not what():
        assert time.monotonic() < ends, "it never came to that"
        time.sleep(0.01)


def is_done(lab: Lab, document: uuid.UUID) -> bool:
    return lab.document(document).indexing_status in FINAL


def act(lab: Lab, dataset: str, document: uuid.UUID, action: str, **body: Any) -> Any:
    path = f"/v1/datasets/{dataset}/documents/{document}/{action}"
    return lab.client.post(path, json=body)


def text_update(lab: Lab, dataset: str, document: uuid.UUID, text: str) -> Any:
    return act(lab, dataset, document, "update-by-text", name="guide", text=text)


def assert_healthy(lab: Lab, dataset: str) -> None:
    while lab.jobs() + lab.later():
        pass
    lab.assert_index_is_what_sql_says(dataset)
    report = examine(lab.resources, repair=False, deep=True)
    assert report.healthy(), report.shape()


def test_a_document_in_work_is_not_deleted_and_can_be_when_it_is_done(lab: Lab) -> None:
    dataset = lab.dataset()
    gate = Gate(lab)
    document = lab.add(dataset, "guide", lines(6))
    gate.await_worker()
    path = f"/v1/datasets/{dataset}/documents/{document}"
    refused(lab.client.delete(path), 400, "document_indexing")
    gate.open()
    until(lambda: is_done(lab, document))
    assert lab.client.delete(path).status_code == 204
    assert lab.found(dataset, "line number") == []
    assert_healthy(lab, dataset)


def test_of_two_updates_while_a_worker_is_at_it_the_last_one_counts(lab: Lab) -> None:
    dataset = lab.dataset()
    gate = Gate(lab)
    document = lab.add(dataset, "guide", lines(6, "first"))
    gate.await_worker()
    for word in ("second", "third"):
        answer = text_update(lab, dataset, document, lines(5, word))
        assert answer.status_code == 200, answer.text
    gate.open()
    until(lambda: lab.document(document).version == 3)
    assert lab.document(document).indexing_status is IndexingStatus.COMPLETED
    assert {text.split()[0] for text in lab.found(dataset, "first second third")} == {"third"}
    assert_healthy(lab, dataset)


def test_a_pause_while_texts_are_embedded_keeps_what_is_done_and_embeds_no_more(lab: Lab) -> None:
    dataset = lab.dataset()
    gate = Gate(lab, batch=2)
    document = lab.add(dataset, "guide", lines(14))
    gate.await_worker()
    assert act(lab, dataset, document, "pause").status_code == 200
    gate.open()
    until(lambda: lab.document(document).lease_owner is None)
    time.sleep(0.2)  # a worker that took it now would be wrong
    assert len(lab.embedder.texts) == 8
    assert lab.document(document).version == 0
    assert act(lab, dataset, document, "resume").status_code == 200
    until(lambda: is_done(lab, document))
    assert len(lab.embedder.texts) == 14
    assert [run.status for run in lab.runs(document)] == ["stopped", "succeeded"]
    assert_healthy(lab, dataset)


def test_a_cancel_beside_the_completion_is_in_time_or_too_late_and_never_half(lab: Lab) -> None:
    dataset = lab.dataset()
    draw = random.Random(4)
    outcomes = set()
    for number in range(6):
        document = lab.add(dataset, f"guide {number}", lines(5, f"word{number}"))
        time.sleep(draw.random() * 0.06)
        answer = act(lab, dataset, document, "cancel")
        until(lambda document=document: is_done(lab, document))  # type: ignore[misc]
        row = lab.document(document)
        outcomes.add(answer.status_code)
        if answer.status_code == 200:
            assert (row.indexing_status, row.error_code) == (IndexingStatus.ERROR, "cancelled")
            assert lab.segments(document) == []
        else:
            refused(answer, 400, "document_already_finished")
            assert row.indexing_status is IndexingStatus.COMPLETED
            assert len(lab.segments(document)) == 5
    assert outcomes, "each is one or the other"
    until(lambda: not any(run.status == "running" for run in _runs(lab)))
    answer = lab.client.post("/v1/documents/retry", json={"filter": {"error_code": "cancelled"}})
    for document_id in answer.json()["document_ids"]:
        until(lambda i=document_id: is_done(lab, uuid.UUID(i)))  # type: ignore[misc]
        assert lab.document(uuid.UUID(document_id)).indexing_status is IndexingStatus.COMPLETED
    assert_healthy(lab, dataset)


def _runs(lab: Lab) -> list[Any]:
    from sqlalchemy import select

    from kb.db import reading
    from kb.models import PipelineRun

    with reading(lab.resources.sessions) as session:
        return list(session.scalars(select(PipelineRun)))


def test_whatever_several_callers_do_at_once_no_document_is_stuck_lost_or_half(lab: Lab) -> None:
    dataset = lab.dataset()
    documents = [lab.add(dataset, f"guide {n}", lines(6, f"old{n}")) for n in range(4)]
    answers: list[int] = []

    def caller(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(9):
            number = draw.randrange(len(documents))
            document = documents[number]
            action = draw.choice(("pause", "resume", "cancel", "retry", "rechunk", "update"))
            if action == "update":
                body = {"name": f"guide {number}", "text": lines(5, f"new{draw.randrange(3)}")}
                answer = act(lab, dataset, document, "update-by-text", **body)
            elif draw.random() < 0.2:
                body = {"filter": {"dataset_id": dataset}}
                answer = lab.client.post(f"/v1/documents/{action}", json=body)
            else:
                answer = act(lab, dataset, document, action)
            answers.append(answer.status_code)
            time.sleep(draw.random() * 0.02)

    callers = [threading.Thread(target=caller, args=(seed,)) for seed in range(3)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join(60)
    assert len(answers) == 27
    assert set(answers) <= {200, 400}, answers
    everything = {"filter": {"dataset_id": dataset}}
    assert lab.client.post("/v1/documents/resume", json=everything).status_code == 200
    until(lambda: all(is_done(lab, document) for document in documents))
    lab.client.post("/v1/documents/retry", json=everything)
    until(lambda: all(is_done(lab, document) for document in documents))
    for document in documents:
        row = lab.document(document)
        assert (row.indexing_status, row.pending_version) == (IndexingStatus.COMPLETED, None)
        assert (row.is_paused, row.lease_owner) == (False, None)
        texts = [segment.content for segment in lab.segments(document)]
        assert len({text.split()[0] for text in "\n".join(texts).split("\n")}) == 1, texts
    until(lambda: not any(run.status == "running" for run in _runs(lab)))
    assert_healthy(lab, dataset)
