"""Rerankers over HTTP, in the shapes of Cohere, Jina, TEI and vLLM.

- cohere: `POST /v2/rerank` with `{model, query, documents, top_n, max_tokens_per_doc}`
- jina: `POST /v1/rerank` with `{model, query, documents, top_n, return_documents}`
- vllm: `POST /v1/rerank` with `{model, query, documents, truncate_prompt_tokens}`
- tei: `POST /rerank` with `{query, texts, raw_scores, truncate}`

TEI answers `[{index, score}]`, the others `{results: [{index, relevance_score}]}`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from math import exp, isfinite
from typing import Any

import httpx2 as httpx

from kb.adapters.model_server import BadAnswer, Endpoint, Patience, Refused, Request
from kb.adapters.model_server.contact import Where, contact_of, sendable
from kb.errors import ProviderNotInitialized
from kb.model_options import RerankOptions
from kb.models import ModelKind
from pipelines.errors import TransientError

_HOMES = {ModelKind.COHERE: "https://api.cohere.com", ModelKind.JINA: "https://api.jina.ai"}
_PATHS = {
    ModelKind.COHERE: "/v2/rerank",
    ModelKind.JINA: "/v1/rerank",
    ModelKind.VLLM: "/v1/rerank",
    ModelKind.TEI: "/rerank",
}
_CLIENT_BATCH = 32
"""Texts that a TEI server takes in one request unless it is told otherwise."""
_SHORTEST = 32
_CHARS_PER_TOKEN = 32
_MOST_CHARS = 100_000
"""No rerank model reads more of a text; the rest need not be sent."""
_ATTEMPTS = 3
_SLACK = 1e-6


class HttpReranker:
    """Reranks by asking a server; constructing asks nothing.

    Args:
        where: tells where an option is set, for messages.
    Raises:
        Misconfigured: the URL or the API key cannot be sent.
    """

    def __init__(
        self,
        kind: ModelKind,
        model: str,
        options: RerankOptions,
        *,
        api_key: str | None,
        where: Where,
    ) -> None:
        self._kind, self._model, self._options, self._where = kind, model, options, where
        self._most_texts = options.request_texts
        if kind is ModelKind.TEI:
            self._most_texts = min(_CLIENT_BATCH, options.request_texts)
        self._endpoint = Endpoint(
            contact_of(
                options,
                what="rerank server",
                url=_url(kind, options.url),
                model=model,
                api_key=api_key,
                where=where,
                checks=("model", "max_tokens"),
                max_requests=options.max_requests,
            )
        )

    def rerank(
        self, query: str, texts: Sequence[str], *, budget_s: float | None = None
    ) -> list[float | None]:
        """See `kb.ports.Reranker`."""
        ends = time.monotonic() + (budget_s or self._options.budget_s)
        clean = _sendable(query)
        parts = [texts[at : at + self._most_texts] for at in range(0, len(texts), self._most_texts)]
        if not parts:
            return []
        calls: list[Callable[[], list[float]]] = [
            partial(self._scores, clean, [self._clip(text) for text in part], ends)
            for part in parts
        ]
        if len(calls) == 1:
            return list(calls[0]())
        results, error = self._endpoint.together(calls)
        if error is not None and (not results or not isinstance(error, TransientError)):
            raise error
        scores: list[float | None] = []
        for at, part in enumerate(parts):
            scores += results.get(at) or [None] * len(part)
        return scores

    def close(self) -> None:
        """End waits and connections; waiting calls get TransientError."""
        self._endpoint.close()

    def __repr__(self) -> str:
        return f"HttpReranker({self._model!r} at {self._endpoint.url!r})"

    def _scores(self, query: str, texts: Sequence[str], ends: float) -> list[float]:
        """Of all the texts, in one request unless the server refuses so many or such long ones."""
        left_s = ends - time.monotonic()
        if left_s <= 0:
            raise TransientError(f"the rerank server {self._endpoint.url} had no time left")
        patience = Patience(_ATTEMPTS, min(left_s, self._options.timeout_s), left_s, at_gate=False)
        request = Request("POST", self._endpoint.url, self._body(query, texts))
        try:
            return self._endpoint.ask(request, partial(self._read, len(texts)), patience)
        except Refused as refusal:
            if not refusal.too_large or (len(texts) == 1 and len(texts[0]) <= _SHORTEST):
                raise
        half = len(texts) // 2
        if half:
            return [
                *self._scores(query, texts[:half], ends),
                *self._scores(query, texts[half:], ends),
            ]
        return self._scores(query, [texts[0][: len(texts[0]) // 2]], ends)

    def _body(self, query: str, texts: Sequence[str]) -> dict[str, Any]:
        most = self._options.max_tokens
        if self._kind is ModelKind.TEI:
            return {"query": query, "texts": list(texts), "raw_scores": False, "truncate": True}
        body: dict[str, Any] = {"model": self._model, "query": query, "documents": list(texts)}
        if self._kind is ModelKind.VLLM:  # -1: as much as the model reads
            return body | {"truncate_prompt_tokens": most or -1}
        body["top_n"] = len(texts)
        if self._kind is ModelKind.JINA:
            return body | {"return_documents": False}
        return body | ({"max_tokens_per_doc": most} if most else {})

    def _read(self, count: int, answer: Any) -> list[float]:
        """The scores in the order of the request's texts."""
        name = "score" if self._kind is ModelKind.TEI else "relevance_score"
        try:
            items = answer if self._kind is ModelKind.TEI else answer["results"]
            places = [int(item["index"]) for item in items]
            scores = [float(item[name]) for item in items]
        except (KeyError, TypeError, ValueError, AttributeError):
            raise BadAnswer(f"something that has no results with index and {name}") from None
        if sorted(places) != list(range(count)):
            raise BadAnswer(f"{len(places)} scores for {count} texts, or one of them twice")
        if not all(map(isfinite, scores)):
            raise BadAnswer("a score that is not finite")
        by_place = dict(zip(places, scores, strict=True))
        return [self._in_range(by_place[at]) for at in range(count)]

    def _in_range(self, score: float) -> float:
        if self._options.raw_scores:
            return sigmoid(score)
        if not -_SLACK <= score <= 1 + _SLACK:
            raise ProviderNotInitialized(
                f"the rerank server {self._endpoint.url} gave a score of {score:g}, which is no "
                f"probability; set {self._where('raw_scores')} to true if these are logits"
            )
        return min(1.0, max(0.0, score))

    def _clip(self, text: str) -> str:
        most = self._options.max_tokens
        return _sendable(text[: min(_MOST_CHARS, _CHARS_PER_TOKEN * most if most else _MOST_CHARS)])


def sigmoid(logit: float) -> float:
    """A logit to (0, 1), strictly increasing, without overflow."""
    return 1 / (1 + exp(-logit)) if logit >= 0 else exp(logit) / (1 + exp(logit))


def _url(kind: ModelKind, given: str | None) -> str:
    """The whole address; a path that ends in `/rerank` is taken as it is."""
    url = httpx.URL(given or _HOMES[kind])
    path = url.path.rstrip("/")
    if not path.endswith("/rerank"):
        known = _PATHS[kind]
        version, _, _ = known.rpartition("/")
        path = f"{path}/rerank" if path and path.endswith(version) else f"{path}{known}"
    return str(url.copy_with(path=path))


def _sendable(text: str) -> str:
    clean = sendable(text)
    return clean if clean.strip() else "."
