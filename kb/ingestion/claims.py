"""Leases on documents: who works on what, and what happens when a worker dies."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from sqlalchemy import (
    CTE,
    ColumnElement,
    CursorResult,
    Select,
    and_,
    bindparam,
    case,
    exists,
    func,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.orm import Session, aliased

from kb.db import Sessions, after_commit, moment, reading, retried, transaction
from kb.metrics import LEASES_EXPIRED
from kb.models import (
    UNFINISHED,
    UNFINISHED_SQL,
    Dataset,
    Document,
    DocumentVersion,
    IndexingStatus,
    PipelineRun,
)
from kb.ports import Queue
from pipelines.errors import Cancelled, PipelineError

SUSPECT = 2
"""A document that was claimed so often without progress may be what kills its reader: it is worked
on alone, so that it takes nothing else with it."""

IN_WORK = tuple(status for status in UNFINISHED if status is not IndexingStatus.WAITING)
_FOUND = (
    Document.id,
    Document.pending_version,
    Document.attempts,
    Document.indexing_status,
    Document.queue,
    select(DocumentVersion.staged_at)
    .where(
        DocumentVersion.document_id == Document.id,
        DocumentVersion.number == Document.pending_version,
    )
    .scalar_subquery()
    .label("staged_at"),
)
"""What a claim has to know of a document."""

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


class Paused(Cancelled):
    """A person paused the document; what was done so far is kept."""


@dataclass(frozen=True)
class Claim:
    """A document in work by `owner`: every write that it makes checks that this still holds.

    Attributes:
        attempt: claims since the last progress or outcome, this one included.
        found: the state in which the last worker left the document.
        staged: the version's segments are stored already.
        run_id: the record of this attempt.
        queue: where the document waited.
    """

    document_id: uuid.UUID
    dataset_id: uuid.UUID
    version: int
    owner: str
    attempt: int
    found: IndexingStatus
    staged: bool
    run_id: uuid.UUID
    queue: Queue

    def holds(self) -> ColumnElement[bool]:
        """The condition under which this worker may write to the document."""
        return and_(
            Document.id == self.document_id,
            Document.lease_owner == self.owner,
            Document.pending_version == self.version,
        )

    def move(self, session: Session, status: IndexingStatus, **values: Any) -> bool:
        """Bring the document into another state, under the lease; the only way after the claim.

        Returns:
            Whether a person paused it: see `update`.
        Raises:
            LeaseLost: the claim does not hold any more; roll back.
        """
        return self.update(session, _COMES_AFTER[status], indexing_status=status, **values)

    def update(
        self, session: Session, states: Collection[IndexingStatus] = UNFINISHED, **values: Any
    ) -> bool:
        """Change the document's row under the lease.

        Returns:
            Whether a person paused it: commit what is done, go no further, and hand it back.
        Raises:
            LeaseLost: the claim does not hold any more; roll back.
        """
        hold_dataset(session, self.dataset_id)
        paused = session.scalar(
            update(Document)
            .where(self.holds(), Document.indexing_status.in_(states))
            .values(**values)
            .returning(Document.is_paused)
            .execution_options(synchronize_session=False)
        )
        if paused is None:
            raise LeaseLost(f"document {self.document_id} is not this worker's any more")
        return paused


def claim_next(
    sessions: Sessions,
    owner: str,
    *,
    lease_s: float,
    colleagues: Collection[str] = (),
    queues: Sequence[Queue] = tuple(Queue),
) -> Claim | None:
    """Take the document whose turn it is, or None.

    Workspaces take turns, and within each its datasets: first those with the fewest documents in
    work, then the one that was served longest ago. Within a dataset the oldest comes first, and
    documents that were in work when a process died come after all others, so that one which kills
    its reader cannot hold up the rest.

    Args:
        colleagues: owners that die together with this one; while one of them works, or `owner`
            itself, no suspect is taken, and while a suspect is in work, nothing is.
        queues: where to look; the first that has a document counts.
    """
    for queue in queues:
        asked = {"queue": queue, "together": [owner, *colleagues]}
        with reading(sessions) as session:
            datasets = session.scalars(_turns(), asked).all()
        for dataset_id in datasets:
            claim = retried(partial(_take, sessions, _next_in(), asked, dataset_id, owner, lease_s))
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
    """Take this document; None when it is not free (any more)."""
    with reading(sessions) as session:
        dataset_id = session.scalar(select(Document.dataset_id).where(Document.id == document_id))
    if dataset_id is None:
        return None
    asked = {"document_id": document_id, "together": [owner, *colleagues]}
    return _take(sessions, _this_one(), asked, dataset_id, owner, lease_s)


def _take(
    sessions: Sessions,
    free: Select[Any],
    asked: dict[str, Any],
    dataset_id: uuid.UUID,
    owner: str,
    lease_s: float,
) -> Claim | None:
    """Lease what `free` finds, passing over what others are taking at this moment.

    The same transaction starts the record of the attempt and shows the first stage.
    """
    with transaction(sessions) as session:
        hold_dataset(session, dataset_id)
        row = session.execute(free, asked | {"dataset_id": dataset_id}).one_or_none()
        if row is None:
            return None
        claim = Claim(
            row.id,
            dataset_id,
            row.pending_version,
            owner,
            row.attempts + 1,
            row.indexing_status,
            row.staged_at is not None,
            uuid.uuid4(),
            row.queue,
        )
        _start(session, claim, lease_s)
    return claim


def waiting_documents(session: Session, queue: Queue, limit: int) -> Sequence[uuid.UUID]:
    """Documents of a queue that anybody may take at this moment."""
    return session.scalars(
        select(Document.id)
        .where(Document.queue == queue, text(UNFINISHED_SQL), _claimable())
        .limit(limit),
        {"together": []},
    ).all()


# The statements below are built once: building one takes longer than the database needs for it.
# Their parameters are `queue`, `dataset_id` or `document_id`, and `together` (owners).


@cache
def _this_one() -> Select[Any]:
    """A document, if it may be taken."""
    return _leasable(select(*_FOUND).where(Document.id == bindparam("document_id"), _claimable()))


@cache
def _next_in() -> Select[Any]:
    """The next document of a dataset."""
    return _leasable(_in_order(bindparam("dataset_id"), *_FOUND).limit(1))


def _leasable(found: Any) -> Select[Any]:
    leasable: Select[Any] = found.with_for_update(of=Document, skip_locked=True, key_share=True)
    return leasable


def _in_order(dataset_id: Any, *columns: Any) -> Select[Any]:
    """The documents of a dataset that may be taken, as `ix_documents_turn` has them."""
    return (
        select(*columns)
        .where(Document.queue == bindparam("queue"), Document.dataset_id == dataset_id)
        .where(text(UNFINISHED_SQL), _claimable())
        .order_by(Document.attempts, Document.queued_at, Document.position)
    )


@cache
def _turns() -> Select[Any]:
    """Datasets with a document to take, the one whose turn it is first; at most 16.

    The time this takes grows with the datasets that have documents waiting, not with those
    documents: each dataset is found by one step in the index, and so is its next document.
    """
    queued = _queued_datasets()
    first = aliased(Document)
    next_id = _in_order(queued.c.dataset_id, Document.id).limit(1).correlate(queued)
    served = (
        select(Document.processing_started_at)
        .where(Document.dataset_id == queued.c.dataset_id)
        .where(Document.processing_started_at.is_not(None))
        .order_by(Document.processing_started_at.desc())
        .limit(1)
        .correlate(queued)
    )
    nexts = select(
        queued.c.dataset_id,
        next_id.scalar_subquery().label("next_id"),
        served.scalar_subquery().label("served_at"),
    ).where(queued.c.dataset_id.is_not(None))
    turn = nexts.subquery("turn")
    in_work = (
        select(Document.dataset_id, Dataset.workspace_id, func.count().label("documents"))
        .join(Dataset, Dataset.id == Document.dataset_id)
        .where(Document.lease_owner.is_not(None), Document.lease_expires_at >= moment())
        .group_by(Document.dataset_id, Dataset.workspace_id)
        .cte("in_work")
    )
    by_workspace = (
        select(in_work.c.workspace_id, func.sum(in_work.c.documents).label("documents"))
        .group_by(in_work.c.workspace_id)
        .subquery("by_workspace")
    )
    return (
        select(Dataset.id)
        .join(turn, turn.c.dataset_id == Dataset.id)
        .join(first, first.id == turn.c.next_id)
        .outerjoin(in_work, in_work.c.dataset_id == Dataset.id)
        .outerjoin(by_workspace, by_workspace.c.workspace_id == Dataset.workspace_id)
        .order_by(
            first.attempts >= SUSPECT,
            func.coalesce(by_workspace.c.documents, 0),
            func.max(turn.c.served_at).over(partition_by=Dataset.workspace_id).nulls_first(),
            func.coalesce(in_work.c.documents, 0),
            turn.c.served_at.nulls_first(),
            first.queued_at,
            Dataset.id,
        )
        .limit(16)
    )


def _queued_datasets() -> CTE:
    """Datasets with unfinished documents in a queue, and a NULL; one index step for each."""
    unfinished = select(Document.dataset_id).where(
        Document.queue == bindparam("queue"), text(UNFINISHED_SQL)
    )
    first = unfinished.order_by(Document.dataset_id).limit(1).scalar_subquery()
    queued = select(first.label("dataset_id")).cte("queued", recursive=True)
    following = (
        unfinished.where(Document.dataset_id > queued.c.dataset_id)
        .order_by(Document.dataset_id)
        .limit(1)
        .correlate(queued)
        .scalar_subquery()
    )
    return queued.union_all(select(following).where(queued.c.dataset_id.is_not(None)))


def _claimable() -> ColumnElement[bool]:
    """Documents that may be worked on now by one of the owners `together`."""
    together: Any = bindparam("together", expanding=True)
    other = aliased(Document)
    in_work = exists().where(other.lease_owner.in_(together), other.lease_expires_at >= moment())
    return and_(
        Document.pending_version.is_not(None),
        Document.indexing_status.in_(UNFINISHED),
        Document.is_paused.is_(False),
        or_(Document.lease_expires_at.is_(None), Document.lease_expires_at < moment()),
        or_(Document.next_attempt_at.is_(None), Document.next_attempt_at <= moment()),
        or_(Document.attempts < SUSPECT, ~in_work),
        ~in_work.where(other.attempts > SUSPECT),
    )


def hold_dataset(session: Session, dataset_id: uuid.UUID, *, to_change: bool = False) -> None:
    """Keep the dataset until the transaction ends: nobody deletes it, or changes it either.

    Locks are taken in the order dataset, document, segment: then no two writers wait for each
    other. SQLite has one writer anyway.
    """
    if session.get_bind().dialect.name == "postgresql":
        session.execute(
            select(Dataset.id)
            .where(Dataset.id == dataset_id)
            .with_for_update(key_share=True, read=not to_change)
        )


def _start(session: Session, claim: Claim, lease_s: float) -> None:
    values: dict[str, Any] = {
        "lease_owner": claim.owner,
        "lease_expires_at": moment(lease_s),
        "attempts": claim.attempt,
        "indexing_status": IndexingStatus.INDEXING if claim.staged else IndexingStatus.PARSING,
    }
    if not claim.staged:
        values |= {
            "processing_started_at": moment(),
            "parsing_completed_at": None,
            "cleaning_completed_at": None,
            "splitting_completed_at": None,
        }
    session.execute(
        update(Document)
        .where(Document.id == claim.document_id)
        .values(**values)
        .execution_options(synchronize_session=False)
    )
    lost = session.execute(
        update(PipelineRun)
        .where(PipelineRun.document_id == claim.document_id, PipelineRun.status == "running")
        .values(status="lost", finished_at=moment(), error="its worker ended without an outcome")
        .execution_options(synchronize_session=False)
    )
    assert isinstance(lost, CursorResult)
    if lost.rowcount:
        after_commit(session, partial(LEASES_EXPIRED.inc, lost.rowcount))
    session.add(
        PipelineRun(
            id=claim.run_id,
            document_id=claim.document_id,
            version=claim.version,
            attempt=claim.attempt,
            resumed=claim.staged,
            started_at=moment(),
        )
    )


def renew(sessions: Sessions, claims: Collection[Claim], *, lease_s: float) -> None:
    """Extend the leases of what is in work at this moment, and of nothing else.

    A document whose outcome could not be recorded is in no one's work: its lease runs out.
    """
    for claim in claims:  # one lock at a time
        with transaction(sessions) as session:
            session.execute(
                update(Document).where(claim.holds()).values(lease_expires_at=moment(lease_s))
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
