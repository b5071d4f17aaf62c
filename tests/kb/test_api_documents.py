"""Routes of documents: create by text and by file, list, show, text, retry, delete, progress."""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from starlette.testclient import TestClient

from kb.db import transaction
from kb.models import Document, IndexingStatus
from kb.settings import Limits
from tests.kb.api import (
    NOWHERE,
    add_dataset,
    add_file,
    add_text,
    api,
    contents,
    document,
    fresh_name,
    indexed_file,
    indexed_text,
    keys,
    refused,
    resources_of,
    segments,
    wait,
)
from tests.kb.server import LINES

FILES = Path(__file__).parents[1] / "data" / "extract"

KEYS = keys(
    """id name position data_source_type data_source_info data_source_detail_dict
    dataset_process_rule_id created_from created_by created_at tokens indexing_status error enabled
    archived disabled_at disabled_by display_status word_count hit_count doc_form doc_metadata
    summary_index_status need_summary"""
)
OUR_KEYS = keys("error_code")
DETAIL_KEYS = keys(
    """id position data_source_type data_source_info dataset_process_rule_id dataset_process_rule
    document_process_rule name created_from created_by created_at tokens indexing_status
    completed_at updated_at indexing_latency error enabled disabled_at disabled_by archived doc_type
    doc_metadata segment_count average_segment_length hit_count display_status doc_form doc_language
    summary_index_status need_summary"""
)
OUR_DETAIL_KEYS = keys(
    """error_code error_stage attempts next_attempt_at version pending_version warnings
    pipeline_timings"""
)
STATUS_KEYS = keys(
    """id indexing_status processing_started_at parsing_completed_at cleaning_completed_at
    splitting_completed_at completed_at paused_at error stopped_at completed_segments
    total_segments"""
)
AUTOMATIC = {
    "pre_processing_rules": [
        {"id": "remove_extra_spaces", "enabled": True},
        {"id": "remove_urls_emails", "enabled": False},
    ],
    "segmentation": {"delimiter": "\n", "max_tokens": 500, "chunk_overlap": 50},
}


@pytest.fixture(scope="module")
def client(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """One process with workers for all tests of this module."""
    with api(tmp_path_factory.mktemp("documents")) as opened:
        yield opened


@pytest.fixture(scope="module")
def idle(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """One process without workers and with small limits: what is uploaded stays waiting."""
    limits = Limits(file_bytes=100_000, text_chars=5_000, body_bytes=1_000_000)
    with api(tmp_path_factory.mktemp("idle"), working=False, limits=limits) as opened:
        yield opened


@pytest.fixture
def dataset(idle: TestClient) -> str:
    """A fresh dataset of the process without workers."""
    return add_dataset(idle, fresh_name())


def by_text(client: TestClient, dataset: str, **body: Any) -> Any:
    path = f"/v1/datasets/{dataset}/document/create-by-text"
    return client.post(path, json={"name": fresh_name("document"), "text": "Some text.", **body})


def by_file(client: TestClient, dataset: str, *parts: tuple[str, Any], **data: Any) -> Any:
    path = f"/v1/datasets/{dataset}/document/create-by-file"
    sent = [*parts, ("data", (None, json.dumps(data)))] if data else list(parts)
    return client.post(path, files=sent)


def a_file(name: str = "a.txt", content: bytes = b"Some text.") -> tuple[str, Any]:
    return ("file", (name, content, "text/plain"))


def change(client: TestClient, document_id: str, **values: Any) -> None:
    """Set columns that no route sets yet."""
    with transaction(resources_of(client).sessions) as session:
        mine = update(Document).where(Document.id == uuid.UUID(document_id))
        session.execute(mine.values(**values))


# --- create by text ------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ["create-by-text", "create_by_text"])
def test_an_accepted_text_has_every_key_of_the_contract(
    idle: TestClient, dataset: str, route: str
) -> None:
    body = {"name": "guide", "text": "Some text.", "process_rule": {"mode": "automatic"}}
    answer = idle.post(f"/v1/datasets/{dataset}/document/{route}", json=body)
    assert answer.status_code == 200
    assert set(answer.json()) == {"document", "batch"}
    row, batch = answer.json()["document"], answer.json()["batch"]
    assert set(row) == KEYS | OUR_KEYS
    assert re.fullmatch(r"20\d{12}[1-9]\d{5}", batch)
    upload = row["data_source_detail_dict"]["upload_file"]
    assert set(upload) == keys("id name size extension mime_type created_by created_at")
    assert isinstance(upload["created_at"], float)
    assert (upload["name"], upload["size"], upload["extension"]) == ("guide.txt", 10, "txt")
    expected: dict[str, Any] = {
        "name": "guide",
        "position": 1,
        "data_source_type": "upload_file",
        "data_source_info": {"upload_file_id": upload["id"]},
        "created_from": "api",
        "tokens": None,
        "indexing_status": "waiting",
        "error": None,
        "error_code": None,
        "enabled": True,
        "disabled_at": None,
        "disabled_by": None,
        "archived": False,
        "display_status": "queuing",
        "word_count": None,
        "hit_count": 0,
        "doc_form": "text_model",
        "doc_metadata": [],
        "summary_index_status": None,
        "need_summary": False,
    }
    assert {key: row[key] for key in expected} == expected
    assert uuid.UUID(row["dataset_process_rule_id"])
    assert uuid.UUID(row["created_by"])
    assert abs(row["created_at"] - time.time()) < 60
    listed = idle.get(f"/v1/datasets/{dataset}/documents").json()["data"]
    assert listed == [row]


def test_a_name_is_cut_to_200_characters_and_gets_no_suffix(idle: TestClient, dataset: str) -> None:
    assert by_text(idle, dataset, name="名" * 300).json()["document"]["name"] == "名" * 200
    assert by_text(idle, dataset, name="a/b.pdf").json()["document"]["name"] == "a/b.pdf"


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"name": None}, "name"),
        ({"name": ""}, "name is ''"),
        ({"name": " \n"}, "give the document a name"),
        ({"name": 5}, "name"),
        ({"text": None}, "text"),
        ({"text": ""}, "text is blank"),
        ({"text": " \n\u3000\t"}, "text is blank"),
        ({"text": ["x"]}, "text"),
        ({"text": "x" * 5_001}, "KB_LIMITS__TEXT_CHARS"),
        ({"indexing_technique": "fast"}, "'high_quality' or 'economy'"),
        ({"doc_form": "poem_model"}, "'text_model'"),
        ({"doc_language": "x" * 65}, "doc_language"),
        ({"process_rule": {"mode": "magic"}}, "'automatic'"),
        ({"process_rule": {}}, "process_rule.mode is required"),
        ({"process_rule": "automatic"}, "process_rule"),
        ({"process_rule": {"mode": "custom"}}, "process_rule.rules is missing"),
        ({"original_document_id": "nope"}, "original_document_id"),
        ({"retrieval_model": {"top_k": 101}}, "KB_LIMITS__TOP_K"),
        ({"duplicate": "perhaps"}, "duplicate"),
    ],
)
def test_a_setting_that_cannot_be_used_is_400_and_named(
    idle: TestClient, dataset: str, body: dict[str, Any], named: str
) -> None:
    assert named in refused(by_text(idle, dataset, **body), 400, "invalid_param")
    assert idle.get(f"/v1/datasets/{dataset}/documents").json()["total"] == 0


