"""Embedding throughput and quality: kb's local embedder against sentence-transformers on torch.

    python -m bench.embedding --corpus DIR [--texts N] [--rounds N] [--json OUT]

DIR is a labelled set (see bench/evaluation.py). Both embed the same texts in alternating order;
rates and their ratio are medians of the rounds. kb's threads run at normal priority here, as
torch's do, so that other load on the machine slows both alike. nDCG@10 is measured on the
documents that were embedded: all that are judged relevant, and others up to N, so it is comparable
within a run only, unless `--texts 0` takes the whole corpus.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bench.evaluation import LabelledSet, ndcg_at_k
from kb.adapters.local_embedder import LocalEmbedder, packaged_model
from kb.adapters.onnx_model import normalised
from pipelines.types import Vectors

Embed = Callable[[Sequence[str]], Vectors]


@dataclass(frozen=True, slots=True)
class EmbeddingReport:
    """What a run measured; rates are texts per second, latencies milliseconds.

    Attributes:
        ratio: kb's rate over torch's, median of the rounds' ratios.
        least_cosine: the worst agreement of the two on one text.
    """

    corpus: str
    texts: int
    whole_corpus: bool
    cores: int
    torch_rates: tuple[float, ...]
    kb_rates: tuple[float, ...]
    torch_per_s: float
    kb_per_s: float
    ratio: float
    torch_ndcg10: float
    kb_ndcg10: float
    least_cosine: float
    torch_query_ms: float
    kb_query_ms: float


def compare(
    corpus: LabelledSet, *, cache_dir: Path, texts: int = 500, rounds: int = 3, seed: int = 0
) -> EmbeddingReport:
    """Measure both on the same documents.

    Args:
        cache_dir: keeps the exported model; a cold one costs an export before the clock starts.
        texts: how many documents, at least those judged relevant; 0 for all.
    """
    from sentence_transformers import SentenceTransformer

    sample = subset(corpus, texts, seed)
    model = SentenceTransformer(str(packaged_model()), device="cpu")
    embedder = LocalEmbedder(None, cache_dir=cache_dir, niceness=0)
    ways: dict[str, Embed] = {
        "torch": lambda batch: normalised(model.encode(list(batch), show_progress_bar=False)),
        "kb": embedder.embed_documents,
    }
    if embedder.backend != "onnx":
        raise RuntimeError("the model runs on torch in kb, too; the log says why")
    for embed in ways.values():
        embed(sample.texts[:32])
    rates: dict[str, list[float]] = {"torch": [], "kb": []}
    vectors: dict[str, Vectors] = {}
    for number in range(rounds):
        for way in list(ways) if number % 2 == 0 else list(ways)[::-1]:
            started = time.perf_counter()
            vectors[way] = ways[way](sample.texts)
            rates[way].append(len(sample.texts) / (time.perf_counter() - started))
    ndcg, query_ms = {}, {}
    query_ways: dict[str, Callable[[str], Vectors]] = {
        "torch": lambda text: normalised(model.encode([text], show_progress_bar=False))[0],
        "kb": embedder.embed_query,
    }
    for way, embed_query in query_ways.items():
        queries, took_ms = [], []
        for query in sample.queries:
            started = time.perf_counter()
            queries.append(embed_query(query))
            took_ms.append((time.perf_counter() - started) * 1000)
        ndcg[way] = ndcg_at_k(dense_ranking(sample, vectors[way], np.stack(queries)), sample.qrels)
        query_ms[way] = statistics.median(took_ms)
    embedder.close()
    torch_per_s, kb_per_s = (statistics.median(rates[way]) for way in ("torch", "kb"))
    return EmbeddingReport(
        corpus=corpus.name,
        texts=len(sample.texts),
        whole_corpus=len(sample.texts) == len(corpus.texts),
        cores=os.cpu_count() or 1,
        torch_rates=tuple(rates["torch"]),
        kb_rates=tuple(rates["kb"]),
        torch_per_s=torch_per_s,
        kb_per_s=kb_per_s,
        ratio=statistics.median(
            kb / torch for kb, torch in zip(rates["kb"], rates["torch"], strict=True)
        ),
        torch_ndcg10=ndcg["torch"],
        kb_ndcg10=ndcg["kb"],
        least_cosine=float((vectors["torch"] * vectors["kb"]).sum(axis=1).min()),
        torch_query_ms=query_ms["torch"],
        kb_query_ms=query_ms["kb"],
    )


def subset(corpus: LabelledSet, texts: int, seed: int = 0) -> LabelledSet:
    """All documents judged relevant, and others drawn at random up to `texts`; 0: all of them."""
    if texts == 0 or texts >= len(corpus.ids):
        return corpus
    judged = {d for grades in corpus.qrels.values() for d, grade in grades.items() if grade > 0}
    others = [i for i in corpus.ids if i not in judged]
    drawn = random.Random(seed).sample(others, min(len(others), max(0, texts - len(judged))))
    return corpus.only([*judged, *drawn])


def dense_ranking(
    corpus: LabelledSet, documents: Vectors, queries: Vectors, k: int = 10
) -> dict[str, list[str]]:
    """The `k` documents of highest cosine per query id, by exact search; vectors normalised."""
    best = np.argsort(-(queries @ documents.T), axis=1, kind="stable")[:, :k]
    return {
        query: [corpus.ids[i] for i in row]
        for query, row in zip(corpus.query_ids, best, strict=True)
    }


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, required=True, help="directory of a labelled set")
    parser.add_argument("--texts", type=int, default=500, help="documents to embed; 0: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cache-dir", type=Path, default=Path("bench/results/models"))
    parser.add_argument("--json", type=Path, help="write the report here, too")
    options = parser.parse_args()
    report = compare(
        LabelledSet.load(options.corpus),
        cache_dir=options.cache_dir,
        texts=options.texts,
        rounds=options.rounds,
    )
    part = "the whole corpus" if report.whole_corpus else "a part of the corpus"
    print(f"{report.corpus}: {report.texts} texts ({part}), {report.cores} cores")
    print(f"  torch  {report.torch_per_s:7.1f} texts/s  nDCG@10 {report.torch_ndcg10:.4f}"
          f"  query {report.torch_query_ms:5.1f} ms")  # fmt: skip
    print(f"  kb     {report.kb_per_s:7.1f} texts/s  nDCG@10 {report.kb_ndcg10:.4f}"
          f"  query {report.kb_query_ms:5.1f} ms")  # fmt: skip
    print(f"  ratio  {report.ratio:7.2f} x        least cosine {report.least_cosine:.6f}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(asdict(report), indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
