"""The benchmarks run on a small corpus, find what is there, and report what their manual says."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from bench import ingest, many_datasets, metadata, search
from bench.corpus import Bundle, bundles, enlarged, number_of, process_rule
from bench.evaluation import LabelledSet
from bench.report import latency, peak_mb, resident_mb, table
from tests.models import model_cache

SUBJECTS = ("glaciers", "bicycles", "violins", "volcanoes", "lighthouses")
VERBS = ("carve", "frighten", "outlive", "resemble", "protect", "delay", "improve", "ruin")


@pytest.fixture
def corpus(tmp_path: Path) -> LabelledSet:
    """40 documents, each the only one with its subject and verb; one query for every second."""
    pairs = list(itertools.product(SUBJECTS, VERBS))
    documents = [
        {"id": f"d{i}", "title": subject, "text": f"They {verb} things. Few know. Number {i}."}
        for i, (subject, verb) in enumerate(pairs)
    ]
    queries = [{"id": f"q{i}", "text": " ".join(pairs[i])} for i in range(0, len(pairs), 2)]
    for name, rows in (("corpus", documents), ("queries", queries)):
        lines = "\n".join(json.dumps(row) for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    judged = "\n".join(f"q{i}\td{i}\t1" for i in range(0, len(pairs), 2))
    (tmp_path / "qrels.tsv").write_text(f"query-id\tdoc-id\tscore\n{judged}\n", encoding="utf-8")
    return LabelledSet.load(tmp_path)


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    """A benchmark's cache directory whose model is exported already."""
    model_cache().mkdir(parents=True, exist_ok=True)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "models").symlink_to(model_cache(), target_is_directory=True)
    return tmp_path / "cache"


@pytest.mark.integration
def test_search_compares_quality_and_speed_at_every_size(
    corpus: LabelledSet, cache_dir: Path
) -> None:
    report = search.measure(corpus, cache_dir=cache_dir, sizes=[60], queries=5, plain_queries=3)
    assert set(report) == {"machine", "corpus", "kb", "plain", "ratio"}
    for side in ("kb", "plain"):
        assert set(report[side]["ndcg10"]) == {"fulltext", "vector", "hybrid"}
        assert report[side]["ndcg10"]["fulltext"] == 1.0
        assert report[side]["ndcg10"]["hybrid"] > 0.9
        assert list(report[side]["sizes"]) == ["40", "60"]
    assert report["kb"]["ndcg10"]["vector"] == pytest.approx(
        report["plain"]["ndcg10"]["vector"], abs=0.02
    )
    at_60 = report["kb"]["sizes"]["60"]
    assert set(at_60) == {
        "fill_chunks_per_s",
        "rest",
        "server_mb",
        "in_process",
        "index_disk_mb",
        "database_disk_mb",
    }
    for door in ("rest", "in_process"):
        for figures in at_60[door].values():
            assert 0 < figures["p50_ms"] <= figures["p95_ms"]
            assert figures["queries"] == 5
    assert report["plain"]["sizes"]["60"]["hybrid"]["queries"] == 3
    assert set(report["ratio"]["60"]) == {"fulltext", "vector", "hybrid", "hybrid_search_only"}
    json.dumps(report)
    assert "hybrid at 60" in search.show(report)


@pytest.mark.integration
def test_ingestion_is_compared_on_the_same_texts(corpus: LabelledSet, cache_dir: Path) -> None:
    report = ingest.measure(
        corpus, cache_dir=cache_dir, texts=30, per_document=8, single=3, rounds=1
    )
    assert set(report) == {
        "machine",
        "corpus",
        "texts",
        "per_document",
        "kb",
        "plain",
        "ratio",
        "ndcg10_difference",
        "kb_one_text_per_document",
        "embedder_alone",
    }
    assert report["texts"] == report["kb"]["chunks"] == 30
    assert report["kb"]["documents"] == 4
    assert report["kb_one_text_per_document"]["documents"] == 3
    assert abs(report["ndcg10_difference"]) <= 0.02
    for side in ("kb", "plain"):
        assert report[side]["chunks_per_s"] == pytest.approx(30 / report[side]["seconds"], rel=0.05)
        assert report[side]["peak_mb"] > 100
    json.dumps(report)
    assert "kb / plain" in ingest.show(report)


def test_a_larger_corpus_begins_with_the_real_texts_and_repeats_none() -> None:
    texts = [f"The {word} is first. Then {word} rests! Is {word} new?" for word in SUBJECTS]
    vectors = np.eye(5, 8, dtype=np.float32)
    made, made_vectors = enlarged(texts, vectors, 40, seed=3)
    assert made[:5] == texts
    assert len(set(made)) == len(made) == len(made_vectors) == 40
    assert made_vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(made_vectors, axis=1), 1, rtol=1e-6)
    assert (made_vectors[5:] @ vectors.T).max(axis=1).min() > 0.6  # near a source
    known = {word for text in texts for word in text.split()}
    assert all(set(text.split()[:-1]) <= known for text in made)  # the last one is its number
    again, vectors_again = enlarged(texts, vectors, 40, seed=3)
    assert (again, vectors_again.tolist()) == (made, made_vectors.tolist())
    assert enlarged(texts, vectors, 2)[0] == texts[:2]


def test_a_record_tells_which_text_it_is() -> None:
    documents = list(bundles([f"text {i}" for i in range(7)], 3, first=10))
    assert documents[0] == Bundle("10", ("text 0", "text 1", "text 2"))
    assert [document.name for document in documents] == ["10", "13", "16"]
    record = {"segment": {"document": {"name": "13"}, "position": 2}}
    assert number_of(record) == 14
    assert process_rule(["short"])["rules"]["segmentation"]["max_tokens"] == 50


def test_latencies_are_percentiles_of_single_calls() -> None:
    assert latency([*range(1, 101)]) == {
        "p50_ms": 50.5,
        "p95_ms": 95.05,
        "p99_ms": 99.01,
        "mean_ms": 50.5,
        "queries": 100,
    }


def test_the_peak_of_memory_is_at_least_what_is_held() -> None:
    held = np.ones(30 * 2**17)  # 30 MiB
    assert peak_mb() >= resident_mb() - 1 > held.nbytes / 2**20


def test_columns_are_aligned() -> None:
    assert table(("", "ms"), [("a", 1), ("long", 10.5)]) == "        ms\na        1\nlong  10.5"


@pytest.mark.integration
def test_many_datasets_are_compared_with_one_of_them(cache_dir: Path) -> None:
    report = many_datasets.measure(cache_dir=cache_dir, segments=3, datasets=2, queries=3)
    assert set(report) == {"machine", "segments", "datasets", "methods"}
    for figures in report["methods"].values():
        assert figures["one"]["queries"] == figures["all"]["queries"] == 3
        assert figures["ratio"]["p50_ms"] > 0


@pytest.mark.integration
def test_filters_are_asked_by_how_much_they_leave(cache_dir: Path, tmp_path: Path) -> None:
    report = metadata.measure(
        documents=20, segments=2, queries=2, models=cache_dir / "models", directory=tmp_path
    )
    assert report["points"] == 40
    assert report["assignments"]["different_values_s"] > 0
    assert [row["documents"] for row in report["filters"]] == [20, 1, 1, 1, 2, 10, 20]
    assert all(row[name]["queries"] == 2 for row in report["filters"] for name in metadata.METHODS)
