"""Routes of datasets: every key of the wire shape; the rules of create, list, change, delete."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import func, select, update
from starlette.testclient import TestClient

from kb.db import now, reading, transaction
from kb.models import Dataset, Document, IndexingStatus, Job, Segment, UploadFile
from tests.kb.api import (
    NOWHERE,
    add_dataset,
    add_text,
    api,
    fresh_name,
    indexed_text,
    keys,
    refused,
    resources_of,
)

KEYS = keys(
    """id name description provider permission data_source_type indexing_technique app_count
    document_count word_count created_by author_name created_at updated_by updated_at
    embedding_model embedding_model_provider embedding_available retrieval_model_dict
    summary_index_setting tags doc_form external_knowledge_info external_retrieval_model
    doc_metadata built_in_field_enabled pipeline_id runtime_mode chunk_structure icon_info
    is_published total_documents total_available_documents enable_api is_multimodal"""
)
DEFAULT_MODEL = {
    "search_method": "semantic_search",
    "reranking_enable": False,
    "reranking_mode": None,
    "reranking_model": {"reranking_provider_name": "", "reranking_model_name": ""},
    "weights": None,
    "top_k": 2,
    "score_threshold_enabled": False,
    "score_threshold": None,
}
HYBRID = {
    "search_method": "hybrid_search",
    "reranking_enable": False,
    "reranking_mode": "weighted_score",
    "reranking_model": {"reranking_provider_name": "", "reranking_model_name": ""},
    "weights": {
        "weight_type": "customized",
        "vector_setting": {
            "vector_weight": 0.7,
            "embedding_provider_name": "local",
            "embedding_model_name": "all-MiniLM-L6-v2",
        },
        "keyword_setting": {"keyword_weight": 0.3},
    },
    "top_k": 4,
    "score_threshold_enabled": True,
    "score_threshold": 0.25,
}


@pytest.fixture(scope="module")
def client(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """One embedded process for all tests of this module."""
    with api(tmp_path_factory.mktemp("datasets")) as opened:
        yield opened


def create(client: TestClient, **body: Any) -> dict[str, Any]:
    answer = client.post("/v1/datasets", json={"name": fresh_name(), **body})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def unprocessable(answer: Any) -> list[dict[str, Any]]:
    """The validator's errors of a 422."""
    errors = json.loads(refused(answer, 422, "unprocessable_entity"))
    assert isinstance(errors, list)
    assert all({"type", "loc", "msg"} <= set(error) for error in errors)
    return errors


# --- create --------------------------------------------------------------------------------------


def test_a_new_dataset_has_every_key_of_the_contract_and_its_defaults(client: TestClient) -> None:
    before = int(time.time())
    name = fresh_name()
    answer = client.post("/v1/datasets", json={"name": name})
    assert answer.status_code == 200
    body = answer.json()
    assert set(body) == KEYS
    assert uuid.UUID(body["id"]).version == 4
    assert uuid.UUID(body["created_by"])
    assert body["updated_by"] == body["created_by"]
    assert before <= body["created_at"] <= body["updated_at"] <= time.time()
    assert isinstance(body["created_at"], int)
    expected: dict[str, Any] = {
        "name": name,
        "description": "",
        "provider": "vendor",
        "permission": "only_me",
        "data_source_type": None,
        "indexing_technique": None,
        "app_count": 0,
        "document_count": 0,
        "word_count": 0,
        "author_name": "owner",
        "embedding_model": None,
        "embedding_model_provider": None,
        "embedding_available": None,
        "retrieval_model_dict": DEFAULT_MODEL,
        "summary_index_setting": None,
        "tags": [],
        "doc_form": None,
        "external_knowledge_info": None,
        "external_retrieval_model": {
            "top_k": 2,
            "score_threshold": 0.0,
            "score_threshold_enabled": None,
        },
        "doc_metadata": [],
        "built_in_field_enabled": False,
        "pipeline_id": None,
        "runtime_mode": "general",
        "chunk_structure": None,
        "icon_info": None,
        "is_published": False,
        "total_documents": 0,
        "total_available_documents": 0,
        "enable_api": True,
        "is_multimodal": False,
    }
    assert {key: body[key] for key in expected} == expected