@pytest.mark.parametrize(
    ("body", "code", "named"),
    [
        (b"", "bad_request", "the body is empty; send a JSON object with name, text"),
        (b"null", "bad_request", "the body is empty"),
        (b"{", "bad_request", "not valid JSON"),
        (b"\xff{}", "bad_request", "not valid JSON"),
        (b"[" * 100_000, "bad_request", "nested too deeply"),
        (b'{"name": "a", "text": NaN}', "bad_request", "NaN"),
        (b"[]", "invalid_param", "send a JSON object with name, text"),
        (b'"text"', "invalid_param", "send a JSON object with name, text"),
        (b"{}", "invalid_param", "name is required\ntext is required"),
    ],
)
def test_a_body_that_is_no_json_object_is_400(
    idle: TestClient, dataset: str, body: bytes, code: str, named: str
) -> None:
    answer = idle.post(f"/v1/datasets/{dataset}/document/create-by-text", content=body)
    assert named in refused(answer, 400, code)


def test_an_upload_to_the_route_for_text_is_told_what_the_route_reads(
    idle: TestClient, dataset: str
) -> None:
    answer = idle.post(f"/v1/datasets/{dataset}/document/create-by-text", files=[a_file()])
    assert "reads a JSON object" in refused(answer, 400, "bad_request")


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_beyond_the_limit_is_413(idle: TestClient, dataset: str, announced: bool) -> None:
    body = json.dumps({"name": "a", "text": "x" * 1_000_000}).encode()
    sent: Any = body if announced else iter([body[:500_000], body[500_000:]])
    answer = idle.post(f"/v1/datasets/{dataset}/document/create-by-text", content=sent)
    assert "KB_LIMITS__BODY_BYTES" in refused(answer, 413, "request_entity_too_large")


def test_the_first_document_fixes_what_the_dataset_left_open(idle: TestClient) -> None:
    model = {"search_method": "full_text_search", "top_k": 7}
    dataset = idle.post("/v1/datasets", json={"name": fresh_name()}).json()["id"]
    message = refused(by_text(idle, dataset), 400, "invalid_param")
    assert "indexing_technique" in message
    first = by_text(
        idle,
        dataset,
        indexing_technique="high_quality",
        doc_form="hierarchical_model",
        retrieval_model=model,
        embedding_model="all-MiniLM-L6-v2",
        embedding_model_provider="local",
    )
    assert first.json()["document"]["doc_form"] == "hierarchical_model"
    row = idle.get(f"/v1/datasets/{dataset}").json()
    fixed = ("indexing_technique", "embedding_model", "data_source_type", "doc_form")
    assert [row[key] for key in fixed] == [
        "high_quality",
        "all-MiniLM-L6-v2",
        "upload_file",
        "hierarchical_model",
    ]
    assert row["retrieval_model_dict"] == row["retrieval_model_dict"] | model
    later = by_text(idle, dataset, indexing_technique="economy", retrieval_model={"top_k": 3})
    assert later.json()["document"]["doc_form"] == "hierarchical_model"
    assert idle.get(f"/v1/datasets/{dataset}").json() == row | {
        "document_count": 2,
        "total_documents": 2,
        "updated_at": row["updated_at"],
    }
    message = refused(by_text(idle, dataset, doc_form="text_model"), 400, "invalid_param")
    assert "'hierarchical_model'" in message


