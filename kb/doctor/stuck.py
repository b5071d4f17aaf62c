"""Stuck documents and jobs: unfinished, and in a state in which no worker will ever take them.

A document that waits is not stuck, however long it waits: workers look for it, and the sweeper
announces it again. Stuck is what no claim can find:

- unfinished, but no version is in preparation, or the one named does not exist;
- `completed` although a version is in preparation, or none ever went live;
- held by a lease, or put off to a next attempt, that ends later than any is given for.

They are queued again. A paused document is where a person wants it, and one in `error` waits for a
person; neither is stuck. Jobs are stuck by a lease or a date beyond reason only.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from sqlalchemy import and_, case, exists, or_, select, update

from kb.db import moment, reading, transaction
from kb.doctor.report import Kind, Report
from kb.ingestion.claims import hold_dataset
from kb.models import UNFINISHED, Document, DocumentVersion, IndexingStatus, Job
from kb.resources import Resources
from kb.versions import requeue_document

_ROWS = 500
_LEASES = 10
"""A lease is beyond reason when it ends so many lease times from now: the database's clock was set
back since."""
_PUT_OFF_S = 7 * 86_400.0
"""No provider asks to wait longer."""


def examine_stuck(resources: Resources, report: Report) -> None:
    """Find what nobody will take; with `report.repaired`, queue it again and announce it."""
    after = uuid.UUID(int=0)
    while True:
        with reading(resources.sessions) as session:
            statement = _stuck(resources).where(Document.id > after)
            rows = session.execute(statement.order_by(Document.id).limit(_ROWS)).all()
        for row in rows:
            report.add(Kind.STUCK_DOCUMENTS, f"{row.id} ({row.name!r}: {row.why})")
        if report.repaired:
            _requeue(resources, [row.id for row in rows])
        if len(rows) < _ROWS:
            break
        after = rows[-1].id
    _examine_jobs(resources, report)


def _stuck(resources: Resources) -> Any:
    """Stuck documents, each with the reason."""
    lease_ends = moment(_LEASES * resources.settings.ingestion.lease_s)
    unfinished = Document.indexing_status.in_(UNFINISHED)
    completed = Document.indexing_status == IndexingStatus.COMPLETED
    prepared = Document.pending_version.is_not(None)
    version_exists = exists().where(
        DocumentVersion.document_id == Document.id,
        DocumentVersion.number == Document.pending_version,
    )
    reasons = {
        "unfinished, but no version is in preparation": and_(unfinished, ~prepared),
        "its version in preparation does not exist": and_(unfinished, prepared, ~version_exists),
        "completed, but a version is in preparation": and_(completed, prepared),
        "completed, but no version ever went live": and_(completed, Document.version == 0),
        "its lease ends beyond reason": and_(unfinished, Document.lease_expires_at > lease_ends),
        "its next attempt is put off beyond reason": and_(
            unfinished, Document.next_attempt_at > moment(_PUT_OFF_S)
        ),
    }
    why = case(*[(condition, reason) for reason, condition in reasons.items()])
    return select(Document.id, Document.name, why.label("why")).where(
        Document.is_paused.is_(False), or_(*reasons.values())
    )


def _requeue(resources: Resources, ids: Sequence[uuid.UUID]) -> None:
    for document_id in ids:
        with transaction(resources.sessions) as session:
            document = session.get(Document, document_id)
            if document is None:
                continue
            hold_dataset(session, document.dataset_id)
            session.refresh(document, with_for_update=True)
            still = _stuck(resources).where(Document.id == document_id)
            if session.execute(still).one_or_none() is None:
                continue
            requeue_document(session, document)
        resources.jobs.index_document(document.id, document.queue)


def _examine_jobs(resources: Resources, report: Report) -> None:
    lease_ends = moment(_LEASES * resources.settings.ingestion.lease_s)
    stuck = or_(Job.lease_expires_at > lease_ends, Job.not_before > moment(_PUT_OFF_S))
    with reading(resources.sessions) as session:
        rows = session.execute(select(Job.id, Job.kind).where(stuck).order_by(Job.id)).all()
    for row in rows:
        report.add(Kind.STUCK_JOBS, f"{row.id} ({row.kind.value})")
    if report.repaired and rows:
        with transaction(resources.sessions) as session:
            session.execute(
                update(Job)
                .where(stuck)
                .values(lease_owner=None, lease_expires_at=None, not_before=moment())
            )
