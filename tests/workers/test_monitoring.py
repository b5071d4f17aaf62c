"""What an operator sees of workers: metrics added up over processes, lines of one format."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from sqlalchemy import select

from kb.adapters.celery_queue import celery_config
from kb.db import reading, transaction
from kb.models import DeliveryStatus, Webhook, WebhookDelivery
from kb.settings import Redis as RedisSettings
from kb.settings import Tracing
from kb.tracing import start_tracing
from kb.webhooks import EVENTS, add_webhook, new_secret
from tests.kb.test_metrics import Samples, parsed
from tests.receiver import Receiver, receiving
from tests.services import PostgreSQL, Redis, free_port
from tests.workers.service import Service, open_service

pytestmark = [pytest.mark.integration, pytest.mark.e2e]

TOKEN = "token-of-the-scraper"


@pytest.fixture
def service(tmp_path: Path, postgresql: PostgreSQL, redis_server: Redis) -> Iterator[Service]:
    """An installation without workers."""
    with open_service(tmp_path, postgresql, redis_server) as opened:
        yield opened


def scrape(port: int, token: str | None = TOKEN) -> Samples:
    """What a worker shows; nothing while it does not listen yet."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics")
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return parsed(answer.read().decode())
    except urllib.error.HTTPError:
        raise
    except OSError:
        return {}


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_worker_shows_what_all_its_processes_did(
    service: Service, pool: str, tmp_path: Path
) -> None:
    port = free_port()
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    environment = {
        "KB_METRICS__WORKER_PORT": str(port),
        "KB_METRICS__TOKEN": TOKEN,
        "KB_LOG_FORMAT": "json",
        "TMPDIR": str(temporary),
    }
    worker = service.worker(f"--pool={pool}", "--concurrency=2", **environment)
    plain = service.dataset("plain")
    service.add(plain, 12, lines=40)
    service.wait(lambda: service.completed() == 12, 90)

    def completed() -> float:
        return scrape(port).get(("kb_document_outcomes_total", "completed"), 0)

    service.wait(lambda: completed() == 12)
    found = scrape(port)
    assert found["kb_index_points_total",] == 480
    assert found["kb_stage_seconds_count", "index"] == 12
    with pytest.raises(urllib.error.HTTPError, match="401"):
        scrape(port, None)
    if pool == "prefork":
        counting = {path.stem.rpartition("_")[2] for path in temporary.glob("kb-metrics-*/*.db")}
        assert len(counting - {str(worker.pid)}) == 2, "each child process for itself"

    second = service.worker(f"--pool={pool}", **environment)
    assert second.wait(60) == 1, "the port is taken"
    worker.terminate()
    assert worker.wait(60) == 0
    assert list(temporary.glob("kb-metrics-*")) == []

    written = service.log.read_text().splitlines()
    others = [line for line in written if line and not line.startswith("{")]
    refusal, goodbye = others  # Celery's signal handler writes without its log
    assert f"error: cannot show metrics on 127.0.0.1 port {port}" in refusal
    assert goodbye == "worker: Warm shutdown (MainProcess)"
    read = [json.loads(line) for line in written if line.startswith("{")]
    assert {"kb.ingestion", "celery.worker.strategy"} <= {line["logger"] for line in read}
    done = [line for line in read if line["message"].startswith("completed:")]
    assert len({line["document"] for line in done}) == len({line["run"] for line in done}) == 12


# --- traces --------------------------------------------------------------------------------------


