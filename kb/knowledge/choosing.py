"""One question to several datasets: which they are, and how they are searched together."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from kb.errors import Forbidden, KBError, NotFound
from kb.knowledge.schemas import MultipleRetrieval
from kb.models import Dataset, IndexingTechnique
from kb.schemas import MetadataFilter, RerankingModel, RetrievalModelIn
from pipelines.errors import TransientError

Failure = KBError | TransientError

_UUID = re.compile("[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


@dataclass(frozen=True)
class Chosen:
    """The datasets of a question, and those of its ids that cannot be asked."""

    datasets: tuple[Dataset, ...]
    failures: dict[str, Failure]


def choose(
    session: Session, workspace_id: uuid.UUID, only: uuid.UUID | None, dataset_ids: Sequence[str]
) -> Chosen:
    """The datasets with these ids, each once, in the order given.

    Args:
        only: the one dataset that the caller's key opens, if it opens one.
    """
    asked = {text: uuid.UUID(text) for text in dataset_ids if _UUID.fullmatch(text)}
    open_ids = [i for i in set(asked.values()) if only in (None, i)]
    rows = {
        row.id: row
        for row in session.scalars(
            select(Dataset).where(Dataset.id.in_(open_ids), Dataset.workspace_id == workspace_id)
        )
    }
    found: dict[uuid.UUID, Dataset] = {}
    failures: dict[str, Failure] = {}
    for text in dataset_ids:
        row = rows.get(asked[text]) if text in asked else None
        if row is None:
            failures[text] = NotFound("dataset", text[:100])
        elif not row.enable_api:
            failures[text] = Forbidden(f"API access to dataset {row.name!r} is switched off")
        else:
            found[row.id] = row
    return Chosen(tuple(found.values()), failures)


def own_model(dataset: Dataset) -> RetrievalModelIn:
    """How a dataset is searched when nobody says."""
    return RetrievalModelIn.model_validate(dataset.retrieval_model or {})


def shared_model(
    config: MultipleRetrieval, datasets: Sequence[Dataset], conditions: MetadataFilter | None
) -> RetrievalModelIn:
    """How several datasets are searched together, so that their scores compare.

    With weights: all by hybrid search with these. Otherwise as the datasets say, if they say the
    same; if they do not, all by hybrid search with the server's weights, for a cosine and a share
    of the best BM25 score are no measure for each other. The threshold and `top_k` are those of
    the call; those of the datasets are not used.
    """
    common: RetrievalModelIn
    if config.reranking_mode == "weighted_score" and config.weights is not None:
        common = RetrievalModelIn(search_method="hybrid_search", weights=config.weights)
    else:
        common = _alike(datasets) or RetrievalModelIn(search_method="hybrid_search")
    named = config.reranking_model
    rerank = RerankingModel(
        reranking_provider_name=named.provider if named else None,
        reranking_model_name=named.model if named else None,
    )
    return common.model_copy(
        update={
            "top_k": config.top_k,
            "score_threshold_enabled": config.score_threshold is not None,
            "score_threshold": config.score_threshold,
            "reranking_enable": config.reranking_enable,
            "reranking_mode": config.reranking_mode,
            "reranking_model": rerank,
            "metadata_filtering_conditions": conditions,
        }
    )


def _alike(datasets: Sequence[Dataset]) -> RetrievalModelIn | None:
    """Method and weights of the datasets with vectors, if they all have the same."""
    models = [
        RetrievalModelIn(search_method=own.search_method, weights=own.weights)
        for own in map(own_model, datasets_with_vectors(datasets))
    ]
    if not models:
        return RetrievalModelIn(search_method="keyword_search")
    return models[0] if all(model == models[0] for model in models) else None


def datasets_with_vectors(datasets: Sequence[Dataset]) -> list[Dataset]:
    """Those that can be searched by meaning."""
    return [d for d in datasets if d.indexing_technique is IndexingTechnique.HIGH_QUALITY]
