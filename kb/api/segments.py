"""Routes of segments and child chunks: list, show, add, change, delete."""

from __future__ import annotations

from math import ceil
from typing import Any

from fastapi import APIRouter, Request, Response
from sqlalchemy.orm import Session

from kb import segments
from kb.api import shapes
from kb.api.bodies import JsonBody, parse
from kb.api.deps import Access, AccessDep, PageDep, path_id, query_text
from kb.api.text import short
from kb.errors import BadRequest, BadSegments, InvalidParam
from kb.models import Dataset, Document
from kb.schemas import ChildIn, SegmentsCreate, SegmentUpdate
from kb.segments import NewSegment, Place, SegmentChange
from kb.settings import Limits

router = APIRouter(
    prefix="/v1/datasets/{dataset_id}/documents/{document_id}/segments", tags=["segments"]
)
_SEGMENT = "/{segment_id}"
_CHILDREN = _SEGMENT + "/child_chunks"


@router.post("")
def create_segments(
    dataset_id: str, document_id: str, body: JsonBody, access: AccessDep
) -> dict[str, Any]:
    """Append segments to a completed document: all of them or none. They are found at once.

    Each has `content`, and may have `keywords`; in a document of questions and answers `content`
    is the question and `answer` is asked for. In a hierarchical document child chunks are made by
    its rule. A body that cannot be used is answered with `{"error": "..."}`.
    """
    place = place_of(access, dataset_id, document_id)
    _check_document(place)
    items = _new_segments(body, access.resources.settings.limits)
    ids = segments.add_segments(place, items)
    with access.reading() as session:
        _, document = place.find(session)
        rows = [segments.get_segment(session, document, i) for i in ids]
        children = segments.children_of(session, document, ids)
    return {
        "data": [shapes.segment(row, children.get(row.id, [])) for row in rows],
        "doc_form": document.doc_form,
    }


def place_of(access: Access, dataset_id: str, document_id: str) -> Place:
    """The document of a path, to be edited."""

    def find(session: Session) -> tuple[Dataset, Document]:
        dataset = access.dataset(session, dataset_id)
        return dataset, access.document(session, dataset, document_id)

    return Place(access.resources, find)


def _check_document(place: Place) -> None:
    """What is wrong with the path is said before what is wrong with the body."""
    with place.reading() as session:
        segments.check_open(place.find(session)[1])


def _new_segments(body: Any, limits: Limits) -> list[NewSegment]:
    try:
        asked = parse(SegmentsCreate, body).segments
    except BadRequest:
        raise BadSegments('the body is empty; send {"segments": [{"content": "..."}]}') from None
    except InvalidParam as exc:
        raise BadSegments(exc.message) from exc
    if not asked:
        raise BadSegments("segments is an empty list; send at least one segment with content")
    for number, item in enumerate(asked):
        if not item.content.strip():
            raise BadSegments(f"segments.{number}.content is blank; give the segment a text")
        _check_length(f"segments.{number}.content", item.content, limits)
    if 0 < limits.segments < len(asked):
        raise InvalidParam(
            f"{len(asked):,} segments were sent, the limit is {limits.segments:,} per call; send "
            "them in parts, or raise KB_LIMITS__SEGMENTS"
        )
    return [NewSegment(i.content, i.answer, _keywords(i.keywords)) for i in asked]


def _check_length(field: str, text: str, limits: Limits) -> None:
    if len(text) > limits.text_chars:
        raise InvalidParam(
            f"{field} has {len(text):,} characters, the limit is {limits.text_chars:,}; split it, "
            "or raise KB_LIMITS__TEXT_CHARS"
        )


def _keywords(sent: list[str] | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word.strip() for word in sent or [] if word.strip()))


@router.get("")
def list_segments(
    request: Request, dataset_id: str, document_id: str, page: PageDep, access: AccessDep
) -> dict[str, Any]:
    """List a document's segments in order; `keyword` is a part of the content, `status` repeats.

    A hierarchical document's segments come with their children, unless the whole document is one
    segment (`full-doc`).
    """
    with access.reading() as session:
        document = access.document(session, access.dataset(session, dataset_id), document_id)
        rows, total = segments.list_segments(
            session,
            document,
            page=page.page,
            limit=page.limit,
            keyword=query_text(request, "keyword"),
            statuses=request.query_params.getlist("status"),
        )
        children = segments.children_of(session, document, [row.id for row in rows])
    return {
        "data": [shapes.segment(row, children.get(row.id, [])) for row in rows],
        "doc_form": document.doc_form,
        "total": total,
        "has_more": len(rows) == page.asked,
        "limit": page.asked,
        "page": page.page,
    }


@router.get(_SEGMENT)
def get_segment(
    dataset_id: str, document_id: str, segment_id: str, access: AccessDep
) -> dict[str, Any]:
    """Show a segment."""
    return shown(place_of(access, dataset_id, document_id), segment_id)


