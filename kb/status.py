"""How the work stands: queues, errors, leases, jobs, throughput, stages, and what is left."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import cache
from typing import Any

from sqlalchemy import Select, and_, bindparam, case, func, select, text
from sqlalchemy.orm import Session

from kb.db import moment
from kb.models import (
    UNFINISHED_SQL,
    Dataset,
    Document,
    IndexingStatus,
    Job,
    JobKind,
    PipelineRun,
)
from kb.ports import Queue

WINDOW_S = 300.0
"""Throughput and stages are those of the last five minutes."""
_RUNS = 200
"""Stages are those of the newest runs, at most so many."""
_LEASES = 500
_CODES = 20


class QueueState(StrEnum):
    """What a document that is not finished waits for."""

    WAITING = "waiting"
    """A worker."""
    RETRYING = "retrying"
    """The time of its next attempt."""
    IN_WORK = "in_work"
    STALLED = "stalled"
    """Its worker vanished; anybody may take it."""
    PAUSED = "paused"
    """A person."""


class JobState(StrEnum):
    """What a job of the outbox waits for."""

    DUE = "due"
    """A worker."""
    DELAYED = "delayed"
    """Its time, for the first attempt."""
    RETRYING = "retrying"
    """The time of its next attempt."""
    IN_WORK = "in_work"


@dataclass(frozen=True)
class QueueStatus:
    """Documents of one queue by state, and since when the oldest that may be taken waits."""

    counts: Mapping[QueueState, int]
    oldest: datetime | None

    @property
    def left(self) -> int:
        """Documents that will be worked on without anybody's doing."""
        return sum(n for state, n in self.counts.items() if state is not QueueState.PAUSED)


@dataclass(frozen=True)
class Lease:
    """What a worker does at this moment.

    Attributes:
        owner: `HOST-PROCESS-RANDOM/THREAD`.
        since: when the attempt began; of a job None.
        document_id, dataset_id, document, dataset, stage: None for a job.
        kind: of a job; None for a document.
    """

    owner: str
    expires_at: datetime
    attempt: int
    since: datetime | None = None
    workspace_id: uuid.UUID | None = None
    document_id: uuid.UUID | None = None
    dataset_id: uuid.UUID | None = None
    document: str | None = None
    dataset: str | None = None
    stage: IndexingStatus | None = None
    kind: JobKind | None = None


@dataclass(frozen=True)
class Throughput:
    """What was completed within the window.

    Attributes:
        seconds: over which it is counted: the window, or less when work began within it.
        failed: attempts that ended with an error, also those that are tried again.
    """

    seconds: float
    documents: int
    segments: int
    failed: int

    def per_minute(self, number: int) -> float:
        """A count as a rate."""
        return 60.0 * number / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Stage:
    """One kind of node in the newest runs: how many ran, their seconds in all."""

    kind: str
    runs: int
    seconds: float


@dataclass(frozen=True)
class Status:
    """The installation at one moment.

    Attributes:
        errors: documents in error by code, most first; at most 20 codes.
        stages: slowest first.
    """

    at: datetime
    queues: Mapping[Queue, QueueStatus]
    errors: Mapping[str, int]
    jobs: Mapping[JobKind, Mapping[JobState, int]]
    oldest_job: datetime | None
    leases: Sequence[Lease]
    throughput: Throughput
    stages: Sequence[Stage]

    @property
    def left(self) -> int:
        """Documents that are not finished and not paused."""
        return sum(queue.left for queue in self.queues.values())

    @property
    def eta_s(self) -> float | None:
        """Seconds until nothing is left, at the rate of the window; None: nothing was completed."""
        if not self.left:
            return 0.0
        rate = self.throughput.per_minute(self.throughput.documents)
        return 60.0 * self.left / rate if rate else None


def read_status(session: Session) -> Status:
    """Read it in one snapshot.

    The time this takes grows with the documents that wait and the runs of the last minutes, not
    with those that are completed.
    """
    at = session.execute(select(moment())).scalar_one()
    since = at - timedelta(seconds=WINDOW_S)
    jobs, oldest_job = read_jobs(session, at)
    return Status(
        at=at,
        queues=read_queues(session, at),
        errors=read_errors(session),
        jobs=jobs,
        oldest_job=oldest_job,
        leases=[*_document_leases(session), *_job_leases(session)],
        throughput=_throughput(session, at, since),
        stages=_stages(session, since),
    )


def read_queues(session: Session, at: datetime) -> dict[Queue, QueueStatus]:
    """Unfinished documents by queue and state."""
    counts: dict[Queue, dict[QueueState, int]] = {
        queue: dict.fromkeys(QueueState, 0) for queue in Queue
    }
    oldest: dict[Queue, datetime | None] = dict.fromkeys(Queue)
    for queue, state, number, queued_at in session.execute(_by_queue(), {"at": at}):
        counts[queue][QueueState(state)] = number
        if state in (QueueState.WAITING, QueueState.STALLED):
            oldest[queue] = min(queued_at, oldest[queue] or queued_at)
    return {queue: QueueStatus(counts[queue], oldest[queue]) for queue in Queue}


