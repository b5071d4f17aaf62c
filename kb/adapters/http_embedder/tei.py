"""text-embeddings-inference (TEI): `/embed`, `/tokenize` and `/info`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from kb.adapters.http_embedder.embedder import HttpEmbedder
from kb.adapters.http_embedder.tokens import cut_to
from kb.adapters.model_server import BadAnswer, Patience, Request
from kb.settings import Embedding

log = logging.getLogger("kb.embedding")

_CHARS_PER_TOKEN = 32
"""A text of more characters per token of the limit is cut before it is sent: the server, which
cuts exactly, need not be sent megabytes."""
_CLIENT_BATCH = 32  # TEI's default for --max-client-batch-size


@dataclass(frozen=True, slots=True)
class _Info:
    """What the server says of itself: tokens it reads of a text, texts it takes in a request."""

    reads: int
    most_texts: int


class TeiEmbedder(HttpEmbedder):
    """Embeds by `POST /embed`; the server cuts texts to what its model reads."""

    _known: _Info | None = None

    @staticmethod
    def base_url(options: Embedding) -> str:
        """The server's root."""
        return (options.url or "").rstrip("/").removesuffix("/embed")

    @property
    def max_tokens(self) -> int:
        """As the server says, or the setting if that is less; asks the server once."""
        reads = self._info(self._endpoint.for_queries).reads
        return min(reads, self._options.max_tokens or reads)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """As the server's tokenizer counts them, special tokens included.

        Raises:
            TransientError, ProviderNotInitialized: as `embed_documents`.
        """
        patience = self._endpoint.for_documents
        most = self._info(patience).most_texts
        counts: list[int] = []
        for at in range(0, len(texts), most):
            part = [text.encode(errors="replace").decode() for text in texts[at : at + most]]
            request = Request("POST", f"{self._endpoint.url}/tokenize", {"inputs": part})
            counts += self._endpoint.ask(request, partial(_lengths, len(part)), patience)
        return counts

    def _most_texts(self, patience: Patience) -> int:
        return self._info(patience).most_texts

    def _cut(self, text: str, patience: Patience) -> str:
        info, wanted = self._info(patience), self._options.max_tokens
        if wanted is not None and wanted < info.reads:
            return cut_to(text, wanted)
        return text[: _CHARS_PER_TOKEN * info.reads]

    def _request(self, texts: Sequence[str]) -> Request:
        body: dict[str, Any] = {"inputs": list(texts), "truncate": True, "normalize": True}
        if self._options.send_dimensions:
            body["dimensions"] = self._options.dimensions
        return Request("POST", f"{self._endpoint.url}/embed", body)

    def _rows(self, answer: Any) -> list[Any]:
        if not isinstance(answer, list):
            raise BadAnswer("something that is no list of vectors")
        return answer

    def _info(self, patience: Patience) -> _Info:
        if self._known is None:
            request = Request("GET", f"{self._endpoint.url}/info")
            self._known = self._endpoint.ask(request, self._read_info, patience)
        return self._known

    def _read_info(self, answer: Any) -> _Info:
        options = self._options
        try:
            served = str(answer["model_id"])
            reads = int(answer["max_input_length"])
            takes = int(answer.get("max_client_batch_size") or _CLIENT_BATCH)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise BadAnswer("something that is no /info of TEI") from None
        if served != options.model:
            log.warning(
                "the embedding server %s says that it serves %r; its vectors are kept under the "
                "name %r (%s)",
                self._endpoint.url,
                served,
                options.model,
                self._where("model"),
            )
        return _Info(max(1, reads), max(1, min(takes, options.request_texts)))


def _lengths(count: int, answer: Any) -> list[int]:
    if not isinstance(answer, list) or len(answer) != count:
        raise BadAnswer(f"something that is not the tokens of {count} texts")
    if not all(isinstance(tokens, list) for tokens in answer):
        raise BadAnswer("something that is no list of tokens")
    return [len(tokens) for tokens in answer]
