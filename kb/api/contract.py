"""Which routes belong to the compatible contract."""

from __future__ import annotations

DATASET = "/v1/datasets/{dataset_id}"
DOCUMENT = f"{DATASET}/documents/{{document_id}}"
SEGMENT = f"{DOCUMENT}/segments/{{segment_id}}"

CONTRACT = frozenset(
    {
        *(("get", path) for path in ("/v1/datasets", DATASET, "/v1/datasets/tags")),
        *(("get", f"{DATASET}/{part}") for part in ("documents", "tags", "metadata")),
        *(("post", path) for path in ("/v1/datasets", "/v1/datasets/tags", "/retrieval")),
        ("patch", DATASET),
        ("delete", DATASET),
        ("post", f"{DATASET}/document/create-by-text"),
        ("post", f"{DATASET}/document/create-by-file"),
        ("post", f"{DOCUMENT}/update-by-text"),
        ("get", DOCUMENT),
        ("patch", DOCUMENT),
        ("delete", DOCUMENT),
        ("get", f"{DATASET}/documents/{{batch}}/indexing-status"),
        ("patch", f"{DATASET}/documents/status/{{action}}"),
        ("get", f"{DOCUMENT}/download"),
        ("get", f"{DOCUMENT}/upload-file"),
        ("post", f"{DATASET}/documents/download-zip"),
        *((method, f"{DOCUMENT}/segments") for method in ("get", "post")),
        *((method, SEGMENT) for method in ("get", "post", "delete")),
        *((method, f"{SEGMENT}/child_chunks") for method in ("get", "post")),
        ("patch", f"{SEGMENT}/child_chunks/{{child_chunk_id}}"),
        ("delete", f"{SEGMENT}/child_chunks/{{child_chunk_id}}"),
        ("post", f"{DATASET}/metadata"),
        ("patch", f"{DATASET}/metadata/{{metadata_id}}"),
        ("delete", f"{DATASET}/metadata/{{metadata_id}}"),
        ("get", "/v1/datasets/metadata/built-in"),
        ("get", f"{DATASET}/metadata/built-in"),
        ("post", f"{DATASET}/metadata/built-in/{{action}}"),
        ("post", f"{DATASET}/documents/metadata"),
        ("patch", "/v1/datasets/tags"),
        ("delete", "/v1/datasets/tags"),
        ("post", "/v1/datasets/tags/binding"),
        ("post", "/v1/datasets/tags/unbinding"),
        ("post", f"{DATASET}/tags"),
        ("post", f"{DATASET}/retrieve"),
        ("get", f"{DATASET}/pipeline/datasource-plugins"),
        ("post", f"{DATASET}/pipeline/datasource/nodes/{{node_id}}/run"),
        ("post", f"{DATASET}/pipeline/run"),
        ("post", "/v1/datasets/pipeline/file-upload"),
        ("get", "/v1/workspaces/current/models/model-types/{model_type}"),
    }
)
"""Routes of the compatible contract; all others are additions, marked `x-kb-addition`."""
