"""Documents: accept, replace, update, find, rename, delete; how far each has got."""

from __future__ import annotations

import random
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import PurePosixPath

from sqlalchemy import and_, exists, func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from kb.datasets import latest_rule, set_retrieval_model, set_technique
from kb.db import now, reading
from kb.document_status import IN_WORK
from kb.errors import (
    ArchivedDocument,
    DocumentIndexing,
    FilenameMissing,
    FileTooLarge,
    InvalidParam,
    NotFound,
    UnsupportedFileType,
)
from kb.jobs import enqueue_delete, may_be_written
from kb.models import (
    ChildChunk,
    Dataset,
    DocForm,
    Document,
    DocumentVersion,
    IndexingTechnique,
    JobKind,
    ProcessRule,
    Segment,
    UploadFile,
    text_key,
)
from kb.ports import BlobStore, Queue
from kb.process_rules import ProcessRuleIn, validate
from kb.resources import Resources, space_of
from kb.schemas import DocumentSettings, DocumentUpdate
from kb.versions import itself, queue_version
from pipelines.nodes.extract import SUPPORTED_EXTENSIONS

_BATCH = re.compile("[0-9]{20}")


@dataclass(frozen=True)
class Upload:
    """A file as it arrived."""

    name: str
    data: bytes
    media_type: str | None
    is_text: bool = False
    """Sent as a text: whatever it looks like, it is taken as it is."""


@dataclass(frozen=True)
class Progress:
    """Segments of the newest version: in the index, and in all."""

    completed: int
    total: int


def check_upload(upload: Upload, *, max_bytes: int, max_name_chars: int) -> Upload:
    """The upload with its name cut to the limit.

    Raises:
        FilenameMissing, InvalidParam: no name, or a path for a name.
        UnsupportedFileType: no extractor reads this extension.
        FileTooLarge: more than `max_bytes`.
    """
    name = upload.name
    if not name.strip():
        raise FilenameMissing("the part 'file' has no file name; send it with filename=\"...\"")
    if "/" in name or "\\" in name:
        raise InvalidParam(
            f"file name {shorten(name)!r} holds a path; send the name alone, without '/' and '\\'"
        )
    extension = PurePosixPath(name).suffix.lstrip(".").lower()
    if extension not in SUPPORTED_EXTENSIONS:
        problem = f"type {extension[:32]!r} cannot be read" if extension else "it has no extension"
        raise UnsupportedFileType(
            f"{shorten(name)!r} is not supported: {problem}; convert it to one of "
            f"{', '.join(sorted(SUPPORTED_EXTENSIONS))}"
        )
    if len(upload.data) > max_bytes:
        raise FileTooLarge(
            f"{shorten(name)!r} has {len(upload.data):,} bytes, the limit is {max_bytes:,}; split "
            "it, or raise KB_LIMITS__FILE_BYTES"
        )
    if len(name) > max_name_chars:
        stem, _, _ = name.partition(".")
        name = f"{stem[:max_name_chars]}.{extension}"
    return Upload(name, upload.data, upload.media_type)


def shorten(name: str) -> str:
    """A name as messages quote it."""
    return name if len(name) <= 80 else f"{name[:77]}..."


def store_upload(
    upload: Upload, *, blobs: BlobStore, resources: Resources, folder: str = "uploads"
) -> UploadFile:
    """Keep the bytes (durably, before any row speaks of them) and describe them.

    Args:
        folder: first part of the blob's key.
    """
    file_id = uuid.uuid4()
    key = f"{folder}/{file_id}"
    blobs.put(key, upload.data)
    return UploadFile(
        id=file_id,
        workspace_id=resources.workspace_id,
        name=upload.name,
        size_bytes=len(upload.data),
        extension=PurePosixPath(upload.name).suffix.lstrip(".").lower(),
        media_type=upload.media_type,
        is_text=upload.is_text,
        sha256=sha256(upload.data).hexdigest(),
        blob_key=key,
        created_by=resources.owner_id,
    )


def discard_upload(
    file_id: uuid.UUID, key: str, error: BaseException, resources: Resources
) -> None:
    """Remove the bytes of an upload that failed, unless a row speaks of them.

    When the connection was lost, the commit may have happened, or happen yet: then they stay, and
    the doctor removes what nothing stands for.
    """
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return
    with reading(resources.sessions) as session:
        known = session.scalar(select(UploadFile.id).where(UploadFile.id == file_id))
    if known is None:
        resources.blobs.delete(key)


def add_document(
    session: Session,
    dataset: Dataset,
    name: str,
    upload: UploadFile,
    body: DocumentSettings,
    resources: Resources,
) -> Document:
    """Accept a file: a new document, or a new version of the one that has its name.

    The old version keeps answering until the new one is complete. The first document fixes the
    dataset's technique, form and retrieval settings.

    Args:
        dataset: locked, so that two uploads of one name become one document.
    Raises:
        InvalidParam: a setting that the dataset does not allow; the message says which.
        NotFound: `original_document_id` is not in this dataset.
    """
    _initialise(session, dataset, body, resources)
    rule = _rule(session, dataset, body.process_rule, resources)
    _store(session, upload)
    document = _replaced(session, dataset, name, body)
    if document is None:
        document = _new_document(session, dataset, resources)
    if body.original_document_id is None or not document.batch:
        document.batch = _new_batch()  # an update by id keeps the batch that its client polls
    document.name = name
    document.doc_language = body.doc_language
    _give_file(document, upload, resources)
    return _ingest(session, dataset, document, rule)