def test_hierarchical_documents_need_vectors(idle: TestClient) -> None:
    dataset = add_dataset(idle, fresh_name(), indexing_technique="economy")
    answer = by_text(idle, dataset, doc_form="hierarchical_model")
    assert "'high_quality'" in refused(answer, 400, "invalid_param")
    assert idle.get(f"/v1/datasets/{dataset}").json()["doc_form"] is None


def test_a_model_that_is_not_configured_refuses_the_first_document(idle: TestClient) -> None:
    dataset = idle.post("/v1/datasets", json={"name": fresh_name()}).json()["id"]
    answer = by_text(idle, dataset, indexing_technique="high_quality", embedding_model="bge-m3")
    assert "'all-MiniLM-L6-v2'" in refused(answer, 400, "invalid_param")
    assert idle.get(f"/v1/datasets/{dataset}").json()["indexing_technique"] is None


def test_strings_for_numbers_nulls_and_unknown_keys_are_accepted(
    idle: TestClient, dataset: str
) -> None:
    segmentation = {"separator": "\n", "max_tokens": "500", "chunk_overlap": "0", "x": 1}
    rule = {"mode": "custom", "rules": {"pre_processing_rules": [], "segmentation": segmentation}}
    created = by_text(
        idle,
        dataset,
        process_rule=rule,
        doc_language=None,
        indexing_technique="",
        doc_form="",
        original_document_id="",
        duplicate=None,
        retrieval_model=None,
        user="me",
        keyword={"deep": [{"er": 1}]},
    )
    row = document(idle, dataset, created.json()["document"]["id"])
    assert row["doc_language"] == "English"
    shown = row["document_process_rule"]["rules"]["segmentation"]
    assert shown == {"separator": "\n", "max_tokens": 500, "chunk_overlap": 0}


def test_nul_and_lone_surrogates_become_the_replacement_character_and_are_indexed(
    client: TestClient,
) -> None:
    dataset = add_dataset(client, fresh_name())
    body = rb'{"name": "a\u0000\udfff", "text": "The wal\ud800rus \u0000 sleeps \ud83d\ude00."}'
    answer = client.post(f"/v1/datasets/{dataset}/document/create-by-text", content=body)
    created = answer.json()
    assert created["document"]["name"] == "a\ufffd\ufffd"
    assert wait(client, dataset, created) == "completed"
    document_id = created["document"]["id"]
    assert contents(client, dataset, document_id) == ["The wal\ufffdrus \ufffd sleeps \U0001f600."]


@pytest.mark.parametrize("form", ["text_model", "hierarchical_model"])
@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.html", "a.csv"])
def test_a_file_with_nul_and_surrogates_is_indexed_or_fails_with_a_reason(
    client: TestClient, form: str, name: str
) -> None:
    dataset = add_dataset(client, fresh_name())
    data = b"The walrus,sleeps\x00 here\n\xed\xa0\x80 Some,more text \x00.\n" * 20
    rules: dict[str, Any] = {"parent_mode": "full-doc", "pre_processing_rules": []}
    rules |= {"subchunk_segmentation": {"separator": "\n", "max_tokens": 100}}
    settings: dict[str, Any] = {"doc_form": form}
    if form == "hierarchical_model":
        settings |= {"process_rule": {"mode": "hierarchical", "rules": rules}}
    created = add_file(client, dataset, name, data, **settings)
    status = wait(client, dataset, created)
    row = document(client, dataset, created["document"]["id"])
    if status == "error":
        assert row["error_code"] != "unexpected_error", row["error"]
    else:
        for text in contents(client, dataset, row["id"]):
            assert not set(text) & {"\x00", "\ud800"}


# --- same name, original_document_id -------------------------------------------------------------


def test_the_same_name_replaces_the_document_in_place(client: TestClient) -> None:
    dataset = add_dataset(client, fresh_name())
    other = indexed_text(client, dataset, "other", "Something else.")
    first = add_text(client, dataset, "guide", "The walrus sleeps.")
    assert wait(client, dataset, first) == "completed"
    second = add_text(client, dataset, "guide", "The otter swims.", doc_language="German")
    same = ("id", "name", "position", "created_at", "created_by")
    assert {k: second["document"][k] for k in same} == {k: first["document"][k] for k in same}
    assert second["batch"] != first["batch"]
    assert second["document"]["indexing_status"] == "waiting"
    assert second["document"]["data_source_info"] != first["document"]["data_source_info"]
    assert wait(client, dataset, second) == "completed"
    old = client.get(f"/v1/datasets/{dataset}/documents/{first['batch']}/indexing-status")
    refused(old, 404, "not_found")
    listing = client.get(f"/v1/datasets/{dataset}/documents").json()
    assert listing["total"] == 2
    assert {row["id"] for row in listing["data"]} == {other, second["document"]["id"]}
    row = document(client, dataset, second["document"]["id"])
    assert (row["version"], row["pending_version"], row["doc_language"]) == (2, None, "German")
    assert contents(client, dataset, row["id"]) == ["The otter swims."]


def test_the_old_text_answers_until_the_new_one_is_complete(client: TestClient) -> None:
    dataset = add_dataset(client, fresh_name())
    document_id = indexed_text(client, dataset, "guide", "The walrus sleeps.")
    add_text(
        client,
        dataset,
        "guide",
        "x" * 60,
        process_rule={
            "mode": "custom",
            "rules": {
                "pre_processing_rules": [],
                "segmentation": {"separator": "\n", "max_tokens": 49},
            },
        },
    )
    ends = time.monotonic() + 60
    while document(client, dataset, document_id)["indexing_status"] != "error":
        assert time.monotonic() < ends
        time.sleep(0.05)
    assert contents(client, dataset, document_id) == ["The walrus sleeps."]


