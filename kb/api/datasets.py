"""Routes of datasets."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from kb import datasets
from kb.api import shapes
from kb.api.bodies import LenientJsonBody, parse_or_422
from kb.api.deps import AccessDep, PageDep, query_text
from kb.db import after_commit
from kb.schemas import DatasetCreate, DatasetUpdate

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])


@router.post("")
def create_dataset(body: LenientJsonBody, access: AccessDep) -> dict[str, Any]:
    """Create a dataset: `name` (1-40 characters, unique), and optionally `description`,
    `indexing_technique` (`high_quality` or `economy`), `embedding_model`, `retrieval_model`.
    """
    access.caller.needs_whole_workspace("creating a dataset")
    asked = parse_or_422(DatasetCreate, body)
    with access.writing() as session:
        row = datasets.add_dataset(session, asked, access.resources)
        return shapes.dataset(row, datasets.Counts(), embedding_available=None)


@router.get("")
def list_datasets(request: Request, page: PageDep, access: AccessDep) -> dict[str, Any]:
    """List datasets, newest first; `keyword` is a part of the name."""
    with access.reading() as session:
        rows, total = datasets.list_datasets(
            session,
            access.caller.workspace_id,
            page=page.page,
            limit=page.limit,
            keyword=query_text(request, "keyword"),
            only=access.caller.dataset_id,
        )
        counts = datasets.count_documents(session, [row.id for row in rows])
    return {
        "data": [
            shapes.dataset(
                row,
                counts[row.id],
                embedding_available=datasets.embedding_available(row, access.resources),
            )
            for row in rows
        ],
        "has_more": page.page * page.limit < total,
        "limit": page.limit,
        "total": total,
        "page": page.page,
    }


@router.get("/{dataset_id}")
def get_dataset(dataset_id: str, access: AccessDep) -> dict[str, Any]:
    """Show a dataset."""
    with access.reading() as session:
        row = access.dataset(session, dataset_id)
        counts = datasets.count_documents(session, [row.id])[row.id]
    available = datasets.embedding_available(row, access.resources)
    return shapes.single_dataset(row, counts, available=available)


@router.patch("/{dataset_id}")
def update_dataset(dataset_id: str, body: LenientJsonBody, access: AccessDep) -> dict[str, Any]:
    """Change a dataset; only the keys that are sent are applied."""
    asked = parse_or_422(DatasetUpdate, body)
    with access.writing() as session:
        row = access.dataset(session, dataset_id, lock=True)
        datasets.update_dataset(session, row, asked, access.resources)
        counts = datasets.count_documents(session, [row.id])[row.id]
        shape = shapes.dataset(row, counts, embedding_available=None)
    return shape | {"partial_member_list": []}


@router.delete("/{dataset_id}", status_code=204)
def delete_dataset(dataset_id: str, access: AccessDep) -> Response:
    """Delete a dataset with its documents, segments and index entries."""
    with access.writing() as session:
        datasets.delete_dataset(session, access.dataset(session, dataset_id, lock=True))
        after_commit(session, access.resources.jobs.run_jobs)
    return Response(status_code=204)
