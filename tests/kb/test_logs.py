"""Log lines: each says which request or document it is about, and none holds a secret."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient

from kb.logs import LogFormat, fields, formatter, log_ids, secrets_of
from kb.settings import Blobs, Qdrant, Settings
from tests.kb.ingesting import ECONOMY, Lab, fails, lines, open_lab


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@contextmanager
def logged(
    kind: LogFormat = "json", *, secrets: frozenset[str] = frozenset(), level: int = logging.DEBUG
) -> Iterator[list[str]]:
    """What kb's loggers write meanwhile."""
    handler = _Lines()
    handler.setFormatter(formatter(kind, secrets=secrets))
    logger = logging.getLogger("kb")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield handler.lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with open_lab(tmp_path / "data") as opened:
        yield opened


def of(logger: str, lines_: list[str]) -> list[dict[str, Any]]:
    """The lines of a logger, read back."""
    read = [json.loads(line) for line in lines_]
    return [line for line in read if line["logger"] == logger]


# --- requests ------------------------------------------------------------------------------------


def test_every_request_has_a_line_with_route_status_and_time(lab: Lab) -> None:
    dataset = lab.dataset("plain", **ECONOMY)
    with logged() as lines_:
        lab.client.get(f"/v1/datasets/{dataset}", headers={"X-Request-ID": "abc-1"})
        lab.client.get("/v1/datasets/nothing", headers={"X-Request-ID": "abc-2"})
    first, second = of("kb.access", lines_)
    assert (first["request_id"], second["request_id"]) == ("abc-1", "abc-2")
    assert (first["method"], first["route"], first["status"]) == (
        "GET",
        "/v1/datasets/{dataset_id}",
        200,
    )
    assert first["path"] == f"/v1/datasets/{dataset}"
    assert second["status"] == 404
    assert 0 < first["ms"] < 60_000


@pytest.mark.parametrize(
    "sent", ["abc-1", "0af7651916cd43dd8448eb211c80319c", "a" * 128, "A.b:c_1"]
)
def test_a_sane_id_of_the_caller_is_taken_and_answered(lab: Lab, sent: str) -> None:
    answer = lab.client.get("/health/live", headers={"X-Request-ID": sent})
    assert answer.headers["X-Request-ID"] == sent


@pytest.mark.parametrize(
    "sent", [b"", b"a" * 129, b"a b", b"a\tb", b'"x"', b"\xff\xfe", b"a=b", b"<script>"]
)
def test_another_id_is_replaced_by_one_of_ours(lab: Lab, sent: bytes) -> None:
    answer = lab.client.get("/health/live", headers=[(b"X-Request-ID", sent)])
    assert uuid.UUID(answer.headers["X-Request-ID"]).version == 4


def test_every_answer_carries_an_id_also_that_of_a_defect(lab: Lab) -> None:
    app = lab.client.app

    @app.get("/defect")  # type: ignore[attr-defined, untyped-decorator]
    def defect() -> None:
        raise RuntimeError("on purpose")

    quiet = TestClient(app, raise_server_exceptions=False)
    with logged() as lines_:
        answers = [
            quiet.get("/defect"),
            quiet.get("/nowhere"),
            quiet.post("/v1/datasets", content=b"{"),
            quiet.put("/v1/datasets"),
        ]
    assert [a.status_code for a in answers] == [500, 404, 401, 405]
    ids = [a.headers["X-Request-ID"] for a in answers]
    assert len(set(ids)) == 4
    (line,) = of("kb.api", lines_)
    assert line["request_id"] == ids[0]
    assert "RuntimeError: on purpose" in line["exception"]
    assert [line["request_id"] for line in of("kb.access", lines_)] == ids


def test_a_line_written_by_a_route_in_its_thread_has_the_request(lab: Lab) -> None:
    app = lab.client.app

    @app.get("/talks")  # type: ignore[attr-defined, untyped-decorator]
    def talks() -> None:
        logging.getLogger("kb.talks").info("hello")

    with logged() as lines_:
        lab.client.get("/talks", headers={"X-Request-ID": "r-7"})
        logging.getLogger("kb.talks").info("outside")
    inside, outside = of("kb.talks", lines_)
    assert inside["request_id"] == "r-7"
    assert "request_id" not in outside


def test_health_checks_are_not_in_the_log_of_every_day(lab: Lab) -> None:
    with logged(level=logging.INFO) as lines_:
        for path in ("/health/live", "/health/ready", "/metrics"):
            lab.client.get(path)
    assert lines_ == []


# --- ingestion -----------------------------------------------------------------------------------