def test_a_high_quality_dataset_gets_the_server_s_model_and_keeps_its_retrieval_model(
    client: TestClient,
) -> None:
    body = create(
        client,
        description="Field manual",
        indexing_technique="high_quality",
        permission="all_team_members",
        retrieval_model=HYBRID,
        summary_index_setting={"enable": False, "model_name": "m", "other": 1},
    )
    assert body["indexing_technique"] == "high_quality"
    assert (body["embedding_model"], body["embedding_model_provider"]) == (
        "all-MiniLM-L6-v2",
        "local",
    )
    assert body["permission"] == "all_team_members"
    assert body["description"] == "Field manual"
    assert body["retrieval_model_dict"] == HYBRID
    assert body["external_retrieval_model"] == {
        "top_k": 4,
        "score_threshold": 0.25,
        "score_threshold_enabled": True,
    }
    assert body["summary_index_setting"] == {
        "enable": False,
        "model_name": "m",
        "model_provider_name": None,
        "summary_prompt": None,
    }


def test_an_economy_dataset_keeps_no_embedding_fields(client: TestClient) -> None:
    body = create(
        client, indexing_technique="economy", embedding_model="x", embedding_model_provider="y"
    )
    assert body["embedding_model"] is None
    assert body["embedding_model_provider"] is None


@pytest.mark.parametrize(
    "body",
    [
        {"embedding_model": "bge-m3", "embedding_model_provider": "vendor/bge/bge"},
        {"embedding_model": "bge-m3"},
        {"embedding_model": "all-MiniLM-L6-v2", "embedding_model_provider": "vendor/bge/bge"},
    ],
)
def test_an_embedding_model_that_is_not_configured_is_refused_and_the_one_that_is_named(
    client: TestClient, body: dict[str, Any]
) -> None:
    answer = client.post(
        "/v1/datasets", json={"name": fresh_name(), "indexing_technique": "high_quality", **body}
    )
    message = refused(answer, 400, "invalid_param")
    assert "all-MiniLM-L6-v2" in message
    assert "'local'" in message


def test_a_null_means_what_an_absent_key_means_and_unknown_keys_are_ignored(
    client: TestClient,
) -> None:
    body = create(
        client,
        description=None,
        permission=None,
        provider=None,
        indexing_technique=None,
        retrieval_model={"top_k": None, "reranking_enable": None, "search_method": None},
        partial_member_list=[{"user_id": NOWHERE}],
        nonsense={"a": [1]},
    )
    assert body["description"] == ""
    assert body["permission"] == "only_me"
    assert body["provider"] == "vendor"
    assert body["retrieval_model_dict"] == DEFAULT_MODEL
    assert "partial_member_list" not in body


@pytest.mark.parametrize(
    ("model", "shown"),
    [
        ({}, DEFAULT_MODEL),
        ({"top_k": "7"}, DEFAULT_MODEL | {"top_k": 7}),
        ({"search_method": "full_text_search"}, {"search_method": "full_text_search"}),
        ({"score_threshold": "0.5"}, {"score_threshold": 0.5, "score_threshold_enabled": False}),
        ({"reranking_enable": "true", "reranking_mode": "weighted_score"}, {"top_k": 2}),
    ],
)
def test_a_partial_retrieval_model_is_filled_with_defaults(
    client: TestClient, model: dict[str, Any], shown: dict[str, Any]
) -> None:
    body = create(client, retrieval_model=model)
    assert set(body["retrieval_model_dict"]) == set(DEFAULT_MODEL)
    assert body["retrieval_model_dict"] == DEFAULT_MODEL | body["retrieval_model_dict"] | shown


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "name"),
        ({"name": None}, "name"),
        ({"name": ""}, "name"),
        ({"name": "   "}, "name"),
        ({"name": "x" * 41}, "name"),
        ({"name": 7}, "name"),
        ({"name": "ok", "description": "x" * 401}, "description"),
        ({"name": "ok", "indexing_technique": "fast"}, "indexing_technique"),
        ({"name": "ok", "permission": "everybody"}, "permission"),
        ({"name": "ok", "provider": "elsewhere"}, "provider"),
        ({"name": "ok", "retrieval_model": {"search_method": "magic"}}, "search_method"),
        ({"name": "ok", "retrieval_model": {"top_k": "many"}}, "top_k"),
        ({"name": "ok", "retrieval_model": {"score_threshold": "nan"}}, "score_threshold"),
        ({"name": "ok", "retrieval_model": []}, "retrieval_model"),
        (
            {
                "name": "ok",
                "retrieval_model": {
                    "weights": {
                        "vector_setting": {"vector_weight": 0},
                        "keyword_setting": {"keyword_weight": 0},
                    }
                },
            },
            "weights",
        ),
        ([], None),
        ("text", None),
        (7, None),
    ],
)
def test_a_body_that_does_not_validate_is_422_with_a_json_list_of_errors(
    client: TestClient, body: Any, field: str | None
) -> None:
    errors = unprocessable(client.post("/v1/datasets", json=body))
    if field is not None:
        assert [field] == [error["loc"][-1] for error in errors]
        assert field in errors[0]["msg"]


