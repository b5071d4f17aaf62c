"""What routes refuse, for the OpenAPI page: every status that is no success, with its codes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from http import HTTPStatus
from typing import Any

from kb.api.contract import DATASET, DOCUMENT

Json = dict[str, Any]
Route = tuple[str, str]
Codes = dict[int, tuple[str, ...]]

_DATASET, _DOCUMENT = DATASET, DOCUMENT
_SEGMENTS = f"{_DOCUMENT}/segments"
_SEGMENT = f"{_SEGMENTS}/{{segment_id}}"
_STEERED = ("pause", "resume", "retry", "cancel", "rechunk")

KEYED: Codes = {
    401: ("unauthorized",),
    403: ("forbidden",),
    503: ("service_unavailable", "store_unavailable"),
}
"""Of every route that asks for a key."""
FORM: Codes = {
    400: ("no_file_uploaded", "too_many_files", "filename_not_exists_error", "invalid_param"),
    413: ("file_too_large",),
    415: ("unsupported_file_type",),
}
"""Of every route that takes a file."""
BODY: Codes = {400: ("bad_request", "invalid_param"), 413: ("request_entity_too_large",)}
"""Of every route that reads a JSON body."""
LENIENT: Codes = {422: ("unprocessable_entity",)}
"""Of the routes whose body fails as a whole."""
LENIENT_ROUTES: Collection[Route] = frozenset(
    {
        ("post", "/v1/datasets"),
        ("patch", _DATASET),
        ("post", "/v1/datasets/tags"),
        ("patch", "/v1/datasets/tags"),
        ("delete", "/v1/datasets/tags"),
        ("post", "/v1/datasets/tags/binding"),
        ("post", "/v1/datasets/tags/unbinding"),
    }
)
FURTHER: dict[Route, Codes] = {
    ("post", "/v1/datasets"): {409: ("dataset_name_duplicate",)},
    ("patch", _DATASET): {409: ("conflict",)},
    ("patch", "/v1/datasets/tags"): {404: ("not_found",)},
    ("delete", "/v1/datasets/tags"): {404: ("not_found",)},
    ("post", "/v1/datasets/tags/binding"): {404: ("not_found",)},
    ("post", "/v1/datasets/tags/unbinding"): {404: ("not_found",)},
    ("post", "/v1/datasets/import"): {
        400: ("invalid_archive", "invalid_param"),
        409: ("dataset_name_duplicate",),
        413: ("archive_too_large",),
    },
    ("patch", _DOCUMENT): {413: ("request_entity_too_large",)},
    ("get", _DOCUMENT): {400: ("invalid_metadata",)},
    ("delete", _DOCUMENT): {400: ("document_indexing",), 403: ("archived_document_immutable",)},
    ("patch", f"{_DATASET}/documents/status/{{action}}"): {400: ("invalid_action",)},
    ("post", _SEGMENTS): {400: ("provider_not_initialize",)},
    ("post", f"{_SEGMENTS}/import"): {400: ("provider_not_initialize",)},
    ("post", _SEGMENT): {400: ("provider_not_initialize",)},
    ("delete", _SEGMENT): {400: ("invalid_param",)},
    ("post", f"{_SEGMENT}/child_chunks"): {400: ("provider_not_initialize",)},
    **{
        (method, f"{_SEGMENT}/child_chunks/{{child_chunk_id}}"): {
            400: ("invalid_param", "provider_not_initialize")
        }
        for method in ("patch", "delete")
    },
    ("post", f"{_DOCUMENT}/overlays/{{overlay_id}}/apply"): {400: ("provider_not_initialize",)},
    ("delete", f"{_DOCUMENT}/overlays/{{overlay_id}}"): {400: ("invalid_param",)},
    ("post", f"{_DATASET}/metadata/built-in/{{action}}"): {400: ("invalid_param",)},
    ("post", f"{_DATASET}/retrieve"): {400: ("provider_not_initialize",)},
    ("post", "/retrieval"): {403: ("1001", "1002"), 404: ("2001",), 503: ("503",)},
    ("post", "/v1/knowledge-retrieval"): {400: ("provider_not_initialize",)},
    ("post", "/v1/queries/{query_id}/replay"): {400: ("invalid_param",)},
    ("post", "/v1/documents/{action}"): {400: ("invalid_action",)},
    ("post", "/v1/models"): {409: ("model_exists",)},
    ("patch", "/v1/models/{model_id}"): {409: ("model_in_use",)},
    ("delete", "/v1/models/{model_id}"): {400: ("invalid_param",), 409: ("model_in_use",)},
    ("post", "/v1/webhooks"): {404: ("not_found",)},
    ("post", "/v1/datasets/external"): {404: ("not_found",), 409: ("dataset_name_duplicate",)},
    ("delete", "/v1/datasets/external-knowledge-api/{api_id}"): {409: ("conflict",)},
    ("post", "/v1/datasets/external-knowledge-api/{api_id}/probe"): {400: ("invalid_param",)},
    ("get", "/v1/workspaces/current/models/model-types/{model_type}"): {400: ("invalid_param",)},
    ("get", "/health/ready"): {503: ("service_unavailable",)},
    ("get", "/files/{file_id}"): {403: ("forbidden",), 404: ("not_found",)},
    **{
        ("post", f"{_DOCUMENT}/{action}"): {400: ("document_already_finished", "invalid_action")}
        for action in _STEERED
    },
}
"""What single routes refuse beyond the rest."""


def refusals(route: Route, operation: Json, *, form: bool, body: bool) -> dict[str, Json]:
    """Status -> response of all that a route refuses.

    Args:
        operation: as far as it is known: with its parameters and `security`.
        form: it takes a file.
        body: it reads a JSON body.
    """
    codes: dict[int, list[str]] = defaultdict(list)
    sources: list[Codes] = [FURTHER.get(route, {})]
    if operation.get("security"):
        sources.append(KEYED)
    if "{" in route[1]:
        sources.append({404: ("not_found",)})
    if any(p["in"] == "query" for p in operation.get("parameters", [])):
        sources.append({400: ("invalid_param",)})
    sources += [FORM] * form + [BODY] * body + [LENIENT] * (route in LENIENT_ROUTES)
    for source in sources:
        for status, named in source.items():
            codes[status] += [code for code in named if code not in codes[status]]
    return {str(status): _response(route, status, codes[status]) for status in sorted(codes)}


def _response(route: Route, status: int, codes: Collection[str]) -> Json:
    named = ", ".join(f"`{code}`" for code in codes)
    return {
        "description": f"{HTTPStatus(status).phrase}: {named}",
        "content": {"application/json": {"schema": _shape(route, status)}},
    }


def _shape(route: Route, status: int) -> Json:
    if route == ("post", "/retrieval"):
        return _ref("ExternalError")
    if route == ("get", "/health/ready"):
        return {"anyOf": [_ref("Health"), _ref("Error")]}
    if route == ("post", f"{_DOCUMENT}/segments") and status == 400:
        return {"anyOf": [_ref("Error"), _ref("SegmentsError")]}
    return _ref("Error")


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}
