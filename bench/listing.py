"""A page of 100 documents of a large dataset, over HTTP, against the same rows read by plain SQL.

    python -m bench.listing [--documents 10000] [--segments 4] [--pages 300] [--json OUT]

How it is measured: bench/README.md.
"""

from __future__ import annotations

import argparse
import json
import random
import sqlite3
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from sqlalchemy import insert

from bench.report import Json, describe, latency, machine, table, write_json
from bench.serving import Api, serving
from bench.words import sentence
from kb.db import now, transaction
from kb.models import Dataset, Document, DocumentVersion, Segment, UploadFile
from kb.resources import FULL_TEXT_SPACE
from kb.settings import Embedding, Settings
from kb.wiring import open_resources

_LIMIT = 100
_WARM_UP = 20
_WORDS = 12  # in each segment
_ROWS = 1000  # documents written at once
KINDS: dict[str, Json] = {
    "any page": {},
    "status=available": {"status": "available"},
    "keyword (1 in 10)": {"keyword": "chapter 7"},
}
"""What is asked for, beside a page by chance."""
_PLAIN = """
SELECT d.*, f.name AS file_name, f.size_bytes, f.extension, f.media_type,
       (SELECT coalesce(sum(hit_count), 0) FROM segments s WHERE s.document_id = d.id AND s.live)
FROM documents d JOIN upload_files f ON f.id = d.upload_file_id
WHERE d.dataset_id = :dataset AND d.name LIKE :name AND d.indexing_status LIKE :status
ORDER BY d.created_at DESC, d.position DESC LIMIT 100 OFFSET :skipped
"""
_PLAIN_COUNT = """
SELECT count(*) FROM documents d
WHERE d.dataset_id = :dataset AND d.name LIKE :name AND d.indexing_status LIKE :status
"""


def measure(*, cache_dir: Path, documents: int, segments: int, pages: int) -> Json:
    """Fill one dataset, then read pages of it both ways in turn."""
    report: Json = {
        "machine": machine(),
        "documents": documents,
        "segments_per_document": segments,
        "rows": _LIMIT,
    }
    with tempfile.TemporaryDirectory(prefix="kb-bench-") as scratch:
        directory = Path(scratch) / "data"
        dataset = fill(directory, cache_dir, documents, segments)
        with (
            serving(directory, models=cache_dir / "models") as kb,
            closing(sqlite3.connect(f"file:{directory / 'kb.db'}?mode=ro", uri=True)) as plain,
        ):
            plain.row_factory = sqlite3.Row
            kb.settle()
            report["kinds"] = {
                kind: _compare(kb.api, plain, dataset, asked, documents, pages)
                for kind, asked in KINDS.items()
            }
    return report


def fill(directory: Path, cache_dir: Path, documents: int, segments: int) -> str:
    """Write the rows of a dataset whose documents are all completed; its id.

    Straight into the tables: a listing asks neither the index nor the files.
    """
    settings = Settings(data_dir=directory, embedding=Embedding(cache_dir=cache_dir / "models"))
    draw, at = random.Random(3), now()
    with open_resources(settings) as resources:
        owner, dataset = resources.owner_id, uuid.uuid4()
        with transaction(resources.sessions) as session:
            session.execute(
                insert(Dataset),
                {
                    "id": dataset,
                    "workspace_id": resources.workspace_id,
                    "name": "listed",
                    "indexing_technique": "economy",
                    "doc_form": "text_model",
                    "space_name": FULL_TEXT_SPACE.name,
                    "created_by": owner,
                },
            )
            for first in range(0, documents, _ROWS):
                numbers = range(first, min(documents, first + _ROWS))
                for table_, rows in _rows(
                    numbers, segments, draw, dataset, owner, resources.workspace_id, at
                ).items():
                    session.execute(insert(table_), rows)
    return str(dataset)


