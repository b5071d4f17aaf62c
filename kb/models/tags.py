"""Tables of tags and of those who may see a dataset."""

from __future__ import annotations

import uuid

from sqlalchemy import ForeignKey, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from kb.db import Base
from kb.models.columns import CreatedAt, Id, WorkspaceId


class Tag(Base):
    """A word that datasets of a workspace are found by."""

    __tablename__ = "tags"
    __table_args__ = (UniqueConstraint("workspace_id", "name"),)

    id: Mapped[Id]
    workspace_id: Mapped[WorkspaceId]
    name: Mapped[str] = mapped_column(String(50))
    created_by: Mapped[uuid.UUID]
    created_at: Mapped[CreatedAt]


class TagBinding(Base):
    """A dataset carries a tag."""

    __tablename__ = "tag_bindings"
    tag_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("tags.id", ondelete="CASCADE"), primary_key=True
    )
    dataset_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("datasets.id", ondelete="CASCADE"), primary_key=True, index=True
    )
    created_at: Mapped[CreatedAt]


class DatasetMember(Base):
    """Somebody who may see a dataset whose permission is `partial_members`."""

    __tablename__ = "dataset_members"
    dataset_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("datasets.id", ondelete="CASCADE"), primary_key=True
    )
    user_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    position: Mapped[int]
    """Its place in the list as it was sent."""
