"""What the index on a server promises beyond the contract of every SegmentIndex."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import numpy as np
import pytest
from pydantic import SecretStr, ValidationError
from qdrant_client import QdrantClient, models

from kb.adapters.qdrant_server import LAYOUT, MINIMUM_VERSION, QdrantServerIndex
from kb.errors import StoreUnavailable
from kb.ports import Point, Space
from kb.settings import Qdrant, Settings
from kb.wiring import open_resources
from tests.contracts.qdrant_double import Double
from tests.contracts.qdrant_server import options_for
from tests.contracts.segment_index import (
    DIM,
    SPACE,
    Oracle,
    assert_ranked,
    point,
    random_points,
    terms,
)

pytestmark = pytest.mark.integration

Open = Callable[..., QdrantServerIndex]
COLLECTION = "kb-" + SPACE.name
INDEXED = {"dataset_id", "document_id", "version", "meta.tags"} | {f"meta.n{n}" for n in range(4)}
QUERY = np.ones(DIM, dtype=np.float32)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Double]:
    """One double for all tests, over REST and gRPC."""
    with Double(tmp_path_factory.mktemp("double"), grpc_port=0) as double:
        yield double


@pytest.fixture
def double(running: Double) -> Iterator[Double]:
    """The double, behaving and empty."""
    running.faults.clear()
    running.faults.drawn.clear()
    for name in running.engine.names():
        running.engine.delete(name)
    yield running
    running.faults.clear()


@pytest.fixture(params=["rest", "grpc"])
def grpc(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "grpc")


@pytest.fixture
def opened(double: Double) -> Iterator[Open]:
    """Opens an index on the double with SPACE in it; closes all at the end."""
    indexes: list[QdrantServerIndex] = []

    def open_index(**options: object) -> QdrantServerIndex:
        index = QdrantServerIndex(options_for(double, **options))  # type: ignore[arg-type]
        indexes.append(index)
        index.ensure_space(SPACE)
        double.seen.clear()
        return index

    yield open_index
    for index in indexes:
        index.close()


def a_point(dataset: UUID | None = None) -> Point:
    return point(dataset or uuid4(), np.ones(DIM), {1: 1.0})


def calls(double: Double) -> list[str]:
    return [operation for operation, _ in double.seen]


# -- what a collection looks like


def test_a_collection_has_its_vectors_indexes_and_copies(
    double: Double, opened: Open, grpc: bool
) -> None:
    opened(
        grpc=grpc,
        collection_prefix="mine-",
        shard_number=3,
        replication_factor=2,
        write_consistency_factor=2,
        full_scan_kb=5000,
    )
    assert double.engine.names() == ["mine-" + SPACE.name]
    info = double.engine.get("mine-" + SPACE.name).info()
    params, schema = info.config.params, info.payload_schema
    dense = models.VectorParams(size=DIM, distance=models.Distance.COSINE)
    assert params.vectors == {"dense": dense}
    assert params.sparse_vectors == {"bm25": models.SparseVectorParams(modifier="idf")}
    assert (params.shard_number, params.replication_factor) == (3, 2)
    assert params.write_consistency_factor == 2
    assert info.config.hnsw_config.m == 0, "no graph over all datasets together"
    assert info.config.hnsw_config.payload_m == 16
    assert info.config.hnsw_config.full_scan_threshold == 5000
    assert info.config.metadata == {"kb_layout": LAYOUT}
    assert set(schema) == INDEXED
    dataset_index = schema["dataset_id"].params
    assert isinstance(dataset_index, models.KeywordIndexParams)
    assert dataset_index.is_tenant is True
    version_index = schema["version"].params
    assert isinstance(version_index, models.IntegerIndexParams)
    assert version_index.range is True


def test_a_creation_that_was_killed_half_way_is_completed(double: Double, opened: Open) -> None:
    opened()
    created = double.engine.get(COLLECTION)
    for lost in ("version", "document_id", "meta.tags", "meta.n1"):
        del created._described.indexes[lost]
    opened()
    assert set(created.info().payload_schema) == INDEXED


def test_many_processes_may_make_the_same_collection_at_once(double: Double) -> None:
    indexes = [QdrantServerIndex(options_for(double)) for _ in range(6)]
    together = threading.Barrier(6)

    def ensure(index: QdrantServerIndex) -> None:
        together.wait()
        index.ensure_space(SPACE)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(ensure, indexes))
    assert double.engine.names() == [COLLECTION]
    assert set(double.engine.get(COLLECTION).info().payload_schema) >= {"dataset_id", "version"}
    for index in indexes:
        index.close()


def test_a_collection_of_somebody_else_is_left_alone(double: Double) -> None:
    client = QdrantClient(url=double.url, check_compatibility=False)
    dense = models.VectorParams(size=DIM, distance=models.Distance.COSINE)
    client.create_collection(COLLECTION, vectors_config={"dense": dense})
    client.close()
    index = QdrantServerIndex(options_for(double))
    with pytest.raises(StoreUnavailable, match=r"not made by this program; set another KB_QDRANT"):
        index.ensure_space(SPACE)
    with pytest.raises(StoreUnavailable, match=r"not made by this program"):
        index.count(SPACE)
    index.close()


def test_another_layout_is_not_guessed_at(double: Double, opened: Open) -> None:
    opened()
    metadata = double.engine.get(COLLECTION)._described.created.metadata
    assert metadata is not None
    metadata["kb_layout"] = LAYOUT + 1
    with pytest.raises(StoreUnavailable, match=f"has layout {LAYOUT + 1}, this version reads"):
        opened()


def test_a_collection_that_was_removed_meanwhile_is_named_and_can_be_made_again(
    double: Double, opened: Open, grpc: bool
) -> None:
    index = opened(grpc=grpc)
    double.engine.delete(COLLECTION)
    with pytest.raises(ValueError, match=f"'{SPACE.name}'.*{COLLECTION}.*ensure_space"):
        index.upsert(SPACE, [a_point()])
    index.ensure_space(SPACE)
    index.upsert(SPACE, [a_point()])
    assert index.count(SPACE) == 1


def test_prefixes_keep_installations_apart_and_processes_share_one(opened: Open) -> None:
    first, second, other = opened(), opened(), opened(collection_prefix="other-")
    first.upsert(SPACE, [a_point()])
    assert second.count(SPACE) == 1
    assert other.count(SPACE) == 0


# -- calls that fail


@pytest.mark.parametrize("kind", ["429-bare", "500", "503", "reset", "lost", "unfinished"])
def test_a_failing_write_is_made_again(
    double: Double, opened: Open, grpc: bool, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    index, stored = opened(grpc=grpc), a_point()
    double.faults.next(kind, 3, only="upsert")
    with caplog.at_level(logging.WARNING, "kb.qdrant"):
        index.upsert(SPACE, [stored])
    assert double.faults.drawn[kind] == 3
    assert len([r for r in caplog.records if "trying again in" in r.getMessage()]) == 3
    assert [h.id for h in index.scan(SPACE)] == [stored.id]


@pytest.mark.parametrize("kind", ["503", "reset"])
def test_every_call_is_made_again(double: Double, opened: Open, grpc: bool, kind: str) -> None:
    index, stored = opened(grpc=grpc), a_point()
    index.upsert(SPACE, [stored])
    ids, words = [stored.id], terms({1: 1.0})
    answers: list[tuple[Callable[[], object], object]] = [
        (lambda: [h.id for h in index.nearest(SPACE, stored.dataset_id, QUERY, 5)], ids),
        (lambda: [h.id for h in index.best(SPACE, stored.dataset_id, words, 5)], ids),
        (lambda: list(index.dense_scores(SPACE, stored.dataset_id, QUERY, ids)), ids),
        (lambda: list(index.text_scores(SPACE, stored.dataset_id, words, ids)), ids),
        (lambda: [h.id for h in index.scan(SPACE)], ids),
        (lambda: list(index.vectors(SPACE, ids)), ids),
        (lambda: index.count(SPACE), 1),
        (lambda: index.ensure_space(Space("another", None)), None),
        (lambda: index.delete(SPACE, ids, up_to_version=0), None),
        (lambda: index.delete_document(SPACE, stored.dataset_id, uuid4()), None),
        (lambda: index.delete_dataset(SPACE, stored.dataset_id), None),
        (lambda: index.count(SPACE), 0),
    ]
    for i, (call, expected) in enumerate(answers):
        double.faults.next(kind)
        assert call() == expected
        assert double.faults.drawn[kind] == i + 1


def test_a_server_that_keeps_silent_is_asked_again(
    double: Double, opened: Open, grpc: bool
) -> None:
    index = opened(grpc=grpc, timeout_s=1)
    double.faults.timeout_s = 1.5
    double.faults.next("timeout", only="upsert")
    index.upsert(SPACE, [a_point()])
    assert double.faults.drawn["timeout"] == 1
    assert index.count(SPACE) == 1


def test_retries_are_bounded_and_the_error_says_what_happened(
    double: Double, opened: Open, grpc: bool
) -> None:
    index = opened(grpc=grpc, retries=2)
    double.faults.next("503", 99)
    with pytest.raises(StoreUnavailable) as caught:
        index.count(SPACE)
    assert double.faults.drawn["503"] == 3
    for part in (double.url, "count", "503" if not grpc else "UNAVAILABLE", "3 attempts"):
        assert part in str(caught.value)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(("most_s", "least", "most"), [(10.0, 1.0, 8.0), (0.05, 0.05, 0.95)])
def test_the_wait_that_the_server_asks_for_is_kept_up_to_the_limit(
    double: Double, opened: Open, grpc: bool, most_s: float, least: float, most: float
) -> None:
    index = opened(grpc=grpc, retry_max_s=most_s)
    double.faults.next("429")
    start = time.monotonic()
    index.count(SPACE)
    assert least <= time.monotonic() - start < most


def test_waits_grow(double: Double, opened: Open) -> None:
    index = opened(retry_base_s=0.1, retry_max_s=0.4)
    double.faults.next("500", 4)
    start = time.monotonic()
    index.count(SPACE)
    # 0.1 + 0.2 + 0.4 + 0.4 s, each with a chance of one half more or less, cut at 0.4.
    assert 0.55 <= time.monotonic() - start < 8.0


def test_an_answer_that_is_no_json_is_an_unavailable_store(double: Double, opened: Open) -> None:
    index = opened()
    double.faults.next("garbage")
    with pytest.raises(StoreUnavailable, match="count"):
        index.count(SPACE)


def test_a_refused_call_is_not_repeated(double: Double, opened: Open, tmp_path: Path) -> None:
    with Double(tmp_path, most_bytes=100_000) as tight:
        index = QdrantServerIndex(options_for(tight, batch_bytes=2_000_000))
        index.ensure_space(SPACE)
        tight.seen.clear()
        points = random_points(np.random.default_rng(1), uuid4(), 800)
        with pytest.raises(StoreUnavailable, match=r"413: .*lower KB_QDRANT__BATCH_BYTES"):
            index.upsert(SPACE, points)
        assert calls(tight) == ["upsert"]
        index.close()


def test_with_five_percent_of_calls_failing_the_index_equals_an_undisturbed_one(
    double: Double, opened: Open, grpc: bool
) -> None:
    index, rng, dataset = opened(grpc=grpc, batch_points=7), np.random.default_rng(8), uuid4()
    points = random_points(rng, dataset, 600)
    double.faults.some(0.05, ["429-bare", "500", "503", "reset", "lost", "unfinished"], seed=3)
    index.upsert(SPACE, points)
    for gone in points[:100]:
        index.delete(SPACE, [gone.id], up_to_version=1)
    oracle, query, words = Oracle.of(points[100:]), QUERY, terms({1: 1.0, 2: 1.0})
    for limit in range(1, 40):
        nearest = index.nearest(SPACE, dataset, query, limit)
        assert_ranked(nearest, oracle.dense(dataset, query), limit)
        assert_ranked(index.best(SPACE, dataset, words, limit), oracle.text(dataset, words), limit)
    assert sum(double.faults.drawn.values()) >= 5, "faults must have happened"
    double.faults.clear()
    assert [h.id for h in index.scan(SPACE)] == sorted(p.id for p in points[100:])


def test_closing_ends_a_wait_at_once(double: Double, opened: Open) -> None:
    index = opened(retry_base_s=60.0, retry_max_s=60.0)
    double.faults.next("503", 9)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(index.count, SPACE)
        time.sleep(0.2)
        start = time.monotonic()
        index.close()
        with pytest.raises(StoreUnavailable, match="closed"):
            waiting.result(timeout=5)
    assert time.monotonic() - start < 10


def test_closing_under_load_ends_every_call_with_an_answer_or_unavailable(
    opened: Open, grpc: bool
) -> None:
    index, stored = opened(grpc=grpc), a_point()
    index.upsert(SPACE, [stored])

    def ask_until_closed() -> int:
        answers = 0
        while True:
            try:
                assert index.count(SPACE, stored.dataset_id) == 1
                index.upsert(SPACE, [stored])
            except StoreUnavailable:
                return answers
            answers += 1

    with ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(ask_until_closed) for _ in range(3)]
        time.sleep(0.3)
        index.close()
        assert sum(future.result(timeout=30) for future in asking) > 0


# -- reaching the server


def test_nobody_there_is_an_unavailable_store_until_somebody_is(tmp_path: Path) -> None:
    with Double(tmp_path / "first") as gone:
        port = int(gone.url.rpartition(":")[2])
        options = options_for(gone, retries=1)
    index = QdrantServerIndex(options)
    with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1.*ConnectError.*2 attempts"):
        index.ensure_space(SPACE)
    with Double(tmp_path / "second", port=port):
        index.ensure_space(SPACE)
        assert index.count(SPACE) == 0
        index.close()


def test_a_server_that_restarts_is_found_again(tmp_path: Path, grpc: bool) -> None:
    first = Double(tmp_path, grpc_port=0 if grpc else None)
    ports = {
        "port": int(first.url.rpartition(":")[2]),
        "grpc_port": first.grpc_port if grpc else None,
    }
    index = QdrantServerIndex(options_for(first, grpc=grpc, retries=10, retry_base_s=0.1))
    index.ensure_space(SPACE)
    stored = a_point()
    index.upsert(SPACE, [stored])
    first.close()
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(index.count, SPACE)
        time.sleep(0.3)
        with Double(tmp_path, **ports):  # type: ignore[arg-type]
            assert asking.result(timeout=30) == 1
            index.close()


def test_grpc_is_used_where_it_is_offered_and_rest_where_not(
    double: Double, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    index = QdrantServerIndex(options_for(double, grpc=True))
    double.seen.clear()
    index.ensure_space(SPACE)
    assert calls(double) == []
    index.close()
    with Double(tmp_path) as rest_only:
        index = QdrantServerIndex(options_for(rest_only, grpc=True))
        with caplog.at_level(logging.WARNING, "kb.qdrant"):
            index.ensure_space(SPACE)
        assert "using REST" in caplog.text
        assert "KB_QDRANT__GRPC_PORT" in caplog.text
        index.upsert(SPACE, [a_point()])
        assert "upsert" in calls(rest_only)
        index.close()


@pytest.mark.parametrize("key", [None, "wrong"])
def test_a_key_is_sent_and_a_wrong_one_is_said_so(
    tmp_path: Path, grpc: bool, key: str | None
) -> None:
    with Double(tmp_path, api_key="right", grpc_port=0) as locked:
        index = QdrantServerIndex(options_for(locked, grpc=grpc, api_key=key))
        with pytest.raises(StoreUnavailable, match="check KB_QDRANT__API_KEY") as caught:
            index.ensure_space(SPACE)
        assert "attempts" not in str(caught.value)
        index.close()
        index = QdrantServerIndex(options_for(locked, grpc=grpc, api_key=SecretStr("right")))
        index.ensure_space(SPACE)
        assert index.count(SPACE) == 0
        index.close()


def test_something_else_at_the_url_is_said_so(double: Double) -> None:
    index = QdrantServerIndex(options_for(double).model_copy(update={"url": double.url + "/x"}))
    with pytest.raises(StoreUnavailable, match="is it a Qdrant server"):
        index.count(SPACE)
    index.close()


@pytest.mark.parametrize(
    ("version", "lacking"),
    [
        ("1.18.4", ["BM25 statistics limited to a dataset (1.19)"]),
        ("1.15.0", ["collection metadata (1.16)", "BM25 statistics limited to a dataset (1.19)"]),
        ("0.11.7", ["sparse vectors with IDF, and the query route (1.10)"]),
    ],
)
def test_an_old_server_is_refused_with_what_it_lacks(
    tmp_path: Path, grpc: bool, version: str, lacking: list[str]
) -> None:
    with Double(tmp_path, version=version, grpc_port=0) as old:
        index = QdrantServerIndex(options_for(old, grpc=grpc))
        with pytest.raises(StoreUnavailable) as caught:
            index.ensure_space(SPACE)
        assert old.engine.names() == []
        index.close()
    for part in (f"is version {version}", *lacking, "upgrade it to 1.19.0 or newer"):
        assert part in str(caught.value)
    if version == "1.18.4":
        assert "metadata" not in str(caught.value), "only what it lacks"


@pytest.mark.parametrize("version", ["1.19.0", "1.20.3-dev", "2.0.0"])
def test_a_new_enough_server_is_used(tmp_path: Path, version: str) -> None:
    assert MINIMUM_VERSION == (1, 19)
    with Double(tmp_path, version=version) as new:
        index = QdrantServerIndex(options_for(new))
        index.ensure_space(SPACE)
        index.close()


def test_a_server_that_was_upgraded_is_used_without_a_restart_of_ours(tmp_path: Path) -> None:
    with Double(tmp_path / "a", version="1.18.0") as old:
        port = int(old.url.rpartition(":")[2])
        index = QdrantServerIndex(options_for(old))
        with pytest.raises(StoreUnavailable, match=r"1\.18\.0"):
            index.ensure_space(SPACE)
    with Double(tmp_path / "b", port=port):
        index.ensure_space(SPACE)
        index.close()


# -- writes


def test_requests_are_cut_by_bytes(double: Double, opened: Open) -> None:
    index, dataset = opened(batch_bytes=100_000), uuid4()
    # Numbers that are long when written out, and a hash that has to be escaped.
    points = random_points(np.random.default_rng(2), dataset, 600)
    points = [replace(p, text_hash='\x01\u00fc"' * 5) for p in points]
    index.upsert(SPACE, points)
    bodies = [size for operation, size in double.seen if operation == "upsert"]
    assert max(bodies) <= 100_000
    assert sum(bodies) / len(bodies) > 50_000, "no more requests than needed"
    assert index.count(SPACE, dataset) == 600


def test_requests_are_cut_by_points(double: Double, opened: Open) -> None:
    index = opened(batch_points=64)
    index.upsert(SPACE, [a_point() for _ in range(200)])
    assert calls(double) == ["upsert"] * 4


def test_a_point_larger_than_the_limit_is_sent_alone(double: Double, opened: Open) -> None:
    index, dataset = opened(batch_bytes=100_000), uuid4()
    large = point(dataset, np.ones(DIM), dict.fromkeys(range(10_000), 1.0))
    index.upsert(SPACE, [a_point(dataset), large, a_point(dataset)])
    assert calls(double) == ["upsert"] * 3
    assert index.count(SPACE, dataset) == 3


def test_a_delete_looks_at_the_version_where_it_deletes(double: Double, opened: Open) -> None:
    index, stored = opened(), a_point()
    index.upsert(SPACE, [stored])
    double.seen.clear()
    index.delete(SPACE, [stored.id], up_to_version=1)
    assert calls(double) == ["delete"], "nothing is read before, so nothing can come in between"
    assert index.count(SPACE) == 0


def test_versions_are_exact_up_to_the_bound_and_refused_beyond(opened: Open, grpc: bool) -> None:
    index, dataset = opened(grpc=grpc), uuid4()
    near = [point(dataset, np.ones(DIM), {}, version=2**53 - n) for n in (2, 1, 0)]
    index.upsert(SPACE, near)
    index.delete(SPACE, [p.id for p in near], up_to_version=2**53 - 1)
    assert [h.version for h in index.scan(SPACE)] == [2**53]
    with pytest.raises(ValueError, match=f"version {2**53 + 1}; use 0 to {2**53}"):
        index.upsert(SPACE, [point(dataset, np.ones(DIM), {}, version=2**53 + 1)])
    index.delete(SPACE, [p.id for p in near], up_to_version=2**62)
    assert index.count(SPACE) == 0


# -- choosing it


def test_the_url_chooses_the_server(double: Double, tmp_path: Path) -> None:
    chosen = Settings(data_dir=tmp_path / "data", qdrant=options_for(double))
    with open_resources(chosen) as resources:
        assert isinstance(resources.index, QdrantServerIndex)
        resources.index.ensure_space(SPACE)
        assert double.engine.names() == [COLLECTION]
    assert not (tmp_path / "data" / "index").exists()


def test_without_a_server_the_client_is_not_even_imported() -> None:
    code = "import kb.wiring, sys; sys.exit('qdrant_client' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_client_is_named_with_the_remedy() -> None:
    code = "import sys; sys.modules['qdrant_client'] = None; import kb.adapters.qdrant_server"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ProviderNotInitialized" in done.stderr
    assert "pip install 'kb-engine[service]'" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "localhost:6333"}, "url"),
        ({"write_consistency_factor": 2}, "only 1 copies; raise replication_factor"),
        ({"collection_prefix": "a/b"}, "collection_prefix"),
        ({"write_ordering": "none"}, "write_ordering"),
        ({"retries": -1}, "retries"),
    ],
)
def test_settings_that_cannot_work_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Qdrant.model_validate(options)


def test_a_key_is_never_printed() -> None:
    assert "hidden" not in repr(Qdrant(url="http://x", api_key=SecretStr("hidden")))


# -- the double itself


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/points/count", {"exact": True, "tenant": "x"}),
        ("POST", "/points/count?timeout=3", {"exact": True}),
        ("POST", "/points/query", {"query": [1.0] * DIM, "using": "dense", "limit": 1, "ef": 3}),
        ("POST", "/points/query", {"query": [1.0] * DIM, "using": "sparse", "limit": 1}),
        ("POST", "/points/query", {"query": [1.0] * 3, "using": "dense", "limit": 1}),
        ("POST", "/points/count", {"filter": {"must": [{"key": "x", "match": {"value": "y"}}]}}),
        ("POST", "/points/count", {"filter": {"min_should": {"conditions": [], "min_count": 1}}}),
        ("POST", "/points/delete?wait=maybe", {"filter": {"must": []}}),
        ("PUT", "/points?wait=true", {"points": [{"id": 7, "vector": {}, "payload": {}}]}),
        ("PUT", "/points?wait=true", {"points": []}),
        ("PUT", "", {"vectors": {"dense": {"size": 3, "distance": "Dot"}}}),
        ("POST", "/points/recommend", {}),
    ],
)
def test_the_double_refuses_what_the_server_would_not_take(
    double: Double, opened: Open, method: str, path: str, body: dict[str, object]
) -> None:
    opened()
    answer = httpx.request(method, f"{double.url}/collections/{COLLECTION}{path}", json=body)
    assert answer.status_code in (400, 404)
    assert answer.json()["status"]["error"]


def test_the_double_can_be_told_to_misbehave_from_another_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.contracts.qdrant_double", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        index = QdrantServerIndex(Qdrant(url=url, prefer_grpc=False, retry_base_s=0.01, retries=9))
        wanted = {"share": 0.3, "kinds": ["503", "lost"], "seed": 1}
        assert httpx.put(f"{url}/double/faults", json=wanted).status_code == 200
        index.ensure_space(SPACE)
        for _ in range(20):
            index.upsert(SPACE, [a_point()])
        assert index.count(SPACE) == 20
        assert sum(httpx.get(f"{url}/double/faults").json().values()) > 3
        index.close()
        process.terminate()
        assert process.wait(timeout=10) == 0
