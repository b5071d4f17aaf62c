"""Ingest one claimed document: run its pipeline, switch to the new version, record the outcome."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.exc import InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from kb import metrics
from kb.db import moment, now, reading, transaction
from kb.errors import KBError, NotFound, StoreUnavailable, Unavailable
from kb.ingestion.chat_cache import CachedChat
from kb.ingestion.claims import Claim, LeaseLost, Paused, release
from kb.ingestion.embedding_cache import embed_cached
from kb.ingestion.sink import DocumentSink, SpaceChanged
from kb.logs import log_ids
from kb.models import (
    ChildChunk,
    Dataset,
    DocForm,
    Document,
    DocumentVersion,
    IndexingStatus,
    IndexingTechnique,
    PipelineRun,
    ProcessRule,
    Segment,
    UploadFile,
    WebhookEvent,
)
from kb.ports import Space
from kb.process_rules import AUTOMATIC_RULES, graph_for, qa_rules_of
from kb.qa_rules import QARules
from kb.reports import note_stages
from kb.resources import Resources, space_of
from kb.settings import Settings
from kb.tracing import note, run_span, span
from kb.webhooks import announce
from pipelines.definitions import definition
from pipelines.engine import EventKind, NodeTiming, RunEvent, run
from pipelines.errors import Cancelled, NodeError, PipelineError, RateLimited, TransientError
from pipelines.graph import Graph
from pipelines.node import RunContext
from pipelines.nodes.extract import TABLES, identify
from pipelines.types import Blob, Chunk, Chunked
from pipelines.types import ChildChunk as Child

log = logging.getLogger("kb.ingestion")

_STATUS_OF_ROLE = {
    "extract": IndexingStatus.PARSING,
    "clean": IndexingStatus.CLEANING,
    "chunk": IndexingStatus.SPLITTING,
}
_DONE_COLUMN = {
    "extract": "parsing_completed_at",
    "clean": "cleaning_completed_at",
    "chunk": "splitting_completed_at",
}
CRASHED = "crashed_repeatedly"
_COME_LATER = (RateLimited, StoreUnavailable)
"""Not the document's doing: it waits until it may come, and no attempt is counted."""
_SHOW_AFTER_S = 0.5
"""A stage shorter than this is not worth a commit of its own; its time is still recorded."""


@dataclass(frozen=True)
class Work:
    """What a claim asks for, read in one go.

    Attributes:
        blob: the file; None when its chunks are stored already.
    """

    blob: Blob | None
    graph: Graph
    space: Space
    technique: IndexingTechnique
    actor: uuid.UUID
    questions: QARules


def ingest(claim: Claim, resources: Resources, *, stopped: Callable[[], bool]) -> None:
    """Work on the document until it is completed, failed, scheduled again or handed back.

    The outcome is recorded on the document; only a lost lease leaves it to its new owner.
    """
    ids = {"document": claim.document_id, "dataset": claim.dataset_id, "run": claim.run_id}
    traced = run_span(
        claim.document_id,
        dataset=str(claim.dataset_id),
        run=str(claim.run_id),
        attempt=claim.attempt,
    )
    with log_ids(**ids), traced:
        _ingest(claim, resources, stopped)


