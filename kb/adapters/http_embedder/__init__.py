"""Embedders over HTTP: servers that speak OpenAI's embeddings API, or TEI's.

The decision and its reasons: docs/adr/0007-embedding-servers.md.
"""

from __future__ import annotations

from kb.adapters.http_embedder.embedder import HttpEmbedder
from kb.adapters.http_embedder.openai import OpenAIEmbedder
from kb.adapters.http_embedder.tei import TeiEmbedder
from kb.adapters.model_server.contact import Where, in_settings
from kb.settings import Embedding

__all__ = ["HttpEmbedder", "OpenAIEmbedder", "TeiEmbedder", "http_embedder"]


def http_embedder(
    options: Embedding, *, where: Where = in_settings, provider: str | None = None
) -> HttpEmbedder:
    """The embedder of `options.provider`; nothing is asked of its server yet.

    Args:
        where: tells where an option is set, for messages.
        provider: names the space, together with the model; None: the kind of server.
    Raises:
        ValueError: the provider is none of ours.
        Misconfigured: the URL or the API key cannot be sent.
    """
    if options.provider == "openai":
        return OpenAIEmbedder(options, where=where, provider=provider)
    if options.provider == "tei":
        return TeiEmbedder(options, where=where, provider=provider)
    raise ValueError(f"provider {options.provider!r} has no server")
