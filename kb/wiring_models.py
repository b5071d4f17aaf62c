"""Configured models -> their adapters: the part of the wiring that makes models."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import SecretStr

from kb.adapters.local_embedder import LocalEmbedder
from kb.errors import ProviderNotInitialized
from kb.model_options import ChatOptions, EmbeddingOptions, RerankOptions
from kb.model_registry import Makers, ModelRecord, SpaceEmbedder
from kb.models import ModelKind, ModelType
from kb.ports import ChatModel, Reranker
from kb.settings import Embedding, Settings

if TYPE_CHECKING:
    from kb.adapters.http_embedder import HttpEmbedder


def open_embedder(settings: Settings) -> LocalEmbedder | HttpEmbedder:
    """The embedder of the settings; no model is loaded and no server asked yet."""
    options = settings.embedding
    if options.provider != "local":
        # Here, because an HTTP client takes a tenth of a second to import.
        from kb.adapters.http_embedder import http_embedder

        return http_embedder(options)
    return LocalEmbedder(
        options.model_path,
        cache_dir=cache_dir(settings),
        threads=options.threads,
        batch_size=options.batch_size,
        niceness=options.niceness,
        int8_queries=options.int8_queries,
    )


def default_record(settings: Settings) -> ModelRecord:
    """How the API lists the embedder of the settings."""
    options = settings.embedding
    if options.provider == "local":
        model = options.model_path.name if options.model_path else "all-MiniLM-L6-v2"
    else:
        assert options.model is not None
        model = options.model
    kind = ModelKind(options.provider)
    return ModelRecord(None, ModelType.EMBEDDING, options.provider, model, kind)


def cache_dir(settings: Settings) -> Path:
    """Where models are kept as they were exported to ONNX."""
    return settings.embedding.cache_dir or settings.data_dir / "models"


def makers(settings: Settings) -> Makers:
    """What makes the adapters of configured models."""
    return Makers(
        embedder=partial(_embedder, settings),
        reranker=partial(_reranker, settings),
        chat_model=_chat_model,
    )


def _embedder(settings: Settings, record: ModelRecord, api_key: str | None) -> SpaceEmbedder:
    options = EmbeddingOptions.model_validate(record.options)
    if record.kind is ModelKind.LOCAL:
        return LocalEmbedder(
            options.path,
            cache_dir=cache_dir(settings),
            threads=options.threads or settings.embedding.threads,
            batch_size=options.batch_size,
            niceness=settings.embedding.niceness,
            int8_queries=settings.embedding.int8_queries,
        )
    from kb.adapters.http_embedder import http_embedder

    of_server = options.model_dump(exclude={"path", "threads", "batch_size"})
    return http_embedder(
        Embedding(
            provider="openai" if record.kind is ModelKind.OPENAI else "tei",
            model=record.model,
            api_key=SecretStr(api_key) if api_key else None,
            **of_server,
        ),
        where=record.where,
        provider=record.provider,
    )


def _reranker(settings: Settings, record: ModelRecord, api_key: str | None) -> Reranker:
    options = RerankOptions.model_validate(record.options)
    if record.kind is ModelKind.LOCAL:
        from kb.adapters.local_reranker import LocalReranker

        if options.path is None:
            raise ProviderNotInitialized(f"{record.where('path')} is missing")
        return LocalReranker(
            options.path,
            cache_dir=cache_dir(settings),
            threads=options.threads or os.cpu_count() or 1,
            batch_size=options.batch_size,
            budget_s=options.budget_s,
            max_tokens=options.max_tokens,
        )
    from kb.adapters.http_reranker import HttpReranker

    return HttpReranker(record.kind, record.model, options, api_key=api_key, where=record.where)


def _chat_model(record: ModelRecord, api_key: str | None) -> ChatModel:
    from kb.adapters.http_chat import OpenAIChat

    options = ChatOptions.model_validate(record.options)
    return OpenAIChat(record.model, options, api_key=api_key, where=record.where)