@pytest.mark.parametrize("state", [{"enabled": False}, {"archived": True}])
def test_a_document_that_is_disabled_or_archived_is_not_replaced_by_name_or_id(
    idle: TestClient, dataset: str, state: dict[str, bool]
) -> None:
    first = add_text(idle, dataset, "guide", "Some text.")["document"]["id"]
    change(idle, first, **state)
    assert add_text(idle, dataset, "guide", "Some text.")["document"]["id"] != first
    message = refused(by_text(idle, dataset, original_document_id=first), 400, "invalid_param")
    assert "it first" in message


def test_duplicate_false_makes_a_second_document_of_the_same_name(
    idle: TestClient, dataset: str
) -> None:
    ids = {
        by_file(idle, dataset, a_file(), duplicate=False).json()["document"]["id"] for _ in range(2)
    }
    assert len(ids) == 2
    positions = idle.get(f"/v1/datasets/{dataset}/documents").json()["data"]
    assert [row["position"] for row in positions] == [2, 1]


def test_original_document_id_makes_the_upload_a_new_version_of_that_document(
    client: TestClient,
) -> None:
    dataset = add_dataset(client, fresh_name())
    first = add_text(client, dataset, "guide", "The walrus sleeps.")
    assert wait(client, dataset, first) == "completed"
    document_id = first["document"]["id"]
    second = add_file(
        client, dataset, "manual.txt", b"The otter swims.", original_document_id=document_id
    )
    assert second["document"]["id"] == document_id
    assert second["document"]["name"] == "manual.txt"
    assert second["batch"] == first["batch"]
    assert wait(client, dataset, second) == "completed"
    assert contents(client, dataset, document_id) == ["The otter swims."]
    assert client.get(f"/v1/datasets/{dataset}/documents").json()["total"] == 1


def test_an_original_document_of_another_dataset_is_not_found(
    idle: TestClient, dataset: str
) -> None:
    elsewhere = add_text(idle, add_dataset(idle, fresh_name()), "a", "Some text.")
    for document_id in (NOWHERE, elsewhere["document"]["id"]):
        answer = by_text(idle, dataset, original_document_id=document_id)
        assert document_id in refused(answer, 404, "not_found")
        answer = by_file(idle, dataset, a_file(), original_document_id=document_id)
        assert document_id in refused(answer, 404, "not_found")
    assert not list(resources_of(idle).blobs.keys("uploads/nothing"))


def test_a_refused_upload_leaves_no_file_behind(idle: TestClient, dataset: str) -> None:
    blobs = resources_of(idle).blobs
    before = set(blobs.keys())
    refused(by_text(idle, dataset, doc_form="qa_model"), 400, "provider_not_initialize")
    refused(by_file(idle, dataset, a_file(), original_document_id=NOWHERE), 404, "not_found")
    assert set(blobs.keys()) == before


# --- process rules -------------------------------------------------------------------------------


def test_a_document_without_a_rule_gets_the_dataset_s_latest_or_automatic(
    idle: TestClient, dataset: str
) -> None:
    first = document(idle, dataset, by_text(idle, dataset).json()["document"]["id"])
    assert first["dataset_process_rule"] == {"mode": "automatic", "rules": AUTOMATIC}
    assert first["document_process_rule"] == {
        "id": first["dataset_process_rule_id"],
        "dataset_id": dataset,
        "mode": "automatic",
        "rules": AUTOMATIC,
    }
    second = by_text(idle, dataset, process_rule=LINES).json()["document"]
    third = by_text(idle, dataset, process_rule=None).json()["document"]
    assert second["dataset_process_rule_id"] != first["dataset_process_rule_id"]
    assert third["dataset_process_rule_id"] == second["dataset_process_rule_id"]
    fourth = by_file(idle, dataset, a_file()).json()["document"]
    assert fourth["dataset_process_rule_id"] == second["dataset_process_rule_id"]
    shown = document(idle, dataset, first["id"])
    assert shown["dataset_process_rule"]["mode"] == "custom"
    assert shown["document_process_rule"]["mode"] == "automatic"


# --- create by file ------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ["create-by-file", "create_by_file"])
@pytest.mark.parametrize(
    "data",
    [
        (None, '{"process_rule": {"mode": "automatic"}}'),
        (None, '{"process_rule": {"mode": "automatic"}}', "text/plain"),
        (None, '{"process_rule": {"mode": "automatic"}}', "application/json"),
        ("blob", '{"process_rule": {"mode": "automatic"}}', "application/json"),
        (None, "\ufeff {}"),
        (None, ""),
        (None, "null"),
        None,
    ],
)
def test_settings_may_come_as_a_field_a_typed_part_or_not_at_all(
    idle: TestClient, dataset: str, route: str, data: Any
) -> None:
    parts = [a_file("guide.TXT")] + ([("data", data)] if data else [])
    answer = idle.post(f"/v1/datasets/{dataset}/document/{route}", files=parts)
    assert answer.status_code == 200, answer.text
    row = answer.json()["document"]
    assert set(row) == KEYS | OUR_KEYS
    upload = row["data_source_detail_dict"]["upload_file"]
    assert (row["name"], upload["name"], upload["extension"]) == ("guide.TXT", "guide.TXT", "txt")
    assert (upload["size"], upload["mime_type"]) == (10, "text/plain")


