"""A document's state as people see it; and whether it answers: enable, disable, archive."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, and_, select
from sqlalchemy.orm import Session

from kb.db import now
from kb.errors import InvalidAction
from kb.models import UNFINISHED, Document, IndexingStatus

IN_WORK = tuple(status for status in UNFINISHED if status is not IndexingStatus.WAITING)
_ROWS = 500  # per statement


class DisplayStatus(StrEnum):
    """A document's state as people see it."""

    QUEUING = "queuing"
    INDEXING = "indexing"
    PAUSED = "paused"
    ERROR = "error"
    AVAILABLE = "available"
    DISABLED = "disabled"
    ARCHIVED = "archived"


def display_status(document: Document) -> DisplayStatus:
    """What people see; the first rule that applies."""
    status = document.indexing_status
    if document.is_paused and status not in (IndexingStatus.COMPLETED, IndexingStatus.ERROR):
        return DisplayStatus.PAUSED
    if status is IndexingStatus.WAITING:
        return DisplayStatus.QUEUING
    if status is IndexingStatus.ERROR:
        return DisplayStatus.ERROR
    if status is not IndexingStatus.COMPLETED:
        return DisplayStatus.INDEXING
    if document.archived:
        return DisplayStatus.ARCHIVED
    return DisplayStatus.AVAILABLE if document.enabled else DisplayStatus.DISABLED


def displayed_as(wanted: DisplayStatus) -> ColumnElement[bool]:
    """`display_status` as a condition in SQL."""
    done = Document.indexing_status == IndexingStatus.COMPLETED
    running = Document.is_paused.is_(False)
    return {
        DisplayStatus.PAUSED: and_(Document.is_paused, Document.indexing_status.in_(UNFINISHED)),
        DisplayStatus.QUEUING: and_(running, Document.indexing_status == IndexingStatus.WAITING),
        DisplayStatus.INDEXING: and_(running, Document.indexing_status.in_(IN_WORK)),
        DisplayStatus.ERROR: Document.indexing_status == IndexingStatus.ERROR,
        DisplayStatus.ARCHIVED: and_(done, Document.archived),
        DisplayStatus.AVAILABLE: and_(done, Document.archived.is_(False), Document.enabled),
        DisplayStatus.DISABLED: and_(
            done, Document.archived.is_(False), Document.enabled.is_(False)
        ),
    }[wanted]


# --- whether it answers --------------------------------------------------------------------------


class Availability(StrEnum):
    """What the batch status route can do."""

    ENABLE = "enable"
    DISABLE = "disable"
    ARCHIVE = "archive"
    UN_ARCHIVE = "un_archive"


def known_availability(action: str) -> Availability:
    """Raises: InvalidAction: there is no such action."""
    if action not in set(Availability):
        raise InvalidAction(
            f"action {action[:50]!r} is not known; use one of {', '.join(Availability)}"
        )
    return Availability(action)


def set_availability(
    session: Session,
    dataset_id: uuid.UUID,
    document_ids: Sequence[uuid.UUID],
    action: Availability,
    actor: uuid.UUID,
) -> int:
    """Change documents of a dataset, all of them or none; in force with the commit: a search asks
    SQL which text may answer.

    Args:
        document_ids: unknown ones are passed over.
    Returns:
        How many were changed; the others are so already.
    Raises:
        InvalidAction: one of them is being indexed, or shall be disabled and never went live.
    """
    changed = 0
    for document in lock_documents(session, dataset_id, document_ids):
        if _is_so(document, action):
            continue
        _check_idle(document, action)
        _change(document, action, actor)
        changed += 1
    return changed


def lock_documents(
    session: Session,
    dataset_id: uuid.UUID,
    document_ids: Sequence[uuid.UUID],
    *where: ColumnElement[bool],
) -> list[Document]:
    """Those of these documents that are there, as they are now, in the order given; nobody else
    changes them until the transaction ends.

    Args:
        where: only those that are so when they are locked.
    """
    found: dict[uuid.UUID, Document] = {}
    ordered = sorted(set(document_ids))  # two callers take their locks in the same order
    for at in range(0, len(ordered), _ROWS):
        rows = session.scalars(
            select(Document)
            .where(Document.dataset_id == dataset_id, Document.id.in_(ordered[at : at + _ROWS]))
            .where(*where)
            .order_by(Document.id)
            .with_for_update(key_share=True)
            .execution_options(populate_existing=True)
        )
        found |= {row.id: row for row in rows}
    return [found[i] for i in dict.fromkeys(document_ids) if i in found]


def _is_so(document: Document, action: Availability) -> bool:
    return {
        Availability.ENABLE: document.enabled,
        Availability.DISABLE: not document.enabled,
        Availability.ARCHIVE: document.archived,
        Availability.UN_ARCHIVE: not document.archived,
    }[action]


def _check_idle(document: Document, action: Availability) -> None:
    if document.indexing_status in UNFINISHED:
        raise InvalidAction(
            f"document {document.name!r} is being indexed, so it cannot be changed by {action!s}; "
            "wait until its indexing_status is 'completed' or 'error'"
        )
    if action is Availability.DISABLE and document.version == 0:
        raise InvalidAction(
            f"document {document.name!r} was never completed, so there is nothing to disable; "
            "retry or delete it"
        )


def _change(document: Document, action: Availability, actor: uuid.UUID) -> None:
    if action in (Availability.ARCHIVE, Availability.UN_ARCHIVE):
        document.archived = action is Availability.ARCHIVE
    else:
        document.enabled = action is Availability.ENABLE
        at: Any = None if document.enabled else now()
        document.disabled_at, document.disabled_by = at, None if document.enabled else actor
    document.updated_at = now()
