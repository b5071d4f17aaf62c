"""Points made from rows: what the index should hold for a text, and writing it there."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from kb.models import ChildChunk, Document, Segment
from kb.ports import Point, SegmentIndex, Space
from kb.retrieval.analysis import analyse
from kb.retrieval.bm25 import terms_of_document
from pipelines.types import Vectors

Embed = Callable[[Sequence[str]], Vectors]


@dataclass(frozen=True)
class Leaf:
    """A text that belongs into the index: a segment's, or a child chunk's in its place."""

    id: uuid.UUID
    segment_id: uuid.UUID
    document_id: uuid.UUID
    version: int
    text: str
    text_hash: str


def write_leaves(
    index: SegmentIndex,
    space: Space,
    dataset_id: uuid.UUID,
    leaves: Sequence[Leaf],
    embed: Embed | None,
    *,
    average_length: float,
) -> None:
    """Embed and upsert; durable when it returns.

    Args:
        embed: texts -> float32[n, dim]; None in a space without dense vectors.
        average_length: the dataset's terms per text, for the BM25 weights.
    """
    vectors = embed([leaf.text for leaf in leaves]) if embed else None
    points = [
        Point(
            id=leaf.id,
            dataset_id=dataset_id,
            document_id=leaf.document_id,
            segment_id=leaf.segment_id,
            version=leaf.version,
            text_hash=leaf.text_hash,
            dense=None if vectors is None else vectors[i],
            terms=terms_of_document(analyse(leaf.text), average_length=average_length),
        )
        for i, leaf in enumerate(leaves)
    ]
    index.upsert(space, points)
    index.flush(space)


def indexed_leaves(
    session: Session,
    *,
    dataset_id: uuid.UUID,
    ids: Sequence[uuid.UUID] | None = None,
    batch: int = 500,
) -> Iterator[list[Leaf]]:
    """Every text of a dataset that the index has acknowledged, in batches, ascending by id.

    Args:
        ids: only these.
    """
    for statement, key in (_segments(dataset_id), _children(dataset_id)):
        if ids is not None:
            statement = statement.where(key.in_(ids))
        after: uuid.UUID | None = None
        while True:
            page = statement if after is None else statement.where(key > after)
            rows = session.execute(page.order_by(key).limit(batch)).all()
            if not rows:
                break
            yield [Leaf(*row) for row in rows]
            after = rows[-1][0]


def _segments(dataset_id: uuid.UUID) -> tuple[Any, Any]:
    statement = (
        select(
            Segment.id,
            Segment.id,
            Segment.document_id,
            Document.version,
            Segment.content,
            Segment.text_hash,
        )
        .join(Document, Document.id == Segment.document_id)
        .where(Segment.dataset_id == dataset_id, Segment.has_children.is_(False))
        .where(_acknowledged(Segment))
    )
    return statement, Segment.id


def _children(dataset_id: uuid.UUID) -> tuple[Any, Any]:
    statement = (
        select(
            ChildChunk.id,
            ChildChunk.segment_id,
            ChildChunk.document_id,
            Document.version,
            ChildChunk.content,
            ChildChunk.text_hash,
        )
        .join(Document, Document.id == ChildChunk.document_id)
        .where(ChildChunk.dataset_id == dataset_id)
        .where(_acknowledged(ChildChunk))
    )
    return statement, ChildChunk.id


def _acknowledged(table: type[Segment] | type[ChildChunk]) -> Any:
    return or_(table.live, table.indexed_at.is_not(None))