@pytest.mark.parametrize(
    ("parts", "code", "named"),
    [
        ([("data", (None, "{}"))], "no_file_uploaded", "one part named 'file'"),
        ([("document", ("a.txt", b"x"))], "no_file_uploaded", "one part named 'file'"),
        ([a_file("a.txt"), a_file("b.txt")], "too_many_files", "2 files"),
        ([("file", (None, b"Some text."))], "filename_not_exists_error", "filename="),
        ([("file", ("", b"Some text."))], "filename_not_exists_error", "filename="),
        ([("file", ("  ", b"Some text."))], "filename_not_exists_error", "filename="),
        ([a_file("dir/a.txt")], "invalid_param", "holds a path"),
        ([a_file("../../etc/a.txt")], "invalid_param", "holds a path"),
        ([a_file("dir\\a.txt")], "invalid_param", "holds a path"),
        ([a_file(), ("data", (None, "{broken"))], "invalid_param", "part 'data'"),
        ([a_file(), ("data", (None, "[]"))], "invalid_param", "part 'data'"),
        ([a_file(), ("data", (None, "[" * 100_000))], "invalid_param", "nested too deeply"),
        ([a_file(), ("data", ("d.json", b"\xff\xfe\xfd"))], "invalid_param", "part 'data'"),
        ([a_file(), ("data", (None, '{"top": NaN}'))], "invalid_param", "NaN"),
        (
            [a_file(), ("data", (None, '{"embedding_model_provider": "local"}'))],
            "invalid_param",
            "without an embedding_model",
        ),
        ([("data", (None, '{"process_rule": {"mode": "x"}}'))], "invalid_param", "mode"),
        ([a_file(), ("data", (None, "x" * 1_100_000))], "bad_request", "1024KB"),
    ],
)
def test_the_traps_of_a_multipart_body_are_400_with_their_codes(
    idle: TestClient, dataset: str, parts: list[Any], code: str, named: str
) -> None:
    answer = idle.post(f"/v1/datasets/{dataset}/document/create-by-file", files=parts)
    assert named in refused(answer, 400, code)


@pytest.mark.parametrize(
    ("content_type", "body", "code"),
    [
        (None, b"Some text.", "no_file_uploaded"),
        ("application/json", b"{}", "no_file_uploaded"),
        ("application/x-www-form-urlencoded", b"file=x", "no_file_uploaded"),
        ("multipart/form-data", b"x", "bad_request"),
        ("multipart/form-data; boundary=b", b"garbage", "bad_request"),
        ("multipart/form-data; boundary=b", b"", "no_file_uploaded"),
        ("multipart/form-data; boundary=b", b"--b\r\nX: y\r\n\r\nz\r\n--b--\r\n", "bad_request"),
        (
            "multipart/form-data; boundary=b; charset=undefined",
            b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nz\r\n--b--\r\n',
            "bad_request",
        ),
        (
            "multipart/form-data; boundary=b",  # the end is missing
            b'--b\r\nContent-Disposition: form-data; name="data"\r\n\r\n{',
            "no_file_uploaded",
        ),
    ],
)
def test_a_body_that_is_no_sound_multipart_is_400(
    idle: TestClient, dataset: str, content_type: str | None, body: bytes, code: str
) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    path = f"/v1/datasets/{dataset}/document/create-by-file"
    refused(idle.post(path, content=body, headers=headers), 400, code)


@pytest.mark.parametrize(
    "name", ["a.exe", "a.txt.zip", "a", ".txt", "a.", "..", "a.doc", "a.\u0000", "x" * 900]
)
def test_a_type_that_no_extractor_reads_is_415_and_the_others_are_listed(
    idle: TestClient, dataset: str, name: str
) -> None:
    answer = by_file(idle, dataset, a_file(name))
    message = refused(answer, 415, "unsupported_file_type")
    assert "csv" in message
    assert "docx" in message


@pytest.mark.parametrize(("size", "status"), [(100_000, 200), (100_001, 413), (3_000_000, 413)])
def test_a_file_beyond_the_limit_is_413(
    idle: TestClient, dataset: str, size: int, status: int
) -> None:
    answer = by_file(idle, dataset, a_file(content=b"x" * size))
    if status == 413:
        assert "KB_LIMITS__FILE_BYTES" in refused(answer, 413, "file_too_large")
    else:
        assert answer.status_code == 200


def test_an_upload_that_does_not_tell_its_size_is_413_when_it_is_too_large(
    idle: TestClient, dataset: str
) -> None:
    def in_pieces() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'
        yield from [b"x" * 100_000] * 30

    answer = idle.post(
        f"/v1/datasets/{dataset}/document/create-by-file",
        content=in_pieces(),
        headers={"Content-Type": "multipart/form-data; boundary=b"},
    )
    refused(answer, 413, "file_too_large")


def test_a_long_file_name_keeps_its_extension(idle: TestClient, dataset: str) -> None:
    answer = by_file(idle, dataset, a_file(f"{'n' * 300}.v2.TXT"))
    assert answer.json()["document"]["name"] == f"{'n' * 200}.txt"


