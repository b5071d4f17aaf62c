"""What travels: JSON, and how the server names things."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal
from uuid import UUID

Json = dict[str, Any]
Method = Literal["hybrid", "vector", "fulltext"]

METHODS: Mapping[str, str] = {
    "hybrid": "hybrid_search",
    "vector": "semantic_search",
    "fulltext": "full_text_search",
}
"""Our names of the search methods -> those on the wire."""

FINISHED = frozenset({"completed", "error", "paused"})
"""Indexing states that a document does not leave by itself."""


LONG_S = 3600.0
"""For what takes long on the server: the doctor, moving a dataset."""


def is_id(text: str) -> bool:
    """Whether this is a UUID as the server writes them."""
    try:
        return str(UUID(text)) == text.lower()
    except ValueError:
        return False
