"""A real `kb serve` process on a port of its own, and what benchmarks ask of it over HTTP."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.corpus import Bundle, number_of, process_rule
from bench.evaluation import LabelledSet
from bench.report import Json, cpu_s

METHODS = {"fulltext": "full_text_search", "vector": "semantic_search", "hybrid": "hybrid_search"}
"""Names in the reports -> those on the wire."""

_START_S = 120.0
_POLL_S = 0.05
_IDLE_S = 3.0  # the server ends a connection that was idle for 5 s


class Api:
    """One connection to a kb server, kept alive.

    The standard library's client, since it adds the least to what is measured.
    """

    def __init__(self, port: int, key: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        self._used = time.monotonic()

    def call(self, method: str, path: str, body: Json | None = None) -> Any:
        """The parsed answer.

        Raises:
            RuntimeError: the status is not 200.
        """
        data = json.dumps(body).encode() if body is not None else None
        if time.monotonic() - self._used > _IDLE_S:
            self.close()
        self._used = time.monotonic()
        self._connection.request(method, path, data, self._headers)
        answer = self._connection.getresponse()
        raw = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{method} {path}: {answer.status} {raw.decode()[:500]}")
        return json.loads(raw)

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        self._connection.close()

    def __enter__(self) -> Api:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class Server:
    """A running server."""

    pid: int
    api: Api

    def settle(self, limit_s: float = 60.0) -> None:
        """Wait until the process has done nothing to speak of for a second."""
        ends = time.monotonic() + limit_s
        while time.monotonic() < ends:
            before = cpu_s(self.pid)
            time.sleep(1.0)
            if cpu_s(self.pid) - before < 0.05:
                return


@contextmanager
def serving(data_dir: Path, *, models: Path) -> Iterator[Server]:
    """A `kb serve` on this directory while it lasts.

    Queries and texts of any length are allowed, and documents are embedded at normal priority, so
    that other load on the machine slows both sides of a comparison alike.

    Args:
        models: keeps the exported model.
    Raises:
        RuntimeError: the server did not start; the message ends with its log.
    """
    key = secrets.token_hex()
    port = free_port()
    own = {
        "KB_API_KEY": key,
        "KB_LOG_LEVEL": "warning",
        "KB_EMBEDDING__CACHE_DIR": str(models.resolve()),
        "KB_EMBEDDING__NICENESS": "0",
        "KB_LIMITS__QUERY_CHARS": "1000000",
        "KB_LIMITS__CHUNK_CHARS": "1000000",
    }
    environment = {k: v for k, v in os.environ.items() if not k.startswith("KB_")} | own
    data_dir.mkdir(parents=True, exist_ok=True)
    log = data_dir.parent / f"{data_dir.name}.log"
    command = [sys.executable, "-m", "kb.cli", "serve", "--data-dir", str(data_dir)]
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*command, "--port", str(port)], env=environment, stdout=output, stderr=output
        )
    api = Api(port, key)
    try:
        await_ready(process, api, log)
        yield Server(process.pid, api)
    finally:
        api.close()
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def await_ready(process: subprocess.Popen[bytes], api: Api, log: Path) -> None:
    """Return when the server answers.

    Raises:
        RuntimeError: it ended, or did not answer in time; the message ends with its log.
    """
    ends = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < ends:
        try:
            api.call("GET", "/health/ready")
            return
        except OSError:
            api.close()
            time.sleep(_POLL_S)
    raise RuntimeError(f"kb serve did not start: {log.read_text(errors='replace')[-2000:]}")


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def add_dataset(api: Api, name: str) -> str:
    """Make a dataset with dense vectors; its id."""
    body = {"name": name, "indexing_technique": "high_quality"}
    return str(api.call("POST", "/v1/datasets", body)["id"])


def ingest(api: Api, dataset: str, documents: Iterable[Bundle]) -> float:
    """Upload and wait until everything can be found; seconds from the first upload on.

    Raises:
        RuntimeError: a document failed, or its number of segments is not that of its texts.
    """
    documents = list(documents)
    rule = process_rule([text for document in documents for text in document.texts])
    ready = _available(api, dataset)
    started = time.perf_counter()
    batches = []
    for document in documents:
        body = {"name": document.name, "text": document.text, "process_rule": rule}
        answer = api.call("POST", f"/v1/datasets/{dataset}/document/create-by-text", body)
        batches.append((answer["batch"], len(document.texts)))
    while _available(api, dataset) < ready + len(documents):
        failed = api.call("GET", f"/v1/datasets/{dataset}/documents?status=error&limit=1")
        if failed["total"]:
            raise RuntimeError(f"a document failed: {failed['data'][0]['error']}")
        time.sleep(_POLL_S)
    took_s = time.perf_counter() - started
    for batch, expected in batches:
        path = f"/v1/datasets/{dataset}/documents/{batch}/indexing-status"
        (status,) = api.call("GET", path)["data"]
        if status["completed_segments"] != expected:
            raise RuntimeError(f"{status['completed_segments']} segments of {expected} texts")
    return took_s


def _available(api: Api, dataset: str) -> int:
    return int(api.call("GET", f"/v1/datasets/{dataset}")["total_available_documents"])


def search(api: Api, dataset: str, query: str, method: str, top_k: int = 10) -> list[Json]:
    """The records of a retrieve call; a hybrid query weighs both legs alike."""
    model = {
        "search_method": METHODS[method],
        "top_k": top_k,
        "weights": {
            "vector_setting": {"vector_weight": 0.5},
            "keyword_setting": {"keyword_weight": 0.5},
        },
    }
    body = {"query": query, "retrieval_model": model}
    return list(api.call("POST", f"/v1/datasets/{dataset}/retrieve", body)["records"])


def ranking(
    api: Api, dataset: str, corpus: LabelledSet, method: str, ids: Sequence[str]
) -> dict[str, list[str]]:
    """The documents that each labelled query finds, best first.

    Args:
        ids: of the documents, by the number of their text.
    """
    return {
        query_id: [ids[number_of(record)] for record in search(api, dataset, query, method)]
        for query_id, query in zip(corpus.query_ids, corpus.queries, strict=True)
    }
