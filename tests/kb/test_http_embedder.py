"""Embedders over HTTP: what becomes of every way in which a server can fail."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr, ValidationError

from kb.adapters.http_embedder import HttpEmbedder, http_embedder
from kb.adapters.model_server.faults import retry_after_s
from kb.errors import Misconfigured, ProviderNotInitialized
from kb.settings import Embedding
from pipelines.errors import RateLimited, TransientError
from tests import embedding_provider as bad
from tests.embedding_provider import DIM, MAX_TOKENS, MODEL, Behaviour, Provider, vector_of

KEY = "sk-the-secret-of-the-tests"
TEXTS = [f"text number {n} of whales" for n in range(10)]

Open = Callable[..., HttpEmbedder]

pytestmark = pytest.mark.integration


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider(api_key=KEY) as opened:
        yield opened


@pytest.fixture
def open_embedder(provider: Provider) -> Iterator[Open]:
    """Opens embedders of the provider, quick to try again, closed at the end."""
    opened: list[HttpEmbedder] = []

    def open_one(kind: str = "openai", **options: Any) -> HttpEmbedder:
        values = {
            "provider": kind,
            "url": provider.url,
            "model": MODEL,
            "api_key": SecretStr(KEY),
            "retries": 3,
            "retry_base_s": 0.01,
            "retry_max_s": 1.0,
            "timeout_s": 5.0,
        }
        opened.append(http_embedder(Embedding(**{**values, **options})))
        return opened[-1]

    yield open_one
    for embedder in opened:
        embedder.close()


def assert_right(vectors: Any, texts: list[str] = TEXTS) -> None:
    """They are the texts' own vectors, in order, of length 1."""
    assert np.abs(vectors - np.array([vector_of(text) for text in texts])).max() < 1e-6


# --- what passes, and what is tried again ---


@pytest.mark.parametrize(
    "behaviour",
    [
        bad.status(429),
        bad.status(429, retry_after="0.05"),
        bad.retry_at(0.2),
        bad.status(500),
        bad.status(502),
        bad.status(503, retry_after="0"),
        bad.status(504),
        bad.status(424, "inference failed"),
        bad.dropped,
        bad.cut,
        bad.slow(0.8),
        bad.body("<html>a proxy's page</html>"),
        bad.one_missing,
        bad.zero,
        bad.not_finite,
        bad.numbers(lambda vector: ["x"] * len(vector)),
        bad.numbers(lambda vector: None),
    ],
    ids=[
        *("429", "429 seconds", "429 date", "500", "502", "503", "504", "424"),
        *("reset", "cut", "slow", "html", "one missing", "zero", "nan", "words", "null"),
    ],
)
@pytest.mark.parametrize("kind", ["openai", "tei"])
def test_what_may_pass_is_tried_again(
    provider: Provider, open_embedder: Open, kind: str, behaviour: Behaviour
) -> None:
    embedder = open_embedder(kind, timeout_s=0.4)
    provider.next(behaviour, behaviour)
    assert_right(embedder.embed_documents(TEXTS))
    assert len(provider.calls) == 3
    provider.next(behaviour)
    assert_right(embedder.embed_query(TEXTS[0]), TEXTS[:1])


def test_the_index_says_where_a_vector_belongs(provider: Provider, open_embedder: Open) -> None:
    provider.next(bad.reversed_order)
    assert_right(open_embedder().embed_documents(TEXTS))


@pytest.mark.parametrize(
    "change",
    [
        lambda items: [{**item, "index": 0} for item in items],
        lambda items: [{**item, "index": item["index"] + 1} for item in items],
    ],
    ids=["all zero", "from one"],
)
def test_an_index_that_is_no_order_is_not_guessed_at(
    provider: Provider, open_embedder: Open, change: Callable[[list[Any]], list[Any]]
) -> None:
    provider.always(bad.changed(change))
    with pytest.raises(TransientError, match="index is not 0 to 9"):
        open_embedder().embed_documents(TEXTS)


