"""Where a pipeline's chunks become segments and points: stage, index in batches, switch."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import delete, func, insert, or_, select, update
from sqlalchemy.orm import Session

from kb.db import Sessions, now, reading, transaction
from kb.ingestion.claims import Claim, LeaseLost
from kb.ingestion.embedding_cache import text_hash
from kb.ingestion.points import Embed, Leaf, write_leaves
from kb.jobs import enqueue
from kb.models import (
    ChildChunk,
    Dataset,
    Document,
    DocumentVersion,
    IndexingStatus,
    JobKind,
    Segment,
    SegmentStatus,
)
from kb.ports import BlobStore, SegmentIndex, Space
from kb.retrieval.analysis import analyse
from pipelines.types import ChildChunk as Child
from pipelines.types import Chunk, Chunked, Origin

_ROWS = 500  # rows per INSERT and ids per IN


class DocumentSink:
    """ChunkSink of one claim on one document.

    `store` may be called again after any crash: segments are staged once per version, and only
    points that the index has not acknowledged are embedded and written.
    """

    def __init__(
        self,
        claim: Claim,
        *,
        sessions: Sessions,
        index: SegmentIndex,
        blobs: BlobStore,
        space: Space,
        actor: uuid.UUID,
        batch_segments: int,
        cancelled: Callable[[], bool],
        count_tokens: Callable[[Sequence[str]], list[int]] | None,
    ) -> None:
        self._claim = claim
        self._sessions = sessions
        self._index = index
        self._blobs = blobs
        self._space = space
        self._actor = actor
        self._batch = batch_segments
        self._cancelled = cancelled
        self._count_tokens = count_tokens
        self.stage_times: dict[str, Any] = {}
        """Document columns (times of the stages done) to write with the next checkpoint."""

    def store(self, chunked: Chunked, embed: Embed | None) -> tuple[int, int]:
        """See `pipelines.ports.ChunkSink`; (segments, points) of the staged version."""
        self.stage(chunked)
        self.index_pending(embed)
        return self._counts()

    # --- stage ---------------------------------------------------------------------------

    def stage(self, chunked: Chunked) -> None:
        """Write the version's segments in one transaction; a no-op when that was done before.

        A chunk whose text did not change has the id it had: its row, its point, its hit count
        stay. Rows that are live now keep answering as they are until the switch.
        """
        if self._is_staged():
            return
        key = f"texts/{self._claim.document_id}/{self._claim.version}"
        if chunked.source_text:
            self._blobs.put(key, chunked.source_text.encode("utf-8", "surrogatepass"))
        segments, children = self._rows(chunked.chunks)
        with transaction(self._sessions) as session:
            self._claim.update(
                session,
                indexing_status=IndexingStatus.INDEXING,
                attempts=0,  # progress: what crashes from here on is not this document's doing
                **self.stage_times,
            )
            self._drop_other_stagings(session)
            _upsert_staged(session, Segment, segments, self._claim.version)
            _upsert_staged(session, ChildChunk, children, self._claim.version)
            self._set_average_length(session, segments, children)
            session.execute(
                update(DocumentVersion)
                .where(
                    DocumentVersion.document_id == self._claim.document_id,
                    DocumentVersion.number == self._claim.version,
                )
                .values(
                    staged_at=now(),
                    text_key=key if chunked.source_text else None,
                    warnings=list(chunked.warnings),
                )
            )

    def _is_staged(self) -> bool:
        with reading(self._sessions) as session:
            return is_staged(session, self._claim)

    def _rows(self, chunks: Iterable[Chunk]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        segments: list[dict[str, Any]] = []
        children: list[dict[str, Any]] = []
        seen: Counter[str] = Counter()
        for chunk in chunks:
            identity = text_hash(
                chunk.text if chunk.answer is None else f"{chunk.text}\0{chunk.answer}"
            )
            segment_id = stable_id(self._claim.document_id, identity, seen)
            segments.append(self._segment_row(segment_id, chunk))
            seen_children: Counter[str] = Counter()
            for position, child in enumerate(chunk.children, start=1):
                digest = text_hash(child.text)
                child_id = stable_id(segment_id, digest, seen_children)
                children.append(self._child_row(child_id, segment_id, position, child, digest))
        if self._count_tokens is not None:
            counts = self._count_tokens([row["content"] for row in segments])
            for row, tokens in zip(segments, counts, strict=True):
                row["tokens"] = tokens
        return segments, children

    def _common(self) -> dict[str, Any]:
        at = now()
        return {
            "dataset_id": self._claim.dataset_id,
            "document_id": self._claim.document_id,
            "live": False,
            "staged_version": self._claim.version,
            "created_by": self._actor,
            "created_at": at,
            "updated_at": at,
        }

    def _segment_row(self, segment_id: uuid.UUID, chunk: Chunk) -> dict[str, Any]:
        return self._common() | {
            "id": segment_id,
            "position": chunk.position,
            "content": chunk.text,
            "answer": chunk.answer,
            "text_hash": text_hash(chunk.text),
            "word_count": len(chunk.text) + len(chunk.answer or ""),
            "term_count": len(analyse(chunk.text)),
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

    def _child_row(
        self, child_id: uuid.UUID, segment_id: uuid.UUID, position: int, child: Child, digest: str
    ) -> dict[str, Any]:
        return self._common() | {
            "id": child_id,
            "segment_id": segment_id,
            "position": position,
            "content": child.text,
            "text_hash": digest,
            "word_count": len(child.text),
            "term_count": len(analyse(child.text)),
            "start_offset": child.start,
            "end_offset": child.end,
            "type": "automatic",
        }

    def _drop_other_stagings(self, session: Session) -> None:
        """Remove what a version that was overtaken before it went live left behind."""
        removed: list[uuid.UUID] = []
        for table in (ChildChunk, Segment):
            mine = table.document_id == self._claim.document_id
            session.execute(
                update(table).where(mine, table.live).values(staged_version=None, staged=None)
            )
            stale = (mine, table.live.is_(False), table.staged_version != self._claim.version)
            removed += session.scalars(select(table.id).where(*stale))
            session.execute(delete(table).where(*stale))
        _delete_points(session, self._space, removed, self._claim.version - 1)

    def _set_average_length(
        self, session: Session, segments: list[dict[str, Any]], children: list[dict[str, Any]]
    ) -> None:
        """The first document fixes the dataset's average length until drift calls for a rebuild."""
        dataset = session.get_one(Dataset, self._claim.dataset_id)
        if dataset.average_length is None:
            counts = [row["term_count"] for row in children or segments]
            dataset.average_length = max(1.0, sum(counts) / max(1, len(counts)))

    # --- index ---------------------------------------------------------------------------

    def index_pending(self, embed: Embed | None) -> None:
        """Embed and write what the index has not acknowledged, batch by batch.

        Raises:
            LeaseLost: another worker has the document; points written last are taken back.
        """
        while batch := self._pending():
            if self._cancelled():
                raise LeaseLost("this worker was told to stop")
            write_leaves(
                self._index,
                self._space,
                self._claim.dataset_id,
                batch,
                embed,
                average_length=self._average_length(),
            )
            self._acknowledge([p.id for p in batch])

    def _average_length(self) -> float:
        with reading(self._sessions) as session:
            average = session.scalar(
                select(Dataset.average_length).where(Dataset.id == self._claim.dataset_id)
            )
        if average is None:
            raise LeaseLost("the dataset is gone")
        return average

    def _pending(self) -> list[Leaf]:
        with reading(self._sessions) as session:
            return staged_points(session, self._claim, limit=self._batch)

    def _acknowledge(self, ids: Sequence[uuid.UUID]) -> None:
        try:
            with transaction(self._sessions) as session:
                self._claim.update(session, attempts=0)
                at = now()
                for table in (Segment, ChildChunk):
                    session.execute(update(table).where(table.id.in_(ids)).values(indexed_at=at))
        except LeaseLost:
            self._take_back(ids)
            raise

    def _take_back(self, ids: Sequence[uuid.UUID]) -> None:
        """Delete points that nothing in SQL stands for (the document was deleted meanwhile)."""
        with reading(self._sessions) as session:
            kept = set(session.scalars(select(Segment.id).where(Segment.id.in_(ids))))
            kept |= set(session.scalars(select(ChildChunk.id).where(ChildChunk.id.in_(ids))))
        gone = [i for i in ids if i not in kept]
        self._index.delete(self._space, gone, up_to_version=self._claim.version)

    # --- switch --------------------------------------------------------------------------

    def switch(self) -> None:
        """Make the staged version the live one, in one transaction.

        Raises:
            LeaseLost: somebody else has the document now; nothing changed.
        """
        with transaction(self._sessions) as session:
            at = now()
            document = session.get_one(Document, self._claim.document_id)
            started = document.processing_started_at or at
            removed = _switch_rows(session, ChildChunk, self._claim)
            removed += _switch_rows(session, Segment, self._claim)
            session.execute(
                update(Segment)
                .where(Segment.document_id == self._claim.document_id)
                .where(Segment.status != SegmentStatus.COMPLETED)
                .values(
                    status=SegmentStatus.COMPLETED, indexed_at=func.coalesce(Segment.indexed_at, at)
                )
            )
            _delete_points(session, self._space, removed, self._claim.version - 1)
            words, tokens = session.execute(
                select(func.sum(Segment.word_count), func.sum(Segment.tokens)).where(
                    Segment.document_id == self._claim.document_id
                )
            ).one()
            self._claim.update(
                session,
                version=self._claim.version,
                pending_version=None,
                indexing_status=IndexingStatus.COMPLETED,
                word_count=words or 0,
                tokens=tokens or 0,
                completed_at=at,
                updated_at=at,
                indexing_latency=(at - started).total_seconds(),
                error=None,
                error_code=None,
                error_stage=None,
                attempts=0,
                next_attempt_at=None,
                lease_owner=None,
                lease_expires_at=None,
            )
            session.execute(
                update(DocumentVersion)
                .where(
                    DocumentVersion.document_id == self._claim.document_id,
                    DocumentVersion.number == self._claim.version,
                )
                .values(live_at=at)
            )
            self._watch_drift(session)

    def _watch_drift(self, session: Session) -> None:
        """Have the average length checked when the number of documents reaches a power of two.

        BM25 does as well with an average within a factor of two of the truth, and a mean over n
        documents moves by that much only while n doubles.
        """
        documents = session.scalar(
            select(func.count())
            .select_from(Document)
            .where(Document.dataset_id == self._claim.dataset_id, Document.version > 0)
        )
        if documents and documents & (documents - 1) == 0:
            enqueue(session, JobKind.CHECK_DRIFT, dataset_id=str(self._claim.dataset_id))

    def _counts(self) -> tuple[int, int]:
        with reading(self._sessions) as session:
            segments = session.scalar(
                select(func.count()).select_from(Segment).where(_in_version(Segment, self._claim))
            )
            points = session.scalar(
                select(func.count())
                .select_from(Segment)
                .where(_in_version(Segment, self._claim), Segment.has_children.is_(False))
            )
            children = session.scalar(
                select(func.count())
                .select_from(ChildChunk)
                .where(_in_version(ChildChunk, self._claim))
            )
        return segments or 0, (points or 0) + (children or 0)


