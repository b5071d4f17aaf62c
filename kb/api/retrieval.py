"""Routes that answer queries: retrieve (hit testing), and the external-knowledge contract."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from pydantic_core import to_json

from kb.api import shapes
from kb.api.bodies import QueryBody, parse, query_body
from kb.api.deps import (
    AccessDep,
    CallerDep,
    QueryLogDep,
    ResourcesDep,
    bearer_token,
    find_caller,
    find_dataset,
    get_resources,
    query_flag,
)
from kb.db import reading
from kb.errors import InvalidParam, KBError, NotFound, Unauthorized
from kb.external.apis import PASSED_ON
from kb.external.asking import Source, ask, source_of
from kb.external.records import ExternalHit
from kb.knowledge.gathering import AnyHit, id_of
from kb.models import EXTERNAL, Dataset
from kb.query_log import Found, QueryLog
from kb.resources import Resources
from kb.retrieval.conditions import Conditions
from kb.retrieval.filters import compile_filters
from kb.retrieval.fusion import Weights
from kb.retrieval.service import retrieve
from kb.retrieval.types import RerankModel, RetrievalSettings, SearchMethod
from kb.schemas import (
    ExternalRetrieval,
    ExternalRetrievalModel,
    HitTesting,
    MetadataFilter,
    RetrievalModelIn,
)
from kb.settings import Settings
from pipelines.errors import TransientError

router = APIRouter(tags=["retrieval"])

_EXECUTED_TOP_K = 4  # the contract shows 2 as default but searches with 4


@router.post("/v1/datasets/{dataset_id}/retrieve")
@router.post("/v1/datasets/{dataset_id}/hit-testing", include_in_schema=False)
def retrieve_segments(
    dataset_id: str,
    body: QueryBody,
    request: Request,
    access: AccessDep,
    resources: ResourcesDep,
    history: QueryLogDep,
) -> Response:
    """Find the segments that answer `query`; `retrieval_model` overrides the dataset's settings.

    With `?explain=true` (ours, beyond the contract) each record says how its score came about. When
    a rerank model was asked, `rerank` says what came of it, such as that the fused order stands.
    """
    explain = query_flag(request, "explain")
    with access.reading() as session:
        dataset = access.dataset(session, dataset_id)
        asked = parse(HitTesting, body)
        if dataset.provider == EXTERNAL:
            source = source_of(session, dataset, resources)
            session.close()  # whoever waits for another's answer holds no connection
            return _retrieve_external(source, asked, resources, history)
        stored = RetrievalModelIn.model_validate(dataset.retrieval_model or {})
        model = asked.retrieval_model or stored
        query = check_query(asked.query, resources.settings)
        settings = search_settings(model, resources.settings)
        with clock() as took_ms:
            filters = compile_filters(
                session,
                [dataset],
                conditions_of(model.metadata_filtering_conditions),
                resources.settings.limits,
            )
            found = retrieve(session, query, [dataset], settings, resources, filters=filters)
        records = [shapes.record(hit, explain=explain) for hit in found.hits]
    history.add(
        dataset.id,
        query,
        source="hit_testing",
        actor=resources.owner_id,
        settings=remembered(dataset, model, resources.settings),
        hits=found_by(found.hits),
        latency_ms=took_ms(),
    )
    answer: dict[str, Any] = {"query": {"content": asked.query}, "records": records}
    if found.rerank is not None:
        answer["rerank"] = shapes.reranked(found.rerank)
    if explain:
        answer["timings_ms"] = found.timings_ms
    return json_response(answer)


def _retrieve_external(
    source: Source, asked: HitTesting, resources: Resources, history: QueryLog
) -> Response:
    query, given = check_query(asked.query, resources.settings), asked.retrieval_model
    model = asked.external_retrieval_model
    if model is None and given is not None:
        model = ExternalRetrievalModel(
            top_k=given.top_k,
            score_threshold=given.score_threshold,
            score_threshold_enabled=given.score_threshold_enabled,
        )
    hits = ask_external(
        source.asked(model, most=resources.settings.limits.top_k),
        query,
        given.metadata_filtering_conditions if given is not None else None,
        resources,
        history,
    )
    records = [shapes.record_of_foreign(hit) for hit in hits]
    return json_response({"query": {"content": query}, "records": records})


def ask_external(
    source: Source,
    query: str,
    conditions: MetadataFilter | None,
    resources: Resources,
    history: QueryLog,
    *,
    door: str = "hit_testing",
) -> list[ExternalHit]:
    """What the service behind a dataset answers; the question goes into the history.

    Args:
        door: which one it came through.
    Raises:
        ExternalKnowledgeFailed: no answer, or none of the contract.
    """
    with clock() as took_ms:
        hits = ask(source, query, conditions, resources.external)
    model = RetrievalModelIn(top_k=source.top_k, metadata_filtering_conditions=conditions)
    in_force = {
        "top_k": source.top_k,
        "score_threshold": source.threshold,
        "score_threshold_enabled": source.threshold is not None,
    }
    history.add(
        source.dataset_id,
        query,
        source=door,
        actor=resources.owner_id,
        settings={"retrieval_model": _dumped(model), "space": None, "external": in_force},
        hits=found_by(hits),
        latency_ms=took_ms(),
    )
    return hits


@contextmanager
def clock() -> Iterator[Callable[[], float]]:
    """Measures what is done inside; what it yields says how many milliseconds that took."""
    took_ms = 0.0
    started = time.perf_counter()
    yield lambda: took_ms
    took_ms = (time.perf_counter() - started) * 1000


def found_by(hits: Sequence[AnyHit]) -> list[Found]:
    """What the history keeps of an answer."""
    return [Found(id_of(hit), hit.score, rank) for rank, hit in enumerate(hits, start=1)]


def remembered(dataset: Dataset, model: RetrievalModelIn, settings: Settings) -> dict[str, Any]:
    """What the history keeps of a search, enough to do it again: the settings in force, and the
    space that the dataset lived in.
    """
    in_force = {"top_k": _EXECUTED_TOP_K} | _dumped(model)
    if model.weights is None and model.search_method == "hybrid_search":
        weights = _weights(model, settings)
        in_force["weights"] = {
            "vector_setting": {"vector_weight": weights.dense},
            "keyword_setting": {"keyword_weight": weights.text},
        }
    kept = {"retrieval_model": in_force, "space": dataset.space_name}
    if dataset.provider == EXTERNAL:
        kept["external"] = dataset.retrieval_model or {}
    return kept


def _dumped(model: RetrievalModelIn) -> dict[str, Any]:
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)


def json_response(value: Any) -> Response:
    """As FastAPI answers, without its look at what the value is made of: that takes 1 ms."""
    return Response(to_json(value), media_type="application/json")


def check_query(query: str, settings: Settings) -> str:
    """The query, if it may be asked.

    Raises:
        InvalidParam: empty, or longer than the limit.
    """
    return _check_length(query, settings.limits.query_chars, "KB_LIMITS__QUERY_CHARS")


def check_long_query(query: str, settings: Settings) -> str:
    """As `check_query`, where applications send whole messages."""
    return _check_length(query, settings.limits.long_query_chars, "KB_LIMITS__LONG_QUERY_CHARS")


def _check_length(query: str, limit: int, setting: str) -> str:
    if not query.strip():
        raise InvalidParam("query is empty; ask something")
    if len(query) > limit:
        raise InvalidParam(
            f"query has {len(query)} characters, the limit is {limit}; shorten it, or raise "
            f"{setting}"
        )
    return query


def search_settings(model: RetrievalModelIn, settings: Settings) -> RetrievalSettings:
    """A retrieval model as the service takes it.

    Raises:
        InvalidParam: a value out of range.
    """
    top_k = _EXECUTED_TOP_K if model.top_k is None else model.top_k
    if not 1 <= top_k <= settings.limits.top_k:
        raise InvalidParam(
            f"top_k is {top_k}; it must lie between 1 and {settings.limits.top_k} "
            "(KB_LIMITS__TOP_K)"
        )
    threshold = (model.score_threshold or 0.0) if model.score_threshold_enabled else None
    try:
        return RetrievalSettings(
            SearchMethod(model.search_method),
            top_k,
            threshold,
            _weights(model, settings),
            _rerank_model(model),
        )
    except ValueError as exc:
        raise InvalidParam(str(exc)) from exc


def _rerank_model(model: RetrievalModelIn) -> RerankModel | None:
    named = model.reranking_model
    if not model.reranks_by_model or named is None or not named.reranking_model_name:
        return None
    return RerankModel(named.reranking_provider_name or None, named.reranking_model_name)


def _weights(model: RetrievalModelIn, settings: Settings) -> Weights:
    given = model.weights
    if given is None or given.vector_setting is None or given.keyword_setting is None:
        dense = settings.retrieval.vector_weight
        return Weights(dense, 1 - dense)
    return Weights(given.vector_setting.vector_weight, given.keyword_setting.keyword_weight)


def conditions_of(asked: MetadataFilter | None) -> Conditions | None:
    """What a request asks of documents' metadata; None: nothing."""
    return asked.tree() if asked is not None else None


