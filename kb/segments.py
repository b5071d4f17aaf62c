"""Segments: list those of a document."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from sqlalchemy import ColumnElement, func, or_, select
from sqlalchemy.orm import Session

from kb.models import ChildChunk, Document, Segment, SegmentStatus


def list_segments(
    session: Session,
    document: Document,
    *,
    page: int,
    limit: int,
    keyword: str | None = None,
    statuses: Sequence[str] = (),
) -> tuple[Sequence[Segment], int]:
    """A page of segments in document order, and how many match in all.

    Those of the live version; before there is one, those of the version in preparation.

    Args:
        keyword: case-insensitive part of the content.
        statuses: only these (`waiting`, `indexing`, `completed`); empty means all.
    """
    where: list[ColumnElement[bool]] = [Segment.document_id == document.id]
    where.append(
        Segment.live.is_(True)
        if document.version
        else Segment.staged_version == document.pending_version
    )
    if keyword:
        where.append(Segment.content.icontains(keyword, autoescape=True))
    if statuses:
        done = Segment.status == SegmentStatus.COMPLETED
        where.append(
            or_(*[done if status == "completed" else _unfinished(status) for status in statuses])
        )
    total = session.scalar(select(func.count()).select_from(Segment).where(*where)) or 0
    rows = session.scalars(
        select(Segment)
        .where(*where)
        .order_by(Segment.position)
        .offset((page - 1) * limit)
        .limit(limit)
    ).all()
    return rows, total


def _unfinished(status: str) -> ColumnElement[bool]:
    waiting = Segment.status == SegmentStatus.WAITING
    return waiting if status in ("waiting", "indexing") else Segment.id.is_(None)


def children_of(
    session: Session, segment_ids: Sequence[uuid.UUID]
) -> dict[uuid.UUID, list[ChildChunk]]:
    """The child chunks of each segment, in order; all in one statement."""
    found: dict[uuid.UUID, list[ChildChunk]] = {i: [] for i in segment_ids}
    rows = session.scalars(
        select(ChildChunk)
        .where(ChildChunk.segment_id.in_(segment_ids))
        .order_by(ChildChunk.position)
    )
    for row in rows:
        found[row.segment_id].append(row)
    return found
