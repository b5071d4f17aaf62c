"""Routes of datasets."""

from __future__ import annotations

import uuid
from typing import Any

from fastapi import APIRouter, Request, Response

from kb import datasets
from kb.api import shapes
from kb.api.bodies import LenientJsonBody, parse_or_422
from kb.api.deps import Access, AccessDep, PageDep, find_id, query_flag, query_text
from kb.api.facts import facts_of
from kb.db import after_commit
from kb.models import IndexingTechnique
from kb.schemas import DatasetCreate, DatasetUpdate

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])


@router.post("")
def create_dataset(body: LenientJsonBody, access: AccessDep) -> dict[str, Any]:
    """Create a dataset: `name` (1-40 characters, unique), and optionally `description`,
    `indexing_technique` (`high_quality` or `economy`), `embedding_model`, `retrieval_model`.
    """
    access.caller.needs_whole_workspace("creating a dataset")
    asked = parse_or_422(DatasetCreate, body)
    names = (asked.embedding_model_provider, asked.embedding_model)
    if asked.indexing_technique is IndexingTechnique.HIGH_QUALITY:
        datasets.meet_model(*names, access.resources)
    with access.writing() as session:
        row = datasets.add_dataset(session, asked, access.resources)
        facts = facts_of(session, [row])[row.id]
        return shapes.dataset(row, facts, embedding_available=None)


@router.get("")
def list_datasets(request: Request, page: PageDep, access: AccessDep) -> dict[str, Any]:
    """List datasets, newest first: with `keyword` as a part of the name, with all of `tag_ids`, and
    (unless `include_all`) those that the owner may see.
    """
    tag_ids = _asked_tags(request)
    with access.reading() as session:
        rows, total = datasets.list_datasets(
            session,
            access.caller.workspace_id,
            page=page.page,
            limit=page.limit,
            keyword=query_text(request, "keyword"),
            tag_ids=tag_ids,
            visible_to=None if _sees_all(request, access) else access.resources.owner_id,
            only=access.caller.dataset_id,
        )
        facts = facts_of(session, rows)
    return {
        "data": [
            shapes.dataset(
                row,
                facts[row.id],
                embedding_available=datasets.embedding_available(row, access.resources),
            )
            for row in rows
        ],
        "has_more": page.page * page.limit < total,
        "limit": page.limit,
        "total": total,
        "page": page.page,
    }


def _asked_tags(request: Request) -> set[uuid.UUID]:
    """Tags of the query string: the parameter repeated, or its values joined by commas.

    What is no id is one that no dataset carries.
    """
    asked = [*request.query_params.getlist("tag_ids"), *request.query_params.getlist("tag_ids[]")]
    texts = [text.strip() for value in asked for text in value.split(",")]
    return {find_id(text) or uuid.UUID(int=0) for text in texts if text}


def _sees_all(request: Request, access: Access) -> bool:
    return query_flag(request, "include_all") or access.caller.dataset_id is not None


@router.get("/{dataset_id}")
def get_dataset(dataset_id: str, access: AccessDep) -> dict[str, Any]:
    """Show a dataset."""
    with access.reading() as session:
        row = access.dataset(session, dataset_id)
        facts = facts_of(session, [row])[row.id]
    available = datasets.embedding_available(row, access.resources)
    return shapes.single_dataset(row, facts, available=available)


@router.patch("/{dataset_id}")
def update_dataset(dataset_id: str, body: LenientJsonBody, access: AccessDep) -> dict[str, Any]:
    """Change a dataset; only the keys that are sent are applied."""
    asked = parse_or_422(DatasetUpdate, body)
    names = (asked.embedding_model_provider, asked.embedding_model)
    if any(names):
        datasets.meet_model(*names, access.resources)
    with access.writing() as session:
        row = access.dataset(session, dataset_id, lock=True)
        datasets.update_dataset(session, row, asked, access.resources)
        facts = facts_of(session, [row])[row.id]
        shape = shapes.dataset(row, facts, embedding_available=None)
    return shape | {"partial_member_list": [str(user_id) for user_id in facts.members]}


@router.delete("/{dataset_id}", status_code=204)
def delete_dataset(dataset_id: str, access: AccessDep) -> Response:
    """Delete a dataset with its documents, segments and index entries."""
    with access.writing() as session:
        datasets.delete_dataset(session, access.dataset(session, dataset_id, lock=True))
        after_commit(session, access.resources.jobs.run_jobs)
    return Response(status_code=204)