async def _external_body(request: Request, resources: ResourcesDep) -> Any:
    """The parsed body, or what is wrong with it: this contract has errors of its own."""
    try:
        return await query_body(request, resources)
    except KBError as exc:
        return exc


@router.post("/retrieval")
@router.post("//retrieval", include_in_schema=False)
@router.post("/v1/retrieval", include_in_schema=False)
def external_retrieval(
    body: Annotated[Any, Depends(_external_body)], request: Request, history: QueryLogDep
) -> Response:
    """The external-knowledge contract: `knowledge_id` is a dataset id.

    A probe without a body or with an empty `knowledge_id` is answered with no records. Errors
    are `{"error_code", "error_msg"}`: 1001 bad Authorization header, 1002 wrong key, 2001 no
    such knowledge base.
    """
    resources = get_resources(request)
    try:
        token = bearer_token(request.headers.get("authorization"))
    except Unauthorized as exc:
        return _external_error(403, 1001, exc.message)
    caller = find_caller(token, resources, request.app.state.process_key)
    if caller is None:
        return _external_error(403, 1002, "the API key is not valid")
    try:
        if isinstance(body, KBError):
            raise body
        asked = parse(ExternalRetrieval, body or {})
        if not asked.knowledge_id or not asked.query.strip():
            return JSONResponse({"records": []})
        again = PASSED_ON in request.headers
        return _answer_external(asked, caller, resources, history, again=again)
    except NotFound:
        return _external_error(404, 2001, f"no knowledge base {asked.knowledge_id!r}")
    except KBError as exc:
        return _external_error(exc.status, exc.status, exc.message)
    except TransientError as exc:
        return _external_error(503, 503, exc.message)


