"""A dataset as an archive, made while it is sent: some documents are held in memory at a time."""

from __future__ import annotations

import io
import uuid
import zipfile
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from kb.archive.layout import (
    DATASET,
    FORMAT,
    FORMAT_VERSION,
    MANIFEST,
    SEAL,
    VECTORS,
    ChildRecord,
    Counts,
    DatasetRecord,
    DocumentRecord,
    Embedding,
    FieldRecord,
    Manifest,
    Member,
    OverlayRecord,
    Record,
    Rule,
    SegmentRecord,
    Source,
)
from kb.datasets import members_of
from kb.db import Sessions, now, reading
from kb.errors import InvalidParam, NotFound
from kb.ingestion.embedding_cache import find_vectors
from kb.metadata.fields import fields_of, list_fields
from kb.models import (
    EXTERNAL,
    ChildChunk,
    Dataset,
    Document,
    DocumentVersion,
    ProcessRule,
    Segment,
    SegmentOverlay,
    UploadFile,
)
from kb.ports import Space
from kb.resources import Resources, space_of
from kb.tags import tags_of
from kb.zip_stream import open_zip

_SHARD_BYTES = 4_000_000
_DOCUMENTS = 200
_AGE = (1980, 1, 1, 0, 0, 0)  # the same dataset gives the same bytes


def export_dataset(
    resources: Resources, dataset_id: uuid.UUID, *, with_vectors: bool
) -> Iterator[bytes]:
    """The archive's bytes, in order.

    Each document is as one moment has it: its live version, whatever is in work beside it; one
    that never went live is exported as its source. What is deleted meanwhile is left out.

    Args:
        with_vectors: those of the embedding cache, so that the importer needs no model.
    Raises:
        NotFound: there is no such dataset.
        InvalidParam: another service holds its knowledge.
    """
    with reading(resources.sessions) as session:
        row = session.get(Dataset, dataset_id)
        if row is None:
            raise NotFound("dataset", dataset_id)
        if row.provider == EXTERNAL:
            raise InvalidParam(
                f"dataset {row.name!r} is external: its knowledge is with another service, so "
                "there is nothing to export"
            )
        dataset, space = _dataset(session, row), space_of(row)
        model = (row.embedding_model_provider, row.embedding_model)
    zipped = _Zip()
    yield from zipped.add(DATASET, _json(dataset))
    shards = _Shards(resources, zipped, space if with_vectors else None)
    for document_id in _documents(resources.sessions, dataset_id):
        yield from shards.add(document_id)
    yield from shards.end()
    dense = space is not None and space.dim is not None
    manifest = Manifest(
        format=FORMAT,
        format_version=FORMAT_VERSION,
        kb_version=_version(),
        created_at=now(),
        name=dataset.name,
        embedding=Embedding(space=space.name, dim=space.dim, provider=model[0], model=model[1])
        if space is not None and space.dim is not None
        else None,
        vectors=with_vectors and dense,
        counts=Counts(**{name: shards.counts[name] for name in Counts.model_fields}),
        members=zipped.members,
    )
    yield from zipped.end(_json(manifest))


class _Zip:
    """Writes a zip to whoever takes its bytes."""

    def __init__(self) -> None:
        self._zip, self._out = open_zip()
        self.members: dict[str, Member] = {}

    def add(self, name: str, data: bytes, *, packed: bool = True) -> Iterator[bytes]:
        self.members[name] = Member(bytes=len(data), sha256=sha256(data).hexdigest())
        self._write(name, data, packed=packed)
        yield from self._out.take()

    def end(self, manifest: bytes) -> Iterator[bytes]:
        self._write(MANIFEST, manifest, packed=True)
        self._zip.comment = f"{SEAL}{sha256(manifest).hexdigest()}".encode()
        self._zip.close()
        yield from self._out.take()

    def _write(self, name: str, data: bytes, *, packed: bool) -> None:
        info = zipfile.ZipInfo(name, _AGE)
        info.external_attr = 0o644 << 16
        method = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
        self._zip.writestr(info, data, compress_type=method, compresslevel=3)


@dataclass(frozen=True)
class _Exported:
    """One document as a moment has it, and where its bytes are."""

    record: DocumentRecord
    rows: list[Record]
    hashes: list[str]
    source_key: str
    text_key: str | None


