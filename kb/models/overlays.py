"""Hand edits of segments, kept apart from the text that pipelines make."""

from __future__ import annotations

import uuid
from enum import StrEnum

from sqlalchemy import String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from kb.db import Base
from kb.models.columns import CreatedAt, DatasetId, DocumentId, Id, Json, enum_of


class OverlayKind(StrEnum):
    """What was done by hand."""

    EDITED = "edited"
    DISABLED = "disabled"
    DELETED = "deleted"
    ADDED = "added"
    CHILD_EDITED = "child_edited"
    CHILD_DELETED = "child_deleted"
    CHILD_ADDED = "child_added"


class OverlayState(StrEnum):
    """Whether a hand edit shows in the version that answers."""

    ACTIVE = "active"
    DORMANT = "dormant"
    """There is nothing left that it could change."""
    CONFLICT = "conflict"
    """The text that it was made on is gone or was cut differently; somebody must decide."""


class SegmentOverlay(Base):
    """A hand edit, kept apart from the text that a pipeline makes, so that it survives it.

    `target_id` is the segment or child chunk that it is about, `segment_id` that segment or the
    child's parent. A pipeline's chunk gets the same id again while its text is the same, and
    `identity` (hash of the text as the pipeline made it), `before` and `after` (those of its
    neighbours) tell which of several equal texts it is.
    """

    __tablename__ = "segment_overlays"
    __table_args__ = (UniqueConstraint("document_id", "kind", "target_id"),)

    id: Mapped[Id]
    dataset_id: Mapped[DatasetId]
    document_id: Mapped[DocumentId]
    kind: Mapped[OverlayKind] = mapped_column(enum_of(OverlayKind))
    state: Mapped[OverlayState] = mapped_column(enum_of(OverlayState), default=OverlayState.ACTIVE)
    target_id: Mapped[uuid.UUID]
    segment_id: Mapped[uuid.UUID]
    identity: Mapped[str | None] = mapped_column(String(64))
    before: Mapped[str | None] = mapped_column(String(64))
    after: Mapped[str | None] = mapped_column(String(64))
    original: Mapped[str | None] = mapped_column(Text)
    """The text before the first edit; None of what was added."""
    patch: Mapped[Json | None]
    """`content`, `answer`, `keywords`, `tokens`; `children`, where they were made by hand."""
    matched_version: Mapped[int | None]
    """The newest version that holds, or would hold, the target."""
    created_by: Mapped[uuid.UUID]
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[CreatedAt]
