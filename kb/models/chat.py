"""What chat models have answered for documents."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, String
from sqlalchemy.orm import Mapped, mapped_column

from kb.db import Base
from kb.models.columns import CreatedAt


class CachedAnswer(Base):
    """A chat model's answer, so that nothing is asked, and paid, twice."""

    __tablename__ = "chat_cache"
    model: Mapped[str] = mapped_column(String(64), primary_key=True)
    """SHA-256 of provider and name."""
    question_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    """SHA-256 of the instruction, the text, and the shape of the answer."""
    answer: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[CreatedAt]
