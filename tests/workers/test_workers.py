"""Workers in processes of their own: whatever happens to them, documents complete, once."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import select

from kb.db import reading
from kb.models import Document, IndexingStatus
from kb.ports import Queue
from kb.sweeper import sweep
from tests.kb.server import search
from tests.services import PostgreSQL, Redis
from tests.workers.service import Service, open_service

pytestmark = [pytest.mark.integration, pytest.mark.e2e]


@pytest.fixture
def service(tmp_path: Path, postgresql: PostgreSQL, redis_server: Redis) -> Iterator[Service]:
    """An installation without workers."""
    with open_service(tmp_path, postgresql, redis_server) as opened:
        yield opened


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_two_workers_ingest_each_document_once(service: Service, pool: str) -> None:
    for _ in range(2):
        service.worker(f"--pool={pool}", "--concurrency=2")
    dense = service.dataset("dense", indexing_technique="high_quality")
    plain = service.dataset("plain")
    made = service.add(dense, 4, lines=2, name="dense") + service.add(plain, 16, lines=2)
    service.wait(lambda: service.completed() == 20, 90)
    assert service.runs() == ["succeeded"] * 20
    service.assert_index_is_what_sql_says()
    assert (
        "dense3 line 1" in search(service.client, dense, "dense3 line 1")[0]["segment"]["content"]
    )

    # The same message five times at once, and for a document that is done.
    for _ in range(5):
        service.resources.jobs.index_document(UUID(made[0]), Queue.INTERACTIVE)
    (extra,) = service.add(plain, 1, name="extra")
    for _ in range(4):
        service.resources.jobs.index_document(UUID(extra), Queue.INTERACTIVE)
    service.wait(lambda: service.completed() == 21)
    service.wait(lambda: service.messages() == 0)
    time.sleep(0.5)  # the last of them is taken
    assert service.runs() == ["succeeded"] * 21
    service.assert_index_is_what_sql_says()


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_worker_outlives_a_broker_that_dies_while_it_works(service: Service, pool: str) -> None:
    plain = service.dataset("plain")
    worker = service.worker(f"--pool={pool}", "--concurrency=2", KB_INGESTION__BATCH_SEGMENTS="1")
    service.start("beat")
    service.add(plain, 2, lines=150, name="long")
    service.wait(lambda: service.states() == {"indexing": 2}, 90)
    service.broker.restart()  # with messages that are not acknowledged
    service.add(plain, 4, name="after")
    service.wait(lambda: service.completed() == 6, 90)
    assert worker.poll() is None
    assert service.runs() == ["succeeded"] * 6, "nothing was thrown away or done twice"
    service.assert_index_is_what_sql_says()


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_worker_that_is_told_to_stop_hands_its_document_back(service: Service, pool: str) -> None:
    plain = service.dataset("plain")
    worker = service.worker(f"--pool={pool}", KB_INGESTION__BATCH_SEGMENTS="1")
    (long,) = service.add(plain, 1, lines=1000)
    service.wait(lambda: "indexing" in service.states(), 90)
    time.sleep(0.2)
    started = time.monotonic()
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(30) == 0
    assert time.monotonic() - started < 15
    with reading(service.resources.sessions) as session:
        document = session.scalars(select(Document)).one()
        assert document.indexing_status is IndexingStatus.WAITING
        assert (document.lease_owner, document.attempts) == (None, 0)
    assert service.runs() == ["stopped"]
    assert service.messages() == 1, "another worker is told at once"
    service.worker(f"--pool={pool}")
    service.wait(lambda: service.completed() == 1, 90)
    assert service.runs(long) == ["stopped", "succeeded"]
    service.assert_index_is_what_sql_says()


def test_the_sweeper_announces_what_has_no_message_and_nothing_twice(service: Service) -> None:
    plain = service.dataset("plain")
    service.add(plain, 5)
    assert sweep(service.resources) == 0, "each has its message"
    service.flush_broker()
    assert sweep(service.resources) == 5
    assert sweep(service.resources) == 0
    assert service.messages() == 5
    big = "x" * service.settings.ingestion.interactive_bytes
    service.client.post(
        f"/v1/datasets/{plain}/document/create-by-text", json={"name": "big", "text": big + "y"}
    )
    assert service.messages("bulk") == 1
    service.flush_broker()
    assert sweep(service.resources) == 6
    assert (service.messages("interactive"), service.messages("bulk")) == (5, 1)