def shown(place: Place, segment_id: str) -> dict[str, Any]:
    """A segment as GET shows it."""
    with place.reading() as session:
        _, document = place.find(session)
        row = segments.get_segment(session, document, path_id("segment", segment_id))
        children = segments.children_of(session, document, [row.id])
    return {
        "data": shapes.segment(row, children.get(row.id, [])),
        "doc_form": document.doc_form,
    }


@router.post(_SEGMENT)
def update_segment(
    dataset_id: str, document_id: str, segment_id: str, body: JsonBody, access: AccessDep
) -> dict[str, Any]:
    """Change a segment: its `content`, `answer`, `keywords`, whether it is `enabled`.

    In force when the call returns: the old text is not found any more, the new one is. With
    `regenerate_child_chunks` the children are made anew from the content; without, they stay.
    """
    place = place_of(access, dataset_id, document_id)
    key = path_id("segment", segment_id)
    shown(place, segment_id)
    asked = parse(SegmentUpdate, body).segment
    _check_length("segment.content", asked.content or "", access.resources.settings.limits)
    change = SegmentChange(
        content=asked.content,
        answer=asked.answer,
        sets_answer="answer" in asked.model_fields_set,
        keywords=_keywords(asked.keywords),
        enabled=asked.enabled,
        regenerate=asked.regenerate_child_chunks,
    )
    segments.change_segment(place, key, change)
    return shown(place, segment_id)


@router.delete(_SEGMENT, status_code=204)
def delete_segment(
    dataset_id: str, document_id: str, segment_id: str, access: AccessDep
) -> Response:
    """Delete a segment with its child chunks."""
    place = place_of(access, dataset_id, document_id)
    segments.delete_segment(place, path_id("segment", segment_id))
    return Response(status_code=204)


# -- child chunks


@router.post(_CHILDREN)
def create_child_chunk(
    dataset_id: str, document_id: str, segment_id: str, body: JsonBody, access: AccessDep
) -> dict[str, Any]:
    """Add a child chunk to a segment of a hierarchical document; it is found at once."""
    place = place_of(access, dataset_id, document_id)
    key = path_id("segment", segment_id)
    shown(place, segment_id)
    child_id = segments.add_child(place, key, _child_content(body, access))
    return _child(place, segment_id, str(child_id))


def _child_content(body: Any, access: Access) -> str:
    content = parse(ChildIn, body).content
    if not content.strip():
        raise InvalidParam(f"content is {short(content)}; give the child chunk a text")
    _check_length("content", content, access.resources.settings.limits)
    return content


def _child(place: Place, segment_id: str, child_id: str) -> dict[str, Any]:
    with place.reading() as session:
        _, document = place.find(session)
        segment = segments.get_segment(session, document, path_id("segment", segment_id))
        row = segments.get_child(session, document, segment, path_id("child chunk", child_id))
    return {"data": shapes.child_chunk(row)}


@router.get(_CHILDREN)
def list_child_chunks(
    request: Request,
    dataset_id: str,
    document_id: str,
    segment_id: str,
    page: PageDep,
    access: AccessDep,
) -> dict[str, Any]:
    """List a segment's child chunks in order; `keyword` is a part of the content."""
    place = place_of(access, dataset_id, document_id)
    with access.reading() as session:
        _, document = place.find(session)
        segment = segments.get_segment(session, document, path_id("segment", segment_id))
        rows, total = segments.list_children(
            session,
            document,
            segment,
            page=page.page,
            limit=page.limit,
            keyword=query_text(request, "keyword"),
        )
    return {
        "data": [shapes.child_chunk(row) for row in rows],
        "total": total,
        "total_pages": ceil(total / page.limit),
        "page": page.page,
        "limit": page.limit,
    }


@router.patch(_CHILDREN + "/{child_chunk_id}")
def update_child_chunk(
    dataset_id: str,
    document_id: str,
    segment_id: str,
    child_chunk_id: str,
    body: JsonBody,
    access: AccessDep,
) -> dict[str, Any]:
    """Give a child chunk another text; the old one is not found any more."""
    place = place_of(access, dataset_id, document_id)
    keys = path_id("segment", segment_id), path_id("child chunk", child_chunk_id)
    _child(place, segment_id, child_chunk_id)
    segments.change_child(place, *keys, _child_content(body, access))
    return _child(place, segment_id, child_chunk_id)


@router.delete(_CHILDREN + "/{child_chunk_id}", status_code=204)
def delete_child_chunk(
    dataset_id: str, document_id: str, segment_id: str, child_chunk_id: str, access: AccessDep
) -> Response:
    """Delete a child chunk; a segment without any is found by its own text."""
    place = place_of(access, dataset_id, document_id)
    keys = path_id("segment", segment_id), path_id("child chunk", child_chunk_id)
    segments.delete_child(place, *keys)
    return Response(status_code=204)
