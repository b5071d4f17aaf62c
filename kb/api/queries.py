"""Routes of the query history: list, show, ask again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from sqlalchemy.orm import Session

from kb import queries
from kb.api.deps import Access, AccessDep, Page, PageDep, QueryLogDep, path_id, query_text
from kb.api.retrieval import clock, found_by, search_settings
from kb.api.shapes import epoch, text
from kb.errors import InvalidParam, NotFound
from kb.knowledge.choosing import choose
from kb.knowledge.gathering import Gathering
from kb.models import DatasetQuery
from kb.queries import Difference, Place
from kb.query_log import Found
from kb.schemas import ExternalRetrievalModel, RetrievalModelIn

router = APIRouter(prefix="/v1", tags=["queries"])

Json = dict[str, Any]


@router.get("/queries")
def list_queries(request: Request, page: PageDep, access: AccessDep, history: QueryLogDep) -> Json:
    """List what was asked of any dataset that the key opens, newest first."""
    history.flush()  # what this process has answered is on the list
    only = access.caller.dataset_id
    return _page(request, page, access, str(only) if only is not None else None)


@router.get("/datasets/{dataset_id}/queries")
def list_queries_of_dataset(
    dataset_id: str, request: Request, page: PageDep, access: AccessDep, history: QueryLogDep
) -> Json:
    """List what was asked of a dataset, newest first, with settings, hits and latency."""
    history.flush()
    return _page(request, page, access, dataset_id)


@router.get("/queries/{query_id}")
def get_query(query_id: str, access: AccessDep, history: QueryLogDep) -> Json:
    """Show a query of the history."""
    history.flush()
    with access.reading() as session:
        return shape(_row(session, query_id, access))


@router.post("/queries/{query_id}/replay")
def replay_query(query_id: str, access: AccessDep, history: QueryLogDep) -> Json:
    """Ask a query again as it was asked, and say what differs.

    On the same data the answer is the same. The replay itself leaves no trace in the history.
    """
    history.flush()
    with access.reading() as session:
        row = _row(session, query_id, access)
        if row.call_id is not None:
            access.caller.needs_whole_workspace("asking several datasets again")
        rows = queries.of_same_call(session, row)
        before = queries.hits_of(rows)
        with clock() as took_ms:
            gathering = _again(session, row, rows, access)
    with clock() as waited_ms:
        gathered = gathering.result()
    now = found_by(gathered.hits)
    found = queries.differences(
        before, now, row.created_at, access.resources, foreign=queries.foreign_in(rows)
    )
    return {
        "query": shape(row),
        "hits": _hits(now),
        "latency_ms": round(took_ms() + waited_ms(), 3),
        "identical": not found,
        "differences": [_difference(difference) for difference in found],
    }


def _page(request: Request, page: Page, access: Access, dataset_id: str | None) -> Json:
    with access.reading() as session:
        dataset = access.dataset(session, dataset_id) if dataset_id is not None else None
        rows, total = queries.list_queries(
            session,
            access.caller.workspace_id,
            page=page.page,
            limit=page.limit,
            dataset_id=dataset.id if dataset is not None else None,
            source=query_text(request, "source"),
            keyword=query_text(request, "keyword"),
        )
    return {
        "data": [shape(row) for row in rows],
        "has_more": page.page * page.limit < total,
        "limit": page.limit,
        "total": total,
        "page": page.page,
    }


def _row(session: Session, query_id: str, access: Access) -> DatasetQuery:
    key = path_id("query", query_id)
    row = queries.get_query(session, access.caller.workspace_id, key)
    if access.caller.dataset_id not in (None, row.dataset_id):
        raise NotFound("query", query_id)
    return row


def _again(
    session: Session, row: DatasetQuery, rows: Sequence[DatasetQuery], access: Access
) -> Gathering:
    """The same call, under way.

    Raises:
        InvalidParam: it was asked before its settings were kept.
    """
    if row.settings is None:
        raise InvalidParam(
            f"query {str(row.id)!r} was asked before settings were kept, so it cannot be asked as "
            "it was; ask it anew with POST /v1/datasets/{dataset_id}/retrieve"
        )
    resources, caller = access.resources, access.caller
    model = RetrievalModelIn.model_validate(row.settings["retrieval_model"])
    ids = row.settings.get("dataset_ids", [str(row.dataset_id)])
    return Gathering(
        session,
        row.content,
        choose(session, caller.workspace_id, caller.dataset_id, ids).datasets,
        search_settings(model, resources.settings),
        resources,
        conditions=model.metadata_filtering_conditions,
        external={
            r.dataset_id: ExternalRetrievalModel.model_validate(r.settings["external"])
            for r in rows
            if r.settings is not None and "external" in r.settings
        },
    )


def shape(row: DatasetQuery) -> Json:
    """As JSON."""
    return {
        "id": str(row.id),
        "dataset_id": str(row.dataset_id),
        "call_id": text(row.call_id),
        "query": row.content,
        "source": row.source,
        "created_by": str(row.created_by),
        "created_at": epoch(row.created_at),
        "settings": row.settings,
        "hits": None if row.hits is None else _hits(queries.hits_of([row])),
        "latency_ms": row.latency_ms,
    }


def _hits(found: list[Found]) -> list[Json]:
    return [
        {"segment_id": str(hit.segment_id), "score": hit.score, "rank": hit.rank} for hit in found
    ]


def _difference(difference: Difference) -> Json:
    return {
        "segment_id": str(difference.segment_id),
        "before": _place(difference.before),
        "now": _place(difference.now),
        "reason": difference.reason,
    }


def _place(place: Place | None) -> Json | None:
    return None if place is None else {"rank": place.rank, "score": place.score}
