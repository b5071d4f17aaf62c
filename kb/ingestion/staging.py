"""Rows of a version in preparation: made from chunks, staged beside the live ones, switched to."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import delete, func, insert, or_, select, update
from sqlalchemy.orm import Session

from kb.db import moment, now
from kb.ingestion.claims import Claim
from kb.ingestion.embedding_cache import text_hash
from kb.models import ChildChunk, Segment, SegmentStatus
from kb.retrieval.analysis import analyse
from pipelines.types import ChildChunk as Child
from pipelines.types import Chunk, Origin

Table = type[Segment] | type[ChildChunk]
Row = dict[str, Any]

_ROWS = 500  # rows per INSERT and ids per IN
_APPLIED_AT_SWITCH: dict[Table, tuple[str, ...]] = {
    Segment: ("position", "start_offset", "end_offset", "origin", "has_children"),
    ChildChunk: ("position", "start_offset", "end_offset"),
}


@dataclass(frozen=True)
class Rows:
    """What a version's chunks become."""

    segments: list[Row]
    children: list[Row]

    def average_length(self) -> float:
        """Terms per text that goes into the index; at least 1."""
        counts: list[int] = [row["term_count"] for row in self.children or self.segments]
        return max(1.0, sum(counts) / max(1, len(counts)))


PlaceIds = Callable[[Sequence[str]], Sequence[uuid.UUID]]
"""Identities of a document's chunks, in order -> their ids."""


def rows_of(
    chunks: Sequence[Chunk],
    claim: Claim,
    actor: uuid.UUID,
    count_tokens: Callable[[Sequence[str]], list[int]] | None,
    place_ids: PlaceIds,
) -> Rows:
    """One row per chunk and per child chunk, with ids that the same texts get again.

    Args:
        actor: who is named as the rows' creator.
        count_tokens: of the embedding model; None leaves the counts at 0.
        place_ids: gives the segments' ids.
    """
    segments: list[Row] = []
    children: list[Row] = []
    ids = place_ids([identity_of(chunk.text, chunk.answer) for chunk in chunks])
    for chunk, segment_id in zip(chunks, ids, strict=True):
        segments.append(_segment_row(segment_id, chunk, claim, actor))
        seen_children: Counter[str] = Counter()
        for position, child in enumerate(chunk.children, start=1):
            child_id = stable_id(segment_id, text_hash(child.text), seen_children)
            children.append(child_row(child_id, segment_id, position, child, claim, actor))
    if count_tokens is not None:
        counts = count_tokens([row["content"] for row in segments])
        for row, tokens in zip(segments, counts, strict=True):
            row["tokens"] = tokens
    return Rows(segments, children)


def identity_of(text: str, answer: str | None) -> str:
    """What tells a chunk from the others of its document: the hash of all its text."""
    return text_hash(text if answer is None else f"{text}\0{answer}")


def counted(text: str, answer: str | None = None) -> Row:
    """The columns that a text tells."""
    return {
        "text_hash": text_hash(text),
        "word_count": len(text) + len(answer or ""),
        "term_count": len(analyse(text)),
    }


def stable_id(parent: uuid.UUID, identity: str, seen: Counter[str]) -> uuid.UUID:
    """The id of the n-th chunk with this text under `parent`.

    The same text gets the same id in every version and every run, which makes writes repeatable
    and lets unchanged chunks keep their vectors, hit counts and edits.
    """
    seen[identity] += 1
    return uuid.uuid5(parent, f"{identity}:{seen[identity]}")


def _common(claim: Claim, actor: uuid.UUID) -> Row:
    at = now()
    return {
        "dataset_id": claim.dataset_id,
        "document_id": claim.document_id,
        "live": False,
        "staged_version": claim.version,
        "created_by": actor,
        "created_at": at,
        "updated_at": at,
    }


