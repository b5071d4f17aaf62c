"""Routes of external knowledge, as client: services, their trial, datasets that they stand behind.

Under `/v1` and, as the contract's console has them, under `/console/api`; the same API keys open
both.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from sqlalchemy.orm import Session

from kb import datasets
from kb.api import shapes
from kb.api.bodies import JsonBody, parse
from kb.api.deps import Access, AccessDep, PageDep, QueryLogDep, path_id, query_text
from kb.api.facts import facts_of
from kb.api.retrieval import ask_external, check_long_query
from kb.errors import InvalidParam
from kb.external import apis, asking
from kb.external.schemas import (
    HIDDEN,
    ExternalApiIn,
    ExternalDatasetCreate,
    ExternalHitTesting,
)
from kb.models import EXTERNAL, ExternalApi

router = APIRouter(tags=["external knowledge"])

Json = dict[str, Any]

_APIS = "/v1/datasets/external-knowledge-api"
_CONSOLE = "/console/api/datasets"
_NOUN = "external knowledge API"


@router.post(_APIS, status_code=201)
@router.post(f"{_CONSOLE}/external-knowledge-api", status_code=201, include_in_schema=False)
def create_api(body: JsonBody, access: AccessDep) -> Json:
    """Keep a service that speaks the external-knowledge contract; it is tried out first."""
    access.caller.needs_whole_workspace("keeping an external knowledge API")
    asked = parse(ExternalApiIn, body)
    apis.refuse_stand_in(asked.settings.api_key)
    endpoint = apis.checked_endpoint(asked.settings.endpoint, access.resources)
    asking.probe(endpoint, asked.settings.api_key, access.resources.external)
    with access.writing() as session:
        row = apis.add_api(session, access.caller.workspace_id, asked, access.resources)
        return _shape(row, [])


@router.get(_APIS)
@router.get(f"{_CONSOLE}/external-knowledge-api", include_in_schema=False)
def list_apis(request: Request, page: PageDep, access: AccessDep) -> Json:
    """List services, newest first; `keyword` is a part of the name."""
    access.caller.needs_whole_workspace("listing external knowledge APIs")
    with access.reading() as session:
        rows, total = apis.list_apis(
            session,
            access.caller.workspace_id,
            page=page.page,
            limit=page.limit,
            keyword=query_text(request, "keyword"),
        )
        bound = apis.bound_to(session, [row.id for row in rows])
    return {
        "data": [_shape(row, bound[row.id]) for row in rows],
        "has_more": page.page * page.limit < total,
        "limit": page.limit,
        "total": total,
        "page": page.page,
    }


@router.get(f"{_APIS}/{{api_id}}")
@router.get(f"{_CONSOLE}/external-knowledge-api/{{api_id}}", include_in_schema=False)
def get_api(api_id: str, access: AccessDep) -> Json:
    """Show a service; its key is not shown."""
    with access.reading() as session:
        row = _row(session, api_id, access)
        return _shape(row, apis.bound_to(session, [row.id])[row.id])


@router.patch(f"{_APIS}/{{api_id}}")
@router.patch(f"{_CONSOLE}/external-knowledge-api/{{api_id}}", include_in_schema=False)
def update_api(api_id: str, body: JsonBody, access: AccessDep) -> Json:
    """Replace a service's name, description and settings; it is not tried out."""
    asked = parse(ExternalApiIn, body)
    apis.checked_endpoint(asked.settings.endpoint, access.resources)
    with access.writing() as session:
        row = _row(session, api_id, access)
        apis.update_api(row, asked, access.resources)
        return _shape(row, apis.bound_to(session, [row.id])[row.id])


@router.delete(f"{_APIS}/{{api_id}}", status_code=204)
@router.delete(
    f"{_CONSOLE}/external-knowledge-api/{{api_id}}", status_code=204, include_in_schema=False
)
def delete_api(api_id: str, access: AccessDep) -> Response:
    """Forget a service that no dataset is bound to."""
    with access.writing() as session:
        apis.delete_api(session, _row(session, api_id, access))
    return Response(status_code=204)


@router.get(f"{_APIS}/{{api_id}}/use-check")
@router.get(f"{_CONSOLE}/external-knowledge-api/{{api_id}}/use-check", include_in_schema=False)
def check_use(api_id: str, access: AccessDep) -> Json:
    """Say whether datasets are bound to a service, and how many."""
    with access.reading() as session:
        row = _row(session, api_id, access)
        count = len(apis.bound_to(session, [row.id])[row.id])
    return {"is_using": count > 0, "count": count}


@router.post(f"{_APIS}/{{api_id}}/probe")
def probe_api(api_id: str, access: AccessDep) -> Json:
    """Try a service out as it is kept: `status` is that of its answer to an empty question."""
    with access.reading() as session:
        row = _row(session, api_id, access)
        endpoint, api_key = row.endpoint, access.resources.keyring.open(row.api_key)
    return {
        "result": "success",
        "status": asking.probe(endpoint, api_key, access.resources.external),
    }


@router.post("/v1/datasets/external", status_code=201)
@router.post(f"{_CONSOLE}/external", status_code=201, include_in_schema=False)
def create_external_dataset(body: JsonBody, access: AccessDep) -> Json:
    """Create a dataset whose knowledge a service holds; nothing of it is indexed here."""
    access.caller.needs_whole_workspace("creating a dataset")
    asked = parse(ExternalDatasetCreate, body)
    if asked.external_knowledge_api_id is None or not asked.external_knowledge_id:
        raise InvalidParam("external_knowledge_api_id and external_knowledge_id are required")
    with access.writing() as session:
        row = datasets.add_external_dataset(session, asked, access.resources)
        return shapes.dataset(row, facts_of(session, [row])[row.id], embedding_available=None)


@router.post("/v1/datasets/{dataset_id}/external-hit-testing")
@router.post(f"{_CONSOLE}/{{dataset_id}}/external-hit-testing", include_in_schema=False)
def test_hits(dataset_id: str, body: JsonBody, access: AccessDep, history: QueryLogDep) -> Json:
    """Ask the service behind a dataset; its records come back as it gives them, best first."""
    asked = parse(ExternalHitTesting, body)
    check_long_query(asked.query, access.resources.settings)
    with access.reading() as session:
        dataset = access.dataset(session, dataset_id)
        if dataset.provider != EXTERNAL:
            raise InvalidParam(
                f"dataset {dataset.name!r} is not external; ask it with POST "
                f"/v1/datasets/{dataset.id}/retrieve"
            )
        source = asking.source_of(session, dataset, access.resources)
    hits = ask_external(
        source.asked(asked.external_retrieval_model, most=access.resources.settings.limits.top_k),
        asked.query,
        asked.metadata_filtering_conditions,
        access.resources,
        history,
    )
    return {
        "query": {"content": asked.query},
        "records": [shapes.foreign_record(hit) for hit in hits],
    }


def _row(session: Session, api_id: str, access: Access) -> ExternalApi:
    access.caller.needs_whole_workspace("an external knowledge API")
    return apis.get_api(session, access.caller.workspace_id, path_id(_NOUN, api_id))


def _shape(row: ExternalApi, bound: Sequence[tuple[uuid.UUID, str]]) -> Json:
    return {
        "id": str(row.id),
        "tenant_id": str(row.workspace_id),
        "name": row.name,
        "description": row.description,
        "settings": {"endpoint": row.endpoint, "api_key": HIDDEN},
        "dataset_bindings": [{"id": str(i), "name": name} for i, name in bound],
        "created_by": str(row.created_by),
        "created_at": row.created_at.isoformat(),
    }
