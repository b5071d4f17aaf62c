"""Tables of knowledge that other services hold: how they are reached, which datasets show it."""

from __future__ import annotations

import uuid

from sqlalchemy import ForeignKey, Text
from sqlalchemy.orm import Mapped, mapped_column

from kb.db import Base, Sealed
from kb.models.columns import CreatedAt, Id, Name, WorkspaceId

EXTERNAL = "external"
"""The provider of datasets whose knowledge is with another service; of ours it is `vendor`."""


class ExternalApi(Base):
    """A service that speaks the external-knowledge contract, and the key that it asks for."""

    __tablename__ = "external_knowledge_apis"
    id: Mapped[Id]
    workspace_id: Mapped[WorkspaceId]
    name: Mapped[Name]
    description: Mapped[str] = mapped_column(Text)
    endpoint: Mapped[str] = mapped_column(Text)
    """`/retrieval` is put behind it."""
    api_key: Mapped[str] = mapped_column(Sealed)
    """Sealed."""
    created_by: Mapped[uuid.UUID]
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[CreatedAt]


class ExternalBinding(Base):
    """A dataset stands for a knowledge base of such a service."""

    __tablename__ = "external_knowledge_bindings"
    dataset_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("datasets.id", ondelete="CASCADE"), primary_key=True
    )
    api_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("external_knowledge_apis.id"), index=True)
    knowledge_id: Mapped[str] = mapped_column(Text)
    """What the service calls it."""
    created_at: Mapped[CreatedAt]
