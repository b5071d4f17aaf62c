"""The command line as a user runs it: real processes on real data directories."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from kb.client import Client, IngestionFailed
from tests.models import model_cache

pytestmark = pytest.mark.e2e

EXAMPLES = Path(__file__).parents[2] / "examples" / "tarnfell"
KB = [sys.executable, "-m", "kb.cli"]


def environment(**more: str) -> dict[str, str]:
    """The tests' own environment (without KB_ variables), one model for all, and `more`."""
    return os.environ | {"KB_EMBEDDING__CACHE_DIR": str(model_cache())} | more


def run(
    folder: Path, *arguments: str | Path, code: int | None = 0, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run `kb` in a folder to its end; nothing it prints is ever a traceback."""
    done = subprocess.run(
        [*KB, *map(str, arguments)],
        cwd=folder,
        env=environment(**env),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert code is None or done.returncode == code, done.stdout + done.stderr
    return done


def error(folder: Path, *arguments: str | Path, **env: str) -> str:
    """The one line that a refused command prints."""
    lines = run(folder, *arguments, code=1, **env).stderr.splitlines()
    assert [line.startswith("error: ") for line in lines] == [True], lines
    return lines[0].removeprefix("error: ")


# -- in this process


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose data directory holds the examples; what ingesting them printed."""
    folder = tmp_path_factory.mktemp("ingested")
    done = run(folder, "ingest", EXAMPLES, "--dataset", "tarnfell")
    (folder / "printed").write_text(done.stdout)
    return folder


def test_ingesting_a_folder_says_what_became_of_each_file(ingested: Path) -> None:
    lines = (ingested / "printed").read_text().splitlines()
    names = sorted(path.name for path in EXAMPLES.iterdir())
    outcomes = [re.fullmatch(r"completed  (.+): \d+ segments?, [\d.]+ m?s", x) for x in lines[:-1]]
    assert sorted(match[1] for match in outcomes if match) == names
    assert lines[-1].startswith(f"{len(names)} of {len(names)} documents completed, ")


@pytest.mark.parametrize(
    ("method", "question", "document", "place"),
    [
        ("hybrid", "Why did the pressure readings drift on the ridge?", "incident-reports.md", ""),
        ("vector", "working from my kitchen table", "employee-handbook.docx", ""),
        ("fulltext", "E67", "ws300-manual.pdf", "page 4"),
        ("hybrid", "price of a rain gauge", "price-list.xlsx", "sheet Sensors · row 4"),
        ("fulltext", "Skarven mountain rescue serial", "installed-stations.csv", "row 2"),
        ("hybrid", "保修期从什么时候开始计算？", "安装与保修指南.md", "保修条款"),
    ],
)
def test_the_right_passage_comes_first(
    ingested: Path, method: str, question: str, document: str, place: str
) -> None:
    done = run(ingested, "search", question, "-d", "tarnfell", "-m", method, "-k", "1")
    heading = done.stdout.splitlines()[0]
    assert re.match(rf" 1  [01]\.\d\d\d  {re.escape(document)}", heading), done.stdout
    assert place in heading


def test_json_is_the_servers_answer(ingested: Path) -> None:
    done = run(ingested, "search", "warranty", "-d", "tarnfell", "-k", "3", "--json", "--explain")
    answer = json.loads(done.stdout)
    assert answer["query"] == {"content": "warranty"}
    assert len(answer["records"]) == 3
    for record in answer["records"]:
        why = record["explain"]
        parts = why["vector"]["contribution"] + why["full_text"]["contribution"]
        assert parts == pytest.approx(record["score"], abs=1e-6)


def test_an_explained_search_prints_legs_and_times(ingested: Path) -> None:
    weight = ("--vector-weight", "0.25")
    done = run(ingested, "search", "warranty", "-d", "tarnfell", "-k", "1", "--explain", *weight)
    assert re.search(r"vector   rank \d+ .* x weight 0.25 = 0\.\d+", done.stdout)
    assert re.search(r"fulltext rank \d+ .* x weight 0.75 = 0\.\d+", done.stdout)
    assert re.search(r"^times: embed [\d.]+ ms, ", done.stdout, re.MULTILINE)


def test_an_empty_result_says_so_and_hints(ingested: Path) -> None:
    none = run(ingested, "search", "xyzzy", "-d", "tarnfell", "-m", "fulltext")
    assert (none.stdout, none.stderr.split(":")[0]) == ("", "nothing found")
    none = run(ingested, "search", "warranty", "-d", "tarnfell", "--threshold", "1")
    assert none.stderr == "nothing found: no passage scores 1 or more; try a lower --threshold\n"


def test_a_document_can_be_shown_by_name_with_its_timings(ingested: Path) -> None:
    done = run(ingested, "documents", "show", "ws300-manual.pdf", "-d", "tarnfell")
    assert re.search(r"^status: +available$", done.stdout, re.MULTILINE)
    assert re.search(r"^ +extract: ", done.stdout, re.MULTILINE)
    listed = json.loads(run(ingested, "documents", "list", "-d", "tarnfell", "--json").stdout)
    assert {d["display_status"] for d in listed} == {"available"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "x", "-d", "nope"], "no dataset 'nope'; there is: tarnfell"),
        (["documents", "show", "nope.md", "-d", "tarnfell"], "no document 'nope.md'; there is: "),
        (["search", "x" * 300, "-d", "tarnfell"], "query has 300 characters, the limit is 250"),
        (["search", "x", "-d", "tarnfell", "-k", "999"], "top_k is 999; it must lie between 1"),
        (
            ["ingest", str(EXAMPLES), "-d", "tarnfell", "--technique", "economy"],
            "--technique economy does not fit dataset 'tarnfell', whose documents are high_quality",
        ),
        (["datasets", "create", "tarnfell"], "a dataset named 'tarnfell' exists already"),
        (["datasets", "create", "n" * 41], "name: String should have at most 40 characters"),
    ],
)
def test_a_refusal_is_one_line_that_names_the_value(
    ingested: Path, arguments: list[str], message: str
) -> None:
    assert error(ingested, *arguments).startswith(message)


