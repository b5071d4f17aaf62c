"""The knowledge-retrieval node of a workflow as a route: one question to several datasets."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter, Response

from kb.api import shapes
from kb.api.bodies import JsonBody, parse
from kb.api.deps import Access, AccessDep, QueryLogDep
from kb.api.retrieval import (
    check_long_query,
    clock,
    json_response,
    remembered,
    search_settings,
)
from kb.db import now
from kb.errors import InvalidParam
from kb.external.records import ExternalHit
from kb.knowledge.choosing import Chosen, Failure, choose, own_model, shared_model
from kb.knowledge.gathering import AnyHit, Gathered, Gathering, dataset_of, id_of
from kb.knowledge.schemas import ChatModelConfig, KnowledgeRetrieval
from kb.knowledge.talking import Proposal, choose_one, common_fields, propose
from kb.metadata.fields import fields_of
from kb.models import EXTERNAL
from kb.query_log import Found, QueryLog
from kb.resources import Resources
from kb.schemas import MetadataFilter, RetrievalModelIn

router = APIRouter(prefix="/v1", tags=["retrieval"])

Json = dict[str, Any]

SOURCE = "app"
"""Under which these questions stand in the history."""


@dataclass(frozen=True)
class _Plan:
    """What is asked of which datasets.

    Attributes:
        single: the chosen dataset is asked as it says itself.
        proposal: where a chat model was asked for conditions.
    """

    dataset_ids: Sequence[str]
    conditions: MetadataFilter | None
    single: bool = False
    proposal: Proposal | None = None


@dataclass(frozen=True)
class _Asked:
    """A question that was answered."""

    query: str
    plan: _Plan
    chosen: Chosen
    model: RetrievalModelIn
    gathered: Gathered
    latency_ms: float


@router.post("/knowledge-retrieval")
def retrieve_knowledge(body: JsonBody, access: AccessDep, history: QueryLogDep) -> Response:
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
    return json_response(_whole_answer(done, items, names))


def _whole_answer(done: _Asked, items: Sequence[Json], names: Mapping[uuid.UUID, str]) -> Json:
    gathered, plan = done.gathered, done.plan
    failures = {str(i): exc for i, exc in gathered.failures.items()} | done.chosen.failures
    answer = _answer(items, failures, names) | {"timings_ms": gathered.timings_ms}
    if gathered.rerank is not None:
        answer["rerank"] = shapes.reranked(gathered.rerank)
    if plan.single:
        answer["chosen_dataset_id"] = next((str(i) for i in names), None)
    if plan.proposal is not None:
        conditions = plan.conditions
        answer["metadata_filter"] = {
            "conditions": None if conditions is None else conditions.model_dump(mode="json"),
            "ignored": list(plan.proposal.ignored),
            "error": plan.proposal.error,
        }
    return answer


def _check_number(dataset_ids: Sequence[str], resources: Resources) -> None:
    most = resources.settings.limits.datasets_per_query
    if len(dataset_ids) > most:
        raise InvalidParam(
            f"dataset_ids holds {len(dataset_ids)} ids, the limit is {most}; ask fewer datasets at "
            "once, or raise KB_LIMITS__DATASETS_PER_QUERY"
        )


def _ask(query: str, asked: KnowledgeRetrieval, access: Access) -> _Asked:
    caller, resources = access.caller, access.resources
    with clock() as took_ms:
        plan = _plan(query, asked, access)
        with access.reading() as session:
            chosen = choose(session, caller.workspace_id, caller.dataset_id, plan.dataset_ids)
            model = _model(asked, plan, chosen)
            gathering = Gathering(
                session,
                query,
                chosen.datasets,
                search_settings(model, resources.settings),
                resources,
                conditions=plan.conditions,
            )
        gathered = gathering.result()
    return _Asked(query, plan, chosen, model, gathered, took_ms())


def _plan(query: str, asked: KnowledgeRetrieval, access: Access) -> _Plan:
    """What is asked of whom, after a chat model was heard where the node wants that.

    The model may take seconds, so no session is open meanwhile.
    """
    mode, single = asked.metadata_filtering_mode, asked.retrieval_mode == "single"
    given = asked.metadata_filtering_conditions
    plan = _Plan(asked.dataset_ids, given if mode == "manual" else None, single)
    if not single and mode != "automatic":
        return plan
    caller, resources = access.caller, access.resources
    with access.reading() as session:
        chosen = choose(session, caller.workspace_id, caller.dataset_id, asked.dataset_ids)
        own = [d.id for d in chosen.datasets if d.provider != EXTERNAL]
        fields = fields_of(session, own)
    if single:
        config = asked.single_retrieval_config.model or ChatModelConfig()
        one = choose_one(query, chosen.datasets, config, resources)
        unknown = [text for text in asked.dataset_ids if text in chosen.failures]
        plan = replace(plan, dataset_ids=[*([] if one is None else [str(one.id)]), *unknown])
        fields = {i: f for i, f in fields.items() if one is not None and i == one.id}
    if mode != "automatic":
        return plan
    config = asked.metadata_model_config or ChatModelConfig()
    proposal = propose(query, common_fields(list(fields.values())), given, config, resources)
    return replace(plan, conditions=proposal.conditions, proposal=proposal)


def _model(asked: KnowledgeRetrieval, plan: _Plan, chosen: Chosen) -> RetrievalModelIn:
    """How the datasets are searched: the one of single mode as it says itself."""
    if not plan.single:
        return shared_model(asked.multiple_retrieval_config, chosen.datasets, plan.conditions)
    own = own_model(chosen.datasets[0]) if chosen.datasets else RetrievalModelIn()
    return own.model_copy(update={"metadata_filtering_conditions": plan.conditions})


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
