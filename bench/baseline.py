"""The plain way: sentence-transformers on torch, one flat list, numpy, rank_bm25.

What many programs start with, done well: vectors in one float32 matrix searched exactly, BM25 over
the same terms as kb's, the two fused by a weighted sum of min-max normalised scores. Nothing is
kept on disk and nothing can be changed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rank_bm25 import BM25Okapi

from bench.evaluation import LabelledSet, ndcg_at_k
from bench.report import Json, latency, peak_mb, resident_mb
from kb.adapters.local_embedder import packaged_model
from kb.retrieval.analysis import analyse, analyse_query
from kb.retrieval.bm25 import K1, B
from pipelines.types import Vector, Vectors

Scores = NDArray[np.float64]
TOP_K = 10


class PlainEmbedder:
    """The packaged model as sentence-transformers runs it by default: torch, batches of 32."""

    def __init__(self) -> None:
        from sentence_transformers import SentenceTransformer

        self._model: Any = SentenceTransformer(str(packaged_model()), device="cpu")

    def embed(self, texts: Sequence[str]) -> Vectors:
        """float32[n, dim], normalised."""
        vectors: Vectors = self._model.encode(
            list(texts), normalize_embeddings=True, show_progress_bar=False
        )
        return vectors


class PlainIndex:
    """A flat list of texts.

    Args:
        vectors: float32[n, dim], normalised.
    """

    def __init__(self, texts: Sequence[str], vectors: Vectors) -> None:
        self._vectors = vectors
        self._bm25 = BM25Okapi([analyse(text) for text in texts], k1=K1, b=B)

    def vector(self, query: Vector) -> list[int]:
        """The nearest texts, best first."""
        return _best(self._vectors @ query)

    def fulltext(self, query: str) -> list[int]:
        """The best matches of the query's terms, best first."""
        return _best(self._bm25.get_scores(analyse_query(query)))

    def hybrid(self, query: str, vector: Vector) -> list[int]:
        """The best sums, equal weights, best first."""
        text = _min_max(self._bm25.get_scores(analyse_query(query)))
        return _best(0.5 * _min_max(self._vectors @ vector) + 0.5 * text)


def _best(scores: NDArray[Any]) -> list[int]:
    few = np.argpartition(-scores, min(TOP_K, len(scores) - 1))[:TOP_K]
    return [int(i) for i in few[np.argsort(-scores[few], kind="stable")]]


def _min_max(scores: NDArray[Any]) -> Scores:
    low, high = float(scores.min()), float(scores.max())
    return (scores - low) / (high - low) if high > low else np.zeros(len(scores))


def measure_ingestion(corpus: LabelledSet) -> Json:
    """Embed and index the corpus; rates, CPU seconds, memory and dense nDCG@10 of this process."""
    embedder = PlainEmbedder()
    embedder.embed(corpus.texts[:32])
    started, cpu_before = time.perf_counter(), time.process_time()
    vectors = embedder.embed(corpus.texts)
    embedded_s = time.perf_counter() - started
    index = PlainIndex(corpus.texts, vectors)
    took_s, cpu_took_s = time.perf_counter() - started, time.process_time() - cpu_before
    found = {
        query_id: [corpus.ids[i] for i in index.vector(query)]
        for query_id, query in zip(corpus.query_ids, embedder.embed(corpus.queries), strict=True)
    }
    return {
        "seconds": round(took_s, 3),
        "chunks_per_s": round(len(corpus.texts) / took_s, 1),
        "embedding_seconds": round(embedded_s, 3),
        "cpu_seconds": round(cpu_took_s, 2),
        "cores_used": round(cpu_took_s / took_s, 2),
        "peak_mb": peak_mb(),
        "ndcg10_vector": round(ndcg_at_k(found, corpus.qrels), 4),
    }


def measure_search(
    corpus: LabelledSet,
    texts: Sequence[str],
    vectors: Vectors,
    sizes: Sequence[int],
    queries: Sequence[str],
    slow_queries: int,
) -> Json:
    """Latencies at each size, and nDCG@10 at the size of the corpus.

    Args:
        texts, vectors: at least as many as the largest size; they begin with the corpus.
        slow_queries: how many of the queries full text and hybrid are timed with.
    """
    embedder = PlainEmbedder()
    embedder.embed(["warm up"])
    report: Json = {"sizes": {}, "ndcg10": {}}
    for size in sizes:
        before_mb, started = resident_mb(), time.perf_counter()
        index = PlainIndex(texts[:size], vectors[:size])
        report["sizes"][str(size)] = {
            "build_seconds": round(time.perf_counter() - started, 2),
            "index_mb": round(resident_mb() - before_mb + vectors[:size].nbytes / 2**20, 1),
            **_latencies(index, embedder, queries, slow_queries),
        }
        if size == len(corpus.ids):
            report["ndcg10"] = _quality(index, embedder, corpus)
    report["peak_mb"] = peak_mb()
    return report


def _latencies(
    index: PlainIndex, embedder: PlainEmbedder, queries: Sequence[str], slow_queries: int
) -> Json:
    """From question to ranking, and of the hybrid query also without embedding the question."""
    few = queries[:slow_queries]
    vectors = [embedder.embed([query])[0] for query in few]
    return {
        "fulltext": _timed(index.fulltext, few),
        "vector": _timed(lambda query: index.vector(embedder.embed([query])[0]), queries),
        "hybrid": _timed(lambda query: index.hybrid(query, embedder.embed([query])[0]), few),
        "hybrid_search_only": _timed(
            lambda pair: index.hybrid(*pair), list(zip(few, vectors, strict=True))
        ),
    }


def _timed(answer: Callable[[Any], object], questions: Sequence[Any]) -> Json:
    answer(questions[0])
    took_ms = []
    for question in questions:
        started = time.perf_counter()
        answer(question)
        took_ms.append((time.perf_counter() - started) * 1000)
    return latency(took_ms)


def _quality(index: PlainIndex, embedder: PlainEmbedder, corpus: LabelledSet) -> Json:
    found: dict[str, dict[str, list[str]]] = {"fulltext": {}, "vector": {}, "hybrid": {}}
    vectors = embedder.embed(corpus.queries)
    for query_id, query, vector in zip(corpus.query_ids, corpus.queries, vectors, strict=True):
        for method, numbers in (
            ("fulltext", index.fulltext(query)),
            ("vector", index.vector(vector)),
            ("hybrid", index.hybrid(query, vector)),
        ):
            found[method][query_id] = [corpus.ids[i] for i in numbers]
    return {method: round(ndcg_at_k(runs, corpus.qrels), 4) for method, runs in found.items()}
