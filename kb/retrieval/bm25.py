"""BM25 term weights: what a term contributes before idf.

Score of a text = sum over the query's terms of query frequency x idf x term weight.
Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009, (3.15);
idf as in Lucene, never negative.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from kb.ports import Terms
from kb.retrieval.analysis import term_id

K1 = 1.2
"""How slowly a repeated term stops counting; > 0."""
B = 0.75
"""How far a text's length counts against it, from 0 (not at all) to 1."""


def terms_of_document(
    tokens: Sequence[str], *, average_length: float, k1: float = K1, b: float = B
) -> Terms:
    """The term weights of an analysed text, each in (0, k1 + 1).

    Terms that share a hash count as one term: their frequencies add up.

    Args:
        tokens: `analyse(text)`, with repeats.
        average_length: tokens of a typical text of the dataset, > 0. It need not be exact: within
            a factor of two of the truth the ranking is as good.
    """
    if not average_length > 0:
        raise ValueError(f"average_length is {average_length!r}; give a number above 0")
    counts = Counter(map(term_id, tokens))
    ids = np.fromiter(counts, dtype=np.uint32, count=len(counts))
    frequency = np.fromiter(counts.values(), dtype=np.float64, count=len(counts))
    order = np.argsort(ids)
    norm = k1 * (1 - b + b * len(tokens) / average_length)
    weights = frequency * (k1 + 1) / (frequency + norm)
    return Terms(ids[order], weights[order].astype(np.float32))


def idf(points: int, holding: int) -> float:
    """Lucene's inverse document frequency of a term that `holding` of `points` texts hold; > 0."""
    return math.log(1 + (points - holding + 0.5) / (holding + 0.5))


def upper_bound(query: Terms, idfs: ArrayLike, *, k1: float = K1) -> float:
    """The score that no text reaches: every term of the query, repeated for ever.

    Args:
        idfs: float[n], the idf of each of `query.ids`.
    """
    return float(np.dot(query.weights.astype(np.float64), np.asarray(idfs, dtype=np.float64))) * (
        k1 + 1
    )