def stable_id(parent: uuid.UUID, identity: str, seen: Counter[str]) -> uuid.UUID:
    """The id of the n-th chunk with this text under `parent`.

    The same text gets the same id in every version and every run, which makes writes repeatable
    and lets unchanged chunks keep their vectors, hit counts and edits.
    """
    seen[identity] += 1
    return uuid.uuid5(parent, f"{identity}:{seen[identity]}")


def is_staged(session: Session, claim: Claim) -> bool:
    """Whether the claimed version's segments are stored already."""
    return (
        session.scalar(
            select(DocumentVersion.staged_at).where(
                DocumentVersion.document_id == claim.document_id,
                DocumentVersion.number == claim.version,
            )
        )
        is not None
    )


def staged_points(session: Session, claim: Claim, *, limit: int) -> list[Leaf]:
    """The next texts of the staged version that the index has not acknowledged."""
    flat = session.execute(
        select(Segment.id, Segment.id, Segment.content, Segment.text_hash)
        .where(_in_version(Segment, claim), Segment.has_children.is_(False))
        .where(Segment.indexed_at.is_(None))
        .order_by(Segment.position)
        .limit(limit)
    ).all()
    children = (
        session.execute(
            select(ChildChunk.id, ChildChunk.segment_id, ChildChunk.content, ChildChunk.text_hash)
            .where(_in_version(ChildChunk, claim), ChildChunk.indexed_at.is_(None))
            .order_by(ChildChunk.segment_id, ChildChunk.position)
            .limit(limit - len(flat))
        ).all()
        if len(flat) < limit
        else []
    )
    return [
        Leaf(row[0], row[1], claim.document_id, claim.version, row[2], row[3])
        for row in [*flat, *children]
    ]


