"""Segments from a file: checked at once, added at once or by a job; all of them or none."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete, update
from sqlalchemy.orm import Session

from kb.db import moment, now, reading, transaction
from kb.errors import KBError, NotFound, ProviderNotInitialized, Unavailable
from kb.jobs import enqueue
from kb.maintenance import does
from kb.models import Dataset, DocForm, Document, ImportState, JobKind, SegmentImport
from kb.resources import Resources
from kb.segments.editing import NewSegment, add_segments, check_open
from kb.segments.place import Edit, Place
from kb.segments.sheets import Sheet, read_sheet

log = logging.getLogger("kb.segments")


def import_segments(place: Place, name: str, data: bytes) -> uuid.UUID:
    """Make segments of a file's rows; the id of the import, which says what became of it.

    A file of at most `limits.segment_import_at_once` rows is done when this returns; a larger one
    is done by a job.

    Raises:
        NotFound: the document is not completed, or is disabled.
        InvalidParam, FileTooLarge, UnsupportedFileType: see `read_sheet`.
        TransientError, StoreUnavailable, ProviderNotInitialized: nothing was added.
    """
    limits = place.resources.settings.limits
    with place.reading() as session:
        _, document = place.find(session)
        check_open(document)
        answers = document.doc_form is DocForm.QA
    sheet = read_sheet(name, data, limits, answers=answers)
    import_id = uuid.uuid4()
    if len(sheet.items) <= limits.segment_import_at_once:

        def note(edit: Edit) -> None:
            row = _row(import_id, edit.dataset, edit.document, name, sheet, edit.actor)
            row.state, row.embedded, row.finished_at = ImportState.COMPLETED, row.rows, now()
            edit.session.add(row)

        try:
            add_segments(place, sheet.items, also=note)
        except Unavailable:
            _forget(place.resources, import_id)
            raise
        return import_id
    with transaction(place.resources.sessions) as session:
        dataset, document = place.find(session)
        row = _row(import_id, dataset, document, name, sheet, place.resources.owner_id)
        row.items = [[i.content, i.answer, list(i.keywords)] for i in sheet.items]
        session.add(row)
        session.flush()
        enqueue(session, JobKind.IMPORT_SEGMENTS, import_id=str(import_id))
    place.resources.jobs.run_jobs()
    return import_id


def _forget(resources: Resources, import_id: uuid.UUID) -> None:
    with transaction(resources.sessions) as session:
        session.execute(delete(SegmentImport).where(SegmentImport.id == import_id))


def _row(
    import_id: uuid.UUID,
    dataset: Dataset,
    document: Document,
    name: str,
    sheet: Sheet,
    actor: uuid.UUID,
) -> SegmentImport:
    return SegmentImport(
        id=import_id,
        dataset_id=dataset.id,
        document_id=document.id,
        name=name[:255],
        rows=len(sheet.items),
        warnings=list(sheet.warnings),
        created_by=actor,
    )


def get_import(session: Session, document: Document, import_id: uuid.UUID) -> SegmentImport:
    """The import, if it is one of this document's.

    Raises:
        NotFound: it is not.
    """
    row = session.get(SegmentImport, import_id)
    if row is None or row.document_id != document.id:
        raise NotFound("import of segments", import_id)
    return row


def run_import(resources: Resources, payload: dict[str, Any]) -> None:
    """The job: embed the rows, then add them all in one transaction. Repeats safely."""
    import_id = uuid.UUID(payload["import_id"])
    with reading(resources.sessions) as session:
        row = session.get(SegmentImport, import_id)
    if row is None or row.state is not ImportState.WAITING:
        return
    items = [
        NewSegment(content, answer, tuple(words)) for content, answer, words in row.items or []
    ]
    try:
        _add(resources, row, items)
    except (Unavailable, ProviderNotInitialized):
        raise  # the job comes again
    except KBError as exc:
        log.warning("import %s ended: %s", import_id, exc)
        _end(resources, import_id, ImportState.ERROR, exc.message)


def _add(resources: Resources, row: SegmentImport, items: Sequence[NewSegment]) -> None:
    def find(session: Session) -> tuple[Dataset, Document]:
        dataset = session.get(Dataset, row.dataset_id)
        document = session.get(Document, row.document_id)
        if dataset is None or document is None:
            raise NotFound("document", row.document_id)
        return dataset, document

    def done(edit: Edit) -> None:
        mine = edit.session.get(SegmentImport, row.id, with_for_update=True)
        if mine is None or mine.state is not ImportState.WAITING:
            raise NotFound("import of segments that waits", row.id)
        mine.state, mine.items, mine.finished_at = ImportState.COMPLETED, None, now()

    def embedded(texts: int) -> None:
        with transaction(resources.sessions) as session:
            session.execute(
                update(SegmentImport)
                .where(SegmentImport.id == row.id)
                .values(embedded=min(texts, row.rows))
            )

    add_segments(Place(resources, find), items, also=done, progress=embedded, keep=True)


def _end(resources: Resources, import_id: uuid.UUID, state: ImportState, error: str) -> None:
    with transaction(resources.sessions) as session:
        session.execute(
            update(SegmentImport)
            .where(SegmentImport.id == import_id, SegmentImport.state == ImportState.WAITING)
            .values(state=state, items=None, error=error, finished_at=moment())
        )


does(JobKind.IMPORT_SEGMENTS, run_import)
