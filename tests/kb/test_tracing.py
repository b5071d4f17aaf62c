"""Traces: a query and an ingestion are told step by step, and nothing is loaded without a need."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from kb.settings import Tracing
from kb.tracing import announced, carrier, run_span, span, start_tracing
from tests.kb.ingesting import Lab, fails, lines, open_lab
from tests.kb.server import search

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with open_lab(tmp_path / "data") as opened:
        yield opened


@contextmanager
def traced() -> Iterator[InMemorySpanExporter]:
    """What is traced meanwhile."""
    exporter = InMemorySpanExporter()
    stop = start_tracing(Tracing(), exporter=exporter)
    try:
        yield exporter
    finally:
        stop()


def tree(spans: tuple[ReadableSpan, ...], root: ReadableSpan) -> dict[str, list[str]]:
    """Names of a span's children, by its name, in order of their start."""
    found: dict[str, list[str]] = {}
    for one in sorted(spans, key=lambda s: s.start_time or 0):
        parent = next((s for s in spans if one.parent and s.context == one.parent), None)
        if parent is not None and one.context.trace_id == root.context.trace_id:
            found.setdefault(parent.name, []).append(one.name)
    return found


def named(exporter: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [one for one in exporter.get_finished_spans() if one.name == name]


def test_a_query_is_told_from_the_request_to_the_rows(lab: Lab) -> None:
    dataset = lab.dataset()
    lab.add(dataset, "a", lines(5))
    lab.settle()
    with traced() as exporter:
        answer = lab.client.post(
            f"/v1/datasets/{dataset}/retrieve",
            json={"query": "line", "retrieval_model": {"search_method": "hybrid_search"}},
            headers={"traceparent": CALLER, "X-Request-ID": "r-1"},
        )
        assert answer.status_code == 200
    route = "POST /v1/datasets/{dataset_id}/retrieve"
    (request,) = named(exporter, route)
    assert f"{request.context.trace_id:032x}" == CALLER.split("-")[1], (
        "it goes on with the caller's"
    )
    assert request.attributes is not None
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["http.route"] == "/v1/datasets/{dataset_id}/retrieve"
    assert request.attributes["kb.request_id"] == "r-1"
    told = tree(exporter.get_finished_spans(), request)
    assert told[route] == ["retrieve"]
    assert told["retrieve"][0] == "plan"
    assert told["retrieve"][-1] == "hydrate"
    steps = {name for children in told.values() for name in children}
    assert {"embed", "embed query", "leg text", "leg dense", "search", "fuse"} <= steps


def test_an_ingestion_is_told_with_its_stages_and_batches(lab: Lab) -> None:
    dataset = lab.dataset()
    with traced() as exporter:
        document = lab.add(dataset, "a", lines(6))
        lab.settle()
    (run,) = named(exporter, "ingest")
    told = tree(exporter.get_finished_spans(), run)
    assert told["ingest"] == [f"stage {r}" for r in ("extract", "clean", "chunk", "embed", "index")]
    assert told["stage index"] == ["embed batch", "index batch"] * 2
    assert run.attributes is not None
    assert run.attributes["kb.document"] == str(document)
    assert run.attributes["kb.dataset"] == dataset
    assert run.attributes["kb.run"] == str(lab.runs(document)[0].id)
    assert (run.attributes["kb.outcome"], run.attributes["kb.segments"]) == ("completed", 6)
    texts = [s.attributes["kb.texts"] for s in named(exporter, "embed batch") if s.attributes]
    assert texts == [4, 2]


def test_a_stage_that_fails_ends_its_span_and_the_run_says_why(lab: Lab) -> None:
    lab.embedder.before = fails(1, lambda: RuntimeError("no"))
    dataset = lab.dataset()
    with traced() as exporter:
        lab.add(dataset, "a", lines(1))
        lab.work()
    first, second = named(exporter, "ingest")
    assert first.attributes is not None
    assert second.attributes is not None
    assert (first.attributes["kb.outcome"], first.attributes["kb.error_code"]) == (
        "retried",
        "unexpected_error",
    )
    assert second.attributes["kb.outcome"] == "completed"
    (broken, _) = named(exporter, "embed batch")
    assert broken.status.status_code is StatusCode.ERROR


def test_a_run_goes_on_with_the_trace_of_its_own_upload_only() -> None:
    mine, other = uuid.uuid4(), uuid.uuid4()
    with traced() as exporter:
        with span("upload"):
            headers = carrier()
        assert set(headers) == {"traceparent"}
        for document in (mine, other):
            with announced(headers, str(mine)), run_span(document):
                pass
        with run_span(other):
            pass
    (upload,) = named(exporter, "upload")
    own, linked, alone = named(exporter, "ingest")
    assert own.parent is not None
    assert own.parent.span_id == upload.context.span_id
    assert linked.parent is None
    assert [link.context.trace_id for link in linked.links] == [upload.context.trace_id]
    assert (alone.parent, len(alone.links)) == (None, 0)


@pytest.mark.parametrize("sent", ["", "nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
def test_a_trace_that_makes_no_sense_begins_anew(lab: Lab, sent: str) -> None:
    with traced() as exporter:
        assert lab.client.get("/health/live", headers={"traceparent": sent}).status_code == 200
    (request,) = named(exporter, "GET /health/live")
    assert request.parent is None
    assert request.context.is_valid


def test_without_an_endpoint_nothing_is_traced_or_imported(lab: Lab) -> None:
    dataset = lab.dataset()
    lab.add(dataset, "a", lines(1))
    lab.settle()
    assert len(search(lab.client, dataset, "line")) == 1
    assert carrier() == {}
    script = (
        "import sys, kb.api.app, kb.cli.serve, kb.wiring, kb.ingestion.run, kb.tracing as t\n"
        "from kb.settings import Tracing\n"
        "t.start_tracing(Tracing())\n"
        "with t.span('a'): pass\n"
        "print([m for m in sys.modules if m.startswith('opentelemetry.sdk')"
        " or 'exporter' in m and 'opentelemetry' in m])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip() == "[]"
