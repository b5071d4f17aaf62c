"""Leases on documents: who works on what, and what happens when a worker dies."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, CursorResult, and_, case, exists, or_, select, update
from sqlalchemy.orm import Session, aliased

from kb.db import Sessions, now, reading, transaction
from kb.models import UNFINISHED, Document, DocumentVersion, IndexingStatus, PipelineRun
from pipelines.errors import PipelineError

SUSPECT = 2
"""A document that was claimed so often without progress may be what kills its reader: it is worked
on alone, so that it takes nothing else with it."""

IN_WORK = tuple(status for status in UNFINISHED if status is not IndexingStatus.WAITING)
_COMES_AFTER: dict[IndexingStatus, tuple[IndexingStatus, ...]] = {
    IndexingStatus.WAITING: IN_WORK,
    IndexingStatus.PARSING: UNFINISHED,
    IndexingStatus.CLEANING: IN_WORK,
    IndexingStatus.SPLITTING: IN_WORK,
    IndexingStatus.INDEXING: UNFINISHED,
    IndexingStatus.COMPLETED: (IndexingStatus.INDEXING,),
    IndexingStatus.ERROR: IN_WORK,
}
"""What a worker may make of which state. An upload or a person's retry puts any state back to
waiting, and takes the lease away with it."""


class LeaseLost(PipelineError):
    """Somebody else has the document now, or it is gone; what this worker does is void."""

    code = "lease_lost"


@dataclass(frozen=True)
class Claim:
    """A document in work by `owner`: every write that it makes checks that this still holds.

    Attributes:
        attempt: claims since the last progress or outcome, this one included.
        found: the state in which the last worker left the document.
        staged: the version's segments are stored already.
        run_id: the record of this attempt.
    """

    document_id: uuid.UUID
    dataset_id: uuid.UUID
    version: int
    owner: str
    attempt: int
    found: IndexingStatus
    staged: bool
    run_id: uuid.UUID

    def holds(self) -> ColumnElement[bool]:
        """The condition under which this worker may write to the document."""
        return and_(
            Document.id == self.document_id,
            Document.lease_owner == self.owner,
            Document.pending_version == self.version,
        )

    def move(self, session: Session, status: IndexingStatus, **values: Any) -> None:
        """Bring the document into another state, under the lease; the only way to do so.

        Raises:
            LeaseLost: the claim does not hold any more; roll back.
        """
        self.update(session, _COMES_AFTER[status], indexing_status=status, **values)

    def update(
        self, session: Session, states: Collection[IndexingStatus] = UNFINISHED, **values: Any
    ) -> None:
        """Change the document's row under the lease.

        Raises:
            LeaseLost: the claim does not hold any more; roll back.
        """
        changed = session.execute(
            update(Document)
            .where(self.holds(), Document.indexing_status.in_(states))
            .values(**values)
        )
        assert isinstance(changed, CursorResult)
        if changed.rowcount != 1:
            raise LeaseLost(f"document {self.document_id} is not this worker's any more")


def claim_next(
    sessions: Sessions, owner: str, *, lease_s: float, colleagues: Collection[str] = ()
) -> Claim | None:
    """Take the oldest waiting document, or None.

    Documents that were in work when a process died come after all others, so that one which
    kills its reader cannot hold up the rest.

    Args:
        colleagues: owners that die together with this one; while one of them works, or `owner`
            itself, no suspect is taken, and while a suspect is in work, nothing is.
    """
    at = now()
    together = {owner, *colleagues}
    with reading(sessions) as session:
        candidates = session.scalars(
            select(Document.id)
            .where(_claimable(at, together))
            .order_by(Document.attempts, Document.queued_at, Document.position)
            .limit(16)
        ).all()
    for document_id in candidates:
        claim = claim_document(sessions, document_id, owner, lease_s=lease_s, colleagues=colleagues)
        if claim is not None:
            return claim
    return None


def claim_document(
    sessions: Sessions,
    document_id: uuid.UUID,
    owner: str,
    *,
    lease_s: float,
    colleagues: Collection[str] = (),
) -> Claim | None:
    """Take this document by one conditional UPDATE; None when it is not free (any more).

    The same transaction starts the record of the attempt and shows the first stage.
    """
    at = now()
    run_id = uuid.uuid4()
    with transaction(sessions) as session:
        row = session.execute(
            update(Document)
            .where(Document.id == document_id, _claimable(at, {owner, *colleagues}))
            .values(
                lease_owner=owner,
                lease_expires_at=at + timedelta(seconds=lease_s),
                attempts=Document.attempts + 1,
            )
            .returning(
                Document.dataset_id,
                Document.pending_version,
                Document.attempts,
                Document.indexing_status,
            )
            .execution_options(synchronize_session=False)
        ).one_or_none()
        if row is None or row[1] is None:
            return None
        staged_at = session.scalar(
            select(DocumentVersion.staged_at).where(
                DocumentVersion.document_id == document_id, DocumentVersion.number == row[1]
            )
        )
        claim = Claim(
            document_id, row[0], row[1], owner, row[2], row[3], staged_at is not None, run_id
        )
        _start(session, claim)
    return claim


def _claimable(at: Any, together: Collection[str]) -> ColumnElement[bool]:
    """Documents that may be worked on at this moment by one of these owners."""
    other = aliased(Document)
    in_work = exists().where(other.lease_owner.in_(together), other.lease_expires_at >= at)
    return and_(
        Document.pending_version.is_not(None),
        Document.indexing_status.in_(UNFINISHED),
        Document.is_paused.is_(False),
        or_(Document.lease_expires_at.is_(None), Document.lease_expires_at < at),
        or_(Document.next_attempt_at.is_(None), Document.next_attempt_at <= at),
        or_(Document.attempts < SUSPECT, ~in_work),
        ~in_work.where(other.attempts > SUSPECT),
    )


def _start(session: Session, claim: Claim) -> None:
    at = now()
    session.execute(
        update(PipelineRun)
        .where(PipelineRun.document_id == claim.document_id, PipelineRun.status == "running")
        .values(status="lost", finished_at=at, error="its worker ended without an outcome")
    )
    session.add(
        PipelineRun(
            id=claim.run_id,
            document_id=claim.document_id,
            version=claim.version,
            attempt=claim.attempt,
            resumed=claim.staged,
            started_at=at,
        )
    )
    if claim.staged:
        claim.move(session, IndexingStatus.INDEXING)
    else:
        claim.move(
            session,
            IndexingStatus.PARSING,
            processing_started_at=at,
            parsing_completed_at=None,
            cleaning_completed_at=None,
            splitting_completed_at=None,
        )


def renew(sessions: Sessions, claims: Collection[Claim], *, lease_s: float) -> None:
    """Extend the leases of what is in work at this moment, and of nothing else.

    A document whose outcome could not be recorded is in no one's work: its lease runs out.
    """
    if not claims:
        return
    with transaction(sessions) as session:
        for claim in claims:
            session.execute(
                update(Document)
                .where(claim.holds())
                .values(lease_expires_at=now() + timedelta(seconds=lease_s))
            )


def release(session: Session, claim: Claim) -> None:
    """Hand the document back at once, as if it had not been claimed; nothing when it is lost."""
    session.execute(
        update(Document)
        .where(claim.holds())
        .values(
            lease_owner=None,
            lease_expires_at=None,
            attempts=case((Document.attempts > 0, Document.attempts - 1), else_=0),
            indexing_status=IndexingStatus.WAITING,
        )
    )


def release_all(sessions: Sessions) -> int:
    """Free every lease; only for a process that alone owns the database. Returns how many."""
    with transaction(sessions) as session:
        freed = session.execute(
            update(Document)
            .where(Document.lease_owner.is_not(None))
            .values(lease_owner=None, lease_expires_at=None)
        )
        assert isinstance(freed, CursorResult)
        return freed.rowcount