class _Shards:
    """Collects documents into files of some megabytes; sources go before what names them."""

    def __init__(self, resources: Resources, zipped: _Zip, space: Space | None) -> None:
        self._resources = resources
        self._zip = zipped
        self._space = space if space is not None and space.dim is not None else None
        self._lines: list[bytes] = []
        self._bytes = 0
        self._hashes: dict[str, None] = {}
        self._number = self._vector_files = 0
        self.counts: Counter[str] = Counter()

    def add(self, document_id: uuid.UUID) -> Iterator[bytes]:
        with reading(self._resources.sessions) as session:
            found = _document(session, document_id)
        if found is None:
            return
        record = found.record
        source = yield from self._blob("sources", found.source_key)
        if source is None:
            record = record.model_copy(
                update={"source": record.source.model_copy(update={"lost": True})}
            )
        elif source != record.source.sha256:  # a damaged file stays one: what counts is its bytes
            record = record.model_copy(
                update={"source": record.source.model_copy(update={"sha256": source})}
            )
        text = None
        if found.text_key is not None:
            text = yield from self._blob("texts", found.text_key)
        record = record.model_copy(update={"text": text})
        lines = [_json(row) for row in (record, *found.rows)]
        self._lines += lines
        self._bytes += sum(map(len, lines))
        self._hashes.update(dict.fromkeys(found.hashes))
        segments = sum(isinstance(row, SegmentRecord) for row in found.rows)
        self.counts.update(
            documents=1,
            live_documents=int(record.live),
            segments=segments,
            children=len(found.rows) - segments,
        )
        if self._bytes >= _SHARD_BYTES:
            yield from self.end()

    def end(self) -> Iterator[bytes]:
        """Write what is collected."""
        if not self._lines:
            return
        hashes = list(self._hashes)
        for at in range(0, len(hashes), VECTORS) if self._space else ():
            yield from self._vectors(hashes[at : at + VECTORS])
        self._number += 1
        yield from self._zip.add(f"documents/{self._number:06}.jsonl", b"\n".join(self._lines))
        self._lines, self._bytes, self._hashes = [], 0, {}

    def _blob(self, folder: str, key: str) -> Generator[bytes, None, str | None]:
        """Add a blob unless it is there; gives its SHA-256, None when it is gone."""
        try:
            data = self._resources.blobs.get(key)
        except NotFound:
            return None
        digest = sha256(data).hexdigest()
        name = f"{folder}/{digest}"
        if name not in self._zip.members:
            self.counts.update(sources=int(folder == "sources"))
            yield from self._zip.add(name, data)
        return digest

    def _vectors(self, hashes: Sequence[str]) -> Iterator[bytes]:
        assert self._space is not None
        with reading(self._resources.sessions) as session:
            found = find_vectors(session, self._space.name, hashes)
        known = [h for h in hashes if h in found and found[h].shape == (self._space.dim,)]
        if not known:
            return
        self._vector_files += 1
        packed = io.BytesIO()
        np.save(packed, np.stack([found[h] for h in known]).astype("<f4"), allow_pickle=False)
        name = f"vectors/{self._vector_files:06}"
        self.counts.update(vectors=len(known))
        yield from self._zip.add(f"{name}.npy", packed.getvalue(), packed=False)
        yield from self._zip.add(f"{name}.txt", "\n".join(known).encode())


def _documents(sessions: Sessions, dataset_id: uuid.UUID) -> Iterator[uuid.UUID]:
    after = (-(2**31), uuid.UUID(int=0))
    while True:
        with reading(sessions) as session:
            rows = session.execute(
                select(Document.position, Document.id)
                .where(Document.dataset_id == dataset_id)
                .where(
                    (Document.position > after[0])
                    | ((Document.position == after[0]) & (Document.id > after[1]))
                )
                .order_by(Document.position, Document.id)
                .limit(_DOCUMENTS)
            ).all()
        if not rows:
            return
        yield from (row[1] for row in rows)
        after = (rows[-1][0], rows[-1][1])