def test_every_line_of_ingestion_names_document_dataset_and_run(lab: Lab) -> None:
    dataset = lab.dataset()
    good = lab.add(dataset, "good", lines(9))
    bad = lab.add(dataset, "bad", lines(9, "bad"))
    lab.embedder.before = fails(1, lambda: RuntimeError("no such thing"))
    with logged() as lines_:
        lab.settle()
    written = [json.loads(line) for line in lines_]
    ingestion = [w for w in written if w["logger"] in ("kb.ingestion", "kb.embedding")]
    assert len(ingestion) >= 8
    for line in ingestion:
        assert line["dataset"] == dataset
        assert line["document"] in (str(good), str(bad))
    runs = {str(run.id) for document in (good, bad) for run in lab.runs(document)}
    assert {line["run"] for line in ingestion} == runs
    assert len(runs) == 3
    (failed,) = [line for line in ingestion if line["level"] == "warning"]
    assert "RuntimeError" in failed["exception"]


# --- lines ---------------------------------------------------------------------------------------


def line(kind: LogFormat, message: str = "done", **values: object) -> str:
    with logged(kind) as lines_, log_ids(document="d-1"):
        logging.getLogger("kb.test").warning(message, extra=fields(**values) if values else None)
    return lines_[0]


def test_a_line_of_text_is_logfmt_and_the_message() -> None:
    written = line("text", "all is well", status=200, path='/a "b"=c')
    when, rest = written.split(" ", 1)
    assert when.startswith("time=20")
    assert when.endswith("Z")
    assert rest == (
        'level=warning logger=kb.test document=d-1 status=200 path="/a \\"b\\"=c" all is well'
    )


def test_a_line_of_json_is_one_object() -> None:
    written = line("json", "ünï\ncode", status=200)
    assert "\n" not in written
    read = json.loads(written)
    assert read.pop("time").endswith("Z")
    assert read == {
        "level": "warning",
        "logger": "kb.test",
        "document": "d-1",
        "status": 200,
        "message": "ünï\ncode",
    }


def test_ids_end_with_their_work() -> None:
    with logged() as lines_:
        with log_ids(document="a"):
            with log_ids(run="b"):
                logging.getLogger("kb.test").info("inner")
            logging.getLogger("kb.test").info("outer")
        logging.getLogger("kb.test").info("none")
    read = [json.loads(line) for line in lines_]
    assert [(r.get("document"), r.get("run")) for r in read] == [
        ("a", "b"),
        ("a", None),
        (None,) * 2,
    ]


# --- secrets -------------------------------------------------------------------------------------

SECRETS = Settings(
    database_url="postgresql://kb:pa%2Fss-word@host:5432/kb",
    redis_url=SecretStr("redis://:redis-secret@host:6379/0"),
    api_key=SecretStr("key-of-this-test"),
    qdrant=Qdrant(api_key=SecretStr("qdrant-secret")),
    blobs=Blobs(
        bucket="kb-files",
        access_key_id=SecretStr("AKIDEXAMPLE"),
        secret_access_key=SecretStr("wJal/9"),
    ),
)


@pytest.mark.parametrize(
    "secret",
    [
        "pa%2Fss-word",
        "pa/ss-word",
        "redis-secret",
        "key-of-this-test",
        "qdrant-secret",
        "AKIDEXAMPLE",
        "wJal/9",
    ],
)
@pytest.mark.parametrize("kind", ["text", "json"])
def test_no_secret_of_the_settings_is_written(secret: str, kind: LogFormat) -> None:
    with logged(kind, secrets=secrets_of(SECRETS)) as lines_:
        try:
            raise ValueError(f"cannot use {secret} here")
        except ValueError:
            logging.getLogger("kb.test").exception("%s failed", secret, extra=fields(x=secret))
    assert secret not in lines_[0]
    assert "cannot use *** here" in lines_[0]


@pytest.mark.parametrize(
    ("said", "written"),
    [
        ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
        ("key dataset-AbCdEfGhIjKlMnOpQrStUvWx", "key dataset-***"),
        ("amqp://user:hidden@host/x", "amqp://user:***@host/x"),
        ("no dataset-less words", "no dataset-less words"),
    ],
)
def test_what_looks_like_a_key_is_hidden_whoever_wrote_it(said: str, written: str) -> None:
    assert line("text", said).endswith(written)


def test_keys_of_calls_are_in_no_line(lab: Lab) -> None:
    from tests.kb.server import KEY

    dataset = lab.dataset("plain", **ECONOMY)
    with logged() as lines_:
        lab.client.get(f"/v1/datasets/{dataset}?key=in-the-query")
        lab.client.get("/v1/datasets", headers={"Authorization": "Bearer wrong-key-sent"})
    assert len(lines_) == 2
    text = "\n".join(lines_)
    assert not any(secret in text for secret in (KEY, "in-the-query", "wrong-key-sent"))
