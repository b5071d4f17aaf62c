"""Segments that arrive as the rows of a file."""

from __future__ import annotations

import uuid
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Text
from sqlalchemy.orm import Mapped, mapped_column

from kb.db import Base
from kb.models.columns import CreatedAt, DatasetId, DocumentId, Id, Name, enum_of


class ImportState(StrEnum):
    """How far an import has got."""

    WAITING = "waiting"
    """Its rows are being embedded, or will be; none of them is a segment yet."""
    COMPLETED = "completed"
    ERROR = "error"
    """None of them became a segment."""


class SegmentImport(Base):
    """A file whose rows become segments of a document: all of them or none.

    `items` are the rows, [content, answer, keywords] each, until they are segments.
    """

    __tablename__ = "segment_imports"
    id: Mapped[Id]
    dataset_id: Mapped[DatasetId]
    document_id: Mapped[DocumentId]
    name: Mapped[Name]
    state: Mapped[ImportState] = mapped_column(enum_of(ImportState), default=ImportState.WAITING)
    rows: Mapped[int]
    embedded: Mapped[int] = mapped_column(default=0)
    items: Mapped[list[Any] | None]
    warnings: Mapped[list[Any] | None]
    error: Mapped[str | None] = mapped_column(Text)
    created_by: Mapped[uuid.UUID]
    created_at: Mapped[CreatedAt]
    finished_at: Mapped[datetime | None]
