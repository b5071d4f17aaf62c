"""Routes of metadata: fields, the built-in ones, values of documents, and what answers show."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import select
from starlette.testclient import TestClient

from kb.db import reading
from kb.models import Job, JobKind
from tests.kb.api import (
    NOWHERE,
    add_dataset,
    api,
    document,
    fresh_name,
    indexed_text,
    keys,
    refused,
    resources_of,
)

BUILT_IN = [
    {"name": "document_name", "type": "string"},
    {"name": "uploader", "type": "string"},
    {"name": "upload_date", "type": "time"},
    {"name": "last_update_date", "type": "time"},
    {"name": "source", "type": "string"},
]


@pytest.fixture(scope="module")
def client(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """One process for all tests of this module."""
    limits = {"metadata_fields": 6, "metadata_assignments": 20, "metadata_value_chars": 50}
    with api(tmp_path_factory.mktemp("metadata"), limits=limits) as opened:
        yield opened


@pytest.fixture
def dataset(client: TestClient) -> str:
    """An empty dataset."""
    return add_dataset(client, fresh_name(), indexing_technique="economy")


def url(dataset: str, *parts: str) -> str:
    return "/".join([f"/v1/datasets/{dataset}/metadata", *parts])


def field(client: TestClient, dataset: str, name: str, type: str = "string") -> str:
    """A new field's id."""
    answer = client.post(url(dataset), json={"name": name, "type": type})
    assert answer.status_code == 201, answer.text
    assert answer.json() == {"id": answer.json()["id"], "name": name, "type": type}
    return str(answer.json()["id"])


def put(
    client: TestClient, dataset: str, document: str, values: dict[str, Any], **more: Any
) -> Any:
    """Assign values, by field id, to one document."""
    listed = [{"id": i, "name": "whatever", "value": value} for i, value in values.items()]
    operation = {"document_id": document, "metadata_list": listed, **more}
    return client.post(
        f"/v1/datasets/{dataset}/documents/metadata", json={"operation_data": [operation]}
    )


def values_of(client: TestClient, dataset: str, document_id: str) -> dict[str, Any]:
    """Name -> value as GET shows them."""
    shown = document(client, dataset, document_id)["doc_metadata"] or []
    assert all(set(one) == keys("id name type value") for one in shown)
    return {one["name"]: one["value"] for one in shown}


def listed(client: TestClient, dataset: str) -> list[tuple[str, str, int]]:
    """Name, type and count of every field."""
    answer = client.get(url(dataset))
    assert answer.status_code == 200, answer.text
    assert set(answer.json()) == {"doc_metadata", "built_in_field_enabled"}
    return [(one["name"], one["type"], one["count"]) for one in answer.json()["doc_metadata"]]


# -- fields


def test_fields_are_made_listed_renamed_and_deleted(client: TestClient, dataset: str) -> None:
    author = field(client, dataset, "author")
    field(client, dataset, "year", "number")
    field(client, dataset, "when", "time")
    wanted = [("author", "string", 0), ("year", "number", 0), ("when", "time", 0)]
    assert listed(client, dataset) == wanted
    answer = client.patch(url(dataset, author), json={"name": "writer"})
    assert (answer.status_code, answer.json()) == (
        200,
        {"id": author, "name": "writer", "type": "string"},
    )
    assert listed(client, dataset)[0] == ("writer", "string", 0)
    answer = client.delete(url(dataset, author))
    assert (answer.status_code, answer.content) == (204, b"")
    assert [name for name, _, _ in listed(client, dataset)] == ["year", "when"]


@pytest.mark.parametrize("name", [*(b["name"] for b in BUILT_IN), "taken", "", "  ", "x" * 256])
def test_a_name_that_cannot_be_used_is_refused(client: TestClient, dataset: str, name: str) -> None:
    field(client, dataset, "taken")
    other = field(client, dataset, "other")
    made = client.post(url(dataset), json={"name": name, "type": "string"})
    refused(made, 400, "invalid_param")
    refused(client.patch(url(dataset, other), json={"name": name}), 400, "invalid_param")
    assert [name for name, _, _ in listed(client, dataset)] == ["taken", "other"]


