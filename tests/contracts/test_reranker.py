"""What every Reranker promises: on a model in this process, and on each kind of server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from kb.adapters.http_reranker import HttpReranker
from kb.adapters.local_reranker import LocalReranker
from kb.model_options import RerankOptions
from kb.models import ModelKind
from kb.ports import Reranker
from pipelines.errors import TransientError
from tests.cross_encoder import tiny_cross_encoder
from tests.judging import JUDGE, Judge
from tests.models import model_cache

QUERY = "what is the capital of france"
TEXTS = [
    "apples is red",
    "the capital of france is paris",
    "whales sing",
    "how long is the warranty",
    "paris in france",
]
SERVERS = [ModelKind.COHERE, ModelKind.JINA, ModelKind.VLLM, ModelKind.TEI]


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with Judge() as opened:
        yield opened


@pytest.fixture(scope="module", params=["local", *SERVERS])
def reranker(request: pytest.FixtureRequest, judge: Judge) -> Iterator[Reranker]:
    opened: Reranker
    if request.param == "local":
        opened = LocalReranker(
            tiny_cross_encoder(), cache_dir=model_cache(), threads=2, batch_size=2, budget_s=60.0
        )
    else:
        options = RerankOptions(url=judge.url, request_texts=2, budget_s=10.0)
        opened = HttpReranker(request.param, JUDGE, options, api_key=None, where=str)
    yield opened
    opened.close()


def test_each_text_has_a_score_between_0_and_1_in_its_place(reranker: Reranker) -> None:
    scores = reranker.rerank(QUERY, TEXTS)
    assert len(scores) == len(TEXTS)
    assert all(score is not None and 0 <= score <= 1 for score in scores)
    assert len(set(scores)) > 1
    backwards = reranker.rerank(QUERY, TEXTS[::-1])
    assert backwards[::-1] == pytest.approx(scores, abs=1e-5)


def test_a_score_depends_on_the_query_and_the_text_alone(reranker: Reranker) -> None:
    together = reranker.rerank(QUERY, TEXTS)
    alone = [reranker.rerank(QUERY, [text])[0] for text in TEXTS]
    assert alone == pytest.approx(together, abs=1e-5)
    assert reranker.rerank("how long is the warranty", TEXTS) != pytest.approx(together, abs=1e-3)


def test_no_text_gives_no_score(reranker: Reranker) -> None:
    assert reranker.rerank(QUERY, []) == []


@pytest.mark.parametrize("text", ["", "  \n", "\udcff", "知识库 whales", "red " * 50_000])
def test_any_text_can_be_judged(reranker: Reranker, text: str) -> None:
    (score,) = reranker.rerank(text or "?", [text])
    assert score is not None
    assert 0 <= score <= 1


def test_a_closed_one_says_that_it_is_closed(judge: Judge) -> None:
    options = RerankOptions(url=judge.url)
    closed: list[Any] = [
        LocalReranker(tiny_cross_encoder(), cache_dir=model_cache(), threads=1),
        HttpReranker(ModelKind.TEI, JUDGE, options, api_key=None, where=str),
    ]
    for reranker in closed:
        reranker.close()
        reranker.close()
        with pytest.raises(TransientError, match="closed"):
            reranker.rerank(QUERY, TEXTS)