def _ingest(claim: Claim, resources: Resources, stopped: Callable[[], bool]) -> None:
    recorder = _Recorder(claim, resources)
    sink: DocumentSink | None = None
    try:
        _refuse_poison(claim, resources.settings.ingestion.max_crashes)
        work = _load(claim, resources)
        sink = _sink(claim, resources, work, stopped)
        ctx = RunContext(
            embedder=_CachedEmbedder(resources, work.space) if work.space.dim else None,
            sink=sink,
            chat=CachedChat(resources, work.questions.provider, work.questions.model),
            limits=_limits(resources.settings),
            cancelled=stopped,
        )
        on_event = partial(recorder.event, sink)
        if work.blob is None:
            value, start = _staged_chunks(claim, resources), _after_chunking(work.graph)
            result = run(work.graph, value, ctx, start=start, on_event=on_event)
        else:
            result = run(work.graph, work.blob, ctx, on_event=on_event)
        sink.switch(partial(recorder.succeeded, sink))
        note(outcome="completed", segments=sink.segments)
        metrics.DOCUMENTS.labels("completed").inc()
        log.info("completed: %d segments in %.3f s", sink.segments, result.seconds)
    except SpaceChanged as exc:
        recorder.handed_back(exc)
        if sink is not None:
            sink.leave_space()
        resources.jobs.index_document(claim.document_id, claim.queue)
    except (LeaseLost, Cancelled) as exc:
        recorder.handed_back(exc)
    except Exception as exc:  # noqa: BLE001 - the one place that records any failure
        recorder.failed(_cause(exc))
    if sink is not None and recorder.lost:
        sink.take_back()


def _cause(exc: Exception) -> Exception:
    """The error itself when a node only passed on what a store or library raised."""
    wrapped = isinstance(exc, NodeError) and exc.code == NodeError.code
    error = exc.__cause__ if wrapped and isinstance(exc.__cause__, Exception) else exc
    if isinstance(error, OperationalError | InterfaceError | InternalError | PoolTimeout):
        reason = getattr(error, "orig", None) or error
        away = StoreUnavailable("database", "ingest", str(reason).strip())
        away.__cause__ = error
        return away
    return error


def _is_transient(exc: Exception) -> bool:
    """Whether trying again may help: it does not for a bad file, it may for all that is unknown."""
    if isinstance(exc, TransientError | Unavailable):
        return True
    return not isinstance(exc, PipelineError | KBError)


def _refuse_poison(claim: Claim, max_crashes: int) -> None:
    if claim.attempt > max_crashes:
        raise PipelineError(
            f"given up after {claim.attempt - 1} attempts during which the process ended while it "
            "read this document; look at the file, then retry it",
            code=CRASHED,
        )


def _load(claim: Claim, resources: Resources) -> Work:
    with reading(resources.sessions) as session:
        row = session.execute(
            select(Document, Dataset, DocumentVersion, UploadFile, ProcessRule)
            .join(Dataset, Dataset.id == Document.dataset_id)
            .join(DocumentVersion, DocumentVersion.document_id == Document.id)
            .outerjoin(UploadFile, UploadFile.id == DocumentVersion.upload_file_id)
            .outerjoin(ProcessRule, ProcessRule.id == DocumentVersion.process_rule_id)
            .where(Document.id == claim.document_id, DocumentVersion.number == claim.version)
        ).one_or_none()
    if row is None:
        raise LeaseLost(f"document {claim.document_id} was deleted")
    document, dataset, version, upload, rule = row
    if upload is None:
        raise NotFound("uploaded file", version.upload_file_id)
    space, technique = space_of(dataset), dataset.indexing_technique
    assert space is not None
    assert technique is not None
    resources.index.ensure_space(space)
    blob = None if claim.staged else _blob(upload, resources)
    rules = rule.rules if rule else AUTOMATIC_RULES
    choice = graph_for(
        document.doc_form,
        technique,
        rule.mode if rule else "automatic",
        rules,
        max_chunk_chars=resources.settings.limits.chunk_chars,
        is_table=document.doc_form is DocForm.QA and blob is not None and identify(blob) in TABLES,
        language=document.doc_language or "English",
    )
    graph = _graph(choice.definition, json.dumps(choice.parameters))
    return Work(blob, graph, space, technique, document.created_by, qa_rules_of(rules))


def _blob(upload: UploadFile, resources: Resources) -> Blob:
    data = resources.blobs.get(upload.blob_key)
    return Blob(data, upload.name, upload.media_type, is_text=upload.is_text)


def _limits(settings: Settings) -> dict[str, int]:
    """What nodes must stay within."""
    return {
        "max_chunk_chars": settings.limits.chunk_chars,
        "qa_passages": settings.limits.qa_passages,
        "chat_at_once": settings.ingestion.chat_at_once,
    }


