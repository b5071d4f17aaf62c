"""Routes of datasets."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from kb import datasets
from kb.api import shapes
from kb.api.deps import (
    CallerDep,
    DatasetDep,
    DatasetToWrite,
    LenientJsonBody,
    PageDep,
    ReadSessionDep,
    ResourcesDep,
    RunnerDep,
    SessionDep,
    parse_or_422,
)
from kb.db import after_commit
from kb.schemas import DatasetCreate, DatasetUpdate

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])


@router.post("")
def create_dataset(
    body: LenientJsonBody, session: SessionDep, resources: ResourcesDep
) -> dict[str, Any]:
    """Create a dataset: `name` (1-40 characters, unique), and optionally `description`,
    `indexing_technique` (`high_quality` or `economy`), `embedding_model`, `retrieval_model`.
    """
    row = datasets.add_dataset(session, parse_or_422(DatasetCreate, body), resources)
    return shapes.dataset(row, datasets.Counts(), embedding_available=None)


@router.get("")
def list_datasets(
    request: Request,
    page: PageDep,
    caller: CallerDep,
    session: ReadSessionDep,
    resources: ResourcesDep,
) -> dict[str, Any]:
    """List datasets, newest first; `keyword` is a part of the name."""
    rows, total = datasets.list_datasets(
        session,
        caller.workspace_id,
        page=page.page,
        limit=page.limit,
        keyword=request.query_params.get("keyword"),
    )
    counts = datasets.count_documents(session, [row.id for row in rows])
    return {
        "data": [
            shapes.dataset(
                row,
                counts[row.id],
                embedding_available=datasets.embedding_available(row, resources),
            )
            for row in rows
            if caller.dataset_id in (None, row.id)
        ],
        "has_more": page.page * page.limit < total,
        "limit": page.limit,
        "total": total,
        "page": page.page,
    }


@router.get("/{dataset_id}")
def get_dataset(
    dataset: DatasetDep, session: ReadSessionDep, resources: ResourcesDep
) -> dict[str, Any]:
    """Show a dataset."""
    counts = datasets.count_documents(session, [dataset.id])[dataset.id]
    available = datasets.embedding_available(dataset, resources)
    return shapes.single_dataset(dataset, counts, available=available)


@router.patch("/{dataset_id}")
def update_dataset(
    body: LenientJsonBody,
    dataset: DatasetToWrite,
    session: SessionDep,
    resources: ResourcesDep,
) -> dict[str, Any]:
    """Change a dataset; only the keys that are sent are applied."""
    datasets.update_dataset(session, dataset, parse_or_422(DatasetUpdate, body), resources)
    session.flush()
    counts = datasets.count_documents(session, [dataset.id])[dataset.id]
    return shapes.dataset(dataset, counts, embedding_available=None) | {"partial_member_list": []}


@router.delete("/{dataset_id}", status_code=204)
def delete_dataset(dataset: DatasetToWrite, session: SessionDep, runner: RunnerDep) -> Response:
    """Delete a dataset with its documents, segments and index entries."""
    datasets.delete_dataset(session, dataset)
    if runner is not None:
        after_commit(session, runner.wake)
    return Response(status_code=204)