def test_a_field_may_keep_its_name_and_other_datasets_may_use_it(
    client: TestClient, dataset: str
) -> None:
    author = field(client, dataset, "author")
    assert client.patch(url(dataset, author), json={"name": "author"}).status_code == 200
    field(client, add_dataset(client, fresh_name()), "author", "number")


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"name": "a", "type": "boolean"}, "'boolean'"),
        ({"name": "a"}, "type is required"),
        ({"type": "string"}, "name is required"),
        ({"name": 3, "type": "string"}, "3"),
    ],
)
def test_a_field_that_cannot_be_is_refused(
    client: TestClient, dataset: str, body: dict[str, Any], named: str
) -> None:
    assert named in refused(client.post(url(dataset), json=body), 400, "invalid_param")


def test_a_dataset_has_as_many_fields_as_the_setting_says(client: TestClient, dataset: str) -> None:
    for number in range(6):
        field(client, dataset, f"f{number}", "number")
    answer = client.post(url(dataset), json={"name": "f6", "type": "number"})
    assert "KB_LIMITS__METADATA_FIELDS" in refused(answer, 400, "invalid_param")


def test_unknown_fields_and_datasets_are_not_found(client: TestClient, dataset: str) -> None:
    elsewhere = field(client, add_dataset(client, fresh_name()), "author")
    for id in (NOWHERE, elsewhere, "no-uuid"):
        refused(client.patch(url(dataset, id), json={"name": "x"}), 404, "not_found")
        refused(client.delete(url(dataset, id)), 404, "not_found")
    refused(client.get(url(NOWHERE)), 404, "not_found")
    refused(client.post(url(NOWHERE), json={"name": "a", "type": "string"}), 404, "not_found")
    refused(client.get(url(NOWHERE, "built-in")), 404, "not_found")
    refused(client.post(url(NOWHERE, "built-in", "enable")), 404, "not_found")


# -- values


def test_values_replace_all_or_are_merged(client: TestClient, dataset: str) -> None:
    doc = indexed_text(client, dataset, "guide", "The mast is tall.")
    assert document(client, dataset, doc)["doc_metadata"] is None
    author, year = field(client, dataset, "author"), field(client, dataset, "year", "number")
    answer = put(client, dataset, doc, {author: "Ann", year: 2024})
    assert (answer.status_code, answer.json()) == (200, {"result": "success"})
    assert values_of(client, dataset, doc) == {"author": "Ann", "year": 2024}
    assert put(client, dataset, doc, {author: "Bo"}, partial_update=True).status_code == 200
    assert values_of(client, dataset, doc) == {"author": "Bo", "year": 2024}
    assert put(client, dataset, doc, {year: None}, partial_update=True).status_code == 200
    assert values_of(client, dataset, doc) == {"author": "Bo", "year": None}
    assert listed(client, dataset) == [("author", "string", 1), ("year", "number", 1)]
    assert put(client, dataset, doc, {year: 1.5}).status_code == 200
    assert values_of(client, dataset, doc) == {"year": 1.5}
    assert listed(client, dataset) == [("author", "string", 0), ("year", "number", 1)]
    assert put(client, dataset, doc, {}).status_code == 200
    assert document(client, dataset, doc)["doc_metadata"] is None


def test_a_renamed_field_keeps_its_values_and_a_deleted_one_loses_them(
    client: TestClient, dataset: str
) -> None:
    doc = indexed_text(client, dataset, "guide", "The mast is tall.")
    author, year = field(client, dataset, "author"), field(client, dataset, "year", "number")
    put(client, dataset, doc, {author: "Ann", year: 2024})
    client.patch(url(dataset, author), json={"name": "writer"})
    assert values_of(client, dataset, doc) == {"writer": "Ann", "year": 2024}
    client.delete(url(dataset, author))
    assert values_of(client, dataset, doc) == {"year": 2024}
    field(client, dataset, "writer")
    assert values_of(client, dataset, doc) == {"year": 2024}


