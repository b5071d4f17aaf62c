"""API keys: made here, shown once, kept as a hash."""

from __future__ import annotations

import secrets
import string
import uuid
from hashlib import sha256

from sqlalchemy import select
from sqlalchemy.orm import Session

from kb.db import exclusive
from kb.models import ApiKey

PREFIX = "dataset-"
_ALPHABET = string.ascii_letters + string.digits
_RANDOM_CHARS = 24  # 62^24: 142 bits
_HINT_CHARS = 12


def add_api_key(session: Session, workspace_id: uuid.UUID) -> str:
    """Make a key of the workspace; what is returned cannot be had again."""
    key = PREFIX + "".join(secrets.choice(_ALPHABET) for _ in range(_RANDOM_CHARS))
    session.add(
        ApiKey(
            workspace_id=workspace_id,
            hint=key[:_HINT_CHARS],
            sha256=sha256(key.encode()).hexdigest(),
        )
    )
    return key


def add_first_api_key(session: Session, workspace_id: uuid.UUID) -> str | None:
    """Make a key unless the workspace has one."""
    exclusive(session, "first API key")
    if list_hints(session, workspace_id):
        return None
    return add_api_key(session, workspace_id)


def list_hints(session: Session, workspace_id: uuid.UUID) -> list[str]:
    """How each key of the workspace begins, oldest first."""
    return list(
        session.scalars(
            select(ApiKey.hint)
            .where(ApiKey.workspace_id == workspace_id)
            .order_by(ApiKey.created_at, ApiKey.id)
        )
    )
