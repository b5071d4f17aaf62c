"""The service size for tests: real PostgreSQL, Redis and worker processes; Qdrant's double."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
from pydantic import BaseModel, SecretStr
from sqlalchemy import func, select
from starlette.testclient import TestClient

from kb.api.app import create_app
from kb.db import reading
from kb.models import UNFINISHED, ChildChunk, Document, IndexingStatus, PipelineRun, Segment
from kb.ports import Space
from kb.resources import FULL_TEXT_SPACE, Resources
from kb.settings import Database, Embedding, Ingestion, Limits, Qdrant, Settings
from kb.wiring import open_resources
from tests.contracts.qdrant_double import Double
from tests.kb.server import KEY, LINES, add_dataset, add_text
from tests.models import model_cache
from tests.services import PostgreSQL, Redis

SECRET_KEY = base64.b64encode(bytes(range(32))).decode()
"""Of all processes of a test's installation."""
ECONOMY = {"indexing_technique": "economy"}
"""Datasets without vectors: their workers load no model."""


@dataclass
class Service:
    """An installation of the service size; its API runs in this process, its workers do not."""

    settings: Settings
    resources: Resources
    client: TestClient
    broker: Redis
    double: Double
    directory: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    # --- processes ---------------------------------------------------------------------------

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        """`kb ...` as a process of its own, in a group with its children."""
        with open(self.log, "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "kb.cli", *arguments],
                env=os.environ | self.environment() | environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def worker(self, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        """`kb worker` with one document at a time unless told otherwise."""
        name = f"--name=w{len(self.processes)}"
        return self.start("worker", "--concurrency=1", name, *arguments, **environment)

    @property
    def log(self) -> Path:
        """What all processes wrote."""
        return self.directory / "log"

    def environment(self) -> dict[str, str]:
        """The settings, as the processes read them."""
        given = self.settings
        assert given.redis_url is not None
        assert given.database_url is not None
        assert given.qdrant.url is not None
        return {
            "KB_REDIS_URL": given.redis_url.get_secret_value(),
            "KB_SECRET_KEY": SECRET_KEY,
            "KB_DATABASE_URL": given.database_url,
            "KB_QDRANT__URL": given.qdrant.url,
            "KB_QDRANT__PREFER_GRPC": "false",
            "KB_DATA_DIR": str(given.data_dir),
            "KB_EMBEDDING__CACHE_DIR": str(given.embedding.cache_dir),
            "KB_QDRANT__RETRY_BASE_S": str(given.qdrant.retry_base_s),
            **_as_environment("KB_INGESTION__", given.ingestion),
            **_as_environment("KB_LIMITS__", given.limits),
            **_as_environment("KB_DATABASE__", given.database),
        }

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """kill -9 of a process and its children, as a power cut would."""
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)

    def stop(self) -> None:
        """End every process that is still there."""
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)

    # --- documents ---------------------------------------------------------------------------

    def dataset(self, name: str, **body: Any) -> str:
        return add_dataset(self.client, name, **{**ECONOMY, **body})

    def add(self, dataset: str, count: int, *, lines: int = 1, name: str = "d") -> list[str]:
        """Upload so many texts of so many segments each; their ids."""
        made = []
        for number in range(count):
            text = "\n".join(f"{name}{number} line {line} of whales" for line in range(lines))
            answer = add_text(self.client, dataset, f"{name}{number}", text, process_rule=LINES)
            made.append(str(answer["document"]["id"]))
        return made

    def states(self) -> dict[str, int]:
        """How many documents are in which state."""
        with reading(self.resources.sessions) as session:
            rows = session.execute(
                select(Document.indexing_status, func.count()).group_by(Document.indexing_status)
            )
            return {row[0].value: row[1] for row in rows}

    def completed(self) -> int:
        return self.states().get(IndexingStatus.COMPLETED.value, 0)

    def settled(self) -> bool:
        """No document is left to work on."""
        return not any(state.value in self.states() for state in UNFINISHED)

    def wait(self, done: Callable[[], bool], limit_s: float = 60) -> None:
        """Poll; the processes' log is part of the failure."""
        ends = time.monotonic() + limit_s
        while not done():
            if time.monotonic() > ends:
                log = self.log.read_text(errors="replace")[-6000:] if self.log.exists() else ""
                raise AssertionError(f"not within {limit_s} s; {self.states()}\n{log}")
            time.sleep(0.05)

    def runs(self, document: str | None = None) -> list[str]:
        """How each attempt at documents (at one) ended, oldest first."""
        statement = select(PipelineRun.status).order_by(PipelineRun.started_at)
        if document is not None:
            statement = statement.where(PipelineRun.document_id == document)
        with reading(self.resources.sessions) as session:
            return list(session.scalars(statement))

    def assert_index_is_what_sql_says(self) -> None:
        """Every live text has its point, and there is no other point."""
        with reading(self.resources.sessions) as session:
            flat = session.scalars(select(Segment.id).where(Segment.has_children.is_(False))).all()
            texts = {*flat, *session.scalars(select(ChildChunk.id))}
            assert session.scalar(select(func.count()).where(Segment.live.is_(False))) == 0
        embedder = self.resources.default_embedder
        points: list[Any] = []
        for space in (FULL_TEXT_SPACE, Space(embedder.id, embedder.dim)):
            self.resources.index.ensure_space(space)
            points += [head.id for head in self.resources.index.scan(space)]
        assert len(points) == len(set(points))
        assert set(points) == texts

    # --- broker ------------------------------------------------------------------------------

    def messages(self, queue: str = "interactive") -> int:
        """Messages that no worker has taken."""
        with redis.Redis.from_url(self.broker.url) as connection:
            return int(connection.llen(queue))

    def flush_broker(self) -> None:
        """Everything in the broker is gone."""
        with redis.Redis.from_url(self.broker.url) as connection:
            connection.flushall()


@contextmanager
def open_service(
    directory: Path,
    postgresql: PostgreSQL,
    broker: Redis,
    *,
    limits: Limits | None = None,
    database: Database | None = None,
    **ingestion: Any,
) -> Iterator[Service]:
    """A fresh installation without workers; whatever was started is ended with it."""
    with ExitStack() as stack:
        database_url = stack.enter_context(postgresql.database())
        double = stack.enter_context(Double(directory / "qdrant"))
        with redis.Redis.from_url(broker.url) as connection:
            connection.flushall()
        settings = Settings(
            data_dir=directory / "data",
            database_url=database_url,
            database=database or Database(),
            redis_url=SecretStr(broker.url),
            secret_key=SecretStr(SECRET_KEY),
            qdrant=Qdrant(url=double.url, prefer_grpc=False, retry_base_s=0.01),
            embedding=Embedding(cache_dir=model_cache()),
            limits=limits or Limits(),
            ingestion=Ingestion(
                **{"lease_s": 3.0, "sweep_s": 1.0, "batch_segments": 16, **ingestion}
            ),
        )
        resources = stack.enter_context(open_resources(settings))
        app = create_app(resources, process_key=KEY)
        headers = {"Authorization": f"Bearer {KEY}"}
        client = stack.enter_context(TestClient(app, headers=headers))
        service = Service(settings, resources, client, broker, double, directory)
        stack.callback(service.stop)
        yield service


def _as_environment(prefix: str, group: BaseModel) -> dict[str, str]:
    """What was said of a group of settings, as variables."""
    return {f"{prefix}{name.upper()}": str(getattr(group, name)) for name in group.model_fields_set}
