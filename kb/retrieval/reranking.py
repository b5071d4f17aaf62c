"""The rerank step: a model judges the best candidates anew, and its scores are the final ones.

What the model did not judge (it stands too far down, or the time was over) keeps its order behind:
its score is its fused one times the lowest that the model gave. When the model does not answer at
all, the fused order stands, and the answer says so.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar
from uuid import UUID

from kb.errors import ProviderNotInitialized
from kb.metrics import RERANKS
from kb.model_registry import ModelRecord
from kb.models import ModelType
from kb.resources import Resources
from kb.retrieval.rows import Rows
from kb.retrieval.types import Reranked, RerankModel, RerankScore
from kb.tracing import span
from pipelines.errors import TransientError

log = logging.getLogger("kb.rerank")


class Candidate(Protocol):
    """A point with its fused score."""

    @property
    def id(self) -> UUID: ...
    @property
    def segment_id(self) -> UUID: ...
    @property
    def score(self) -> float: ...


AnyCandidate = TypeVar("AnyCandidate", bound=Candidate)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What came of a rerank call.

    Attributes:
        scores: by point id; empty when the fused order stands.
        behind: what the fused score of every other point is multiplied with.
    """

    outcome: Reranked
    scores: Mapping[UUID, float]
    behind: float

    def of(self, candidate: Candidate) -> RerankScore | None:
        """How the step changes a candidate's score; None: it does not."""
        if not self.scores:
            return None
        given = self.scores.get(candidate.id)
        final = candidate.score * self.behind if given is None else given
        return RerankScore(candidate.score, given, self.behind, final)


def find(model: RerankModel, resources: Resources) -> ModelRecord:
    """Raises: ProviderNotInitialized: no such rerank model is configured."""
    try:
        return resources.models.choose(ModelType.RERANK, model.provider, model.model)
    except ProviderNotInitialized as exc:
        raise ProviderNotInitialized(
            f"{exc.message}. Or use reranking_mode 'weighted_score', or no reranking_enable"
        ) from exc


def judge(
    query: str,
    groups: Sequence[Sequence[AnyCandidate]],
    rows: Rows,
    record: ModelRecord,
    resources: Resources,
) -> Judgement:
    """Have the best candidates of all groups judged, best first, `rerank_depth` of them at most."""
    best = sorted((c for group in groups for c in group), key=lambda c: (-c.score, c.id))
    texts = {c.id: text for c in best if (text := text_of(c, rows)) is not None}
    asked = list(texts)[: resources.settings.retrieval.rerank_depth]
    scores: list[float | None] = []
    error: str | None = None
    if asked:
        try:
            with span("rerank", texts=len(asked)):
                model = resources.models.reranker_of(record)
                scores = model.rerank(query, [texts[id] for id in asked])
        except (TransientError, ProviderNotInitialized) as exc:
            log.warning("the fused order stands: %s", exc.message)
            error = exc.message
    given = {id: score for id, score in zip(asked, scores, strict=False) if score is not None}
    outcome = Reranked(record.provider, record.model, error is None, len(asked), len(given), error)
    RERANKS.labels(outcome.kind).inc()
    return Judgement(outcome, given, min(given.values(), default=1.0))


def text_of(candidate: Candidate, rows: Rows) -> str | None:
    """What the model reads: the child chunk's text, or the segment's, question and answer of one
    that has both. None: its row went away meanwhile.
    """
    if candidate.id != candidate.segment_id:
        child = rows.children.get(candidate.id)
        return None if child is None else child[0]
    row = rows.segments.get(candidate.segment_id)
    if row is None:
        return None
    segment = row[0]
    return f"{segment.content}\n{segment.answer}" if segment.answer else segment.content
