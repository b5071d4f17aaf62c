"""The status: every document is counted once, and a long queue or history makes it no slower."""

from __future__ import annotations

import json
import statistics
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import event, insert, select, text
from starlette.testclient import TestClient

from kb.api.status import owner_parts
from kb.cli.main import kb
from kb.db import Sessions, now, reading, transaction
from kb.jobs import enqueue
from kb.models import ApiKey, Document, IndexingStatus, JobKind, PipelineRun
from kb.ports import Queue
from kb.resources import Resources
from kb.status import QueueState, QueueStatus, Status, Throughput, read_status
from tests.kb.api import refused, served
from tests.kb.ingesting import ECONOMY, Lab, lines, open_lab
from tests.kb.server import KEY, add_file
from tests.kb.shelf import Shelf


@pytest.fixture
def shelf(resources: Resources) -> Shelf:
    return Shelf(resources)


@pytest.fixture
def lab(database: str, tmp_path: Path) -> Iterator[Lab]:
    with open_lab(tmp_path / "data") as opened:
        yield opened


def status(sessions: Sessions) -> Status:
    with reading(sessions) as session:
        return read_status(session)


# --- what is counted -----------------------------------------------------------------------------


def test_every_unfinished_document_is_counted_once_by_what_it_waits_for(shelf: Shelf) -> None:
    hour = timedelta(hours=1)
    shelf.add("waiting", 3)
    shelf.add("tried", 2, next_attempt_at=now() - hour, attempts=1)
    shelf.add("retrying", 4, next_attempt_at=now() + hour, attempts=1)
    shelf.add("paused", 1, is_paused=True)
    shelf.add("in work", 2, lease_owner="w", lease_expires_at=now() + hour)
    shelf.add("stalled", 1, lease_owner="dead", lease_expires_at=now() - hour)
    shelf.add("small", 1, queue=Queue.INTERACTIVE)
    shelf.add("done", 9, indexing_status=IndexingStatus.COMPLETED)
    shelf.add("bad", 3, indexing_status=IndexingStatus.ERROR, error_code="no_text")
    shelf.add("worse", 2, indexing_status=IndexingStatus.ERROR, error_code="corrupt")
    found = status(shelf.sessions)
    assert {state.value: n for state, n in found.queues[Queue.BULK].counts.items()} == {
        "waiting": 5,
        "retrying": 4,
        "paused": 1,
        "in_work": 2,
        "stalled": 1,
    }
    assert found.queues[Queue.INTERACTIVE].counts[QueueState.WAITING] == 1
    assert list(found.errors.items()) == [("no_text", 3), ("corrupt", 2)]
    assert found.left == 13, "a paused document waits for a person"
    oldest = found.queues[Queue.BULK].oldest
    assert oldest is not None
    assert found.at - oldest == pytest.approx(hour, abs=timedelta(seconds=10))


def test_jobs_are_counted_by_what_they_wait_for(resources: Resources) -> None:
    with transaction(resources.sessions) as session:
        for wait_s in (0, 0, 60):
            enqueue(session, JobKind.DELETE_BLOBS, keys=[], wait_s=wait_s)
        enqueue(session, JobKind.CHECK_DRIFT, dataset_id=str(uuid.uuid4()))
    found = status(resources.sessions)
    assert found.jobs == {"delete_blobs": {"due": 2, "delayed": 1}, "check_drift": {"due": 1}}
    assert found.oldest_job is not None


def test_throughput_and_stages_are_those_of_the_runs(lab: Lab) -> None:
    dataset = lab.dataset()
    for number in range(3):
        lab.add(dataset, f"d{number}", lines(5, f"w{number}"))
    lab.embedder.before = lambda texts: time.sleep(0.1)
    lab.settle()
    found = status(lab.resources.sessions)
    assert (found.throughput.documents, found.throughput.segments) == (3, 15)
    assert {stage.kind: stage.runs for stage in found.stages} == dict.fromkeys(
        ["extract.auto", "clean", "chunk.general", "embed", "index"], 3
    )
    took = {stage.kind: stage.seconds for stage in found.stages}
    assert took["embed"] >= 0.6, "two batches of each document, though the index node asks for them"
    assert list(took.values()) == sorted(took.values(), reverse=True)
    assert found.eta_s == 0


