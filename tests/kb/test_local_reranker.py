"""The local cross-encoder: ONNX as faithful as torch, its order, its time budget."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from kb.adapters.cross_encoder_export import MOST_DIFFERENCE, read_cross_encoder
from kb.adapters.local_reranker import LocalReranker, TorchCrossEncoder
from kb.errors import ProviderNotInitialized
from pipelines.errors import TransientError
from tests.cross_encoder import LIMIT, tiny_cross_encoder
from tests.models import model_cache

QUERY = "what is the capital of france"
TEXTS = ["apples is red", "paris", "whales sing " * 40, "", "how long is the warranty", "the the"]


@pytest.fixture(scope="module")
def reranker() -> Iterator[LocalReranker]:
    opened = LocalReranker(tiny_cross_encoder(), cache_dir=model_cache(), threads=1, batch_size=2)
    assert opened.backend == "onnx"
    yield opened
    opened.close()


class Slow:
    """A model that takes its time for each mini-batch, and remembers when it judged what."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.judged = seconds, [""][:0]
        self._lock = threading.Lock()

    def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        time.sleep(self.seconds)
        with self._lock:
            self.judged += texts
        return [0.5] * len(texts)


def slow(monkeypatch: pytest.MonkeyPatch, seconds: float, *, threads: int) -> LocalReranker:
    model = Slow(seconds)
    opened = LocalReranker(
        tiny_cross_encoder(), cache_dir=model_cache(), threads=threads, batch_size=2
    )
    monkeypatch.setattr(opened, "_load", lambda: model)
    return opened


def test_the_export_gives_the_scores_and_the_order_of_torch(reranker: LocalReranker) -> None:
    layout = read_cross_encoder(tiny_cross_encoder())
    torch = TorchCrossEncoder(layout, layout.max_tokens).scores(QUERY, TEXTS)
    scores = reranker.rerank(QUERY, TEXTS, budget_s=30.0)
    assert scores == pytest.approx(torch, abs=MOST_DIFFERENCE)
    order = sorted(range(len(TEXTS)), key=lambda i: -(scores[i] or 0.0))
    assert order == sorted(range(len(TEXTS)), key=lambda i: -torch[i])


def test_a_text_beyond_the_limit_counts_as_far_as_it_is_read(reranker: LocalReranker) -> None:
    long = "whales " * LIMIT
    first, second = reranker.rerank("sing", [long, long + "paris " * 100], budget_s=30.0)
    assert first == pytest.approx(second, abs=1e-6)


def test_what_is_not_judged_in_time_has_no_score_and_stands_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened = slow(monkeypatch, 0.1, threads=1)
    started = time.monotonic()
    scores = opened.rerank(QUERY, [str(n) for n in range(20)], budget_s=0.25)
    took_s = time.monotonic() - started
    opened.close()
    assert 0.2 < took_s < 0.4
    judged = [score is not None for score in scores]
    assert judged == sorted(judged, reverse=True), "the first ones come first"
    assert 2 <= sum(judged) <= 4


def test_mini_batches_run_beside_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = slow(monkeypatch, 0.1, threads=4)
    started = time.monotonic()
    scores = opened.rerank(QUERY, [str(n) for n in range(16)], budget_s=5.0)
    assert time.monotonic() - started < 0.5, "8 mini-batches of 0.1 s on 4 threads"
    assert scores == [0.5] * 16
    opened.close()


def test_a_model_that_judges_nothing_in_time_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = slow(monkeypatch, 0.2, threads=1)
    with pytest.raises(TransientError, match="judged no text within its time"):
        opened.rerank(QUERY, TEXTS, budget_s=0.05)
    opened.close()


def test_a_query_does_not_wait_for_a_model_that_is_being_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened = LocalReranker(tiny_cross_encoder(), cache_dir=model_cache(), threads=1)
    loads = threading.Event()

    def load() -> Slow:
        loads.wait(5)
        return Slow(0.0)

    monkeypatch.setattr(opened, "_load", load)
    started = time.monotonic()
    with pytest.raises(TransientError, match="still being loaded"):
        opened.rerank(QUERY, TEXTS, budget_s=0.05)
    assert time.monotonic() - started < 1
    loads.set()
    assert opened.rerank(QUERY, ["a"], budget_s=5.0) == [0.5]
    opened.close()


def test_a_failed_load_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = LocalReranker(tiny_cross_encoder(), cache_dir=model_cache(), threads=1)
    left = [1]

    def load() -> Slow:
        if left.pop() if left else 0:
            raise ProviderNotInitialized("the disk is full")
        return Slow(0.0)

    monkeypatch.setattr(opened, "_load", load)
    with pytest.raises(ProviderNotInitialized, match="disk is full"):
        opened.rerank(QUERY, ["a"], budget_s=5.0)
    assert opened.rerank(QUERY, ["a"], budget_s=5.0) == [0.5]
    opened.close()


def test_another_kind_of_model_is_refused_when_it_is_named(tmp_path: Path) -> None:
    directory = tmp_path / "model"
    shutil.copytree(tiny_cross_encoder(), directory)
    file = directory / "config.json"
    config = json.loads(file.read_text())
    several = config | {"id2label": {"0": "a", "1": "b"}}
    for changed, said in (
        (several, "BertForSequenceClassification with 2 labels"),
        (config | {"architectures": ["BertModel"]}, "it is BertModel with 1 labels"),
    ):
        file.write_text(json.dumps(changed))
        with pytest.raises(ProviderNotInitialized, match=said):
            LocalReranker(directory, cache_dir=tmp_path, threads=1)
    file.unlink()
    with pytest.raises(ProviderNotInitialized, match=r"config\.json is missing"):
        LocalReranker(directory, cache_dir=tmp_path, threads=1)