def update_document(
    session: Session,
    dataset: Dataset,
    document: Document,
    name: str | None,
    upload: UploadFile | None,
    body: DocumentUpdate,
    resources: Resources,
) -> Document:
    """Make a new version of a document: another file, or the same one cut by another rule.

    Its id, position and `batch` stay; the old version answers until the new one is complete.

    Args:
        dataset, document: locked.
        name: None keeps it.
        upload: None keeps the file.
    Raises:
        InvalidParam: it is disabled or archived, or a setting that the dataset does not allow.
    """
    check_changeable(document)
    _check_form(dataset, body.doc_form)
    rule = _rule(session, dataset, body.process_rule, resources)
    if upload is not None:
        _store(session, upload)
        _give_file(document, upload, resources)
    document.name = name or document.name
    document.doc_language = body.doc_language or document.doc_language
    return _ingest(session, dataset, document, rule)


def rename_document(document: Document, name: str) -> None:
    """In force with the commit; an upload of the new name replaces it from then on."""
    document.name, document.updated_at = name, now()


def check_changeable(document: Document) -> None:
    """Raises: InvalidParam: no new version of it can be made."""
    if document.archived or not document.enabled:
        state, remedy = ("archived", "un_archive") if document.archived else ("disabled", "enable")
        raise InvalidParam(
            f"document {document.name!r} is {state}, so it cannot be updated; {remedy} it first"
        )


def _new_document(session: Session, dataset: Dataset, resources: Resources) -> Document:
    last = session.scalar(
        select(func.coalesce(func.max(Document.position), 0)).where(
            Document.dataset_id == dataset.id
        )
    )
    return Document(
        dataset_id=dataset.id,
        position=(last or 0) + 1,
        created_by=resources.owner_id,
        version=0,
    )


def _store(session: Session, upload: UploadFile) -> None:
    """Its row is there before a document refers to it."""
    session.add(upload)
    session.flush()


def _give_file(document: Document, upload: UploadFile, resources: Resources) -> None:
    document.upload_file_id = upload.id
    small = upload.size_bytes <= resources.settings.ingestion.interactive_bytes
    document.queue = Queue.INTERACTIVE if small else Queue.BULK


def _ingest(session: Session, dataset: Dataset, document: Document, rule: ProcessRule) -> Document:
    """Queue the document's next version."""
    document.process_rule_id = rule.id
    document.doc_form = dataset.doc_form or DocForm.TEXT
    document.created_from = "api"
    session.add(document)
    session.flush()
    queue_version(session, document)
    return document


def _initialise(
    session: Session, dataset: Dataset, body: DocumentSettings, resources: Resources
) -> None:
    if dataset.indexing_technique is None:
        if body.indexing_technique is None:
            raise InvalidParam(
                f"indexing_technique is missing; dataset {dataset.name!r} has none yet, so its "
                "first document must say 'high_quality' or 'economy'"
            )
        set_technique(
            session,
            dataset,
            body.indexing_technique,
            body.embedding_model,
            body.embedding_model_provider,
            resources,
        )
    _check_form(dataset, body.doc_form)
    form = body.doc_form or dataset.doc_form or DocForm.TEXT
    if form is not DocForm.TEXT and dataset.indexing_technique is IndexingTechnique.ECONOMY:
        raise InvalidParam(
            f"doc_form {form.value!r} needs indexing_technique 'high_quality', and dataset "
            f"{dataset.name!r} is 'economy'; send 'text_model', or use another dataset"
        )
    dataset.doc_form = form
    dataset.data_source_type = dataset.data_source_type or "upload_file"
    if dataset.retrieval_model is None and body.retrieval_model is not None:
        set_retrieval_model(session, dataset, body.retrieval_model, resources)


def _check_form(dataset: Dataset, form: DocForm | None) -> None:
    if form is not None and dataset.doc_form is not None and form is not dataset.doc_form:
        raise InvalidParam(
            f"doc_form {form.value!r} does not fit dataset {dataset.name!r}, whose documents are "
            f"{dataset.doc_form.value!r}; leave doc_form out, or use another dataset"
        )


def _rule(
    session: Session, dataset: Dataset, asked: ProcessRuleIn | None, resources: Resources
) -> ProcessRule:
    if asked is None:
        latest = latest_rule(session, dataset.id)
        if latest is not None:
            return latest
        asked = ProcessRuleIn(mode="automatic")
    validate(asked)
    rule = ProcessRule(
        id=uuid.uuid4(),
        dataset_id=dataset.id,
        mode=asked.mode,
        rules=asked.stored(),
        created_by=resources.owner_id,
    )
    session.add(rule)
    session.flush()  # it is there before a document refers to it
    return rule