@pytest.mark.parametrize("body", [b"", b"   ", b"null"])
def test_a_missing_body_counts_as_an_empty_object(client: TestClient, body: bytes) -> None:
    assert unprocessable(client.post("/v1/datasets", content=body))[0]["msg"] == "name is required"


@pytest.mark.parametrize("method", ["POST", "PATCH"])
@pytest.mark.parametrize(
    "body", [b"{", b"name=x", b"\xff\xfe{", b'{"name": NaN}', b'{"name": 1e999}', b"[" * 100_000]
)
def test_a_body_that_is_not_json_is_422_and_says_so(
    client: TestClient, method: str, body: bytes
) -> None:
    path = "/v1/datasets" if method == "POST" else f"/v1/datasets/{create(client)['id']}"
    error = unprocessable(client.request(method, path, content=body))[0]
    assert error["type"] == "json_invalid"
    assert "JSON" in error["msg"]


def test_the_error_of_a_huge_or_deep_value_quotes_it_briefly(client: TestClient) -> None:
    deep = json.dumps({"name": json.loads("[" * 300 + "]" * 300), "description": ["x" * 100_000]})
    answer = client.post("/v1/datasets", content=deep)
    assert [e["loc"] for e in unprocessable(answer)] == [["name"], ["description"]]


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ({"top_k": 0}, "top_k is 0"),
        ({"top_k": 10**30}, "KB_LIMITS__TOP_K"),
        (
            {
                "reranking_enable": True,
                "reranking_model": {
                    "reranking_provider_name": "vendor",
                    "reranking_model_name": "bge-reranker",
                },
            },
            "'bge-reranker' is not configured",
        ),
    ],
)
def test_a_retrieval_model_that_no_query_could_use_is_refused(
    client: TestClient, model: dict[str, Any], named: str
) -> None:
    answer = client.post("/v1/datasets", json={"name": fresh_name(), "retrieval_model": model})
    assert named in refused(answer, 400, "invalid_param")
    dataset = create(client)["id"]
    answer = client.patch(f"/v1/datasets/{dataset}", json={"retrieval_model": model})
    assert named in refused(answer, 400, "invalid_param")


def test_a_name_is_taken_once_exactly(client: TestClient) -> None:
    name = create(client)["name"]
    message = refused(
        client.post("/v1/datasets", json={"name": name}), 409, "dataset_name_duplicate"
    )
    assert name in message
    assert create(client, name=name.upper())["name"] == name.upper()


def test_of_many_creates_of_one_name_at_once_exactly_one_succeeds(client: TestClient) -> None:
    name = fresh_name()
    with ThreadPoolExecutor(16) as pool:
        answers = list(
            pool.map(lambda _: client.post("/v1/datasets", json={"name": name}), range(16))
        )
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 15


@pytest.mark.parametrize("name", ["x" * 40, "名" * 40, "🜁" * 40, " padded ", "a/b\\c%_"])
def test_names_of_up_to_40_characters_of_any_kind_are_kept_as_sent(
    client: TestClient, name: str
) -> None:
    body = create(client, name=name)
    assert body["name"] == name
    assert client.get(f"/v1/datasets/{body['id']}").json()["name"] == name


