"""Leases on documents: who works on what, and what happens when a worker dies."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, CursorResult, and_, case, or_, select, update
from sqlalchemy.orm import Session

from kb.db import Sessions, now, reading, transaction
from kb.models import UNFINISHED, Document, IndexingStatus
from pipelines.errors import PipelineError


class LeaseLost(PipelineError):
    """Somebody else has the document now, or it is gone; what this worker does is void."""

    code = "lease_lost"


@dataclass(frozen=True)
class Claim:
    """A document in work by `owner`: every write that it makes checks that this still holds."""

    document_id: uuid.UUID
    dataset_id: uuid.UUID
    version: int
    owner: str
    attempt: int

    def holds(self) -> ColumnElement[bool]:
        """The condition under which this worker may write to the document."""
        return and_(
            Document.id == self.document_id,
            Document.lease_owner == self.owner,
            Document.pending_version == self.version,
        )

    def update(self, session: Session, **values: Any) -> None:
        """Change the document's row under the lease.

        Raises:
            LeaseLost: the claim does not hold any more; roll back.
        """
        changed = session.execute(update(Document).where(self.holds()).values(**values))
        assert isinstance(changed, CursorResult)
        if changed.rowcount != 1:
            raise LeaseLost(f"document {self.document_id} is not this worker's any more")


def claimable(at: datetime) -> ColumnElement[bool]:
    """Documents that anybody may work on at this moment."""
    return and_(
        Document.pending_version.is_not(None),
        Document.indexing_status.in_(UNFINISHED),
        Document.is_paused.is_(False),
        or_(Document.lease_expires_at.is_(None), Document.lease_expires_at < at),
        or_(Document.next_attempt_at.is_(None), Document.next_attempt_at <= at),
    )


def claim_next(sessions: Sessions, owner: str, *, lease_s: float) -> Claim | None:
    """Take the oldest waiting document, or None.

    Documents that were in work when a process died come after all others, so that one which
    kills its reader cannot hold up the rest.
    """
    at = now()
    with reading(sessions) as session:
        candidates = session.execute(
            select(Document.id)
            .where(claimable(at))
            .order_by(Document.attempts, Document.queued_at, Document.position)
            .limit(16)
        ).scalars()
        ids = list(candidates)
    for document_id in ids:
        claim = claim_document(sessions, document_id, owner, lease_s=lease_s)
        if claim is not None:
            return claim
    return None


def claim_document(
    sessions: Sessions, document_id: uuid.UUID, owner: str, *, lease_s: float
) -> Claim | None:
    """Take this document by one conditional UPDATE; None when it is not free (any more)."""
    at = now()
    with transaction(sessions) as session:
        row = session.execute(
            update(Document)
            .where(Document.id == document_id, claimable(at))
            .values(
                lease_owner=owner,
                lease_expires_at=at + timedelta(seconds=lease_s),
                attempts=Document.attempts + 1,
            )
            .returning(Document.dataset_id, Document.pending_version, Document.attempts)
        ).one_or_none()
    if row is None or row[1] is None:
        return None
    return Claim(document_id, row[0], row[1], owner, row[2])


def renew(sessions: Sessions, owners: Collection[str], *, lease_s: float) -> None:
    """Extend every lease of these owners."""
    if not owners:
        return
    with transaction(sessions) as session:
        session.execute(
            update(Document)
            .where(Document.lease_owner.in_(owners))
            .values(lease_expires_at=now() + timedelta(seconds=lease_s))
        )


def release(sessions: Sessions, claim: Claim) -> None:
    """Hand the document back at once, as if it had not been claimed."""
    with transaction(sessions) as session:
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
