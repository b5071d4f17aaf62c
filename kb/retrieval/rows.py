"""What SQL says of points: which are live, and the rows behind those that are returned."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any
from uuid import UUID

from sqlalchemy import BindParameter, Connection, Executable, Select, bindparam, select
from sqlalchemy.orm import Session

from kb.metadata.facts import maps_of
from kb.models import ChildChunk, Document, Segment
from kb.ports import Scored
from kb.retrieval.types import HitDocument

_IDS = 500  # per statement


def _answering(statement: Any) -> Select[Any]:
    answering: Select[Any] = statement.join(Document, Document.id == Segment.document_id).where(
        Segment.live, Segment.enabled, Document.enabled, Document.archived.is_(False)
    )
    return answering


# Built once: SQLAlchemy takes longer to build an IN of a hundred values than SQLite to answer it.
_GIVEN: BindParameter[Any] = bindparam("ids", expanding=True)
_LIVE_SEGMENTS = _answering(
    select(Segment.id, Segment.document_id, Segment.text_hash).where(
        Segment.id.in_(_GIVEN), Segment.has_children.is_(False)
    )
)
_LIVE_CHILDREN = _answering(
    select(ChildChunk.id, ChildChunk.document_id, ChildChunk.text_hash)
    .join(Segment, Segment.id == ChildChunk.segment_id)
    .where(ChildChunk.id.in_(_GIVEN), ChildChunk.live)
)
_ANY_ROW = select(Segment.id).limit(1)
_SEGMENTS = (
    select(Segment, Document.id, Document.name, Document.data_source_type, Document.doc_metadata)
    .join(Document, Document.id == Segment.document_id)
    .where(Segment.id.in_(_GIVEN))
)
_CHILDREN = select(ChildChunk.id, ChildChunk.content, ChildChunk.position).where(
    ChildChunk.id.in_(_GIVEN)
)


def hold_snapshot(session: Session) -> None:
    """Fix what this session sees, before the index is asked.

    A document that is replaced between the search and the look at its rows would otherwise be
    found in neither version. The index keeps replaced points for a while, for such queries.
    """
    session.execute(_ANY_ROW)  # SQLite's snapshot begins with the first table that is read


def live_points(session: Session, points: Iterable[Scored]) -> dict[UUID, UUID]:
    """Which of these points stand for text that answers queries now: point id -> document id.

    A point that was made of another text than its row has is as good as deleted: the row was
    edited, and its point is being written.

    Per 500, one statement for the points of segments and one for those of child chunks.
    """
    of_segments: set[UUID] = set()
    of_children: set[UUID] = set()
    hashes: dict[UUID, str] = {}
    for point in points:
        (of_segments if point.id == point.segment_id else of_children).add(point.id)
        hashes[point.id] = point.text_hash
    connection = session.connection()  # ids need no objects, which take the session as long again
    rows = chain(
        _rows(connection, _LIVE_SEGMENTS, of_segments),
        _rows(connection, _LIVE_CHILDREN, of_children),
    )
    return {id: document for id, document, text_hash in rows if hashes[id] == text_hash}


@dataclass(frozen=True, slots=True)
class Rows:
    """What hits are made of, by id; what went away meanwhile is missing."""

    segments: dict[UUID, tuple[Segment, HitDocument]]
    children: dict[UUID, tuple[str, int]]
    """content, position"""


def load(session: Session, segment_ids: Sequence[UUID], child_ids: Sequence[UUID]) -> Rows:
    """Read the rows behind these ids: a statement for each kind, per 500, and some for metadata."""
    rows = list(_rows(session, _SEGMENTS, segment_ids))
    shown = maps_of(session, {row[1]: (row[1], row[0].dataset_id, row[4]) for row in rows}.values())
    return Rows(
        {row[0].id: (row[0], HitDocument(row[1], row[2], row[3], shown[row[1]])) for row in rows},
        {id: (content, position) for id, content, position in _rows(session, _CHILDREN, child_ids)},
    )


def _rows(door: Session | Connection, statement: Executable, ids: Iterable[UUID]) -> Iterator[Any]:
    ids = list(ids)
    for at in range(0, len(ids), _IDS):
        yield from door.execute(statement, {"ids": ids[at : at + _IDS]})
