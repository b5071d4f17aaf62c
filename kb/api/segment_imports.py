"""Routes of imports (ours, beyond the contract): the rows of a file become segments."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from kb.api.bodies import MultipartForm
from kb.api.deps import AccessDep, path_id
from kb.api.segments import place_of
from kb.api.shapes import epoch
from kb.errors import FilenameMissing, NoFileUploaded, TooManyFiles
from kb.models import ImportState, SegmentImport
from kb.segments import Place, get_import, import_segments

router = APIRouter(
    prefix="/v1/datasets/{dataset_id}/documents/{document_id}/segments", tags=["segments"]
)


@router.post("/import")
def create_import(
    dataset_id: str, document_id: str, form: MultipartForm, access: AccessDep
) -> dict[str, Any]:
    """Append the rows of a CSV, TSV, XLSX or XLS `file` as segments: all of them or none.

    Columns are `content`, and if you like `answer` and `keywords`, by the names in the first row or
    else in this order. What is wrong with which row is said in a 400. A file of few rows is done
    when this returns; of a larger one the `state` is `waiting`, and `GET .../import/{import_id}`
    says how far it has got.
    """
    if not form.files:
        raise NoFileUploaded("the upload has no file; send one part named 'file'")
    if len(form.files) > 1:
        raise TooManyFiles(f"the upload has {len(form.files)} files; send one file per call")
    file = form.files[0]
    if not file.name:
        raise FilenameMissing("the part 'file' has no file name; send it with filename=\"...\"")
    place = place_of(access, dataset_id, document_id)
    return _shown(place, str(import_segments(place, file.name, file.data)))


@router.get("/import/{import_id}")
def show_import(
    dataset_id: str, document_id: str, import_id: str, access: AccessDep
) -> dict[str, Any]:
    """How far an import has got: `waiting`, `completed`, or `error` with the reason."""
    return _shown(place_of(access, dataset_id, document_id), import_id)


def _shown(place: Place, import_id: str) -> dict[str, Any]:
    with place.reading() as session:
        _, document = place.find(session)
        return shape(get_import(session, document, path_id("import of segments", import_id)))


def shape(row: SegmentImport) -> dict[str, Any]:
    """As JSON."""
    return {
        "id": str(row.id),
        "document_id": str(row.document_id),
        "name": row.name,
        "state": row.state,
        "rows": row.rows,
        "embedded": row.embedded,
        "added": row.rows if row.state is ImportState.COMPLETED else 0,
        "warnings": row.warnings or [],
        "error": row.error,
        "created_at": epoch(row.created_at),
        "finished_at": epoch(row.finished_at),
    }
