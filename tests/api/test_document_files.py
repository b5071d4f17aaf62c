"""Files of documents: links that need no key, and zips."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from starlette.testclient import TestClient

from kb.downloads import unique_names
from kb.settings import Limits
from tests.kb.api import (
    NOWHERE,
    add_dataset,
    add_file,
    add_text,
    api,
    fresh_name,
    keys,
    refused,
    resources_of,
)

FILE_KEYS = keys("id name size extension url download_url mime_type created_by created_at")


@pytest.fixture(scope="module")
def client(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """One process without workers: files are there before they are worked on."""
    limits = Limits(zip_documents=5)
    with api(tmp_path_factory.mktemp("files"), working=False, limits=limits) as opened:
        yield opened


@pytest.fixture
def dataset(client: TestClient) -> str:
    """A fresh dataset."""
    return add_dataset(client, fresh_name(), indexing_technique="economy")


@pytest.fixture
def anybody(client: TestClient) -> TestClient:
    """Somebody without a key."""
    return TestClient(client.app)


def shown(client: TestClient, dataset: str, document_id: str, route: str) -> dict[str, Any]:
    answer = client.get(f"/v1/datasets/{dataset}/documents/{document_id}/{route}")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_a_file_is_described_and_opened_by_its_link_without_a_key(
    client: TestClient, dataset: str, anybody: TestClient
) -> None:
    data = "Größe: 3 m".encode()
    created = add_file(client, dataset, "Maß & Zahl.txt", data)["document"]
    file = shown(client, dataset, created["id"], "upload-file")
    assert set(file) == FILE_KEYS
    assert (file["name"], file["size"], file["extension"]) == ("Maß & Zahl.txt", len(data), "txt")
    assert file["download_url"] == f"{file['url']}&as_attachment=true"
    opened = anybody.get(file["url"])
    assert (opened.status_code, opened.content) == (200, data)
    assert opened.headers["content-disposition"].startswith("inline; filename*=utf-8''Ma%C3%9F")
    saved = anybody.get(file["download_url"])
    assert saved.headers["content-disposition"].startswith("attachment;")
    assert saved.headers["x-content-type-options"] == "nosniff"
    download = shown(client, dataset, created["id"], "download")
    assert set(download) == {"url"}
    assert anybody.get(download["url"]).headers["content-disposition"].startswith("attachment;")


def test_a_text_is_a_file_as_well(client: TestClient, dataset: str, anybody: TestClient) -> None:
    created = add_text(client, dataset, "a/b", "Some <b>text</b>.")["document"]
    file = shown(client, dataset, created["id"], "upload-file")
    assert file["name"] == "a_b.txt"
    opened = anybody.get(file["url"])
    assert (opened.text, opened.headers["content-type"]) == (
        "Some <b>text</b>.",
        "text/plain; charset=utf-8",
    )


def test_what_a_browser_would_run_is_never_shown_only_saved(
    client: TestClient, dataset: str, anybody: TestClient
) -> None:
    page = b"<script>alert(1)</script><p>Some text.</p>"
    created = add_file(client, dataset, "page.html", page)["document"]
    opened = anybody.get(shown(client, dataset, created["id"], "upload-file")["url"])
    assert opened.headers["content-disposition"].startswith("attachment;")
    assert opened.headers["content-security-policy"] == "sandbox"


def test_a_link_that_was_changed_or_is_too_old_opens_nothing(
    client: TestClient, dataset: str, anybody: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    created = add_text(client, dataset, "guide", "Some text.")["document"]
    other = add_text(client, dataset, "other", "Some text.")["document"]
    url = shown(client, dataset, created["id"], "upload-file")["url"]
    expires = re.search(r"expires=(\d+)", url)
    assert expires is not None
    later = url.replace(expires[1], str(int(expires[1]) + 1))
    elsewhere = url.replace(
        created["data_source_info"]["upload_file_id"], other["data_source_info"]["upload_file_id"]
    )
    for changed in (later, elsewhere, url[:-1], url.partition("?")[0], f"{url}é"):
        refused(anybody.get(changed), 403, "forbidden")
    assert anybody.get(url).status_code == 200
    monkeypatch.setattr("kb.downloads.time.time", lambda: int(expires[1]) + 1)
    assert "expired" in refused(anybody.get(url), 403, "forbidden")


def test_a_deleted_document_takes_its_link_with_it(
    client: TestClient, dataset: str, anybody: TestClient
) -> None:
    created = add_text(client, dataset, "guide", "Some text.")["document"]
    url = shown(client, dataset, created["id"], "upload-file")["url"]
    path = f"/v1/datasets/{dataset}/documents/{created['id']}"
    assert client.delete(path).status_code == 204
    refused(anybody.get(url), 404, "not_found")
    refused(client.get(f"{path}/upload-file"), 404, "not_found")
    refused(client.get(f"{path}/download"), 404, "not_found")
    refused(anybody.get("/files/no-id?expires=1&signature=x"), 404, "not_found")


def test_links_begin_with_the_address_that_the_settings_name(
    database: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("public")
    with api(directory, working=False, public_url="https://kb.example.org/base/") as client:
        dataset = add_dataset(client, fresh_name(), indexing_technique="economy")
        created = add_text(client, dataset, "guide", "Some text.")["document"]
        url = shown(client, dataset, created["id"], "download")["url"]
        assert url.startswith("https://kb.example.org/base/files/")
        parts = urlsplit(url)
        opened = client.get(f"{parts.path.removeprefix('/base')}?{parts.query}")
        assert opened.text == "Some text."


# --- zip -----------------------------------------------------------------------------------------


def zipped(client: TestClient, dataset: str, ids: list[Any]) -> Any:
    path = f"/v1/datasets/{dataset}/documents/download-zip"
    return client.post(path, json={"document_ids": ids})


def test_a_zip_holds_every_file_once_under_a_name_of_its_own(
    client: TestClient, dataset: str
) -> None:
    files = [("a.txt", b"one"), ("a.txt", b"two"), ("A.TXT", b"three"), ("b.md", b"# four")]
    ids = [
        add_file(client, dataset, name, data, duplicate=False)["document"]["id"]
        for name, data in files
    ]
    answer = zipped(client, dataset, [*ids, ids[0]])
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/zip"
    disposition = answer.headers["content-disposition"]
    assert re.fullmatch(r'attachment; filename="[0-9a-f]{32}\.zip"', disposition)
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == {
            "a.txt": b"one",
            "a (1).txt": b"two",
            "A (2).TXT": b"three",
            "b.md": b"# four",
        }


def test_names_are_told_apart_whatever_they_are() -> None:
    names = ["a.txt", "a (1).txt", "a.txt", "a.tar.gz", "a.tar.gz", "none", "none"]
    assert unique_names(names) == [
        "a.txt",
        "a (1).txt",
        "a (2).txt",
        "a.tar.gz",
        "a.tar (1).gz",
        "none",
        "none (1)",
    ]


@pytest.mark.parametrize("count", [0, 6])
def test_none_or_too_many_documents_are_400(client: TestClient, dataset: str, count: int) -> None:
    message = refused(zipped(client, dataset, [NOWHERE] * count), 400, "invalid_param")
    assert "1 to 5" in message


def test_a_document_that_is_missing_makes_the_whole_zip_404(
    client: TestClient, dataset: str
) -> None:
    here = add_text(client, dataset, "guide", "Some text.")["document"]["id"]
    refused(zipped(client, dataset, [here, NOWHERE]), 404, "not_found")
    refused(zipped(client, dataset, [here, "no id"]), 404, "not_found")
    elsewhere = add_dataset(client, fresh_name(), indexing_technique="economy")
    refused(zipped(client, elsewhere, [here]), 404, "not_found")


def test_a_file_that_is_lost_is_404_and_no_broken_zip(client: TestClient, dataset: str) -> None:
    created = add_text(client, dataset, "guide", "Some text.")["document"]
    file_id = created["data_source_info"]["upload_file_id"]
    resources_of(client).blobs.delete(f"uploads/{file_id}")
    refused(zipped(client, dataset, [created["id"]]), 404, "not_found")
