"""Reports of ingestion: what of a file became chunks, how long it took, and what went wrong."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.orm import Session

from kb.errors import NotFound
from kb.models import (
    ChildChunk,
    Document,
    DocumentVersion,
    OverlayState,
    PipelineRun,
    Segment,
    SegmentOverlay,
)
from pipelines.types import Chunked

Json = dict[str, Any]


# --- what ingestion writes down ------------------------------------------------------------------


def of_staging(chunked: Chunked, stages: Sequence[Json]) -> Json:
    """What is known when a version's segments are stored.

    Args:
        stages: {"node", "kind", "seconds"} of the steps so far.
    """
    read = chunked.read
    rows = read.table_rows
    return {
        "characters": len(chunked.source_text) or None,
        "chunks": len(chunked.chunks),
        "child_chunks": sum(len(chunk.children) for chunk in chunked.chunks),
        "pages": None
        if read.pages is None
        else {
            "total": read.pages,
            "empty": list(read.empty_pages),
            "damaged": list(read.damaged_pages),
        },
        "table_rows": None if rows is None else {"in": rows, "out": _rows_kept(chunked, rows)},
        "stages": list(stages),
    }


def _rows_kept(chunked: Chunked, rows: int) -> int | None:
    """How many table rows stand in chunks, those of a chunk counted from first to last; None: the
    chunks do not say where they come from.
    """
    spans: dict[str | None, list[tuple[int, int]]] = {}
    for chunk in chunked.chunks:
        if chunk.origin.rows is not None:
            spans.setdefault(chunk.origin.sheet, []).append(chunk.origin.rows)
    if not spans and chunked.chunks:
        return None
    return min(rows, sum(_covered(sorted(of_sheet)) for of_sheet in spans.values()))


def _covered(spans: Iterable[tuple[int, int]]) -> int:
    total, done = 0, 0
    for first, last in spans:
        total += max(0, last - max(first, done + 1) + 1)
        done = max(done, last)
    return total


def _noted(session: Session, document_id: uuid.UUID, version: int) -> Json:
    mine = (DocumentVersion.document_id == document_id, DocumentVersion.number == version)
    return session.scalar(select(DocumentVersion.report).where(*mine)) or {}


def _note(session: Session, document_id: uuid.UUID, version: int, report: Json) -> None:
    session.execute(
        update(DocumentVersion)
        .where(DocumentVersion.document_id == document_id, DocumentVersion.number == version)
        .values(report=report)
        .execution_options(synchronize_session=False)
    )


def note_conflicts(
    session: Session, document_id: uuid.UUID, version: int, conflicts: Sequence[Json]
) -> None:
    """Add hand edits that a version could not take over to its report."""
    noted = _noted(session, document_id, version)
    known = noted.get("conflicts") or []
    _note(session, document_id, version, noted | {"conflicts": [*known, *conflicts]})


def note_stages(
    session: Session, document_id: uuid.UUID, version: int, nodes: Sequence[Json], *, only: bool
) -> None:
    """Keep how long the steps of a version took in all, runs that failed included.

    Args:
        nodes: {"node", "kind", "seconds"} of the run that succeeds with this transaction.
        only: there was no other run.
    """
    noted = _noted(session, document_id, version)
    runs = () if only else _runs(session, document_id, version)
    stages = _stages(noted, [*(run.nodes or [] for run in runs), nodes])
    _note(session, document_id, version, noted | {"stages": stages})


def _sum(parts: Iterable[Sequence[Json]]) -> list[Json]:
    """Seconds per node, in the order in which they first ran."""
    total: dict[str, Json] = {}
    for nodes in parts:
        for node in nodes:
            known = total.setdefault(node["node"], {**node, "seconds": 0.0})
            known["seconds"] = round(known["seconds"] + node["seconds"], 6)
    return list(total.values())


# --- the report ----------------------------------------------------------------------------------


def find_version(session: Session, document: Document, number: int | None) -> DocumentVersion:
    """A version of the document; None: the one in preparation, else the one that answers.

    Raises:
        NotFound: the document has no such version.
    """
    wanted = number or document.pending_version or document.version
    version = session.scalar(
        select(DocumentVersion).where(
            DocumentVersion.document_id == document.id, DocumentVersion.number == wanted
        )
    )
    if version is None:
        raise NotFound(f"version of document {document.name!r}", wanted)
    return version


def report_of(session: Session, document: Document, version: DocumentVersion) -> Json:
    """What happened to one version of a document, whether it is complete or not.

    Counts are those of the segments that are stored; of a version whose segments are gone, those
    that it had.
    """
    noted = version.report or {}
    runs = _runs(session, document.id, version.number)
    in_preparation = version.number == document.pending_version
    failed = in_preparation and document.error_code is not None
    return {
        "characters_extracted": noted.get("characters"),
        "pages": noted.get("pages"),
        "table_rows": noted.get("table_rows"),
        **_counts(session, document, version, noted),
        "stages": _stages(noted, [run.nodes or [] for run in runs]),
        "attempts": len(runs),
        "runs": [_run(run) for run in runs],
        "error": _error(document) if failed else None,
        "errors": [
            {"code": run.error_code, "message": run.error, "at": run.finished_at}
            for run in runs
            if run.status in ("failed", "lost")
        ],
        "warnings": version.warnings or [],
        "conflicts": _conflicts(session, document, version, noted),
    }


def _conflicts(
    session: Session, document: Document, version: DocumentVersion, noted: Json
) -> list[Json]:
    """Hand edits that do not fit it; of the version that answers, those that nobody settled."""
    entries: list[Json] = noted.get("conflicts") or []
    if version.number != document.version or not entries:
        return entries
    left = session.scalars(
        select(SegmentOverlay.id).where(
            SegmentOverlay.document_id == document.id,
            SegmentOverlay.state == OverlayState.CONFLICT,
        )
    )
    known = {str(i) for i in left}
    return [entry for entry in entries if entry["overlay_id"] in known]


def state_of(document: Document, version: DocumentVersion) -> str:
    """`live`, `replaced` (it was), `given_up` (it never was), or the document's indexing status."""
    if version.number == document.version:
        return "live"
    if version.number == document.pending_version:
        return document.indexing_status.value
    return "given_up" if version.live_at is None else "replaced"