@pytest.mark.parametrize(
    ("name", "code", "named"),
    [
        ("empty.txt", "empty_file", "0 bytes"),
        ("rc4-40.pdf", None, "rc4-40.pdf"),
        ("r6-user-password.pdf", "encrypted", "password"),
        ("empty.xlsx", "no_text", "empty.xlsx"),
        ("zen_of_python_corrupted.pdf", None, ""),
    ],
)
def test_a_file_that_cannot_be_indexed_ends_in_error_and_says_why(
    client: TestClient, name: str, code: str | None, named: str
) -> None:
    dataset = add_dataset(client, fresh_name())
    created = add_file(client, dataset, name, (FILES / name).read_bytes())
    status = wait(client, dataset, created)
    row = document(client, dataset, created["document"]["id"])
    if status == "completed":
        assert code is None
        return
    assert (row["display_status"], row["error_stage"]) == ("error", "parsing")
    assert code in (None, row["error_code"])
    assert named in row["error"]
    entry = client.get(f"/v1/datasets/{dataset}/documents/{created['batch']}/indexing-status")
    assert entry.json()["data"][0]["error"] == row["error"]
    assert client.get(f"/v1/datasets/{dataset}").json()["total_available_documents"] == 0


# --- list ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def listed(idle: TestClient) -> str:
    """A dataset with a document in each display status, created in this order."""
    dataset = add_dataset(idle, fresh_name())
    done = {"indexing_status": IndexingStatus.COMPLETED, "pending_version": None}
    states: dict[str, dict[str, Any]] = {
        "queuing": {"indexing_status": IndexingStatus.WAITING},
        "indexing 1": {"indexing_status": IndexingStatus.PARSING},
        "indexing_2": {"indexing_status": IndexingStatus.INDEXING},
        "paused": {"is_paused": True},
        "error%": {"indexing_status": IndexingStatus.ERROR},
        "available": done,
        "disabled": done | {"enabled": False},
        "archived": done | {"archived": True},
    }
    for name, values in states.items():
        change(idle, add_text(idle, dataset, name, "Some text.")["document"]["id"], **values)
    return dataset


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ({"status": "queuing"}, ["queuing"]),
        ({"status": "indexing"}, ["indexing_2", "indexing 1"]),
        ({"status": "paused"}, ["paused"]),
        ({"status": "error"}, ["error%"]),
        ({"status": "available"}, ["available"]),
        ({"status": "active"}, ["available"]),
        ({"status": "enabled"}, ["available"]),
        ({"status": "disabled"}, ["disabled"]),
        ({"status": "archived"}, ["archived"]),
        ({"keyword": "indexing"}, ["indexing_2", "indexing 1"]),
        ({"keyword": "_"}, ["indexing_2"]),
        ({"keyword": "%"}, ["error%"]),
        ({"keyword": "indexing", "status": "available"}, []),
        ({"keyword": "\x00"}, []),
    ],
)
def test_documents_are_filtered_by_display_status_and_by_name(
    idle: TestClient, listed: str, query: dict[str, str], names: list[str]
) -> None:
    body = idle.get(f"/v1/datasets/{listed}/documents", params=query).json()
    assert [row["name"] for row in body["data"]] == names
    assert body["total"] == len(names)
    if "status" in query:
        shown = {"active": "available", "enabled": "available"}.get(
            query["status"], query["status"]
        )
        assert {row["display_status"] for row in body["data"]} <= {shown}


@pytest.mark.parametrize("status", ["", "frozen", "completed"])
def test_an_unknown_status_is_ignored(idle: TestClient, listed: str, status: str) -> None:
    body = idle.get(f"/v1/datasets/{listed}/documents", params={"status": status}).json()
    assert body["total"] == 8


@pytest.mark.parametrize(
    ("query", "count", "limit", "has_more"),
    [
        ("", 8, 20, False),
        ("?limit=3", 3, 3, True),
        ("?limit=3&page=3", 2, 3, False),
        ("?limit=4&page=2", 4, 4, True),  # as the contract has it: a full last page says more
        ("?limit=8", 8, 8, True),
        ("?limit=500", 8, 500, False),  # echoed as sent
        ("?page=9", 0, 20, False),
        ("?page=2147483647&limit=2147483647", 0, 2147483647, False),
    ],
)
def test_pages_of_documents_echo_the_limit_and_tell_of_more_as_the_contract_does(
    idle: TestClient, listed: str, query: str, count: int, limit: int, has_more: bool
) -> None:
    body = idle.get(f"/v1/datasets/{listed}/documents{query}").json()
    assert set(body) == {"data", "has_more", "limit", "total", "page"}
    assert (len(body["data"]), body["limit"], body["has_more"]) == (count, limit, has_more)
    assert body["total"] == 8