def _replaced(
    session: Session, dataset: Dataset, name: str, body: DocumentSettings
) -> Document | None:
    """The document that this upload is a new version of, if any."""
    if body.original_document_id is not None:
        document = get_document(session, dataset.id, body.original_document_id, lock=True)
        check_changeable(document)
        return document
    if not body.duplicate:
        return None
    document_id = session.scalar(
        select(Document.id)
        .where(
            Document.dataset_id == dataset.id,
            Document.name == name,
            Document.enabled,
            Document.archived.is_(False),
        )
        .order_by(Document.position)
        .limit(1)
    )
    if document_id is None:
        return None
    return get_document(session, dataset.id, document_id, lock=True)


def get_document(
    session: Session, dataset_id: uuid.UUID, document_id: uuid.UUID, *, lock: bool = False
) -> Document:
    """The document, if it is in this dataset.

    Args:
        lock: as it is now, and let nobody else change it until the transaction ends. A worker
            changes it at any time otherwise, and what is not read anew is not written, either.
    Raises:
        NotFound: it is not there.
    """
    document = session.get(
        Document,
        document_id,
        with_for_update={"key_share": True} if lock else None,
        populate_existing=lock,
    )
    if document is None or document.dataset_id != dataset_id:
        raise NotFound("document", document_id)
    return document


def list_batch(session: Session, dataset_id: uuid.UUID, batch: str) -> Sequence[Document]:
    """The documents of one upload call.

    Raises:
        NotFound: no document of this dataset has that batch.
    """
    if not _BATCH.fullmatch(batch):
        raise NotFound("batch", batch[:100])
    rows = session.scalars(
        select(Document)
        .where(Document.dataset_id == dataset_id, Document.batch == batch)
        .order_by(Document.position)
    ).all()
    if not rows:
        raise NotFound("batch", batch)
    return rows


def progress(session: Session, document: Document) -> Progress:
    """How many segments of the newest version are in the index."""
    if document.pending_version is None:
        part = and_(Segment.document_id == document.id, Segment.live)
    else:
        part = and_(
            Segment.document_id == document.id,
            Segment.staged_version == document.pending_version,
        )
    child_missing = exists().where(
        ChildChunk.segment_id == Segment.id,
        ChildChunk.indexed_at.is_(None),
        ChildChunk.staged_version.is_not(None),
    )
    indexed = (Segment.indexed_at.is_not(None)) | (Segment.has_children & ~child_missing)
    total, completed = session.execute(
        select(func.count(), func.count().filter(indexed)).select_from(Segment).where(part)
    ).one()
    return Progress(completed, total)


def segment_counts(
    session: Session, document_ids: Sequence[uuid.UUID]
) -> dict[uuid.UUID, tuple[int, int]]:
    """Live segments and the sum of their hits, per document."""
    rows = session.execute(
        select(Segment.document_id, func.count(), func.sum(Segment.hit_count))
        .where(Segment.document_id.in_(document_ids), Segment.live)
        .group_by(Segment.document_id)
    )
    return {row[0]: (row[1], row[2] or 0) for row in rows}


def delete_document(session: Session, dataset: Dataset, document: Document) -> None:
    """Remove a document; in force at once, the index and the files follow.

    Raises:
        ArchivedDocument: un-archive it first.
        DocumentIndexing: it is in work; wait, it ends by itself.
    """
    if document.archived:
        raise ArchivedDocument(
            f"document {document.name!r} is archived and stays; un-archive it first, or delete its "
            "dataset"
        )
    if document.indexing_status in IN_WORK and not document.is_paused:
        raise DocumentIndexing(
            f"document {document.name!r} is being indexed; delete it when its indexing_status is "
            "'completed' or 'error'"
        )
    versions = session.scalars(
        select(DocumentVersion).where(DocumentVersion.document_id == document.id)
    ).all()
    uploads = session.scalars(
        select(UploadFile).where(UploadFile.id.in_([v.upload_file_id for v in versions]))
    ).all()
    keys = [u.blob_key for u in uploads]
    keys += [v.text_key or text_key(document.id, v.number) for v in versions]
    space = space_of(dataset)
    again = may_be_written(session, itself(document))
    session.delete(document)
    session.flush()
    for upload in uploads:
        session.delete(upload)
    enqueue_delete(session, JobKind.DELETE_BLOBS, again=again, keys=keys)
    if space is not None:
        enqueue_delete(
            session,
            JobKind.DELETE_DOCUMENT,
            again=again,
            space=space.name,
            dim=space.dim,
            dataset_id=str(dataset.id),
            document_id=str(document.id),
        )


def _new_batch() -> str:
    """`YYYYMMDDHHMMSS` and six random digits, as existing clients expect."""
    return f"{now():%Y%m%d%H%M%S}{random.randint(100_000, 999_999)}"
