"""Resources: the process's set of adapters, chosen once by `kb.wiring`."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from kb.db import Sessions
from kb.model_registry import ModelRecord, ModelRegistry
from kb.models import Dataset, IndexingTechnique, ModelType
from kb.ports import BlobStore, ExternalKnowledge, JobQueue, SegmentIndex, Space, WebhookSender
from kb.secrets import Keyring
from kb.settings import Settings
from pipelines.ports import Embedder

FULL_TEXT_SPACE = Space("full-text", None)
"""Where datasets without dense vectors live."""


@dataclass(frozen=True)
class Resources:
    """What rules and routes need of the outside."""

    settings: Settings
    sessions: Sessions
    index: SegmentIndex
    blobs: BlobStore
    jobs: JobQueue
    webhooks: WebhookSender
    external: ExternalKnowledge
    keyring: Keyring
    """Seals secrets before they are stored."""
    models: ModelRegistry
    """Embedding, rerank and chat models by provider and name."""
    embedders: Callable[[str], Embedder]
    """Space name -> the embedder that fills it; raises ProviderNotInitialized."""
    default_embedder: Embedder
    default_embedder_name: tuple[str, str]
    """(provider, model) under which the API lists the default embedder."""
    pool: ThreadPoolExecutor
    """Runs the legs of a query in parallel."""
    waiting: ThreadPoolExecutor
    """Waits for services that hold the knowledge of external datasets."""
    workspace_id: uuid.UUID
    owner_id: uuid.UUID


def space_of(dataset: Dataset) -> Space | None:
    """The collection that a dataset lives in; None before its technique is known."""
    if dataset.indexing_technique is None or dataset.space_name is None:
        return None
    if dataset.indexing_technique is IndexingTechnique.ECONOMY:
        return FULL_TEXT_SPACE
    return Space(dataset.space_name, dataset.space_dim)


@dataclass(frozen=True)
class NamedEmbedder:
    """An embedder and the names under which the API knows it."""

    provider: str
    model: str
    embedder: Embedder
    record: ModelRecord

    @property
    def space(self) -> Space:
        """The collection that it fills; asks the model's server how long vectors are, once."""
        return Space(self.embedder.id, self.embedder.dim)


def find_embedder(resources: Resources, provider: str | None, model: str | None) -> NamedEmbedder:
    """The configured embedding model of these names; None or empty fits any, the default first.

    Raises:
        ProviderNotInitialized: there is no such model; the message lists those that there are.
    """
    record = resources.models.choose(ModelType.EMBEDDING, provider, model)
    if record.id is None:
        return NamedEmbedder(*resources.default_embedder_name, resources.default_embedder, record)
    return NamedEmbedder(*record.name, resources.models.embedder_of(record), record)