@pytest.mark.parametrize("behaviour", [bad.twice_as_long, bad.in_base64])
def test_vectors_of_any_length_and_in_base64_are_taken(
    provider: Provider, open_embedder: Open, behaviour: Behaviour
) -> None:
    provider.always(behaviour)
    assert_right(open_embedder().embed_documents(TEXTS))


def test_a_server_that_is_away_is_tried_a_bounded_number_of_times(
    provider: Provider, open_embedder: Open
) -> None:
    provider.always(bad.status(503))
    with pytest.raises(TransientError, match=r"status 503: as ordered \(4 attempts\)") as caught:
        open_embedder().embed_documents(TEXTS)
    assert not isinstance(caught.value, RateLimited)
    assert len(provider.calls) == 4
    provider.stop()
    with pytest.raises(TransientError, match="Connect"):
        open_embedder().embed_documents(TEXTS)


def test_waits_double(provider: Provider, open_embedder: Open) -> None:
    provider.always(bad.status(500))
    with pytest.raises(TransientError):
        open_embedder(retry_base_s=0.1, retries=4).embed_documents(TEXTS)
    began = [call.began for call in provider.calls]
    waits = [b - a for a, b in pairwise(began)]
    for wait, base in zip(waits, (0.1, 0.2, 0.4, 0.8), strict=True):
        assert 0.5 * base <= wait < 1.5 * base + 0.3


# --- a pause that the server asks for ---


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({"retry-after": "7"}, 7),
        ({"retry-after": " 2.5 "}, 2.5),
        ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5),
        ({"retry-after": "999999999"}, 86_400),
        (
            {
                "retry-after": "Wed, 21 Oct 2015 07:28:10 GMT",
                "date": "Wed, 21 Oct 2015 07:28:00 GMT",
            },
            10,
        ),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:10 GMT"}, 0),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "soon"}, None),
        ({}, None),
    ],
)
def test_a_pause_is_read_in_every_form(headers: dict[str, str], wait_s: float | None) -> None:
    import httpx2

    assert retry_after_s(httpx2.Headers(headers)) == wait_s


def test_a_longer_pause_than_a_call_waits_is_handed_on(
    provider: Provider, open_embedder: Open
) -> None:
    embedder = open_embedder()
    provider.next(bad.status(429, retry_after="30"))
    started = time.monotonic()
    with pytest.raises(RateLimited, match="429") as caught:
        embedder.embed_documents(TEXTS)
    assert time.monotonic() - started < 10
    assert caught.value.retry_after_s == 30
    with pytest.raises(RateLimited, match="asked for a pause") as caught:
        embedder.embed_documents(TEXTS)
    assert 25 < (caught.value.retry_after_s or 0) < 30
    assert len(provider.calls) == 1  # the second was not even asked


def test_all_threads_keep_the_pause_that_one_was_told(
    provider: Provider, open_embedder: Open
) -> None:
    embedder = open_embedder(request_texts=1, max_requests=4, retry_max_s=5.0)
    provider.next(bad.status(429, retry_after="0.6"))
    with ThreadPoolExecutor(3) as pool:
        told = pool.submit(embedder.embed_documents, TEXTS[:1])
        while not provider.calls or not provider.calls[0].status:
            time.sleep(0.001)
        time.sleep(0.05)
        paused_at = time.monotonic()
        others = [pool.submit(embedder.embed_documents, TEXTS[n : n + 4]) for n in (2, 6)]
        for future in (told, *others):
            future.result()
    later = [call.began for call in provider.calls[1:]]
    assert len(later) == 9
    assert min(later) - paused_at > 0.45


def test_a_query_does_not_keep_the_pause_of_documents(
    provider: Provider, open_embedder: Open
) -> None:
    embedder = open_embedder()
    provider.next(bad.status(429, retry_after="30"))
    with pytest.raises(RateLimited):
        embedder.embed_documents(TEXTS)
    assert_right(embedder.embed_query(TEXTS[0]), TEXTS[:1])


def test_a_third_of_429_is_no_storm(provider: Provider, open_embedder: Open) -> None:
    embedder = open_embedder(request_texts=1, retries=12, max_requests=8)
    provider.always(bad.status(429, retry_after="0.02"), 0.3)
    texts = [f"text {n}" for n in range(120)]
    assert_right(embedder.embed_documents(texts), texts)
    refused = provider.statuses[429]
    assert len(provider.calls) == 120 + refused
    assert refused < 80
    assert set(provider.embedded.values()) == {1}
    assert provider.most_at_once <= 8