@lru_cache(maxsize=64)
def _graph(name: str, parameters: str) -> Graph:
    """A built-in graph; kept, since the documents of an upload mostly share one."""
    return Graph.from_yaml(definition(name), json.loads(parameters))


def _sink(
    claim: Claim, resources: Resources, work: Work, stopped: Callable[[], bool]
) -> DocumentSink:
    embedder = resources.embedders(work.space.name) if work.space.dim else None
    return DocumentSink(
        claim,
        sessions=resources.sessions,
        index=resources.index,
        blobs=resources.blobs,
        space=work.space,
        actor=work.actor,
        batch_segments=resources.settings.ingestion.batch_segments,
        keep_replaced_s=resources.settings.ingestion.keep_replaced_s,
        cancelled=stopped,
        count_tokens=embedder.count_tokens if embedder else None,
    )


class _CachedEmbedder:
    """The space's embedder behind the embedding cache."""

    def __init__(self, resources: Resources, space: Space) -> None:
        self._inner = resources.embedders(space.name)
        self._sessions = resources.sessions
        self.id, self.dim = self._inner.id, self._inner.dim
        self.max_tokens = self._inner.max_tokens
        self.embed_query = self._inner.embed_query
        self.count_tokens = self._inner.count_tokens

    def embed_documents(self, texts: Any, *, urgent: bool = False) -> Any:
        return embed_cached(self._inner, texts, self._sessions, urgent=urgent)


def _after_chunking(graph: Graph) -> str:
    chunkers = [i for i, n in enumerate(graph.order) if graph.role(n) == "chunk"]
    return graph.order[chunkers[-1] + 1]


def _staged_chunks(claim: Claim, resources: Resources) -> Chunked:
    """The chunks that were staged before the last worker died."""
    with reading(resources.sessions) as session:
        rows = session.execute(
            select(Segment.id, Segment.content, Segment.position, Segment.answer)
            .where(Segment.document_id == claim.document_id)
            .where(Segment.staged_version == claim.version)
            .order_by(Segment.position)
        ).all()
        children: dict[uuid.UUID, list[Child]] = {}
        for row in session.execute(
            select(ChildChunk.segment_id, ChildChunk.content)
            .where(ChildChunk.document_id == claim.document_id)
            .where(ChildChunk.staged_version == claim.version)
            .order_by(ChildChunk.position)
        ):
            children.setdefault(row[0], []).append(Child(row[1], 0, 0))
    return Chunked(
        tuple(
            Chunk(
                row.content,
                0,
                0,
                row.position,
                children=tuple(children.get(row.id, ())),
                answer=row.answer,
            )
            for row in rows
        )
    )