def test_a_page_holds_at_most_the_rows_that_the_settings_allow(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    directory = tmp_path_factory.mktemp("rows")
    with api(directory, working=False, limits=Limits(page_rows=2)) as client:
        dataset = add_dataset(client)
        for _ in range(3):
            add_text(client, dataset, fresh_name(), "Some text.")
        body = client.get(f"/v1/datasets/{dataset}/documents?limit=3").json()
        assert (len(body["data"]), body["limit"], body["has_more"]) == (2, 3, False)


# --- show ----------------------------------------------------------------------------------------


def test_a_completed_document_has_every_key_of_the_contract(client: TestClient) -> None:
    dataset = add_dataset(client, fresh_name())
    text = "First line here.\nSecond line."
    created = add_text(client, dataset, "guide", text, process_rule=LINES)
    assert wait(client, dataset, created) == "completed"
    row = document(client, dataset, created["document"]["id"])
    assert set(row) == DETAIL_KEYS | OUR_DETAIL_KEYS
    upload = row["data_source_info"]["upload_file"]
    assert set(upload) == keys("id name size extension mime_type created_by created_at")
    expected: dict[str, Any] = {
        "name": "guide",
        "indexing_status": "completed",
        "display_status": "available",
        "segment_count": 2,
        "word_count": 28,
        "average_segment_length": 14,
        "hit_count": 0,
        "doc_type": None,
        "doc_metadata": None,
        "error": None,
        "error_code": None,
        "version": 1,
        "pending_version": None,
        "warnings": [],
        "doc_language": "English",
        "summary_index_status": None,
        "need_summary": False,
    }
    shown = row | {
        "word_count": client.get(f"/v1/datasets/{dataset}/documents").json()["data"][0][
            "word_count"
        ]
    }
    assert {key: shown[key] for key in expected} == expected
    assert row["tokens"] > 0
    assert row["created_at"] <= row["completed_at"] <= row["updated_at"]
    assert 0 <= row["indexing_latency"] < 60
    assert next(step["node"] for step in row["pipeline_timings"]) == "extract"
    assert row["dataset_process_rule"] == {
        "mode": "custom",
        "rules": row["document_process_rule"]["rules"],
    }


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", DETAIL_KEYS | OUR_DETAIL_KEYS),
        ("?metadata=all", DETAIL_KEYS | OUR_DETAIL_KEYS),
        ("?metadata=only", keys("id doc_type doc_metadata")),
        ("?metadata=without", (DETAIL_KEYS | OUR_DETAIL_KEYS) - keys("doc_type doc_metadata")),
        ("?metadata=all&user=me", DETAIL_KEYS | OUR_DETAIL_KEYS),
    ],
)
def test_metadata_says_which_part_of_a_document_is_shown(
    idle: TestClient, dataset: str, query: str, expected: frozenset[str]
) -> None:
    document_id = by_text(idle, dataset).json()["document"]["id"]
    answer = idle.get(f"/v1/datasets/{dataset}/documents/{document_id}{query}")
    assert answer.json().keys() == expected


@pytest.mark.parametrize("value", ["bogus", "", "x" * 5000])
def test_another_value_of_metadata_is_400(idle: TestClient, dataset: str, value: str) -> None:
    document_id = by_text(idle, dataset).json()["document"]["id"]
    answer = idle.get(f"/v1/datasets/{dataset}/documents/{document_id}", params={"metadata": value})
    assert "use all, only or without" in refused(answer, 400, "invalid_metadata")


# --- text and provenance -------------------------------------------------------------------------


def text_of(client: TestClient, dataset: str, document_id: str) -> str:
    answer = client.get(f"/v1/datasets/{dataset}/documents/{document_id}/text")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    return answer.text


@pytest.mark.parametrize("rule", [LINES, {"mode": "automatic"}])
def test_offsets_of_a_segment_point_at_its_text(client: TestClient, rule: dict[str, Any]) -> None:
    dataset = add_dataset(client, fresh_name())
    text = "\n".join(f"Zeile {n}: Größe 😀 「引用」 {'wort ' * (n % 40)}end." for n in range(60))
    document_id = indexed_text(client, dataset, "guide", text, process_rule=rule)
    assert text_of(client, dataset, document_id) == text
    rows = segments(client, dataset, document_id)
    assert len(rows) > 3
    for row in rows:
        assert text[row["source"]["start"] : row["source"]["end"]] == row["content"]


def test_offsets_of_a_cleaned_text_point_into_the_text_as_it_was(client: TestClient) -> None:
    dataset = add_dataset(client, fresh_name())
    text = "One    word.\n\n\n\nSee https://example.org/x or mail a@example.org   now. End."
    document_id = indexed_text(
        client,
        dataset,
        "guide",
        text,
        process_rule={
            "mode": "custom",
            "rules": {
                "pre_processing_rules": [
                    {"id": "remove_extra_spaces", "enabled": True},
                    {"id": "remove_urls_emails", "enabled": True},
                ],
                "segmentation": {"separator": "\n", "max_tokens": 500},
            },
        },
    )
    rows = segments(client, dataset, document_id)
    assert [row["content"] for row in rows] == ["One word.", "See  or mail  now. End."]
    spans = [text[row["source"]["start"] : row["source"]["end"]] for row in rows]
    assert spans == ["One    word.", text[text.index("See") :]]


def test_the_text_of_a_document_that_is_not_indexed_yet_is_404(
    idle: TestClient, dataset: str
) -> None:
    document_id = by_text(idle, dataset).json()["document"]["id"]
    answer = idle.get(f"/v1/datasets/{dataset}/documents/{document_id}/text")
    assert "waiting" in refused(answer, 404, "not_found")


def test_segments_of_a_pdf_name_their_pages(client: TestClient) -> None:
    dataset = add_dataset(client, fresh_name())
    document_id = indexed_file(client, dataset, FILES / "layout-parser-paper-fast.pdf")
    rows = segments(client, dataset, document_id)
    pages = [row["source"]["page"] for row in rows]
    assert pages == sorted(pages)
    assert set(pages) == {1, 2}
    assert "LayoutParser" in rows[0]["content"]


def test_segments_of_a_workbook_name_their_sheet_and_rows(client: TestClient) -> None:
    dataset = add_dataset(client, fresh_name())
    path = FILES / "merged_dates_sheets.xlsx"
    rows = segments(client, dataset, indexed_file(client, dataset, path))
    assert rows
    for row in rows:
        assert row["source"]["sheet"]
        first, last = row["source"]["rows"]
        assert 1 <= first <= last
    assert len({row["source"]["sheet"] for row in rows}) > 1


