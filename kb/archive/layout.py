"""What an archive holds: the manifest, the dataset, and one record per document, segment, child."""

from __future__ import annotations

import re
import uuid
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from kb.models import DocForm, FieldType, IndexingTechnique, OverlayKind, OverlayState

FORMAT: Literal["kb-dataset"] = "kb-dataset"
FORMAT_VERSION = 1

MANIFEST = "manifest.json"
DATASET = "dataset.json"
MEMBER = re.compile(
    r"dataset\.json|(?:sources|texts)/[0-9a-f]{64}|documents/[0-9]{6}\.jsonl"
    r"|vectors/[0-9]{6}\.(?:npy|txt)"
)
"""Every name that an archive may hold beside its manifest."""
SEAL = "sha256:"
"""The zip's comment: this, and the SHA-256 of the manifest."""
VECTORS = 4096
"""Rows in one file of vectors at most."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, lt=2**31)]
Text255 = Annotated[str, Field(max_length=255)]


class Record(BaseModel):
    """Strict: what a reader does not know it must not lose silently."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Member(Record):
    """A file of the archive, as it is when it is unpacked."""

    bytes: Annotated[int, Field(ge=0, lt=2**63)]
    sha256: Sha256


class Embedding(Record):
    """What made the vectors. Equal `space` and `dim` mean the same model and the same content."""

    space: Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,100}$")]
    dim: Annotated[int, Field(gt=0, le=65_536)]
    provider: Text255 | None
    model: Text255 | None


class Counts(Record):
    """How much of what."""

    documents: Count
    live_documents: Count
    segments: Count
    children: Count
    sources: Count
    vectors: Count


class Manifest(Record):
    """manifest.json, the last file of the archive."""

    format: Literal["kb-dataset"]
    format_version: int
    kb_version: Annotated[str, Field(max_length=64)]
    created_at: datetime
    name: Annotated[str, Field(min_length=1, max_length=255)]
    embedding: Embedding | None
    vectors: bool
    counts: Counts
    members: dict[str, Member]


class Rule(Record):
    """A process rule."""

    id: uuid.UUID
    mode: Annotated[str, Field(max_length=16)]
    rules: dict[str, Any] | None
    created_at: datetime


class FieldRecord(Record):
    """A metadata field; documents hold its values by its id."""

    id: uuid.UUID
    name: Annotated[str, Field(min_length=1, max_length=255)]
    field: FieldType
    created_at: datetime


class DatasetRecord(Record):
    """dataset.json: the dataset's settings, and the process rules that its documents name.

    `tags` (names) and `members` (who may see it) are not in archives of older versions of kb.
    """

    id: uuid.UUID
    name: Annotated[str, Field(min_length=1, max_length=255)]
    description: str | None
    permission: Annotated[str, Field(max_length=32)]
    data_source_type: Annotated[str, Field(max_length=32)] | None
    technique: IndexingTechnique | None
    doc_form: DocForm | None
    average_length: Annotated[float, Field(gt=0, lt=1e9)] | None
    retrieval_model: dict[str, Any] | None
    summary_index_setting: dict[str, Any] | None
    created_at: datetime
    rules: list[Rule]
    fields: Annotated[list[FieldRecord], Field(max_length=1000)] = []
    built_in_fields: bool = False
    tags: list[Annotated[str, Field(min_length=1, max_length=50)]] = []
    members: list[uuid.UUID] = []


class Source(Record):
    """The file that a document was made of; its bytes are `sources/<sha256>`.

    `lost`: the file was gone when the archive was made.
    """

    name: Text255
    bytes: Count
    extension: Annotated[str, Field(max_length=32)]
    media_type: Text255 | None
    is_text: bool
    sha256: Sha256
    lost: bool = False


class OverlayRecord(Record):
    """A hand edit; `target_id` is a segment or child chunk that may be gone."""

    id: uuid.UUID
    kind: OverlayKind
    state: OverlayState
    target_id: uuid.UUID
    segment_id: uuid.UUID
    identity: Sha256 | None
    before: Sha256 | None
    after: Sha256 | None
    original: str | None
    patch: dict[str, Any] | None
    created_at: datetime
    updated_at: datetime


class DocumentRecord(Record):
    """A document; its segments and children follow it in the same file.

    `live`: it has segments. One that never went live is its source only, to be ingested anew.
    `text`: SHA-256 of the extracted text, `texts/<sha256>`. `overlays` are not in archives of
    older versions of kb.
    """

    type: Literal["document"] = "document"
    id: uuid.UUID
    position: Count
    name: Text255
    batch: Annotated[str, Field(max_length=20)]
    data_source_type: Annotated[str, Field(max_length=32)]
    doc_form: DocForm
    doc_language: Annotated[str, Field(max_length=64)]
    doc_metadata: dict[str, Any] | None
    created_from: Annotated[str, Field(max_length=32)]
    created_at: datetime
    updated_at: datetime
    completed_at: datetime | None
    enabled: bool
    disabled_at: datetime | None
    archived: bool
    is_paused: bool
    rule: uuid.UUID | None
    source: Source
    live: bool
    text: Sha256 | None
    warnings: list[Any] | None
    overlays: list[OverlayRecord] = []


class SegmentRecord(Record):
    """A segment of the live version."""

    type: Literal["segment"] = "segment"
    id: uuid.UUID
    position: Count
    content: str
    answer: str | None
    tokens: Count
    keywords: list[Any] | None
    start_offset: Count
    end_offset: Count
    origin: dict[str, Any] | None
    enabled: bool
    disabled_at: datetime | None
    hit_count: Count
    created_at: datetime
    updated_at: datetime


class ChildRecord(Record):
    """A child chunk of a segment that stands before it."""

    type: Literal["child"] = "child"
    id: uuid.UUID
    segment_id: uuid.UUID
    position: Count
    content: str
    start_offset: Count
    end_offset: Count
    made: Annotated[str, Field(max_length=16)]
    created_at: datetime
    updated_at: datetime


AnyRecord = DocumentRecord | SegmentRecord | ChildRecord
RECORD: TypeAdapter[AnyRecord] = TypeAdapter(Annotated[AnyRecord, Field(discriminator="type")])