def _answer_external(
    asked: ExternalRetrieval,
    caller: CallerDep,
    resources: Resources,
    history: QueryLog,
    *,
    again: bool,
) -> Response:
    """Args: again: another kb server passes the question on."""
    setting = asked.retrieval_setting
    query = check_long_query(asked.query, resources.settings)
    with reading(resources.sessions) as session:
        dataset = find_dataset(session, caller, asked.knowledge_id)
        if dataset.provider == EXTERNAL:
            if again:
                raise InvalidParam(
                    f"dataset {dataset.name!r} is external, and this question was passed on "
                    "already; bind the asking dataset to the service itself"
                )
            source = source_of(session, dataset, resources)
            session.close()
            return _pass_on(source, asked, resources, history)
        model = RetrievalModelIn.model_validate(dataset.retrieval_model or {}).model_copy(
            update={
                "top_k": setting.top_k if setting else None,
                "score_threshold": setting.score_threshold if setting else None,
                "score_threshold_enabled": bool(setting and setting.score_threshold),
                "metadata_filtering_conditions": asked.metadata_condition,
            }
        )
        settings = search_settings(model, resources.settings)
        with clock() as took_ms:
            filters = compile_filters(
                session,
                [dataset],
                conditions_of(asked.metadata_condition),
                resources.settings.limits,
            )
            found = retrieve(session, query, [dataset], settings, resources, filters=filters)
        records = [shapes.external_record(hit) for hit in found.hits]
    history.add(
        dataset.id,
        query,
        source="external",
        actor=resources.owner_id,
        settings=remembered(dataset, model, resources.settings),
        hits=found_by(found.hits),
        latency_ms=took_ms(),
        used=[hit.segment.id for hit in found.hits],
    )
    return json_response({"records": records})


def _pass_on(
    source: Source, asked: ExternalRetrieval, resources: Resources, history: QueryLog
) -> Response:
    """The answer of the service behind a dataset, itself a service to whoever asks here."""
    setting = asked.retrieval_setting
    model = ExternalRetrievalModel(
        top_k=setting.top_k if setting else None,
        score_threshold=setting.score_threshold if setting else None,
        score_threshold_enabled=bool(setting and setting.score_threshold),
    )
    hits = ask_external(
        source.asked(model, most=resources.settings.limits.top_k),
        asked.query,
        asked.metadata_condition,
        resources,
        history,
        door="external",
    )
    return json_response({"records": [shapes.foreign_record(hit) for hit in hits]})


def _external_error(status: int, code: int, message: str) -> JSONResponse:
    return JSONResponse({"error_code": code, "error_msg": message}, status_code=status)