def test_the_doctor_finds_the_examples_healthy(ingested: Path) -> None:
    assert run(ingested, "doctor").stdout.endswith("healthy\n")


def test_the_doctor_finds_a_lost_file_and_fails(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# One\n\nSome words.")
    run(tmp_path, "ingest", "a.md", "-d", "x", "--technique", "economy")
    for blob in (tmp_path / "kb-data" / "blobs").rglob("*"):
        if blob.is_file():
            blob.unlink()
    done = run(tmp_path, "doctor", code=1)
    assert "2\tlost files of documents\tfound\ta.md (texts/" in done.stdout


def test_a_file_that_cannot_be_read_fails_and_the_others_do_not(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    (docs / "sub").mkdir(parents=True)
    (docs / "good.md").write_text("# Fine\n\nA text about rain gauges.")
    (docs / "sub" / "good.md").write_text("# Fine, too\n\nA text about masts.")
    (docs / "broken.docx").write_bytes(b"PK\x03\x04 not really")
    (docs / "empty.txt").write_bytes(b"")
    (docs / "image.raw").write_bytes(b"\0\1")
    done = run(tmp_path, "ingest", "docs", "-d", "x", "--technique", "economy", code=1)
    lines = done.stdout.splitlines()
    assert any(re.match(r"completed  sub › good\.md: 1 segment, ", line) for line in lines)
    assert any(line.startswith("failed     broken.docx: corrupt: ") for line in lines)
    assert any(line.startswith("failed     empty.txt: empty_file: ") for line in lines)
    assert lines[-1].startswith("2 of 4 documents completed, 2 failed, 2 segments in ")
    assert "skipped, as no extractor reads them: docs/image.raw" in done.stderr
    # A failed document is kept, can be looked at, tried again and removed.
    shown = run(tmp_path, "documents", "show", "broken.docx", "-d", "x").stdout
    assert re.search(r"^error: +corrupt: ", shown, re.MULTILINE)
    assert (
        "failed     broken.docx"
        in run(tmp_path, "documents", "retry", "broken.docx", "-d", "x", code=1).stdout
    )
    run(tmp_path, "documents", "delete", "broken.docx", "-d", "x", "--yes")
    assert error(tmp_path, "documents", "show", "broken.docx", "-d", "x").startswith("no document")
    # `/` finds what is named with ` › `.
    assert "sub › good.md" in run(tmp_path, "documents", "show", "sub/good.md", "-d", "x").stdout


def test_a_file_that_is_too_large_fails_before_it_is_queued(tmp_path: Path) -> None:
    (tmp_path / "big.txt").write_text("word " * 300)
    limit = {"KB_LIMITS__FILE_BYTES": "1000"}
    done = run(tmp_path, "ingest", "big.txt", "-d", "x", "--technique", "economy", code=1, **limit)
    assert "failed     big.txt: file_too_large: 'big.txt' has 1,500 bytes" in done.stdout


def test_datasets_are_created_listed_and_deleted(tmp_path: Path) -> None:
    run(tmp_path, "datasets", "create", "one", "--technique", "economy")
    assert "one\t0\t0\teconomy\t" in run(tmp_path, "datasets", "list").stdout
    refused = subprocess.run(
        [*KB, "datasets", "delete", "one"],
        cwd=tmp_path,
        env=environment(),
        input="n\n",
        text=True,
        capture_output=True,
        check=False,
    )
    assert refused.returncode == 1
    run(tmp_path, "datasets", "delete", "one", "--yes")
    assert run(tmp_path, "datasets", "list").stdout.startswith("no datasets yet")
    assert error(tmp_path, "search", "x", "-d", "one").startswith("no dataset 'one', and no other")


def test_a_terminal_gets_a_progress_bar(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# One\n\nSome words.")
    master, slave = pty.openpty()
    with subprocess.Popen(
        [*KB, "ingest", "a.md", "-d", "x", "--technique", "economy"],
        cwd=tmp_path,
        env=environment(TERM="xterm", COLUMNS="100"),
        stdout=subprocess.DEVNULL,
        stderr=slave,
    ) as child:
        os.close(slave)
        shown = b""
        while select.select([master], [], [], 60)[0]:
            try:
                shown += os.read(master, 4096)
            except OSError:  # how Linux says that the other side is closed
                break
    os.close(master)
    assert child.returncode == 0
    assert b"1/1 files" in shown
    assert b"segments" in shown


def test_an_interrupted_ingest_leaves_its_documents_queued(tmp_path: Path) -> None:
    sentences = " ".join(f"Sentence {n} speaks of station {n * 7}." for n in range(40_000))
    (tmp_path / "long.txt").write_text(sentences)
    (tmp_path / "next.txt").write_text(sentences[:-1])
    with subprocess.Popen(
        [*KB, "ingest", "long.txt", "next.txt", "-d", "x"],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # What a shell runs in the background ignores the interrupt, and so do its children.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    ) as child:
        assert child.stderr is not None
        assert "created dataset" in child.stderr.readline()
        wait_for_a_document(tmp_path / "kb-data" / "kb.db")
        child.send_signal(signal.SIGINT)
        stdout, stderr = child.communicate(timeout=60)
    assert child.returncode == 130, stdout + stderr
    assert re.search(r"^stopped waiting; \d documents? not finished$", stdout, re.MULTILINE)
    assert re.search(r"^\d documents? (is|are) still queued; `kb serve` or the next", stderr)
    assert "Traceback" not in stderr


def wait_for_a_document(database: Path, limit_s: float = 60) -> None:
    """Until one was accepted."""
    deadline = time.monotonic() + limit_s
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        while connection.execute("SELECT count(*) FROM documents").fetchone() == (0,):
            assert time.monotonic() < deadline
            time.sleep(0.05)


# -- a server


class Serving:
    """A `kb serve` process: where it is, and what it printed at its start."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process, self.log = process, log
        self.printed: dict[str, str] = {}
        assert process.stdout is not None
        while "stop" not in self.printed:
            line = process.stdout.readline()
            assert line, log.read_text()
            self.printed[line[:14].strip()] = line[14:].strip()
        self.url = self.printed["kb serves"]

    def wait_for(self, text: str, limit_s: float = 60) -> None:
        """Until the log holds this."""
        deadline = time.monotonic() + limit_s
        while text not in self.log.read_text():
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def stop(self, number: int = signal.SIGTERM) -> str:
        """Send a signal; what was printed since the start. The exit must be clean."""
        self.process.send_signal(number)
        stdout, _ = self.process.communicate(timeout=30)
        assert self.process.returncode == 0, self.log.read_text()
        assert "Traceback" not in self.log.read_text()
        return stdout


@contextmanager
def serving(folder: Path, *arguments: str, **env: str) -> Iterator[Serving]:
    """A server on a free port; killed at the end if it still runs."""
    log = folder / "serve.log"
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            [*KB, "serve", "--port", "0", *arguments],
            cwd=folder,
            env=environment(**env),
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        ) as process,
    ):
        try:
            yield Serving(process, log)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """One server for the tests that only talk to it."""
    with serving(tmp_path_factory.mktemp("server"), KB_API_KEY="key-of-the-tests") as started:
        yield started
        started.stop()


def get(url: str, key: str | None = None) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.get(url, headers=headers, timeout=30)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_start_prints_a_key_once_and_a_signal_ends_it_cleanly(
    tmp_path: Path, number: int
) -> None:
    with serving(tmp_path) as first:
        key = first.printed["API key"]
        assert re.fullmatch(r"dataset-[A-Za-z0-9]{24}", key)
        assert first.printed["try"] == (
            f"curl -H 'Authorization: Bearer {key}' {first.url}/v1/datasets"
        )
        assert get(f"{first.url}/health/live").json() == {"status": "ok"}
        assert get(f"{first.url}/health/ready").json() == {"status": "ok"}
        assert get(f"{first.url}/docs").status_code == 200
        assert get(f"{first.url}/v1/datasets").status_code == 401
        assert get(f"{first.url}/v1/datasets", key).status_code == 200
        if number == signal.SIGTERM:  # the other one comes while the model is being loaded
            first.wait_for("embedding model all-minilm-l6-v2")
        began = time.monotonic()
        assert first.stop(number) == ""
        assert time.monotonic() - began < 20
    with serving(tmp_path) as second:
        assert second.printed["API key"].startswith(f"{key[:12]}… (shown in full when it was made")
        assert key not in "".join(second.printed.values())
        assert get(f"{second.url}/v1/datasets", key).status_code == 200
        second.stop(number)
    with serving(tmp_path, KB_API_KEY="mine") as third:
        assert third.printed["API key"] == "that of KB_API_KEY"
        assert get(f"{third.url}/v1/datasets", "mine").status_code == 200
        third.stop(number)


def test_a_stop_while_a_document_is_in_work_is_quick_and_the_next_start_goes_on(
    tmp_path: Path,
) -> None:
    lines = [f"Sentence {n} speaks of station {n * 7}." for n in range(4_000)]
    with serving(tmp_path, KB_API_KEY="k") as first:
        with Client(first.url, "k") as client:
            client.create_dataset("x", indexing_technique="high_quality")
            client.upload("x", "long.txt", "\n".join(lines).encode())
            deadline = time.monotonic() + 60
            while client.documents("x")[0]["indexing_status"] != "indexing":
                assert time.monotonic() < deadline
                time.sleep(0.05)
        began = time.monotonic()
        first.stop()
        assert time.monotonic() - began < 30  # the document would take longer
    with serving(tmp_path, KB_API_KEY="k") as second:
        with Client(second.url, "k") as client:
            deadline = time.monotonic() + 120
            while client.documents("x")[0]["indexing_status"] != "completed":
                assert time.monotonic() < deadline
                time.sleep(0.2)
        second.stop()
    assert run(tmp_path, "doctor").stdout.endswith("healthy\n")


def test_a_second_process_on_the_same_directory_is_told_who_has_it(server: Serving) -> None:
    folder = server.log.parent
    for arguments in (["serve", "--port", "0"], ["search", "x", "-d", "y"], ["datasets", "list"]):
        assert error(folder, *arguments) == (
            f"the data directory 'kb-data' is in use by process {server.process.pid}, a server at "
            f"{server.url}; reach it with --url {server.url} (and KB_API_KEY), or choose another "
            "--data-dir"
        )


def test_a_taken_port_is_a_clear_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert error(tmp_path, "serve", "--port", port).startswith(
            f"cannot listen on 127.0.0.1 port {port}: Address already in use; choose another --port"
        )


def test_commands_work_over_the_network_as_they_do_in_process(
    server: Serving, tmp_path: Path
) -> None:
    (tmp_path / "a.md").write_text("# Masts\n\nA mast is ten metres high.")
    remote = {"KB_URL": server.url, "KB_API_KEY": "key-of-the-tests"}
    done = run(tmp_path, "ingest", "a.md", "-d", "remote", **remote)
    assert done.stdout.startswith("completed  a.md: 1 segment, ")
    found = run(tmp_path, "search", "How high is a mast?", "-d", "remote", **remote)
    assert "A mast is ten metres high." in found.stdout
    assert run(tmp_path, "doctor", **remote).stdout.endswith("healthy\n")
    assert not (tmp_path / "kb-data").exists()


@pytest.mark.parametrize("key", ["wrong", "schlüssel", "two words"])
def test_a_wrong_key_is_refused_clearly(server: Serving, tmp_path: Path, key: str) -> None:
    message = error(tmp_path, "--url", server.url, "--api-key", key, "datasets", "list")
    assert "API key" in message
    assert "KB_API_KEY" in message


def test_a_url_with_a_path_that_is_not_served_is_named(server: Serving, tmp_path: Path) -> None:
    url = f"{server.url}/somewhere"
    message = error(tmp_path, "--url", url, "--api-key", "key-of-the-tests", "datasets", "list")
    assert "/somewhere/v1/datasets" in message


def test_the_python_client_goes_from_file_to_answer(server: Serving, tmp_path: Path) -> None:
    (tmp_path / "masts.md").write_text("# Masts\n\nA mast is ten metres high.")
    (tmp_path / "empty.md").write_text("")
    with Client(server.url, "key-of-the-tests") as kb:
        document: dict[str, Any] = kb.ingest("client", tmp_path / "masts.md")
        assert (document["name"], document["segment_count"]) == ("masts.md", 1)
        (passage,) = kb.search("client", "How high is a mast?")
        assert "ten metres" in passage.text
        assert (passage.document, passage.source["headings"]) == ("masts.md", ["Masts"])
        with pytest.raises(IngestionFailed, match=r"^empty_file: "):
            kb.ingest("client", tmp_path / "empty.md")
        kb.delete_document("client", "empty.md")
        kb.delete_dataset("client")
        assert kb.find_dataset("client") is None


def test_the_demo_answers_in_every_method(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kb.cli.demo"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert {m for m in ("hybrid", "vector", "fulltext") if f"[{m}]" in done.stdout} == {
        "hybrid",
        "vector",
        "fulltext",
    }
    assert "安装与保修指南.md" in done.stdout
    assert "kb serve --data-dir .demo-data" in done.stdout
    assert (tmp_path / ".demo-data" / "kb.db").exists()
