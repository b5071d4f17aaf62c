"""Candidates of one dataset: what the legs found, and the exact scores of those that count."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from functools import cached_property
from uuid import UUID

from kb.ports import SegmentIndex, Space, Terms, Where
from kb.retrieval.filters import Filter
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
    filter: Filter | None = None

    @property
    def where(self) -> Where | None:
        """What the index is asked to restrict itself to."""
        if self.filter is None or isinstance(self.filter.where, bool):
            return None
        return self.filter.where

    @property
    def fuses(self) -> bool:
        """Whether both legs find candidates; one of weight 0 only shows its scores."""
        return self.weights.dense > 0 and self.weights.text > 0


@dataclass(frozen=True)
class Pool:
    """The candidates of one dataset with their raw scores on every leg that was asked.

    Attributes:
        dense_leg, text_leg: None when not asked.
        dense, text: raw scores of candidates, at first those that the leg itself gave; None when
            not asked.
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

    def ranges(self, best_text: float) -> Iterator[tuple[UUID, float, float]]:
        """Of each candidate its segment, and between what its final score lies: what a leg did not
        give is between 0 and the score of the last one that it gave.
        """
        mean = self.plan.weights.mean
        dense, text = self.dense or {}, self.text or {}
        most_dense = most_text = 0.0
        if self.dense_leg is not None and not self.dense_leg.all_read:
            most_dense = normalise_dense(self.dense_leg.points[-1].score)
        if self.text_leg is not None and not self.text_leg.all_read:
            most_text = normalise_text(self.text_leg.points[-1].score, best_text)
        for id, segment_id in self.segment_of.items():
            low_dense = high_dense = low_text = high_text = 0.0
            if id in dense:
                low_dense = high_dense = normalise_dense(dense[id])
            else:
                high_dense = most_dense
            if id in text:
                low_text = high_text = normalise_text(text[id], best_text)
            else:
                high_text = most_text
            yield segment_id, mean(low_dense, low_text), mean(high_dense, high_text)

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


def gather(plan: Plan, dense_leg: Leg | None, text_leg: Leg | None) -> Pool:
    """The union of what the legs found, with the scores that they gave."""
    segment_of = {
        p.id: p.segment_id
        for leg, weight in ((dense_leg, plan.weights.dense), (text_leg, plan.weights.text))
        if leg is not None and weight > 0
        for p in leg.points
    }
    dense = _scores(dense_leg, segment_of)
    return Pool(plan, dense_leg, text_leg, dense, _scores(text_leg, segment_of), segment_of)


def _scores(leg: Leg | None, candidates: Mapping[UUID, UUID]) -> dict[UUID, float] | None:
    return None if leg is None else {p.id: p.score for p in leg.points if p.id in candidates}


def contenders(
    pools: Iterable[Pool], best_text: float, top_k: int, threshold: float | None, rounding: float
) -> set[UUID]:
    """Segments that may be among the `top_k` best, whatever the scores are that no leg gave.

    Most candidates of one leg are so far from the other one's that their score there, which costs
    a look into the index, cannot change the answer.

    Args:
        threshold: segments that cannot reach it are none, either.
        rounding: scores of two calls of an index differ by less.
    """
    lowest: dict[UUID, float] = {}
    highest: dict[UUID, float] = {}
    for pool in pools:
        for segment_id, low, high in pool.ranges(best_text):
            lowest[segment_id] = max(low, lowest.get(segment_id, 0.0))
            highest[segment_id] = max(high, highest.get(segment_id, 0.0))
    sure = heapq.nlargest(top_k, lowest.values())
    floor = sure[-1] if len(sure) == top_k else 0.0
    floor = max(floor, threshold or 0.0) - rounding
    return {segment_id for segment_id, high in highest.items() if high >= floor}


def complete(
    pool: Pool, segments: Set[UUID], vector: Vector | None, terms: Terms, index: SegmentIndex
) -> Pool:
    """The pool with the candidates of these segments alone, each with its scores on both sides."""
    plan = pool.plan
    segment_of = {i: segment for i, segment in pool.segment_of.items() if segment in segments}
    dense, text = _of(pool.dense, segment_of), _of(pool.text, segment_of)
    if dense is not None and vector is not None:
        unknown = [i for i in segment_of if i not in dense]
        if unknown:
            dense |= index.dense_scores(plan.space, plan.dataset_id, vector, unknown)
    if text is not None and pool.text_leg is not None:
        unknown = [i for i in segment_of if i not in text]
        if unknown and not pool.text_leg.all_read:  # otherwise they hold no term of the query
            text |= index.text_scores(plan.space, plan.dataset_id, terms, unknown)
    return Pool(plan, pool.dense_leg, pool.text_leg, dense, text, segment_of)


def _of(
    scores: Mapping[UUID, float] | None, candidates: Mapping[UUID, UUID]
) -> dict[UUID, float] | None:
    return None if scores is None else {i: s for i, s in scores.items() if i in candidates}
