"""Routes of documents: create by text and by file, list, show, delete, progress."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from kb import documents
from kb.api import shapes
from kb.api.bodies import JsonBody, MultipartForm, parse
from kb.api.deps import Access, AccessDep, PageDep, query_text
from kb.api.text import short
from kb.datasets import latest_rule
from kb.db import after_commit
from kb.documents import Upload, check_upload, discard_upload, store_upload
from kb.errors import (
    FilenameMissing,
    InvalidMetadata,
    InvalidParam,
    NoFileUploaded,
    NotFound,
    TooManyFiles,
)
from kb.models import Document, DocumentVersion, PipelineRun, ProcessRule, UploadFile
from kb.ports import JobQueue
from kb.schemas import DocumentByText, DocumentSettings
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
    _check_text(asked, access.resources.settings.limits)
    name = asked.name[: access.resources.settings.limits.document_name_chars]
    upload = Upload(
        f"{name.replace('/', '_')}.txt", asked.text.encode(), "text/plain", is_text=True
    )
    return _accept(dataset_id, name, upload, asked, access)


def _check_text(asked: DocumentByText, limits: Limits) -> None:
    if not asked.name.strip():
        raise InvalidParam(f"name is {short(asked.name)}; give the document a name")
    if not asked.text.strip():
        raise InvalidParam("text is blank, so there is nothing to index; send some text")
    if len(asked.text) > limits.text_chars:
        raise InvalidParam(
            f"text has {len(asked.text):,} characters, the limit is {limits.text_chars:,}; split "
            "it, or raise KB_LIMITS__TEXT_CHARS"
        )


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
    if not form.files:
        raise NoFileUploaded("the upload has no file; send one part named 'file'")
    if len(form.files) > 1:
        raise TooManyFiles(f"the upload has {len(form.files)} files; send one file per call")
    file = form.files[0]
    if not file.name:
        raise FilenameMissing("the part 'file' has no file name; send it with filename=\"...\"")
    limits = access.resources.settings.limits
    upload = check_upload(
        Upload(file.name, file.data, file.media_type),
        max_bytes=limits.file_bytes,
        max_name_chars=limits.document_name_chars,
    )
    return _accept(dataset_id, upload.name, upload, asked, access)


def _accept(
    dataset_id: str,
    name: str,
    upload: Upload,
    asked: DocumentSettings,
    access: Access,
) -> dict[str, Any]:
    # The bytes are kept before the transaction begins, so that no writer waits for a disk.
    blobs = access.resources.blobs
    stored = store_upload(upload, blobs=blobs, resources=access.resources)
    file_id, key = stored.id, stored.blob_key
    try:
        with access.writing() as session:
            dataset = access.dataset(session, dataset_id, lock=True)
            row = documents.add_document(session, dataset, name, stored, asked, access.resources)
            _announce(session, row, access.resources.jobs)
            return _answer(session, row, stored)
    except BaseException as exc:
        discard_upload(file_id, key, exc, access.resources)
        raise


def _announce(session: Session, row: Document, jobs: JobQueue) -> None:
    """Tell the workers of a document that waits, once it does."""
    after_commit(session, lambda: jobs.index_document(row.id, row.queue))


def _answer(session: Session, row: Document, upload: UploadFile | None) -> dict[str, Any]:
    _, hits = documents.segment_counts(session, [row.id]).get(row.id, (0, 0))
    return {"document": shapes.document(row, upload, hits), "batch": row.batch}


@router.get("/documents")
def list_documents(
    request: Request, dataset_id: str, page: PageDep, access: AccessDep
) -> dict[str, Any]:
    """List documents, newest first; `keyword` is a part of the name, `status` a display status."""
    with access.reading() as session:
        rows, total = documents.list_documents(
            session,
            access.dataset(session, dataset_id).id,
            page=page.page,
            limit=page.limit,
            keyword=query_text(request, "keyword"),
            status=query_text(request, "status"),
        )
        counts = documents.segment_counts(session, [row.id for row in rows])
        uploads = {
            upload.id: upload
            for upload in session.scalars(
                select(UploadFile).where(UploadFile.id.in_([row.upload_file_id for row in rows]))
            )
        }
    return {
        "data": [
            shapes.document(row, uploads.get(row.upload_file_id), counts.get(row.id, (0, 0))[1])
            for row in rows
        ],
        "has_more": len(rows) == page.asked,
        "limit": page.asked,
        "total": total,
        "page": page.page,
    }


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
        document = access.document(session, dataset, document_id)
        documents.delete_document(session, dataset, document)
        after_commit(session, access.resources.jobs.run_jobs)
    return Response(status_code=204)


@router.post("/documents/{document_id}/retry")
def retry_document(dataset_id: str, document_id: str, access: AccessDep) -> dict[str, Any]:
    """Queue a failed document again (ours, beyond the contract)."""
    with access.writing() as session:
        dataset = access.dataset(session, dataset_id, lock=True)
        document = access.document(session, dataset, document_id)
        documents.retry_document(document)
        _announce(session, document, access.resources.jobs)
        session.flush()
        return _answer(session, document, session.get(UploadFile, document.upload_file_id))


@router.get("/documents/{batch}/indexing-status")
def indexing_status(dataset_id: str, batch: str, access: AccessDep) -> dict[str, Any]:
    """How far the documents of an upload call have got."""
    with access.reading() as session:
        rows = documents.list_batch(session, access.dataset(session, dataset_id).id, batch)
        return {
            "data": [shapes.indexing_status(row, documents.progress(session, row)) for row in rows]
        }
