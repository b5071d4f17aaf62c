"""Routes of documents: create by text and by file, list, show, delete, progress."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from sqlalchemy import select
from sqlalchemy.orm import Session

from kb import document_listing, document_status, documents
from kb.api import shapes
from kb.api.bodies import JsonBody, MultipartForm, UpdateForm, one_file, parse
from kb.api.deps import Access, AccessDep, PageDep, path_id, query_text
from kb.api.document_metadata import entries_of
from kb.api.text import short
from kb.datasets import latest_rule
from kb.db import after_commit
from kb.documents import Upload, discard_upload, store_upload
from kb.errors import InvalidMetadata, InvalidParam, NotFound
from kb.models import Dataset, Document, DocumentVersion, PipelineRun, ProcessRule, UploadFile
from kb.ports import JobQueue
from kb.qa import check_source
from kb.schemas import (
    DocumentByText,
    DocumentIds,
    DocumentSettings,
    DocumentUpdate,
    DocumentUpdateByText,
)
from kb.settings import Limits

router = APIRouter(prefix="/v1/datasets/{dataset_id}", tags=["documents"])


@router.post("/document/create-by-text")
@router.post("/document/create_by_text", include_in_schema=False)
def create_by_text(dataset_id: str, body: JsonBody, access: AccessDep) -> dict[str, Any]:
    """Accept a text (`name`, `text`) and index it in the background; poll `batch` for progress.

    A document of the same name is replaced in place: it keeps its id, and its old text answers
    until the new one is complete.
    """
    asked = parse(DocumentByText, body)
    limits = access.resources.settings.limits
    name = checked_name(asked.name, limits)
    upload = _text(name, asked.text, limits)

    def add(session: Session, dataset: Dataset, file: UploadFile | None) -> Document:
        assert file is not None
        row = documents.add_document(session, dataset, name, file, asked, access.resources)
        check_source(session, row, upload, access.resources)
        return row

    return _accept(dataset_id, upload, add, access)


def checked_name(name: str, limits: Limits) -> str:
    """A document's name, cut to the limit.

    Raises:
        InvalidParam: it is blank.
    """
    if not name.strip():
        raise InvalidParam(f"name is {short(name)}; give the document a name")
    return name[: limits.document_name_chars]


def _text(name: str, text: str, limits: Limits) -> Upload:
    if not text.strip():
        raise InvalidParam("text is blank, so there is nothing to index; send some text")
    if len(text) > limits.text_chars:
        raise InvalidParam(
            f"text has {len(text):,} characters, the limit is {limits.text_chars:,}; split "
            "it, or raise KB_LIMITS__TEXT_CHARS"
        )
    return Upload(f"{name.replace('/', '_')}.txt", text.encode(), "text/plain", is_text=True)


@router.post("/document/create-by-file")
@router.post("/document/create_by_file", include_in_schema=False)
def create_by_file(dataset_id: str, form: MultipartForm, access: AccessDep) -> dict[str, Any]:
    """Accept a file (multipart: `file`, and settings as JSON in `data`) and index it in the
    background; poll `batch` for progress. Replaces a document of the same name unless
    `duplicate` is false.
    """
    asked = parse(DocumentSettings, form.settings, what="part 'data'")
    if asked.embedding_model_provider and not asked.embedding_model:
        raise InvalidParam(
            f"embedding_model_provider is {asked.embedding_model_provider!r} without an "
            "embedding_model; send both or neither"
        )
    upload = one_file(form, access.resources.settings.limits)

    def add(session: Session, dataset: Dataset, file: UploadFile | None) -> Document:
        assert file is not None
        row = documents.add_document(session, dataset, upload.name, file, asked, access.resources)
        check_source(session, row, upload, access.resources)
        return row

    return _accept(dataset_id, upload, add, access)


@router.post("/documents/{document_id}/update-by-text")
@router.post("/documents/{document_id}/update_by_text", include_in_schema=False)
def update_by_text(
    dataset_id: str, document_id: str, body: JsonBody, access: AccessDep
) -> dict[str, Any]:
    """Replace a document's text (`name`, `text`), or cut it anew (`process_rule`); `batch` stays.

    The old version answers until the new one is complete.
    """
    asked = parse(DocumentUpdateByText, body)
    limits = access.resources.settings.limits
    if asked.text is None and asked.process_rule is None:
        raise InvalidParam(
            "there is neither a text nor a process_rule, so nothing would change; send one of them"
        )
    if asked.text is not None and asked.name is None:
        raise InvalidParam("name is missing; a text needs one")
    name = None if asked.name is None else checked_name(asked.name, limits)
    upload = None if asked.text is None else _text(name or "", asked.text, limits)
    return _update(dataset_id, document_id, name, upload, asked, access)


@router.patch("/documents/{document_id}")
@router.post("/documents/{document_id}/update-by-file", include_in_schema=False)
@router.post("/documents/{document_id}/update_by_file", include_in_schema=False)
def update_by_file(
    dataset_id: str, document_id: str, form: UpdateForm, access: AccessDep
) -> dict[str, Any]:
    """Replace a document's file (multipart: `file`), or cut the one it has anew; settings as JSON
    in `data`, where `name` renames. `batch` stays.

    The old version answers until the new one is complete.
    """
    asked = parse(DocumentUpdate, form.settings, what="part 'data'")
    if not form.files and asked.process_rule is None:
        raise InvalidParam(
            "there is neither a file nor a process_rule, so nothing would change; send one of "
            "them, or rename the document with POST .../rename"
        )
    limits = access.resources.settings.limits
    upload = one_file(form, limits) if form.files else None
    name = upload.name if upload else None
    if asked.name is not None:
        name = checked_name(asked.name, limits)
    return _update(dataset_id, document_id, name, upload, asked, access)


def _update(
    dataset_id: str,
    document_id: str,
    name: str | None,
    upload: Upload | None,
    asked: DocumentUpdate,
    access: Access,
) -> dict[str, Any]:
    def update(session: Session, dataset: Dataset, file: UploadFile | None) -> Document:
        document = access.document(session, dataset, document_id, lock=True)
        row = documents.update_document(
            session, dataset, document, name, file, asked, access.resources
        )
        if upload is not None:
            check_source(session, row, upload, access.resources)
        return row

    return _accept(dataset_id, upload, update, access)


def _accept(
    dataset_id: str,
    upload: Upload | None,
    change: Callable[[Session, Dataset, UploadFile | None], Document],
    access: Access,
) -> dict[str, Any]:
    """Keep the upload's bytes, if there is one, make the change that needs it, and announce it."""
    # The bytes are kept before the transaction begins, so that no writer waits for a disk.
    blobs = access.resources.blobs
    stored = store_upload(upload, blobs=blobs, resources=access.resources) if upload else None
    kept = (stored.id, stored.blob_key) if stored else None
    try:
        with access.writing() as session:
            dataset = access.dataset(session, dataset_id, lock=True)
            row = change(session, dataset, stored)
            _announce(session, row, access.resources.jobs)
            return answer_of(session, row, stored or session.get(UploadFile, row.upload_file_id))
    except BaseException as exc:
        if kept is not None:
            discard_upload(*kept, exc, access.resources)
        raise