def _runs(session: Session, document_id: uuid.UUID, version: int) -> Sequence[PipelineRun]:
    return session.scalars(
        select(PipelineRun)
        .where(PipelineRun.document_id == document_id, PipelineRun.version == version)
        .order_by(PipelineRun.started_at)
    ).all()


def _stages(noted: Json, runs: Sequence[Sequence[Json]]) -> list[Json]:
    """What the runs say, and of a lost run, or of those too old to be kept, what was noted."""
    known = _sum(runs)
    names = {stage["node"] for stage in known}
    left = [stage for stage in noted.get("stages") or [] if stage["node"] not in names]
    return [*left, *known]


def _run(run: PipelineRun) -> Json:
    return {
        "attempt": run.attempt,
        "status": run.status,
        "resumed": run.resumed,
        "started_at": run.started_at,
        "finished_at": run.finished_at,
        "error_code": run.error_code,
        "error": run.error,
        "stages": run.nodes or [],
    }


def _error(document: Document) -> Json:
    return {
        "code": document.error_code,
        "message": document.error,
        "stage": document.error_stage,
        "next_attempt_at": document.next_attempt_at,
    }


def _counts(session: Session, document: Document, version: DocumentVersion, noted: Json) -> Json:
    mine: ColumnElement[bool]
    of_child: ColumnElement[bool]
    if version.number == document.version:
        mine, of_child = Segment.live.is_(True), ChildChunk.live.is_(True)
    elif version.number == document.pending_version:
        mine = Segment.staged_version == version.number
        of_child = ChildChunk.staged_version == version.number
    else:
        return {
            "segments": noted.get("chunks"),
            "child_chunks": noted.get("child_chunks"),
            "tokens": None,
            "word_count": None,
        }
    segments, tokens, words, children = session.execute(
        select(
            func.count(),
            func.coalesce(func.sum(Segment.tokens), 0),
            func.coalesce(func.sum(Segment.word_count), 0),
            select(func.count())
            .select_from(ChildChunk)
            .where(ChildChunk.document_id == document.id, of_child)
            .scalar_subquery(),
        ).where(Segment.document_id == document.id, mine)
    ).one()
    return {
        "segments": segments,
        "child_chunks": children,
        "tokens": tokens,
        "word_count": words,
    }