def _dataset(session: Session, row: Dataset) -> DatasetRecord:
    rules = session.scalars(
        select(ProcessRule)
        .where(ProcessRule.dataset_id == row.id)
        .order_by(ProcessRule.created_at, ProcessRule.id)
    )
    return DatasetRecord(
        id=row.id,
        name=row.name,
        description=row.description,
        permission=row.permission,
        data_source_type=row.data_source_type,
        technique=row.indexing_technique,
        doc_form=row.doc_form,
        average_length=row.average_length,
        retrieval_model=row.retrieval_model,
        summary_index_setting=row.summary_index_setting,
        created_at=row.created_at,
        rules=[
            Rule(id=rule.id, mode=rule.mode, rules=rule.rules, created_at=rule.created_at)
            for rule in rules
        ],
        fields=[
            FieldRecord(id=own.id, name=own.name, field=own.type, created_at=own.created_at)
            for own in list_fields(session, [row.id])
        ],
        built_in_fields=row.built_in_field_enabled,
        tags=[tag.name for tag in tags_of(session, [row.id])[row.id]],
        members=members_of(session, [row.id])[row.id],
    )


def _document(session: Session, document_id: uuid.UUID) -> _Exported | None:
    document = session.get(Document, document_id)
    if document is None:
        return None
    version = session.scalar(
        select(DocumentVersion).where(
            DocumentVersion.document_id == document_id,
            DocumentVersion.number == document.version,
        )
    )
    upload = session.get(
        UploadFile, version.upload_file_id if version is not None else document.upload_file_id
    )
    if upload is None:
        return None
    live = version is not None
    record = DocumentRecord(
        id=document.id,
        position=document.position,
        name=document.name,
        batch=document.batch,
        data_source_type=document.data_source_type,
        doc_form=document.doc_form,
        doc_language=document.doc_language,
        doc_metadata=_values(session, document),
        created_from=document.created_from,
        created_at=document.created_at,
        updated_at=document.updated_at,
        completed_at=document.completed_at,
        enabled=document.enabled,
        disabled_at=document.disabled_at,
        archived=document.archived,
        is_paused=document.is_paused and not live,
        rule=version.process_rule_id if version is not None else document.process_rule_id,
        source=Source(
            name=upload.name,
            bytes=upload.size_bytes,
            extension=upload.extension,
            media_type=upload.media_type,
            is_text=upload.is_text,
            sha256=upload.sha256,
        ),
        live=live,
        text=None,
        warnings=version.warnings if version is not None else None,
        overlays=_overlays(session, document_id) if live else [],
    )
    rows, hashes = _rows(session, document_id) if live else ([], [])
    text_key = version.text_key if version is not None else None
    return _Exported(record, rows, hashes, upload.blob_key, text_key)


def _overlays(session: Session, document_id: uuid.UUID) -> list[OverlayRecord]:
    rows = session.scalars(
        select(SegmentOverlay)
        .where(SegmentOverlay.document_id == document_id)
        .order_by(SegmentOverlay.created_at, SegmentOverlay.id)
    )
    return [
        OverlayRecord(**{name: getattr(row, name) for name in OverlayRecord.model_fields})
        for row in rows
    ]


def _values(session: Session, document: Document) -> dict[str, Any] | None:
    """By field id, without what fields left that were deleted."""
    if not document.doc_metadata:
        return None
    known = fields_of(session, [document.dataset_id])[document.dataset_id].by_id
    return {i: value for i, value in document.doc_metadata.items() if i in known} or None


def _rows(session: Session, document_id: uuid.UUID) -> tuple[list[Record], list[str]]:
    """Records of the live segments and children, and the hashes of the texts with a vector."""
    rows: list[Record] = []
    hashes: list[str] = []
    for segment in session.scalars(
        select(Segment)
        .where(Segment.document_id == document_id, Segment.live)
        .order_by(Segment.position, Segment.id)
    ):
        rows.append(
            SegmentRecord(
                **{n: getattr(segment, n) for n in SegmentRecord.model_fields if n != "type"}
            )
        )
        if not segment.has_children:
            hashes.append(segment.text_hash)
    for child in session.scalars(
        select(ChildChunk)
        .where(ChildChunk.document_id == document_id, ChildChunk.live)
        .order_by(ChildChunk.segment_id, ChildChunk.position, ChildChunk.id)
    ):
        own = {n: getattr(child, n) for n in ChildRecord.model_fields if n not in ("type", "made")}
        rows.append(ChildRecord(**own, made=child.type))
        hashes.append(child.text_hash)
    return rows, hashes


def _json(record: Record) -> bytes:
    return record.model_dump_json().encode()


def _version() -> str:
    try:
        return version("kb-engine")
    except PackageNotFoundError:
        return "unknown"
