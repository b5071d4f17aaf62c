"""Labelled retrieval sets and the measure of a ranking."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Qrels = Mapping[str, Mapping[str, int]]
"""query id -> document id -> grade; a grade above 0 is relevant"""


@dataclass(frozen=True, slots=True)
class LabelledSet:
    """Documents, queries, and which documents answer which query.

    Attributes:
        ids, texts: of the documents, in the file's order; a text is title, line break, text.
        query_ids, queries: in the file's order.
        qrels: of the judged pairs.
    """

    name: str
    ids: tuple[str, ...]
    texts: tuple[str, ...]
    query_ids: tuple[str, ...]
    queries: tuple[str, ...]
    qrels: Qrels

    @classmethod
    def load(cls, path: Path) -> LabelledSet:
        """Read a directory of `corpus.jsonl`, `queries.jsonl` and `qrels.tsv`.

        `corpus.jsonl` holds `{"id", "title", "text"}` (the title may be missing), `queries.jsonl`
        `{"id", "text"}`, `qrels.tsv` a header, then query id, document id, grade.

        Raises:
            FileNotFoundError: one of the three is missing.
        """
        documents = _read_jsonl(path / "corpus.jsonl")
        queries = _read_jsonl(path / "queries.jsonl")
        qrels: dict[str, dict[str, int]] = {}
        with (path / "qrels.tsv").open(encoding="utf-8", newline="") as lines:
            for query_id, document_id, grade in list(csv.reader(lines, delimiter="\t"))[1:]:
                qrels.setdefault(query_id, {})[document_id] = int(grade)
        return cls(
            name=path.name,
            ids=tuple(str(document["id"]) for document in documents),
            texts=tuple(_text(document) for document in documents),
            query_ids=tuple(str(query["id"]) for query in queries),
            queries=tuple(str(query["text"]) for query in queries),
            qrels=qrels,
        )

    def only(self, ids: Sequence[str]) -> LabelledSet:
        """The same queries over fewer documents; judgements of the others are left out."""
        kept = set(ids)
        pairs = [(i, text) for i, text in zip(self.ids, self.texts, strict=True) if i in kept]
        return LabelledSet(
            name=self.name,
            ids=tuple(i for i, _ in pairs),
            texts=tuple(text for _, text in pairs),
            query_ids=self.query_ids,
            queries=self.queries,
            qrels={
                query: {document: grade for document, grade in grades.items() if document in kept}
                for query, grades in self.qrels.items()
            },
        )


def ndcg_at_k(ranking: Mapping[str, Sequence[str]], qrels: Qrels, k: int = 10) -> float:
    """Mean normalised discounted cumulative gain of the first `k` documents, in [0, 1].

    DCG = sum of grade / log2(rank + 1), as trec_eval's ndcg_cut (Jarvelin and Kekalainen, TOIS
    2002). The mean is over the queries that have a relevant document; one without a ranking
    counts as 0.
    """
    scores = []
    for query, grades in qrels.items():
        ideal = _dcg(sorted((g for g in grades.values() if g > 0), reverse=True)[:k])
        if ideal > 0:
            found = [max(0, grades.get(document, 0)) for document in ranking.get(query, ())[:k]]
            scores.append(_dcg(found) / ideal)
    return sum(scores) / len(scores) if scores else 0.0


def _dcg(gains: Sequence[int]) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, start=1))


def _read_jsonl(file: Path) -> list[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def _text(document: Mapping[str, Any]) -> str:
    title = document.get("title")
    return f"{title}\n{document['text']}" if title else str(document["text"])
