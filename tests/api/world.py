"""A served installation with something of everything in it, for calls to be made against."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx

from tests.kb.api import HEADERS, fresh_name, served, test_settings

PARENTS = {
    "mode": "hierarchical",
    "rules": {
        "pre_processing_rules": [],
        "parent_mode": "paragraph",
        "segmentation": {"separator": "\n\n", "max_tokens": 500},
        "subchunk_segmentation": {"separator": "\n", "max_tokens": 100},
    },
}
LINES = {
    "mode": "custom",
    "rules": {
        "pre_processing_rules": [],
        "segmentation": {"separator": "\n", "max_tokens": 500},
    },
}


class World:
    """Ids by name, made when they are first asked for; a name with `new_` is made every time.

    `dataset` has the completed `document` of two segments, the first of them `segment`; `family`
    has the hierarchical document `parents`, whose first `parent` has the child `child`.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.http = httpx.Client(base_url=url, headers=HEADERS, timeout=60)
        self._made: dict[str, str] = {}

    def __getitem__(self, name: str) -> str:
        make: Callable[[], str] = getattr(self, f"_{name}")
        if name.startswith("new_"):
            return make()
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def call(self, method: str, path: str, status: int = 200, **sent: Any) -> Any:
        """An answer that must have this status."""
        answer = self.http.request(method, f"/v1{path}", **sent)
        assert answer.status_code == status, answer.text
        return answer.json() if answer.content else None

    def settled(self, dataset: str, accepted: Any) -> str:
        """Wait for an upload; the document's id."""
        ends = time.monotonic() + 60
        path = f"/datasets/{dataset}/documents/{accepted['batch']}/indexing-status"
        while time.monotonic() < ends:
            (entry,) = self.call("GET", path)["data"]
            if entry["indexing_status"] == "completed":
                return str(accepted["document"]["id"])
            assert entry["indexing_status"] != "error", entry["error"]
            time.sleep(0.02)
        raise AssertionError("not completed in time")

    def _upload(self, dataset: str, text: str, **body: Any) -> Any:
        path = f"/datasets/{dataset}/document/create-by-text"
        return self.call("POST", path, json={"name": fresh_name("book"), "text": text, **body})

    def _text(self, dataset: str, text: str, **body: Any) -> str:
        return self.settled(dataset, self._upload(dataset, text, **body))

    def _new_dataset(self) -> str:
        body = {"name": fresh_name(), "indexing_technique": "economy"}
        return str(self.call("POST", "/datasets", json=body)["id"])

    def _dataset(self) -> str:
        return self["new_dataset"]

    def _batch(self) -> str:
        accepted = self._upload(self["dataset"], "Seals bark.", process_rule=LINES)
        self.settled(self["dataset"], accepted)
        return str(accepted["batch"])

    def _new_document(self) -> str:
        return self._text(
            self["dataset"], "The walrus sleeps.\nThe otter swims.", process_rule=LINES
        )

    def _document(self) -> str:
        return self["new_document"]

    def _new_archived(self) -> str:
        document = self["new_document"]
        path = f"/datasets/{self['dataset']}/documents/status/archive"
        self.call("PATCH", path, json={"document_ids": [document]})
        return document

    def _segments_of(self, dataset: str, document: str) -> list[Any]:
        rows = self.call("GET", f"/datasets/{dataset}/documents/{document}/segments")["data"]
        return list(rows)

    def _segment(self) -> str:
        return str(self._segments_of(self["dataset"], self["document"])[0]["id"])

    def _new_segment(self) -> str:
        path = f"/datasets/{self['dataset']}/documents/{self['document']}/segments"
        body = {"segments": [{"content": "Seals bark."}]}
        return str(self.call("POST", path, json=body)["data"][0]["id"])

    def _family(self) -> str:
        body = {"name": fresh_name(), "indexing_technique": "high_quality"}
        return str(self.call("POST", "/datasets", json=body)["id"])

    def _parents(self) -> str:
        text = "The oak is tall.\nThe oak is old.\n\nThe elm is green."
        body = {"doc_form": "hierarchical_model", "process_rule": PARENTS}
        return self._text(self["family"], text, **body)

    def _parent(self) -> str:
        return str(self._segments_of(self["family"], self["parents"])[0]["id"])

    def _children_path(self) -> str:
        documents = f"/datasets/{self['family']}/documents/{self['parents']}"
        return f"{documents}/segments/{self['parent']}/child_chunks"

    def _child(self) -> str:
        return str(self.call("GET", self._children_path())["data"][0]["id"])

    def _new_child(self) -> str:
        body = {"content": "The oak has leaves."}
        return str(self.call("POST", self._children_path(), json=body)["data"]["id"])

    def _new_tag(self) -> str:
        return str(self.call("POST", "/datasets/tags", json={"name": fresh_name("tag")})["id"])

    def _tag(self) -> str:
        return self["new_tag"]

    def _field_body(self) -> str:
        return fresh_name("field")

    def _new_field(self) -> str:
        path = f"/datasets/{self['dataset']}/metadata"
        body = {"type": "string", "name": fresh_name("field")}
        return str(self.call("POST", path, 201, json=body)["id"])

    def _field(self) -> str:
        return self["new_field"]


@contextmanager
def open_world(path: Path) -> Iterator[World]:
    """A world behind a real HTTP server, with workers."""
    with served(test_settings(path), working=True) as (host, port):
        world = World(f"http://{host}:{port}")
        with world.http:
            yield world
