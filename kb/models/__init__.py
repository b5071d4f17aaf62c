"""All tables, on one page; newer nouns stand beside it and are imported here."""

from __future__ import annotations

import uuid
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    ForeignKey,
    Index,
    LargeBinary,
    String,
    Text,
    UniqueConstraint,
    false,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from kb.db import Base, Sealed
from kb.models.chat import CachedAnswer as CachedAnswer
from kb.models.columns import (
    CreatedAt,
    DatasetId,
    DocumentId,
    Id,
    Json,
    Name,
    WorkspaceId,
    enum_of,
)
from kb.models.external import EXTERNAL as EXTERNAL
from kb.models.external import ExternalApi as ExternalApi
from kb.models.external import ExternalBinding as ExternalBinding
from kb.models.imports import ImportState as ImportState
from kb.models.imports import SegmentImport as SegmentImport
from kb.models.overlays import OverlayKind as OverlayKind
from kb.models.overlays import OverlayState as OverlayState
from kb.models.overlays import SegmentOverlay as SegmentOverlay
from kb.models.switches import DatasetSwitch as DatasetSwitch
from kb.models.switches import SwitchPoint as SwitchPoint
from kb.models.switches import SwitchStatus as SwitchStatus
from kb.models.tags import DatasetMember as DatasetMember
from kb.models.tags import Tag as Tag
from kb.models.tags import TagBinding as TagBinding
from kb.ports import Queue


class IndexingTechnique(StrEnum):
    """Whether a dataset has dense vectors."""

    HIGH_QUALITY = "high_quality"
    ECONOMY = "economy"


class DocForm(StrEnum):
    """How a dataset's documents are cut."""

    TEXT = "text_model"
    HIERARCHICAL = "hierarchical_model"
    QA = "qa_model"


class IndexingStatus(StrEnum):
    """How far the indexing of a document's newest version has got."""

    WAITING = "waiting"
    PARSING = "parsing"
    CLEANING = "cleaning"
    SPLITTING = "splitting"
    INDEXING = "indexing"
    COMPLETED = "completed"
    ERROR = "error"


UNFINISHED = (
    IndexingStatus.WAITING,
    IndexingStatus.PARSING,
    IndexingStatus.CLEANING,
    IndexingStatus.SPLITTING,
    IndexingStatus.INDEXING,
)
"""States that a worker will move on."""

UNFINISHED_SQL = "indexing_status IN ({})".format(", ".join(f"'{s.value}'" for s in UNFINISHED))
"""The same as a condition in SQL. An index over part of a table is used where a query says its
condition word by word."""


class FieldType(StrEnum):
    """What a metadata field's values are."""

    STRING = "string"
    NUMBER = "number"
    TIME = "time"
    """Unix seconds."""


HAS_HITS_SQL = "hit_count > 0"
"""Segments that were returned to somebody, as the index over them says it; see `UNFINISHED_SQL`."""


class SegmentStatus(StrEnum):
    """Whether a segment is in the index."""

    WAITING = "waiting"
    COMPLETED = "completed"


class JobKind(StrEnum):
    """Work that must happen after a commit, whatever dies in between."""

    DELETE_POINTS = "delete_points"
    DELETE_DOCUMENT = "delete_document"
    DELETE_DATASET = "delete_dataset"
    DELETE_BLOBS = "delete_blobs"
    CHECK_DRIFT = "check_drift"
    REBUILD_DATASET = "rebuild_dataset"
    DELIVER_WEBHOOK = "deliver_webhook"
    ABANDON_IMPORT = "abandon_import"
    SWITCH_DATASET = "switch_dataset"
    SETTLE_DATASET = "settle_dataset"
    LABEL_DOCUMENTS = "label_documents"
    SETTLE_POINTS = "settle_points"
    IMPORT_SEGMENTS = "import_segments"


class WebhookEvent(StrEnum):
    """What a webhook can be told of."""

    COMPLETED = "document.completed"
    FAILED = "document.failed"
    TEST = "webhook.test"
    """Sent when somebody asks for it, to whoever."""