def _segment_row(segment_id: uuid.UUID, chunk: Chunk, claim: Claim, actor: uuid.UUID) -> Row:
    return _common(claim, actor) | {
        "id": segment_id,
        "position": chunk.position,
        "content": chunk.text,
        "answer": chunk.answer,
        **counted(chunk.text, chunk.answer),
        "tokens": 0,
        "start_offset": chunk.start,
        "end_offset": chunk.end,
        "origin": _origin_json(chunk.origin),
        "has_children": bool(chunk.children),
        "status": SegmentStatus.WAITING,
        "enabled": True,
        "hit_count": 0,
        "indexing_at": now(),
    }


def child_row(
    child_id: uuid.UUID,
    segment_id: uuid.UUID,
    position: int,
    child: Child,
    claim: Claim,
    actor: uuid.UUID,
) -> Row:
    """A child chunk of a version in preparation."""
    return _common(claim, actor) | {
        "id": child_id,
        "segment_id": segment_id,
        "position": position,
        "content": child.text,
        **counted(child.text),
        "start_offset": child.start,
        "end_offset": child.end,
        "type": "automatic",
    }


def _origin_json(origin: Origin) -> dict[str, Any] | None:
    known = {k: v for k, v in asdict(origin).items() if v not in (None, ())}
    return known or None


def drop_other_stagings(
    session: Session, document_id: uuid.UUID, version: int | None
) -> list[uuid.UUID]:
    """Remove what versions left behind that were overtaken before they went live; the ids.

    Args:
        version: the one that is in preparation now; None: there is none.
    """
    removed: list[uuid.UUID] = []
    for table in (ChildChunk, Segment):
        mine = table.document_id == document_id
        session.execute(
            update(table)
            .where(mine, table.live, table.staged_version.is_not(None))
            .values(staged_version=None, staged=None)
        )
        stale = [mine, table.live.is_(False)]
        if version is not None:
            stale.append(table.staged_version != version)
        ids = session.scalars(select(table.id).where(*stale)).all()
        if ids:
            removed += ids
            session.execute(delete(table).where(*stale))
    return removed


def upsert_staged(session: Session, table: Table, rows: list[Row], version: int) -> None:
    """Insert new rows; mark live ones with the same text as part of `version`."""
    for at in range(0, len(rows), _ROWS):
        part = rows[at : at + _ROWS]
        ids = [row["id"] for row in part]
        known: set[uuid.UUID] = set()
        if version > 1:
            known.update(session.scalars(select(table.id).where(table.id.in_(ids))))
        fresh = [r for r in part if r["id"] not in known]
        if fresh:
            session.execute(insert(table), fresh)
        # A live row answers as it is until the switch; its new place waits beside it.
        kept = [
            {
                "id": row["id"],
                "staged_version": version,
                "staged": {name: row[name] for name in _APPLIED_AT_SWITCH[table]},
            }
            for row in part
            if row["id"] in known
        ]
        if kept:
            session.execute(update(table), kept)


def switch_rows(session: Session, table: Table, claim: Claim) -> list[uuid.UUID]:
    """Make the staged rows the live ones; the ids of those that are no part of the version."""
    mine = table.document_id == claim.document_id
    removed: list[uuid.UUID] = []
    if claim.version > 1:
        out = (mine, or_(table.staged_version.is_(None), table.staged_version != claim.version))
        removed += session.scalars(select(table.id).where(*out))
        if removed:
            session.execute(delete(table).where(*out))
        kept = session.execute(
            select(table.id, table.staged).where(mine, table.staged.is_not(None))
        ).all()
        if kept:
            session.execute(update(table), [{"id": row[0], **(row[1] or {})} for row in kept])
    values: Row = {"live": True, "staged_version": None, "staged": None}
    if table is Segment:
        values |= {
            "status": SegmentStatus.COMPLETED,
            # A parent has no point of its own; its children were indexed by now.
            "indexed_at": func.coalesce(Segment.indexed_at, moment()),
        }
    session.execute(
        update(table).where(mine).values(**values).execution_options(synchronize_session=False)
    )
    return removed
