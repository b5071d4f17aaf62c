"""Routes of documents: create by text and by file, list, show, delete, progress."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from sqlalchemy import select

from kb import documents
from kb.api import shapes
from kb.api.deps import (
    CallerDep,
    DatasetDep,
    DatasetToWrite,
    DocumentDep,
    DocumentToWrite,
    JsonBody,
    MultipartForm,
    PageDep,
    ReadSessionDep,
    ResourcesDep,
    RunnerDep,
    SessionDep,
    find_dataset,
    parse,
)
from kb.datasets import latest_rule
from kb.db import after_commit, reading, transaction
from kb.documents import Upload, check_upload, store_upload
from kb.errors import FilenameMissing, InvalidParam, KBError, NoFileUploaded, NotFound, TooManyFiles
from kb.models import Document, DocumentVersion, PipelineRun, ProcessRule, UploadFile
from kb.resources import Resources
from kb.runner import Runner
from kb.schemas import DocumentByText, DocumentSettings

router = APIRouter(prefix="/v1/datasets/{dataset_id}", tags=["documents"])


class InvalidMetadata(KBError):
    """The query value `metadata` is not one of all, only, without."""

    status, code = 400, "invalid_metadata"


@router.post("/document/create-by-text")
@router.post("/document/create_by_text", include_in_schema=False)
def create_by_text(
    dataset_id: str, body: JsonBody, caller: CallerDep, resources: ResourcesDep, runner: RunnerDep
) -> dict[str, Any]:
    """Accept a text (`name`, `text`) and index it in the background; poll `batch` for progress.

    A document of the same name is replaced in place: it keeps its id, and its old text answers
    until the new one is complete.
    """
    with reading(resources.sessions) as session:
        find_dataset(session, caller, dataset_id)
    asked = parse(DocumentByText, body)
    limits = resources.settings.limits
    if not asked.name.strip():
        raise InvalidParam("name is empty; give the document a name")
    if not asked.text.strip():
        raise InvalidParam("text is empty; there is nothing to index")
    if len(asked.text) > limits.text_chars:
        raise InvalidParam(
            f"text has {len(asked.text):,} characters, the limit is {limits.text_chars:,}; split "
            "it, or raise KB_LIMITS__TEXT_CHARS"
        )
    name = asked.name[: limits.document_name_chars]
    data = asked.text.encode("utf-8", "surrogatepass")
    upload = Upload(f"{name.replace('/', '_')}.txt", data, "text/plain")
    return _accept(dataset_id, caller, name, upload, asked, resources, runner)


@router.post("/document/create-by-file")
@router.post("/document/create_by_file", include_in_schema=False)
def create_by_file(
    dataset_id: str,
    form: MultipartForm,
    caller: CallerDep,
    resources: ResourcesDep,
    runner: RunnerDep,
) -> dict[str, Any]:
    """Accept a file (multipart: `file`, and settings as JSON in `data`) and index it in the
    background; poll `batch` for progress. Replaces a document of the same name unless
    `duplicate` is false.
    """
    with reading(resources.sessions) as session:
        find_dataset(session, caller, dataset_id)
    asked = parse(DocumentSettings, form.settings)
    if asked.embedding_model_provider and not asked.embedding_model:
        raise InvalidParam("embedding_model_provider is set, so embedding_model must be too")
    if not form.files:
        raise NoFileUploaded("no file was sent; send one part named 'file'")
    if len(form.files) > 1:
        raise TooManyFiles(f"{len(form.files)} files were sent; send one per call")
    file = form.files[0]
    if not file.name:
        raise FilenameMissing("the part 'file' has no file name; send filename=...")
    limits = resources.settings.limits
    upload = check_upload(
        Upload(file.name, file.data, file.media_type),
        max_bytes=limits.file_bytes,
        max_name_chars=limits.document_name_chars,
    )
    return _accept(dataset_id, caller, upload.name, upload, asked, resources, runner)


def _accept(
    dataset_id: str,
    caller: CallerDep,
    name: str,
    upload: Upload,
    asked: DocumentSettings,
    resources: Resources,
    runner: Runner | None,
) -> dict[str, Any]:
    # The bytes are kept before the transaction begins, so that no writer waits for a disk.
    stored = store_upload(upload, blobs=resources.blobs, resources=resources)
    try:
        with transaction(resources.sessions) as session:
            dataset = find_dataset(session, caller, dataset_id)
            row = documents.add_document(session, dataset, name, stored, asked, resources)
            if runner is not None:
                after_commit(session, runner.wake)
            hits = documents.segment_counts(session, [row.id]).get(row.id, (0, 0))[1]
            shape = shapes.document(row, stored, hits)
    except BaseException:
        resources.blobs.delete(stored.blob_key)
        raise
    return {"document": shape, "batch": row.batch}


@router.get("/documents")
def list_documents(
    request: Request, page: PageDep, dataset: DatasetDep, session: ReadSessionDep
) -> dict[str, Any]:
    """List documents, newest first; `keyword` is a part of the name, `status` a display status."""
    rows, total = documents.list_documents(
        session,
        dataset.id,
        page=page.page,
        limit=page.limit,
        keyword=request.query_params.get("keyword"),
        status=request.query_params.get("status"),
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
    request: Request, dataset: DatasetDep, document: DocumentDep, session: ReadSessionDep
) -> dict[str, Any]:
    """Show a document; `metadata=all|only|without`."""
    wanted = request.query_params.get("metadata", "all")
    if wanted not in ("all", "only", "without"):
        raise InvalidMetadata(f"metadata is {wanted!r}; use all, only or without")
    rule = session.get(ProcessRule, document.process_rule_id) if document.process_rule_id else None
    run = session.scalar(
        select(PipelineRun)
        .where(PipelineRun.document_id == document.id, PipelineRun.status == "succeeded")
        .order_by(PipelineRun.started_at.desc())
        .limit(1)
    )
    shape = shapes.document_detail(
        document,
        session.get(UploadFile, document.upload_file_id),
        rule,
        latest_rule(session, dataset.id),
        _version(session, document),
        documents.segment_counts(session, [document.id]).get(document.id, (0, 0)),
        run.nodes if run else None,
    )
    if wanted == "only":
        return {key: shape[key] for key in ("id", "doc_type", "doc_metadata")}
    if wanted == "without":
        return {k: v for k, v in shape.items() if k not in ("doc_type", "doc_metadata")}
    return shape


def _version(session: ReadSessionDep, document: Document) -> DocumentVersion | None:
    return session.scalar(
        select(DocumentVersion).where(
            DocumentVersion.document_id == document.id,
            DocumentVersion.number == (document.pending_version or document.version),
        )
    )


@router.get("/documents/{document_id}/text")
def get_text(document: DocumentDep, session: ReadSessionDep, resources: ResourcesDep) -> Response:
    """The extracted text that segment offsets point into (ours, beyond the contract)."""
    version = session.scalar(
        select(DocumentVersion).where(
            DocumentVersion.document_id == document.id, DocumentVersion.number == document.version
        )
    )
    if version is None or version.text_key is None:
        raise NotFound("extracted text of document", document.id)
    return Response(resources.blobs.get(version.text_key), media_type="text/plain; charset=utf-8")


@router.delete("/documents/{document_id}", status_code=204)
def delete_document(
    dataset: DatasetToWrite, document: DocumentToWrite, session: SessionDep, runner: RunnerDep
) -> Response:
    """Delete a document with its segments and index entries."""
    documents.delete_document(session, dataset, document)
    if runner is not None:
        after_commit(session, runner.wake)
    return Response(status_code=204)


@router.post("/documents/{document_id}/retry")
def retry_document(
    document: DocumentToWrite, session: SessionDep, runner: RunnerDep
) -> dict[str, Any]:
    """Queue a failed document again (ours, beyond the contract)."""
    documents.retry_document(document)
    if runner is not None:
        after_commit(session, runner.wake)
    session.flush()
    upload = session.get(UploadFile, document.upload_file_id)
    return {"document": shapes.document(document, upload, 0), "batch": document.batch}


@router.get("/documents/{batch}/indexing-status")
def indexing_status(batch: str, dataset: DatasetDep, session: ReadSessionDep) -> dict[str, Any]:
    """How far the documents of an upload call have got."""
    rows = documents.list_batch(session, dataset.id, batch)
    return {"data": [shapes.indexing_status(row, documents.progress(session, row)) for row in rows]}
