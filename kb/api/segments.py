"""Routes of segments."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from kb import segments
from kb.api import shapes
from kb.api.deps import AccessDep, PageDep, query_text

router = APIRouter(
    prefix="/v1/datasets/{dataset_id}/documents/{document_id}/segments", tags=["segments"]
)


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
