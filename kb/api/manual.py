"""The OpenAPI page: what the route functions do not say, as they read requests themselves."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from kb.api import answers
from kb.api.contract import CONTRACT, DATASET, DOCUMENT
from kb.api.refusals import refusals
from kb.external.schemas import ExternalApiIn, ExternalDatasetCreate, ExternalHitTesting
from kb.knowledge.schemas import KnowledgeRetrieval
from kb.model_schemas import ModelCreate, ModelUpdate
from kb.schemas import (
    ChildIn,
    DatasetCreate,
    DatasetUpdate,
    DocumentByText,
    DocumentIds,
    DocumentRechunk,
    DocumentRename,
    DocumentsAction,
    DocumentSettings,
    DocumentUpdate,
    DocumentUpdateByText,
    ExternalRetrieval,
    HitTesting,
    MetadataFieldCreate,
    MetadataFieldUpdate,
    MetadataOperations,
    OverlayApply,
    SegmentsCreate,
    SegmentUpdate,
    TagBind,
    TagCreate,
    TagDelete,
    TagUnbind,
    TagUpdate,
    WebhookCreate,
    WebhookUpdate,
)

Json = dict[str, Any]

_DATASET, _DOCUMENT = DATASET, DOCUMENT

BODIES: dict[tuple[str, str], type[BaseModel]] = {
    ("post", "/v1/datasets"): DatasetCreate,
    ("patch", _DATASET): DatasetUpdate,
    ("post", "/v1/datasets/tags"): TagCreate,
    ("patch", "/v1/datasets/tags"): TagUpdate,
    ("delete", "/v1/datasets/tags"): TagDelete,
    ("post", "/v1/datasets/tags/binding"): TagBind,
    ("post", "/v1/datasets/tags/unbinding"): TagUnbind,
    ("post", f"{_DATASET}/document/create-by-text"): DocumentByText,
    ("post", f"{_DOCUMENT}/update-by-text"): DocumentUpdateByText,
    ("patch", f"{_DATASET}/documents/status/{{action}}"): DocumentIds,
    ("post", f"{_DATASET}/documents/download-zip"): DocumentIds,
    ("post", f"{_DOCUMENT}/rename"): DocumentRename,
    ("post", f"{_DOCUMENT}/rechunk"): DocumentRechunk,
    ("post", "/v1/documents/{action}"): DocumentsAction,
    ("post", f"{_DATASET}/metadata"): MetadataFieldCreate,
    ("patch", f"{_DATASET}/metadata/{{metadata_id}}"): MetadataFieldUpdate,
    ("post", f"{_DATASET}/documents/metadata"): MetadataOperations,
    ("post", f"{_DATASET}/retrieve"): HitTesting,
    ("post", "/retrieval"): ExternalRetrieval,
    ("post", "/v1/knowledge-retrieval"): KnowledgeRetrieval,
    ("post", "/v1/datasets/external-knowledge-api"): ExternalApiIn,
    ("patch", "/v1/datasets/external-knowledge-api/{api_id}"): ExternalApiIn,
    ("post", "/v1/datasets/external"): ExternalDatasetCreate,
    ("post", f"{_DATASET}/external-hit-testing"): ExternalHitTesting,
    ("post", f"{_DOCUMENT}/segments"): SegmentsCreate,
    ("post", f"{_DOCUMENT}/segments/{{segment_id}}"): SegmentUpdate,
    ("post", f"{_DOCUMENT}/segments/{{segment_id}}/child_chunks"): ChildIn,
    ("patch", f"{_DOCUMENT}/segments/{{segment_id}}/child_chunks/{{child_chunk_id}}"): ChildIn,
    ("post", "/v1/models"): ModelCreate,
    ("patch", "/v1/models/{model_id}"): ModelUpdate,
    ("post", f"{_DOCUMENT}/overlays/{{overlay_id}}/apply"): OverlayApply,
    ("post", "/v1/webhooks"): WebhookCreate,
    ("patch", "/v1/webhooks/{webhook_id}"): WebhookUpdate,
}
"""JSON bodies by method and path."""

FORMS: dict[tuple[str, str], type[BaseModel] | None] = {
    ("post", f"{_DATASET}/document/create-by-file"): DocumentSettings,
    ("patch", _DOCUMENT): DocumentUpdate,
    ("post", "/v1/datasets/pipeline/file-upload"): None,
    ("post", f"{_DOCUMENT}/segments/import"): None,
}
"""Multipart bodies: a part `file`, and these settings in `data`, if any."""

RAW = {("post", "/v1/datasets/import"): "application/zip"}
"""Bodies of other media types."""

_PAGE = {
    "page": ("integer", "1-based; 1 when left out"),
    "limit": ("integer", "rows per page, 20 when left out, at most 100"),
}
_HISTORY = {
    "source": ("string", "hit_testing, external or app; all when left out"),
    "keyword": ("string", "part of the query"),
}
QUERIES: dict[tuple[str, str], dict[str, tuple[str, str]]] = {
    ("get", "/v1/datasets"): _PAGE
    | {
        "keyword": ("string", "part of the name"),
        "tag_ids": (
            "string",
            "only datasets that carry this tag; repeated, or joined by commas, all of them",
        ),
        "include_all": ("boolean", "also datasets whose permission hides them from the owner"),
    },
    ("delete", "/v1/datasets/tags"): {"tag_id": ("string", "instead of the body's")},
    ("get", f"{_DATASET}/documents"): _PAGE
    | {
        "keyword": ("string", "part of the name"),
        "status": (
            "string",
            "queuing, indexing, paused, error, available, disabled or archived",
        ),
    },
    ("get", "/v1/switches"): _PAGE
    | {"status": ("string", "running, completed, failed or cancelled")},
    ("get", _DOCUMENT): {"metadata": ("string", "all (when left out), only or without")},
    ("get", "/files/{file_id}"): {
        "expires": ("integer", "of the link: Unix seconds"),
        "signature": ("string", "of the link"),
        "as_attachment": ("boolean", "have it saved instead of shown"),
    },
    ("get", f"{_DOCUMENT}/report"): {
        "version": ("integer", "of the document; the newest when left out"),
    },
    ("get", f"{_DOCUMENT}/segments"): _PAGE
    | {
        "keyword": ("string", "part of the content"),
        "status": ("string", "waiting, indexing or completed; may be sent more than once"),
    },
    ("get", f"{_DOCUMENT}/overlays"): _PAGE | {"state": ("string", "active, dormant or conflict")},
    ("get", f"{_DOCUMENT}/segments/{{segment_id}}/child_chunks"): _PAGE
    | {"keyword": ("string", "part of the content")},
    ("post", f"{_DATASET}/retrieve"): {
        "explain": ("boolean", "say how each score came about"),
    },
    ("get", "/v1/datasets/external-knowledge-api"): _PAGE
    | {"keyword": ("string", "part of the name")},
    ("get", "/v1/queries"): _PAGE | _HISTORY,
    ("get", f"{_DATASET}/queries"): _PAGE | _HISTORY,
    ("post", "/v1/doctor"): {
        "repair": ("boolean", "heal what differs"),
        "deep": ("boolean", "also compare vectors, terms, texts and the bytes of files"),
    },
    ("get", "/v1/models"): {"type": ("string", "text-embedding, rerank or llm; all if left out")},
    ("get", "/v1/webhooks/{webhook_id}/deliveries"): _PAGE
    | {"status": ("string", "pending, delivered or failed")},
    ("get", f"{_DATASET}/export"): {
        "vectors": ("boolean", "with the vectors, so that the importer needs no model"),
    },
    ("post", "/v1/datasets/import"): {
        "name": ("string", "of the dataset; the archive's own when left out"),
    },
}
"""Query parameters by method and path: name -> (type, meaning)."""

PATHS = {
    "dataset_id": "Id of the dataset.",
    "document_id": "Id of the document.",
    "segment_id": "Id of the segment.",
    "child_chunk_id": "Id of the child chunk.",
    "overlay_id": "Id of the hand edit.",
    "import_id": "Id of the import of segments.",
    "metadata_id": "Id of the metadata field.",
    "batch": "The `batch` of an upload's answer.",
    "api_id": "Id of the external knowledge service.",
    "file_id": "Id of the file.",
    "query_id": "Id of an entry of the history.",
    "webhook_id": "Id of the webhook.",
    "model_id": "Id of the model, or `settings`.",
    "model_type": "`text-embedding`, `rerank` or `llm`; others have no models.",
    "node_id": "Id of the data source.",
    "action": "What to do; the description says what there is.",
}
"""Parameters of paths, wherever they stand: name -> meaning."""


def write_manual(app: FastAPI) -> None:
    """Have /openapi.json (and so /docs) tell bodies, query parameters and the shape of errors."""
    generate = app.openapi

    def openapi() -> Json:
        if app.openapi_schema is None:
            app.openapi_schema = _complete(generate())
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _complete(page: Json) -> Json:
    components = page.setdefault("components", {}).setdefault("schemas", {})
    models = [model for model in (*BODIES.values(), *FORMS.values()) if model is not None]
    _, definitions = models_json_schema(
        [(model, "validation") for model in models],
        ref_template="#/components/schemas/{model}",
    )
    components.update(definitions["$defs"] | answers.schemas())
    for path, methods in page["paths"].items():
        for method, operation in methods.items():
            _complete_operation(operation, (method, path))
    for unused in ("HTTPValidationError", "ValidationError"):
        components.pop(unused, None)
    return page


def _complete_operation(operation: Json, key: tuple[str, str]) -> None:
    if key in BODIES:
        content = {"application/json": {"schema": _ref(BODIES[key].__name__)}}
        operation["requestBody"] = {"required": key[0] != "delete", "content": content}
    elif key in FORMS:
        content = {"multipart/form-data": _upload(FORMS[key], required=key[0] == "post")}
        operation["requestBody"] = {"required": True, "content": content}
    elif key in RAW:
        schema = {"type": "string", "format": "binary"}
        operation["requestBody"] = {"required": True, "content": {RAW[key]: {"schema": schema}}}
    for parameter in operation.setdefault("parameters", []):
        parameter["description"] = PATHS.get(parameter["name"], "")
    operation["parameters"].extend(
        {"name": name, "in": "query", "description": meaning, "schema": {"type": kind}}
        for name, (kind, meaning) in QUERIES.get(key, {}).items()
    )
    if operation["summary"].istitle():  # FastAPI's, of the function's name
        operation["summary"] = operation["summary"].capitalize()
    if key not in CONTRACT:
        operation["x-kb-addition"] = True
    operation["responses"] = _responses(operation, key)


def _responses(operation: Json, key: tuple[str, str]) -> Json:
    (success,) = (status for status in operation["responses"] if status.startswith("2"))
    answer = answers.ANSWERS.get(key, "")
    response: Json = {"description": "Done"}
    if answer:
        response["content"] = answers.read_content(answer)
    refused = refusals(key, operation, form=key in FORMS, body=key in BODIES)
    return {success: response} | refused


def _upload(settings: type[BaseModel] | None, *, required: bool) -> Json:
    file = {"type": "string", "format": "binary", "description": "The file, with its name."}
    form: Json = {
        "schema": {
            "type": "object",
            "required": ["file"] if required else [],
            "properties": {"file": file},
        }
    }
    if settings is not None:
        data = {"allOf": [_ref(settings.__name__)], "description": "Settings, as JSON."}
        form["schema"]["properties"]["data"] = data
        form["encoding"] = {"data": {"contentType": "application/json"}}
    return form


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}
