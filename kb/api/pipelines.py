"""Routes of knowledge pipelines: keeping a file for one; running them is not there yet."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from kb.api import shapes
from kb.api.bodies import MultipartForm, one_file
from kb.api.deps import Access, AccessDep
from kb.documents import discard_upload, store_upload
from kb.errors import NoPipeline, UnsupportedFileType
from kb.unused_files import FOLDER

router = APIRouter(prefix="/v1/datasets", tags=["pipelines"])

_DATASET = "/{dataset_id}/pipeline"


@router.post("/pipeline/file-upload", status_code=201, summary="Keep a file for a pipeline")
def upload_pipeline_file(form: MultipartForm, access: AccessDep) -> dict[str, Any]:
    """Keep a file (multipart: one part `file`, with a media type) that a pipeline run will name.

    A file that no document uses is removed after KB_LIMITS__PIPELINE_FILE_HOURS.
    """
    upload = one_file(form, access.resources.settings.limits)
    if not upload.media_type:
        raise UnsupportedFileType(
            f"{upload.name!r} has no media type; send one as the part's Content-Type, such as "
            "text/plain"
        )
    resources = access.resources
    row = store_upload(upload, blobs=resources.blobs, resources=resources, folder=FOLDER)
    kept = row.id, row.blob_key
    try:
        with access.writing() as session:
            session.add(row)
            session.flush()
            return shapes.upload_file(row) | {"created_at": row.created_at.isoformat()}
    except BaseException as exc:
        discard_upload(*kept, exc, resources)
        raise


@router.get(f"{_DATASET}/datasource-plugins", summary="List a pipeline's data sources")
def list_datasources(dataset_id: str, access: AccessDep) -> list[dict[str, Any]]:
    """The data sources of the dataset's pipeline; 404 for a dataset that has no pipeline, and no
    dataset has one yet.
    """
    raise _no_pipeline(access, dataset_id)


@router.post(f"{_DATASET}/datasource/nodes/{{node_id}}/run", summary="Run a data source")
def run_datasource(dataset_id: str, node_id: str, access: AccessDep) -> dict[str, Any]:
    """Run one data source of the dataset's pipeline; 404 for a dataset that has no pipeline, and
    no dataset has one yet.
    """
    raise _no_pipeline(access, dataset_id)


@router.post(f"{_DATASET}/run", summary="Run a pipeline")
def run_pipeline(dataset_id: str, access: AccessDep) -> dict[str, Any]:
    """Run the dataset's pipeline; 404 for a dataset that has no pipeline, and no dataset has one
    yet.
    """
    raise _no_pipeline(access, dataset_id)


def _no_pipeline(access: Access, dataset_id: str) -> NoPipeline:
    with access.reading() as session:
        return NoPipeline(access.dataset(session, dataset_id).name)
