"""Whatever is sent, the answer is never a 500; and nobody waits for a client that is slow."""

from __future__ import annotations

import http.client
import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from kb.api.app import create_app
from kb.db import open_database
from kb.settings import Limits
from tests.kb.api import (
    HEADERS,
    KEY,
    add_dataset,
    add_text,
    api,
    fresh_name,
    refused,
    resources_of,
    served,
    test_settings,
)

Address = tuple[str, int]


@pytest.fixture(scope="module")
def idle(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """The REST API without workers."""
    with api(tmp_path_factory.mktemp("idle"), working=False) as opened:
        yield opened


@pytest.fixture(scope="module")
def server(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    """A real HTTP server without workers."""
    limits = Limits(file_bytes=1_000_000, body_bytes=1_000_000)
    with served(test_settings(tmp_path_factory.mktemp("served"), limits=limits)) as address:
        yield address


# --- random bodies -------------------------------------------------------------------------------

# Code points that are hard on stores: NUL, controls, surrogates, noncharacters, astral planes.
TEXTS = st.text(st.sampled_from('aZ0 .\n\0\x1f\ud800\udfff\ufffe\U0001f600名é"\\{'), max_size=60)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**31, 2**63, 10**40, -1, 0])
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS
)
ANY = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


def some(**fields: Any) -> st.SearchStrategy[Any]:
    """An object with some of these keys, each with a sensible or with any value."""
    return st.fixed_dictionaries({}, optional={k: v | ANY for k, v in fields.items()})


MODEL = some(
    search_method=st.sampled_from(["semantic_search", "hybrid_search", "keyword_search"]),
    top_k=st.integers(-1, 200),
    score_threshold=st.floats(0, 1),
    score_threshold_enabled=st.booleans(),
    reranking_enable=st.booleans(),
    reranking_model=some(reranking_model_name=TEXTS, reranking_provider_name=TEXTS),
    weights=some(
        vector_setting=some(vector_weight=st.floats(-1, 2)),
        keyword_setting=some(keyword_weight=st.floats(-1, 2)),
    ),
    metadata_filtering_conditions=some(conditions=st.lists(some(name=TEXTS, value=TEXTS))),
)
RULE = some(
    mode=st.sampled_from(["automatic", "custom", "hierarchical"]),
    rules=some(
        pre_processing_rules=st.lists(some(id=TEXTS, enabled=st.booleans()), max_size=2),
        segmentation=some(separator=TEXTS, max_tokens=st.integers(), chunk_overlap=st.integers()),
        parent_mode=st.sampled_from(["paragraph", "full-doc"]),
        subchunk_segmentation=some(separator=TEXTS, max_tokens=st.integers()),
    ),
)
TECHNIQUE = st.sampled_from(["high_quality", "economy"])
DATASET = some(
    name=TEXTS,
    description=TEXTS,
    indexing_technique=TECHNIQUE,
    permission=st.sampled_from(["only_me", "partial_members"]),
    embedding_model=TEXTS,
    embedding_model_provider=TEXTS,
    retrieval_model=MODEL,
    summary_index_setting=some(enable=st.booleans(), summary_prompt=TEXTS),
)
DOCUMENT = some(
    name=TEXTS,
    text=TEXTS,
    indexing_technique=TECHNIQUE,
    doc_form=st.sampled_from(["text_model", "hierarchical_model"]),
    doc_language=TEXTS,
    process_rule=RULE,
    original_document_id=TEXTS,
    retrieval_model=MODEL,
    duplicate=st.booleans(),
)
QUESTION = some(query=TEXTS, retrieval_model=MODEL, attachment_ids=st.lists(TEXTS, max_size=2))
EXTERNAL = some(
    knowledge_id=TEXTS,
    query=TEXTS,
    retrieval_setting=some(top_k=st.integers(), score_threshold=st.floats(0, 1)),
    metadata_condition=some(conditions=st.lists(some(name=TEXTS, value=TEXTS), max_size=2)),
)
ROUTES: dict[str, tuple[str, str, st.SearchStrategy[Any]]] = {
    "create dataset": ("POST", "/v1/datasets", DATASET),
    "update dataset": ("PATCH", "/v1/datasets/{dataset}", DATASET),
    "create by text": ("POST", "/v1/datasets/{dataset}/document/create-by-text", DOCUMENT),
    "retrieve": ("POST", "/v1/datasets/{dataset}/retrieve", QUESTION),
    "external": ("POST", "/retrieval", EXTERNAL),
}


