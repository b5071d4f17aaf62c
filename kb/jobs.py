"""The outbox: work written down in the transaction that made it necessary, done at least once."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, delete, exists, func, or_, select, update
from sqlalchemy.orm import Session

from kb.db import Sessions, moment, new_id, reading, transaction
from kb.models import Job, JobKind, PipelineRun

_RETRY_S = 5.0
_RETRY_MAX_S = 600.0
_CRASHES = 2
LATE_S = 60.0
"""What is deleted under a worker's hands is deleted once more after this long: the worker may have
written in between, and been killed before it could take that back."""


def enqueue(session: Session, kind: JobKind, *, wait_s: float = 0.0, **payload: Any) -> uuid.UUID:
    """Write a job down; it exists exactly when the session's transaction commits.

    Args:
        wait_s: it is not done before so many seconds have passed, >= 0.
        payload: JSON values.
    Returns:
        The job's id.
    """
    job_id = new_id()
    session.add(Job(id=job_id, kind=kind, payload=payload, not_before=moment(wait_s)))
    return job_id


def enqueue_own(session: Session, kind: JobKind, *, lease_s: float, **payload: Any) -> uuid.UUID:
    """Write down a job that the caller does itself right after the commit; the job's id.

    Should the caller die, others take it when the lease has run out. See `release_job`.
    """
    job = Job(
        id=uuid.uuid4(),
        kind=kind,
        payload=payload,
        not_before=moment(),
        lease_owner="request",
        lease_expires_at=moment(lease_s),
    )
    session.add(job)
    return job.id


def release_job(sessions: Sessions, job_id: uuid.UUID) -> None:
    """Let others do the job, now."""
    with transaction(sessions) as session:
        session.execute(
            update(Job).where(Job.id == job_id).values(lease_owner=None, lease_expires_at=None)
        )


def enqueue_delete(session: Session, kind: JobKind, *, again: bool, **payload: Any) -> None:
    """Write down that something is to be removed from the index or the files.

    Args:
        again: a worker may write it once more; remove it again `LATE_S` later.
    """
    enqueue(session, kind, **payload)
    if again:
        enqueue(session, kind, wait_s=LATE_S, **payload)


def may_be_written(session: Session, documents: Select[Any]) -> bool:
    """Whether a worker may have one of these documents in its hands, with or without a lease."""
    asked = exists().where(
        PipelineRun.document_id.in_(documents), PipelineRun.status.in_(("running", "lost"))
    )
    return bool(session.scalar(select(asked)))


def retry_wait_s(attempts: int) -> float:
    """How long a job waits after its n-th failed attempt, n >= 1: 5 s, doubling, at most 600 s."""
    return min(_RETRY_MAX_S, _RETRY_S * 2.0 ** min(attempts - 1, 20))


class ComeAgain(Exception):
    """A job cannot be done before `at`; that is no failure of it.

    Attributes:
        progressed: a part of it is done, so that earlier attempts do not count any more.
    """

    def __init__(self, at: datetime | moment, reason: str, *, progressed: bool = False) -> None:
        super().__init__(reason)
        self.at, self.progressed = at, progressed


def claim_job(
    sessions: Sessions,
    owner: str,
    *,
    lease_s: float,
    kinds: Collection[JobKind] = tuple(JobKind),
) -> Job | None:
    """Take the oldest job of these kinds that is due and free, or None."""
    due = select(Job.id).where(_free()).order_by(Job.not_before, Job.created_at).limit(1)
    if len(kinds) < len(JobKind):
        due = due.where(Job.kind.in_(kinds))
    with reading(sessions) as session:  # mostly there is none; then nobody's writing is held up
        if session.scalar(due) is None:
            return None
    with transaction(sessions) as session:
        job_id = session.scalar(due.with_for_update(skip_locked=True))
        return session.scalar(
            update(Job)
            .where(Job.id == job_id)
            .values(
                lease_owner=owner,
                lease_expires_at=moment(lease_s),
                attempts=Job.attempts + 1,
            )
            .returning(Job)
        )


def due_jobs(session: Session) -> int:
    """How many jobs wait to be done now by anybody."""
    return session.scalar(select(func.count()).select_from(Job).where(_free())) or 0


def _free() -> ColumnElement[bool]:
    return and_(
        Job.not_before <= moment(),
        or_(Job.lease_expires_at.is_(None), Job.lease_expires_at < moment()),
    )


def renew_jobs(sessions: Sessions, jobs: Collection[uuid.UUID], *, lease_s: float) -> None:
    """Extend the leases of the jobs in work; a rebuild may take longer than one lease."""
    if not jobs:
        return
    with transaction(sessions) as session:
        session.execute(
            update(Job)
            .where(Job.id.in_(jobs), Job.lease_owner.is_not(None))
            .values(lease_expires_at=moment(lease_s))
        )


def finish_job(sessions: Sessions, job_id: uuid.UUID) -> None:
    """The job is done."""
    with transaction(sessions) as session:
        session.execute(delete(Job).where(Job.id == job_id))


def postpone_job(
    sessions: Sessions,
    job: Job,
    error: str,
    *,
    until: datetime | moment | None = None,
    progressed: bool = False,
) -> None:
    """The job comes again at a time, or after `retry_wait_s`, with the reason beside it."""
    with transaction(sessions) as session:
        session.execute(
            update(Job)
            .where(Job.id == job.id)
            .values(
                lease_owner=None,
                lease_expires_at=None,
                error=error,
                attempts=0 if progressed else Job.attempts,
                not_before=moment(retry_wait_s(job.attempts)) if until is None else until,
            )
        )


def release_jobs(sessions: Sessions) -> None:
    """Free every job; only for a process that alone owns the database.

    Imports that the last process did not finish are removed at once: nobody is at them.
    One that was in work at several crashes may be their cause: it waits, so that the process gets
    to do other things before the job is tried again.
    """
    with transaction(sessions) as session:
        session.execute(
            update(Job).where(Job.kind == JobKind.ABANDON_IMPORT).values(not_before=moment())
        )
        for job in session.scalars(select(Job).where(Job.lease_owner.is_not(None))):
            job.lease_owner = job.lease_expires_at = None
            if job.attempts > _CRASHES:
                job.error = f"the process ended {job.attempts} times while it did this"
                wait: Any = moment(retry_wait_s(job.attempts - _CRASHES))
                job.not_before = wait