class _Recorder:
    """Writes what happens to a document while it is in work, and the outcome.

    Attributes:
        lost: another worker has the document, or it is gone.
    """

    def __init__(self, claim: Claim, resources: Resources) -> None:
        self._claim = claim
        self._sessions = resources.sessions
        self._settings = resources.settings.ingestion
        self._jobs = resources.jobs
        self._stage = IndexingStatus.INDEXING if claim.staged else IndexingStatus.PARSING
        self._shown_at = time.monotonic()
        self._sink: DocumentSink | None = None
        self._timings: list[NodeTiming] = []
        self._span = ExitStack()
        """Of the stage under way."""
        self.lost = False

    def event(self, sink: DocumentSink, event: RunEvent) -> None:
        """Show the stage, and keep the times of those done for the next checkpoint."""
        role = event.role or ""
        self._sink = sink
        if event.kind is EventKind.NODE_STARTED:
            self._span = ExitStack()
            self._span.enter_context(span(f"stage {role}", node=event.node_kind or ""))
        if event.kind in (EventKind.NODE_FINISHED, EventKind.NODE_FAILED):
            self._span.close()
            self._note(event, sink)
        if event.kind is EventKind.NODE_FINISHED:
            _observe(role, event.elapsed_s, sink)
            if role in _DONE_COLUMN:
                sink.stage_times[_DONE_COLUMN[role]] = now()
        if event.kind is EventKind.NODE_STARTED:
            self._stage = _STATUS_OF_ROLE.get(role, IndexingStatus.INDEXING)
            if role in _STATUS_OF_ROLE and time.monotonic() - self._shown_at > _SHOW_AFTER_S:
                self._shown_at = time.monotonic()
                with transaction(self._sessions) as session:
                    self._claim.move(session, self._stage, **sink.stage_times)

    def _note(self, event: RunEvent, sink: DocumentSink) -> None:
        """Keep how long a node worked, for the record of the run; also of one that failed."""
        timing = NodeTiming(event.node_id or "", event.node_kind or "", event.elapsed_s)
        self._timings.append(timing)
        if event.role in _DONE_COLUMN and event.kind is EventKind.NODE_FINISHED:
            sink.stages.append(_node(timing, sink))

    def _nodes(self) -> list[dict[str, Any]]:
        return [_node(t, self._sink) for t in self._timings if self._sink is not None]

    def succeeded(self, sink: DocumentSink, session: Session) -> None:
        """The version is live with this transaction."""
        nodes = self._nodes()
        only = self._claim.attempt == 1 and not self._claim.staged
        note_stages(session, self._claim.document_id, self._claim.version, nodes, only=only)
        self._end_run(session, "succeeded", segments=sink.segments)
        self._announce(session, WebhookEvent.COMPLETED)

    def handed_back(self, exc: PipelineError) -> None:
        """The worker was told to stop, has lost the document, or a person paused it."""
        self.lost = isinstance(exc, LeaseLost)
        with transaction(self._sessions) as session:
            release(session, self._claim)
            self._end_run(session, "stopped", exc)
            paused = session.scalar(
                select(Document.is_paused).where(Document.id == self._claim.document_id)
            )
        if isinstance(exc, Paused) and not paused:  # resumed meanwhile, and announced to nobody
            self._jobs.index_document(self._claim.document_id, self._claim.queue)
        metrics.DOCUMENTS.labels("lost" if self.lost else "handed_back").inc()
        log.info("not finished: %s", exc)

    def failed(self, exc: Exception) -> None:
        """Record the failure: a transient one is tried again with growing waits, then given up.

        Being told to come later, or a store that is away, is no failure of the document: it is
        given up only after `max_postponed_s`.
        """
        unexpected = not isinstance(exc, PipelineError | KBError)
        log.warning(
            "failed while %s: %s",
            self._stage.value,
            _reason(exc),
            exc_info=exc if unexpected else None,
        )
        try:
            with transaction(self._sessions) as session:
                outcome = self._fail(session, exc)
                self._end_run(session, "failed", exc)
        except LeaseLost as lost:
            self.handed_back(lost)
            return
        note(outcome=outcome, error_code=_code(exc))
        metrics.DOCUMENTS.labels(outcome).inc()
        metrics.DOCUMENT_ERRORS.labels(_code(exc), self._stage.value).inc()

    def _fail(self, session: Session, exc: Exception) -> str:
        """The outcome: `failed`, or `retried` or `postponed` when it is tried again."""
        crashed = getattr(exc, "code", None) == CRASHED
        values: dict[str, Any] = {
            "error": _reason(exc),
            "error_code": _code(exc),
            "error_stage": str(self._claim.found if crashed else self._stage),
            "lease_owner": None,
            "lease_expires_at": None,
        }
        past = _past_failures(session, self._claim)
        postponed = isinstance(exc, _COME_LATER)
        failures = past.failures + (not postponed)
        given_up = (
            past.since_s >= self._settings.max_postponed_s
            if postponed
            else not _is_transient(exc) or failures >= self._settings.max_attempts
        )
        if given_up:
            self._claim.move(
                session,
                IndexingStatus.ERROR,
                stopped_at=moment(),
                is_paused=False,
                paused_at=None,
                **values,
            )
            self._announce(session, WebhookEvent.FAILED)
            return "failed"
        times = past.postponements if postponed else failures - 1
        wait = min(self._settings.retry_max_s, self._settings.retry_base_s * 2.0 ** min(times, 60))
        wait = max(wait, getattr(exc, "retry_after_s", None) or 0.0)
        self._claim.move(
            session,
            IndexingStatus.WAITING,
            # It ended with an outcome, so earlier claims without one were not its doing.
            attempts=failures,
            next_attempt_at=moment(wait),
            **values,
        )
        return "postponed" if postponed else "retried"

    def _announce(self, session: Session, event: WebhookEvent) -> None:
        announce(session, event, self._claim.dataset_id, self._claim.document_id, self._jobs)

    def _end_run(
        self,
        session: Session,
        status: str,
        exc: Exception | None = None,
        segments: int | None = None,
    ) -> None:
        session.execute(
            update(PipelineRun)
            # Not what is written already: the answer to that commit may have been lost.
            # What its successor took for lost has an outcome after all.
            .where(
                PipelineRun.id == self._claim.run_id,
                PipelineRun.status.in_(("running", "lost")),
            )
            .values(
                status=status,
                finished_at=moment(),
                error=str(exc) if exc else None,
                error_code=getattr(exc, "code", None),
                nodes=self._nodes(),
                segments=segments,
            )
        )


