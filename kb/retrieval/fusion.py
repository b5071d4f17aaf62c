"""Score arithmetic: raw scores of two legs to final scores in [0, 1]. Pure functions.

The decision and its figures: docs/adr/0004-fusion-and-normalisation.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from uuid import UUID

_KNEE = 1e-3


@dataclass(frozen=True, slots=True)
class Weights:
    """How much each leg counts; finite, not negative, not both zero. Only their ratio matters."""

    dense: float
    text: float

    def __post_init__(self) -> None:
        total = self.dense + self.text
        if not (self.dense >= 0 and self.text >= 0 and total > 0 and isfinite(total)):
            raise ValueError(
                f"weights {self.dense}/{self.text}: give two finite numbers >= 0, one of them > 0"
            )

    @property
    def shares(self) -> tuple[float, float]:
        """The weights of dense and text, brought to a sum of 1."""
        total = self.dense + self.text
        return self.dense / total, self.text / total

    def mean(self, dense: float, text: float) -> float:
        """Weighted mean of two normalised scores, in [0, 1]; never falls when either rises."""
        of_dense, of_text = self.shares
        return min(1.0, of_dense * dense + of_text * text)


@dataclass(frozen=True, slots=True)
class LegScore:
    """What one leg says of a candidate.

    Attributes:
        rank: 1-based place among the leg's live candidates; None below the depth that was read.
        raw: cosine similarity in [-1, 1], or BM25 score >= 0.
        normalised: in [0, 1].
    """

    rank: int | None
    raw: float
    normalised: float


def normalise_dense(cosine: float) -> float:
    """Cosine in [-1, 1] to [0, 1], strictly increasing: itself from 0.001 up.

    Below that it is squeezed into [0, 0.001), so that dissimilar texts keep their order.
    """
    cosine = max(-1.0, min(1.0, cosine))
    return cosine if cosine >= _KNEE else _KNEE * (1 + cosine) / (1 + _KNEE)


def normalise_text(score: float, best: float) -> float:
    """BM25 score to [0, 1]: its share of the best score that the query reaches.

    Zero stays zero: "theoretical minimum, observed maximum" of Bruch, Gai and Ingber, "An
    Analysis of Fusion Functions for Hybrid Retrieval", ACM TOIS 2023.

    Args:
        best: the highest BM25 score of the query among the live texts of all datasets asked.
    """
    return min(1.0, score / best) if best > 0 else 0.0


def fuse(
    dense: Mapping[UUID, float] | None,
    text: Mapping[UUID, float] | None,
    weights: Weights,
    *,
    best_text: float,
) -> dict[UUID, float]:
    """The final score, in [0, 1], of every candidate that either leg knows.

    Args:
        dense: cosines; None when the leg was not asked. A candidate without one (its point went
            away during the query) counts as 0 there.
        text: BM25 scores of the candidates that hold a term of the query; None as above.
    """
    of_dense = {} if dense is None else {i: normalise_dense(raw) for i, raw in dense.items()}
    of_text = {} if text is None else {i: normalise_text(r, best_text) for i, r in text.items()}
    return {
        i: weights.mean(of_dense.get(i, 0.0), of_text.get(i, 0.0))
        for i in of_dense.keys() | of_text.keys()
    }
