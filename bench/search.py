"""Search: quality on a labelled set and speed at several sizes, kb against the plain way.

    python -m bench.search --corpus DIR [--sizes 1000,10000,50000] [--json OUT]

DIR is a labelled set (see bench/evaluation.py). How each figure is measured, and what of the larger
sizes is made up: bench/README.md.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

from sqlalchemy import func, select

from bench.baseline import measure_search
from bench.corpus import bundles, enlarged, remember_vectors, searchable, vectors_of
from bench.evaluation import LabelledSet, ndcg_at_k
from bench.report import (
    Json,
    describe,
    disk_mb,
    in_child,
    latency,
    machine,
    resident_mb,
    table,
    write_json,
)
from bench.serving import METHODS, Server, add_dataset, ingest, ranking, search, serving
from kb.db import reading
from kb.models import CachedEmbedding, Dataset, Segment
from kb.retrieval.service import retrieve
from kb.retrieval.types import RetrievalSettings, SearchMethod
from kb.settings import Embedding, Settings
from kb.wiring import open_resources
from pipelines.types import Vectors

_PER_DOCUMENT = 100
_WARM_UP = 20
_RATIO = ("ratio p50", "p95")
_PLAIN_SPACE = ("plain memory", "plain build s")


def measure(
    corpus: LabelledSet,
    *,
    cache_dir: Path,
    sizes: Sequence[int] = (1000, 10_000, 50_000),
    queries: int = 300,
    plain_queries: int = 60,
) -> Json:
    """Everything, one after the other.

    Args:
        cache_dir: keeps the exported model and the corpus' vectors.
        sizes: numbers of chunks to search in; that of the corpus is added, since quality is
            measured there.
        queries: how many are timed per method and size; those of the corpus, in turn.
        plain_queries: the same of rank_bm25, which is slow.
    """
    report: Json = {"machine": machine(), "corpus": corpus.name}
    corpus = searchable(corpus)
    sizes = sorted({*sizes, len(corpus.ids)})
    asked = list(itertools.islice(itertools.cycle(corpus.queries), queries))
    texts, vectors = enlarged(
        corpus.texts, vectors_of(corpus.texts, cache_dir), max(sizes[-1], len(corpus.texts))
    )
    report["kb"] = measure_kb(corpus, texts, vectors, sizes, asked, cache_dir)
    report["plain"] = in_child(
        measure_search, corpus, texts, vectors, sizes, asked, min(plain_queries, len(asked))
    )
    report["ratio"] = {
        str(size): _ratios(report["kb"]["sizes"][str(size)], report["plain"]["sizes"][str(size)])
        for size in sizes
    }
    return report


def _ratios(kb: Json, plain: Json) -> Json:
    """How many times longer the plain way takes than kb over HTTP."""
    pairs = {method: (method, method) for method in METHODS}
    pairs["hybrid_search_only"] = ("hybrid", "hybrid_search_only")
    return {
        name: {p: round(plain[theirs][p] / kb["rest"][ours][p], 2) for p in ("p50_ms", "p95_ms")}
        for name, (ours, theirs) in pairs.items()
    }


def measure_kb(
    corpus: LabelledSet,
    texts: Sequence[str],
    vectors: Vectors,
    sizes: Sequence[int],
    queries: Sequence[str],
    cache_dir: Path,
) -> Json:
    """Let one dataset grow from size to size; at each, ask over HTTP and in this process."""
    report: Json = {"sizes": {}, "ndcg10": {}}
    with tempfile.TemporaryDirectory(prefix="kb-bench-") as scratch:
        settings = Settings(
            data_dir=Path(scratch) / "data", embedding=Embedding(cache_dir=cache_dir / "models")
        )
        known = remember_vectors(settings, texts, vectors)
        dataset, held = "", 0
        for size in sizes:
            with serving(settings.data_dir, models=cache_dir / "models") as server:
                dataset = dataset or add_dataset(server.api, corpus.name[:40])
                documents = bundles(texts[held:size], _PER_DOCUMENT, first=held)
                fill_s = ingest(server.api, dataset, documents)
                server.settle()
                figures = {
                    "fill_chunks_per_s": round((size - held) / fill_s, 1),
                    "rest": over_http(server, dataset, queries),
                    "server_mb": resident_mb(server.pid),
                }
                if size == len(corpus.ids):
                    report["ndcg10"] = quality(server, dataset, corpus)
            report["sizes"][str(size)] = figures | {
                "in_process": in_process(settings, uuid.UUID(dataset), queries, size, known),
                "index_disk_mb": disk_mb(settings.data_dir / "index"),
                "database_disk_mb": disk_mb(settings.data_dir / "kb.db"),
            }
            held = size
    return report


def over_http(server: Server, dataset: str, queries: Sequence[str]) -> Json:
    """Latencies of a client on one connection, one query after the other, per method."""
    return {
        method: latency(_timed(partial(search, server.api, dataset, method=method), queries))
        for method in METHODS
    }


def quality(server: Server, dataset: str, corpus: LabelledSet) -> Json:
    """nDCG@10 over the API, per method; the dataset holds the corpus and nothing else."""
    return {
        method: round(
            ndcg_at_k(ranking(server.api, dataset, corpus, method, corpus.ids), corpus.qrels), 4
        )
        for method in METHODS
    }


def in_process(
    settings: Settings, dataset_id: uuid.UUID, queries: Sequence[str], size: int, known: int
) -> Json:
    """Latencies of `retrieve()` itself, per method, with the medians of its stages.

    Args:
        known: vectors that the cache held before the fill.
    Raises:
        RuntimeError: the dataset does not hold `size` segments, or more than 10 % of the texts were
            embedded although the cache held their vectors: the figures are not what they claim. (A
            few are: splitting takes leading punctuation off a text.)
    """
    with open_resources(settings) as resources:
        with reading(resources.sessions) as session:
            segments = session.scalar(select(func.count()).select_from(Segment)) or 0
            cached = session.scalar(select(func.count()).select_from(CachedEmbedding)) or 0
        if segments != size or cached - known > 0.1 * size:
            raise RuntimeError(
                f"{segments} segments instead of {size}, {cached} vectors instead of {known}"
            )
        figures: Json = {}
        for method, wire in METHODS.items():
            asked = RetrievalSettings(SearchMethod(wire), top_k=10)
            stages: list[dict[str, float]] = []

            def answer(
                query: str,
                asked: RetrievalSettings = asked,
                stages: list[dict[str, float]] = stages,
            ) -> None:
                with reading(resources.sessions) as session:
                    dataset = session.get_one(Dataset, dataset_id)
                    stages.append(retrieve(session, query, [dataset], asked, resources).timings_ms)

            figures[method] = latency(_timed(answer, queries))
            figures[method]["stages_p50_ms"] = {
                name: round(median(stage[name] for stage in stages), 3) for name in stages[0]
            }
        return figures


def _timed(answer: Callable[[str], object], queries: Sequence[str]) -> list[float]:
    for query in queries[:_WARM_UP]:
        answer(query)
    took_ms = []
    for query in queries:
        started = time.perf_counter()
        answer(query)
        took_ms.append((time.perf_counter() - started) * 1000)
    return took_ms


def show(report: Json) -> str:
    """The report as text."""
    kb, plain = report["kb"], report["plain"]
    quality_rows = [
        (method, f"{kb['ndcg10'][method]:.4f}", f"{plain['ndcg10'][method]:.4f}")
        for method in METHODS
    ]
    speed_rows = [
        (
            f"{int(size):,} {method}",
            *_pair(figures["rest"][method]),
            *_pair(figures["in_process"][method]),
            *_pair(plain["sizes"][size][method]),
            *(f"{report['ratio'][size][method][p]:.1f}" for p in ("p50_ms", "p95_ms")),
        )
        for size, figures in kb["sizes"].items()
        for method in METHODS
    ]
    space_rows = [
        (
            f"{int(size):,}",
            figures["server_mb"],
            figures["index_disk_mb"],
            figures["database_disk_mb"],
            figures["fill_chunks_per_s"],
            plain["sizes"][size]["index_mb"],
            plain["sizes"][size]["build_seconds"],
        )
        for size, figures in kb["sizes"].items()
    ]
    largest = max(report["ratio"], key=int)
    strict = report["ratio"][largest]["hybrid_search_only"]
    return "\n".join(
        [
            describe(report["machine"]),
            f"\n{report['corpus']}: nDCG@10",
            table(("", "kb", "plain"), quality_rows),
            "\nmilliseconds per query, median and 95th percentile; ratio: plain / kb over HTTP",
            table(
                ("chunks", "HTTP p50", "p95", "retrieve() p50", "p95", "plain p50", "p95", *_RATIO),
                speed_rows,
            ),
            f"hybrid at {int(largest):,} against the plain way without embedding the question: "
            f"{strict['p50_ms']} x (p50), {strict['p95_ms']} x (p95)",
            "\nspace in MB; chunks/s of the fill without embedding; seconds to build the plain one",
            table(
                ("chunks", "server", "index on disk", "database", "fill/s", *_PLAIN_SPACE),
                space_rows,
            ),
        ]
    )


def _pair(figures: Json) -> tuple[str, str]:
    return f"{figures['p50_ms']:.2f}", f"{figures['p95_ms']:.2f}"


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, required=True, help="directory of a labelled set")
    parser.add_argument(
        "--sizes",
        type=lambda text: [int(part) for part in text.split(",") if part],
        default=[1000, 10_000, 50_000],
        help="numbers of chunks, with commas between; empty: only that of the corpus",
    )
    parser.add_argument("--queries", type=int, default=300, help="timed per method and size")
    parser.add_argument(
        "--plain-queries", type=int, default=60, help="the same of rank_bm25, which is slow"
    )
    parser.add_argument("--cache-dir", type=Path, default=Path("bench/results"))
    parser.add_argument("--json", type=Path, help="write the report here, too")
    options = parser.parse_args()
    report = measure(
        LabelledSet.load(options.corpus),
        cache_dir=options.cache_dir,
        sizes=options.sizes,
        queries=options.queries,
        plain_queries=options.plain_queries,
    )
    print(show(report))
    if options.json:
        write_json(options.json, report)


if __name__ == "__main__":
    main()
