"""Labelled sets and nDCG: read as written, scored as trec_eval scores."""

import math
from pathlib import Path

import numpy as np
import pytest

from bench.embedding import dense_ranking, subset
from bench.evaluation import LabelledSet, ndcg_at_k


@pytest.fixture
def labelled(tmp_path: Path) -> LabelledSet:
    (tmp_path / "corpus.jsonl").write_text(
        '{"id": "d1", "title": "One", "text": "first"}\n'
        '{"id": "d2", "title": "", "text": "second"}\n\n'
        '{"id": "d3", "text": "third"}\n',
        encoding="utf-8",
    )
    (tmp_path / "queries.jsonl").write_text(
        '{"id": 7, "text": "what is first?"}\n{"id": "q2", "text": "nothing"}\n', encoding="utf-8"
    )
    (tmp_path / "qrels.tsv").write_text(
        "query-id\tdoc-id\tscore\n7\td1\t2\n7\td3\t1\nq2\td2\t0\n", encoding="utf-8"
    )
    return LabelledSet.load(tmp_path)


def test_a_set_is_read_as_it_is_written(labelled: LabelledSet) -> None:
    assert labelled.ids == ("d1", "d2", "d3")
    assert labelled.texts == ("One\nfirst", "second", "third")
    assert labelled.query_ids == ("7", "q2")
    assert labelled.queries == ("what is first?", "nothing")
    assert labelled.qrels == {"7": {"d1": 2, "d3": 1}, "q2": {"d2": 0}}


def test_fewer_documents_keep_their_judgements_only(labelled: LabelledSet) -> None:
    fewer = labelled.only(["d3", "d2"])
    assert fewer.ids == ("d2", "d3")
    assert fewer.texts == ("second", "third")
    assert fewer.qrels == {"7": {"d3": 1}, "q2": {"d2": 0}}


def test_a_subset_keeps_every_relevant_document(labelled: LabelledSet) -> None:
    assert subset(labelled, 1).ids == ("d1", "d3")
    assert subset(labelled, 3).ids == subset(labelled, 0).ids == labelled.ids


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (["d1", "d3"], 1.0),
        (["d3", "d1"], (1 + 2 / math.log2(3)) / (2 + 1 / math.log2(3))),
        (["x", "d1"], (2 / math.log2(3)) / (2 + 1 / math.log2(3))),
        (["x", "y", "d1"], 0.0),
        ([], 0.0),
    ],
)
def test_ndcg_discounts_by_rank_and_stops_at_k(
    labelled: LabelledSet, found: list[str], wanted: float
) -> None:
    ranking = {"7": found, "q2": ["d2"]}  # q2 has no relevant document and does not count
    assert ndcg_at_k(ranking, labelled.qrels, k=2) == pytest.approx(wanted)


def test_a_query_without_a_ranking_counts_as_nothing_found() -> None:
    qrels = {"a": {"d": 1}, "b": {"d": 1}}
    assert ndcg_at_k({"a": ["d"]}, qrels) == 0.5
    assert ndcg_at_k({}, {}) == 0.0


def test_the_dense_ranking_is_by_cosine(labelled: LabelledSet) -> None:
    documents = np.array([[1, 0], [0, 1], [0.6, 0.8]], dtype=np.float32)
    queries = np.array([[1, 0], [0, 1]], dtype=np.float32)
    assert dense_ranking(labelled, documents, queries, k=2) == {
        "7": ["d1", "d3"],
        "q2": ["d2", "d3"],
    }
