"""What every embedder promises: in this process, over OpenAI's API, over TEI's."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest

from kb.adapters.http_embedder import HttpEmbedder, http_embedder
from kb.adapters.local_embedder import LocalEmbedder
from kb.settings import Embedding
from pipelines.errors import TransientError
from tests.embedding_provider import MODEL, Provider
from tests.models import model_cache

AnyEmbedder = LocalEmbedder | HttpEmbedder
Make = Callable[[], AnyEmbedder]

pytestmark = pytest.mark.integration


@contextmanager
def maker(kind: str) -> Iterator[Make]:
    """Makes embedders of one kind and one model, which are closed at the end."""
    with ExitStack() as stack:
        provider = stack.enter_context(Provider()) if kind != "local" else None

        def make() -> AnyEmbedder:
            if provider is None:
                made: AnyEmbedder = LocalEmbedder(None, cache_dir=model_cache(), threads=2)
            else:
                options = Embedding(provider=kind, url=provider.url, model=MODEL, request_texts=16)  # type: ignore[arg-type]
                made = http_embedder(options)
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture(scope="module", params=["local", "openai", "tei"])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    with maker(request.param) as made:
        yield made


@pytest.fixture(scope="module")
def embedder(make: Make) -> AnyEmbedder:
    return make()


def test_vectors_have_length_one_and_the_order_of_the_texts(embedder: AnyEmbedder) -> None:
    texts = [f"the whale number {n} swims {'far ' * (n % 7)}" for n in range(70)]
    vectors = embedder.embed_documents(texts)
    assert vectors.shape == (70, embedder.dim)
    assert vectors.dtype == np.float32
    assert vectors.flags.c_contiguous
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-5
    alone = np.stack([embedder.embed_documents([text])[0] for text in texts[::10]])
    assert np.abs(vectors[::10] - alone).max() < 1e-5


def test_no_texts_give_no_rows_and_one_string_is_refused(embedder: AnyEmbedder) -> None:
    assert embedder.embed_documents([]).shape == (0, embedder.dim)
    with pytest.raises(TypeError, match="not one string"):
        embedder.embed_documents("a text")
    assert embedder.count_tokens([]) == []


def test_blank_odd_and_endless_texts_have_vectors(embedder: AnyEmbedder) -> None:
    texts = ["", " \n\t", "\0", "\ud800 lone surrogate", "知识库" * 50_000, "x" * 300_000]
    vectors = embedder.embed_documents(texts)
    assert np.isfinite(vectors).all()
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-5
    assert np.isfinite(embedder.embed_query("")).all()
    assert np.isfinite(embedder.embed_query("word " * 100_000)).all()


def test_a_query_is_nearest_to_the_text_that_speaks_of_it(embedder: AnyEmbedder) -> None:
    texts = ["the warranty lasts two years", "whales sing below the ice", "bread needs an oven"]
    query = embedder.embed_query("how long does the warranty last?")
    assert query.shape == (embedder.dim,)
    assert query.dtype == np.float32
    assert (embedder.embed_documents(texts) @ query).argmax() == 0


def test_the_space_is_the_same_for_every_embedder_of_the_model(
    make: Make, embedder: AnyEmbedder
) -> None:
    other = make()
    assert other.id == embedder.id
    assert re.fullmatch(r"[a-z0-9_-]{1,100}", embedder.id)
    ours, theirs = embedder.embed_query("a text"), other.embed_query("a text")
    assert np.abs(ours - theirs).max() < 1e-5


def test_an_embedder_knows_its_space(embedder: AnyEmbedder) -> None:
    assert embedder.for_space(embedder.id) is embedder
    assert embedder.for_space("of-another-model-384") is None
    assert embedder.for_space(embedder.id + "0") is None


def test_tokens_are_counted_without_truncation(embedder: AnyEmbedder) -> None:
    few, many = embedder.count_tokens(["two words", "word " * 2000])
    assert 1 <= few < 10
    assert many >= 2000
    assert embedder.max_tokens > 0


def test_threads_may_share_it(embedder: AnyEmbedder) -> None:
    texts = [[f"thread {t} text {n}" for n in range(20)] for t in range(6)]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(embedder.embed_documents, texts))
    for own, vectors in zip(texts, together, strict=True):
        assert np.abs(embedder.embed_documents(own) - vectors).max() < 1e-5


def test_a_closed_one_says_so(make: Make) -> None:
    closed = make()
    closed.close()
    closed.close()
    with pytest.raises(TransientError, match="closed"):
        closed.embed_documents(["a text"])
    with pytest.raises(TransientError, match="closed"):
        closed.embed_query("a text")