def test_nul_and_lone_surrogates_become_the_replacement_character(client: TestClient) -> None:
    number = fresh_name()
    for sent in (rb"a\u0000b\ud800c", b"a\\u0000b\xed\xa0\x80c"):
        body = b'{"name": "%s %s"}' % (sent, number.encode())
        answer = client.post("/v1/datasets", content=body)
        if answer.status_code == 409:  # the second spelling of the first name
            continue
        assert answer.json()["name"] == f"a\ufffdb\ufffdc {number}"


# --- list ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def five(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A workspace with five datasets."""
    with api(tmp_path_factory.mktemp("five"), working=False) as opened:
        for name in ("Alpha", "beta", "Gamma_1", "GAMMA%2", "delta"):
            add_dataset(opened, name)
        yield opened


@pytest.mark.parametrize(
    ("query", "names", "shown"),
    [
        ("", ["delta", "GAMMA%2", "Gamma_1", "beta", "Alpha"], (20, 5, 1, False)),
        ("?page=1&limit=2", ["delta", "GAMMA%2"], (2, 5, 1, True)),
        ("?page=3&limit=2", ["Alpha"], (2, 5, 3, False)),
        ("?page=1&limit=5", ["delta", "GAMMA%2", "Gamma_1", "beta", "Alpha"], (5, 5, 1, False)),
        ("?page=9", [], (20, 5, 9, False)),
        ("?page=2147483647&limit=100", [], (100, 5, 2147483647, False)),
        ("?limit=500", ["delta", "GAMMA%2", "Gamma_1", "beta", "Alpha"], (100, 5, 1, False)),
        ("?page=&limit=", ["delta", "GAMMA%2", "Gamma_1", "beta", "Alpha"], (20, 5, 1, False)),
        ("?keyword=gamma", ["GAMMA%2", "Gamma_1"], (20, 2, 1, False)),
        ("?keyword=_", ["Gamma_1"], (20, 1, 1, False)),
        ("?keyword=%25", ["GAMMA%2"], (20, 1, 1, False)),
        ("?keyword=gamma&limit=1", ["GAMMA%2"], (1, 2, 1, True)),
        ("?keyword=%00", [], (20, 0, 1, False)),
        ("?keyword=%ff%ed%a0%80", [], (20, 0, 1, False)),
        ("?include_all=true&user=me&x=1", ["delta", "GAMMA%2", "Gamma_1", "beta", "Alpha"], None),
    ],
)
def test_datasets_are_listed_newest_first_in_pages(
    five: TestClient, query: str, names: list[str], shown: tuple[int, int, int, bool] | None
) -> None:
    body = five.get(f"/v1/datasets{query}").json()
    assert set(body) == {"data", "has_more", "limit", "total", "page"}
    assert [row["name"] for row in body["data"]] == names
    assert all(set(row) == KEYS for row in body["data"])
    if shown is not None:
        assert (body["limit"], body["total"], body["page"], body["has_more"]) == shown


@pytest.mark.parametrize("name", ["page", "limit"])
@pytest.mark.parametrize("value", ["x", "0", "-1", "1.5", "1_0", "٣", "9" * 30, "2147483648"])
def test_a_page_or_limit_that_is_no_positive_integer_is_refused(
    five: TestClient, name: str, value: str
) -> None:
    message = refused(five.get("/v1/datasets", params={name: value}), 400, "invalid_param")
    assert name in message


def test_reading_and_deleting_accept_a_json_content_type_without_a_body(client: TestClient) -> None:
    dataset = create(client)["id"]
    headers = {"Content-Type": "application/json"}
    assert client.get("/v1/datasets", headers=headers).status_code == 200
    assert client.get(f"/v1/datasets/{dataset}", headers=headers).status_code == 200
    answer = client.request("DELETE", f"/v1/datasets/{dataset}", headers=headers, content=b"")
    assert answer.status_code == 204


# --- show ----------------------------------------------------------------------------------------


def test_embedding_available_is_told_by_get_and_list(client: TestClient) -> None:
    rows = {
        technique: create(client, indexing_technique=technique)
        for technique in ("high_quality", "economy", None)
    }
    listed = {row["id"]: row for row in client.get("/v1/datasets?limit=100").json()["data"]}
    for row in rows.values():
        assert row["embedding_available"] is None
        assert client.get(f"/v1/datasets/{row['id']}").json()["embedding_available"] is True
        assert listed[row["id"]]["embedding_available"] is True


