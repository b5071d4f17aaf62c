"""The installation that faults are done to: it stays up over all rounds; what was killed is started
again.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import delete, func, or_, select, update
from sqlalchemy.exc import DBAPIError

from kb.db import reading, transaction
from kb.models import (
    UNFINISHED,
    CachedEmbedding,
    Document,
    DocumentVersion,
    Job,
    PipelineRun,
    UploadFile,
)
from kb.settings import Database, Limits
from tests.contracts.qdrant_double import Double
from tests.faults.check import Reference, read_reference
from tests.faults.disk import small_disk
from tests.faults.load import CONTENTS, Load, new_name
from tests.faults.nursery import Child, Nursery
from tests.faults.places import set_trap
from tests.kb.server import KEY, add_dataset
from tests.services import PostgreSQL, free_port, start_postgresql, start_redis
from tests.workers.service import ECONOMY, Service, open_service

LEASE_S = 1.5
SWEEP_S = 0.4
BATCH = 4
PATIENCE_S = 60.0
"""A round that is not settled then has a document that is stuck."""

DISK_BYTES = 32_000_000
"""Of the disk that holds the files, where one can be mounted."""

DENSE_LINES = (1, 3, 9)
"""Lengths of the texts of rounds with a model."""


@dataclass
class Site:
    """PostgreSQL, Redis, Qdrant's double, two workers and a beat, with an API in this process."""

    service: Service
    postgresql: PostgreSQL
    double: Double
    nursery: Nursery
    trap: Path
    small_disk: bool
    pool: str = "threads"
    workers: list[Child] = field(default_factory=list)
    beat: Child | None = None
    references: dict[str, Reference] = field(default_factory=dict)

    # --- processes ---------------------------------------------------------------------------

    def start(
        self, program: str, *arguments: str, clock: Path | None = None, **environment: str
    ) -> Child:
        """A process of the product."""
        wanted = {**self.service.environment(), **environment}
        return self.nursery.start(program, arguments, wanted, self.service.log, clock=clock)

    def start_worker(self, *, clock: Path | None = None, **environment: str) -> Child:
        """One more worker, of the pool that is in use."""
        queues = "interactive,bulk,maintenance"
        child = self.start(
            "worker",
            f"--pool={self.pool}",
            "--concurrency=2",
            f"--queues={queues}",
            f"--hostname=w{time.monotonic_ns()}@%h",
            "--without-mingle",
            clock=clock,
            **environment,
        )
        self.workers.append(child)
        return child

    def heal(self) -> None:
        """Two workers and a beat, whatever was killed."""
        self.workers = [worker for worker in self.workers if worker.alive()]
        while len(self.workers) < 2:
            self.start_worker()
        if self.beat is None or not self.beat.alive():
            self.beat = self.start("beat")

    def start_api(self, **environment: str) -> tuple[Child, str]:
        """A `kb serve` of this installation, and its URL; it answers when this returns."""
        port = free_port()
        child = self.start("serve", f"--port={port}", KB_API_KEY=KEY, **environment)
        url = f"http://127.0.0.1:{port}"
        assert self.wait(lambda: child.alive() and _answers(url), 30), self.told()
        return child, url

    def with_wrong_clock(self, count: int, *, beat: bool = False) -> None:
        """So many workers, and the beat, are replaced by ones that take the time from `clock`."""
        self.end_workers()
        for _ in range(count):
            self.start_worker(clock=self.clock)
        if beat and self.beat is not None:
            self.beat.kill()
            self.beat = self.start("beat", clock=self.clock)
        self.heal()

    @property
    def clock(self) -> Path:
        """How far the wrong clocks are off, as `+3600` seconds."""
        return self.service.directory / "clock"

    def use_pool(self, pool: str) -> None:
        """Workers of this kind from now on."""
        if pool != self.pool:
            self.end_workers()
            self.pool = pool
        self.heal()

    def end_workers(self) -> None:
        """No worker is left."""
        for worker in self.workers:
            worker.kill()
        self.workers.clear()

    # --- rounds ------------------------------------------------------------------------------

    def load(self, chance: random.Random, *, dense: bool = False, client: Any = None) -> Load:
        """An empty dataset for a round, made through the API of this process or a client's."""
        kind = {"indexing_technique": "high_quality"} if dense else ECONOMY
        used = client or self.service.client
        return Load(used, add_dataset(used, new_name(), **kind), chance)

    def set_trap(self, place: str, nth: int = 1, action: str = "SIGKILL") -> None:
        """The next process that comes by this place for the n-th time gets the signal."""
        set_trap(self.trap, place, nth, action)

    def sprung(self) -> bool:
        """Whether the trap has been passed."""
        return not self.trap.exists()

    def remove_trap(self) -> None:
        """Nothing happens any more."""
        self.trap.unlink(missing_ok=True)

    def wait(self, done: Callable[[], bool], limit_s: float = PATIENCE_S) -> bool:
        """Poll until it is so; False: not in time. A database that is away is waited for."""
        ends = time.monotonic() + limit_s
        while time.monotonic() < ends:
            try:
                if done():
                    return True
            except DBAPIError:
                pass
            time.sleep(0.03)
        return False

    def settled(self) -> bool:
        """No document, run or job is left to be done. Jobs that wait for their time are hurried."""
        with reading(self.service.resources.sessions) as session:
            unfinished = session.scalar(
                select(func.count())
                .select_from(Document)
                .where(Document.indexing_status.in_(UNFINISHED))
            )
            running = session.scalar(
                select(func.count()).select_from(PipelineRun).where(PipelineRun.status == "running")
            )
            jobs = session.scalar(select(func.count()).select_from(Job))
        if unfinished or running:
            return False
        if jobs:
            with transaction(self.service.resources.sessions) as session:
                session.execute(
                    update(Job)
                    .where(Job.lease_owner.is_(None), Job.not_before > func.now())
                    .values(not_before=func.now())
                )
        return not jobs

    def in_work(self) -> int:
        """Documents under a lease or staged."""
        with reading(self.service.resources.sessions) as session:
            return (
                session.scalar(
                    select(func.count())
                    .select_from(Document)
                    .where(
                        Document.indexing_status.in_(UNFINISHED),
                        or_(Document.lease_owner.is_not(None), Document.attempts > 0),
                    )
                )
                or 0
            )

    def runs(self, status: str, load: Load) -> int:
        """How many attempts at a round's documents ended so."""
        own = select(Document.id).where(Document.dataset_id == uuid.UUID(load.dataset))
        asked = select(func.count()).where(
            PipelineRun.status == status, PipelineRun.document_id.in_(own)
        )
        with reading(self.service.resources.sessions) as session:
            return session.scalar(asked) or 0

    def age_files(self) -> set[str]:
        """Make files without a row look old, so that the doctor takes them for what they are."""
        with reading(self.service.resources.sessions) as session:
            known = set(session.scalars(select(UploadFile.blob_key)))
            known |= {key for key in session.scalars(select(DocumentVersion.text_key)) if key}
        orphans = set(self.service.resources.blobs.keys()) - known
        for key in orphans:
            os.utime(self.service.settings.data_dir / "blobs" / key, (0, 0))
        return orphans

    def set_clock(self, seconds: int) -> None:
        """Wrong clocks are so far off, at the latest in a second."""
        new = self.clock.with_suffix(".new")
        new.write_text(f"{seconds:+}")
        new.rename(self.clock)

    def reference(self, *, dense: bool) -> Reference:
        """What an undisturbed run makes of each content."""
        kind = "dense" if dense else "economy"
        if kind not in self.references:
            load = self.load(random.Random(0), dense=dense)
            for content in CONTENTS.values():
                if not dense or content.lines in DENSE_LINES:
                    load.add_exactly(content)
            assert self.wait(self.settled, 180), self.told()
            self.references[kind] = read_reference(self.service.resources, load)
        return self.references[kind]

    def forget_vectors(self) -> None:
        """Every text has to go to the model again."""
        with transaction(self.service.resources.sessions) as session:
            session.execute(delete(CachedEmbedding))

    def told(self) -> str:
        """The end of what all processes wrote."""
        log = self.service.log
        states = self.service.states()
        return f"{states}\n{log.read_text(errors='replace')[-6000:] if log.exists() else ''}"


