"""Candidates of one dataset: what the legs found, each with its exact scores on both sides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from uuid import UUID

from kb.ports import SegmentIndex, Space, Terms
from kb.retrieval.fusion import LegScore, Weights, fuse, normalise_dense, normalise_text
from kb.retrieval.legs import Leg
from kb.retrieval.types import SearchMethod
from pipelines.types import Vector


@dataclass(frozen=True, slots=True)
class Plan:
    """How one dataset is searched; the weights are (1, 0) or (0, 1) for a single leg."""

    space: Space
    dataset_id: UUID
    method: SearchMethod
    weights: Weights

    @property
    def fuses(self) -> bool:
        """Whether both legs find candidates; one of weight 0 only shows its scores."""
        return self.weights.dense > 0 and self.weights.text > 0


@dataclass(frozen=True)
class Pool:
    """The candidates of one dataset with their raw scores on every leg that was asked.

    Attributes:
        dense_leg, text_leg: None when not asked.
        dense, text: raw scores of candidates from either leg; None when not asked.
    """

    plan: Plan
    dense_leg: Leg | None
    text_leg: Leg | None
    dense: Mapping[UUID, float] | None
    text: Mapping[UUID, float] | None
    segment_of: Mapping[UUID, UUID]

    @property
    def best_text(self) -> float:
        """The best BM25 score among the dataset's live texts; 0 when none has a common term."""
        points = self.text_leg.points if self.text_leg is not None else ()
        return points[0].score if points else 0.0

    @cached_property
    def dense_ranks(self) -> dict[UUID, int]:
        """1-based places among the dense leg's points."""
        return self.dense_leg.ranks if self.dense_leg is not None else {}

    @cached_property
    def text_ranks(self) -> dict[UUID, int]:
        """1-based places among the text leg's points."""
        return self.text_leg.ranks if self.text_leg is not None else {}

    def scores(self, best_text: float) -> dict[UUID, float]:
        """The final score of every candidate."""
        return fuse(self.dense, self.text, self.plan.weights, best_text=best_text)

    def among_the_best(self, candidate: UUID, depth: int) -> bool:
        """Whether a leg that counts has the candidate among its first `depth` points."""
        dense = self.plan.weights.dense > 0 and self.dense_ranks.get(candidate, depth + 1) <= depth
        return dense or (
            self.plan.weights.text > 0 and self.text_ranks.get(candidate, depth + 1) <= depth
        )

    def bound(self, best_text: float) -> tuple[float, UUID] | None:
        """What no other live point of the dataset surpasses: it scores less, or as much and has a
        higher id. None: there is no other.
        """
        dense = text = 0.0
        last: list[UUID] = []
        if self.plan.weights.dense > 0 and self.dense_leg is not None:
            if self.dense_leg.all_read:
                return None  # every point has a vector
            dense = normalise_dense(self.dense_leg.points[-1].score)
            last.append(self.dense_leg.points[-1].id)
        if self.plan.weights.text > 0 and self.text_leg is not None and not self.text_leg.all_read:
            text = normalise_text(self.text_leg.points[-1].score, best_text)
            last.append(self.text_leg.points[-1].id)
        return (self.plan.weights.mean(dense, text), max(last)) if last else None

    def explain(self, candidate: UUID, best_text: float) -> tuple[LegScore | None, LegScore | None]:
        """What the dense and the text leg say of a candidate."""
        dense = text = None
        if self.dense is not None and candidate in self.dense:
            raw = self.dense[candidate]
            dense = LegScore(self.dense_ranks.get(candidate), raw, normalise_dense(raw))
        if self.text is not None:
            raw = self.text.get(candidate, 0.0)
            text = LegScore(self.text_ranks.get(candidate), raw, normalise_text(raw, best_text))
        return dense, text


def gather(
    plan: Plan,
    dense_leg: Leg | None,
    text_leg: Leg | None,
    vector: Vector | None,
    terms: Terms,
    index: SegmentIndex,
) -> Pool:
    """The union of what the legs found, with the scores that are missing on either side."""
    segment_of = {
        p.id: p.segment_id
        for leg, weight in ((dense_leg, plan.weights.dense), (text_leg, plan.weights.text))
        if leg is not None and weight > 0
        for p in leg.points
    }
    dense = text = None
    if dense_leg is not None and vector is not None:
        dense = {p.id: p.score for p in dense_leg.points if p.id in segment_of}
        unknown = [i for i in segment_of if i not in dense]
        if unknown:
            dense |= index.dense_scores(plan.space, plan.dataset_id, vector, unknown)
    if text_leg is not None:
        text = {p.id: p.score for p in text_leg.points if p.id in segment_of}
        unknown = [i for i in segment_of if i not in text]
        if unknown and not text_leg.all_read:  # otherwise they hold no term of the query
            text |= index.text_scores(plan.space, plan.dataset_id, terms, unknown)
    return Pool(plan, dense_leg, text_leg, dense, text, segment_of)
