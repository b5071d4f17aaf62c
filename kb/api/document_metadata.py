"""What documents show as their metadata: the one place that answers ask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from kb.metadata.facts import shown
from kb.models import Document

Json = dict[str, Any]


def entries_of(session: Session, documents: Sequence[Document]) -> dict[UUID, list[Json]]:
    """`[{id, name, type, value}]` of each document; a document without any has an empty list.

    The dataset's own fields come first, then the built-in ones while they are switched on.
    """
    return shown(session, documents)