@contextmanager
def open_site(directory: Path | None = None) -> Iterator[Site]:
    """An installation in a directory of its own, with its own servers."""
    with ExitStack() as stack:
        if directory is None:
            directory = Path(tempfile.mkdtemp(prefix="kb-faults-", dir=_memory()))
            stack.callback(shutil.rmtree, directory, ignore_errors=True)
        # What was answered must be there after a crash of the server.
        postgresql = start_postgresql(synchronous_commit="on")
        stack.callback(postgresql.stop)
        broker = start_redis()
        stack.callback(broker.stop)
        mounted = stack.enter_context(small_disk(directory / "data", DISK_BYTES))
        service = stack.enter_context(
            open_service(
                directory,
                postgresql,
                broker,
                limits=Limits(min_free_bytes=0),
                database=Database(idle_transaction_s=5.0),
                lease_s=LEASE_S,
                sweep_s=SWEEP_S,
                batch_segments=BATCH,
                retry_base_s=0.2,
                keep_replaced_s=0.2,
            )
        )
        trap = directory / "trap"
        nursery = Nursery(trap)
        stack.callback(nursery.close)
        site = Site(service, postgresql, service.double, nursery, trap, mounted)
        stack.callback(site.end_workers)
        site.heal()
        yield site


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health/ready", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def _memory() -> Any:
    shared = Path("/dev/shm")
    return shared if shared.is_dir() else None
