"""Every call that the contract's Python client library makes, as it makes it, over real HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.api import wire
from tests.api.conformance import Call, assignment, check, run_node, run_pipeline, send_python
from tests.api.world import World, open_world
from tests.kb.api import fresh_name

_D = "/datasets/{dataset}"
_C = _D + "/documents/{document}"


def _by_text(_: World) -> Any:
    return {
        "indexing_technique": "high_quality",
        "process_rule": {"mode": "automatic"},
        "name": fresh_name("book"),
        "text": "The walrus sleeps on the ice.",
    }


CALLS = [
    Call(
        "create_dataset", "POST", "/datasets", wire.DATASET, body=lambda _: {"name": fresh_name()}
    ),
    Call(
        "list_datasets",
        "GET",
        "/datasets",
        wire.page_of(wire.DATASET),
        params={"page": 1, "limit": 20},
    ),
    Call(
        "create_document_by_text",
        "POST",
        "/datasets/{family}/document/create_by_text",
        wire.ACCEPTED,
        body=_by_text,
    ),
    Call(
        "update_document_by_text",
        "POST",
        _D + "/documents/{new_document}/update_by_text",
        wire.ACCEPTED,
        body=lambda _: {"name": fresh_name("book"), "text": "The walrus wakes."},
    ),
    Call(
        "create_document_by_file",
        "POST",
        _D + "/document/create_by_file",
        wire.ACCEPTED,
        data=lambda world: {
            "process_rule": {"mode": "automatic"},
            "indexing_technique": "high_quality",
            "original_document_id": world["new_document"],
        },
        file=("walrus.txt", b"The walrus sleeps."),
    ),
    Call(
        "update_document_by_file",
        "POST",
        _D + "/documents/{new_document}/update_by_file",
        wire.ACCEPTED,
        data=lambda _: {},
        file=("walrus.txt", b"The walrus wakes."),
    ),
    Call(
        "batch_indexing_status",
        "GET",
        _D + "/documents/{batch}/indexing-status",
        wire.PROGRESS,
    ),
    Call("delete_dataset", "DELETE", "/datasets/{new_dataset}", status=204),
    Call("delete_document", "DELETE", _D + "/documents/{new_document}", status=204),
    Call(
        "list_documents",
        "GET",
        _D + "/documents",
        wire.page_of(wire.DOCUMENT),
        params={"page": 1, "limit": 20, "keyword": "book"},
    ),
    Call(
        "add_segments",
        "POST",
        _C + "/segments",
        {"data": [wire.SEGMENT], "doc_form": str},
        body=lambda _: {"segments": [{"content": "Seals bark.", "answer": "1", "keywords": ["a"]}]},
    ),
    Call(
        "query_segments",
        "GET",
        _C + "/segments",
        wire.SEGMENTS,
        params={"keyword": "walrus", "status": "completed", "user": "me"},
    ),
    Call(
        "delete_document_segment",
        "DELETE",
        _C + "/segments/{new_segment}",
        status=204,
    ),
    Call(
        "update_document_segment",
        "POST",
        _C + "/segments/{new_segment}",
        wire.SEGMENT_ANSWER,
        body=lambda _: {"segment": {"content": "Seals swim.", "keyword": ["a"], "enabled": True}},
    ),
    Call(
        "hit_testing",
        "POST",
        _D + "/hit-testing",
        wire.FOUND,
        body=lambda _: {
            "query": "otter",
            "retrieval_model": {
                "search_method": "keyword_search",
                "reranking_enable": False,
                "reranking_mode": None,
                "reranking_model": {"reranking_provider_name": "", "reranking_model_name": ""},
                "weights": None,
                "top_k": 1,
                "score_threshold_enabled": False,
                "score_threshold": None,
            },
            "external_retrieval_model": {"top_k": 1},
        },
    ),
    Call("get_dataset_metadata", "GET", _D + "/metadata", wire.FIELDS),
    Call(
        "create_dataset_metadata",
        "POST",
        _D + "/metadata",
        wire.FIELD,
        status=201,
        body=lambda _: {"type": "string", "name": fresh_name("field")},
    ),
    Call(
        "update_dataset_metadata",
        "PATCH",
        _D + "/metadata/{new_field}",
        wire.FIELD,
        body=lambda _: {"name": fresh_name("field")},
    ),
    Call("get_built_in_metadata", "GET", _D + "/metadata/built-in", wire.BUILT_IN),
    Call(
        "manage_built_in_metadata",
        "POST",
        _D + "/metadata/built-in/disable",
        wire.SUCCESS,
        body=lambda _: {},
    ),
    Call(
        "update_documents_metadata",
        "POST",
        _D + "/documents/metadata",
        wire.SUCCESS,
        body=assignment,
    ),
    Call("list_dataset_tags", "GET", "/datasets/tags", [wire.TAG]),
    Call(
        "bind_dataset_tags",
        "POST",
        "/datasets/tags/binding",
        status=204,
        body=lambda world: {"tag_ids": [world["tag"]], "target_id": world["dataset"]},
    ),
    Call(
        "unbind_dataset_tag",
        "POST",
        "/datasets/tags/unbinding",
        status=204,
        body=lambda world: {"tag_id": world["new_tag"], "target_id": world["dataset"]},
    ),
    Call(
        "get_dataset_tags",
        "GET",
        _D + "/tags",
        {"data": [{"id": wire.identifier, "name": str}], "total": int},
    ),
    Call(
        "get_datasource_plugins",
        "GET",
        _D + "/pipeline/datasource-plugins",
        wire.ERROR,
        status=404,
        params={"is_published": True},
    ),
    Call(
        "run_datasource_node",
        "POST",
        _D + "/pipeline/datasource/nodes/node/run",
        wire.ERROR,
        status=404,
        body=run_node,
    ),
    Call(
        "run_rag_pipeline",
        "POST",
        _D + "/pipeline/run",
        wire.ERROR,
        status=404,
        body=run_pipeline,
    ),
    Call(
        "upload_pipeline_file",
        "POST",
        "/datasets/pipeline/file-upload",
        wire.PIPELINE_FILE,
        status=201,
        file=("walrus.txt", b"The walrus sleeps."),
    ),
    Call("get_dataset", "GET", _D, wire.DATASET),
    Call(
        "update_dataset",
        "PATCH",
        "/datasets/{new_dataset}",
        wire.DATASET_CHANGED,
        body=lambda _: {
            "name": fresh_name(),
            "description": "new",
            "indexing_technique": "economy",
            "retrieval_model": {"search_method": "keyword_search", "top_k": 3},
        },
    ),
    Call(
        "batch_update_document_status",
        "PATCH",
        _D + "/documents/status/disable",
        wire.SUCCESS,
        body=lambda world: {"document_ids": [world["new_document"]]},
    ),
    Call(
        "get_available_models",
        "GET",
        "/workspaces/current/models/model-types/text-embedding",
        wire.MODELS,
    ),
]


@pytest.fixture(scope="module")
def world(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with open_world(tmp_path_factory.mktemp("world")) as opened:
        yield opened


@pytest.mark.sqlite_only
@pytest.mark.parametrize("call", CALLS, ids=str)
def test_the_python_library_gets_what_it_reads(call: Call, world: World) -> None:
    check(send_python(world, call), call)


@pytest.mark.sqlite_only
@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/datasets?page=1&limit=5&user=me", 200),
        ("GET", _D + "?user=me", 200),
        ("GET", _D + "/documents?user=me", 200),
        ("GET", _C + "?user=me", 200),
        ("GET", _C + "/segments?user=me", 200),
        ("GET", _C + "/segments/{segment}?user=me", 200),
        ("GET", "/datasets/tags?user=me", 200),
        ("GET", _D + "/metadata?user=me", 200),
        ("DELETE", _D + "/documents/{new_document}?user=me", 204),
    ],
)
def test_a_content_type_without_a_body_and_unknown_parameters_are_passed_over(
    method: str, path: str, status: int, world: World
) -> None:
    answer = send_python(world, Call("any", method, path))
    assert answer.status_code == status, answer.text
