"""What goes into a query and what comes out."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from uuid import UUID

from kb.models import Document, Segment
from kb.retrieval.fusion import LegScore, Weights


class SearchMethod(StrEnum):
    """Which legs a query uses. `keyword_search` is the full-text leg under its economy name."""

    SEMANTIC = "semantic_search"
    FULL_TEXT = "full_text_search"
    HYBRID = "hybrid_search"
    KEYWORD = "keyword_search"

    @property
    def uses_dense(self) -> bool:
        """Whether the query is embedded."""
        return self in (SearchMethod.SEMANTIC, SearchMethod.HYBRID)

    @property
    def uses_text(self) -> bool:
        """Whether the query's terms are looked up."""
        return self is not SearchMethod.SEMANTIC


@dataclass(frozen=True, slots=True)
class RetrievalSettings:
    """How to search.

    Attributes:
        top_k: how many segments to return, > 0 (parents, not children).
        score_threshold: only final scores >= this, in [0, 1]; None keeps all.
        weights: of a hybrid query.
    """

    method: SearchMethod
    top_k: int
    score_threshold: float | None = None
    weights: Weights = field(default_factory=lambda: Weights(0.5, 0.5))


@dataclass(frozen=True, slots=True)
class ChildHit:
    """A child chunk that matched."""

    id: UUID
    content: str
    position: int
    score: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """How a final score came about: sum of weight x normalised over the legs that were asked.

    For a parent it speaks of its best child (`point_id`).
    """

    point_id: UUID
    dense: LegScore | None
    text: LegScore | None
    dense_weight: float
    text_weight: float


@dataclass(frozen=True, slots=True)
class Hit:
    """A segment that answers, with its document and where it stands in the source."""

    segment: Segment
    document: Document
    score: float
    children: tuple[ChildHit, ...]
    explanation: Explanation


@dataclass(frozen=True, slots=True)
class Retrieved:
    """Hits, best first, and how long each stage took (milliseconds)."""

    hits: tuple[Hit, ...]
    timings_ms: dict[str, float] = field(default_factory=dict)