def test_segments_of_markdown_name_the_headings_they_stand_under(client: TestClient) -> None:
    dataset = add_dataset(client, fresh_name())
    text = b"# Birds\n\nIntro.\n\n## Owls\n\nOwls hunt at night.\n\n# Fish\n\nFish swim.\n"
    created = add_file(client, dataset, "animals.md", text, process_rule=LINES)
    assert wait(client, dataset, created) == "completed"
    rows = segments(client, dataset, created["document"]["id"])
    found = {row["content"]: row["source"].get("headings") for row in rows}
    assert found["Owls hunt at night."] == ["Birds", "Owls"]
    assert found["Fish swim."] == ["Fish"]


# --- progress ------------------------------------------------------------------------------------


def test_progress_has_every_key_of_the_contract(client: TestClient) -> None:
    dataset = add_dataset(client, fresh_name())
    text = "\n".join(f"Line number {n} about walruses." for n in range(30))
    created = add_text(client, dataset, "guide", text, process_rule=LINES)
    path = f"/v1/datasets/{dataset}/documents/{created['batch']}/indexing-status"
    seen, ends = [], time.monotonic() + 60
    while time.monotonic() < ends:
        (entry,) = client.get(path).json()["data"]
        seen.append(entry)
        if entry["indexing_status"] == "completed":
            break
    assert all(set(entry) == STATUS_KEYS for entry in seen)
    assert all(0 <= e["completed_segments"] <= e["total_segments"] <= 30 for e in seen)
    assert (entry["completed_segments"], entry["total_segments"]) == (30, 30)
    times = [
        entry[key]
        for key in (
            "processing_started_at",
            "parsing_completed_at",
            "cleaning_completed_at",
            "splitting_completed_at",
            "completed_at",
        )
    ]
    assert times == sorted(times)
    assert all(isinstance(moment, int) for moment in times)
    assert (entry["id"], entry["error"], entry["paused_at"]) == (
        created["document"]["id"],
        None,
        None,
    )


def test_a_paused_document_is_shown_as_paused(idle: TestClient, dataset: str) -> None:
    created = add_text(idle, dataset, "a", "Some text.")
    change(idle, created["document"]["id"], is_paused=True)
    path = f"/v1/datasets/{dataset}/documents/{created['batch']}/indexing-status"
    assert idle.get(path).json()["data"][0]["indexing_status"] == "paused"


@pytest.mark.parametrize(
    "batch", ["20260101120000483920", "nothing", NOWHERE, "%00", "９", "x" * 900]
)
def test_an_unknown_batch_is_404(idle: TestClient, dataset: str, batch: str) -> None:
    path = f"/v1/datasets/{dataset}/documents/{batch}/indexing-status"
    assert "batch" in refused(idle.get(path), 404, "not_found")


# --- delete and retry ----------------------------------------------------------------------------


def test_a_deleted_document_is_gone_at_once(client: TestClient) -> None:
    dataset = add_dataset(client, fresh_name())
    kept = indexed_text(client, dataset, "a", "The walrus sleeps.")
    gone = indexed_text(client, dataset, "b", "The walrus eats.")
    path = f"/v1/datasets/{dataset}/documents/{gone}"
    answer = client.request("DELETE", path, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.content) == (204, b"")
    for route in ("", "/segments", "/text"):
        refused(client.get(f"{path}{route}"), 404, "not_found")
    refused(client.delete(path), 404, "not_found")
    listing = client.get(f"/v1/datasets/{dataset}/documents").json()
    assert [row["id"] for row in listing["data"]] == [kept]


def test_a_waiting_document_can_be_deleted(idle: TestClient, dataset: str) -> None:
    document_id = by_text(idle, dataset).json()["document"]["id"]
    assert idle.delete(f"/v1/datasets/{dataset}/documents/{document_id}").status_code == 204


def test_an_archived_document_is_not_deleted(idle: TestClient, dataset: str) -> None:
    document_id = by_text(idle, dataset).json()["document"]["id"]
    change(idle, document_id, archived=True, indexing_status=IndexingStatus.COMPLETED)
    answer = idle.delete(f"/v1/datasets/{dataset}/documents/{document_id}")
    assert "un-archive" in refused(answer, 403, "archived_document_immutable")


@pytest.mark.parametrize("status", ["parsing", "cleaning", "splitting", "indexing"])
def test_a_document_in_work_is_not_deleted(idle: TestClient, dataset: str, status: str) -> None:
    document_id = by_text(idle, dataset).json()["document"]["id"]
    change(idle, document_id, indexing_status=IndexingStatus(status))
    answer = idle.delete(f"/v1/datasets/{dataset}/documents/{document_id}")
    assert "'completed'" in refused(answer, 400, "document_indexing")


def test_only_a_failed_document_is_retried(idle: TestClient, dataset: str) -> None:
    document_id = by_text(idle, dataset).json()["document"]["id"]
    path = f"/v1/datasets/{dataset}/documents/{document_id}/retry"
    assert "'waiting'" in refused(idle.post(path), 400, "invalid_param")
    change(idle, document_id, indexing_status=IndexingStatus.ERROR, error="x", error_code="y")
    answer = idle.post(path).json()
    assert set(answer) == {"document", "batch"}
    row = answer["document"]
    assert (row["indexing_status"], row["error"], row["error_code"]) == ("waiting", None, None)