def read_errors(session: Session) -> dict[str, int]:
    """Documents in error by code, most first; at most 20 codes."""
    return {code or "unknown": number for code, number in session.execute(_by_error())}


# Statements are built once, as those of claims are. Their parameters are `at` and `since`.


@cache
def _by_queue() -> Select[Any]:
    at: Any = bindparam("at")
    state = case(
        (Document.is_paused, QueueState.PAUSED.value),
        (Document.lease_expires_at >= at, QueueState.IN_WORK.value),
        (Document.lease_owner.is_not(None), QueueState.STALLED.value),
        (Document.next_attempt_at > at, QueueState.RETRYING.value),
        else_=QueueState.WAITING.value,
    ).label("state")
    return (
        select(Document.queue, state, func.count(), func.min(Document.queued_at))
        .where(text(UNFINISHED_SQL))
        .group_by(Document.queue, state)
    )


@cache
def _by_error() -> Select[Any]:
    codes: Any = (
        select(Document.error_code, func.count())
        .where(Document.indexing_status == IndexingStatus.ERROR)
        .group_by(Document.error_code)
        .order_by(func.count().desc(), Document.error_code)
        .limit(_CODES)
    )
    by_error: Select[Any] = codes
    return by_error


def read_jobs(
    session: Session, at: datetime
) -> tuple[dict[JobKind, dict[JobState, int]], datetime | None]:
    """Jobs of the outbox by kind and state, and since when the oldest of those is due."""
    found: dict[JobKind, dict[JobState, int]] = defaultdict(dict)
    oldest: datetime | None = None
    for kind, state, number, since in session.execute(_by_job(), {"at": at}):
        found[kind][JobState(state)] = number
        if state == JobState.DUE:
            oldest = min(since, oldest or since)
    return dict(found), oldest


@cache
def _by_job() -> Select[Any]:
    at: Any = bindparam("at")
    state = case(
        (Job.lease_expires_at >= at, JobState.IN_WORK.value),
        (Job.not_before <= at, JobState.DUE.value),
        (Job.attempts > 0, JobState.RETRYING.value),
        else_=JobState.DELAYED.value,
    ).label("state")
    return select(Job.kind, state, func.count(), func.min(Job.not_before)).group_by(Job.kind, state)


def _document_leases(session: Session) -> list[Lease]:
    rows: Any = session.execute(
        select(
            Document.lease_owner,
            Document.lease_expires_at,
            Document.attempts,
            func.coalesce(PipelineRun.started_at, Document.processing_started_at),
            Dataset.workspace_id,
            Document.id,
            Document.dataset_id,
            Document.name,
            Dataset.name,
            Document.indexing_status,
        )
        .join(Dataset, Dataset.id == Document.dataset_id)
        .outerjoin(
            PipelineRun,
            and_(PipelineRun.document_id == Document.id, PipelineRun.status == "running"),
        )
        .where(Document.lease_owner > "")  # SQLite finds no index for IS NOT NULL
        .order_by(Document.lease_owner)
        .limit(_LEASES)
    )
    return [Lease(*row) for row in rows]


def _job_leases(session: Session) -> list[Lease]:
    rows: Any = session.execute(
        select(Job.lease_owner, Job.lease_expires_at, Job.attempts, Job.kind)
        .where(Job.lease_expires_at.is_not(None))
        .order_by(Job.lease_owner)
        .limit(_LEASES)
    )
    return [Lease(row[0], row[1], row[2], kind=row[3]) for row in rows]


def _throughput(session: Session, at: datetime, since: datetime) -> Throughput:
    succeeded = PipelineRun.status == "succeeded"
    documents, segments, failed, began = session.execute(
        select(
            func.count().filter(succeeded),
            func.sum(PipelineRun.segments).filter(succeeded),
            func.count().filter(PipelineRun.status == "failed"),
            func.min(PipelineRun.started_at),
        ).where(PipelineRun.finished_at >= since)
    ).one()
    counted_from = max(since, began) if began else since
    seconds = max(1.0, (at - counted_from).total_seconds())
    return Throughput(seconds, documents, segments or 0, failed)


def _stages(session: Session, since: datetime) -> list[Stage]:
    seconds: dict[str, float] = defaultdict(float)
    runs: dict[str, int] = defaultdict(int)
    for nodes in session.scalars(
        select(PipelineRun.nodes)
        .where(PipelineRun.finished_at >= since, PipelineRun.status == "succeeded")
        .order_by(PipelineRun.finished_at.desc())
        .limit(_RUNS)
    ):
        for node in nodes or ():
            seconds[node["kind"]] += node["seconds"]
            runs[node["kind"]] += 1
    slowest = sorted(seconds, key=lambda kind: (-seconds[kind], kind))
    return [Stage(kind, runs[kind], seconds[kind]) for kind in slowest]
