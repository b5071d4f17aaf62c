"""Routes that move a dataset from one installation to another; both stream."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncGenerator
from itertools import chain
from typing import IO, Any
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from kb import datasets
from kb.api import shapes
from kb.api.bodies import stream_body
from kb.api.deps import (
    AccessDep,
    CallerDep,
    ResourcesDep,
    query_flag,
    query_text,
)
from kb.api.facts import facts_of
from kb.archive import Imported, export_dataset, import_dataset
from kb.db import reading
from kb.errors import ArchiveTooLarge, StoreUnavailable
from kb.resources import Resources

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])

_WRITE_BYTES = 4 * 2**20


@router.get("/{dataset_id}/export")
def export(dataset_id: str, request: Request, access: AccessDep) -> StreamingResponse:
    """Send a dataset as an archive (zip): sources, chunks with their ids, edits and settings.

    `?vectors=true` adds the vectors. The archive is made while it is sent: an answer that breaks
    off is no archive. The format is in docs/archive.md.
    """
    with access.reading() as session:
        row = access.dataset(session, dataset_id)
        row_id, name = row.id, row.name
    parts = export_dataset(access.resources, row_id, with_vectors=query_flag(request, "vectors"))
    first = next(parts)  # what cannot be exported says so before the answer begins
    disposition = f"attachment; filename*=utf-8''{quote(name, safe='')}.kb.zip"
    return StreamingResponse(
        chain([first], parts),
        media_type="application/zip",
        headers={"Content-Disposition": disposition},
    )


@router.post("/import", status_code=201)
async def import_(request: Request, caller: CallerDep, resources: ResourcesDep) -> dict[str, Any]:
    """Take in an archive, sent as the body; `?name=NEW` gives the dataset another name.

    The dataset appears when all of it is there, or not at all. `imported` in the answer says how
    many documents answer at once, and how many are queued.
    """
    caller.needs_whole_workspace("importing a dataset")
    with tempfile.TemporaryFile(dir=resources.settings.data_dir, prefix="import-") as file:
        await _receive(request, resources, file)
        name = query_text(request, "name")
        return await run_in_threadpool(_import, resources, file, name)


def _import(resources: Resources, file: IO[bytes], name: str | None) -> dict[str, Any]:
    imported = import_dataset(resources, file, name=name)
    return _shape(resources, imported)


def _shape(resources: Resources, imported: Imported) -> dict[str, Any]:
    with reading(resources.sessions) as session:
        row = datasets.get_dataset(session, resources.workspace_id, imported.dataset_id)
        facts = facts_of(session, [row])[row.id]
    available = datasets.embedding_available(row, resources)
    shape = shapes.single_dataset(row, facts, available=available)
    return shape | {
        "imported": {
            "documents": imported.documents,
            "indexed": imported.indexed,
            "queued": imported.queued,
            "segments": imported.segments,
            "vectors": imported.vectors,
        }
    }


async def _receive(request: Request, resources: Resources, file: IO[bytes]) -> None:
    """Write the body to the file, which is gone with this process, whatever ends it.

    Raises:
        ArchiveTooLarge: beyond the limit; told by its Content-Length, it is not even read.
        StoreUnavailable: the disk has no room for it.
    """
    most = resources.settings.limits.archive_bytes
    too_large = ArchiveTooLarge(
        f"the archive is larger than the limit of {most:,} bytes; raise KB_LIMITS__ARCHIVE_BYTES"
    )
    async for piece in _pieces(stream_body(request, most, too_large)):
        await run_in_threadpool(_write, resources, file, piece)
    file.seek(0)


async def _pieces(stream: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    held = bytearray()
    async for part in stream:
        held += part
        if len(held) >= _WRITE_BYTES:
            yield bytes(held)
            held.clear()
    yield bytes(held)


def _write(resources: Resources, file: IO[bytes], piece: bytes) -> None:
    usage = shutil.disk_usage(resources.settings.data_dir)
    limits = resources.settings.limits
    floor = max(limits.min_free_bytes, int(usage.total * limits.min_free_share))
    if usage.free - len(piece) < floor:
        raise StoreUnavailable(
            "data directory", "import", f"disk almost full ({usage.free} bytes free); make room"
        )
    file.write(piece)
