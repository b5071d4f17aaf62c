"""Metadata: assignments in bulk, and what filters cost by how much they leave.

    python -m bench.metadata [--documents 10000] [--segments 10] [--queries 100] [--json OUT]

Made documents are put straight into the database and the index of a fresh data directory; what is
measured goes through HTTP and a real `kb serve`. Each figure has another way beside it, in the same
run: one call for all documents against a call for each; a filtered query against the same one
without a filter.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import insert

from bench.report import Json, describe, latency, machine, table, write_json
from bench.serving import METHODS, Api, serving
from bench.words import sentence
from kb.db import transaction
from kb.models import (
    Dataset,
    Document,
    IndexingStatus,
    IndexingTechnique,
    Segment,
    SegmentStatus,
    UploadFile,
)
from kb.ports import Point
from kb.resources import Resources, space_of
from kb.retrieval.analysis import analyse
from kb.retrieval.bm25 import terms_of_document
from kb.settings import Embedding, Settings
from kb.wiring import open_resources

SHARES = (0.0001, 0.001, 0.01, 0.1, 0.5, 1.0)
"""Of the documents that a filter leaves."""
_WORDS = 40
_VARIETY = 20_000  # different texts; documents repeat them, each with a vector of its own
_BATCH = 2000
_SINGLE = 200


def measure(*, documents: int, segments: int, queries: int, models: Path, directory: Path) -> Json:
    """Fill, assign, ask.

    Args:
        segments: of each document; each is a point.
        queries: per share and method.
        models: keeps the exported model.
        directory: empty.
    """
    data_dir = directory / "data"
    settings = Settings(data_dir=data_dir, embedding=Embedding(cache_dir=models))
    started = time.perf_counter()
    with open_resources(settings) as resources:
        dataset_id, ids = _fill(resources, documents, segments)
    report: Json = {
        "documents": documents,
        "points": documents * segments,
        "fill_s": round(time.perf_counter() - started, 1),
    }
    with serving(data_dir, models=models) as server:
        server.settle()
        report["assignments"] = _assignments(server.api, dataset_id, ids)
        server.settle()
        report["filters"] = _filters(server.api, dataset_id, documents, queries)
    return report


def _fill(resources: Resources, documents: int, segments: int) -> tuple[str, list[str]]:
    """A dataset of made texts; its id and those of its documents."""
    embedder, draw = resources.default_embedder, random.Random(0)
    texts = [sentence(draw, _WORDS) for _ in range(min(_VARIETY, documents * segments))]
    rng = np.random.default_rng(0)
    terms = [terms_of_document(analyse(text), average_length=float(_WORDS)) for text in texts]
    with transaction(resources.sessions) as session:
        dataset = Dataset(
            workspace_id=resources.workspace_id,
            name="made",
            indexing_technique=IndexingTechnique.HIGH_QUALITY,
            space_name=embedder.id,
            space_dim=embedder.dim,
            average_length=float(_WORDS),
            created_by=resources.owner_id,
        )
        upload = UploadFile(
            workspace_id=resources.workspace_id,
            name="made.txt",
            size_bytes=1,
            extension="txt",
            sha256="0" * 64,
            blob_key="none",
            created_by=resources.owner_id,
        )
        session.add_all([dataset, upload])
        session.flush()
        ids = [uuid.uuid4() for _ in range(documents)]
        common = {
            "dataset_id": dataset.id,
            "upload_file_id": upload.id,
            "batch": "1",
            "created_by": resources.owner_id,
            "version": 1,
            "indexing_status": IndexingStatus.COMPLETED,
        }
        rows = [
            common | {"id": i, "position": at, "name": f"{at}.txt"} for at, i in enumerate(ids, 1)
        ]
        session.execute(insert(Document), rows)
    space = space_of(dataset)
    assert space is not None
    resources.index.ensure_space(space)
    place = {text: at for at, text in enumerate(texts)}
    for batch in _segments(resources, dataset.id, ids, segments, texts):
        with transaction(resources.sessions) as session:
            session.execute(insert(Segment), batch)
        vectors = rng.normal(size=(len(batch), embedder.dim)).astype(np.float32)
        resources.index.upsert(
            space,
            [
                Point(
                    id=row["id"],
                    dataset_id=dataset.id,
                    document_id=row["document_id"],
                    segment_id=row["id"],
                    version=1,
                    text_hash=row["text_hash"],
                    dense=vectors[at],
                    terms=terms[place[row["content"]]],
                )
                for at, row in enumerate(batch)
            ],
        )
    while resources.index.optimize(budget_s=60.0):
        pass
    resources.index.flush(space)
    return str(dataset.id), [str(i) for i in ids]


def _segments(
    resources: Resources,
    dataset_id: uuid.UUID,
    documents: list[uuid.UUID],
    segments: int,
    texts: list[str],
) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    for number in range(len(documents) * segments):
        text = texts[number % len(texts)]
        batch.append(
            {
                "id": uuid.uuid4(),
                "dataset_id": dataset_id,
                "document_id": documents[number // segments],
                "position": number % segments + 1,
                "content": text,
                "text_hash": "0" * 64,
                "word_count": len(text),
                "term_count": _WORDS,
                "start_offset": 0,
                "end_offset": len(text),
                "live": True,
                "status": SegmentStatus.COMPLETED,
                "created_by": resources.owner_id,
            }
        )
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _assignments(api: Api, dataset_id: str, ids: list[str]) -> Json:
    """Seconds for all documents in one call, and by a call for each."""
    fields = {
        name: _made(api, dataset_id, name, type)
        for name, type in (("rank", "number"), ("shelf", "string"))
    }
    path = f"/v1/datasets/{dataset_id}/documents/metadata"

    def operation(at: int, name: str, value: object) -> Json:
        values = [{"id": fields[name], "name": name, "value": value}]
        return {"document_id": ids[at], "metadata_list": values, "partial_update": True}

    def bulk(name: str, values: list[Any]) -> float:
        body = {"operation_data": [operation(at, name, value) for at, value in enumerate(values)]}
        started = time.perf_counter()
        api.call("POST", path, body)
        return time.perf_counter() - started

    distinct = bulk("rank", list(range(len(ids))))
    grouped = bulk("shelf", [f"shelf {at % 10}" for at in range(len(ids))])
    singles = min(_SINGLE, len(ids))
    started = time.perf_counter()
    for at in range(singles):
        api.call("POST", path, {"operation_data": [operation(at, "shelf", f"shelf {at % 10}")]})
    single = (time.perf_counter() - started) / singles * len(ids)
    return {
        "different_values_s": round(distinct, 3),
        "ten_values_s": round(grouped, 3),
        "a_call_for_each_s": round(single, 1),
        "ratio": round(single / distinct, 1),
    }


def _made(api: Api, dataset_id: str, name: str, type: str) -> str:
    try:
        api.call("POST", f"/v1/datasets/{dataset_id}/metadata", {"name": name, "type": type})
    except RuntimeError as exc:  # the client takes 200 alone, and this answers 201
        if "201" not in str(exc):
            raise
    listed = api.call("GET", f"/v1/datasets/{dataset_id}/metadata")["doc_metadata"]
    return next(str(field["id"]) for field in listed if field["name"] == name)


def _filters(api: Api, dataset_id: str, documents: int, queries: int) -> list[Json]:
    """Latency of each method without a filter, and by share; what comes back is checked."""
    draw = random.Random(1)
    asked = [sentence(draw, 6) for _ in range(queries)]
    rows: list[Json] = []
    for share in (None, *SHARES):
        left = documents if share is None else max(1, round(share * documents))
        row: Json = {"share": share, "documents": left}
        for name, method in METHODS.items():
            model: Json = {"search_method": method, "top_k": 10}
            if share is not None:
                one = {"name": "rank", "comparison_operator": "<", "value": left}
                model["metadata_filtering_conditions"] = {"conditions": [one]}
            row[name] = latency(_ask(api, dataset_id, asked, model, below=left))
        rows.append(row)
    return rows


def _ask(api: Api, dataset_id: str, queries: list[str], model: Json, *, below: int) -> list[float]:
    took_ms: list[float] = []
    ranks: list[int] = []
    warming = queries[:5]
    for number, query in enumerate([*warming, *queries]):
        body = {"query": query, "retrieval_model": model}
        started = time.perf_counter()
        records = api.call("POST", f"/v1/datasets/{dataset_id}/retrieve", body)["records"]
        if number >= len(warming):
            took_ms.append((time.perf_counter() - started) * 1000)
        ranks += [r["segment"]["document"]["doc_metadata"]["rank"] for r in records]
    if not ranks or max(ranks) >= below:
        raise RuntimeError(f"documents below {below} were asked for; found: {sorted(ranks)[-3:]}")
    return took_ms


def show(report: Json) -> None:
    """Print it."""
    done = report["assignments"]
    print(f"{report['documents']:,} documents, {report['points']:,} points")
    print(
        f"assignments: {done['different_values_s']} s with different values, "
        f"{done['ten_values_s']} s with ten; a call for each: {done['a_call_for_each_s']} s "
        f"(ratio {done['ratio']})"
    )
    whole = report["filters"][0]
    rows = [
        [
            "no filter" if row["share"] is None else f"{row['share']:.2%}",
            f"{row['documents']:,}",
            *(f"{row[name]['p50_ms']:.1f} / {row[name]['p95_ms']:.1f}" for name in METHODS),
            *(f"{row[name]['p50_ms'] / whole[name]['p50_ms']:.2f}" for name in METHODS),
        ]
        for row in report["filters"]
    ]
    header = ["left", "documents", *(f"{n} ms" for n in METHODS), *(f"{n} x" for n in METHODS)]
    print(table(header, rows))


def main() -> None:
    """Run the benchmark and print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=10_000)
    parser.add_argument("--segments", type=int, default=10, help="of each document")
    parser.add_argument("--queries", type=int, default=100, help="per share and method")
    parser.add_argument("--cache-dir", type=Path, default=Path("bench/results"))
    parser.add_argument("--json", type=Path, help="write the report here, too")
    options = parser.parse_args()
    facts = machine()
    print(describe(facts))
    with tempfile.TemporaryDirectory() as directory:
        report = measure(
            documents=options.documents,
            segments=options.segments,
            queries=options.queries,
            models=options.cache_dir / "models",
            directory=Path(directory),
        )
    show(report)
    if options.json:
        write_json(options.json, {"machine": facts, **report})


if __name__ == "__main__":
    main()