def _node(timing: NodeTiming, sink: DocumentSink) -> dict[str, Any]:
    return {
        "node": timing.node_id,
        "kind": timing.kind,
        "seconds": round(_seconds(timing, sink), 6),
    }


def _seconds(timing: NodeTiming, sink: DocumentSink) -> float:
    """How long a stage worked: the index node has texts embedded, in the embed node's name."""
    if timing.kind == "embed":
        return timing.seconds + sink.embedding_s
    return timing.seconds - (sink.embedding_s if timing.kind == "index" else 0.0)


def _observe(role: str, seconds: float, sink: DocumentSink) -> None:
    if role == "index":
        metrics.STAGE_SECONDS.labels("embed").observe(sink.embedding_s)
        seconds -= sink.embedding_s
    if role != "embed":
        metrics.STAGE_SECONDS.labels(role).observe(seconds)


def _code(exc: Exception) -> str:
    return str(getattr(exc, "code", "unexpected_error"))


@dataclass(frozen=True)
class _Past:
    """What went wrong since the version was queued or last got further.

    Attributes:
        failures: runs that failed, those apart that are to come later.
        postponements: those.
        since_s: how long that is ago.
    """

    failures: int
    postponements: int
    since_s: float


def _past_failures(session: Session, claim: Claim) -> _Past:
    staged = (Segment.document_id == claim.document_id, Segment.staged_version == claim.version)
    moments = (
        select(Document.queued_at).where(Document.id == claim.document_id),
        select(DocumentVersion.staged_at).where(
            DocumentVersion.document_id == claim.document_id,
            DocumentVersion.number == claim.version,
        ),
        select(func.max(Segment.indexed_at)).where(*staged),
        select(func.max(ChildChunk.indexed_at)).where(
            ChildChunk.document_id == claim.document_id,
            ChildChunk.staged_version == claim.version,
        ),
    )
    since = max(at for one in moments if (at := session.scalar(one)) is not None)
    told_later = PipelineRun.error_code.in_([error.code for error in _COME_LATER])
    runs, postponements, at = session.execute(
        select(func.count(), func.count().filter(told_later), moment())
        .select_from(PipelineRun)
        .where(
            PipelineRun.document_id == claim.document_id,
            PipelineRun.version == claim.version,
            PipelineRun.status == "failed",
            PipelineRun.finished_at >= since,
        )
    ).one()
    return _Past(runs - postponements, postponements, (at - since).total_seconds())


def _reason(exc: Exception) -> str:
    text = str(exc) or type(exc).__name__
    known = isinstance(exc, PipelineError | KBError)
    return text if known else f"unexpected {type(exc).__name__}: {text}"
