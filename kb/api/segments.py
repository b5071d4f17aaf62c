"""Routes of segments."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from kb import segments
from kb.api import shapes
from kb.api.deps import DocumentDep, PageDep, ReadSessionDep
from kb.models import DocForm

router = APIRouter(
    prefix="/v1/datasets/{dataset_id}/documents/{document_id}/segments", tags=["segments"]
)


@router.get("")
def list_segments(
    request: Request, page: PageDep, document: DocumentDep, session: ReadSessionDep
) -> dict[str, Any]:
    """List a document's segments in order; `keyword` is a part of the content, `status` repeats."""
    rows, total = segments.list_segments(
        session,
        document,
        page=page.page,
        limit=page.limit,
        keyword=request.query_params.get("keyword"),
        statuses=request.query_params.getlist("status"),
    )
    hierarchical = document.doc_form is DocForm.HIERARCHICAL
    children = segments.children_of(session, [r.id for r in rows]) if hierarchical else {}
    return {
        "data": [shapes.segment(row, children.get(row.id, [])) for row in rows],
        "doc_form": document.doc_form,
        "total": total,
        "has_more": len(rows) == page.asked,
        "limit": page.asked,
        "page": page.page,
    }