def test_a_dataset_whose_model_is_gone_says_that_it_cannot_embed(client: TestClient) -> None:
    dataset = create(client, indexing_technique="high_quality")["id"]
    with transaction(resources_of(client).sessions) as session:
        moved = update(Dataset).where(Dataset.id == uuid.UUID(dataset))
        session.execute(moved.values(space_name="another-model-00000000"))
    assert client.get(f"/v1/datasets/{dataset}").json()["embedding_available"] is False


@pytest.mark.parametrize(
    ("technique", "shown"),
    [("high_quality", "hybrid_search"), ("economy", "keyword_search"), (None, "keyword_search")],
)
def test_get_shows_keyword_search_unless_the_dataset_has_vectors(
    client: TestClient, technique: str | None, shown: str
) -> None:
    row = create(client, indexing_technique=technique, retrieval_model=HYBRID)
    assert row["retrieval_model_dict"]["search_method"] == "hybrid_search"
    body = client.get(f"/v1/datasets/{row['id']}").json()
    assert set(body) == KEYS
    assert body["retrieval_model_dict"] == HYBRID | {"search_method": shown}


def test_partial_member_list_is_shown_for_that_permission_and_after_every_change(
    client: TestClient,
) -> None:
    dataset = create(client)["id"]
    assert "partial_member_list" not in client.get(f"/v1/datasets/{dataset}").json()
    changed = client.patch(f"/v1/datasets/{dataset}", json={"permission": "partial_members"})
    assert set(changed.json()) == KEYS | {"partial_member_list"}
    assert client.get(f"/v1/datasets/{dataset}").json()["partial_member_list"] == []


def test_counts_tell_of_documents_characters_and_what_is_available(client: TestClient) -> None:
    dataset = add_dataset(client, fresh_name())
    indexed_text(client, dataset, "a", "12345 789")
    indexed_text(client, dataset, "b", "1234")
    hidden = indexed_text(client, dataset, "c", "12")
    with transaction(resources_of(client).sessions) as session:
        disabled = update(Document).where(Document.id == uuid.UUID(hidden)).values(enabled=False)
        session.execute(disabled)
    body = client.get(f"/v1/datasets/{dataset}").json()
    assert (body["document_count"], body["total_documents"]) == (3, 3)
    assert body["total_available_documents"] == 2
    assert body["word_count"] == 15
    assert (body["data_source_type"], body["doc_form"]) == ("upload_file", "text_model")


# --- change --------------------------------------------------------------------------------------


def test_only_the_keys_that_are_sent_are_changed(client: TestClient) -> None:
    row = create(client, description="old", retrieval_model=HYBRID)
    path = f"/v1/datasets/{row['id']}"
    changed = client.patch(path, json={"description": "new", "unknown": 1}).json()
    assert changed["description"] == "new"
    assert changed["embedding_available"] is None
    same = KEYS - {"description", "updated_at"}
    assert {k: changed[k] for k in same} == {k: row[k] for k in same}
    assert client.patch(path, json={}).json()["description"] == "new"
    assert client.patch(path).json()["description"] == "new"


def test_null_clears_the_description_and_nothing_else(client: TestClient) -> None:
    row = create(client, description="old", retrieval_model=HYBRID, indexing_technique="economy")
    nulls = dict.fromkeys(
        ["name", "description", "permission", "retrieval_model", "indexing_technique"]
    )
    changed = client.patch(f"/v1/datasets/{row['id']}", json=nulls).json()
    assert changed["description"] is None
    same = ("name", "permission", "indexing_technique", "retrieval_model_dict")
    assert [changed[key] for key in same] == [row[key] for key in same]


def test_a_retrieval_model_is_replaced_entirely(client: TestClient) -> None:
    path = f"/v1/datasets/{create(client, retrieval_model=HYBRID)['id']}"
    changed = client.patch(path, json={"retrieval_model": {"top_k": 9}}).json()
    assert changed["retrieval_model_dict"] == DEFAULT_MODEL | {"top_k": 9}


