"""Every call that the contract's Node.js client library makes, as it makes it, over real HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.api import wire
from tests.api.conformance import Call, assignment, check, run_node, run_pipeline, send_node
from tests.api.world import LINES, World, open_world
from tests.kb.api import fresh_name

_D = "/datasets/{dataset}"
_C = _D + "/documents/{document}"
_S = _C + "/segments/{segment}"
_CHILDREN = "/datasets/{family}/documents/{parents}/segments/{parent}/child_chunks"
_FILE = ("otter.md", b"# Otters\n\nOtters swim.")


def _search(_: World) -> Any:
    return {"query": "otter", "retrieval_model": {"top_k": 1}, "attachment_ids": []}


def _text(_: World) -> Any:
    return {"name": fresh_name("book"), "text": "\u00d6tter schwimmen.", "process_rule": LINES}


CALLS = [
    Call(
        "listDatasets",
        "GET",
        "/datasets",
        wire.page_of(wire.DATASET),
        params={"page": 1, "limit": 20, "keyword": "data", "include_all": True},
    ),
    Call(
        "createDataset",
        "POST",
        "/datasets",
        wire.DATASET,
        body=lambda _: {
            "name": fresh_name(),
            "description": "made by Node",
            "permission": "only_me",
            "retrieval_model": {"search_method": "hybrid_search"},
        },
    ),
    Call("getDataset", "GET", _D, wire.DATASET),
    Call(
        "updateDataset",
        "PATCH",
        _D,
        wire.DATASET_CHANGED,
        body=lambda _: {"description": "changed"},
    ),
    Call("deleteDataset", "DELETE", "/datasets/{new_dataset}", status=204),
    Call(
        "updateDocumentStatus",
        "PATCH",
        _D + "/documents/status/un_archive",
        wire.SUCCESS,
        body=lambda world: {"document_ids": [world["new_archived"]]},
    ),
    Call("listTags", "GET", "/datasets/tags", [wire.TAG]),
    Call(
        "createTag", "POST", "/datasets/tags", wire.TAG, body=lambda _: {"name": fresh_name("tag")}
    ),
    Call(
        "updateTag",
        "PATCH",
        "/datasets/tags",
        wire.TAG,
        body=lambda world: {"tag_id": world["tag"], "name": fresh_name("tag")},
    ),
    Call(
        "deleteTag",
        "DELETE",
        "/datasets/tags",
        status=204,
        body=lambda world: {"tag_id": world["new_tag"]},
    ),
    Call(
        "bindTags",
        "POST",
        "/datasets/tags/binding",
        status=204,
        body=lambda world: {"tag_ids": [world["tag"]], "target_id": world["dataset"]},
    ),
    Call(
        "unbindTags",
        "POST",
        "/datasets/tags/unbinding",
        status=204,
        body=lambda world: {"tag_id": world["new_tag"], "target_id": world["dataset"]},
    ),
    Call(
        "getDatasetTags",
        "GET",
        _D + "/tags",
        {"data": [{"id": wire.identifier, "name": str}], "total": int},
    ),
    Call(
        "createDocumentByText",
        "POST",
        _D + "/document/create_by_text",
        wire.ACCEPTED,
        body=_text,
    ),
    Call(
        "updateDocumentByText",
        "POST",
        _D + "/documents/{new_document}/update_by_text",
        wire.ACCEPTED,
        body=_text,
    ),
    Call(
        "createDocumentByFile",
        "POST",
        _D + "/document/create_by_file",
        wire.ACCEPTED,
        data=lambda _: {"indexing_technique": "economy", "process_rule": LINES},
        file=_FILE,
    ),
    Call(
        "updateDocumentByFile",
        "POST",
        _D + "/documents/{new_document}/update_by_file",
        wire.ACCEPTED,
        file=_FILE,
    ),
    Call(
        "listDocuments",
        "GET",
        _D + "/documents",
        wire.page_of(wire.DOCUMENT),
        params={"page": 1, "limit": 20, "keyword": "book", "status": "available"},
    ),
    Call(
        "getDocument",
        "GET",
        _C,
        wire.DOCUMENT_DETAIL,
        params={"metadata": "all"},
    ),
    Call("deleteDocument", "DELETE", _D + "/documents/{new_document}", status=204),
    Call(
        "getDocumentIndexingStatus",
        "GET",
        _D + "/documents/{batch}/indexing-status",
        wire.PROGRESS,
    ),
    Call(
        "createSegments",
        "POST",
        _C + "/segments",
        {"data": [wire.SEGMENT], "doc_form": str},
        body=lambda _: {"segments": [{"content": "Seals bark.", "keywords": ["seal"]}]},
    ),
    Call(
        "listSegments",
        "GET",
        _C + "/segments",
        wire.SEGMENTS,
        params={"page": 1, "limit": 5, "keyword": "otter", "status": ["completed", "error"]},
    ),
    Call("getSegment", "GET", _S, wire.SEGMENT_ANSWER),
    Call(
        "updateSegment",
        "POST",
        _S,
        wire.SEGMENT_ANSWER,
        body=lambda _: {"segment": {"content": "The walrus sleeps.", "enabled": True}},
    ),
    Call("deleteSegment", "DELETE", _C + "/segments/{new_segment}", status=204),
    Call(
        "createChildChunk",
        "POST",
        _CHILDREN,
        {"data": wire.CHILD},
        body=lambda _: {"content": "The oak has roots."},
    ),
    Call(
        "listChildChunks",
        "GET",
        _CHILDREN,
        wire.CHILDREN,
        params={"page": 1, "limit": 20, "keyword": "oak"},
    ),
    Call(
        "updateChildChunk",
        "PATCH",
        _CHILDREN + "/{child}",
        {"data": wire.CHILD},
        body=lambda _: {"content": "The oak is very tall."},
    ),
    Call("deleteChildChunk", "DELETE", _CHILDREN + "/{new_child}", status=204),
    Call("listMetadata", "GET", _D + "/metadata", wire.FIELDS),
    Call(
        "createMetadata",
        "POST",
        _D + "/metadata",
        wire.FIELD,
        status=201,
        body=lambda _: {"name": fresh_name("field"), "type": "number"},
    ),
    Call(
        "updateMetadata",
        "PATCH",
        _D + "/metadata/{new_field}",
        wire.FIELD,
        body=lambda _: {"name": fresh_name("field")},
    ),
    Call("deleteMetadata", "DELETE", _D + "/metadata/{new_field}", status=204),
    Call("listBuiltInMetadata", "GET", _D + "/metadata/built-in", wire.BUILT_IN),
    Call("updateBuiltInMetadata", "POST", _D + "/metadata/built-in/enable", wire.SUCCESS),
    Call(
        "updateDocumentsMetadata",
        "POST",
        _D + "/documents/metadata",
        wire.SUCCESS,
        body=assignment,
    ),
    Call("hitTesting", "POST", _D + "/hit-testing", wire.FOUND, body=_search),
    Call("retrieve", "POST", _D + "/retrieve", wire.FOUND, body=_search),
    Call(
        "listDatasourcePlugins",
        "GET",
        _D + "/pipeline/datasource-plugins",
        wire.ERROR,
        status=404,
        params={"is_published": True},
    ),
    Call(
        "runDatasourceNode",
        "POST",
        _D + "/pipeline/datasource/nodes/node/run",
        wire.ERROR,
        status=404,
        body=run_node,
    ),
    Call(
        "runPipeline",
        "POST",
        _D + "/pipeline/run",
        wire.ERROR,
        status=404,
        body=run_pipeline,
    ),
    Call(
        "uploadPipelineFile",
        "POST",
        "/datasets/pipeline/file-upload",
        wire.PIPELINE_FILE,
        status=201,
        file=_FILE,
    ),
]


@pytest.fixture(scope="module")
def world(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with open_world(tmp_path_factory.mktemp("world")) as opened:
        yield opened


@pytest.mark.sqlite_only
@pytest.mark.parametrize("call", CALLS, ids=str)
def test_the_node_library_gets_what_it_reads(call: Call, world: World) -> None:
    body = check(send_node(world, call), call)
    if call.name in ("hitTesting", "retrieve"):
        (record,) = body["records"]
        assert "otter" in record["segment"]["content"].lower()
