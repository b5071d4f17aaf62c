"""Routes of files: what was received for a document, as a link or in a zip."""

from __future__ import annotations

import uuid
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from kb import downloads
from kb.api import shapes
from kb.api.bodies import JsonBody, parse
from kb.api.deps import Access, AccessDep, ResourcesDep, path_id, query_flag
from kb.errors import NotFound
from kb.models import UploadFile
from kb.schemas import DocumentIds

router = APIRouter(prefix="/v1/datasets/{dataset_id}/documents", tags=["documents"])
links = APIRouter(prefix="/files", tags=["documents"])
"""Opened by the signature of a link instead of a key."""

_SHOWN_INLINE = frozenset({"application/pdf", "text/plain"})
"""Nothing that a browser would run with this server's name."""


@router.get("/{document_id}/upload-file")
def get_upload_file(
    request: Request, dataset_id: str, document_id: str, access: AccessDep
) -> dict[str, Any]:
    """Show the file of a document; `url` opens it without a key until it expires, `download_url`
    saves it.
    """
    row, url = _link(request, dataset_id, document_id, access)
    shape = shapes.upload_file(row)
    return shape | {"url": url, "download_url": f"{url}&as_attachment=true"}


@router.get("/{document_id}/download")
def get_download(
    request: Request, dataset_id: str, document_id: str, access: AccessDep
) -> dict[str, Any]:
    """A link that saves the file of a document; it needs no key and expires."""
    _, url = _link(request, dataset_id, document_id, access)
    return {"url": f"{url}&as_attachment=true"}


def _link(
    request: Request, dataset_id: str, document_id: str, access: Access
) -> tuple[UploadFile, str]:
    with access.reading() as session:
        document = access.document(session, access.dataset(session, dataset_id), document_id)
        row = session.get(UploadFile, document.upload_file_id)
        if row is None:
            raise NotFound("file of document", document.name)
    settings = access.resources.settings
    base = settings.public_url or str(request.base_url)
    query = downloads.link_query(
        access.resources.sessions, row, valid_s=settings.limits.file_link_s
    )
    return row, f"{base.rstrip('/')}/files/{row.id}?{query}"


@router.post("/download-zip")
def download_zip(dataset_id: str, body: JsonBody, access: AccessDep) -> StreamingResponse:
    """The files of 1 to 100 documents in one zip; a name that comes again gets a number."""
    asked = parse(DocumentIds, body)
    downloads.checked_count(asked.document_ids, most=access.resources.settings.limits.zip_documents)
    with access.reading() as session:
        dataset = access.dataset(session, dataset_id)
        ids = [path_id("document", text) for text in asked.document_ids]
        files = downloads.find_files(session, dataset.id, ids, access.resources.blobs)
    return StreamingResponse(
        downloads.zip_files(files, access.resources.blobs),
        media_type="application/zip",
        headers={"Content-Disposition": f'attachment; filename="{uuid.uuid4().hex}.zip"'},
    )


@links.get("/{file_id}")
def open_link(request: Request, file_id: str, resources: ResourcesDep) -> Response:
    """The bytes of a file, for whoever has its link; `as_attachment=true` saves it."""
    query = request.query_params
    file = downloads.open_link(
        resources.sessions,
        path_id("file", file_id),
        query.get("expires", ""),
        query.get("signature", ""),
    )
    media_type = "text/plain" if file.is_text else (file.media_type or "").partition(";")[0]
    inline = media_type.lower() in _SHOWN_INLINE and not query_flag(request, "as_attachment")
    if not media_type.isascii() or "/" not in media_type:
        media_type = "application/octet-stream"
    disposition = "inline" if inline else "attachment"
    return Response(
        resources.blobs.get(file.blob_key),
        media_type=media_type,
        headers={
            "Content-Disposition": f"{disposition}; filename*=utf-8''{quote(file.name, safe='')}",
            "X-Content-Type-Options": "nosniff",
            "Content-Security-Policy": "sandbox",
            "Cache-Control": "private, max-age=0",
        },
    )
