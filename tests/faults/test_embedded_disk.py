"""The embedded size on a disk that is full: refusals with a reason, and nothing is lost."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.server_process import KEY, ServerProcess
from tests.faults.disk import filled, small_disk
from tests.faults.load import Load
from tests.kb.server import add_dataset

pytestmark = pytest.mark.e2e

DISK_BYTES = 300_000_000
FLOOR_BYTES = 100_000_000


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk that is as good as empty."""
    directory = tmp_path / "disk"
    with small_disk(directory, DISK_BYTES) as mounted:
        if not mounted:
            pytest.skip("mounting a small disk needs root")
        yield directory


@pytest.mark.parametrize("left_bytes", [FLOOR_BYTES - 20_000_000, 0])
def test_on_a_full_disk_uploads_are_refused_and_all_that_was_accepted_completes(
    disk: Path, left_bytes: int
) -> None:
    settings = {
        "KB_LIMITS__MIN_FREE_BYTES": str(FLOOR_BYTES),
        "KB_INGESTION__BATCH_SEGMENTS": "4",
        "KB_INGESTION__LEASE_S": "2",
        "KB_LOG_LEVEL": "warning",
        "KB_INGESTION__RETRY_BASE_S": "0.2",
        "KB_INGESTION__RETRY_MAX_S": "1",
    }
    with ServerProcess(disk / "data", settings=settings) as server:
        server.log = disk.with_name("log")  # not on the disk that is full
        server.start()
        headers = {"Authorization": f"Bearer {KEY}"}
        with httpx.Client(base_url=server.url, headers=headers, timeout=30) as client:
            load = Load(
                client,
                add_dataset(client, "d", indexing_technique="economy"),
                random.Random(1),
            )
            load.mix(small=6, long=6)
            with filled(disk, but_bytes=left_bytes):
                status, reason = refused(load)
                assert status == 503
                assert "disk" in reason or "database" in reason, reason
                assert client.get("/health/live").status_code == 200, "it lives, and answers"
            server.wait_until(lambda: states(client, load) == {"completed"}, 60)
            report = client.post("/v1/doctor").json()
            assert report["healthy"], report
            load.add(3)
            server.wait_until(lambda: states(client, load) == {"completed"}, 60)
            listed = client.get(f"/v1/datasets/{load.dataset}/documents", params={"limit": 100})
            assert {d["name"] for d in listed.json()["data"]} == set(load.documents)


def refused(load: Load) -> tuple[int, str]:
    """What an upload is answered with, and why."""
    answer = load.send("refused.txt", load.some(25))
    return int(answer.status_code), str(answer.json()["message"])


def states(client: Any, load: Load) -> set[str]:
    """Of all documents."""
    answer = client.get(f"/v1/datasets/{load.dataset}/documents", params={"limit": 100})
    return {document["indexing_status"] for document in answer.json()["data"]}