def _in_version(table: type[Segment] | type[ChildChunk], claim: Claim) -> Any:
    return (table.document_id == claim.document_id) & (table.staged_version == claim.version)


def _origin_json(origin: Origin) -> dict[str, Any] | None:
    known = {k: v for k, v in asdict(origin).items() if v not in (None, ())}
    return known or None


_APPLIED_AT_SWITCH = {
    Segment: ("position", "start_offset", "end_offset", "origin"),
    ChildChunk: ("position", "start_offset", "end_offset"),
}


def _upsert_staged(
    session: Session,
    table: type[Segment] | type[ChildChunk],
    rows: list[dict[str, Any]],
    version: int,
) -> None:
    """Insert new rows; mark rows that are there already as part of `version`."""
    for at in range(0, len(rows), _ROWS):
        part = rows[at : at + _ROWS]
        known = dict(
            session.execute(
                select(table.id, table.live).where(table.id.in_([r["id"] for r in part]))
            ).all()
        )
        fresh = [r for r in part if r["id"] not in known]
        if fresh:
            session.execute(insert(table), fresh)
        for row in part:
            if row["id"] not in known:
                continue
            placed = {name: row[name] for name in _APPLIED_AT_SWITCH[table]}
            values: dict[str, Any] = {"staged_version": version}
            # A live row answers as it is until the switch; one that is not takes its place now.
            values |= {"staged": placed} if known[row["id"]] else placed
            session.execute(update(table).where(table.id == row["id"]).values(**values))


def _switch_rows(
    session: Session, table: type[Segment] | type[ChildChunk], claim: Claim
) -> list[uuid.UUID]:
    """Apply the staging to one table; the ids of rows that are not part of the version any more."""
    mine = table.document_id == claim.document_id
    out = or_(table.staged_version.is_(None), table.staged_version != claim.version)
    removed = list(session.scalars(select(table.id).where(mine, out)))
    session.execute(delete(table).where(mine, out))
    kept = session.execute(
        select(table.id, table.staged).where(mine, table.staged.is_not(None))
    ).all()
    for row_id, placed in kept:
        session.execute(update(table).where(table.id == row_id).values(**(placed or {})))
    session.execute(update(table).where(mine).values(live=True, staged_version=None, staged=None))
    return removed


def _delete_points(
    session: Session, space: Space, ids: Sequence[uuid.UUID], up_to_version: int
) -> None:
    for at in range(0, len(ids), _ROWS):
        enqueue(
            session,
            JobKind.DELETE_POINTS,
            space=space.name,
            dim=space.dim,
            ids=[str(i) for i in ids[at : at + _ROWS]],
            up_to_version=up_to_version,
        )
