"""A dataset moves with `kb datasets export` and `import`: in one process, over HTTP, and killed."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import httpx2 as httpx
import pytest

from tests.e2e.server_process import KEY, ServerProcess
from tests.e2e.test_cli import environment, error, run

pytestmark = pytest.mark.e2e

QUESTION = "How far apart are the rain gauges?"


def library(tmp_path: Path) -> Path:
    docs = tmp_path / "docs"
    docs.mkdir()
    for number in range(6):
        text = f"# Station {number}\n\nRain gauges stand {number + 2} km apart.\n\nMasts are tall."
        (docs / f"s{number}.md").write_text(text)
    return docs


def test_a_dataset_moves_between_data_directories_and_answers_the_same(tmp_path: Path) -> None:
    library(tmp_path)
    run(tmp_path, "ingest", "docs", "-d", "rain", "--data-dir", "old")
    before = run(tmp_path, "search", QUESTION, "-d", "rain", "--data-dir", "old").stdout
    said = run(
        tmp_path,
        *("datasets", "export", "rain", "-o", "rain.kb.zip", "--with-vectors"),
        *("--data-dir", "old"),
    )
    size = (tmp_path / "rain.kb.zip").stat().st_size
    assert f"({size:,} bytes)" in said.stdout
    assert not list(tmp_path.glob("*.part"))
    again = run(tmp_path, "datasets", "import", "rain.kb.zip", "--data-dir", "new")
    assert re.match(r"imported dataset 'rain' \(.*\): 6 documents, \d+ segments", again.stdout)
    assert run(tmp_path, "search", QUESTION, "-d", "rain", "--data-dir", "new").stdout == before
    assert "--name NEW" in error(tmp_path, "datasets", "import", "rain.kb.zip", "--data-dir", "new")
    run(tmp_path, "datasets", "export", "rain", "-o", "bare.kb.zip", "--data-dir", "old")
    run(tmp_path, "datasets", "import", "bare.kb.zip", "--name", "two", "--data-dir", "new")
    assert run(tmp_path, "search", QUESTION, "-d", "two", "--data-dir", "new").stdout == before


def test_a_server_killed_while_it_imports_has_nothing_of_it_and_takes_it_the_second_time(
    tmp_path: Path,
) -> None:
    library(tmp_path)
    run(tmp_path, "ingest", "docs", "-d", "rain", "--data-dir", "old")
    for number in range(20):  # more to import, so that the kill meets work
        (tmp_path / "docs" / f"more{number}.md").write_text(f"# {number}\n\n" + "Words. " * 500)
    run(tmp_path, "ingest", "docs", "-d", "rain", "--data-dir", "old")
    run(
        tmp_path, "datasets", "export", "rain", "-o", "a.zip", "--with-vectors", "--data-dir", "old"
    )
    with ServerProcess(tmp_path / "served") as server:
        server.start()
        client = subprocess.Popen(
            [sys.executable, "-m", "kb.cli", "--url", server.url, "datasets", "import", "a.zip"],
            cwd=tmp_path,
            env={**environment(), "KB_API_KEY": KEY},
            stderr=subprocess.DEVNULL,
        )
        blobs = server.data_dir / "blobs" / "uploads"
        ends = time.monotonic() + 60
        while time.monotonic() < ends and not (blobs.is_dir() and len(list(blobs.iterdir())) > 2):
            time.sleep(0.002)
        server.kill()
        assert client.wait(60) == 1
        assert not [p for p in server.data_dir.iterdir() if p.name.startswith("import-")]
        server.start()
        headers = {"Authorization": f"Bearer {KEY}"}
        with httpx.Client(base_url=server.url, headers=headers, timeout=120) as http:
            assert http.get("/v1/datasets").json()["data"] == []
            for _ in range(600):  # what the killed one had built is removed by a job
                report = http.post("/v1/doctor?deep=true").json()
                assert report["healthy"], report
                if not report["pending_jobs"]:
                    break
                time.sleep(0.05)
            assert not [p for p in (server.data_dir / "blobs").rglob("*") if p.is_file()]
            answer = http.post("/v1/datasets/import", content=(tmp_path / "a.zip").read_bytes())
            assert answer.status_code == 201, answer.text
            assert answer.json()["imported"]["indexed"] == 26
            assert http.post("/v1/doctor?deep=true").json()["healthy"]


def test_an_answer_that_breaks_off_leaves_no_file(tmp_path: Path) -> None:
    library(tmp_path)
    run(tmp_path, "ingest", "docs", "-d", "rain", "--technique", "economy")
    archive = tmp_path / "whole.zip"
    run(tmp_path, "datasets", "export", "rain", "-o", str(archive))
    assert zipfile.is_zipfile(archive)
    half = archive.read_bytes()[:-100]

    from kb.client import Client, ClientError

    transport = httpx.MockTransport(
        lambda request: httpx.Response(
            200, content=half, headers={"content-type": "application/zip"}
        )
    )
    with (
        Client("http://test", "key", transport=transport) as client,
        pytest.raises(ClientError, match="broke off"),
    ):
        client.export_dataset("00000000-0000-0000-0000-000000000001", tmp_path / "half.zip")
    assert not list(tmp_path.glob("half*"))