def test_what_was_embedded_before_a_failure_is_not_lost(
    provider: Provider, open_embedder: Open
) -> None:
    embedder = open_embedder(request_texts=3, max_requests=1)
    provider.next(bad.well, bad.well, bad.status(429, retry_after="60"))
    with pytest.raises(RateLimited) as caught:
        embedder.embed_documents(TEXTS)
    assert sorted(caught.value.done) == list(range(6))
    assert_right(np.stack([caught.value.done[n] for n in range(6)]), TEXTS[:6])


# --- what no repetition helps against ---


@pytest.mark.parametrize(
    ("options", "behaviour", "said"),
    [
        ({"api_key": SecretStr("wrong")}, bad.well, r"401.*KB_EMBEDDING__API_KEY"),
        ({"api_key": None}, bad.well, r"401.*KB_EMBEDDING__API_KEY"),
        ({}, bad.status(403), r"403.*KB_EMBEDDING__API_KEY"),
        ({"model": "unknown"}, bad.well, r"404.*'unknown' does not exist.*KB_EMBEDDING__MODEL"),
        ({}, bad.status(400, "bad parameter"), r"400: bad parameter.*KB_EMBEDDING__MODEL"),
        ({}, bad.status(413), r"413.*KB_EMBEDDING__REQUEST_TEXTS"),
        ({}, bad.status(308, location="https://else.where/v1"), r"308.*https://else.where/v1"),
        ({"dimensions": 32}, bad.well, r"64 numbers.*KB_EMBEDDING__DIMENSIONS is 32"),
    ],
)
def test_a_mistake_in_the_settings_is_named_at_once(
    provider: Provider, open_embedder: Open, options: Any, behaviour: Behaviour, said: str
) -> None:
    provider.always(behaviour)
    with pytest.raises(ProviderNotInitialized, match=said):
        open_embedder(**options).embed_documents(["a text"])
    assert len(provider.calls) == 1
    with pytest.raises(ProviderNotInitialized, match=said):
        open_embedder(**options).embed_query("a text")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": None}, "KB_EMBEDDING__MODEL"),
        ({"provider": "tei", "url": None}, "KB_EMBEDDING__URL"),
        ({"send_dimensions": True}, "KB_EMBEDDING__DIMENSIONS"),
        ({"url": "localhost:8080"}, "url"),
    ],
)
def test_settings_that_cannot_work_stop_the_process(options: Any, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Embedding(**{"provider": "openai", "model": MODEL, **options})


def test_a_url_with_a_password_is_refused_and_not_repeated(open_embedder: Open) -> None:
    with pytest.raises(Misconfigured, match="KB_EMBEDDING__API_KEY") as caught:
        open_embedder(url="http://user:hidden@127.0.0.1:1/v1")
    assert "hidden" not in str(caught.value)


def test_vectors_of_another_length_than_before_are_refused(
    provider: Provider, open_embedder: Open
) -> None:
    embedder = open_embedder()
    embedder.embed_documents(TEXTS)
    provider.always(bad.shorter)
    with pytest.raises(ProviderNotInitialized, match=r"63 numbers.*had 64 before"):
        embedder.embed_documents(TEXTS)


# --- the key is nowhere to be read ---


@pytest.mark.parametrize(
    "behaviour",
    [
        bad.status(401, f"you sent {KEY}"),
        bad.status(500, f"crashed with {KEY}"),
        bad.body(f"not JSON, but {KEY}"),
    ],
)
def test_the_key_is_in_no_message_log_or_repr(
    provider: Provider,
    open_embedder: Open,
    caplog: pytest.LogCaptureFixture,
    behaviour: Behaviour,
) -> None:
    caplog.set_level(logging.DEBUG)
    embedder = open_embedder()
    provider.always(behaviour)
    with pytest.raises((TransientError, ProviderNotInitialized)) as caught:
        embedder.embed_documents(TEXTS)
    assert provider.calls[0].headers["authorization"] == f"Bearer {KEY}"
    assert "***" in str(caught.value)
    chain: BaseException | None = caught.value
    while chain is not None:
        assert KEY not in f"{chain!r} {chain}"
        chain = chain.__cause__
    assert KEY not in caplog.text
    assert KEY not in repr(embedder) + repr(embedder.__dict__)


def test_a_key_that_no_header_holds_is_not_repeated(open_embedder: Open) -> None:
    with pytest.raises(Misconfigured, match="KB_EMBEDDING__API_KEY") as caught:
        open_embedder(api_key=SecretStr("sk-geheim\r\nX: ü"))
    assert "geheim" not in str(caught.value)


def test_azure_has_its_own_address_and_header(provider: Provider, open_embedder: Open) -> None:
    url = f"{provider.url}/openai/deployments/d/embeddings?api-version=2024-02-01"
    embedder = open_embedder(url=url, api_key_header="api-key")
    assert_right(embedder.embed_documents(TEXTS))
    assert provider.calls[0].path == "/openai/deployments/d/embeddings?api-version=2024-02-01"
    assert provider.calls[0].headers["api-key"] == KEY
    assert "authorization" not in provider.calls[0].headers


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/", "/v1/embeddings"])
def test_an_address_may_be_given_short_or_whole(
    provider: Provider, open_embedder: Open, path: str
) -> None:
    open_embedder(url=provider.url + path).embed_query("a text")
    assert provider.calls[0].path == "/v1/embeddings"


# --- requests ---


def test_requests_are_cut_by_texts_and_by_characters(
    provider: Provider, open_embedder: Open
) -> None:
    open_embedder(request_texts=4).embed_documents(TEXTS)
    assert sorted(len(call.texts) for call in provider.calls) == [2, 4, 4]
    provider.forget()
    texts = ["a" * 30, "b" * 30, "c" * 500, "d" * 60, "e" * 40, "f"]
    assert_right(open_embedder(request_chars=100).embed_documents(texts), texts)
    sent = sorted(call.texts for call in provider.calls)
    assert sent == [texts[0:2], texts[2:3], texts[3:5], texts[5:6]]


def test_tei_is_not_sent_more_texts_than_it_takes(open_embedder: Open, provider: Provider) -> None:
    texts = [f"text {n}" for n in range(70)]
    assert_right(open_embedder("tei").embed_documents(texts), texts)
    assert sorted(len(call.texts) for call in provider.calls) == [6, 32, 32]


def test_a_request_that_is_too_large_is_halved(open_embedder: Open, provider: Provider) -> None:
    provider.max_texts = 3
    assert_right(open_embedder().embed_documents(TEXTS))
    assert set(provider.embedded.values()) == {1}


def test_documents_are_asked_for_by_a_bounded_number_of_requests(
    provider: Provider, open_embedder: Open
) -> None:
    provider.always(bad.slow(0.05))
    open_embedder(request_texts=1, max_requests=3).embed_documents(TEXTS)
    assert provider.most_at_once == 3


def test_a_long_text_is_cut_and_never_an_error(provider: Provider, open_embedder: Open) -> None:
    provider.refuse_tokens = True
    long = ["a b c d " * 4000, "short", "知识 " * 3000, "w " * 20_000]
    embedder = open_embedder(max_tokens=MAX_TOKENS)
    vectors = embedder.embed_documents(long)
    assert_right(vectors[1:2], ["short"])
    for sent in provider.embedded:
        assert any(text.startswith(sent) for text in long)
    assert min(len(sent) for sent in provider.embedded if sent != "short") > 200
    assert np.isfinite(embedder.embed_query(long[0])).all()


def test_tei_cuts_by_itself_and_is_sent_no_megabytes(
    provider: Provider, open_embedder: Open
) -> None:
    long = "word " * 100_000
    vector = open_embedder("tei").embed_query(long)
    assert provider.calls[-1].body["truncate"] is True
    assert len(provider.calls[-1].texts[0]) == 32 * MAX_TOKENS
    assert_right(vector, ["word " * MAX_TOKENS])
    open_embedder("tei", max_tokens=10).embed_query(long)
    assert len(provider.calls[-1].texts[0]) == 40


def test_prefixes_are_put_before_queries_and_documents(
    provider: Provider, open_embedder: Open
) -> None:
    embedder = open_embedder(query_prefix="query: ", document_prefix="passage: ")
    embedder.embed_documents(["a text"])
    embedder.embed_query("a question")
    assert [call.texts for call in provider.calls] == [["passage: a text"], ["query: a question"]]


def test_a_model_can_be_asked_for_shorter_vectors(provider: Provider, open_embedder: Open) -> None:
    embedder = open_embedder(dimensions=16, send_dimensions=True)
    assert embedder.embed_documents(TEXTS).shape == (10, 16)
    assert embedder.id.endswith("-16")


# --- identity ---


def test_the_space_is_named_by_provider_model_and_length(open_embedder: Open) -> None:
    names = [
        open_embedder(dimensions=DIM, **options).id
        for options in (
            {"model": "text-embedding-3-small"},
            {"model": "BAAI/bge-m3"},
            {"model": "baai-bge-m3"},
            {"model": "baai-bge-m3", "query_prefix": "q: "},
            {"model": "baai-bge-m3", "document_prefix": "p: "},
            {"kind": "tei", "model": "baai-bge-m3"},
        )
    ]
    assert names[0] == "openai-text-embedding-3-small-64"
    assert names[1].startswith("openai-baai-bge-m3-")
    assert names[2] == names[3] == "openai-baai-bge-m3-64"
    assert names[5] == "tei-baai-bge-m3-64"
    assert len(set(names)) == 5


def test_the_length_is_asked_once(provider: Provider, open_embedder: Open) -> None:
    embedder = open_embedder()
    assert (embedder.dim, embedder.id) == (DIM, f"openai-{MODEL}-{DIM}")
    assert embedder.dim == DIM
    assert len(provider.calls) == 1


def test_a_space_is_known_by_its_name_while_the_server_is_away(
    provider: Provider, open_embedder: Open
) -> None:
    embedder = open_embedder()
    of_space = embedder.for_space(f"openai-{MODEL}-48")
    assert of_space is not None
    assert (of_space.id, of_space.dim) == (f"openai-{MODEL}-48", 48)
    assert provider.calls == []
    with pytest.raises(ProviderNotInitialized, match=r"64 numbers.*had 48 before"):
        of_space.embed_query("a text")
    assert embedder.dim == DIM
    assert embedder.for_space(f"openai-{MODEL}-48") is None
    assert embedder.for_space(f"openai-{MODEL}-{DIM}") is embedder


# --- queries ---


def test_a_query_does_not_wait_behind_documents(provider: Provider, open_embedder: Open) -> None:
    embedder = open_embedder(request_texts=1, max_requests=2)
    provider.always(bad.slow(0.3))
    bulk = threading.Thread(target=embedder.embed_documents, args=[TEXTS])
    bulk.start()
    while len(provider.calls) < 2:
        time.sleep(0.005)
    embedder.embed_query("a question")
    assert sum(call.texts[0] in TEXTS for call in provider.calls) < 8  # of ten, two at a time
    bulk.join()


def test_a_query_gives_up_soon(provider: Provider, open_embedder: Open) -> None:
    provider.always(bad.slow(3))
    embedder = open_embedder(query_timeout_s=0.3, timeout_s=60)
    started = time.monotonic()
    with pytest.raises(TransientError, match="no answer within"):
        embedder.embed_query("a question")
    assert time.monotonic() - started < 2.5
    provider.always(bad.status(429, retry_after="0.5"))
    with pytest.raises(RateLimited):
        embedder.embed_query("a question")


def test_closing_ends_a_wait(provider: Provider, open_embedder: Open) -> None:
    embedder = open_embedder(retry_max_s=60)
    provider.always(bad.status(429, retry_after="50"))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(embedder.embed_documents, TEXTS)
        while not provider.calls or not provider.calls[0].status:
            time.sleep(0.005)
        time.sleep(0.1)
        embedder.close()
        with pytest.raises(TransientError, match="closed"):
            waiting.result(timeout=5)
