"""The texts of SQL, ascending by id over all datasets, and what the index should hold for each."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from sqlalchemy import and_, false, func, literal, or_, select
from sqlalchemy.orm import Session

from kb.db import Sessions, reading
from kb.ingestion.embedding_cache import text_hash
from kb.metadata.facts import facts_of
from kb.models import ChildChunk, Dataset, Document, Segment
from kb.ports import NO_FACTS, Facts, Space
from kb.resources import space_of
from kb.retrieval.analysis import analyse

PAGE = 500
"""Rows of each table that are held at once, and ids per IN."""


@dataclass(frozen=True)
class Text:
    """A segment's or child chunk's text.

    Attributes:
        newest: the highest version of its document that may have written its point.
        leaf: it has a point of its own; a parent has none.
        expected: its point was acknowledged.
        text, extra_chars, word_count, term_count: only when texts were asked for; `extra_chars`
            are those of an answer, which count as words but are not indexed.
        facts: what its point can be filtered by, as its document's metadata is.
    """

    id: uuid.UUID
    dataset_id: uuid.UUID
    document_id: uuid.UUID
    segment_id: uuid.UUID
    newest: int
    text_hash: str
    leaf: bool
    expected: bool
    of_segment: bool
    text: str | None = None
    extra_chars: int = 0
    word_count: int = 0
    term_count: int = 0
    facts: Facts = NO_FACTS

    @cached_property
    def terms(self) -> list[str]:
        """The analysed text."""
        return analyse(self.text or "")

    @cached_property
    def true_hash(self) -> str:
        """Of the text; of what the row says when the text was not read."""
        return self.text_hash if self.text is None else text_hash(self.text)

    def mistakes(self) -> list[str]:
        """The row's columns that its text contradicts."""
        if self.text is None:
            return []
        true = {
            "text_hash": (self.text_hash, self.true_hash),
            "word_count": (self.word_count, len(self.text) + self.extra_chars),
            "term_count": (self.term_count, len(self.terms)),
        }
        return [name for name, (stored, right) in true.items() if stored != right]


@dataclass(frozen=True)
class Home:
    """Where a dataset's points live, and the average length that their weights assume."""

    space: Space | None
    average_length: float | None


def pages(
    sessions: Sessions, *, deep: bool
) -> Iterator[tuple[list[Text], dict[uuid.UUID, Home], uuid.UUID | None]]:
    """All texts, ascending by id, page by page; each page is as the database is at that moment.

    Yields:
        The texts, the homes of their datasets, and the id up to which the page covers all ids
        (None: to the end).
    """
    after = uuid.UUID(int=0)
    while True:
        with reading(sessions) as session:
            tables = [
                session.execute(
                    _columns(table, deep=deep)
                    .where(table.id > after)
                    .order_by(table.id)
                    .limit(PAGE)
                ).all()
                for table in (Segment, ChildChunk)
            ]
            upto = min((rows[-1][0] for rows in tables if len(rows) == PAGE), default=None)
            found = _with_facts(session, [Text(*row) for rows in tables for row in rows])
            page = sorted(
                (text for text in found if upto is None or text.id <= upto), key=lambda t: t.id
            )
            places = homes(session, {text.dataset_id for text in page})
        yield page, places, upto
        if upto is None:
            return
        after = upto


def find_texts(session: Session, ids: Sequence[uuid.UUID], *, deep: bool) -> dict[uuid.UUID, Text]:
    """Those of these texts that there are; at most `PAGE` ids."""
    found = [
        Text(*row)
        for table in (Segment, ChildChunk)
        for row in session.execute(_columns(table, deep=deep).where(table.id.in_(ids)))
    ]
    return {text.id: text for text in _with_facts(session, found)}


def _with_facts(session: Session, texts: Sequence[Text]) -> list[Text]:
    facts = facts_of(session, {text.document_id for text in texts})
    return [replace(text, facts=facts.get(text.document_id, NO_FACTS)) for text in texts]


def homes(session: Session, dataset_ids: set[uuid.UUID]) -> dict[uuid.UUID, Home]:
    """Where these datasets' points live."""
    rows = session.scalars(select(Dataset).where(Dataset.id.in_(dataset_ids)))
    return {row.id: Home(space_of(row), row.average_length) for row in rows}


def _columns(table: Any, *, deep: bool) -> Any:
    # No joins: then the page is one step through the primary key, whatever the planner knows.
    segments = table is Segment
    newest = (
        select(func.coalesce(Document.pending_version, Document.version))
        .where(Document.id == table.document_id)
        .scalar_subquery()
    )
    leaf = table.has_children.is_(False) if segments else literal(True)
    acknowledged = or_(table.live, table.indexed_at.is_not(None))
    columns = [
        table.id,
        table.dataset_id,
        table.document_id,
        table.id if segments else table.segment_id,
        newest,
        table.text_hash,
        leaf,
        and_(leaf, acknowledged),
        literal(True) if segments else false(),
    ]
    if deep:
        extra = func.coalesce(func.length(table.answer), 0) if segments else literal(0)
        columns += [table.content, extra, table.word_count, table.term_count]
    return select(*columns)
