"""What every BlobStore promises, over a directory and over a server that speaks S3."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from kb.adapters.localfs import LocalBlobs
from kb.adapters.s3 import S3Blobs
from kb.api.app import create_app
from kb.errors import NotFound, StoreUnavailable
from kb.ports import BlobStore
from kb.runner import Runner
from kb.settings import Blobs
from kb.wiring import open_resources
from tests.kb.server import KEY, add_dataset, add_text, test_settings, wait
from tests.s3 import Line, S3Server, busy, cut, dropped, refused, s3_server

OPEN_LOCAL = """
from pathlib import Path
from kb.adapters.localfs import LocalBlobs
store = LocalBlobs(Path({path!r}), min_free_bytes=0)
"""
OPEN_S3 = """
from kb.adapters.s3 import S3Blobs
from kb.settings import Blobs
store = S3Blobs(Blobs(**{options!r}))
"""
WRITE_FOR_EVER = """
import sys
print("ready", flush=True)
while True:
    for version in range(256):
        store.put("big/file", bytes([version]) * {size})
        print(version, flush=True)
"""


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """One server for all tests."""
    with s3_server() as server:
        yield server


class Place:
    """A store, and the Python source that opens the same store in another process.

    Attributes:
        kills: how many processes a test may start and kill; one that imports boto3 takes a second.
        wait: lets that many seconds pass for all blobs of the store.
    """

    def __init__(
        self, store: BlobStore, source: str, kills: int, wait: Callable[[float], None]
    ) -> None:
        self.store, self.source, self.kills, self.wait = store, source, kills, wait


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.integration)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """An empty store."""
    if request.param == "local":
        path = tmp_path / "blobs"

        def wait(seconds: float) -> None:
            for file in path.rglob("*"):
                os.utime(file, (time.time() - seconds,) * 2)

        store: BlobStore = LocalBlobs(path, min_free_bytes=0)
        yield Place(store, OPEN_LOCAL.format(path=str(path)), 6, wait)
        return
    server: S3Server = request.getfixturevalue("s3")
    options = server.options()
    store = S3Blobs(options)
    plain = options.model_dump(exclude_none=True) | {
        "access_key_id": server.key_id,
        "secret_access_key": server.secret,
    }
    yield Place(store, OPEN_S3.format(options=plain), 2, time.sleep)
    store.close()


@pytest.fixture
def store(place: Place) -> BlobStore:
    """An empty store."""
    return place.store


def test_bytes_come_back_as_they_were_put(store: BlobStore) -> None:
    every = bytes(range(256)) * 3
    store.put("uploads/one", every)
    store.put("empty", b"")
    assert store.get("uploads/one") == every
    assert store.get("empty") == b""
    assert store.exists("uploads/one")
    assert store.exists("empty")


def test_the_same_key_again_replaces(store: BlobStore) -> None:
    store.put("a", b"first, and longer")
    store.put("a", b"second")
    assert store.get("a") == b"second"
    assert list(store.keys()) == ["a"]


def test_a_missing_blob_is_not_found_and_may_be_deleted(store: BlobStore) -> None:
    store.put("folder/file", b"x")
    for key in ("nothing", "folder", "folder/fil", "folder/file2", "folder/file/below"):
        assert not store.exists(key)
        with pytest.raises(NotFound, match=f"no blob '{key}'"):
            store.get(key)
        store.delete(key)
    assert list(store.keys()) == ["folder/file"]


def test_a_deleted_blob_is_gone_and_its_key_is_free(store: BlobStore) -> None:
    store.put("texts/1/2", b"old")
    store.delete("texts/1/2")
    store.delete("texts/1/2")
    assert not store.exists("texts/1/2")
    assert list(store.keys()) == []
    store.put("texts/1/2", b"new")
    assert store.get("texts/1/2") == b"new"


def test_a_blob_of_thirty_megabytes_is_kept_whole(store: BlobStore) -> None:
    data = random.Random(7).randbytes(30_000_000)
    store.put("big", data)
    assert sha256(store.get("big")).digest() == sha256(data).digest()
    store.put("big", data[:-1])
    assert len(store.get("big")) == len(data) - 1


KEYS = st.lists(
    st.lists(st.text("abAB01-_.", min_size=1, max_size=3), min_size=1, max_size=3).map("/".join),
    max_size=12,
    unique=True,
)


def usable(keys: list[str]) -> list[str]:
    """Those of the keys that are keys, and no folder of another."""
    good = [k for k in keys if not any(part.startswith(".") for part in k.split("/"))]
    return [k for k in good if not any(other.startswith(k + "/") for other in good)]


# Each example empties the store again, so they can share the fixture.
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(keys=KEYS, prefix=st.sampled_from(["", "a", "a/", "A", "ab", "0/a", "-", "a-", "_/."]))
def test_keys_come_ascending_and_by_any_prefix(
    store: BlobStore, keys: list[str], prefix: str
) -> None:
    kept = usable(keys)
    for key in kept:
        store.put(key, key.encode())
    assert list(store.keys()) == sorted(kept)
    assert list(store.keys(prefix)) == sorted(k for k in kept if k.startswith(prefix))
    for key in kept:
        store.delete(key)
    assert list(store.keys()) == []


def test_a_listing_goes_beyond_one_page(store: BlobStore) -> None:
    keys = [f"many/{i:04}" for i in range(1005)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: store.put(key, b""), keys))
    assert list(store.keys("many/")) == keys


def test_young_blobs_can_be_left_out_of_a_listing(place: Place) -> None:
    store = place.store
    store.put("old", b"")
    place.wait(4.1)  # S3 counts in whole seconds
    store.put("young", b"")
    assert list(store.keys(older_than_s=3)) == ["old"]
    assert list(store.keys(older_than_s=3600)) == []
    assert list(store.keys(older_than_s=0)) == ["old", "young"]
    store.put("old", b"again")
    assert list(store.keys(older_than_s=3)) == []


HOSTILE = [
    "",
    "/",
    ".",
    "..",
    "../outside",
    "a/../../outside",
    "a/./b",
    "/etc/passwd",
    "a//b",
    "a/",
    ".hidden",
    "a/.parts",
    "a\\b",
    "a\0b",
    "a b",
    "a\n",
    "ä",
    "a%2fb",
    "C:",
    "k" * 201,
    "/".join(["k" * 100] * 6),
]


def test_what_is_not_a_key_is_refused_by_every_method(store: BlobStore) -> None:
    calls: list[Callable[[str], object]] = [
        lambda key: store.put(key, b"x"),
        store.get,
        store.exists,
        store.delete,
    ]
    for key in HOSTILE:
        for call in calls:
            with pytest.raises(ValueError, match="blob key"):
                call(key)
    assert list(store.keys()) == []


def test_a_listing_does_not_leave_the_store(store: BlobStore) -> None:
    store.put("a/b", b"")
    for prefix in ("../", "/", "..", "a/../", "*", "\0", "ä", "k" * 2000, "a//", "a/b/"):
        assert list(store.keys(prefix)) == [], prefix


def test_readers_see_one_whole_version_while_many_write_the_same_key(store: BlobStore) -> None:
    versions = [bytes([65 + i]) * 200_000 for i in range(8)]
    store.put("shared", versions[0])
    done = threading.Event()

    def write(data: bytes) -> None:
        for _ in range(4):
            store.put("shared", data)

    def read() -> set[bytes]:
        seen = set()
        while not done.is_set():
            seen.add(store.get("shared"))
        return seen

    with ThreadPoolExecutor(10) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        try:
            for writer in [pool.submit(write, data) for data in versions]:
                writer.result()
        finally:
            done.set()
        seen = set.union(*(reader.result() for reader in readers))
    assert seen <= set(versions)
    assert store.get("shared") in versions
    assert list(store.keys()) == ["shared"]


def test_deletes_of_neighbours_do_not_disturb_a_put(store: BlobStore) -> None:
    def churn(name: str) -> None:
        for _ in range(40):
            store.put(f"folder/sub/{name}", b"x")
            assert store.get(f"folder/sub/{name}") == b"x"
            store.delete(f"folder/sub/{name}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(churn, "abcd"))
    assert list(store.keys()) == []


def settle(store: BlobStore) -> None:
    """Wait until a server has done with what a killed client had sent it."""
    before: list[str] | None = None
    while before != (now := list(store.keys())):
        before = now
        time.sleep(0.5)


def test_a_killed_writer_leaves_a_whole_blob_or_none(place: Place) -> None:
    size = 12_000_000
    chance = random.Random(3)
    for _ in range(place.kills):
        process = subprocess.Popen(
            [sys.executable, "-c", place.source + WRITE_FOR_EVER.format(size=size)],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(chance.uniform(0.01, 0.5))
        process.send_signal(signal.SIGKILL)
        acknowledged = [int(line) for line in process.stdout.read().split()]
        process.stdout.close()
        process.wait()
        in_work = len(acknowledged) % 256
        settle(place.store)
        if place.store.exists("big/file"):
            data = place.store.get("big/file")
            assert len(data) == size
            assert data == bytes([data[0]]) * size
            assert data[0] in {*acknowledged[-1:], in_work}
            assert list(place.store.keys()) == ["big/file"]
        else:
            assert not acknowledged
            assert list(place.store.keys()) == []
        place.store.delete("big/file")


# --- the directory ----------------------------------------------------------------------------


def test_what_a_killed_writer_left_is_removed_once_it_is_old(tmp_path: Path) -> None:
    parts = tmp_path / ".parts"
    LocalBlobs(tmp_path, min_free_bytes=0)
    old, young = parts / "old", parts / "young"
    for file in (old, young):
        file.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    store = LocalBlobs(tmp_path, min_free_bytes=0)
    assert [p.name for p in parts.iterdir()] == ["young"]
    assert list(store.keys()) == []


def test_a_directory_cannot_hold_a_blob_and_blobs_below_it(tmp_path: Path) -> None:
    store = LocalBlobs(tmp_path, min_free_bytes=0)
    store.put("a", b"x")
    store.put("b/c", b"y")
    for key in ("a/below", "a/below/it", "b"):
        with pytest.raises(ValueError, match="use another key"):
            store.put(key, b"z")
    assert list(store.keys()) == ["a", "b/c"]
    assert list((tmp_path / ".parts").iterdir()) == []


def test_a_put_that_would_fill_the_disk_is_refused_and_stores_nothing(tmp_path: Path) -> None:
    store = LocalBlobs(tmp_path, min_free_bytes=10**18)
    with pytest.raises(StoreUnavailable, match="disk almost full"):
        store.put("a", b"x")
    assert list(store.keys()) == []


def test_a_deleted_document_leaves_no_empty_directories(tmp_path: Path) -> None:
    store = LocalBlobs(tmp_path, min_free_bytes=0)
    store.put("texts/1/1", b"x")
    store.put("texts/2/1", b"x")
    store.delete("texts/1/1")
    assert [p.name for p in (tmp_path / "texts").iterdir()] == ["2"]


def test_a_file_system_that_fails_is_an_unavailable_store(tmp_path: Path) -> None:
    store = LocalBlobs(tmp_path / "blobs", min_free_bytes=0)
    loop = tmp_path / "blobs" / "loop"
    loop.symlink_to(loop)  # "too many levels of symbolic links", for root as well
    calls: list[Callable[[], object]] = [
        lambda: store.get("loop/a"),
        lambda: store.exists("loop/a"),
        lambda: store.delete("loop/a"),
        lambda: LocalBlobs(loop),
    ]
    for call in calls:
        with pytest.raises(StoreUnavailable, match="blob store failed"):
            call()


def test_without_its_directory_no_blob_seems_missing(tmp_path: Path) -> None:
    store = LocalBlobs(tmp_path / "blobs", min_free_bytes=0)
    store.put("a", b"x")
    (tmp_path / "blobs").rename(tmp_path / "not-mounted")
    calls: list[Callable[[], object]] = [
        lambda: store.put("a", b""),
        lambda: store.get("a"),
        lambda: store.exists("a"),
        lambda: store.delete("a"),
        lambda: list(store.keys()),
    ]
    for call in calls:
        with pytest.raises(StoreUnavailable, match="blob store failed"):
            call()
    assert not (tmp_path / "blobs").exists()


# --- the object store -------------------------------------------------------------------------


@pytest.fixture
def line(s3: S3Server) -> Iterator[Line]:
    """A connection to the server that fails on demand."""
    with Line(s3.url) as opened:
        yield opened


@pytest.fixture
def behind(s3: S3Server, line: Line) -> Iterator[S3Blobs]:
    """A store behind that line, with one blob."""
    store = S3Blobs(s3.options(endpoint_url=line.url, max_attempts=3))
    store.put("a", b"x" * 100_000)
    line.seen = 0
    yield store
    store.close()


@pytest.mark.integration
@pytest.mark.parametrize("how", [busy, dropped])
def test_a_request_is_tried_again_when_the_store_is_busy(
    behind: S3Blobs, line: Line, how: Callable[[bytes], bytes]
) -> None:
    line.spoil(2, how)
    behind.put("b", b"y")
    assert line.seen == 3
    line.spoil(1, how)
    assert list(behind.keys()) == ["a", "b"]
    line.spoil(1, how)
    assert behind.get("b") == b"y"


@pytest.mark.integration
def test_an_answer_that_breaks_off_is_read_again(behind: S3Blobs, line: Line) -> None:
    line.spoil(2, cut)
    assert behind.get("a") == b"x" * 100_000
    assert line.seen == 3


@pytest.mark.integration
@pytest.mark.parametrize("how", [busy, cut, dropped])
def test_attempts_are_bounded(behind: S3Blobs, line: Line, how: Callable[[bytes], bytes]) -> None:
    line.spoil(100, how)
    with pytest.raises(StoreUnavailable, match="object store failed at get"):
        behind.get("a")
    assert line.seen == 3


@pytest.mark.integration
def test_a_large_blob_is_whole_or_absent_when_its_parts_fail(
    behind: S3Blobs, line: Line, s3: S3Server
) -> None:
    line.spoil(100, busy)
    with pytest.raises(StoreUnavailable, match="object store failed at put"):
        behind.put("big", b"z" * 11_000_000)
    line.mend()
    assert list(behind.keys()) == ["a"]
    behind.put("big", b"z" * 11_000_000)
    assert behind.get("big") == b"z" * 11_000_000


@pytest.mark.integration
def test_a_refusal_says_what_it_may_mean_and_is_not_tried_again(
    behind: S3Blobs, line: Line
) -> None:
    line.spoil(1, refused)
    with pytest.raises(StoreUnavailable, match=r"AccessDenied.*s3:ListBucket"):
        behind.get("a")
    assert line.seen == 1


@pytest.mark.integration
def test_nobody_at_the_address_is_an_unavailable_store_soon(s3: S3Server) -> None:
    store = S3Blobs(s3.options(endpoint_url="http://127.0.0.1:9", max_attempts=2))
    began = time.monotonic()
    calls: list[Callable[[], object]] = [
        lambda: store.put("a", b""),
        lambda: store.get("a"),
        lambda: store.exists("a"),
        lambda: store.delete("a"),
        lambda: list(store.keys()),
    ]
    for call in calls:
        with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1:9"):
            call()
    assert time.monotonic() - began < 15
    store.close()


@pytest.mark.integration
def test_without_its_bucket_no_blob_seems_missing(s3: S3Server) -> None:
    store = S3Blobs(s3.options(bucket="kb-no-such-bucket"))
    calls: list[Callable[[], object]] = [
        lambda: store.put("a", b""),
        lambda: store.get("a"),
        lambda: store.exists("a"),
        lambda: store.delete("a"),
        lambda: list(store.keys()),
    ]
    for call in calls:
        with pytest.raises(StoreUnavailable, match="KB_BLOBS__BUCKET"):
            call()
    store.close()


@pytest.mark.integration
def test_objects_of_others_are_neither_listed_nor_touched(s3: S3Server) -> None:
    options = s3.options()
    store, client = S3Blobs(options), s3.client()
    for name in (f"{options.prefix}-2/a", "elsewhere", f"{options.prefix}/", f"{options.prefix}/ä"):
        client.put_object(Bucket=s3.bucket, Key=name, Body=b"theirs")
    store.put("a", b"ours")
    assert list(store.keys()) == ["a"]
    assert client.get_object(Bucket=s3.bucket, Key=f"{options.prefix}/a")["Body"].read() == b"ours"
    store.close()
    client.close()


@pytest.mark.integration
@pytest.mark.parametrize("size", [10, 6_000_000])
def test_blobs_are_encrypted_at_rest_as_asked(s3: S3Server, size: int) -> None:
    options = s3.options(encryption="aws:kms", kms_key_id="alias/kb")
    store, client = S3Blobs(options), s3.client()
    store.put("a", b"x" * size)
    head = client.head_object(Bucket=s3.bucket, Key=f"{options.prefix}/a")
    assert (head["ServerSideEncryption"], head["SSEKMSKeyId"]) == ("aws:kms", "alias/kb")
    assert head["ContentLength"] == size
    store.close()
    client.close()


def test_half_a_pair_of_credentials_is_refused() -> None:
    with pytest.raises(ValueError, match="give both or neither"):
        Blobs(bucket="books", access_key_id="id")
    with pytest.raises(ValueError, match="kms_key_id needs"):
        Blobs(bucket="books", kms_key_id="key")
    with pytest.raises(ValueError, match="KB_BLOBS__BUCKET"):
        S3Blobs(Blobs())


# --- the choice -------------------------------------------------------------------------------


@pytest.mark.integration
def test_a_process_whose_settings_name_a_bucket_keeps_its_files_there(
    s3: S3Server, tmp_path: Path
) -> None:
    options = s3.options()
    with open_resources(test_settings(tmp_path / "data", blobs=options)) as resources:
        app = create_app(resources, runner=Runner(resources), process_key=KEY)
        with TestClient(app, headers={"Authorization": f"Bearer {KEY}"}) as client:
            dataset = add_dataset(client, indexing_technique="economy")
            created = add_text(client, dataset, "poem.txt", "The harbour sleeps.")
            assert wait(client, dataset, created) == "completed"
            kept = list(resources.blobs.keys())
            assert [key.split("/")[0] for key in kept] == ["texts", "uploads"]
            assert client.post("/v1/doctor").json()["healthy"]
            (upload,) = resources.blobs.keys("uploads/")
            resources.blobs.delete(upload)
            found = client.post("/v1/doctor").json()["findings"]
            assert list(found) == ["lost_files"]
            assert found["lost_files"]["count"] == 1
            assert upload in str(found["lost_files"])
    assert not (tmp_path / "data" / "blobs").exists()


def test_a_bucket_without_the_extra_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['boto3'] = None\n"
        "from kb.adapters.s3 import S3Blobs\n"
        "from kb.errors import Misconfigured\n"
        "from kb.settings import Blobs\n"
        "try:\n    S3Blobs(Blobs(bucket='books'))\n"
        "except Misconfigured as exc:\n    print(exc)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=True,
    )
    assert "pip install 'kb-engine[service]'" in done.stdout