@pytest.fixture(scope="module")
def subject(idle: TestClient) -> str:
    """The dataset that random bodies are sent to."""
    return add_dataset(idle, fresh_name(), indexing_technique=None)


def sound(answer: Any) -> None:
    """Not a 500, and a body in UTF-8 JSON."""
    assert answer.status_code in (200, 400, 404, 409, 413, 415, 422), answer.text
    json.loads(answer.content.decode())


@pytest.mark.parametrize("route", list(ROUTES))
def test_no_json_makes_a_500(idle: TestClient, subject: str, route: str) -> None:
    method, path, bodies = ROUTES[route]

    @settings(max_examples=120)
    @given(bodies | ANY)
    def any_body(body: Any) -> None:
        content = json.dumps(body).encode()
        sound(idle.request(method, path.format(dataset=subject), content=content))

    any_body()


@pytest.mark.parametrize("route", list(ROUTES))
def test_no_bytes_make_a_500(idle: TestClient, subject: str, route: str) -> None:
    method, path, _ = ROUTES[route]

    @settings(max_examples=60)
    @given(st.binary(max_size=80) | st.text(max_size=40).map(lambda t: t.encode("utf-16")))
    def any_body(body: bytes) -> None:
        sound(idle.request(method, path.format(dataset=subject), content=body))

    any_body()


PARTS = st.lists(
    st.tuples(
        st.sampled_from(["file", "data", "x"]),
        st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
        st.binary(max_size=40) | st.sampled_from([b"{}", b'{"duplicate": "\\ud800"}', b"[[["]),
    ),
    max_size=4,
)


def test_no_multipart_makes_a_500(idle: TestClient, subject: str) -> None:
    path = f"/v1/datasets/{subject}/document/create-by-file"

    @settings(max_examples=80)
    @given(PARTS)
    def any_parts(parts: list[tuple[str, str | None, bytes]]) -> None:
        sound(idle.post(path, files=[(name, (file, content)) for name, file, content in parts]))

    any_parts()


@pytest.mark.parametrize("depth", [50, 200, 500, 900, 990, 1100, 5000, 200_000])
@pytest.mark.parametrize("key", ["name", "retrieval_model", "summary_index_setting", "unknown"])
def test_json_of_any_depth_is_answered(idle: TestClient, depth: int, key: str) -> None:
    for opening, closing in (("[", "]"), ('{"a":', "}")):
        inner = opening * depth + ("1" if opening != "[" else "") + closing * depth
        body = f'{{"name": "{fresh_name()}", "{key}": {inner}, "x": "\\ud800"}}'
        sound(idle.post("/v1/datasets", content=body))