def test_a_dataset_can_be_renamed_but_not_to_a_name_that_is_taken(client: TestClient) -> None:
    taken, row = create(client)["name"], create(client)
    path = f"/v1/datasets/{row['id']}"
    message = refused(
        client.patch(path, json={"name": taken, "description": "x"}), 400, "invalid_param"
    )
    assert taken in message
    assert client.get(path).json()["description"] == ""
    assert client.patch(path, json={"name": row["name"]}).status_code == 200
    assert client.patch(path, json={"name": f"{row['name']}!"}).json()["name"] == f"{row['name']}!"


@pytest.mark.parametrize("body", [{"name": ""}, {"name": " "}, {"name": "x" * 41}, {"name": 1}, []])
def test_a_change_that_does_not_validate_is_422(client: TestClient, body: Any) -> None:
    unprocessable(client.patch(f"/v1/datasets/{create(client)['id']}", json=body))


def test_the_technique_of_an_empty_dataset_can_be_chosen_and_changed(client: TestClient) -> None:
    path = f"/v1/datasets/{create(client)['id']}"
    refused(client.patch(path, json={"embedding_model": "x"}), 400, "invalid_param")
    up = client.patch(path, json={"indexing_technique": "high_quality"}).json()
    assert up["embedding_model"] == "all-MiniLM-L6-v2"
    down = client.patch(path, json={"indexing_technique": "economy"}).json()
    assert (down["indexing_technique"], down["embedding_model"]) == ("economy", None)
    refused(
        client.patch(path, json={"indexing_technique": "high_quality", "embedding_model": "x"}),
        400,
        "invalid_param",
    )


def test_what_is_in_force_may_be_sent_again_and_changes_nothing(client: TestClient) -> None:
    dataset = add_dataset(client, fresh_name())
    indexed_text(client, dataset, "a", "Some text.")
    path = f"/v1/datasets/{dataset}"
    for same in (
        {"indexing_technique": "high_quality"},
        {"indexing_technique": "high_quality", "embedding_model": "all-MiniLM-L6-v2"},
    ):
        assert client.patch(path, json=same).status_code == 200
    refused(client.get(f"{path}/switch"), 404, "not_found")


# --- delete --------------------------------------------------------------------------------------


def test_a_deleted_dataset_is_gone_with_everything_it_held(client: TestClient) -> None:
    resources = resources_of(client)
    dataset = add_dataset(client, fresh_name())
    indexed_text(client, dataset, "a", "The walrus sleeps.")
    waiting = add_text(client, dataset, "b", "Not worked on yet.")
    with reading(resources.sessions) as session:
        files = set(
            session.scalars(
                select(UploadFile.blob_key)
                .join(Document, Document.upload_file_id == UploadFile.id)
                .where(Document.dataset_id == uuid.UUID(dataset))
            )
        )
    assert len(files) == 2
    answer = client.delete(f"/v1/datasets/{dataset}")
    assert (answer.status_code, answer.content) == (204, b"")
    for path in ("", "/documents", f"/documents/{waiting['batch']}/indexing-status"):
        refused(client.get(f"/v1/datasets/{dataset}{path}"), 404, "not_found")
    refused(client.delete(f"/v1/datasets/{dataset}"), 404, "not_found")
    ends = time.monotonic() + 30
    left = None
    while left != (0, 0, 0) and time.monotonic() < ends:
        time.sleep(0.05)
        with reading(resources.sessions) as session:
            mine = Segment.dataset_id == uuid.UUID(dataset)
            left = (
                session.scalar(select(func.count()).select_from(Segment).where(mine)),
                # One is for later: to look once more for what a killed worker may have written.
                session.scalar(
                    select(func.count()).select_from(Job).where(Job.not_before <= now())
                ),
                len(files & set(session.scalars(select(UploadFile.blob_key)))),
            )
    assert left == (0, 0, 0)
    assert not any(resources.blobs.exists(key) for key in files)


def test_a_dataset_can_be_deleted_while_a_document_is_in_work(client: TestClient) -> None:
    dataset = add_dataset(client, fresh_name())
    created = add_text(client, dataset, "a", "Some text.")
    with transaction(resources_of(client).sessions) as session:
        row = session.get_one(Document, uuid.UUID(created["document"]["id"]))
        row.indexing_status = IndexingStatus.SPLITTING
    assert client.delete(f"/v1/datasets/{dataset}").status_code == 204
