"""Points made from rows: what the index should hold for a text, and writing it there."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from sqlalchemy import exists, func, or_, select
from sqlalchemy.orm import Session

from kb.db import Sessions, reading
from kb.metadata.facts import facts_of
from kb.metrics import INDEX_POINTS, INDEX_SECONDS
from kb.models import ChildChunk, Dataset, Document, Segment, SwitchPoint
from kb.ports import NO_FACTS, Facts, Point, SegmentIndex, Space
from kb.retrieval.analysis import analyse
from kb.retrieval.bm25 import terms_of_document
from kb.tracing import span
from pipelines.types import Vectors

Embed = Callable[[Sequence[str]], Vectors]

_ROWS = 500  # ids per IN


@dataclass(frozen=True)
class Leaf:
    """A text that belongs into the index: a segment's, or a child chunk's in its place.

    `version` is the one in preparation that will hold it, or else the one that answers: it is
    higher than the bound of every delete that was written down for this id before. `facts` are
    those of its document. Whoever writes a leaf looks afterwards whether it still is as it was:
    a change of metadata before that look is seen here, a later one finds the point.
    """

    id: uuid.UUID
    segment_id: uuid.UUID
    document_id: uuid.UUID
    version: int
    text: str
    text_hash: str
    facts: Facts = NO_FACTS


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
            facts=leaf.facts,
        )
        for i, leaf in enumerate(leaves)
    ]
    with INDEX_SECONDS.time(), span("index batch", points=len(points)):
        index.upsert(space, points)
        index.flush(space)
    INDEX_POINTS.inc(len(points))


def restore(
    index: SegmentIndex,
    sessions: Sessions,
    space: Space,
    dataset_id: uuid.UUID,
    leaves: Sequence[Leaf],
    embed: Embed | None,
) -> int:
    """Write points while documents may change; returns how many texts were written.

    What was changed or removed in SQL between reading and writing is written again or taken
    back. What is removed after that look has its own delete, written down after this write.
    """
    written = 0
    with reading(sessions) as session:
        average = find_average(session, dataset_id)
    while leaves and average is not None:
        write_leaves(index, space, dataset_id, leaves, embed, average_length=average)
        written += len(leaves)
        with reading(sessions) as session:
            known = find_leaves(session, [leaf.id for leaf in leaves])
            average_now = find_average(session, dataset_id)
        remove(index, space, {leaf.id: leaf.version for leaf in leaves if leaf.id not in known})
        leaves = [
            known[leaf.id]
            for leaf in leaves
            if leaf.id in known and (known[leaf.id] != leaf or average_now != average)
        ]
        average = average_now
    return written


def remove(index: SegmentIndex, space: Space, versions: Mapping[uuid.UUID, int]) -> None:
    """Delete points that nothing stands for: id -> the version in which it was seen there."""
    ordered = sorted(versions, key=lambda i: versions[i])
    for version, ids in groupby(ordered, key=lambda i: versions[i]):
        index.delete(space, list(ids), up_to_version=version)


def find_average(session: Session, dataset_id: uuid.UUID) -> float | None:
    """Terms per text that the dataset's BM25 weights assume; None: no documents, or it is gone."""
    return session.scalar(select(Dataset.average_length).where(Dataset.id == dataset_id))


def find_facts(session: Session, document_id: uuid.UUID) -> Facts:
    """What the points of a document can be filtered by, at this moment."""
    return facts_of(session, [document_id]).get(document_id, NO_FACTS)


def find_leaves(session: Session, ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, Leaf]:
    """Those of these texts that are there at this moment, acknowledged by the index or not."""
    rows = [
        row
        for part in _parts(ids)
        for statement, key in (_segments(), _children())
        for row in session.execute(statement.where(key.in_(part)))
    ]
    return {leaf.id: leaf for leaf in _leaves(session, rows)}


def _leaves(session: Session, rows: Sequence[Any]) -> list[Leaf]:
    """Rows of `_segments` or `_children`, with their documents' facts."""
    facts = facts_of(session, {row[2] for row in rows})
    return [Leaf(*(*row, facts.get(row[2], NO_FACTS))) for row in rows]


def unknown_ids(session: Session, ids: Sequence[uuid.UUID]) -> set[uuid.UUID]:
    """Those of these ids that no text has, at this moment."""
    unknown = set(ids)
    for part in _parts(ids):
        for table in (Segment, ChildChunk):
            unknown -= set(session.scalars(select(table.id).where(table.id.in_(part))))
    return unknown


def indexed_leaves(
    sessions: Sessions,
    *,
    dataset_id: uuid.UUID,
    ids: Sequence[uuid.UUID] | None = None,
    batch: int = 500,
) -> Iterator[list[Leaf]]:
    """Every text of a dataset that the index has acknowledged, in batches, ascending by id.

    Each batch is as the database is when it is asked for.

    Args:
        ids: only these.
    """
    for statement, key in (_segments(), _children()):
        table = key.class_
        wanted = statement.where(table.dataset_id == dataset_id, _acknowledged(table))
        if ids is not None:
            wanted = wanted.where(key.in_(ids))
        after: uuid.UUID | None = None
        while True:
            page = wanted if after is None else wanted.where(key > after)
            with reading(sessions) as session:
                leaves = _leaves(session, session.execute(page.order_by(key).limit(batch)).all())
            if not leaves:
                break
            yield leaves
            after = leaves[-1].id


def missing_leaves(
    session: Session,
    switch_id: uuid.UUID,
    dataset_id: uuid.UUID,
    *,
    after: uuid.UUID | None = None,
    limit: int,
) -> list[Leaf]:
    """The next acknowledged texts that a switch has not copied as they are now, ascending by id."""
    found: list[Leaf] = []
    for statement, key in (_segments(), _children()):
        table = key.class_
        copied = exists().where(
            SwitchPoint.switch_id == switch_id,
            SwitchPoint.point_id == key,
            SwitchPoint.version == func.coalesce(table.staged_version, Document.version),
            SwitchPoint.text_hash == table.text_hash,
        )
        wanted = statement.where(table.dataset_id == dataset_id, _acknowledged(table), ~copied)
        if after is not None:
            wanted = wanted.where(key > after)
        found += _leaves(session, session.execute(wanted.order_by(key).limit(limit)).all())
    return sorted(found, key=lambda leaf: leaf.id)[:limit]


def _segments() -> tuple[Any, Any]:
    statement = (
        select(
            Segment.id,
            Segment.id,
            Segment.document_id,
            func.coalesce(Segment.staged_version, Document.version),
            Segment.content,
            Segment.text_hash,
        )
        .join(Document, Document.id == Segment.document_id)
        .where(Segment.has_children.is_(False))
    )
    return statement, Segment.id


def _children() -> tuple[Any, Any]:
    statement = select(
        ChildChunk.id,
        ChildChunk.segment_id,
        ChildChunk.document_id,
        func.coalesce(ChildChunk.staged_version, Document.version),
        ChildChunk.content,
        ChildChunk.text_hash,
    ).join(Document, Document.id == ChildChunk.document_id)
    return statement, ChildChunk.id


def _acknowledged(table: type[Segment] | type[ChildChunk]) -> Any:
    return or_(table.live, table.indexed_at.is_not(None))


def _parts(ids: Sequence[uuid.UUID]) -> Iterable[Sequence[uuid.UUID]]:
    for at in range(0, len(ids), _ROWS):
        yield ids[at : at + _ROWS]
