"""The benchmarks of the service size run on a small plan and report what their manual says."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from bench import load, workers
from bench.installation import Installation, installation
from bench.load import Plan, Record, growth
from bench.report import family, machine
from tests.models import model_cache

pytestmark = [
    pytest.mark.integration,
    pytest.mark.e2e,
    # So that the test is skipped where PostgreSQL or Redis is not installed.
    pytest.mark.usefixtures("postgresql", "redis_server"),
]


@pytest.fixture(scope="module")
def kb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """A whole installation with two workers."""
    directory = tmp_path_factory.mktemp("installation") / "kb"
    with installation(directory, models=model_cache(), workers=2) as made:
        yield made


def test_load_drives_an_installation_and_finds_what_is_complete(kb: Installation) -> None:
    plan = Plan(
        seconds=5, documents=12, uploads_per_s=6, questions_per_s=12, clients=2, datasets=2,
        backlog=4, sample_s=0.3,
    )  # fmt: skip
    report = load.observe(kb, plan)
    assert (report["errors"], report["first_errors"]) == (0, [])
    assert report["doctor_healthy"]
    uploads = report["requests"]["upload"]["queries"]
    assert report["documents"] == {"completed": uploads}
    assert 4 <= uploads <= 12
    for figures in report["requests"].values():
        assert 0 < figures["p50_ms"] <= figures["p95_ms"] <= figures["p99_ms"]
    assert set(report["memory"]) == {
        "postgresql", "redis", "qdrant", "api", "worker-1", "worker-2", "beat",
    }  # fmt: skip
    assert report["memory"]["worker-1"]["last_mb"] > 100
    assert report["queue"]["last"] == report["samples"][-1]["left"]
    json.dumps(report)
    assert "errors: 0" in load.show(report)


def test_two_workers_are_timed_on_the_same_documents(kb: Installation) -> None:
    made = workers.bodies(3, 4, 30)
    assert made == workers.bodies(3, 4, 30)
    assert len({text for body in made for text in body.split(workers.SEPARATOR)}) == 12
    done = workers.ingest(kb, made)
    assert done["workers"] == 2
    assert done["segments_per_s"] == pytest.approx(12 / done["seconds"], rel=0.05)
    assert {"worker-1", "worker-2", "api"} <= set(done["cpu_s"])
    assert set(done["stage_s"]) >= {"embed", "index"}
    report: dict[str, Any] = {
        "machine": machine(),
        "documents": 3,
        "segments": 12,
        "words": 30,
        "runs": {"1": [done], "2": [done]},
        "ratio": 1.0,
        "machine_ratio": workers.machine_ratio(made, model_cache()),
    }
    json.dumps(report)
    assert 0.2 < report["machine_ratio"] < 10
    assert "two workers / one: 1.0 x" in workers.show(report)


def test_a_wrong_answer_is_an_error(kb: Installation) -> None:
    with kb.api() as api:
        dataset = load.add_dataset(api, "empty")
        record = Record()
        for kind, where in (("fulltext", dataset), ("list", dataset), ("list", "no-such")):
            call = partial(load._ask, api, where, "doc1", kind)
            load._timed(record, kind, time.monotonic(), call)
    assert [error.partition(":")[0] for error in record.errors] == ["fulltext", "list", "list"]
    assert record.took_ms == {}


@pytest.mark.parametrize(
    ("mb_at", "expected"),
    [
        (lambda s: 300.0 if s > 30 else 100.0 + 5 * s, 0.0),  # it grows while it warms up only
        (lambda s: 100.0 + 0.5 * s, 0.372),  # 49.5 of 133 MiB in 99 s
        (lambda s: 200.0 + 10 * (s % 2), 0.0),
    ],
)
def test_growth_is_the_slope_after_the_warm_up(mb_at, expected) -> None:  # type: ignore[no-untyped-def]
    samples = [{"s": float(s), "left": 0, "mb": {"api": mb_at(s)}} for s in range(100)]
    assert growth(samples, "api")["growth"] == pytest.approx(expected, abs=0.005)
    assert load.steady({"memory": {"api": growth(samples, "api") | {"ours": True}}}) == (
        expected < load.GROWTH
    )


def test_a_family_is_a_process_and_what_it_started() -> None:
    with subprocess.Popen(["sh", "-c", "sleep 30 & wait"]) as shell:
        while len(family(shell.pid)) < 2:
            time.sleep(0.01)
        (sleeper,) = set(family(shell.pid)) - {shell.pid}
        os.kill(sleeper, 15)
    assert family(shell.pid) == []