class DeliveryStatus(StrEnum):
    """How far a webhook's message has got."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"
    """Given up; it is not tried again."""


class ModelType(StrEnum):
    """What a model does, as the contract's models route calls it."""

    EMBEDDING = "text-embedding"
    RERANK = "rerank"
    CHAT = "llm"


class ModelKind(StrEnum):
    """Where a model runs, and what its server speaks."""

    LOCAL = "local"
    """A directory on the machine of each process."""
    OPENAI = "openai"
    TEI = "tei"
    COHERE = "cohere"
    JINA = "jina"
    VLLM = "vllm"


class Workspace(Base):
    """The tenant that owns datasets and keys."""

    __tablename__ = "workspaces"
    id: Mapped[Id]
    name: Mapped[Name]
    created_at: Mapped[CreatedAt]
    link_secret: Mapped[str | None] = mapped_column(String(64))
    """Signs links to files; made with the first of them."""


IMPORTS_ID = uuid.UUID("00000000-0000-4000-8000-000000000001")
"""The workspace of datasets that are being imported; no key opens it."""


class Member(Base):
    """A person of a workspace; API keys act as its owner."""

    __tablename__ = "members"
    id: Mapped[Id]
    workspace_id: Mapped[WorkspaceId]
    name: Mapped[Name]
    role: Mapped[str] = mapped_column(String(16), default="owner")
    created_at: Mapped[CreatedAt]


class ApiKey(Base):
    """A key of a workspace, or of one dataset; only its hash is kept."""

    __tablename__ = "api_keys"
    id: Mapped[Id]
    workspace_id: Mapped[WorkspaceId]
    dataset_id: Mapped[uuid.UUID | None] = mapped_column(
        ForeignKey("datasets.id", ondelete="CASCADE"), index=True
    )
    hint: Mapped[str] = mapped_column(String(24))
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    created_at: Mapped[CreatedAt]


class Dataset(Base):
    """Documents that share one embedding model and pipeline."""

    __tablename__ = "datasets"
    __table_args__ = (UniqueConstraint("workspace_id", "name"),)

    id: Mapped[Id]
    workspace_id: Mapped[WorkspaceId]
    name: Mapped[Name]
    description: Mapped[str | None] = mapped_column(Text)
    provider: Mapped[str] = mapped_column(String(16), default="vendor")
    permission: Mapped[str] = mapped_column(String(32), default="only_me")
    data_source_type: Mapped[str | None] = mapped_column(String(32))
    indexing_technique: Mapped[IndexingTechnique | None] = mapped_column(enum_of(IndexingTechnique))
    doc_form: Mapped[DocForm | None] = mapped_column(enum_of(DocForm))
    embedding_model: Mapped[str | None] = mapped_column(String(255))
    embedding_model_provider: Mapped[str | None] = mapped_column(String(255))
    space_name: Mapped[str | None] = mapped_column(String(100))
    """The index collection; set with the technique."""
    space_dim: Mapped[int | None]
    average_length: Mapped[float | None]
    """Terms per indexed text that the stored BM25 weights assume."""
    retrieval_model: Mapped[Json | None]
    summary_index_setting: Mapped[Json | None]
    enable_api: Mapped[bool] = mapped_column(default=True)
    built_in_field_enabled: Mapped[bool] = mapped_column(default=False, server_default=false())
    metadata_revision: Mapped[int] = mapped_column(default=0, server_default="0")
    """Grows with every change of its documents' metadata or of its fields."""
    created_by: Mapped[uuid.UUID]
    created_at: Mapped[CreatedAt]
    updated_by: Mapped[uuid.UUID | None]
    updated_at: Mapped[CreatedAt]


