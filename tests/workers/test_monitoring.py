"""What an operator sees of workers: metrics added up over processes, lines of one format."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kb.test_metrics import Samples, parsed
from tests.services import PostgreSQL, Redis, free_port
from tests.workers.service import Service, children_of, open_service

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
        assert len(children_of(worker.pid)) == 2
        assert len(list(temporary.glob("kb-metrics-*/*.db"))) >= 2

    second = service.worker(f"--pool={pool}", **environment)
    assert second.wait(60) == 1, "the port is taken"
    worker.terminate()
    assert worker.wait(30) == 0
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
