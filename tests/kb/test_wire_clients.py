"""The exact calls of the two published client libraries, with their habits on the wire.

Each call is replayed as the library sends it: the Python one puts a JSON content type on every
call without a file, also on GET and DELETE without a body; both use the underscore routes, send
`data` as a plain form field, and leave out what is undefined.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.kb.api import KEY, api, fresh_name


@pytest.fixture(scope="module")
def server(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """One process with workers for all tests of this module."""
    with api(tmp_path_factory.mktemp("clients")) as opened:
        yield opened


def answered(answer: Any, status: int = 200) -> Any:
    """The JSON of an answer with this status; None when it must be empty."""
    assert answer.status_code == status, answer.text
    if status == 204:
        assert answer.content == b""
        return None
    return answer.json()


# --- Python --------------------------------------------------------------------------------------


@dataclass
class PythonClient:
    """`KnowledgeBaseClient` of the Python library, for the routes that exist."""

    server: TestClient
    dataset_id: str | None = None

    def send(self, method: str, path: str, body: Any = None, params: Any = None) -> Any:
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        content = None if body is None else json.dumps(body)
        return self.server.request(
            method, f"/v1{path}", content=content, params=params, headers=headers
        )

    def send_files(self, method: str, path: str, data: Any, files: Any) -> Any:
        headers = {"Authorization": f"Bearer {KEY}"}
        return self.server.request(method, f"/v1{path}", data=data, files=files, headers=headers)

    def create_dataset(self, name: str) -> Any:
        return self.send("POST", "/datasets", {"name": name})

    def list_datasets(self, page: int = 1, page_size: int = 20, **more: Any) -> Any:
        params = {"page": page, "limit": page_size, **more}
        return self.send("GET", "/datasets", params=params)

    def get_dataset(self) -> Any:
        return self.send("GET", f"/datasets/{self.dataset_id}")

    def update_dataset(self, **values: Any) -> Any:
        sent = {k: v for k, v in values.items() if v is not None}
        return self.send("PATCH", f"/datasets/{self.dataset_id}", sent)

    def delete_dataset(self) -> Any:
        return self.send("DELETE", f"/datasets/{self.dataset_id}")

    def create_document_by_text(self, name: str, text: str, extra: Any = None) -> Any:
        body = {
            "indexing_technique": "high_quality",
            "process_rule": {"mode": "automatic"},
            "name": name,
            "text": text,
            **(extra or {}),
        }
        return self.send("POST", f"/datasets/{self.dataset_id}/document/create_by_text", body)

    def create_document_by_file(
        self, path: Path, original_document_id: str | None = None, extra: Any = None
    ) -> Any:
        data = {"process_rule": {"mode": "automatic"}, "indexing_technique": "high_quality"}
        data |= extra or {}
        if original_document_id is not None:
            data["original_document_id"] = original_document_id
        with path.open("rb") as file:
            return self.send_files(
                "POST",
                f"/datasets/{self.dataset_id}/document/create_by_file",
                {"data": json.dumps(data)},
                {"file": file},
            )

    def batch_indexing_status(self, batch: str) -> Any:
        return self.send("GET", f"/datasets/{self.dataset_id}/documents/{batch}/indexing-status")

    def list_documents(
        self, page: int | None = None, page_size: int | None = None, keyword: str | None = None
    ) -> Any:
        asked = {"page": page, "limit": page_size, "keyword": keyword}
        params = {k: v for k, v in asked.items() if v is not None}
        return self.send("GET", f"/datasets/{self.dataset_id}/documents", params=params)

    def delete_document(self, document_id: str) -> Any:
        return self.send("DELETE", f"/datasets/{self.dataset_id}/documents/{document_id}")

    def query_segments(
        self, document_id: str, keyword: str | None = None, status: str | None = None, **more: Any
    ) -> Any:
        asked = {"keyword": keyword, "status": status, **more}
        params = {k: v for k, v in asked.items() if v is not None}
        path = f"/datasets/{self.dataset_id}/documents/{document_id}/segments"
        return self.send("GET", path, params=params)

    def hit_testing(
        self, query: str, retrieval_model: Any = None, external_retrieval_model: Any = None
    ) -> Any:
        body: dict[str, Any] = {"query": query}
        if retrieval_model:
            body["retrieval_model"] = retrieval_model
        if external_retrieval_model:
            body["external_retrieval_model"] = external_retrieval_model
        return self.send("POST", f"/datasets/{self.dataset_id}/hit-testing", body)

    def wait(self, created: Any) -> None:
        ends = time.monotonic() + 120
        while time.monotonic() < ends:
            (entry,) = answered(self.batch_indexing_status(created["batch"]))["data"]
            if entry["indexing_status"] == "completed":
                return
            assert entry["indexing_status"] != "error", entry["error"]
            time.sleep(0.05)
        raise AssertionError("not completed in time")


@pytest.fixture
def python(server: TestClient) -> PythonClient:
    """The library with a fresh dataset, made as the library makes it."""
    client = PythonClient(server)
    created = answered(client.create_dataset(fresh_name()))
    assert created["indexing_technique"] is None
    assert created["embedding_available"] is None
    assert created["retrieval_model_dict"]["top_k"] == 2
    client.dataset_id = created["id"]
    return client


def test_the_python_client_goes_from_dataset_to_answer_and_cleans_up(python: PythonClient) -> None:
    created = answered(python.create_document_by_text("walrus", "The walrus sleeps on the ice."))
    assert created["document"]["display_status"] == "queuing"
    python.wait(created)
    found = answered(python.hit_testing("Where does the walrus sleep?"))
    assert found["query"] == {"content": "Where does the walrus sleep?"}
    assert found["records"][0]["segment"]["document"]["name"] == "walrus"
    answered(python.delete_document(created["document"]["id"]), 204)
    assert answered(python.hit_testing("walrus"))["records"] == []
    answered(python.delete_dataset(), 204)
    answered(python.get_dataset(), 404)


def test_the_python_client_s_economy_flow_finds_words(python: PythonClient) -> None:
    economy = {"indexing_technique": "economy"}
    text = "The walrus sleeps on the ice."
    python.wait(answered(python.create_document_by_text("walrus", text, economy)))
    assert answered(python.get_dataset())["indexing_technique"] == "economy"
    model = {
        "search_method": "keyword_search",
        "reranking_enable": False,
        "reranking_mode": None,
        "reranking_model": {"reranking_provider_name": "", "reranking_model_name": ""},
        "weights": None,
        "top_k": 1,
        "score_threshold_enabled": False,
        "score_threshold": None,
    }
    (record,) = answered(python.hit_testing("walrus", model))["records"]
    assert record["segment"]["tokens"] == 0


def test_the_python_client_uploads_and_replaces_a_file(
    python: PythonClient, tmp_path: Path
) -> None:
    path = tmp_path / "walrus.txt"
    path.write_text("The walrus sleeps.")
    first = answered(python.create_document_by_file(path))
    python.wait(first)
    path.write_text("The walrus eats.")
    document_id = first["document"]["id"]
    second = answered(
        python.create_document_by_file(path, document_id, {"doc_language": "English"})
    )
    assert second["document"]["id"] == document_id
    python.wait(second)
    rows = answered(python.query_segments(document_id, keyword="walrus", status="completed"))
    assert [row["content"] for row in rows["data"]] == ["The walrus eats."]
    assert answered(python.list_documents())["total"] == 1


def test_the_python_client_lists_with_and_without_parameters(python: PythonClient) -> None:
    for name in ("one", "two", "three"):
        created = answered(python.create_document_by_text(name, f"Text number {name}."))
    assert answered(python.list_documents())["total"] == 3
    page = answered(python.list_documents(page=2, page_size=2))
    assert (len(page["data"]), page["page"], page["limit"], page["has_more"]) == (1, 2, 2, False)
    assert [row["name"] for row in answered(python.list_documents(keyword="tw"))["data"]] == ["two"]
    python.wait(created)
    segments = python.query_segments(created["document"]["id"], page=1, limit=5, user="me")
    assert answered(segments)["total"] == 1
    listing = answered(python.list_datasets(page=1, page_size=500, user="me"))
    assert listing["limit"] == 100
    assert python.dataset_id in {row["id"] for row in listing["data"]}


def test_the_python_client_changes_a_dataset(python: PythonClient) -> None:
    name = fresh_name()
    changed = answered(python.update_dataset(name=name, description="new", indexing_technique=None))
    assert (changed["name"], changed["description"]) == (name, "new")
    model = {"search_method": "hybrid_search", "top_k": 3}
    changed = answered(python.update_dataset(retrieval_model=model, permission="only_me"))
    assert changed["retrieval_model_dict"]["top_k"] == 3
    assert changed["partial_member_list"] == []


# --- Node.js -------------------------------------------------------------------------------------


@dataclass
class NodeClient:
    """`KnowledgeBaseClient` of the Node.js library, for the routes that exist."""

    server: TestClient

    def send(self, method: str, path: str, data: Any = None, query: Any = None) -> Any:
        """As the library does: no content type without a body, no undefined query values."""
        headers = {"Authorization": f"Bearer {KEY}", "User-Agent": "dify-client-node"}
        params: list[tuple[str, Any]] = [
            (name, str(value).lower() if isinstance(value, bool) else str(value))
            for name, values in (query or {}).items()
            if values is not None
            for value in (values if isinstance(values, list) else [values])
        ]
        content = None
        if data is not None:
            headers["Content-Type"] = "application/json"
            content = json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()
        return self.server.request(
            method, f"/v1{path}", content=content, params=params, headers=headers
        )

    def send_form(self, path: str, data: Any, name: str, content: bytes) -> Any:
        """FormData of the caller: `data` appended as a string, the file as a Blob."""
        headers = {"Authorization": f"Bearer {KEY}"}
        files: list[tuple[str, Any]] = [
            ("data", (None, json.dumps(data))),
            ("file", (name, content, "application/octet-stream")),
        ]
        return self.server.post(f"/v1{path}", files=files, headers=headers)


def test_the_node_client_goes_from_dataset_to_answer_and_cleans_up(server: TestClient) -> None:
    node = NodeClient(server)
    name = fresh_name()
    dataset = answered(
        node.send(
            "POST",
            "/datasets",
            {
                "name": name,
                "description": "made by Node",
                "indexing_technique": "high_quality",
                "permission": "only_me",
                "retrieval_model": {"search_method": "hybrid_search"},  # its type is partial
            },
        )
    )
    base = f"/datasets/{dataset['id']}"
    listing = answered(
        node.send(
            "GET",
            "/datasets",
            query={"page": 1, "limit": 20, "keyword": name, "include_all": True, "tag_ids": None},
        )
    )
    assert [row["id"] for row in listing["data"]] == [dataset["id"]]
    assert answered(node.send("GET", base))["name"] == name
    changed = answered(node.send("PATCH", base, {"description": "changed"}))
    assert changed["description"] == "changed"

    by_text = answered(
        node.send(
            "POST",
            f"{base}/document/create_by_text",
            {
                "name": "walrus",
                "text": "The walrus sleeps on the ice.\n\nÖtter schwimmen.",
                "indexing_technique": "high_quality",
                "process_rule": {
                    "mode": "custom",
                    "rules": {
                        "pre_processing_rules": [{"id": "remove_extra_spaces", "enabled": True}],
                        "segmentation": {"separator": "\n\n", "max_tokens": 500},
                    },
                },
            },
        )
    )
    PythonClient(server, dataset["id"]).wait(by_text)
    status = answered(node.send("GET", f"{base}/documents/{by_text['batch']}/indexing-status"))
    assert status["data"][0]["completed_segments"] == 2

    settings = {"indexing_technique": "high_quality", "process_rule": {"mode": "automatic"}}
    by_file = answered(
        node.send_form(
            f"{base}/document/create_by_file", settings, "otter.md", b"# Otters\n\nSwim."
        )
    )
    PythonClient(server, dataset["id"]).wait(by_file)
    listing = answered(
        node.send("GET", f"{base}/documents", query={"page": 1, "limit": 20, "status": "available"})
    )
    assert [row["name"] for row in listing["data"]] == ["otter.md", "walrus"]

    document = f"{base}/documents/{by_text['document']['id']}"
    shown = answered(node.send("GET", document, query={"metadata": "without"}))
    assert "doc_metadata" not in shown
    segments = answered(
        node.send("GET", f"{document}/segments", query={"status": ["completed", "error"]})
    )
    assert [row["content"] for row in segments["data"]] == [
        "The walrus sleeps on the ice.",
        "Ötter schwimmen.",
    ]
    for route in ("hit-testing", "retrieve"):
        request = {"query": "walrus", "retrieval_model": {"top_k": 1}, "attachment_ids": []}
        (record,) = answered(node.send("POST", f"{base}/{route}", request))["records"]
        assert record["segment"]["content"] == "The walrus sleeps on the ice."
    answered(node.send("DELETE", document), 204)
    answered(node.send("DELETE", base), 204)
    assert answered(node.send("GET", base), 404)["code"] == "not_found"


def test_the_node_client_gets_the_errors_that_it_maps(server: TestClient) -> None:
    node = NodeClient(server)
    name = fresh_name()
    dataset = answered(node.send("POST", "/datasets", {"name": name}))
    assert answered(node.send("POST", "/datasets", {"name": name}), 409)["status"] == 409
    base = f"/datasets/{dataset['id']}"
    assert answered(node.send("POST", "/datasets", {"name": ""}), 422)["status"] == 422
    assert answered(node.send("POST", f"{base}/retrieve", {"query": "x" * 251}), 400)["message"]
    refusal = server.post(f"/v1{base}/document/create_by_file", data={"data": "{}"}, files=[])
    assert answered(refusal, 400)["code"] == "no_file_uploaded"
