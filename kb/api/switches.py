"""Routes of switches: how far a dataset is on its way to another model or technique; cancel it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from sqlalchemy.orm import Session

from kb import switches
from kb.api.deps import AccessDep, PageDep, query_text
from kb.api.shapes import epoch
from kb.errors import InvalidParam
from kb.models import DatasetSwitch, SwitchStatus

router = APIRouter(prefix="/v1", tags=["switches"])


@router.get("/switches", summary="List switches")
def list_switches(request: Request, page: PageDep, access: AccessDep) -> dict[str, Any]:
    """List the switches of all datasets, newest first; `status` leaves those of one state."""
    status = _status(request)
    with access.reading() as session:
        rows, total = switches.list_switches(
            session,
            access.caller.workspace_id,
            page=page.page,
            limit=page.limit,
            status=status,
            only=access.caller.dataset_id,
        )
        data = [shape(session, row) for row in rows]
    return {
        "data": data,
        "has_more": page.page * page.limit < total,
        "limit": page.limit,
        "total": total,
        "page": page.page,
    }


def _status(request: Request) -> SwitchStatus | None:
    asked = query_text(request, "status")
    if not asked:
        return None
    try:
        return SwitchStatus(asked)
    except ValueError as exc:
        known = ", ".join(SwitchStatus)
        raise InvalidParam(f"status is {asked[:100]!r}; choose one of {known}") from exc


@router.get("/datasets/{dataset_id}/switch", summary="Show the switch of a dataset")
def get_switch(dataset_id: str, access: AccessDep) -> dict[str, Any]:
    """Show the switch that was started last: its `status`, `done` of `total` texts, its `error`.

    A switch is started by a change of the dataset's `indexing_technique` or `embedding_model`.
    """
    with access.reading() as session:
        return shape(session, switches.newest_switch(session, access.dataset(session, dataset_id)))


@router.delete("/datasets/{dataset_id}/switch", summary="Cancel the switch of a dataset")
def cancel_switch(dataset_id: str, access: AccessDep) -> dict[str, Any]:
    """Cancel the running switch: the dataset stays as it is, and what was copied is removed."""
    with access.writing() as session:
        row = access.dataset(session, dataset_id, lock=True)
        return shape(session, switches.cancel_switch(session, row, access.resources))


def shape(session: Session, row: DatasetSwitch) -> dict[str, Any]:
    """As JSON."""
    progress = switches.progress_of(session, row)
    return {
        "id": str(row.id),
        "dataset_id": str(row.dataset_id),
        "status": row.status,
        "from": _way(row.from_technique, row.from_model, row.from_provider),
        "to": _way(row.technique, row.embedding_model, row.embedding_model_provider),
        "done": progress.done,
        "total": progress.total,
        "error": row.error,
        "error_code": row.error_code,
        "failures": row.failures,
        "retry_at": epoch(row.retry_at),
        "created_by": str(row.created_by),
        "created_at": epoch(row.created_at),
        "progress_at": epoch(row.progress_at),
        "finished_at": epoch(row.finished_at),
    }


def _way(technique: str, model: str | None, provider: str | None) -> dict[str, Any]:
    return {
        "indexing_technique": technique,
        "embedding_model": model,
        "embedding_model_provider": provider,
    }
