"""Rerankers over HTTP: what each kind is sent, and servers that refuse, falter or talk nonsense."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kb.adapters.http_reranker import HttpReranker, sigmoid
from kb.errors import ProviderNotInitialized
from kb.model_options import RerankOptions
from kb.models import ModelKind
from pipelines.errors import RateLimited, TransientError
from tests import embedding_provider as bad
from tests.embedding_provider import Answer, Behaviour
from tests.judging import JUDGE, Judge

QUERY = "red apples"
TEXTS = ["red apples", "blue whales", "red foxes"]
SCORES = [1.0, 0.0, 0.5]
KEY = "sk-the-key-of-the-tests"

Open = Callable[..., HttpReranker]


@pytest.fixture
def judge() -> Iterator[Judge]:
    with Judge(api_key=KEY) as opened:
        yield opened


@pytest.fixture
def open_reranker(judge: Judge) -> Iterator[Open]:
    opened: list[HttpReranker] = []

    def make(
        kind: ModelKind = ModelKind.JINA, *, model: str = JUDGE, api_key: str = KEY, **options: Any
    ) -> HttpReranker:
        options = {"url": judge.url, "budget_s": 3.0, "retry_base_s": 0.01, **options}
        chosen = RerankOptions(**options)
        opened.append(
            HttpReranker(
                kind, model, chosen, api_key=api_key, where=lambda name: f"<{name.upper()}>"
            )
        )
        return opened[-1]

    yield make
    for reranker in opened:
        reranker.close()


def results(change: Callable[[list[Any]], Any]) -> Behaviour:
    """The right answer with its results changed."""

    def apply(answer: Answer) -> Answer:
        assert answer.body is not None
        parsed = json.loads(answer.body)
        parsed["results"] = change(parsed["results"])
        return Answer(200, json.dumps(parsed).encode())

    return apply


@pytest.mark.parametrize(
    ("kind", "path", "sent"),
    [
        (
            ModelKind.COHERE,
            "/v2/rerank",
            {"model": JUDGE, "query": QUERY, "documents": TEXTS, "top_n": 3},
        ),
        (
            ModelKind.JINA,
            "/v1/rerank",
            {
                "model": JUDGE,
                "query": QUERY,
                "documents": TEXTS,
                "top_n": 3,
                "return_documents": False,
            },
        ),
        (
            ModelKind.VLLM,
            "/v1/rerank",
            {"model": JUDGE, "query": QUERY, "documents": TEXTS, "truncate_prompt_tokens": -1},
        ),
        (
            ModelKind.TEI,
            "/rerank",
            {"query": QUERY, "texts": TEXTS, "raw_scores": False, "truncate": True},
        ),
    ],
)
def test_each_kind_is_asked_in_its_own_shape(
    judge: Judge, open_reranker: Open, kind: ModelKind, path: str, sent: dict[str, Any]
) -> None:
    assert open_reranker(kind).rerank(QUERY, TEXTS) == SCORES
    (asked,) = judge.asked
    assert (asked.path, asked.body) == (path, sent)
    assert asked.headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    ("kind", "given", "asked"),
    [
        (ModelKind.COHERE, None, "https://api.cohere.com/v2/rerank"),
        (ModelKind.JINA, None, "https://api.jina.ai/v1/rerank"),
        (ModelKind.COHERE, "http://h/v2", "http://h/v2/rerank"),
        (ModelKind.VLLM, "http://h:8000/", "http://h:8000/v1/rerank"),
        (ModelKind.VLLM, "http://h:8000/v1", "http://h:8000/v1/rerank"),
        (ModelKind.VLLM, "http://h/proxy", "http://h/proxy/v1/rerank"),
        (ModelKind.TEI, "http://h:8080/rerank", "http://h:8080/rerank"),
        (ModelKind.TEI, "http://h:8080/proxy", "http://h:8080/proxy/rerank"),
        (ModelKind.COHERE, "https://h/v1/rerank?key=1", "https://h/v1/rerank?key=1"),
    ],
)
def test_an_address_is_completed_as_far_as_it_must_be(
    open_reranker: Open, kind: ModelKind, given: str | None, asked: str
) -> None:
    assert f"at {asked!r}" in repr(open_reranker(kind, url=given))


def test_many_texts_go_in_several_requests_and_keep_their_places(
    judge: Judge, open_reranker: Open
) -> None:
    texts = [f"{'red ' * (n % 2)}{'apples ' * (n % 3 == 0)}x" for n in range(70)]
    wanted = [((n % 2) + (n % 3 == 0)) / 2 for n in range(70)]
    assert open_reranker(ModelKind.TEI).rerank(QUERY, texts) == wanted
    assert sorted(len(asked.body["texts"]) for asked in judge.asked) == [6, 32, 32]


def test_what_a_server_finds_too_much_is_sent_in_parts(judge: Judge, open_reranker: Open) -> None:
    judge.max_texts = 2
    assert open_reranker().rerank(QUERY, TEXTS) == SCORES
    assert [len(asked.body["documents"]) for asked in judge.asked] == [3, 1, 2]


@pytest.mark.parametrize(
    "behaviour",
    [bad.status(429), bad.status(500), bad.status(503, retry_after="0"), bad.dropped, bad.cut],
)
def test_a_server_that_falters_is_asked_again(
    judge: Judge, open_reranker: Open, behaviour: Behaviour
) -> None:
    judge.next(behaviour, behaviour)
    assert open_reranker().rerank(QUERY, TEXTS) == SCORES
    assert len(judge.asked) == 3


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        (bad.body("<html>"), "no JSON: '<html>'"),
        (bad.body('{"results": [{"index": 0}]}'), "no results with index and relevance_score"),
        (bad.body("[]"), "no results with index"),
        (results(lambda items: items[:-1]), "2 scores for 3 texts"),
        (results(lambda items: [*items[:-1], items[0]]), "or one of them twice"),
        (results(lambda items: [{**i, "index": i["index"] + 1} for i in items]), "3 scores for 3"),
        (results(lambda items: [{**i, "relevance_score": "x"} for i in items]), "no results with"),
        (bad.body('{"results": [{"index": 0, "relevance_score": NaN}]}'), "1 scores for 3 texts"),
    ],
)
def test_an_answer_that_is_none_counts_as_a_failed_attempt(
    judge: Judge, open_reranker: Open, behaviour: Behaviour, said: str
) -> None:
    judge.always(behaviour)
    with pytest.raises(TransientError, match=r"the rerank server http.*3 attempts") as caught:
        open_reranker().rerank(QUERY, TEXTS)
    assert said in caught.value.message


def test_the_budget_bounds_all_attempts_together(judge: Judge, open_reranker: Open) -> None:
    judge.always(bad.slow(1.0))
    started = time.monotonic()
    with pytest.raises(TransientError, match="did not answer"):
        open_reranker().rerank(QUERY, TEXTS, budget_s=0.3)
    assert time.monotonic() - started < 0.9


def test_of_several_requests_those_answered_in_time_count(
    judge: Judge, open_reranker: Open
) -> None:
    judge.next(bad.well, bad.slow(1.5))
    reranker = open_reranker(request_texts=2, max_requests=1)
    assert reranker.rerank(QUERY, TEXTS, budget_s=0.5) == [1.0, 0.0, None]


def test_a_long_pause_is_told_to_the_caller(judge: Judge, open_reranker: Open) -> None:
    judge.always(bad.status(429, retry_after="60"))
    started = time.monotonic()
    with pytest.raises(RateLimited) as caught:
        open_reranker().rerank(QUERY, TEXTS)
    assert caught.value.retry_after_s == 60
    assert time.monotonic() - started < 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"api_key": "sk-wrong"}, r"status 401: invalid api token \*\*\*; set <API_KEY>"),
        ({"model": "unknown"}, r"404.*'unknown' not found.*check <URL>.*<MODEL>"),
    ],
)
def test_a_refusal_names_what_to_change_and_never_the_key(
    open_reranker: Open, given: dict[str, Any], said: str
) -> None:
    with pytest.raises(ProviderNotInitialized, match=said) as caught:
        open_reranker(**given).rerank(QUERY, TEXTS)
    assert "sk-" not in caught.value.message


def test_logits_are_refused_unless_they_are_expected(judge: Judge, open_reranker: Open) -> None:
    logits = results(
        lambda items: [{**i, "relevance_score": 8 * i["relevance_score"] - 4} for i in items]
    )
    judge.next(logits, logits)
    with pytest.raises(ProviderNotInitialized, match=r"no probability; set <RAW_SCORES> to true"):
        open_reranker().rerank(QUERY, TEXTS)
    scores = open_reranker(raw_scores=True).rerank(QUERY, TEXTS)
    assert scores == pytest.approx([sigmoid(4), sigmoid(-4), 0.5])
    assert [sigmoid(-1e4), sigmoid(1e4)] == [0.0, 1.0]


def test_no_more_of_a_text_is_sent_than_a_model_can_read(judge: Judge, open_reranker: Open) -> None:
    open_reranker(max_tokens=10).rerank(QUERY, ["x" * 10_000])
    assert len(judge.asked[0].body["documents"][0]) == 320
