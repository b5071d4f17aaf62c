"""One question to ten datasets against the same question to one of them.

    python -m bench.many_datasets [--segments 500] [--datasets 10] [--queries 200] [--json OUT]

How it is measured: bench/README.md.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.corpus import Bundle
from bench.report import Json, describe, latency, machine, table, write_json
from bench.serving import Api, add_dataset, ingest, serving
from bench.words import sentence

_WARM_UP = 20
_METHODS = ("full_text_search", "semantic_search", "hybrid_search")
_SENTENCE = 40  # words


def measure(*, cache_dir: Path, segments: int, datasets: int, queries: int) -> Json:
    """Ask one dataset and all of them in turn, so that other load on the machine meets both."""
    draw = random.Random(7)
    report: Json = {"machine": machine(), "segments": segments, "datasets": datasets}
    with (
        tempfile.TemporaryDirectory(prefix="kb-bench-") as scratch,
        serving(Path(scratch) / "data", models=cache_dir / "models") as server,
    ):
        ids = [add_dataset(server.api, f"part {n}") for n in range(datasets)]
        for dataset in ids:
            texts = tuple(sentence(draw, _SENTENCE) for _ in range(segments))
            ingest(server.api, dataset, [Bundle("0", texts)])
        server.settle()
        asked = [sentence(draw, 6) for _ in range(queries)]
        report["methods"] = {
            method: _compare(server.api, ids, asked, method) for method in _METHODS
        }
    return report


def _compare(api: Api, ids: Sequence[str], asked: Sequence[str], method: str) -> Json:
    for dataset in ids:
        body = {"retrieval_model": {"search_method": method}}
        api.call("PATCH", f"/v1/datasets/{dataset}", body)
    for query in asked[:_WARM_UP]:
        _timed(api, ids, query)
    one, all_of_them = [], []
    for query in asked:
        one.append(_timed(api, ids[:1], query))
        all_of_them.append(_timed(api, ids, query))
    report = {"one": latency(one), "all": latency(all_of_them)}
    report["ratio"] = {
        p: round(report["all"][p] / report["one"][p], 2) for p in ("p50_ms", "p95_ms")
    }
    return report


def _timed(api: Api, ids: Sequence[str], query: str) -> float:
    """Milliseconds."""
    body = {
        "query": query,
        "dataset_ids": list(ids),
        "multiple_retrieval_config": {"top_k": 10, "reranking_enable": False},
    }
    started = time.perf_counter()
    answer = api.call("POST", "/v1/knowledge-retrieval", body)
    took_ms = (time.perf_counter() - started) * 1000
    if answer["partial"] or not answer["result"]:
        raise RuntimeError(f"no whole answer: {str(answer)[:500]}")
    return took_ms


def main() -> None:
    """Print the figures; with `--json`, write them, too."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--segments", type=int, default=500, help="in each dataset (500)")
    parser.add_argument("--datasets", type=int, default=10, help="how many (10)")
    parser.add_argument("--queries", type=int, default=200, help="per method (200)")
    parser.add_argument("--cache-dir", type=Path, default=Path("bench/results"))
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    report = measure(
        cache_dir=args.cache_dir,
        segments=args.segments,
        datasets=args.datasets,
        queries=args.queries,
    )
    print(describe(report["machine"]))
    rows = [
        (
            method,
            *(figures[who][p] for who in ("one", "all") for p in ("p50_ms", "p95_ms")),
            *(figures["ratio"][p] for p in ("p50_ms", "p95_ms")),
        )
        for method, figures in report["methods"].items()
    ]
    print(table(["method", "one p50", "p95", "all p50", "p95", "ratio p50", "p95"], rows))
    if args.json:
        write_json(args.json, report)


if __name__ == "__main__":
    main()