class MetadataField(Base):
    """A typed field of a dataset; documents hold its values in `doc_metadata`, by its id.

    `slot`: which of the index's number fields it uses; none for texts. One that was deleted may be
    used again.
    """

    __tablename__ = "metadata_fields"
    __table_args__ = (UniqueConstraint("dataset_id", "name"),)
    id: Mapped[Id]
    dataset_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("datasets.id", ondelete="CASCADE"))
    name: Mapped[Name]
    type: Mapped[FieldType] = mapped_column(enum_of(FieldType))
    slot: Mapped[int | None]
    created_by: Mapped[uuid.UUID]
    created_at: Mapped[CreatedAt]


class ProcessRule(Base):
    """How documents are cleaned and split; immutable."""

    __tablename__ = "process_rules"
    id: Mapped[Id]
    dataset_id: Mapped[DatasetId]
    mode: Mapped[str] = mapped_column(String(16))
    rules: Mapped[Json | None]
    created_by: Mapped[uuid.UUID]
    created_at: Mapped[CreatedAt]


class UploadFile(Base):
    """One file as it was received; its bytes are a blob."""

    __tablename__ = "upload_files"
    id: Mapped[Id]
    workspace_id: Mapped[WorkspaceId]
    name: Mapped[Name]
    size_bytes: Mapped[int]
    extension: Mapped[str] = mapped_column(String(32))
    media_type: Mapped[str | None] = mapped_column(String(255))
    is_text: Mapped[bool] = mapped_column(default=False)
    """Sent as a text, not as a file; kept as UTF-8."""
    sha256: Mapped[str] = mapped_column(String(64))
    blob_key: Mapped[str] = mapped_column(String(255), index=True)
    created_by: Mapped[uuid.UUID]
    created_at: Mapped[CreatedAt]


class Document(Base):
    """One source file, its live version, and how far its newest version's indexing has got.

    `version` answers queries (0: none yet). `pending_version` is being prepared, or None.
    """

    __tablename__ = "documents"
    __table_args__ = (
        Index("ix_documents_queue", "indexing_status", "attempts", "queued_at"),
        Index(
            "ix_documents_turn",
            "queue",
            "dataset_id",
            "attempts",
            "queued_at",
            "position",
            sqlite_where=text(UNFINISHED_SQL),
            postgresql_where=text(UNFINISHED_SQL),
        ),
        Index(
            "ix_documents_dataset_id_processing_started_at", "dataset_id", "processing_started_at"
        ),
        Index("ix_documents_dataset_id_position", "dataset_id", "position"),
        Index("ix_documents_dataset_id_batch", "dataset_id", "batch"),
        Index("ix_documents_dataset_id_name", "dataset_id", "name"),
        # All that a listing sorts, filters and counts by: it looks at no other row than it shows.
        Index(
            "ix_documents_listing",
            "dataset_id",
            "created_at",
            "position",
            "indexing_status",
            "enabled",
            "archived",
            "is_paused",
            "name",
        ),
    )

    id: Mapped[Id]
    dataset_id: Mapped[DatasetId]
    position: Mapped[int]
    name: Mapped[Name]
    batch: Mapped[str] = mapped_column(String(20))
    data_source_type: Mapped[str] = mapped_column(String(32), default="upload_file")
    upload_file_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("upload_files.id"), index=True)
    process_rule_id: Mapped[uuid.UUID | None] = mapped_column(
        ForeignKey("process_rules.id", ondelete="SET NULL")
    )
    doc_form: Mapped[DocForm] = mapped_column(enum_of(DocForm), default=DocForm.TEXT)
    doc_language: Mapped[str] = mapped_column(String(64), default="English")
    doc_metadata: Mapped[Json | None]
    """Field id -> value; a null is a field that the document has without a value. Ids of fields
    that were deleted mean nothing."""
    created_from: Mapped[str] = mapped_column(String(32), default="api")
    created_by: Mapped[uuid.UUID]
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[CreatedAt]

    version: Mapped[int] = mapped_column(default=0)
    pending_version: Mapped[int | None]
    indexing_status: Mapped[IndexingStatus] = mapped_column(
        enum_of(IndexingStatus), default=IndexingStatus.WAITING
    )
    is_paused: Mapped[bool] = mapped_column(default=False)
    queue: Mapped[Queue] = mapped_column(
        enum_of(Queue), default=Queue.INTERACTIVE, server_default=Queue.INTERACTIVE.value
    )
    queued_at: Mapped[CreatedAt]
    lease_owner: Mapped[str | None] = mapped_column(String(64), index=True)
    lease_expires_at: Mapped[datetime | None]
    attempts: Mapped[int] = mapped_column(default=0)
    """Claims since the last progress; the document that was in work at every crash goes last."""
    next_attempt_at: Mapped[datetime | None]
    error: Mapped[str | None] = mapped_column(Text)
    error_code: Mapped[str | None] = mapped_column(String(64))
    error_stage: Mapped[str | None] = mapped_column(String(32))
    processing_started_at: Mapped[datetime | None]
    parsing_completed_at: Mapped[datetime | None]
    cleaning_completed_at: Mapped[datetime | None]
    splitting_completed_at: Mapped[datetime | None]
    completed_at: Mapped[datetime | None]
    paused_at: Mapped[datetime | None]
    stopped_at: Mapped[datetime | None]
    indexing_latency: Mapped[float | None]

    enabled: Mapped[bool] = mapped_column(default=True)
    disabled_at: Mapped[datetime | None]
    disabled_by: Mapped[uuid.UUID | None]
    archived: Mapped[bool] = mapped_column(default=False)
    word_count: Mapped[int | None]
    tokens: Mapped[int | None]


