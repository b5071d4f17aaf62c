"""Where a pipeline's chunks become segments and points: stage, index in batches, switch."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from kb.db import Sessions, after_commit, moment, reading, retried, shared, transaction
from kb.ingestion.claims import Claim, LeaseLost, Paused, hold_dataset
from kb.ingestion.overlays import (
    Laid,
    classify,
    find_anchors,
    flipped_parents,
    has_overlays,
    lay_over,
    place_ids,
)
from kb.ingestion.points import Embed, Leaf, find_average, find_facts, write_leaves
from kb.ingestion.staging import (
    Row,
    Rows,
    Table,
    child_row,
    drop_other_stagings,
    rows_of,
    switch_rows,
    upsert_staged,
)
from kb.jobs import LATE_S, enqueue
from kb.metadata.labels import touch
from kb.models import (
    ChildChunk,
    Dataset,
    Document,
    DocumentVersion,
    IndexingStatus,
    JobKind,
    Segment,
    text_key,
)
from kb.ports import NO_FACTS, BlobStore, Facts, SegmentIndex, Space
from kb.reports import of_staging
from kb.spaces import find_space
from pipelines.errors import Cancelled, PipelineError
from pipelines.types import ChildChunk as ChildChunkOf
from pipelines.types import Chunked, Vectors

_ROWS = 500  # ids per job


class SpaceChanged(Cancelled):
    """The dataset answers from another space now; the document goes on there."""

    code = "space_changed"


class DocumentSink:
    """ChunkSink of one claim on one document.

    `store` may be called again after any crash: segments are staged once per version, and only
    points that the index has not acknowledged are embedded and written.

    Args:
        batch_segments: texts embedded, indexed and marked as done at a time, > 0.
        keep_replaced_s: how long the points of replaced text outlive the switch.
        count_tokens: of the embedding model; None without one.
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
        keep_replaced_s: float,
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
        self._keep_replaced_s = keep_replaced_s
        self._cancelled = cancelled
        self._count_tokens = count_tokens
        self._staged = claim.staged
        self._flat = False
        """Known to have no child chunks: then their table need not be asked."""
        self._embed: Embed | None = None
        self.embedding_s = 0.0
        """Seconds spent on embedding, which happens while the index node runs."""
        self.segments = 0
        """Segments of the version, once it is live."""
        self._written: tuple[list[uuid.UUID], float, Facts] = ([], 0.0, NO_FACTS)
        """Points that SQL does not know as written yet, the average length that they assume, and
        their document's facts."""
        self.stages: list[dict[str, Any]] = []
        """{"node", "kind", "seconds"} of what ran before the index node, for the report."""
        self.stage_times: dict[str, Any] = {}
        """Document columns (times of the stages done) to write with the next checkpoint."""

    def store(self, chunked: Chunked, embed: Embed | None) -> tuple[int, int]:
        """See `pipelines.ports.ChunkSink`; (segments, points) of the staged version."""
        self._embed = partial(self._timed, embed) if embed else None
        self.stage(chunked)
        self.index_pending()
        return self._counts()

    def _timed(self, embed: Embed, texts: Sequence[str]) -> Vectors:
        started = time.perf_counter()
        try:
            return embed(texts)
        finally:
            self.embedding_s += time.perf_counter() - started

    # --- stage ---------------------------------------------------------------------------

    def stage(self, chunked: Chunked) -> None:
        """Write the version's segments in one transaction; a no-op when that was done before.

        A chunk whose text did not change has the id it had: its row, its point, its hit count
        stay. Rows that are live now keep answering as they are until the switch.

        Raises:
            LeaseLost: another worker has the document; nothing is left of this one's text.
            Paused: a person paused the document; what is staged stays.
        """
        if self._staged:
            return
        with reading(self._sessions) as session:
            anchors = find_anchors(session, self._claim.document_id)
        rows = rows_of(
            chunked.chunks,
            self._claim,
            self._actor,
            self._count_tokens,
            lambda identities: place_ids(self._claim.document_id, identities, anchors),
        )
        key: str | None = None
        if chunked.source_text:
            key = text_key(self._claim.document_id, self._claim.version)
            self._blobs.put(key, chunked.source_text.encode("utf-8", "surrogatepass"))
        try:
            paused, flat = retried(partial(self._commit_stage, rows, key, chunked))
        except LeaseLost:
            self._drop_text(key)
            raise
        self._staged, self._flat = True, flat
        _stop_if(paused)

    def _commit_stage(self, rows: Rows, key: str | None, chunked: Chunked) -> tuple[bool, bool]:
        """Whether a person paused the document, and whether the version has no child chunk."""
        with transaction(self._sessions) as session:
            unset = find_average(session, self._claim.dataset_id) is None
            hold_dataset(session, self._claim.dataset_id, to_change=unset)
            paused = self._claim.move(
                session,
                IndexingStatus.INDEXING,
                attempts=0,  # progress: what crashes from here on is not the file's doing
                **self.stage_times,
            )
            laid = lay_over(session, self._claim, rows, self._child_by_hand)
            self._stage_rows(session, laid, first=unset)
            session.execute(
                self._version_update().values(
                    staged_at=moment(),
                    text_key=key,
                    warnings=list(chunked.warnings),
                    report=of_staging(chunked, self.stages),
                )
            )
        return paused, not (laid.rows.children or laid.children)

    def _child_by_hand(
        self, child_id: uuid.UUID, segment_id: uuid.UUID, position: int, text: str
    ) -> Row:
        child = ChildChunkOf(text, 0, 0)
        return child_row(child_id, segment_id, position, child, self._claim, self._actor)

    def _stage_rows(self, session: Session, laid: Laid, *, first: bool) -> None:
        version, rows = self._claim.version, laid.rows
        if version > 1:
            removed = drop_other_stagings(session, self._claim.document_id, version)
            # Again later: the worker that was overtaken may be writing one of them right now.
            for wait_s in (0.0, LATE_S):
                self._delete_points(session, removed, wait_s=wait_s)
        upsert_staged(session, Segment, rows.segments, version)
        upsert_staged(session, ChildChunk, rows.children, version)
        laid.keep(session, version)
        if first:  # it fixes the average length until drift calls for a rebuild
            session.execute(
                update(Dataset)
                .where(Dataset.id == self._claim.dataset_id, Dataset.average_length.is_(None))
                .values(average_length=rows.average_length())
                .execution_options(synchronize_session=False)
            )

    def _drop_text(self, key: str | None) -> None:
        """The text of a version that is gone or overtaken: no row will ever speak of it."""
        if key is None:
            return
        with transaction(self._sessions) as session:
            pending = session.scalar(
                select(Document.pending_version).where(Document.id == self._claim.document_id)
            )
            known = session.scalar(
                select(DocumentVersion.id).where(DocumentVersion.text_key == key).limit(1)
            )
            if known is None and pending != self._claim.version:
                enqueue(session, JobKind.DELETE_BLOBS, keys=[key])

    # --- index ---------------------------------------------------------------------------

    def index_pending(self) -> None:
        """Embed and write what the index has not acknowledged, batch by batch.

        The last batch is marked as done together with the switch.

        Raises:
            LeaseLost: another worker has the document; call `take_back`.
            Cancelled: the worker was told to stop.
            Paused: a person paused the document.
            SpaceChanged: the dataset answers from another space now; call `leave_space`.
        """
        while True:
            with reading(self._sessions) as session:
                batch = self._pending(session, self._batch)
                average = find_average(session, self._claim.dataset_id)
            if not batch:
                return
            if self._cancelled():
                raise Cancelled("this worker was told to stop")
            if average is None:
                raise LeaseLost("the dataset is gone")
            self._written = [leaf.id for leaf in batch], average, batch[0].facts
            write_leaves(
                self._index,
                self._space,
                self._claim.dataset_id,
                batch,
                self._embed,
                average_length=average,
            )
            if len(batch) < self._batch:
                return
            with transaction(self._sessions) as session:
                self._share_weights(session)
                paused = self._claim.update(session, attempts=0)
                self._acknowledge(session)
            _stop_if(paused)

    def _pending(self, session: Session, limit: int) -> list[Leaf]:
        return staged_points(session, self._claim, limit=limit, flat=self._flat)

    def _share_weights(self, session: Session) -> None:
        """From here to the commit no rebuild of the weights begins."""
        shared(session, f"weights of {self._claim.dataset_id}")

    def _acknowledge(self, session: Session) -> None:
        """Mark what was written as done, unless a rebuild of the weights began meanwhile, or the
        document's metadata changed.

        A rebuild writes what it finds marked; what it cannot have found is written again here. So
        it is with a switch to another space, at whose end nothing may be marked for the old one.

        Raises:
            SpaceChanged: such a switch has ended; call `leave_space`.
        """
        ids, average, facts = self._written
        if not ids:
            return
        if find_space(session, self._claim.dataset_id) != self._space:
            raise SpaceChanged(f"the dataset left the space {self._space.name!r}")
        if find_average(session, self._claim.dataset_id) != average:
            return
        if find_facts(session, self._claim.document_id) != facts:
            return
        for table in (Segment,) if self._flat else (Segment, ChildChunk):
            session.execute(
                update(table)
                .where(table.id.in_(ids))
                .values(indexed_at=moment())
                .execution_options(synchronize_session=False)
            )
        after_commit(session, self._forget_written)

    def _forget_written(self) -> None:
        self._written = ([], 0.0, NO_FACTS)

    def take_back(self) -> None:
        """Have the points settled that were written after the lease was lost.

        A job deletes those that nothing in SQL stands for and writes the others as SQL has them.
        """
        ids, _, _ = self._written
        if not ids:
            return
        with transaction(self._sessions) as session:
            self._enqueue_delete(
                session,
                ids,
                self._claim.version,
                dataset_id=str(self._claim.dataset_id),
            )
        self._forget_written()

    def leave_space(self) -> None:
        """Have what was written to a space removed in which the dataset does not live any more."""
        with transaction(self._sessions) as session:
            enqueue(
                session,
                JobKind.DELETE_DATASET,
                space=self._space.name,
                dim=self._space.dim,
                dataset_id=str(self._claim.dataset_id),
            )

    # --- switch --------------------------------------------------------------------------

    def switch(self, also: Callable[[Session], None]) -> None:
        """Make the staged version the live one, in one transaction, once all of it is indexed.

        Args:
            also: what belongs into the same transaction.
        Raises:
            LeaseLost: somebody else has the document now; nothing changed.
            Paused: a person paused the document; the next claim has only to switch.
            PipelineError: code `nothing_indexed`; the pipeline never stored a chunk.
        """
        if not self._staged:
            raise PipelineError(
                "the pipeline ended without storing anything; end it with an index node",
                code="nothing_indexed",
            )
        while not retried(partial(self._switch_if_indexed, also)):
            self.index_pending()

    def _switch_if_indexed(self, also: Callable[[Session], None]) -> bool:
        with transaction(self._sessions) as session:
            self._share_weights(session)
            # First the lease: from here to the commit nobody else changes the document.
            paused = self._claim.update(session, attempts=0)
            self._acknowledge(session)
            if not paused:
                if self._pending(session, 1):
                    return False
                self._go_live(session)
                also(session)
        _stop_if(paused)
        return True

    def _go_live(self, session: Session) -> None:
        claim = self._claim
        overlaid = has_overlays(session, claim.document_id)
        flipped = flipped_parents(session, claim) if overlaid else []
        removed = (
            [] if self._flat and claim.version == 1 else switch_rows(session, ChildChunk, claim)
        )
        removed += switch_rows(session, Segment, claim)
        self._delete_points(session, removed, wait_s=self._keep_replaced_s)
        if overlaid:
            classify(session, claim)
        self._settle_later(session, flipped)
        self.segments, words, tokens, started, at = session.execute(
            select(
                func.count(),
                func.sum(Segment.word_count),
                func.sum(Segment.tokens),
                select(Document.processing_started_at)
                .where(Document.id == claim.document_id)
                .scalar_subquery(),
                moment(),
            ).where(Segment.document_id == claim.document_id)
        ).one()
        claim.move(
            session,
            IndexingStatus.COMPLETED,
            version=claim.version,
            pending_version=None,
            word_count=words or 0,
            tokens=tokens or 0,
            completed_at=at,
            updated_at=at,
            indexing_latency=(at - (started or at)).total_seconds(),
            error=None,
            error_code=None,
            error_stage=None,
            attempts=0,
            next_attempt_at=None,
            lease_owner=None,
            lease_expires_at=None,
        )
        session.execute(self._version_update().values(live_at=at))
        touch(session, claim.dataset_id, [claim.document_id])
        self._watch_drift(session)

    def _version_update(self) -> Any:
        return (
            update(DocumentVersion)
            .where(
                DocumentVersion.document_id == self._claim.document_id,
                DocumentVersion.number == self._claim.version,
            )
            .execution_options(synchronize_session=False)
        )

    def _delete_points(self, session: Session, ids: Sequence[uuid.UUID], *, wait_s: float) -> None:
        """Points of rows that this version removed; one written by it or a later one stays."""
        self._enqueue_delete(session, ids, self._claim.version - 1, wait_s=wait_s)

    def _enqueue_delete(
        self,
        session: Session,
        ids: Sequence[uuid.UUID],
        up_to_version: int,
        *,
        wait_s: float = 0.0,
        **payload: Any,
    ) -> None:
        for at in range(0, len(ids), _ROWS):
            enqueue(
                session,
                JobKind.DELETE_POINTS,
                wait_s=wait_s,
                space=self._space.name,
                dim=self._space.dim,
                ids=[str(i) for i in ids[at : at + _ROWS]],
                up_to_version=up_to_version,
                owner=str(self._claim.dataset_id),
                **payload,
            )

    def _settle_later(self, session: Session, ids: Sequence[uuid.UUID]) -> None:
        for at in range(0, len(ids), _ROWS):
            enqueue(
                session,
                JobKind.SETTLE_POINTS,
                dataset_id=str(self._claim.dataset_id),
                ids=[str(i) for i in ids[at : at + _ROWS]],
            )

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
        mine = _in_version(Segment, self._claim)
        children = select(func.count()).select_from(ChildChunk)
        with reading(self._sessions) as session:
            segments, flat, of_parents = session.execute(
                select(
                    func.count(),
                    func.count().filter(Segment.has_children.is_(False)),
                    children.where(_in_version(ChildChunk, self._claim)).scalar_subquery(),
                )
                .select_from(Segment)
                .where(mine)
            ).one()
        return segments, flat + of_parents


def _stop_if(paused: bool) -> None:
    if paused:
        raise Paused("a person paused the document")


def staged_points(session: Session, claim: Claim, *, limit: int, flat: bool = False) -> list[Leaf]:
    """The next texts of the staged version that the index has not acknowledged.

    Args:
        flat: the version is known to have no child chunks.
    """
    segments = session.execute(
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
            .limit(limit - len(segments))
        ).all()
        if not flat and len(segments) < limit
        else []
    )
    rows = [*segments, *children]
    facts = find_facts(session, claim.document_id) if rows else NO_FACTS
    return [
        Leaf(row[0], row[1], claim.document_id, claim.version, row[2], row[3], facts)
        for row in rows
    ]


def _in_version(table: Table, claim: Claim) -> Any:
    return (table.document_id == claim.document_id) & (table.staged_version == claim.version)