@pytest.mark.parametrize(
    ("type", "sent", "kept"),
    [
        ("string", "Ann", "Ann"),
        ("string", "", ""),
        ("string", 5, "5"),
        ("number", 5, 5),
        ("number", -0.25, -0.25),
        ("number", " 7 ", 7),
        ("number", "1e3", 1000.0),
        ("time", 1767225600, 1767225600),
        ("time", "2026-01-01", 1767225600.0),
        ("time", "2026-01-01T01:00:00.5+01:00", 1767225600.5),
    ],
)
def test_values_are_kept_as_their_type_has_them(
    client: TestClient, dataset: str, type: str, sent: Any, kept: Any
) -> None:
    doc = indexed_text(client, dataset, "guide", "The mast is tall.")
    assert put(client, dataset, doc, {field(client, dataset, "f", type): sent}).status_code == 200
    assert values_of(client, dataset, doc) == {"f": kept}


@pytest.mark.parametrize(
    ("type", "sent"),
    [
        ("number", "tall"),
        ("number", ""),
        ("number", "0x10"),
        ("number", "nan"),
        ("number", "1_0"),
        ("number", 10**400),
        ("time", "yesterday"),
        ("time", "2026-13-01"),
    ],
)
def test_a_value_of_another_type_is_refused_and_nothing_is_changed(
    client: TestClient, dataset: str, type: str, sent: Any
) -> None:
    doc = indexed_text(client, dataset, "guide", "The mast is tall.")
    author, f = field(client, dataset, "author"), field(client, dataset, "f", type)
    said = refused(put(client, dataset, doc, {author: "Ann", f: sent}), 400, "invalid_param")
    assert "'f'" in said
    assert type in said
    assert repr(sent)[:20] in said
    assert values_of(client, dataset, doc) == {}


@pytest.mark.parametrize("sent", [True, [1], {"a": 1}])
def test_a_value_is_a_text_or_a_number(client: TestClient, dataset: str, sent: Any) -> None:
    doc = indexed_text(client, dataset, "guide", "The mast is tall.")
    answer = put(client, dataset, doc, {field(client, dataset, "f"): sent})
    refused(answer, 400, "invalid_param")


def test_bounds_of_a_bulk_call_are_settings(client: TestClient, dataset: str) -> None:
    doc = indexed_text(client, dataset, "guide", "The mast is tall.")
    f = field(client, dataset, "f")
    said = refused(put(client, dataset, doc, {f: "x" * 51}), 400, "invalid_param")
    assert "KB_LIMITS__METADATA_VALUE_CHARS" in said
    operation = {"document_id": doc, "metadata_list": [{"id": f, "name": "f", "value": "x"}]}
    body = {"operation_data": [operation] * 21}
    answer = client.post(f"/v1/datasets/{dataset}/documents/metadata", json=body)
    assert "KB_LIMITS__METADATA_ASSIGNMENTS" in refused(answer, 400, "invalid_param")
    body["operation_data"].pop()
    answer = client.post(f"/v1/datasets/{dataset}/documents/metadata", json=body)
    assert answer.status_code == 200


def test_an_unknown_document_or_field_is_not_found_and_nothing_is_changed(
    client: TestClient, dataset: str
) -> None:
    doc = indexed_text(client, dataset, "guide", "The mast is tall.")
    f = field(client, dataset, "f")
    elsewhere = add_dataset(client, fresh_name(), indexing_technique="economy")
    other_field = field(client, elsewhere, "f")
    other_doc = indexed_text(client, elsewhere, "guide", "The mast is tall.")
    for id in (NOWHERE, "no-uuid", other_field):
        refused(put(client, dataset, doc, {f: "x", id: "y"}), 404, "not_found")
    for id in (NOWHERE, "no-uuid", other_doc):
        operations = [
            {"document_id": d, "metadata_list": [{"id": f, "name": "f", "value": "x"}]}
            for d in (doc, id)
        ]
        answer = client.post(
            f"/v1/datasets/{dataset}/documents/metadata", json={"operation_data": operations}
        )
        refused(answer, 404, "not_found")
    assert values_of(client, dataset, doc) == {}


def test_a_document_that_is_named_twice_gets_both_in_order(
    client: TestClient, dataset: str
) -> None:
    doc = indexed_text(client, dataset, "guide", "The mast is tall.")
    a, b = field(client, dataset, "a"), field(client, dataset, "b")
    operations = [
        {"document_id": doc, "metadata_list": [{"id": a, "name": "a", "value": "1"}]},
        {
            "document_id": doc,
            "metadata_list": [{"id": b, "name": "b", "value": "2"}],
            "partial_update": True,
        },
    ]
    answer = client.post(
        f"/v1/datasets/{dataset}/documents/metadata", json={"operation_data": operations}
    )
    assert answer.status_code == 200
    assert values_of(client, dataset, doc) == {"a": "1", "b": "2"}