class DocumentVersion(Base):
    """One content of a document, and the checkpoint of its ingestion.

    `staged_at` is set in the transaction that stores the segments: from then on extraction and
    splitting are not done again.
    """

    __tablename__ = "document_versions"
    __table_args__ = (UniqueConstraint("document_id", "number"),)

    id: Mapped[Id]
    document_id: Mapped[DocumentId]
    number: Mapped[int]
    upload_file_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("upload_files.id"), index=True)
    process_rule_id: Mapped[uuid.UUID | None]
    created_at: Mapped[CreatedAt]
    staged_at: Mapped[datetime | None]
    live_at: Mapped[datetime | None]
    text_key: Mapped[str | None] = mapped_column(String(255))
    """Blob of the extracted text that segment offsets point into."""
    warnings: Mapped[list[Any] | None]
    report: Mapped[Json | None]
    """What ingestion counted; see `kb.reports`."""


def text_key(document_id: uuid.UUID, version: int) -> str:
    """Blob of the text that a version's segment offsets point into."""
    return f"texts/{document_id}/{version}"


class Segment(Base):
    """A chunk that is stored, numbered, searchable.

    `live`: part of the version that answers queries. `staged_version`: the version in preparation
    that will hold it; `staged` are then its new position, offsets and origin, which the switch
    applies.
    `indexed_at`: its point (or all its children's) was acknowledged by the index.
    """

    __tablename__ = "segments"
    __table_args__ = (
        Index("ix_segments_document_id_position", "document_id", "position"),
        Index("ix_segments_document_id_staged_version", "document_id", "staged_version"),
        Index(
            "ix_segments_hits",
            "document_id",
            "live",
            "hit_count",
            sqlite_where=text(HAS_HITS_SQL),
            postgresql_where=text(HAS_HITS_SQL),
        ),
    )

    id: Mapped[Id]
    dataset_id: Mapped[DatasetId]
    document_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("documents.id", ondelete="CASCADE"))
    position: Mapped[int]
    content: Mapped[str] = mapped_column(Text)
    answer: Mapped[str | None] = mapped_column(Text)
    text_hash: Mapped[str] = mapped_column(String(64))
    word_count: Mapped[int]
    term_count: Mapped[int]
    """Terms of the analysed text: its length as BM25 counts it."""
    tokens: Mapped[int] = mapped_column(default=0)
    keywords: Mapped[list[Any] | None]
    start_offset: Mapped[int]
    end_offset: Mapped[int]
    origin: Mapped[Json | None]
    live: Mapped[bool] = mapped_column(default=False)
    staged_version: Mapped[int | None]
    staged: Mapped[Json | None]
    has_children: Mapped[bool] = mapped_column(default=False)
    status: Mapped[SegmentStatus] = mapped_column(
        enum_of(SegmentStatus), default=SegmentStatus.WAITING
    )
    enabled: Mapped[bool] = mapped_column(default=True)
    disabled_at: Mapped[datetime | None]
    disabled_by: Mapped[uuid.UUID | None]
    hit_count: Mapped[int] = mapped_column(default=0)
    created_by: Mapped[uuid.UUID]
    created_at: Mapped[CreatedAt]
    updated_by: Mapped[uuid.UUID | None]
    """Who edited it by hand."""
    updated_at: Mapped[CreatedAt]
    indexing_at: Mapped[datetime | None]
    indexed_at: Mapped[datetime | None]


