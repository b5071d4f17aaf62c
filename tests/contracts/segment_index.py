"""Helpers of the SegmentIndex contract: the adapters, made-up points, a brute-force oracle.

As a program it is the writer that the durability test kills:
`python -m tests.contracts.segment_index ADAPTER DIRECTORY FIRST`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path
from uuid import UUID, uuid4

import numpy as np
from numpy.typing import NDArray

from kb.adapters.qdrant_edge import QdrantEdgeIndex
from kb.ports import Point, Scored, SegmentIndex, Space, Terms
from pipelines.types import Vector
from tests.contracts.qdrant_server import open_server_index

DIM = 16
SPACE = Space("contract", DIM)

ADAPTERS: dict[str, Callable[[Path], SegmentIndex]] = {
    # Small segments and no watermark: upkeep has something to do, and the disk is not under test.
    "qdrant_edge": lambda directory: QdrantEdgeIndex(
        directory, segment_kb=40, min_free_bytes=0, min_free_share=0
    ),
    "qdrant_server": lambda directory: open_server_index(directory, grpc=False),
    "qdrant_server_grpc": lambda directory: open_server_index(directory, grpc=True),
}


def terms(weights: dict[int, float]) -> Terms:
    """Term id -> weight, as Terms."""
    ids = sorted(weights)
    return Terms(
        np.array(ids, dtype=np.uint32), np.array([weights[i] for i in ids], dtype=np.float32)
    )


def point(
    dataset_id: UUID,
    dense: Sequence[float] | NDArray[np.floating] | None,
    weights: dict[int, float],
    *,
    id: UUID | None = None,
    document_id: UUID | None = None,
    version: int = 1,
) -> Point:
    """A point; ids that do not matter to the test are made up."""
    return Point(
        id=id or uuid4(),
        dataset_id=dataset_id,
        document_id=document_id or uuid4(),
        segment_id=uuid4(),
        version=version,
        text_hash=uuid4().hex,
        dense=None if dense is None else np.array(dense, dtype=np.float32),
        terms=terms(weights),
    )


def random_points(
    rng: np.random.Generator,
    dataset_id: UUID,
    count: int,
    *,
    documents: Sequence[UUID] = (),
    words: int = 40,
) -> list[Point]:
    """Points with random vectors, and term ids below `words`, the low ones frequent."""
    return [
        point(
            dataset_id,
            rng.normal(size=DIM),
            {
                int(i): float(w)
                for i, w in zip(
                    rng.zipf(1.5, size=6) % words, rng.uniform(0.2, 2.2, size=6), strict=True
                )
            },
            document_id=documents[i % len(documents)] if documents else None,
        )
        for i in range(count)
    ]


@dataclass
class Oracle:
    """The definitions of the port, in float64, point by point."""

    points: dict[UUID, Point]

    @staticmethod
    def of(points: Iterable[Point]) -> Oracle:
        """An oracle over these points; later ones replace earlier ones of the same id."""
        return Oracle({p.id: p for p in points})

    def dense(self, dataset_id: UUID, vector: Vector) -> dict[UUID, float]:
        """Cosine similarity to every point of the dataset; 0 for a zero vector."""
        return {
            p.id: _cosine(p.dense, vector)
            for p in self.points.values()
            if p.dataset_id == dataset_id and p.dense is not None
        }

    def text(self, dataset_id: UUID, query: Terms) -> dict[UUID, float]:
        """Sum of query weight x idf x term weight; only points with a common term."""
        dataset = [p for p in self.points.values() if p.dataset_id == dataset_id]
        texts = {p.id: dict(_pairs(p.terms)) for p in dataset}
        scores: dict[UUID, float] = {}
        for term, query_weight in _pairs(query):
            holding = [id for id, text in texts.items() if term in text]
            idf = log(1 + (len(texts) - len(holding) + 0.5) / (len(holding) + 0.5))
            for id in holding:
                scores[id] = scores.get(id, 0.0) + query_weight * idf * texts[id][term]
        return scores


def _pairs(value: Terms) -> Iterable[tuple[int, float]]:
    return zip(value.ids.tolist(), value.weights.tolist(), strict=True)


def _cosine(a: Vector, b: Vector) -> float:
    x, y = a.astype(np.float64), b.astype(np.float64)
    norms = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / norms if norms else 0.0


def assert_ranked(hits: Sequence[Scored], expected: dict[UUID, float], limit: int) -> None:
    """The hits are the `limit` best of `expected`, in order, each with its score.

    Scores may differ by float32 rounding (2e-6, relative above 1); so may the order of points
    that are closer than that.
    """
    best = sorted(expected.values(), reverse=True)[:limit]
    got = [hit.score for hit in hits]
    np.testing.assert_allclose(got, best, rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(got, [expected[hit.id] for hit in hits], rtol=2e-6, atol=2e-6)
    assert len({hit.id for hit in hits}) == len(hits)
    assert list(hits) == sorted(hits, key=lambda hit: (-hit.score, hit.id))


def unit(vector: NDArray[np.floating]) -> NDArray[np.float32]:
    """The vector at length 1, rounded to float32."""
    wide = vector.astype(np.float64)
    return (wide / np.linalg.norm(wide)).astype(np.float32)


def numbered(n: int) -> Point:
    """The n-th point of the durability test; the same in every process."""
    rng = np.random.default_rng(n)
    return Point(
        id=UUID(int=n),
        dataset_id=UUID(int=7),
        document_id=UUID(int=n // 10),
        segment_id=UUID(int=n),
        version=1,
        text_hash=str(n),
        dense=unit(rng.normal(size=DIM)),
        terms=terms({n % 50: 1.0, 1000 + n: 2.0}),
    )


def _write_for_ever(adapter: str, directory: Path, first: int) -> None:
    """Upsert eight points at a time; say how many there are after each acknowledgement."""
    index = ADAPTERS[adapter](directory)
    index.ensure_space(SPACE)
    for start in range(first, sys.maxsize, 8):
        index.upsert(SPACE, [numbered(n) for n in range(start, start + 8)])
        print(start + 8, flush=True)
        if start % 160 == 0:
            index.flush(SPACE)
        if start % 240 == 0:
            index.optimize(budget_s=1.0)


if __name__ == "__main__":
    _write_for_ever(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