def _announce(session: Session, row: Document, jobs: JobQueue) -> None:
    """Tell the workers of a document that waits, once it does."""
    after_commit(session, lambda: jobs.index_document(row.id, row.queue))


def answer_of(session: Session, row: Document, upload: UploadFile | None) -> dict[str, Any]:
    """What every route that changes a document answers."""
    _, hits = documents.segment_counts(session, [row.id]).get(row.id, (0, 0))
    metadata = entries_of(session, [row])[row.id]
    return {"document": shapes.document(row, upload, hits, metadata), "batch": row.batch}


@router.get("/documents", response_class=JSONResponse)
def list_documents(request: Request, dataset_id: str, page: PageDep, access: AccessDep) -> Response:
    """List documents, newest first; `keyword` is a part of the name, `status` a display status."""
    with access.reading() as session:
        rows, total = document_listing.list_documents(
            session,
            access.dataset(session, dataset_id).id,
            page=page.page,
            limit=page.limit,
            keyword=query_text(request, "keyword"),
            status=query_text(request, "status"),
        )
        metadata = entries_of(session, [row.document for row in rows])
    answer = {
        "data": [
            shapes.document(row.document, row.upload, row.hits, metadata[row.document.id])
            for row in rows
        ],
        "has_more": len(rows) == page.asked,
        "limit": page.asked,
        "total": total,
        "page": page.page,
    }
    return JSONResponse(answer)  # as it is: checking every field takes longer than reading it


