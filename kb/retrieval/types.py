"""What goes into a query and what comes out."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from math import isfinite
from typing import Any
from uuid import UUID

from kb.errors import KBError
from kb.models import Segment
from kb.retrieval.fusion import LegScore, Weights
from pipelines.errors import TransientError


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
class RerankModel:
    """A configured rerank model by its names; provider None: of any."""

    provider: str | None
    model: str


@dataclass(frozen=True, slots=True)
class RetrievalSettings:
    """How to search.

    Attributes:
        top_k: how many segments to return, > 0 (parents, not children).
        score_threshold: only final scores >= this are returned; finite. None keeps all. Final
            scores lie in [0, 1]; of full text they are relative to the query's best match.
        weights: of a hybrid query. A leg of weight 0 finds nothing; it only shows its scores.
        rerank: judges the best candidates anew; its scores are the final ones. None: nobody does.
    """

    method: SearchMethod
    top_k: int
    score_threshold: float | None = None
    weights: Weights = field(default_factory=lambda: Weights(0.5, 0.5))
    rerank: RerankModel | None = None

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}; give a number above 0")
        if self.score_threshold is not None and not isfinite(self.score_threshold):
            raise ValueError(
                f"score_threshold is {self.score_threshold}; give a finite number, or None for all"
            )


@dataclass(frozen=True, slots=True)
class ChildHit:
    """A child chunk that matched."""

    id: UUID
    content: str
    position: int
    score: float


@dataclass(frozen=True, slots=True)
class RerankScore:
    """How the rerank step came to a final score.

    Attributes:
        fused: the score before it.
        given: by the model, in [0, 1]; None: it did not judge this text.
        behind: the lowest score that it gave.
        final: `given`, or `fused` x `behind`.
    """

    fused: float
    given: float | None
    behind: float
    final: float


@dataclass(frozen=True, slots=True)
class Reranked:
    """What came of the rerank step.

    Attributes:
        applied: its scores are the final ones; False: the fused order stands, `error` says why.
        asked: texts that the model was given; `judged`: how many of them it judged in time.
    """

    provider: str
    model: str
    applied: bool
    asked: int
    judged: int
    error: str | None = None

    @property
    def kind(self) -> str:
        """`done`, `partial` (the time was over before the last text), or `fallback`."""
        if not self.applied:
            return "fallback"
        return "done" if self.judged == self.asked else "partial"


@dataclass(frozen=True, slots=True)
class Explanation:
    """How a final score came about: sum of weight x normalised over the legs that were asked, and
    what the rerank step made of it.

    For a parent it speaks of its best child (`point_id`).

    Attributes:
        dense, text: None when the leg was not asked, or lost the point during the query.
        dense_weight, text_weight: their sum is 1.
    """

    point_id: UUID
    dense: LegScore | None
    text: LegScore | None
    dense_weight: float
    text_weight: float
    rerank: RerankScore | None = None


@dataclass(frozen=True, slots=True)
class HitDocument:
    """What a hit shows of its document; names and meaning as in `kb.models.Document`."""

    id: UUID
    name: str
    data_source_type: str
    doc_metadata: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Hit:
    """A segment that answers, with its document and where it stands in the source.

    Attributes:
        score: in [0, 1]; of a parent, that of its best child.
        children: those that matched, best first: the best one, and of the others those that are
            among the 50 best of a leg and reach the threshold. Empty for a segment without
            children.
    """

    segment: Segment
    document: HitDocument
    score: float
    children: tuple[ChildHit, ...]
    explanation: Explanation


@dataclass(frozen=True, slots=True)
class Retrieved:
    """Hits, best first, equal scores by id, and how long each stage took (milliseconds).

    Attributes:
        failures: datasets that were left out, and why.
        rerank: what came of the rerank step; None: it was not asked for.
    """

    hits: tuple[Hit, ...]
    timings_ms: dict[str, float] = field(default_factory=dict)
    failures: dict[UUID, KBError | TransientError] = field(default_factory=dict)
    rerank: Reranked | None = None
