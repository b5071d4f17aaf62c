"""Segments and child chunks of a document: find one, list a page."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from sqlalchemy import ColumnElement, func, or_, select
from sqlalchemy.orm import Session

from kb.errors import NotFound
from kb.models import ChildChunk, DocForm, Document, ProcessRule, Segment, SegmentStatus


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
        statuses: only these (`waiting`, `indexing`, `completed`; no segment has another); empty
            means all.
    """
    where = [Segment.document_id == document.id, shown(Segment, document)]
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


def get_segment(session: Session, document: Document, segment_id: uuid.UUID) -> Segment:
    """The segment, if it is one of those that listings show of this document.

    Raises:
        NotFound: it is not.
    """
    row = session.scalar(
        select(Segment).where(
            Segment.id == segment_id,
            Segment.document_id == document.id,
            shown(Segment, document),
        )
    )
    if row is None:
        raise NotFound("segment", segment_id)
    return row


def get_child(
    session: Session, document: Document, segment: Segment, child_id: uuid.UUID
) -> ChildChunk:
    """The child chunk, if it is one of this segment's.

    Raises:
        NotFound: it is not.
    """
    row = session.scalar(
        select(ChildChunk).where(
            ChildChunk.id == child_id,
            ChildChunk.segment_id == segment.id,
            shown(ChildChunk, document),
        )
    )
    if row is None:
        raise NotFound("child chunk", child_id)
    return row


def list_children(
    session: Session,
    document: Document,
    segment: Segment,
    *,
    page: int,
    limit: int,
    keyword: str | None = None,
) -> tuple[Sequence[ChildChunk], int]:
    """A page of a segment's child chunks in order, and how many match in all.

    Args:
        keyword: case-insensitive part of the content.
    """
    where = [ChildChunk.segment_id == segment.id, shown(ChildChunk, document)]
    if keyword:
        where.append(ChildChunk.content.icontains(keyword, autoescape=True))
    total = session.scalar(select(func.count()).select_from(ChildChunk).where(*where)) or 0
    rows = session.scalars(
        select(ChildChunk)
        .where(*where)
        .order_by(ChildChunk.position)
        .offset((page - 1) * limit)
        .limit(limit)
    ).all()
    return rows, total


def children_of(
    session: Session, document: Document, segment_ids: Sequence[uuid.UUID]
) -> dict[uuid.UUID, list[ChildChunk]]:
    """The child chunks that listings show with each segment, in order; all in one statement.

    None where one segment is the whole document: its children are all there is of it.
    """
    if document.doc_form is not DocForm.HIERARCHICAL or _is_one_segment(session, document):
        return {}
    found: dict[uuid.UUID, list[ChildChunk]] = {i: [] for i in segment_ids}
    rows = session.scalars(
        select(ChildChunk)
        .where(ChildChunk.segment_id.in_(segment_ids), shown(ChildChunk, document))
        .order_by(ChildChunk.position)
    )
    for row in rows:
        found[row.segment_id].append(row)
    return found


def shown(table: type[Segment] | type[ChildChunk], document: Document) -> ColumnElement[bool]:
    """The live version; before there is one, the version in preparation."""
    if document.version:
        return table.live.is_(True)
    return table.staged_version == document.pending_version


def _is_one_segment(session: Session, document: Document) -> bool:
    rule = session.get(ProcessRule, document.process_rule_id) if document.process_rule_id else None
    return rule is not None and (rule.rules or {}).get("parent_mode") == "full-doc"