@router.get("/documents/{document_id}")
def get_document(
    request: Request, dataset_id: str, document_id: str, access: AccessDep
) -> dict[str, Any]:
    """Show a document; `metadata=all|only|without`."""
    with access.reading() as session:
        document = access.document(session, access.dataset(session, dataset_id), document_id)
        wanted = request.query_params.get("metadata", "all")
        if wanted not in ("all", "only", "without"):
            raise InvalidMetadata(f"metadata is {short(wanted)}; use all, only or without")
        rule = document.process_rule_id and session.get(ProcessRule, document.process_rule_id)
        run = session.scalar(
            select(PipelineRun)
            .where(PipelineRun.document_id == document.id, PipelineRun.status == "succeeded")
            .order_by(PipelineRun.started_at.desc())
            .limit(1)
        )
        shape = shapes.document_detail(
            document,
            session.get(UploadFile, document.upload_file_id),
            rule or None,
            latest_rule(session, document.dataset_id),
            _version(session, document, document.pending_version or document.version),
            documents.segment_counts(session, [document.id]).get(document.id, (0, 0)),
            run.nodes if run else None,
            entries_of(session, [document])[document.id],
        )
    if wanted == "only":
        return {key: shape[key] for key in ("id", "doc_type", "doc_metadata")}
    if wanted == "without":
        return {k: v for k, v in shape.items() if k not in ("doc_type", "doc_metadata")}
    return shape


def _version(session: Session, document: Document, number: int) -> DocumentVersion | None:
    return session.scalar(
        select(DocumentVersion).where(
            DocumentVersion.document_id == document.id, DocumentVersion.number == number
        )
    )


@router.get("/documents/{document_id}/text")
def get_text(dataset_id: str, document_id: str, access: AccessDep) -> Response:
    """The extracted text that segment offsets point into (ours, beyond the contract)."""
    with access.reading() as session:
        document = access.document(session, access.dataset(session, dataset_id), document_id)
        version = _version(session, document, document.version)
        key = version.text_key if version else None
    if key is None:
        status = document.indexing_status.value
        raise NotFound(
            f"extracted text while indexing_status is {status!r} of document", document.name
        )
    text = access.resources.blobs.get(key)
    return Response(text, media_type="text/plain; charset=utf-8")


@router.delete("/documents/{document_id}", status_code=204)
def delete_document(dataset_id: str, document_id: str, access: AccessDep) -> Response:
    """Delete a document with its segments and index entries."""
    with access.writing() as session:
        dataset = access.dataset(session, dataset_id, lock=True)
        document = access.document(session, dataset, document_id, lock=True)
        documents.delete_document(session, dataset, document)
        after_commit(session, access.resources.jobs.run_jobs)
    return Response(status_code=204)


@router.patch("/documents/status/{action}")
def set_availability(
    dataset_id: str, action: str, body: JsonBody, access: AccessDep
) -> dict[str, Any]:
    """Enable, disable, archive or un_archive the documents `document_ids`, all of them or none.

    In force when the call returns. Unknown ids are passed over.
    """
    wanted = document_status.known_availability(action)
    asked = parse(DocumentIds, body)
    with access.writing() as session:
        dataset = access.dataset(session, dataset_id, lock=True)
        document_status.set_availability(
            session, dataset.id, _known_ids(asked), wanted, access.resources.owner_id
        )
    return {"result": "success"}


def _known_ids(asked: DocumentIds) -> list[uuid.UUID]:
    """Those that can be ids at all."""
    found = []
    for text in asked.document_ids:
        try:
            found.append(path_id("document", text))
        except NotFound:
            continue
    return found


@router.get("/documents/{batch}/indexing-status")
def indexing_status(dataset_id: str, batch: str, access: AccessDep) -> dict[str, Any]:
    """How far the documents of an upload call have got."""
    with access.reading() as session:
        rows = documents.list_batch(session, access.dataset(session, dataset_id).id, batch)
        return {
            "data": [shapes.indexing_status(row, documents.progress(session, row)) for row in rows]
        }
