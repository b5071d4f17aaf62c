"""Routes of hand edits (ours, beyond the contract): list them, settle those that fit no more."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request, Response
from sqlalchemy.orm import Session

from kb.api.bodies import JsonBody, parse
from kb.api.deps import AccessDep, PageDep, path_id, query_text
from kb.api.segments import place_of, shown
from kb.api.shapes import epoch, text
from kb.api.text import short
from kb.errors import InvalidParam
from kb.models import OverlayState, Segment, SegmentOverlay
from kb.schemas import OverlayApply
from kb.segments import apply_overlay, dismiss_overlay, list_overlays, suggestions

router = APIRouter(
    prefix="/v1/datasets/{dataset_id}/documents/{document_id}/overlays", tags=["segments"]
)


@router.get("")
def get_overlays(
    request: Request, dataset_id: str, document_id: str, page: PageDep, access: AccessDep
) -> dict[str, Any]:
    """List what was edited by hand in a document, oldest first.

    `state`: `active` (in force), `dormant` (nothing is left that it could change) or `conflict`
    (the text that it was made on is gone or was cut differently). A conflict names in
    `suggested_segment_id` the segment that holds most of that text.
    """
    asked = query_text(request, "state")
    if asked and asked not in set(OverlayState):
        raise InvalidParam(f"state is {short(asked)}; use active, dormant or conflict")
    place = place_of(access, dataset_id, document_id)
    with access.reading() as session:
        _, document = place.find(session)
        rows, total = list_overlays(
            session,
            document,
            page=page.page,
            limit=page.limit,
            state=OverlayState(asked) if asked else None,
        )
        places = suggestions(session, document, rows)
    return {
        "data": [shape(row, places.get(row.id)) for row in rows],
        "has_more": page.page * page.limit < total,
        "limit": page.limit,
        "total": total,
        "page": page.page,
    }


@router.post("/{overlay_id}/apply")
def apply(
    dataset_id: str, document_id: str, overlay_id: str, body: JsonBody, access: AccessDep
) -> dict[str, Any]:
    """Do to the segment `segment_id` what a hand edit says that fits no more; the conflict is gone.

    One of a child chunk goes to `child_chunk_id`; without it, an edited or added child chunk is
    added to the segment. The answer is the segment, or null when it was deleted.
    """
    place = place_of(access, dataset_id, document_id)
    asked = parse(OverlayApply, body)
    key = path_id("overlay", overlay_id)
    apply_overlay(place, key, asked.segment_id, asked.child_chunk_id)
    with access.reading() as session:
        gone = not _is_there(session, asked.segment_id)
    return {"data": None} if gone else shown(place, str(asked.segment_id))


def _is_there(session: Session, segment_id: UUID) -> bool:
    return session.get(Segment, segment_id) is not None


@router.delete("/{overlay_id}", status_code=204)
def dismiss(dataset_id: str, document_id: str, overlay_id: str, access: AccessDep) -> Response:
    """Give up a hand edit that fits no more, or a deletion (its text comes back when the document
    is processed anew).
    """
    place = place_of(access, dataset_id, document_id)
    dismiss_overlay(place, path_id("overlay", overlay_id))
    return Response(status_code=204)


def shape(row: SegmentOverlay, suggested: UUID | None) -> dict[str, Any]:
    """As JSON."""
    of_child = row.kind.value.startswith("child_")
    patch = row.patch or {}
    return {
        "id": str(row.id),
        "kind": row.kind,
        "state": row.state,
        "segment_id": str(row.segment_id),
        "child_chunk_id": str(row.target_id) if of_child else None,
        "original": row.original,
        "content": patch.get("content"),
        "answer": patch.get("answer"),
        "keywords": patch.get("keywords") or [],
        "child_chunks": patch.get("children"),
        "suggested_segment_id": text(suggested),
        "created_by": str(row.created_by),
        "created_at": epoch(row.created_at),
        "updated_at": epoch(row.updated_at),
    }
