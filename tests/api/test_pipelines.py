"""Files for pipelines are kept for a while; a dataset without a pipeline says so."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import timedelta

import pytest
from sqlalchemy import select, update
from starlette.testclient import TestClient

from kb.db import now, reading, transaction
from kb.documents import add_document
from kb.maintenance import run_next_job
from kb.models import Dataset, UploadFile
from kb.schemas import DocumentSettings
from kb.sweeper import clean_up
from tests.kb.api import NOWHERE, add_dataset, api, fresh_name, refused, resources_of

ROUTE = "/v1/datasets/pipeline/file-upload"


@pytest.fixture(scope="module")
def client(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with api(tmp_path_factory.mktemp("pipelines"), working=False) as opened:
        yield opened


def upload(client: TestClient, name: str = "note.txt", data: bytes = b"A note.") -> str:
    answer = client.post(ROUTE, files={"file": (name, data, "text/plain")})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def test_a_file_for_a_pipeline_is_kept_as_it_was_sent(client: TestClient) -> None:
    answer = client.post(ROUTE, files={"file": ("note.TXT", b"A note.", "text/plain")}).json()
    assert (answer["name"], answer["size"], answer["extension"]) == ("note.TXT", 7, "txt")
    assert answer["mime_type"] == "text/plain"
    resources = resources_of(client)
    assert resources.blobs.get(f"pipeline/{answer['id']}") == b"A note."


def test_what_is_wrong_with_a_file_for_a_pipeline_has_its_code(client: TestClient) -> None:
    note = ("note.txt", b"x", "text/plain")
    refused(client.post(ROUTE, data={"data": "{}"}, files=[]), 400, "no_file_uploaded")
    refused(client.post(ROUTE, files=[("file", note), ("file", note)]), 400, "too_many_files")
    body = b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nx\r\n--b--\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    refused(client.post(ROUTE, content=body, headers=headers), 400, "filename_not_exists_error")
    refused(
        client.post(ROUTE, files={"file": ("a.exe", b"x", "x/y")}), 415, "unsupported_file_type"
    )
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'
    untyped = client.post(ROUTE, content=head + b"x\r\n--b--\r\n", headers=headers)
    assert "media type" in refused(untyped, 415, "unsupported_file_type")
    most = resources_of(client).settings.limits.file_bytes
    large = client.post(ROUTE, files={"file": ("a.txt", b"x" * (most + 1), "text/plain")})
    refused(large, 413, "file_too_large")


def test_a_dataset_without_a_pipeline_says_so(client: TestClient) -> None:
    base = f"/v1/datasets/{add_dataset(client, fresh_name())}/pipeline"
    for answer in (
        client.get(f"{base}/datasource-plugins?is_published=True"),
        client.post(f"{base}/datasource/nodes/n/run", json={"inputs": {}}),
        client.post(f"{base}/run", json={}),
    ):
        assert "has no pipeline" in refused(answer, 404, "not_found")
    elsewhere = client.get(f"/v1/datasets/{NOWHERE}/pipeline/datasource-plugins")
    assert "no dataset" in refused(elsewhere, 404, "not_found")


def test_a_file_that_no_document_uses_goes_after_a_day_and_others_stay(client: TestClient) -> None:
    resources = resources_of(client)
    used, unused, fresh = upload(client), upload(client), upload(client)
    dataset = add_dataset(client, fresh_name(), indexing_technique="economy")
    with transaction(resources.sessions) as session:
        target = session.get_one(Dataset, uuid.UUID(dataset))
        file = session.get_one(UploadFile, uuid.UUID(used))
        body = DocumentSettings.model_validate({"process_rule": {"mode": "automatic"}})
        add_document(session, target, "note", file, body, resources)
        session.flush()
        session.execute(
            update(UploadFile)
            .where(UploadFile.blob_key.in_([f"pipeline/{used}", f"pipeline/{unused}"]))
            .values(created_at=now() - timedelta(hours=25))
        )
    clean_up(resources)
    while run_next_job(resources, "test"):
        pass
    kept = {key for key in resources.blobs.keys() if key.startswith("pipeline/")}  # noqa: SIM118
    assert f"pipeline/{unused}" not in kept
    assert {f"pipeline/{used}", f"pipeline/{fresh}"} <= kept
    with reading(resources.sessions) as session:
        left = {str(file_id) for file_id in session.scalars(select(UploadFile.id))}
    assert unused not in left
    assert {used, fresh} <= left