class ChildChunk(Base):
    """A small part of a segment; it is what is embedded and matched. Fields as in Segment."""

    __tablename__ = "child_chunks"
    __table_args__ = (
        Index("ix_child_chunks_document_id_staged_version", "document_id", "staged_version"),
    )

    id: Mapped[Id]
    dataset_id: Mapped[DatasetId]
    document_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("documents.id", ondelete="CASCADE"))
    segment_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("segments.id", ondelete="CASCADE"), index=True
    )
    position: Mapped[int]
    content: Mapped[str] = mapped_column(Text)
    text_hash: Mapped[str] = mapped_column(String(64))
    word_count: Mapped[int]
    term_count: Mapped[int]
    start_offset: Mapped[int]
    end_offset: Mapped[int]
    live: Mapped[bool] = mapped_column(default=False)
    staged_version: Mapped[int | None]
    staged: Mapped[Json | None]
    type: Mapped[str] = mapped_column(String(16), default="automatic")
    created_by: Mapped[uuid.UUID]
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[CreatedAt]
    indexed_at: Mapped[datetime | None]


class CachedEmbedding(Base):
    """The vector of a text, so that no text is embedded twice by the same model."""

    __tablename__ = "embedding_cache"
    model: Mapped[str] = mapped_column(String(100), primary_key=True)
    text_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    vector: Mapped[bytes] = mapped_column(LargeBinary)
    """float32[dim], little-endian"""
    created_at: Mapped[CreatedAt]


class Job(Base):
    """Work written down in the transaction that made it necessary; done at least once."""

    __tablename__ = "jobs"
    # Counted from the index alone: the payloads of many deletes are megabytes.
    __table_args__ = (Index("ix_jobs_state", "kind", "not_before", "attempts", "lease_expires_at"),)
    id: Mapped[Id]
    kind: Mapped[JobKind] = mapped_column(enum_of(JobKind))
    payload: Mapped[Json]
    created_at: Mapped[CreatedAt]
    not_before: Mapped[CreatedAt] = mapped_column(index=True)
    attempts: Mapped[int] = mapped_column(default=0)
    lease_owner: Mapped[str | None] = mapped_column(String(64))
    lease_expires_at: Mapped[datetime | None]
    error: Mapped[str | None] = mapped_column(Text)


class PipelineRun(Base):
    """One attempt at ingesting a version of a document."""

    __tablename__ = "pipeline_runs"
    id: Mapped[Id]
    document_id: Mapped[DocumentId]
    version: Mapped[int]
    attempt: Mapped[int]
    resumed: Mapped[bool] = mapped_column(default=False)
    started_at: Mapped[CreatedAt]
    finished_at: Mapped[datetime | None] = mapped_column(index=True)
    status: Mapped[str] = mapped_column(String(16), default="running")
    error_code: Mapped[str | None] = mapped_column(String(64))
    error: Mapped[str | None] = mapped_column(Text)
    nodes: Mapped[list[Any] | None]
    """[{"node", "kind", "seconds"}] in the order they ran"""
    segments: Mapped[int | None]
    """Of the version that it made live."""


