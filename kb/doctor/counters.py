"""Counts, flags, positions and hashes that rows keep: found by recomputing them, healed so too.

Checked are those that something else in SQL tells: not a segment's token count (only its model's
tokenizer knows) and not hit counts (no record tells who was hit), of which one below 0 is broken.
"""

from __future__ import annotations

import math
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import and_, exists, func, or_, select, update
from sqlalchemy.orm import Session

from kb.db import Sessions, moment, reading, transaction
from kb.doctor.due import due_work
from kb.doctor.report import Kind, Report
from kb.doctor.texts import Text, find_texts
from kb.ingestion.claims import hold_dataset
from kb.maintenance import rebuild_dataset, true_average
from kb.models import ChildChunk, Dataset, Document, Segment, SegmentStatus
from kb.resources import Resources

_DOCUMENTS = 200  # looked at in one statement
FAR = 4.0
"""An average length is broken when the truth is this many times it, or 1/this. Jobs keep it within
1.5 at every doubling of a dataset; what drifts in between is theirs."""


def examine_counters(resources: Resources, report: Report) -> None:
    """Recompute what rows keep; with `report.repaired`, write it down right."""
    for documents in _pages(resources.sessions, Document):
        with reading(resources.sessions) as session:
            broken = _broken_documents(session, documents)
        for document_id, (name, mistakes) in broken.items():
            report.add(Kind.COUNTERS, f"{document_id} (document {name!r}: {', '.join(mistakes)})")
            if report.repaired:
                _recount(resources.sessions, document_id)
    for datasets in _pages(resources.sessions, Dataset):
        for dataset_id in datasets:
            _examine_dataset(resources, dataset_id, report)


def repair_texts(sessions: Sessions, texts: Sequence[Text]) -> None:
    """Write hashes and counts that these rows' texts, as they are now, tell."""
    datasets: dict[uuid.UUID, list[uuid.UUID]] = defaultdict(list)
    for text in texts:
        datasets[text.dataset_id].append(text.id)
    for dataset_id, ids in datasets.items():
        with transaction(sessions) as session:
            hold_dataset(session, dataset_id, to_change=True)
            for text in find_texts(session, ids, deep=True).values():
                table = Segment if text.of_segment else ChildChunk
                _set(
                    session,
                    table,
                    text.id,
                    text_hash=text.true_hash,
                    word_count=len(text.text or "") + text.extra_chars,
                    term_count=len(text.terms),
                )


def _pages(sessions: Sessions, table: Any) -> Iterator[Sequence[uuid.UUID]]:
    """The ids of a table, ascending."""
    after = uuid.UUID(int=0)
    while True:
        with reading(sessions) as session:
            ids = session.scalars(
                select(table.id).where(table.id > after).order_by(table.id).limit(_DOCUMENTS)
            ).all()
        if not ids:
            return
        yield ids
        after = ids[-1]


# -- documents


@dataclass
class _Sums:
    words: int = 0
    tokens: int = 0
    mistakes: list[str] = field(default_factory=list)


def _broken_documents(
    session: Session, ids: Sequence[uuid.UUID]
) -> dict[uuid.UUID, tuple[str, list[str]]]:
    """Those of these documents with a mistake in their row or in their segments' rows."""
    sums: dict[uuid.UUID, _Sums] = defaultdict(_Sums)
    live = and_(Segment.document_id.in_(ids), Segment.live)
    for row in session.execute(
        select(Segment.document_id, func.sum(Segment.word_count), func.sum(Segment.tokens))
        .where(live)
        .group_by(Segment.document_id)
    ):
        sums[row[0]] = _Sums(row[1] or 0, row[2] or 0)
    for what, statement in _mistakes(ids).items():
        for document_id in session.scalars(statement):
            sums[document_id].mistakes.append(what)
    broken: dict[uuid.UUID, tuple[str, list[str]]] = {}
    for document in session.scalars(select(Document).where(Document.id.in_(ids))):
        known = sums[document.id]
        if document.version and document.word_count != known.words:
            known.mistakes.append(f"word_count {document.word_count}, should be {known.words}")
        if document.version and document.tokens != known.tokens:
            known.mistakes.append(f"tokens {document.tokens}, should be {known.tokens}")
        if known.mistakes:
            broken[document.id] = document.name, known.mistakes
    return broken


def _mistakes(ids: Sequence[uuid.UUID]) -> dict[str, Any]:
    """What can be wrong in a document's rows -> a statement for the ids of those where it is."""
    live = and_(Segment.document_id.in_(ids), Segment.live)
    has_children = exists().where(ChildChunk.segment_id == Segment.id)
    segments = select(Segment.document_id).distinct()
    return {
        "segments' status": segments.where(
            live,
            or_(Segment.status != SegmentStatus.COMPLETED, Segment.indexed_at.is_(None)),
        ),
        "has_children": segments.where(
            Segment.document_id.in_(ids), Segment.has_children.is_distinct_from(has_children)
        ),
        "hit_count below 0": segments.where(Segment.document_id.in_(ids), Segment.hit_count < 0),
        "segments' positions": segments.where(
            live,
            or_(
                Segment.position < 1,
                Segment.id.in_(_repeated(Segment, Segment.document_id, ids)),
            ),
        ),
        "child chunks' positions": select(ChildChunk.document_id)
        .distinct()
        .where(
            ChildChunk.document_id.in_(ids),
            ChildChunk.live,
            or_(
                ChildChunk.position < 1,
                ChildChunk.id.in_(_repeated(ChildChunk, ChildChunk.segment_id, ids)),
            ),
        ),
    }