def test_failed_attempts_count_and_complete_nothing(lab: Lab) -> None:
    dataset = lab.dataset("plain", **ECONOMY)
    add_file(lab.client, dataset, "blank.txt", b" \n ")
    lab.add(dataset, "good", "whales")
    lab.settle()
    found = status(lab.resources.sessions)
    assert (found.throughput.documents, found.throughput.failed) == (1, 1)
    assert found.errors == {"no_text": 1}


def some_status(waiting: int, *, documents: int, seconds: float) -> Status:
    counts = dict.fromkeys(QueueState, 0) | {QueueState.WAITING: waiting}
    queues = {queue: QueueStatus(counts, None) for queue in Queue}
    return Status(now(), queues, {}, {}, None, [], Throughput(seconds, documents, 0, 0), [])


def test_the_time_to_finish_is_what_is_left_at_the_present_rate() -> None:
    assert some_status(50, documents=20, seconds=10).eta_s == pytest.approx(50)
    assert some_status(50, documents=0, seconds=300).eta_s is None
    assert some_status(0, documents=0, seconds=300).eta_s == 0


# --- what it costs -------------------------------------------------------------------------------


@contextmanager
def statements(sessions: Sessions) -> Iterator[list[tuple[str, Any]]]:
    """What is sent to the database meanwhile."""
    sent: list[tuple[str, Any]] = []

    def note(_c: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        sent.append((statement, parameters))

    event.listen(sessions.engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(sessions.engine, "before_cursor_execute", note)


def scanned(sessions: Sessions, statement: str, parameters: Any) -> set[str]:
    """Tables that the database would read from one end to the other."""
    with sessions.engine.connect() as connection:
        if connection.dialect.name == "sqlite":
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            details = [row[3] for row in plan]
            return {d.split()[1] for d in details if d.startswith("SCAN") and "USING" not in d} & {
                "documents",
                "pipeline_runs",
                "jobs",
            }
        plan = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}", parameters)
        return set(_sequential(plan.scalar_one()[0]["Plan"]))


def _sequential(plan: dict[str, Any]) -> Iterator[str]:
    if plan["Node Type"] == "Seq Scan":
        yield plan["Relation Name"]
    for inner in plan.get("Plans", ()):
        yield from _sequential(inner)


def add_runs(sessions: Sessions, *, old: int, new: int) -> None:
    with transaction(sessions) as session:
        documents = session.scalars(select(Document.id)).all()
        nodes = [{"node": "n", "kind": "extract.auto", "seconds": 0.1}]
        session.execute(
            insert(PipelineRun),
            [
                {
                    "document_id": documents[number % len(documents)],
                    "version": 1,
                    "attempt": 1,
                    "started_at": now() - timedelta(hours=9 if number < old else 0),
                    "finished_at": now() - timedelta(hours=9 if number < old else 0),
                    "status": "succeeded",
                    "nodes": nodes,
                    "segments": 3,
                }
                for number in range(old + new)
            ],
        )


def test_no_statement_reads_what_is_finished(shelf: Shelf, database: str) -> None:
    shelf.add("done", 3000, indexing_status=IndexingStatus.COMPLETED, pending_version=None)
    shelf.add("waits", 60)
    shelf.add("bad", 20, indexing_status=IndexingStatus.ERROR, error_code="no_text")
    add_runs(shelf.sessions, old=3000, new=60)
    with transaction(shelf.sessions) as session:
        for _ in range(2000):
            enqueue(session, JobKind.DELETE_POINTS, ids=["x" * 36] * 10)
    if database == "postgresql":
        with shelf.sessions.engine.connect().execution_options(
            isolation_level="AUTOCOMMIT"
        ) as connection:
            connection.execute(text("VACUUM ANALYZE"))
    with statements(shelf.sessions) as sent:
        found = status(shelf.sessions)
    assert found.throughput.segments == 180
    plans = {s: scanned(shelf.sessions, s, p) for s, p in sent if s.startswith("SELECT")}
    assert len(plans) == 8
    assert {s: tables & {"documents", "pipeline_runs"} for s, tables in plans.items()} == {
        s: set() for s in plans
    }


def rows_of(sessions: Sessions, statement: str, parameters: Any) -> int:
    """How many rows the database sends for it."""
    with sessions.engine.connect() as connection:
        counted = connection.exec_driver_sql(f"SELECT count(*) FROM ({statement}) AS q", parameters)  # noqa: S608
        return int(counted.scalar_one())


def test_the_number_of_statements_and_rows_does_not_grow_with_the_queue(
    shelf: Shelf, database: str
) -> None:
    def cost() -> list[int]:
        with statements(shelf.sessions) as sent:
            status(shelf.sessions)
        return [rows_of(shelf.sessions, s, p) for s, p in sent if s.startswith("SELECT")]

    shelf.add_many(10, 1)
    small = cost()
    shelf.add_many(40, 250)
    assert cost() == small
    took = []
    for _ in range(10):
        started = time.perf_counter()
        found = status(shelf.sessions)
        took.append(time.perf_counter() - started)
    assert found.queues[Queue.BULK].counts[QueueState.WAITING] == 10_010
    print(f"{database}: status of 10,010 queued in {statistics.median(took) * 1000:.1f} ms")


# --- who may ask, and what they are shown --------------------------------------------------------


def test_workers_are_shown_with_what_they_do(lab: Lab) -> None:
    dataset = lab.dataset("plain", **ECONOMY)
    document = lab.add(dataset, "moby", "whales")
    assert lab.claim("host-a-77-0123abcd/3") is not None
    stranger = Shelf(lab.resources)
    stranger.add(
        "secret",
        1,
        workspace=stranger.workspace("other"),
        lease_owner="x",
        lease_expires_at=now() + timedelta(hours=1),
    )
    answer = lab.client.get("/v1/status")
    assert answer.status_code == 200, answer.text
    own, other = answer.json()["workers"]
    assert (own["host"], own["process"], own["thread"]) == ("host-a", 77, 3)
    assert (own["document_id"], own["document"], own["dataset"]) == (
        str(document),
        "moby",
        "plain",
    )
    assert (own["stage"], own["attempt"], own["job"]) == ("parsing", 1, None)
    assert 0 <= own["working_s"] < 60
    assert 0 < own["lease_left_s"] <= 60
    assert other["owner"] == "x"
    assert "secret" not in answer.text
    assert answer.json()["documents_left"] == 2


@pytest.mark.parametrize(
    ("owner", "parts"),
    [
        ("host-7-0123abcd/12", ("host", 7, 12)),
        ("a-b-7-0123abcd/0", ("a-b", 7, 0)),
        ("w1", ("w1", None, None)),
        ("", ("", None, None)),
    ],
)
def test_an_owner_names_host_process_and_thread(owner: str, parts: tuple[Any, ...]) -> None:
    assert owner_parts(owner) == parts


def test_a_worker_that_is_claiming_names_itself_in_that_way(lab: Lab) -> None:
    from kb.crew import Crew

    host, process, thread = owner_parts(Crew(lab.resources)._owner())
    assert host
    assert process is not None
    assert thread == 0


def test_the_key_of_one_dataset_does_not_open_the_status(
    resources: Resources, idle_client: TestClient
) -> None:
    from hashlib import sha256

    dataset = Shelf(resources).add("a", 1)
    with transaction(resources.sessions) as session:
        session.add(
            ApiKey(
                workspace_id=resources.workspace_id,
                dataset_id=dataset,
                hint="one",
                sha256=sha256(b"one").hexdigest(),
            )
        )
    answer = idle_client.get("/v1/status", headers={"Authorization": "Bearer one"})
    assert "the status of the installation" in refused(answer, 403, "forbidden")


# --- the command ---------------------------------------------------------------------------------


@pytest.mark.sqlite_only
def test_the_command_shows_a_data_directory_and_works_on_nothing(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = lab.dataset("plain", **ECONOMY)
    lab.add(dataset, "done", lines(2))
    lab.settle()
    add_file(lab.client, dataset, "blank.txt", b" ")
    lab.settle()
    lab.add(dataset, "waits", "whales")
    monkeypatch.setenv("KB_API_KEY", KEY)
    with served(lab.resources.settings) as (host, port):
        target = ["--url", f"http://{host}:{port}"]
        shown = CliRunner().invoke(kb, ["status", *target])
        raw = CliRunner().invoke(kb, ["status", "--json", *target])
    assert shown.exit_code == 0, shown.output
    assert "interactive\t1\t0\t0\t0\t0\t" in shown.output
    assert "in error:    no_text 1" in shown.output
    assert "slowest:" in shown.output
    assert "left:        1 document, about" in shown.output
    assert json.loads(raw.output)["queues"]["interactive"]["waiting"] == 1