def spans(collector: Receiver) -> list[Any]:
    """What a collector was sent over OTLP."""
    return [
        span
        for message in collector.messages
        for resource in ExportTraceServiceRequest.FromString(message.body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def test_an_upload_and_its_ingestion_in_a_worker_are_one_trace(service: Service) -> None:
    with receiving() as collector:
        endpoint = f"http://127.0.0.1:{collector.port}"
        worker = service.worker(KB_TRACING__ENDPOINT=endpoint, KB_TRACING__HEADERS="x-key=k1")
        plain = service.dataset("plain")
        stop = start_tracing(Tracing(endpoint=endpoint))
        try:
            (document,) = service.add(plain, 1)
        finally:
            stop()
        service.wait(lambda: service.completed() == 1, 90)
        worker.terminate()
        assert worker.wait(60) == 0, "what was not sent yet is sent"
        found = {span.name: span for span in spans(collector)}
        upload = found["POST /v1/datasets/{dataset_id}/document/create-by-text"]
        ingest = found["ingest"]
        assert ingest.trace_id == upload.trace_id
        assert ingest.parent_span_id == upload.span_id
        values = {a.key: a.value.string_value for a in ingest.attributes}
        assert values["kb.document"] == document
        assert found["index batch"].trace_id == upload.trace_id
        assert {m.path for m in collector.messages} == {"/v1/traces"}
        assert collector.messages[-1].headers["x-key"] == "k1"


# --- events --------------------------------------------------------------------------------------


@contextmanager
def events(broker: Redis) -> Iterator[list[dict[str, Any]]]:
    """What a monitor hears, as Flower listens."""
    app = Celery("monitor", set_as_current=False)
    app.conf.update(celery_config(broker.url, RedisSettings()))
    heard: list[dict[str, Any]] = []
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": heard.append})

        def listen() -> None:
            for _ in receiver.consume(limit=None, timeout=120, wakeup=True):
                pass

        thread = threading.Thread(target=listen)
        thread.start()
        time.sleep(0.5)  # it has subscribed
        try:
            yield heard
        finally:
            receiver.should_stop = True
            thread.join(30)
    app.close()


@pytest.mark.parametrize("flag", ["-E", "--no-events"])
def test_a_monitor_hears_what_workers_do_unless_told_otherwise(service: Service, flag: str) -> None:
    with events(service.broker) as heard:
        service.worker(flag)
        plain = service.dataset("plain")
        (document,) = service.add(plain, 1)
        service.wait(lambda: service.completed() == 1, 90)
        if flag == "--no-events":
            time.sleep(1)
            told = {e["type"] for e in heard if e["type"].startswith("task-")}
            assert told <= {"task-sent"}, "the API's own"
            return
        expected = {"worker-online", "worker-heartbeat"}
        expected |= {f"task-{step}" for step in ("received", "started", "succeeded")}
        service.wait(lambda: expected <= {e["type"] for e in heard})
    (received,) = [e for e in heard if e["type"] == "task-received"]
    assert received["name"] == "kb.index_document"
    assert document in received["args"]
    assert received["uuid"].startswith(f"{document}-")
    assert received["hostname"].startswith("w0@")


# --- webhooks ------------------------------------------------------------------------------------


def test_workers_deliver_webhooks_and_a_killed_one_loses_no_message(service: Service) -> None:
    private = {"KB_WEBHOOKS__ALLOW_PRIVATE": "true", "KB_WEBHOOKS__RETRY_BASE_S": "0.1"}
    with receiving() as receiver:
        with transaction(service.resources.sessions) as session:
            workspace = service.resources.workspace_id
            add_webhook(session, workspace, receiver.url, EVENTS, secret=new_secret(), most=1)
        asked = threading.Event()

        def keeps_it(_handler: object) -> None:
            asked.set()
            time.sleep(5)

        receiver.then = [keeps_it]
        first = service.worker(**private)
        plain = service.dataset("plain")
        made = service.add(plain, 3)
        assert asked.wait(60), service.log.read_text()[-3000:]
        service.kill(first)
        service.worker(**private)
        service.start("beat")

        def delivered() -> bool:
            with reading(service.resources.sessions) as session:
                states = [d.status for d in session.scalars(select(WebhookDelivery))]
                assert session.scalars(select(Webhook)).one().disabled_at is None
            return states == [DeliveryStatus.DELIVERED] * 3

        service.wait(delivered, 90)
        ids = {message.id: message.data["document_id"] for message in receiver.messages}
        assert sorted(ids.values()) == sorted(made), "one id for each document"
        assert len(receiver.messages) == 4, "the one that was kept came again"
        assert receiver.messages[0].id in {m.id for m in receiver.messages[1:]}