class DatasetQuery(Base):
    """A query that was asked of a dataset, how, and what came back.

    A call that asks several datasets leaves a row with each; they have the same `call_id`.
    """

    __tablename__ = "dataset_queries"
    __table_args__ = (
        Index("ix_dataset_queries_dataset_id_created_at", "dataset_id", "created_at"),
    )
    id: Mapped[Id]
    dataset_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("datasets.id", ondelete="CASCADE"))
    content: Mapped[str] = mapped_column(Text)
    source: Mapped[str] = mapped_column(String(32))
    created_by: Mapped[uuid.UUID]
    created_at: Mapped[CreatedAt] = mapped_column(index=True)
    call_id: Mapped[uuid.UUID | None]
    settings: Mapped[Json | None]
    """What the search was told, as the call's source writes it; None: kept before this was."""
    hits: Mapped[list[Any] | None]
    """[[segment id, score, rank in the whole answer], ...] of this dataset, best first"""
    latency_ms: Mapped[float | None]
    """Of the whole call"""


class Webhook(Base):
    """Where messages about documents go: those of a workspace, or of one dataset.

    `failing_since`: the first failure since the last success. `failures`: how many since then that
    the receiver is to blame for. `retry_at`: nothing is sent to it before.
    """

    __tablename__ = "webhooks"
    id: Mapped[Id]
    workspace_id: Mapped[WorkspaceId]
    dataset_id: Mapped[uuid.UUID | None] = mapped_column(
        ForeignKey("datasets.id", ondelete="CASCADE"), index=True
    )
    url: Mapped[str] = mapped_column(Text)
    events: Mapped[list[Any]]
    secret: Mapped[str] = mapped_column(Sealed)
    """`whsec_` and base64, sealed; signing needs it as it is."""
    created_at: Mapped[CreatedAt]
    disabled_at: Mapped[datetime | None]
    disabled_reason: Mapped[str | None] = mapped_column(Text)
    failing_since: Mapped[datetime | None]
    failures: Mapped[int] = mapped_column(default=0)
    retry_at: Mapped[datetime | None]


class WebhookDelivery(Base):
    """One message to one webhook; its id is the same in every attempt."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        Index("ix_webhook_deliveries_webhook_id_created_at", "webhook_id", "created_at"),
    )
    id: Mapped[Id]
    webhook_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("webhooks.id", ondelete="CASCADE"))
    event: Mapped[WebhookEvent] = mapped_column(enum_of(WebhookEvent))
    body: Mapped[str] = mapped_column(Text)
    """JSON; what is signed and sent, byte for byte."""
    created_at: Mapped[CreatedAt] = mapped_column(index=True)
    status: Mapped[DeliveryStatus] = mapped_column(
        enum_of(DeliveryStatus), default=DeliveryStatus.PENDING
    )
    attempts: Mapped[int] = mapped_column(default=0)
    last_attempt_at: Mapped[datetime | None]
    next_attempt_at: Mapped[datetime | None]
    delivered_at: Mapped[datetime | None]
    last_status: Mapped[int | None]
    """Of HTTP; None when there was no answer."""
    last_error: Mapped[str | None] = mapped_column(Text)


class ConfiguredModel(Base):
    """A model that was added through the API, beside those of the settings.

    `revision` rises with every change, so that processes notice that theirs is an old one.
    """

    __tablename__ = "configured_models"
    __table_args__ = (UniqueConstraint("workspace_id", "type", "provider", "model"),)
    id: Mapped[Id]
    workspace_id: Mapped[WorkspaceId]
    type: Mapped[ModelType] = mapped_column(enum_of(ModelType))
    provider: Mapped[str] = mapped_column(String(200))
    model: Mapped[str] = mapped_column(String(200))
    kind: Mapped[ModelKind] = mapped_column(enum_of(ModelKind))
    options: Mapped[Json]
    """Where it is and how it is used, as `kb.model_options` knows it; no secret."""
    api_key: Mapped[str | None] = mapped_column(Sealed)
    api_key_hint: Mapped[str | None] = mapped_column(String(16))
    revision: Mapped[int] = mapped_column(default=1)
    last_test: Mapped[Json | None]
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[CreatedAt]
