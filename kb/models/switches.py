"""Tables of switches: a dataset on its way to another embedding model or indexing technique."""

from __future__ import annotations

import uuid
from datetime import datetime
from enum import StrEnum

from sqlalchemy import ForeignKey, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from kb.db import Base
from kb.models.columns import CreatedAt, DatasetId, Id, enum_of


class SwitchStatus(StrEnum):
    """How a switch stands; only a running one changes."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class DatasetSwitch(Base):
    """A dataset is copied into another space of the index, and answers from it once all is there.

    `technique` to `space_dim` are the target's, `from_*` what was in force at the start.
    """

    __tablename__ = "dataset_switches"
    id: Mapped[Id]
    dataset_id: Mapped[DatasetId]
    status: Mapped[SwitchStatus] = mapped_column(
        enum_of(SwitchStatus), default=SwitchStatus.RUNNING
    )
    technique: Mapped[str] = mapped_column(String(32))
    embedding_model: Mapped[str | None] = mapped_column(String(255))
    embedding_model_provider: Mapped[str | None] = mapped_column(String(255))
    space_name: Mapped[str] = mapped_column(String(100))
    space_dim: Mapped[int | None]
    from_technique: Mapped[str] = mapped_column(String(32))
    from_model: Mapped[str | None] = mapped_column(String(255))
    from_provider: Mapped[str | None] = mapped_column(String(255))
    from_space_name: Mapped[str] = mapped_column(String(100))
    from_space_dim: Mapped[int | None]
    created_by: Mapped[uuid.UUID]
    created_at: Mapped[CreatedAt]
    finished_at: Mapped[datetime | None]
    cursor: Mapped[uuid.UUID | None]
    """Where the present pass over the texts stands; None: at its start."""
    verified: Mapped[bool] = mapped_column(default=False)
    """What the new space holds was compared with the texts."""
    cleaned: Mapped[bool] = mapped_column(default=False)
    """It has ended, and nothing is left of its work but this row."""
    progress_at: Mapped[CreatedAt]
    """When it last got further."""
    failures: Mapped[int] = mapped_column(default=0)
    """Since it last got further."""
    retry_at: Mapped[datetime | None]
    done: Mapped[int | None]
    """Texts in the new space at its end; while it runs they are counted."""
    total: Mapped[int | None]
    error: Mapped[str | None] = mapped_column(Text)
    error_code: Mapped[str | None] = mapped_column(String(64))


class SwitchPoint(Base):
    """A text is in the new space, as it was with this hash in this version of its document."""

    __tablename__ = "switch_points"
    switch_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("dataset_switches.id", ondelete="CASCADE"), primary_key=True
    )
    point_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    version: Mapped[int]
    text_hash: Mapped[str] = mapped_column(String(64))