def _repeated(table: Any, parent: Any, ids: Sequence[uuid.UUID]) -> Any:
    """Live rows that do not come first at their position."""
    turn = func.row_number().over(
        partition_by=(parent, table.position), order_by=(table.start_offset, table.id)
    )
    numbered = (
        select(table.id, turn.label("turn")).where(table.document_id.in_(ids), table.live)
    ).subquery()
    return select(numbered.c.id).where(numbered.c.turn > 1)


def _recount(sessions: Sessions, document_id: uuid.UUID) -> None:
    """Write down what a document's rows should say; nobody changes it meanwhile."""
    with transaction(sessions) as session:
        dataset_id = session.scalar(select(Document.dataset_id).where(Document.id == document_id))
        if dataset_id is None:
            return
        hold_dataset(session, dataset_id, to_change=True)
        live = and_(Segment.document_id == document_id, Segment.live)
        session.execute(
            update(Segment)
            .where(live)
            .values(
                status=SegmentStatus.COMPLETED,
                indexed_at=func.coalesce(Segment.indexed_at, moment()),
            )
        )
        children = exists().where(ChildChunk.segment_id == Segment.id)
        session.execute(
            update(Segment)
            .where(
                Segment.document_id == document_id,
                Segment.has_children.is_distinct_from(children),
            )
            .values(has_children=children)
            .execution_options(synchronize_session=False)
        )
        session.execute(
            update(Segment)
            .where(Segment.document_id == document_id, Segment.hit_count < 0)
            .values(hit_count=0)
        )
        _number(session, Segment, lambda row: row.document_id, live)
        _number(
            session,
            ChildChunk,
            lambda row: row.segment_id,
            and_(ChildChunk.document_id == document_id, ChildChunk.live),
        )
        words, tokens = session.execute(
            select(func.sum(Segment.word_count), func.sum(Segment.tokens)).where(live)
        ).one()
        session.execute(
            update(Document)
            .where(Document.id == document_id, Document.version > 0)
            .values(word_count=words or 0, tokens=tokens or 0)
        )


def _number(session: Session, table: Any, parent: Callable[[Any], uuid.UUID], where: Any) -> None:
    """Give rows positions from 1 on where one repeats or is below 1; in the text's order."""
    rows = session.scalars(
        select(table).where(where).order_by(table.start_offset, table.position, table.id)
    )
    groups: dict[uuid.UUID, list[Any]] = defaultdict(list)
    for row in rows:
        groups[parent(row)].append(row)
    for group in groups.values():
        positions = [row.position for row in group]
        if len(set(positions)) == len(positions) and min(positions) >= 1:
            continue
        for position, row in enumerate(group, start=1):
            row.position = position
    session.flush()


def _set(session: Session, table: Any, row_id: uuid.UUID, **values: Any) -> None:
    session.execute(
        update(table)
        .where(table.id == row_id)
        .values(**values)
        .execution_options(synchronize_session=False)
    )


# -- datasets


def _examine_dataset(resources: Resources, dataset_id: uuid.UUID, report: Report) -> None:
    """The average length, which is rebuilt with all weights, and the documents' positions."""
    with reading(resources.sessions) as session:
        dataset = session.get(Dataset, dataset_id)
        if dataset is None:
            return
        assumed, true = dataset.average_length, true_average(resources, dataset_id)
        weighed = due_work(session).weighs(dataset_id)
        repeated = session.scalars(_repeated_documents(dataset_id)).all()
    if not weighed and true is not None and _is_far(assumed, true):
        said = f"{dataset_id} (dataset {dataset.name!r}: average_length {assumed}, is {true:.4g})"
        report.add(Kind.COUNTERS, said)
        if report.repaired:
            rebuild_dataset(resources, dataset_id)
    for document_id in repeated:
        report.add(Kind.COUNTERS, f"{document_id} (document: position)")
    if report.repaired and repeated:
        _move_to_the_end(resources.sessions, dataset_id)


def _is_far(assumed: float | None, true: float) -> bool:
    if assumed is None or not math.isfinite(assumed) or assumed <= 0:
        return True
    return not 1 / FAR <= true / assumed <= FAR


def _repeated_documents(dataset_id: uuid.UUID) -> Any:
    """Documents whose position is below 1 or that of an older one."""
    turn = func.row_number().over(
        partition_by=Document.position, order_by=(Document.created_at, Document.id)
    )
    numbered = (
        select(Document.id, Document.position, turn.label("turn")).where(
            Document.dataset_id == dataset_id
        )
    ).subquery()
    return (
        select(numbered.c.id)
        .where(or_(numbered.c.turn > 1, numbered.c.position < 1))
        .order_by(numbered.c.position, numbered.c.id)
    )


def _move_to_the_end(sessions: Sessions, dataset_id: uuid.UUID) -> None:
    with transaction(sessions) as session:
        hold_dataset(session, dataset_id, to_change=True)
        last = session.scalar(
            select(func.max(Document.position)).where(Document.dataset_id == dataset_id)
        )
        offenders = session.scalars(_repeated_documents(dataset_id)).all()
        for place, document_id in enumerate(offenders, start=max(last or 0, 0) + 1):
            _set(session, Document, document_id, position=place)
