"""The query history: what was asked of which dataset, and how the same answer differs today."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from kb.db import reading
from kb.errors import NotFound
from kb.models import Dataset, DatasetQuery, Document, Segment
from kb.query_log import Found
from kb.resources import Resources

SAME = 1e-6
"""Scores of one text that differ by less are the same: an index sums in its own order."""


def list_queries(
    session: Session,
    workspace_id: uuid.UUID,
    *,
    page: int,
    limit: int,
    dataset_id: uuid.UUID | None = None,
    source: str | None = None,
    keyword: str | None = None,
) -> tuple[Sequence[DatasetQuery], int]:
    """A page of what was asked, newest first, and how many there are in all.

    Args:
        keyword: case-insensitive part of the query; wildcards have no meaning.
    """
    own = select(Dataset.id).where(Dataset.workspace_id == workspace_id)
    where: list[ColumnElement[bool]] = [DatasetQuery.dataset_id.in_(own)]
    if dataset_id is not None:
        where.append(DatasetQuery.dataset_id == dataset_id)
    if source:
        where.append(DatasetQuery.source == source)
    if keyword:
        where.append(DatasetQuery.content.icontains(keyword, autoescape=True))
    total = session.scalar(select(func.count()).select_from(DatasetQuery).where(*where)) or 0
    rows = session.scalars(
        select(DatasetQuery)
        .where(*where)
        .order_by(DatasetQuery.created_at.desc(), DatasetQuery.id)
        .offset((page - 1) * limit)
        .limit(limit)
    ).all()
    return rows, total


def get_query(session: Session, workspace_id: uuid.UUID, query_id: uuid.UUID) -> DatasetQuery:
    """Raises: NotFound: it is not in this workspace's history."""
    row = session.get(DatasetQuery, query_id)
    dataset = session.get(Dataset, row.dataset_id) if row is not None else None
    if row is None or dataset is None or dataset.workspace_id != workspace_id:
        raise NotFound("query", query_id)
    return row


def of_same_call(session: Session, row: DatasetQuery) -> Sequence[DatasetQuery]:
    """All rows of the call that left this one, with itself."""
    if row.call_id is None:
        return [row]
    return session.scalars(
        select(DatasetQuery)
        .where(
            DatasetQuery.created_at == row.created_at,  # has an index
            DatasetQuery.call_id == row.call_id,
        )
        .order_by(DatasetQuery.id)
    ).all()


def hits_of(rows: Sequence[DatasetQuery]) -> list[Found]:
    """What a call returned, best first."""
    hits = (hit for row in rows for hit in row.hits or ())
    found = [Found(uuid.UUID(id), float(score), rank) for id, score, rank in hits]
    return sorted(found, key=lambda hit: hit.rank)


def foreign_in(rows: Sequence[DatasetQuery]) -> set[uuid.UUID]:
    """Those of a call's hits that other services gave."""
    of_others = [row for row in rows if row.settings is not None and "external" in row.settings]
    return {hit.segment_id for hit in hits_of(of_others)}


# --- what differs --------------------------------------------------------------------------------


class Reason(StrEnum):
    """Why a segment is somewhere else in the answer than it was."""

    DELETED = "deleted"
    REPLACED = "replaced"
    """Its document has a newer version that does not hold it."""
    DISABLED = "disabled"
    """It, or its document."""
    ARCHIVED = "archived"
    ADDED = "added"
    EDITED = "edited"
    """Written again since: another text, other metadata, or moved by its document's new version."""
    OTHERS = "others"
    """It is as it was; what changed are the texts around it, or how scores are made."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a segment stands in an answer; `rank` from 1."""

    rank: int
    score: float


@dataclass(frozen=True, slots=True)
class Difference:
    """A segment that is in one answer only, or elsewhere, or has another score."""

    segment_id: uuid.UUID
    before: Place | None
    now: Place | None
    reason: Reason


def differences(
    before: Sequence[Found],
    now: Sequence[Found],
    asked_at: datetime,
    resources: Resources,
    *,
    foreign: Collection[uuid.UUID] = (),
) -> list[Difference]:
    """What differs between an answer of then and one of now, in the order of then.

    Args:
        foreign: those that another service gave; why they differ is not known here.
    """
    old, new = _places(before), _places(now)
    moved = [id for id in {**old, **new} if not _same(old.get(id), new.get(id))]
    reasons = _reasons(moved, asked_at, resources, {*foreign, *new})
    return [Difference(id, old.get(id), new.get(id), reasons[id]) for id in moved]


def _places(hits: Sequence[Found]) -> dict[uuid.UUID, Place]:
    return {hit.segment_id: Place(hit.rank, hit.score) for hit in hits}


def _same(before: Place | None, now: Place | None) -> bool:
    if before is None or now is None:
        return before is now
    return before.rank == now.rank and abs(before.score - now.score) <= SAME


def _reasons(
    ids: Sequence[uuid.UUID],
    asked_at: datetime,
    resources: Resources,
    elsewhere: Collection[uuid.UUID],
) -> Mapping[uuid.UUID, Reason]:
    with reading(resources.sessions) as session:
        rows = {
            segment.id: _reason(segment, document, asked_at)
            for segment, document in session.execute(
                select(Segment, Document)
                .join(Document, Document.id == Segment.document_id)
                .where(Segment.id.in_(ids))
            )
        }
    return {id: rows.get(id, Reason.OTHERS if id in elsewhere else Reason.DELETED) for id in ids}


def _reason(segment: Segment, document: Document, asked_at: datetime) -> Reason:
    if document.archived:
        return Reason.ARCHIVED
    if not (document.enabled and segment.enabled):
        return Reason.DISABLED
    if not segment.live:
        return Reason.REPLACED
    if segment.created_at > asked_at:
        return Reason.ADDED
    return Reason.EDITED if segment.updated_at > asked_at else Reason.OTHERS