@pytest.mark.parametrize("size", [10_000, 1_000_000, 20_000_000])
def test_a_huge_value_is_refused_in_a_short_message(idle: TestClient, size: int) -> None:
    for body in ({"name": "x" * size}, {"name": ["x"] * (size // 4)}):
        answer = idle.post("/v1/datasets", json=body)
        assert len(refused(answer, 422, "unprocessable_entity")) < 1000


@pytest.mark.parametrize(
    "status", ["a", "\0", "\ud800".encode("utf-8", "surrogatepass"), "x" * 5000]
)
def test_no_query_string_makes_a_500(idle: TestClient, subject: str, status: Any) -> None:
    document = add_text(idle, add_dataset(idle, fresh_name()), "a", "Some text.")["document"]
    params = {"keyword": status, "status": status, "tag_ids": status, "metadata": status}
    base = f"/v1/datasets/{document['id']}"
    for path in ("/v1/datasets", f"/v1/datasets/{subject}/documents", base, f"{base}/documents"):
        sound(idle.get(path, params=params))


# --- the database --------------------------------------------------------------------------------


def test_a_database_that_does_not_answer_is_503_and_worth_a_retry(
    idle: TestClient, tmp_path: Path
) -> None:
    gone = open_database(f"sqlite:///{tmp_path / 'missing' / 'kb.db'}")
    app = create_app(replace(resources_of(idle), sessions=gone), process_key=KEY)
    client = TestClient(app, headers=HEADERS)
    for answer in (client.get("/v1/datasets"), client.post("/v1/datasets", json={"name": "a"})):
        assert "try again" in refused(answer, 503, "service_unavailable")
        assert answer.headers["retry-after"] == "1"
    gone.close()


# --- over a real connection ----------------------------------------------------------------------


def call(address: Address, method: str, path: str, body: Any = None, **headers: str) -> Any:
    """(status, parsed answer, seconds)."""
    connection = http.client.HTTPConnection(*address, timeout=90)
    started = time.monotonic()
    content = json.dumps(body) if isinstance(body, dict) else body
    connection.request(method, path, content, {**HEADERS, **headers})
    answer = connection.getresponse()
    raw = answer.read()
    connection.close()
    return answer.status, json.loads(raw) if raw else None, time.monotonic() - started


def request_head(path: str, length: int, content_type: str, *extra: str) -> bytes:
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: x",
        f"Authorization: {HEADERS['Authorization']}",
        f"Content-Type: {content_type}",
        f"Content-Length: {length}",
        *extra,
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def read_status(connection: socket.socket) -> int:
    answer = b""
    while not (match := re.search(rb"HTTP/1.1 ([2-5]\d\d)", answer)):
        part = connection.recv(65536)
        assert part, f"closed after {answer!r}"
        answer += part
    return int(match[1])


def a_dataset(address: Address) -> str:
    body = {"name": fresh_name(), "indexing_technique": "economy"}
    status, answer, _ = call(address, "POST", "/v1/datasets", body)
    assert status == 200, answer
    return str(answer["id"])


@pytest.mark.parametrize("route", ["dataset", "text", "file", "patch"])
def test_a_body_that_arrives_slowly_holds_up_nobody_else(server: Address, route: str) -> None:
    dataset = a_dataset(server)
    boundary = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\nSome'
    path, kind, body, done = {
        "dataset": ("/v1/datasets", "application/json", b'{"name": "%s"}', 200),
        "patch": (f"/v1/datasets/{dataset}", "application/json", b'{"description": "%s"}', 200),
        "text": (
            f"/v1/datasets/{dataset}/document/create-by-text",
            "application/json",
            b'{"name": "%s", "text": "Some text."}',
            200,
        ),
        "file": (
            f"/v1/datasets/{dataset}/document/create-by-file",
            "multipart/form-data; boundary=b",
            boundary + b" text %s.\r\n--b--\r\n",
            200,
        ),
    }[route]
    body = body.replace(b"%s", fresh_name().encode())
    head = request_head(path, len(body), kind)
    if route == "patch":
        head = head.replace(b"POST", b"PATCH", 1)
    with socket.create_connection(server, timeout=60) as slow:
        slow.sendall(head + body[: len(body) // 2])
        time.sleep(0.3)
        for _ in range(5):  # creating, changing and deleting go on meanwhile
            status, answer, seconds = call(server, "POST", "/v1/datasets", {"name": fresh_name()})
            assert (status, seconds < 10) == (200, True)
            assert call(server, "DELETE", f"/v1/datasets/{answer['id']}")[0] == 204
            assert call(server, "PATCH", f"/v1/datasets/{dataset}", {"description": "x"})[0] == 200
        slow.sendall(body[len(body) // 2 :])
        assert read_status(slow) == done


def test_a_client_that_leaves_in_the_middle_of_its_body_leaves_nothing(server: Address) -> None:
    dataset = a_dataset(server)
    for path, kind in (
        (f"/v1/datasets/{dataset}/document/create-by-text", "application/json"),
        (f"/v1/datasets/{dataset}/document/create-by-file", "multipart/form-data; boundary=b"),
    ):
        with socket.create_connection(server, timeout=60) as leaving:
            leaving.sendall(request_head(path, 1000, kind) + b'{"name": "a", "text": "b"')
    time.sleep(0.3)
    assert call(server, "GET", f"/v1/datasets/{dataset}/documents")[1]["total"] == 0
    assert call(server, "GET", "/health/live", b"")[0] == 200


@pytest.mark.parametrize(
    ("route", "code"),
    [
        ("document/create-by-file", "file_too_large"),
        ("document/create-by-text", "request_entity_too_large"),
    ],
)
def test_a_body_that_announces_too_much_is_refused_before_it_is_sent(
    server: Address, route: str, code: str
) -> None:
    path = f"/v1/datasets/{a_dataset(server)}/{route}"
    kind = "multipart/form-data; boundary=b"
    with socket.create_connection(server, timeout=60) as connection:
        connection.sendall(request_head(path, 40_000_000, kind, "Expect: 100-continue"))
        assert read_status(connection) == 413
    status, answer, _ = call(server, "POST", path, b"x" * 40_000_000, **{"Content-Type": kind})
    assert (status, answer["code"]) == (413, code)


def test_a_wrong_key_is_refused_before_the_upload_is_sent(server: Address) -> None:
    path = f"/v1/datasets/{a_dataset(server)}/document/create-by-file"
    head = request_head(path, 900_000, "multipart/form-data; boundary=b", "Expect: 100-continue")
    with socket.create_connection(server, timeout=60) as connection:
        connection.sendall(head.replace(b"Bearer ", b"Bearer not-"))
        assert read_status(connection) == 401


def test_an_upload_without_a_length_is_cut_off_at_the_limit(server: Address) -> None:
    path = f"/v1/datasets/{a_dataset(server)}/document/create-by-file"
    head = request_head(path, 0, "multipart/form-data; boundary=b")
    head = head.replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    begin = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'
    sent = 0
    with socket.create_connection(server, timeout=60) as connection:
        connection.sendall(head + b"%x\r\n%s\r\n" % (len(begin), begin))
        connection.settimeout(0.01)
        answer = b""
        while not answer and sent < 60_000_000:
            connection.settimeout(60)
            connection.sendall(b"%x\r\n%s\r\n" % (100_000, b"x" * 100_000))
            sent += 100_000
            connection.settimeout(0.01)
            try:
                answer = connection.recv(65536)
            except TimeoutError:
                continue
    assert b"413" in answer.split(b"\r\n")[0]
    assert sent < 20_000_000


def at_once(calls: Sequence[Callable[[], Any]]) -> Counter[int]:
    """How often each status came back of calls that start together."""
    together = threading.Barrier(len(calls))

    def go(one: Callable[[], Any]) -> int:
        together.wait()
        return int(one()[0])

    with ThreadPoolExecutor(len(calls)) as pool:
        return Counter(pool.map(go, calls))


def test_a_hundred_writers_at_once_all_succeed_soon(server: Address) -> None:
    """More than the thread pool has threads: a call that waits for one must hold no lock."""
    dataset = a_dataset(server)
    started = time.monotonic()
    creating = [
        lambda: call(server, "POST", "/v1/datasets", {"name": fresh_name()}) for _ in range(60)
    ]
    changing = [
        lambda: call(server, "PATCH", f"/v1/datasets/{dataset}", {"description": fresh_name()})
        for _ in range(40)
    ]
    assert at_once([*creating, *changing]) == {200: 100}
    assert time.monotonic() - started < 25  # a lock that is waited for in vain costs 30 s


def test_two_hundred_readers_at_once_all_succeed(server: Address) -> None:
    dataset = a_dataset(server)
    paths = [f"/v1/datasets/{dataset}", "/v1/datasets", f"/v1/datasets/{dataset}/documents"]
    calls = [partial(call, server, "GET", path) for path in paths * 66]
    assert at_once(calls) == {200: 198}


def test_two_hundred_and_fifty_queries_at_once_all_succeed_soon(server: Address) -> None:
    path = f"/v1/datasets/{a_dataset(server)}/retrieve"
    started = time.monotonic()
    assert at_once([lambda: call(server, "POST", path, {"query": "walrus"})] * 250) == {200: 250}
    assert time.monotonic() - started < 25


def test_uploads_of_one_name_at_once_become_one_document(server: Address) -> None:
    dataset = a_dataset(server)
    path = f"/v1/datasets/{dataset}/document/create-by-text"
    body = {"name": "guide", "text": "Some text."}
    assert at_once([lambda: call(server, "POST", path, body)] * 12) == {200: 12}
    listing = call(server, "GET", f"/v1/datasets/{dataset}/documents")[1]
    assert (listing["total"], listing["data"][0]["position"]) == (1, 1)


def test_uploads_of_different_names_at_once_get_different_positions(server: Address) -> None:
    dataset = a_dataset(server)
    path = f"/v1/datasets/{dataset}/document/create-by-text"
    calls = [
        lambda: call(server, "POST", path, {"name": fresh_name(), "text": "Some text."})
        for _ in range(12)
    ]
    assert at_once(calls) == {200: 12}
    rows = call(server, "GET", f"/v1/datasets/{dataset}/documents")[1]["data"]
    assert sorted(row["position"] for row in rows) == list(range(1, 13))
