"""The knowledge-retrieval node of a workflow as a route: one question to several datasets."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Response

from kb.api import shapes
from kb.api.bodies import QueryBody, parse
from kb.api.deps import Access, AccessDep, QueryLogDep
from kb.api.retrieval import (
    check_long_query,
    clock,
    json_response,
    remembered,
    search_settings,
)
from kb.db import now
from kb.errors import InvalidParam, ProviderNotInitialized
from kb.external.records import ExternalHit
from kb.knowledge.choosing import Chosen, Failure, choose, shared_model
from kb.knowledge.gathering import AnyHit, Gathered, Gathering, dataset_of, id_of
from kb.knowledge.schemas import KnowledgeRetrieval
from kb.models import EXTERNAL
from kb.query_log import Found, QueryLog
from kb.resources import Resources
from kb.schemas import RetrievalModelIn

router = APIRouter(prefix="/v1", tags=["retrieval"])

Json = dict[str, Any]

SOURCE = "app"
"""Under which these questions stand in the history."""


@dataclass(frozen=True)
class _Asked:
    """A question that was answered."""

    query: str
    chosen: Chosen
    model: RetrievalModelIn
    gathered: Gathered
    latency_ms: float


@router.post("/knowledge-retrieval")
def retrieve_knowledge(body: QueryBody, access: AccessDep, history: QueryLogDep) -> Response:
    """Ask several datasets one question, as the knowledge-retrieval node of a workflow does.

    The body is the node's configuration with the `query`; `result` is the node's output. A
    dataset that cannot be asked is named in `errors`, and the others answer.
    """
    asked = parse(KnowledgeRetrieval, body)
    resources = access.resources
    _check_number(asked.dataset_ids, resources)
    query = asked.query or ""
    if not query.strip():
        return json_response(_answer((), {}, {}))
    check_long_query(query, resources.settings)
    done = _ask(query, asked, access)
    names = {dataset.id: dataset.name for dataset in done.chosen.datasets}
    items = [item(hit, names, at) for at, hit in enumerate(done.gathered.hits, start=1)]
    _remember(history, done, resources)
    failures = {str(i): exc for i, exc in done.gathered.failures.items()} | done.chosen.failures
    return json_response(_answer(items, failures, names) | {"timings_ms": done.gathered.timings_ms})


def _check_number(dataset_ids: Sequence[str], resources: Resources) -> None:
    most = resources.settings.limits.datasets_per_query
    if len(dataset_ids) > most:
        raise InvalidParam(
            f"dataset_ids holds {len(dataset_ids)} ids, the limit is {most}; ask fewer datasets at "
            "once, or raise KB_LIMITS__DATASETS_PER_QUERY"
        )


def _ask(query: str, asked: KnowledgeRetrieval, access: Access) -> _Asked:
    caller, resources = access.caller, access.resources
    if asked.retrieval_mode == "single" or asked.metadata_filtering_mode == "automatic":
        raise ProviderNotInitialized(
            "no chat model is configured; use retrieval_mode 'multiple' and "
            "metadata_filtering_mode 'disabled' or 'manual'"
        )
    manual = asked.metadata_filtering_mode == "manual"
    conditions = asked.metadata_filtering_conditions if manual else None
    with clock() as took_ms:
        with access.reading() as session:
            chosen = choose(session, caller.workspace_id, caller.dataset_id, asked.dataset_ids)
            model = shared_model(asked.multiple_retrieval_config, chosen.datasets, conditions)
            settings = search_settings(model, resources.settings)
            gathering = Gathering(
                session, query, chosen.datasets, settings, resources, conditions=conditions
            )
        gathered = gathering.result()
    return _Asked(query, chosen, model, gathered, took_ms())


def _remember(history: QueryLog, done: _Asked, resources: Resources) -> None:
    """A row with each dataset that was asked."""
    hits: dict[uuid.UUID, list[Found]] = defaultdict(list)
    for rank, hit in enumerate(done.gathered.hits, start=1):
        hits[dataset_of(hit)].append(Found(id_of(hit), hit.score, rank))
    call_id, at = uuid.uuid4(), now()
    for dataset in done.chosen.datasets:
        settings = remembered(dataset, done.model, resources.settings)
        history.add(
            dataset.id,
            done.query,
            source=SOURCE,
            actor=resources.owner_id,
            settings=settings | {"dataset_ids": [str(d.id) for d in done.chosen.datasets]},
            hits=hits[dataset.id],
            latency_ms=done.latency_ms,
            used=[hit.segment_id for hit in hits[dataset.id] if dataset.provider != EXTERNAL],
            call_id=call_id,
            at=at,
        )


def _answer(
    items: Sequence[Json], failures: Mapping[str, Failure], names: Mapping[uuid.UUID, str]
) -> Json:
    by_id = {str(i): name for i, name in names.items()}
    return {
        "result": list(items),
        "partial": bool(failures),
        "errors": [
            {
                "dataset_id": dataset_id,
                "dataset_name": by_id.get(dataset_id),
                "code": exc.code,
                "message": exc.message,
            }
            for dataset_id, exc in failures.items()
        ],
    }


def item(hit: AnyHit, names: Mapping[uuid.UUID, str], position: int) -> Json:
    """One item of the node's `result`."""
    if isinstance(hit, ExternalHit):
        return _foreign_item(hit, names[hit.dataset_id], position)
    segment, document = hit.segment, hit.document
    return {
        "metadata": {
            "_source": "knowledge",
            "dataset_id": str(segment.dataset_id),
            "dataset_name": names[segment.dataset_id],
            "document_id": str(document.id),
            "document_name": document.name,
            "data_source_type": document.data_source_type,
            "segment_id": str(segment.id),
            "retriever_from": "workflow",
            "score": hit.score,
            "child_chunks": [
                {"id": str(c.id), "content": c.content, "position": c.position, "score": c.score}
                for c in hit.children
            ],
            "segment_hit_count": segment.hit_count,
            "segment_word_count": segment.word_count,
            "segment_position": segment.position,
            "segment_index_node_hash": segment.text_hash,
            "doc_metadata": document.doc_metadata,
            "position": position,
        },
        "title": document.name,
        "files": None,
        "content": shapes.node_content(segment),
        "summary": None,
    }


def _foreign_item(hit: ExternalHit, dataset_name: str, position: int) -> Json:
    whose = {"dataset_id": str(hit.dataset_id), "dataset_name": dataset_name}
    return {
        "metadata": {
            "_source": "knowledge",
            **whose,
            "document_id": hit.document_id,
            "document_name": hit.title,
            "data_source_type": "external",
            "segment_id": None,
            "retriever_from": "workflow",
            "score": hit.score,
            "child_chunks": [],
            "segment_hit_count": 0,
            "segment_word_count": 0,
            "segment_position": 0,
            "segment_index_node_hash": None,
            "doc_metadata": {**hit.metadata, "score": hit.score, "title": hit.title, **whose},
            "position": position,
        },
        "title": hit.title,
        "files": None,
        "content": hit.content,
        "summary": None,
    }
