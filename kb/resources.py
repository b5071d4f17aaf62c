"""Resources: the process's set of adapters, chosen once by `kb.wiring`."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from kb.db import Sessions
from kb.models import Dataset, IndexingTechnique
from kb.ports import BlobStore, JobQueue, SegmentIndex, Space, WebhookSender
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
    embedders: Callable[[str], Embedder]
    """Space name -> the embedder that fills it; raises ProviderNotInitialized."""
    default_embedder: Embedder
    default_embedder_name: tuple[str, str]
    """(provider, model) under which the API lists the default embedder."""
    pool: ThreadPoolExecutor
    """Runs the legs of a query in parallel."""
    workspace_id: uuid.UUID
    owner_id: uuid.UUID


def space_of(dataset: Dataset) -> Space | None:
    """The collection that a dataset lives in; None before its technique is known."""
    if dataset.indexing_technique is None or dataset.space_name is None:
        return None
    if dataset.indexing_technique is IndexingTechnique.ECONOMY:
        return FULL_TEXT_SPACE
    return Space(dataset.space_name, dataset.space_dim)
