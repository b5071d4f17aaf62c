"""Place: a document that is edited by hand; how an edit comes into force before its call returns.

SQL changes in one transaction, which also writes down a job for the points. The same call then
makes the index say what SQL says, and removes the job. From the commit on nothing finds the old
text: its point has another text's hash than its row, and retrieval drops it. A process that dies
in between leaves the job to others.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TypeVar

from sqlalchemy import CursorResult, delete, func, select
from sqlalchemy.orm import Session

from kb.db import reading, retried, transaction
from kb.errors import NotFound, Unavailable
from kb.ingestion.claims import hold_dataset
from kb.ingestion.embedding_cache import embed_cached
from kb.jobs import enqueue, enqueue_own, finish_job, release_job
from kb.maintenance import settle_points
from kb.models import Dataset, Document, JobKind, Segment, SegmentOverlay
from kb.resources import Resources, space_of
from pipelines.errors import TransientError

log = logging.getLogger("kb.segments")

Result = TypeVar("Result")

_LEASE_S = 60.0
"""How long the job of an edit is left to the call that wrote it down."""
_URGENT = 32
"""So many texts are embedded ahead of documents; more would keep queries waiting."""
_ROWS = 500  # ids per job

Tokens = Mapping[str, int]
"""Tokens by text."""


@dataclass
class Edit:
    """One change of a document, in its transaction.

    Attributes:
        unsettled: texts that are new, changed or need no point any more.
        removed: texts whose rows are gone.
    """

    session: Session
    dataset: Dataset
    document: Document
    actor: uuid.UUID
    tokens: Tokens
    keep_replaced_s: float
    unsettled: list[uuid.UUID] = field(default_factory=list)
    removed: list[uuid.UUID] = field(default_factory=list)

    @property
    def newest(self) -> int:
        """The highest version that may have written a point of the document."""
        return max(self.document.version, self.document.pending_version or 0)


@dataclass(frozen=True)
class Place:
    """A document, found anew in every transaction.

    Attributes:
        find: raises what the caller is told when it is not there, or not for him.
    """

    resources: Resources
    find: Callable[[Session], tuple[Dataset, Document]]
    resolves: uuid.UUID | None = None
    """The conflict that the change settles: it is gone with the same commit."""

    def reading(self) -> AbstractContextManager[Session]:
        """A session over one snapshot."""
        return reading(self.resources.sessions)

    def prepare(self, indexed: Sequence[str], counted: Sequence[str]) -> Tokens:
        """Embed texts into the cache, before anything is changed; the tokens of others.

        Raises:
            TransientError: the model's server does not answer; nothing was changed.
            ProviderNotInitialized: the dataset's model is not configured here.
            StoreUnavailable: the index does not answer; nothing was changed.
        """
        resources = self.resources
        with reading(resources.sessions) as session:
            space = space_of(self.find(session)[0])
        if space is None or not (indexed or counted):
            return {}
        resources.index.ensure_space(space)
        resources.index.read(space, [uuid.uuid4()])  # does it answer?
        if space.dim is None:
            return {}
        embedder = resources.embedders(space.name)
        urgent = len(indexed) <= _URGENT
        embed_cached(embedder, indexed, resources.sessions, urgent=urgent)
        return dict(zip(counted, embedder.count_tokens(list(counted)), strict=True))

    def change(self, tokens: Tokens, work: Callable[[Edit], Result]) -> Result:
        """Do `work` in a transaction that holds the document; in force when this returns.

        Raises:
            Unavailable: the index stopped answering right after the change was stored; it comes
                into force by itself.
        """
        resources = self.resources

        def commit() -> tuple[Result, uuid.UUID, list[uuid.UUID], list[uuid.UUID]]:
            with transaction(resources.sessions) as session:
                edit = self._open(session, tokens)
                self._resolve(edit)
                result = work(edit)
                session.flush()
                _recount(session, edit.document)
                return result, edit.dataset.id, edit.unsettled, _write_jobs(edit)

        result, dataset_id, ids, job_ids = retried(commit)
        resources.jobs.run_jobs()
        self._settle(dataset_id, ids, job_ids)
        return result

    def _settle(
        self, dataset_id: uuid.UUID, ids: list[uuid.UUID], job_ids: list[uuid.UUID]
    ) -> None:
        resources = self.resources
        try:
            for at in range(0, len(ids), _ROWS):
                settle_points(resources, dataset_id, ids[at : at + _ROWS])
        except (Unavailable, TransientError) as exc:
            for job_id in job_ids:
                release_job(resources.sessions, job_id)
            log.warning("an edit is stored, its points are written later: %s", exc)
            raise Unavailable(
                f"the change is stored, but the index or the model failed right after it ({exc}); "
                "it comes into force by itself as soon as they answer, nothing finds the old text"
            ) from exc
        for job_id in job_ids:
            finish_job(resources.sessions, job_id)

    def _resolve(self, edit: Edit) -> None:
        if self.resolves is None:
            return
        gone = edit.session.execute(
            delete(SegmentOverlay).where(
                SegmentOverlay.id == self.resolves,
                SegmentOverlay.document_id == edit.document.id,
            )
        )
        assert isinstance(gone, CursorResult)
        if gone.rowcount != 1:
            raise NotFound("overlay", self.resolves)

    def _open(self, session: Session, tokens: Tokens) -> Edit:
        """Lock in the order dataset, document, segment; then no worker passes a checkpoint."""
        dataset, document = self.find(session)
        hold_dataset(session, dataset.id)
        locked = session.scalar(
            select(Document)
            .where(Document.id == document.id)
            .with_for_update(key_share=True)
            .execution_options(populate_existing=True)
        )
        if locked is None:
            raise NotFound("document", document.id)
        resources = self.resources
        keep_s = resources.settings.ingestion.keep_replaced_s
        return Edit(session, dataset, locked, resources.owner_id, tokens, keep_s)


def _recount(session: Session, document: Document) -> None:
    words, tokens = session.execute(
        select(func.sum(Segment.word_count), func.sum(Segment.tokens)).where(
            Segment.document_id == document.id, Segment.live
        )
    ).one()
    document.word_count, document.tokens = words or 0, tokens or 0


def _write_jobs(edit: Edit) -> list[uuid.UUID]:
    """The jobs that this call does itself."""
    session, space = edit.session, space_of(edit.dataset)
    if space is None:
        return []
    for at in range(0, len(edit.removed), _ROWS):
        # A query that read SQL before the change may reach the index after it.
        enqueue(
            session,
            JobKind.DELETE_POINTS,
            wait_s=edit.keep_replaced_s,
            space=space.name,
            dim=space.dim,
            ids=[str(i) for i in edit.removed[at : at + _ROWS]],
            up_to_version=edit.newest,
            owner=str(edit.dataset.id),
        )
    return [
        enqueue_own(
            session,
            JobKind.SETTLE_POINTS,
            lease_s=_LEASE_S,
            dataset_id=str(edit.dataset.id),
            ids=[str(i) for i in edit.unsettled[at : at + _ROWS]],
        )
        for at in range(0, len(edit.unsettled), _ROWS)
    ]
