"""Versions of documents: make one and queue it, queue it again, drop the one in preparation."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from kb.db import moment, now
from kb.jobs import LATE_S, enqueue, may_be_written
from kb.models import (
    Document,
    DocumentVersion,
    IndexingStatus,
    JobKind,
    text_key,
)

_ROWS = 500  # ids per job


def queue_version(session: Session, document: Document) -> None:
    """Make the document's present file and process rule its next version, to be ingested.

    A pause ends with it: who uploads something waits for its outcome.
    """
    newest = session.scalar(
        select(func.coalesce(func.max(DocumentVersion.number), 0)).where(
            DocumentVersion.document_id == document.id
        )
    )
    number = (newest or 0) + 1
    drop_overtaken_text(session, document)
    session.add(
        DocumentVersion(
            document_id=document.id,
            number=number,
            upload_file_id=document.upload_file_id,
            process_rule_id=document.process_rule_id,
        )
    )
    document.pending_version = number
    to_queue(document)


def to_queue(document: Document) -> None:
    """Have the version in preparation worked on from its last checkpoint."""
    queued_at: Any = moment()
    document.indexing_status = IndexingStatus.WAITING
    document.queued_at, document.updated_at = queued_at, now()
    document.is_paused, document.paused_at = False, None
    document.attempts = 0
    let_go(document)
    _clear_progress(document)


def let_go(document: Document) -> None:
    """Whoever works on it loses it with the next write."""
    document.lease_owner = document.lease_expires_at = document.next_attempt_at = None


def _clear_progress(document: Document) -> None:
    document.error = document.error_code = document.error_stage = None
    document.processing_started_at = document.parsing_completed_at = None
    document.cleaning_completed_at = document.splitting_completed_at = None
    document.completed_at = document.stopped_at = document.indexing_latency = None


def requeue_document(session: Session, document: Document) -> None:
    """Have a document that nobody would take ingested from where it is; see `kb.doctor.stuck`.

    The version that it waits for stays, with its checkpoint, if there is one; else its present
    file becomes its next version.
    """
    known = session.scalar(
        select(DocumentVersion.id).where(
            DocumentVersion.document_id == document.id,
            DocumentVersion.number == document.pending_version,
        )
    )
    if known is None or (document.pending_version or 0) <= document.version:
        queue_version(session, document)
    else:
        to_queue(document)


def drop_overtaken_text(session: Session, document: Document) -> None:
    """Whoever works on the version before may have kept its text, and can not store it any more.

    The document's row is changed, and so locked: no worker can pass that checkpoint meanwhile.
    """
    overtaken = session.scalar(
        select(DocumentVersion.number).where(
            DocumentVersion.document_id == document.id,
            DocumentVersion.number == document.pending_version,
            DocumentVersion.staged_at.is_(None),
        )
    )
    if overtaken is not None and may_be_written(session, itself(document)):
        keys = [text_key(document.id, overtaken)]
        enqueue(session, JobKind.DELETE_BLOBS, wait_s=LATE_S, keys=keys)


def itself(document: Document) -> Select[Any]:
    """The document as a statement that gives its id."""
    return select(Document.id).where(Document.id == document.id)
