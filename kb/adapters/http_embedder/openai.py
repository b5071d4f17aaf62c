"""OpenAI's embeddings API, as OpenAI, Azure, vLLM, Ollama and LocalAI speak it."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Any

import httpx2 as httpx
import numpy as np

from kb.adapters.http_embedder.embedder import HttpEmbedder
from kb.adapters.http_embedder.tokens import cut_to, estimated_tokens
from kb.adapters.model_server import BadAnswer, Patience, Request
from kb.settings import Embedding

OPENAI = "https://api.openai.com/v1"

_MAX_TOKENS = 8192  # OpenAI's own models and most of today's open ones read about that


class OpenAIEmbedder(HttpEmbedder):
    """Embeds by `POST .../embeddings` with `{"model", "input"}`."""

    @staticmethod
    def base_url(options: Embedding) -> str:
        """The whole address: `/v1` is added to a bare host, `/embeddings` unless it is there."""
        url = httpx.URL(options.url or OPENAI)
        path = url.path.rstrip("/")
        if not path.endswith("/embeddings"):
            path = f"{path or '/v1'}/embeddings"
        return str(url.copy_with(path=path))

    @property
    def max_tokens(self) -> int:
        """The setting, or 8192."""
        return self._options.max_tokens or _MAX_TOKENS

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Estimated, since the API counts none in advance: see `estimated_tokens`."""
        return [estimated_tokens(text) for text in texts]

    def _most_texts(self, patience: Patience) -> int:
        return self._options.request_texts

    def _cut(self, text: str, patience: Patience) -> str:
        return cut_to(text, self.max_tokens)

    def _request(self, texts: Sequence[str]) -> Request:
        body: dict[str, Any] = {
            "model": self._options.model,
            "input": list(texts),
            "encoding_format": "float",  # not every server knows another one
        }
        if self._options.send_dimensions:
            body["dimensions"] = self._options.dimensions
        return Request("POST", self._endpoint.url, body)

    def _rows(self, answer: Any) -> list[Any]:
        try:
            items = list(answer["data"])
            places = [item.get("index") for item in items]
            rows = [_floats(item["embedding"]) for item in items]
        except (KeyError, TypeError, AttributeError, binascii.Error, ValueError):
            raise BadAnswer("something that has no data[].embedding") from None
        if all(place is None for place in places):
            return rows
        if sorted(map(str, places)) != sorted(map(str, range(len(rows)))):
            raise BadAnswer(f"vectors whose index is not 0 to {len(rows) - 1}")
        ordered: list[Any] = [None] * len(rows)
        for place, row in zip(places, rows, strict=True):
            ordered[int(place)] = row
        return ordered


def _floats(embedding: Any) -> Any:
    """Numbers, also from base64 (float32, little-endian), which some servers always send."""
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding, validate=True), dtype="<f4")
    return embedding
