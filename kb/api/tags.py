"""Routes of tags: the workspace's list of them, and which dataset carries which."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from sqlalchemy.orm import Session

from kb import tags
from kb.api.bodies import LenientJsonBody, parse_or_422
from kb.api.deps import Access, AccessDep, path_id, query_text
from kb.models import Tag
from kb.schemas import TagBind, TagCreate, TagDelete, TagUnbind, TagUpdate

router = APIRouter(prefix="/v1/datasets", tags=["tags"])


@router.get("/tags", summary="List tags")
def list_tags(access: AccessDep) -> list[dict[str, Any]]:
    """List the workspace's tags, newest first; a bare array. `binding_count` is a text."""
    access.caller.needs_whole_workspace("listing tags")
    with access.reading() as session:
        return [shape(*row) for row in tags.list_tags(session, access.caller.workspace_id)]


@router.post("/tags", summary="Create a tag")
def create_tag(body: LenientJsonBody, access: AccessDep) -> dict[str, Any]:
    """Create a tag: `name`, 1-50 characters, unique in the workspace."""
    access.caller.needs_whole_workspace("creating a tag")
    asked = parse_or_422(TagCreate, body)
    with access.writing() as session:
        return shape(tags.add_tag(session, asked.name, access.resources), 0)


@router.patch("/tags", summary="Rename a tag")
def rename_tag(body: LenientJsonBody, access: AccessDep) -> dict[str, Any]:
    """Give the tag `tag_id` another `name`; the datasets that carry it keep it."""
    access.caller.needs_whole_workspace("renaming a tag")
    asked = parse_or_422(TagUpdate, body)
    with access.writing() as session:
        tag = _tag(session, access, asked.tag_id)
        tags.rename_tag(session, tag, asked.name)
        return shape(tag, tags.count_bindings(session, tag))


@router.delete("/tags", status_code=204, summary="Delete a tag")
def delete_tag(body: LenientJsonBody, request: Request, access: AccessDep) -> Response:
    """Delete the tag `tag_id`, of the body or of the query string; no dataset carries it then."""
    access.caller.needs_whole_workspace("deleting a tag")
    if isinstance(body, dict):
        body = {"tag_id": query_text(request, "tag_id")} | body
    asked = parse_or_422(TagDelete, body)
    with access.writing() as session:
        session.delete(_tag(session, access, asked.tag_id))
    return Response(status_code=204)


@router.post("/tags/binding", status_code=204, summary="Bind tags to a dataset")
def bind_tags(body: LenientJsonBody, access: AccessDep) -> Response:
    """Have dataset `target_id` carry `tag_ids`; those that it carries already stay."""
    asked = parse_or_422(TagBind, body)
    with access.writing() as session:
        dataset = access.dataset(session, asked.target_id, lock=True)
        tags.bind_tags(session, dataset, [path_id("tag", i) for i in asked.tag_ids])
    return Response(status_code=204)


@router.post("/tags/unbinding", status_code=204, summary="Unbind tags from a dataset")
def unbind_tags(body: LenientJsonBody, access: AccessDep) -> Response:
    """Have dataset `target_id` carry `tag_ids` (or the one `tag_id`) no more; one that it does not
    carry is no error.
    """
    asked = parse_or_422(TagUnbind, body)
    with access.writing() as session:
        dataset = access.dataset(session, asked.target_id, lock=True)
        tags.unbind_tags(session, dataset, [path_id("tag", i) for i in asked.all_tag_ids])
    return Response(status_code=204)


@router.get("/{dataset_id}/tags", summary="List the tags of a dataset")
def tags_of_dataset(dataset_id: str, access: AccessDep) -> dict[str, Any]:
    """List the tags that a dataset carries, by name."""
    with access.reading() as session:
        row = access.dataset(session, dataset_id)
        found = tags.tags_of(session, [row.id])[row.id]
    return {"data": [{"id": str(t.id), "name": t.name} for t in found], "total": len(found)}


@router.post("/{dataset_id}/tags", summary="List the tags of a dataset (older clients)")
def tags_of_dataset_by_post(dataset_id: str, access: AccessDep) -> dict[str, Any]:
    """As GET: some clients ask this way."""
    return tags_of_dataset(dataset_id, access)


def _tag(session: Session, access: Access, tag_id: str) -> Tag:
    return tags.get_tag(session, access.caller.workspace_id, path_id("tag", tag_id))


def shape(row: Tag, bindings: int) -> dict[str, Any]:
    """As the wire contract shows a tag: its count is a text."""
    return {
        "id": str(row.id),
        "name": row.name,
        "type": "knowledge",
        "binding_count": str(bindings),
    }