def _rows(
    numbers: Sequence[int],
    segments: int,
    draw: random.Random,
    dataset: uuid.UUID,
    owner: uuid.UUID,
    workspace: uuid.UUID,
    at: datetime,
) -> dict[Any, list[Json]]:
    """What stands in the tables of these documents once they are ingested."""
    files, rows, versions, texts = [], [], [], []
    for number in numbers:
        file, document = uuid.uuid4(), uuid.uuid4()
        created = at + timedelta(milliseconds=number)
        name = f"chapter {number % 10} of book {number}"
        files.append(
            {
                "id": file, "workspace_id": workspace, "name": f"{name}.txt", "size_bytes": 500,
                "extension": "txt", "sha256": "0" * 64, "blob_key": f"uploads/{file}",
                "created_by": owner,
            }
        )  # fmt: skip
        rows.append(
            {
                "id": document, "dataset_id": dataset, "position": number + 1, "name": name,
                "batch": f"{number:020}", "upload_file_id": file, "created_by": owner,
                "created_at": created, "indexing_status": "completed", "version": 1,
                "completed_at": created, "word_count": 500, "tokens": 100,
            }
        )  # fmt: skip
        versions.append({"document_id": document, "number": 1, "upload_file_id": file})
        texts += [
            {
                "dataset_id": dataset, "document_id": document, "position": place + 1,
                "content": sentence(draw, _WORDS), "text_hash": "0" * 64, "word_count": 100,
                "term_count": _WORDS, "start_offset": 0, "end_offset": 100, "live": True,
                "status": "completed", "created_by": owner, "hit_count": draw.choice((0, 0, 3)),
            }
            for place in range(segments)
        ]  # fmt: skip
    return {UploadFile: files, Document: rows, DocumentVersion: versions, Segment: texts}


def _compare(
    api: Api, plain: sqlite3.Connection, dataset: str, asked: Json, documents: int, pages: int
) -> Json:
    draw = random.Random(5)
    path = f"/v1/datasets/{dataset}/documents"
    total = api.call("GET", f"{path}?{urlencode(asked)}")["total"]
    last = max(1, total // _LIMIT)
    over_http, by_sql = [], []
    for number in range(_WARM_UP + pages):
        page = draw.randint(1, last)
        query = urlencode({**asked, "page": page, "limit": _LIMIT})
        ours_ms, ours = _timed(lambda query=query: api.call("GET", f"{path}?{query}"))  # type: ignore[misc]
        plain_ms, theirs = _timed(
            lambda page=page: _read(plain, dataset, asked, page)  # type: ignore[misc]
        )
        _check(ours, theirs, min(_LIMIT, total))
        if number >= _WARM_UP:
            over_http.append(ours_ms)
            by_sql.append(plain_ms)
    report = {"matching": total, "http": latency(over_http), "plain": latency(by_sql)}
    report["ratio"] = {
        p: round(report["http"][p] / report["plain"][p], 2) for p in ("p50_ms", "p95_ms")
    }
    return report


def _timed(read: Callable[[], Json]) -> tuple[float, Json]:
    started = time.perf_counter()
    answer = read()
    return (time.perf_counter() - started) * 1000, answer


def _read(plain: sqlite3.Connection, dataset: str, asked: Json, page: int) -> Json:
    """The same page by plain SQL, as far as the parsed JSON."""
    values = {
        "dataset": dataset.replace("-", ""),
        "name": f"%{asked.get('keyword', '')}%",
        "status": "completed" if "status" in asked else "%",
        "skipped": (page - 1) * _LIMIT,
    }
    rows = [dict(row) for row in plain.execute(_PLAIN, values)]
    (total,) = plain.execute(_PLAIN_COUNT, values).fetchone()
    read: Json = json.loads(json.dumps({"data": rows, "total": total}))
    return read


def _check(ours: Json, theirs: Json, expected: int) -> None:
    """Raises: RuntimeError: the two ways did not read the same documents."""
    ids = [row["id"].replace("-", "") for row in ours["data"]]
    if ids != [row["id"] for row in theirs["data"]] or ours["total"] != theirs["total"]:
        raise RuntimeError("kb and plain SQL list different documents")
    if len(ids) != expected:
        raise RuntimeError(f"{len(ids)} documents on a page instead of {expected}")


def show(report: Json) -> str:
    """The report as text."""
    rows = [
        (
            kind,
            f"{figures['matching']:,}",
            *(f"{figures[way][p]:.2f}" for way in ("http", "plain") for p in ("p50_ms", "p95_ms")),
            *(f"{figures['ratio'][p]:.1f}" for p in ("p50_ms", "p95_ms")),
        )
        for kind, figures in report["kinds"].items()
    ]
    head = ("100 documents", "of", "HTTP p50", "p95", "SQL p50", "p95", "HTTP / SQL p50", "p95")
    return f"{describe(report['machine'])}\nmilliseconds\n{table(head, rows)}"


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=10_000, help="in the dataset (10,000)")
    parser.add_argument("--segments", type=int, default=4, help="of each document (4)")
    parser.add_argument("--pages", type=int, default=300, help="timed per kind (300)")
    parser.add_argument("--cache-dir", type=Path, default=Path("bench/results"))
    parser.add_argument("--json", type=Path, help="write the report here, too")
    options = parser.parse_args()
    report = measure(
        cache_dir=options.cache_dir,
        documents=options.documents,
        segments=options.segments,
        pages=options.pages,
    )
    print(show(report))
    if options.json:
        write_json(options.json, report)


if __name__ == "__main__":
    main()
