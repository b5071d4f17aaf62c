"""HttpEmbedder: what embedders over HTTP share, whatever their server speaks."""

from __future__ import annotations

import logging
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from hashlib import sha256
from typing import Any, Self

import numpy as np

from kb.adapters.model_server import BadAnswer, Contact, Endpoint, Patience, Refused, Request
from kb.adapters.model_server.contact import Where, in_settings, sendable
from kb.errors import ProviderNotInitialized
from kb.settings import Embedding
from pipelines.errors import TransientError
from pipelines.types import Vector, Vectors

log = logging.getLogger("kb.embedding")

_SLUG_CHARS = 60
_PROVIDER_CHARS = 16
_PLAIN = ("openai", "tei")
"""Kinds of servers whose name is the provider's, unless somebody gave it another."""
_SHORTEST = 32
"""A text of so few characters is not cut further for a server that finds it too long."""
_BLANK = "."
"""Stands for a text without a visible character: several servers refuse those."""


class HttpEmbedder(ABC):
    """Embeds by asking a server; constructing asks nothing.

    A text that is longer than the model reads is cut, and cut further when the server still finds
    it too long. What the server answers is checked (number, order, length, finite, not zero) and
    brought to length 1.

    Args:
        where: tells where an option is set, for messages.
        provider: names the space, together with the model; None: the kind of server.
        dim: length of the vectors, when it is known from a space that the model has filled.
        endpoint: shared with another embedder of the same server; None opens one.
    Raises:
        Misconfigured: the URL or the API key cannot be sent.
    """

    def __init__(
        self,
        options: Embedding,
        *,
        where: Where = in_settings,
        provider: str | None = None,
        dim: int | None = None,
        endpoint: Endpoint | None = None,
    ) -> None:
        self._options, self._where = options, where
        self._provider = provider or options.provider
        self._endpoint = endpoint or Endpoint(self._contact())
        self._dim = dim or options.dimensions
        self._lock = threading.Lock()
        self._of_spaces: dict[int, Self] = {}

    # -- what the server speaks

    @staticmethod
    @abstractmethod
    def base_url(options: Embedding) -> str:
        """What the paths of requests are appended to."""

    @property
    @abstractmethod
    def max_tokens(self) -> int:
        """Text beyond this many tokens does not influence the vector."""

    @abstractmethod
    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens per text, without truncation."""

    @abstractmethod
    def _most_texts(self, patience: Patience) -> int:
        """Texts per request."""

    @abstractmethod
    def _cut(self, text: str, patience: Patience) -> str:
        """The text as far as the model reads it, or somewhat more if the server cuts exactly."""

    @abstractmethod
    def _request(self, texts: Sequence[str]) -> Request:
        """Asks for the vectors of these texts."""

    @abstractmethod
    def _rows(self, answer: Any) -> list[Any]:
        """The vectors of an answer, in the order of the request's texts, not checked any further.

        Raises:
            BadAnswer: it is no such answer.
        """

    # -- identity

    @property
    def id(self) -> str:
        """`<provider>-<model>-<dim>`, with a hash where the names alone do not tell.

        Asks the server for the length of its vectors if no setting says it.
        """
        return f"{self._prefix}{self.dim}"

    @property
    def dim(self) -> int:
        """Length of every vector; asked once if no setting says it.

        Raises:
            TransientError: the server does not answer.
            ProviderNotInitialized: it refuses.
        """
        if self._dim is None:
            self._embed(["dimension"], self._endpoint.for_queries)
        assert self._dim is not None
        return self._dim

    @property
    def _prefix(self) -> str:
        model, prefix = self._options.model or "", self._options.document_prefix or ""
        slug = _slug(model, _SLUG_CHARS) or "model"
        if self._provider in _PLAIN:
            provider, told = self._provider, f"{model}\0{prefix}"
        else:
            provider = _slug(self._provider, _PROVIDER_CHARS) or "provider"
            told = f"{model}\0{prefix}\0{self._provider}"
        # The hash keeps names apart that the slugs make equal.
        if prefix or slug != model or self._provider not in _PLAIN:
            slug += "-" + sha256(told.encode()).hexdigest()[:8]
        return f"{provider}-{slug}-"

    def _contact(self) -> Contact:
        options = self._options
        return Contact(
            what="embedding server",
            url=self.base_url(options),
            model=options.model or "",
            where=self._where,
            api_key=options.api_key.get_secret_value() if options.api_key else None,
            api_key_header=options.api_key_header,
            checks=("model", "dimensions", "max_tokens"),
            connect_timeout_s=options.connect_timeout_s,
            timeout_s=options.timeout_s,
            query_timeout_s=options.query_timeout_s,
            max_requests=options.max_requests,
            retries=options.retries,
            retry_base_s=options.retry_base_s,
            retry_max_s=options.retry_max_s,
        )

    def for_space(self, name: str) -> Self | None:
        """The embedder that fills this space; None: it is another model's. Asks nothing.

        While it is not known how long the server's vectors are, the name of the space says it.
        """
        dim = name.removeprefix(self._prefix)
        if dim == name or not re.fullmatch(r"[1-9]\d{0,5}", dim, re.ASCII):
            return None
        if self._dim is not None:
            return self if self._dim == int(dim) else None
        with self._lock:
            if int(dim) not in self._of_spaces:
                self._of_spaces[int(dim)] = type(self)(
                    self._options,
                    where=self._where,
                    provider=self._provider,
                    dim=int(dim),
                    endpoint=self._endpoint,
                )
            return self._of_spaces[int(dim)]

    # -- vectors

    def embed_documents(self, texts: Sequence[str], *, urgent: bool = False) -> Vectors:
        """float32[n, dim], C-contiguous, L2-normalised, in the order of `texts`; n may be 0.

        Urgent ones are asked for as a query is: at once, and given up after `query_timeout_s`.

        Raises:
            TransientError: the server did not answer for a while, or the embedder was closed.
                Its `done` has the vectors of the requests that were answered.
            RateLimited: the server asks to come later.
            ProviderNotInitialized: the server refuses; the message names the setting to change.
        """
        if isinstance(texts, str):
            raise TypeError("texts must be a sequence of strings, not one string")
        if not texts:
            return np.empty((0, self.dim), dtype=np.float32)
        patience = self._endpoint.for_queries if urgent else self._endpoint.for_documents
        prefix = self._options.document_prefix or ""
        sent = [self._sendable(prefix + text, patience) for text in texts]
        batches = _packed(sent, self._most_texts(patience), self._options.request_chars)
        if urgent:  # in this thread: the others are busy with documents
            return np.concatenate([self._embed([sent[i] for i in b], patience) for b in batches])
        results, error = self._endpoint.together(
            [partial(self._embed, [sent[i] for i in batch], patience) for batch in batches]
        )
        if error is not None:
            if isinstance(error, TransientError):
                error.done = {
                    i: row
                    for at, rows in results.items()
                    for i, row in zip(batches[at], rows, strict=True)
                }
            raise error
        return np.concatenate([results[at] for at in range(len(batches))])

    def embed_query(self, text: str) -> Vector:
        """float32[dim], L2-normalised; asked for in the caller's thread, ahead of documents.

        Raises:
            TransientError: no answer within `query_timeout_s`, or the embedder was closed.
            ProviderNotInitialized: the server refuses; the message names the setting to change.
        """
        patience = self._endpoint.for_queries
        prefix = self._options.query_prefix or ""
        row: Vector = self._embed([self._sendable(prefix + text, patience)], patience)[0]
        return row

    def close(self) -> None:
        """End waits and connections; waiting calls get TransientError."""
        self._endpoint.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._options.model!r} at {self._endpoint.url!r})"

    def _sendable(self, text: str, patience: Patience) -> str:
        clean = sendable(text)
        return self._cut(clean, patience) if clean.strip() else _BLANK

    def _embed(self, texts: Sequence[str], patience: Patience) -> Vectors:
        """float32[n, dim], L2-normalised; n > 0, all in one request unless the server refuses."""
        read = partial(self._checked, len(texts))
        try:
            return self._endpoint.ask(self._request(texts), read, patience)
        except Refused as refusal:
            if not refusal.too_large or (len(texts) == 1 and len(texts[0]) <= _SHORTEST):
                raise
            log.info("%s; trying with less", refusal)
        half = len(texts) // 2
        if half:
            parts = [self._embed(part, patience) for part in (texts[:half], texts[half:])]
            return np.concatenate(parts)
        return self._embed([texts[0][: len(texts[0]) // 2]], patience)

    def _checked(self, count: int, answer: Any) -> Vectors:
        """The vectors of an answer, as float32[count, dim] of length 1."""
        rows = self._rows(answer)
        if len(rows) != count:
            raise BadAnswer(f"{len(rows)} vectors for {count} texts")
        try:
            vectors = np.array(rows, dtype=np.float64)
        except (ValueError, TypeError, OverflowError) as exc:
            raise BadAnswer(f"vectors that are none ({exc})") from None
        if vectors.ndim != 2 or not vectors.shape[1]:
            raise BadAnswer(f"vectors of the shape {vectors.shape}")
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not np.isfinite(lengths).all() or not lengths.all():
            raise BadAnswer("a vector that is zero or not finite")
        self._settle_dim(vectors.shape[1])
        return np.ascontiguousarray(vectors / lengths, dtype=np.float32)

    def _settle_dim(self, dim: int) -> None:
        """Take the first answer's length for that of all.

        Raises:
            ProviderNotInitialized: it is known to be another one.
        """
        with self._lock:
            self._dim = self._dim or dim
        if self._dim == dim:
            return
        server = f"the embedding server {self._endpoint.url} answers with vectors of {dim} numbers"
        if self._options.dimensions is not None:
            raise ProviderNotInitialized(
                f"{server}, but {self._where('dimensions')} is {self._options.dimensions}; leave "
                f"that out, or set {self._where('send_dimensions')}=true if the model can be "
                "shortened"
            )
        raise ProviderNotInitialized(
            f"{server}, but those of the model {self._options.model!r} had {self._dim} before; if "
            "another model answers there now, give it another name in KB_EMBEDDING__MODEL"
        )


def _slug(name: str, chars: int) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:chars]


def _packed(texts: Sequence[str], most: int, most_chars: int) -> list[list[int]]:
    """Positions of the texts, cut into requests in their order; none is empty."""
    batches: list[list[int]] = []
    chars = 0
    for at, text in enumerate(texts):
        chars += len(text)
        if not batches or len(batches[-1]) >= most or chars > most_chars:
            batches.append([])
            chars = len(text)
        batches[-1].append(at)
    return batches
