"""Ingestion by one worker against two: what does the second one bring?

Both ingest the same documents, each run in a fresh installation. Workers embed with one thread
each, so that embedding, which takes most of the time, is bound by their number. Everything is
uploaded while the workers stand still; the clock runs from the first document that is taken to the
last one that is completed.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path

from bench.corpus import SEPARATOR, process_rule
from bench.installation import Installation, installation
from bench.report import Json, describe, machine, table, write_json
from bench.serving import Api, add_dataset
from bench.words import sentence
from kb.adapters.local_embedder import LocalEmbedder

_LIMIT_S = 1800.0
_ALONE = 160  # texts that are embedded to see what the machine gives
_TOOK = (
    "SELECT extract(epoch FROM max(d.completed_at) - min(d.processing_started_at)),"
    " (SELECT count(*) FROM segments s WHERE s.dataset_id = d.dataset_id)"
    " FROM documents d WHERE d.dataset_id = %s GROUP BY d.dataset_id"
)
_NODES = (
    "SELECT nodes FROM pipeline_runs r JOIN documents d ON d.id = r.document_id"
    " WHERE d.dataset_id = %s AND status = 'succeeded'"
)
_STATES = (
    "SELECT indexing_status, count(*)::int FROM documents WHERE dataset_id = %s"
    " GROUP BY indexing_status"
)


def measure(
    *, cache_dir: Path, documents: int = 60, texts: int = 8, words: int = 110, rounds: int = 1
) -> Json:
    """The report.

    Args:
        documents, texts, words: how many documents, of how many segments, of how many words.
        rounds: each is one run with one worker and one with two; medians count.
    """
    facts = machine()
    made = bodies(documents, texts, words)
    runs: dict[int, list[Json]] = {1: [], 2: []}
    for _ in range(rounds):
        for workers in runs:
            with tempfile.TemporaryDirectory(prefix="kb-workers-") as scratch:
                runs[workers].append(run(Path(scratch), made, workers, cache_dir / "models"))
    one, two = (statistics.median(r["segments_per_s"] for r in runs[workers]) for workers in (1, 2))
    return {
        "machine": facts,
        "documents": documents,
        "segments": documents * texts,
        "words": words,
        "runs": {str(workers): done for workers, done in runs.items()},
        "segments_per_s": {"1": one, "2": two},
        "ratio": round(two / one, 3),
        "machine_ratio": machine_ratio(made, cache_dir / "models"),
    }


def machine_ratio(made: Sequence[str], models: Path) -> float:
    """What the machine gives at this moment: two processes that only embed, against one."""
    texts = [text for body in made for text in body.split(SEPARATOR)][:_ALONE]
    with (
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as first,
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as second,
    ):
        for pool in (first, second):
            pool.submit(_embed, models, texts[:8]).result()
        took_s = {}
        for pools in ([first], [first, second]):
            started = time.perf_counter()
            futures = [pool.submit(_embed, models, texts) for pool in pools]
            for future in futures:
                future.result()
            took_s[len(pools)] = time.perf_counter() - started
    return round(2 * took_s[1] / took_s[2], 3)


@cache
def _embedder(models: Path) -> LocalEmbedder:
    return LocalEmbedder(None, cache_dir=models, threads=1, niceness=0)


def _embed(models: Path, texts: Sequence[str]) -> None:
    _embedder(models).embed_documents(texts)


def bodies(documents: int, texts: int, words: int) -> list[str]:
    """Texts of documents, the same in every run; no two segments are equal."""
    draw = random.Random(1)
    return [
        SEPARATOR.join(f"{sentence(draw, words)} {d}x{t}" for t in range(texts))
        for d in range(documents)
    ]


def run(directory: Path, made: Sequence[str], workers: int, models: Path) -> Json:
    """Ingest everything in a fresh installation with so many workers; its figures."""
    normal = {"KB_EMBEDDING__NICENESS": "0"}
    with installation(directory, models=models, workers=workers, settings=normal) as kb:
        return ingest(kb, made)


def ingest(kb: Installation, made: Sequence[str]) -> Json:
    """Ingest everything with the workers that are there, and time it."""
    workers = kb.workers()
    _warm_up(kb)
    for worker in workers:
        worker.pause()
    dataset = _upload(kb, "measured", made)
    before = {name: program.cpu_s() for name, program in kb.programs.items()}
    for worker in workers:
        worker.go_on()
    _wait(kb, dataset, len(made))
    cpu = {name: p.cpu_s() - before[name] for name, p in kb.programs.items()}
    ((took, segments),) = kb.query(_TOOK, dataset)
    seconds = float(took)
    return {
        "workers": len(workers),
        "seconds": round(seconds, 2),
        "segments_per_s": round(segments / seconds, 2),
        "cpu_s": {name: round(used, 2) for name, used in cpu.items()},
        "cores_used": round(sum(cpu.values()) / seconds, 2),
        "stage_s": _stages([nodes for (nodes,) in kb.query(_NODES, dataset)]),
    }


def _stages(runs: Sequence[Sequence[Json]]) -> dict[str, float]:
    """Seconds of each stage, added up over all documents."""
    total: dict[str, float] = {}
    for nodes in runs:
        for node in nodes:
            total[node["kind"]] = total.get(node["kind"], 0.0) + node["seconds"]
    return {kind: round(seconds, 2) for kind, seconds in total.items()}


def _warm_up(kb: Installation) -> None:
    """Every worker has its model when this returns."""
    draw, sent, workers = random.Random(2), 0, len(kb.workers())
    seen: set[str] = set()
    ends = time.monotonic() + _LIMIT_S
    with kb.api() as api:
        dataset = add_dataset(api, "warm-up")
        while len(seen) < workers:
            if time.monotonic() > ends:
                raise RuntimeError(f"only {len(seen)} of {workers} workers took a document")
            _add(api, dataset, f"w{sent}", f"{sentence(draw, 400)} {sent}")
            sent += 1
            rows = kb.query("SELECT lease_owner FROM documents WHERE lease_owner IS NOT NULL")
            seen |= {str(owner) for (owner,) in rows}
    _wait(kb, dataset, sent)


def _upload(kb: Installation, name: str, made: Sequence[str]) -> str:
    with kb.api() as api:
        dataset = add_dataset(api, name)
        for number, body in enumerate(made):
            _add(api, dataset, f"{name}-{number}", body)
    return dataset


def _add(api: Api, dataset: str, name: str, text: str) -> None:
    rule = process_rule(text.split(SEPARATOR))
    body = {"name": name, "text": text, "process_rule": rule}
    api.call("POST", f"/v1/datasets/{dataset}/document/create-by-text", body)


def _wait(kb: Installation, dataset: str, documents: int) -> None:
    """Until all are completed.

    Raises:
        RuntimeError: one failed, or it takes too long.
    """
    ends = time.monotonic() + _LIMIT_S
    states: dict[str, int] = {}
    while states.get("completed", 0) < documents:
        states = dict(kb.query(_STATES, dataset))
        if states.get("error") or time.monotonic() > ends:
            raise RuntimeError(f"{states}; {kb.complaints()[-5:]}")
        time.sleep(0.3)


def show(report: Json) -> str:
    """The report as a table."""
    rows = [
        (
            f"{run['workers']} worker{'s' if run['workers'] > 1 else ''}",
            run["seconds"],
            run["segments_per_s"],
            run["cores_used"],
            round(sum(v for k, v in run["cpu_s"].items() if k.startswith("worker")), 1),
            *(round(run["cpu_s"][name], 1) for name in ("api", "postgresql", "qdrant")),
        )
        for runs in report["runs"].values()
        for run in runs
    ]
    header = ("", "s", "segments/s", "cores used", "workers CPU s", "api", "postgresql", "qdrant")
    return "\n".join(
        [
            describe(report["machine"]),
            f"\n{report['documents']} documents, {report['segments']} segments of "
            f"{report['words']} words",
            table(header, rows),
            f"two workers / one: {report['ratio']} x; two processes that only embed / one: "
            f"{report['machine_ratio']} x",
        ]
    )


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=60)
    parser.add_argument("--texts", type=int, default=8, help="segments of a document")
    parser.add_argument("--words", type=int, default=110, help="words of a segment")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--cache-dir", type=Path, default=Path("bench/results"))
    parser.add_argument("--json", type=Path, help="write the report here, too")
    options = parser.parse_args()
    report = measure(
        cache_dir=options.cache_dir,
        documents=options.documents,
        texts=options.texts,
        words=options.words,
        rounds=options.rounds,
    )
    print(show(report))
    if options.json:
        write_json(options.json, report)


if __name__ == "__main__":
    main()
