"""Ingestion: a kb server, from upload to searchable, against the plain way on the same texts.

    python -m bench.ingest --corpus DIR [--texts N] [--json OUT]

DIR is a labelled set (see bench/evaluation.py). How each figure is measured: bench/README.md.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict
from pathlib import Path

from bench import embedding
from bench.baseline import measure_ingestion
from bench.corpus import bundles, searchable
from bench.embedding import subset
from bench.evaluation import LabelledSet, ndcg_at_k
from bench.report import Json, cpu_s, describe, in_child, machine, peak_mb, table, write_json
from bench.serving import add_dataset, ingest, ranking, search, serving

_WARM_UP = "Some text that loads the model before the clock starts."


def measure(
    corpus: LabelledSet,
    *,
    cache_dir: Path,
    texts: int = 1000,
    per_document: int = 50,
    single: int = 200,
    rounds: int = 3,
) -> Json:
    """Everything, one after the other.

    Args:
        cache_dir: keeps the exported model; a cold one costs an export before the clock starts.
        texts: how many, at least those judged relevant; 0 for all.
        per_document: texts in each document that is uploaded.
        single: how many texts are also uploaded as a document each; 0 for none.
        rounds: of the comparison of the embedders alone; 0 leaves it out.
    """
    report: Json = {"machine": machine(), "corpus": corpus.name}
    sample = subset(searchable(corpus), texts)
    report["texts"] = len(sample.texts)
    report["per_document"] = per_document
    report["kb"] = measure_kb(sample, cache_dir=cache_dir, per_document=per_document)
    report["plain"] = in_child(measure_ingestion, sample)
    report["ratio"] = _ratio(report["kb"], report["plain"])
    report["ndcg10_difference"] = round(
        report["kb"]["ndcg10_vector"] - report["plain"]["ndcg10_vector"], 4
    )
    if single:
        few = sample.only(sample.ids[:single])
        report["kb_one_text_per_document"] = measure_kb(few, cache_dir=cache_dir, per_document=1)
    if rounds:
        compared = embedding.compare(
            searchable(corpus),
            cache_dir=cache_dir / "models",
            texts=min(len(sample.texts), 500),
            rounds=rounds,
        )
        report["embedder_alone"] = asdict(compared)
    return report


def measure_kb(corpus: LabelledSet, *, cache_dir: Path, per_document: int) -> Json:
    """Upload the texts to a fresh server; rates, CPU, memory, and dense nDCG@10 over the API."""
    with (
        tempfile.TemporaryDirectory(prefix="kb-bench-") as scratch,
        serving(Path(scratch) / "data", models=cache_dir / "models") as server,
    ):
        other = add_dataset(server.api, "warm-up")
        ingest(server.api, other, bundles([_WARM_UP], 1))
        search(server.api, other, _WARM_UP, "hybrid")
        server.settle()
        dataset = add_dataset(server.api, "corpus")
        cpu_before = cpu_s(server.pid)
        took_s = ingest(server.api, dataset, bundles(corpus.texts, per_document))
        cpu_took_s, peak = cpu_s(server.pid) - cpu_before, peak_mb(server.pid)
        found = ranking(server.api, dataset, corpus, "vector", corpus.ids)
    return {
        "documents": -(-len(corpus.texts) // per_document),
        "chunks": len(corpus.texts),
        "seconds": round(took_s, 3),
        "chunks_per_s": round(len(corpus.texts) / took_s, 1),
        "cpu_seconds": round(cpu_took_s, 2),
        "cores_used": round(cpu_took_s / took_s, 2),
        "peak_mb": peak,
        "ndcg10_vector": round(ndcg_at_k(found, corpus.qrels), 4),
    }


def _ratio(kb: Json, plain: Json) -> Json:
    return {
        "chunks_per_s": round(kb["chunks_per_s"] / plain["chunks_per_s"], 2),
        "cpu_seconds": round(kb["cpu_seconds"] / plain["cpu_seconds"], 2),
        "peak_mb": round(kb["peak_mb"] / plain["peak_mb"], 2),
    }


def show(report: Json) -> str:
    """The report as text."""
    header = ("", "chunks/s", "seconds", "CPU s", "cores used", "peak MB", "nDCG@10 dense")
    columns = ("chunks_per_s", "seconds", "cpu_seconds", "cores_used", "peak_mb", "ndcg10_vector")
    rows = [
        ("kb, upload to searchable", *(report["kb"][name] for name in columns)),
        ("plain, encode and BM25", *(report["plain"][name] for name in columns)),
    ]
    ratio = report["ratio"]
    parts = [
        describe(report["machine"]),
        f"\n{report['corpus']}: {report['texts']} texts, {report['per_document']} per document",
        table(header, rows),
        f"kb / plain: {ratio['chunks_per_s']} x the chunks/s, {ratio['cpu_seconds']} x the CPU "
        f"time, {ratio['peak_mb']} x the memory; nDCG@10 {report['ndcg10_difference']:+.4f}",
    ]
    if single := report.get("kb_one_text_per_document"):
        parts.append(
            f"kb, {single['documents']} documents of one text: {single['chunks_per_s']} chunks/s, "
            f"{single['cores_used']} cores used"
        )
    if alone := report.get("embedder_alone"):
        parts.append(
            f"embedder alone, {alone['texts']} texts: kb {alone['kb_per_s']:.1f}/s, torch "
            f"{alone['torch_per_s']:.1f}/s, {alone['ratio']:.2f} x; nDCG@10 kb "
            f"{alone['kb_ndcg10']:.4f}, torch {alone['torch_ndcg10']:.4f}; one query kb "
            f"{alone['kb_query_ms']:.1f} ms, torch {alone['torch_query_ms']:.1f} ms"
        )
    return "\n".join(parts)


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, required=True, help="directory of a labelled set")
    parser.add_argument("--texts", type=int, default=1000, help="texts to ingest; 0: all")
    parser.add_argument("--per-document", type=int, default=50, help="texts in each document")
    parser.add_argument(
        "--single", type=int, default=200, help="texts to upload as a document each, too; 0: none"
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="of the embedders alone; 0: leave them out"
    )
    parser.add_argument("--cache-dir", type=Path, default=Path("bench/results"))
    parser.add_argument("--json", type=Path, help="write the report here, too")
    options = parser.parse_args()
    report = measure(
        LabelledSet.load(options.corpus),
        cache_dir=options.cache_dir,
        texts=options.texts,
        per_document=options.per_document,
        single=options.single,
        rounds=options.rounds,
    )
    print(show(report))
    if options.json:
        write_json(options.json, report)


if __name__ == "__main__":
    main()
