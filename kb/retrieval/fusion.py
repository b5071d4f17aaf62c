"""Score arithmetic: raw scores of two legs to final scores in [0, 1]. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

_KNEE = 1e-3


@dataclass(frozen=True, slots=True)
class Weights:
    """How much each leg counts; not negative, not both zero. Only their ratio matters."""

    dense: float
    text: float

    def __post_init__(self) -> None:
        if self.dense < 0 or self.text < 0 or self.dense + self.text <= 0:
            raise ValueError(f"weights {self.dense}/{self.text}: give two numbers >= 0, one > 0")


@dataclass(frozen=True, slots=True)
class LegScore:
    """What one leg says of a candidate.

    Attributes:
        rank: 1-based place among the leg's live candidates; None below its candidate depth.
        raw: cosine similarity in [-1, 1], or BM25 score >= 0.
        normalised: in [0, 1].
    """

    rank: int | None
    raw: float
    normalised: float


@dataclass(frozen=True, slots=True)
class Fused:
    """A candidate with its final score in [0, 1] and what it is made of."""

    id: UUID
    score: float
    dense: LegScore | None
    text: LegScore | None


def normalise_dense(cosine: float) -> float:
    """Cosine in [-1, 1] to [0, 1], strictly increasing: itself from 0.001 up.

    Below that it is squeezed into (0, 0.001), so that dissimilar texts keep their order.
    """
    cosine = max(-1.0, min(1.0, cosine))
    return cosine if cosine >= _KNEE else _KNEE * (1 + cosine) / (1 + _KNEE)


def normalise_text(score: float, best: float) -> float:
    """BM25 score to [0, 1]: its share of the best score that the query reaches.

    Zero stays zero: "theoretical minimum, observed maximum" of Bruch, Gai and Ingber, "An
    Analysis of Fusion Functions for Hybrid Retrieval", ACM TOIS 2023.

    Args:
        best: the highest BM25 score of the query over all datasets asked, >= score.
    """
    return min(1.0, score / best) if best > 0 else 0.0


def fuse(
    dense: Mapping[UUID, float] | None,
    text: Mapping[UUID, float] | None,
    weights: Weights,
    *,
    best_text: float,
    dense_ranks: Mapping[UUID, int],
    text_ranks: Mapping[UUID, int],
) -> list[Fused]:
    """Weighted mean of the normalised scores; best first, equal scores by ascending id.

    Args:
        dense: cosine of every candidate; None when the leg was not asked.
        text: BM25 score of candidates that hold a term of the query; None as above.
    """
    candidates = (dense.keys() if dense is not None else set()) | (
        text.keys() if text is not None else set()
    )
    total = weights.dense + weights.text
    fused: list[Fused] = []
    for candidate in candidates:
        d = t = None
        score = 0.0
        if dense is not None and candidate in dense:
            raw = dense[candidate]
            d = LegScore(dense_ranks.get(candidate), raw, normalise_dense(raw))
            score += weights.dense / total * d.normalised
        if text is not None:
            raw = text.get(candidate, 0.0)
            t = LegScore(text_ranks.get(candidate), raw, normalise_text(raw, best_text))
            score += weights.text / total * t.normalised
        fused.append(Fused(candidate, min(1.0, score), d, t))
    fused.sort(key=lambda f: (-f.score, f.id))
    return fused