def test_no_job_is_left_once_a_call_has_returned(client: TestClient, dataset: str) -> None:
    doc = indexed_text(client, dataset, "guide", "The mast is tall.")
    put(client, dataset, doc, {field(client, dataset, "f"): "x"})
    client.post(url(dataset, "built-in", "enable"))
    with reading(resources_of(client).sessions) as session:
        payloads = session.scalars(
            select(Job.payload).where(Job.kind == JobKind.LABEL_DOCUMENTS)
        ).all()
    assert dataset not in {payload["dataset_id"] for payload in payloads}


# -- built-in fields


def test_built_in_fields_are_listed_for_a_dataset_and_for_all(
    client: TestClient, dataset: str
) -> None:
    for path in (url(dataset, "built-in"), "/v1/datasets/metadata/built-in"):
        answer = client.get(path)
        assert (answer.status_code, answer.json()) == (200, {"fields": BUILT_IN})
    without = client.get("/v1/datasets/metadata/built-in", headers={"Authorization": "Bearer x"})
    refused(without, 401, "unauthorized")


def test_built_in_fields_come_and_go_with_their_switch(client: TestClient, dataset: str) -> None:
    doc = indexed_text(client, dataset, "guide", "The mast is tall.")
    author = field(client, dataset, "author")
    put(client, dataset, doc, {author: "Ann"})
    for _ in range(2):
        answer = client.post(url(dataset, "built-in", "enable"))
        assert (answer.status_code, answer.json()) == (200, {"result": "success"})
    shown = document(client, dataset, doc)
    entries = shown["doc_metadata"]
    assert [(e["name"], e["type"]) for e in entries] == [("author", "string")] + [
        (b["name"], b["type"]) for b in BUILT_IN
    ]
    assert [e["id"] for e in entries] == [author] + 5 * ["built-in"]
    values = values_of(client, dataset, doc)
    assert values["document_name"] == "guide"
    assert values["uploader"] == "owner"
    assert values["source"] == "file_upload"
    assert int(float(values["upload_date"])) == shown["created_at"]
    assert int(float(values["last_update_date"])) == shown["updated_at"]
    assert isinstance(values["upload_date"], str)
    assert client.get(url(dataset)).json()["built_in_field_enabled"] is True
    (of_list,) = client.get(f"/v1/datasets/{dataset}/documents").json()["data"]
    assert of_list["doc_metadata"] == entries
    assert put(client, dataset, doc, {e["id"]: e["value"] for e in entries}).status_code == 200
    assert values_of(client, dataset, doc) == values
    detail = client.get(f"/v1/datasets/{dataset}").json()
    assert detail["built_in_field_enabled"] is True
    assert [(f["id"], f["name"]) for f in detail["doc_metadata"]] == [(author, "author")] + [
        ("built-in", b["name"]) for b in BUILT_IN
    ]
    assert client.post(url(dataset, "built-in", "disable")).status_code == 200
    assert values_of(client, dataset, doc) == {"author": "Ann"}
    assert client.get(url(dataset)).json()["built_in_field_enabled"] is False


def test_an_unknown_action_on_the_switch_is_refused(client: TestClient, dataset: str) -> None:
    said = refused(client.post(url(dataset, "built-in", "explode")), 400, "invalid_param")
    assert "enable or disable" in said


def test_metadata_is_shown_alone_or_left_out(client: TestClient, dataset: str) -> None:
    doc = indexed_text(client, dataset, "guide", "The mast is tall.")
    put(client, dataset, doc, {field(client, dataset, "author"): "Ann"})
    path = f"/v1/datasets/{dataset}/documents/{doc}"
    only = client.get(f"{path}?metadata=only").json()
    assert set(only) == {"id", "doc_type", "doc_metadata"}
    assert only["doc_metadata"][0]["value"] == "Ann"
    assert "doc_metadata" not in client.get(f"{path}?metadata=without").json()
    refused(client.get(f"{path}?metadata=bogus"), 400, "invalid_metadata")
