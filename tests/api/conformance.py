"""One call of a published client library: what it sends, and what it must get."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx2 as httpx

from tests.api.wire import ERROR, Shape, mismatch
from tests.api.world import World
from tests.kb.api import KEY


@dataclass(frozen=True)
class Call:
    """A call of a library.

    Attributes:
        name: of the library's method.
        path: below /v1; `{name}` is an id of the world.
        shape: of the answer; None: it must be empty.
        body: JSON made for the world, or None: none is sent.
        data: of a multipart call, the part `data`.
        file: of a multipart call, name and bytes of the part `file`.
    """

    name: str
    method: str
    path: str
    shape: Shape = None
    status: int = 200
    params: dict[str, Any] | None = None
    body: Callable[[World], Any] | None = None
    data: Callable[[World], Any] | None = None
    file: tuple[str, bytes] | None = None

    def __str__(self) -> str:
        return f"{self.name}-{self.status}"


def check(answer: httpx.Response, call: Call) -> Any:
    """Status and shape; the body."""
    assert answer.status_code == call.status, f"{answer.status_code}: {answer.text}"
    if call.shape is None:
        assert answer.content == b""
        return None
    body = answer.json()
    problem = mismatch(body, call.shape)
    assert problem is None, problem
    if call.shape is ERROR:
        assert body["status"] == call.status
    return body


def send_python(world: World, call: Call) -> httpx.Response:
    """As the Python library: a JSON content type on all calls without a file, also bodiless ones;
    `data` is a plain form field; parameters as Python writes them.
    """
    headers = {"Authorization": f"Bearer {KEY}"}
    url = f"{world.url}/v1{call.path.format_map(world)}"
    if call.file is not None:
        data = {} if call.data is None else {"data": json.dumps(call.data(world))}
        return httpx.request(
            call.method, url, headers=headers, data=data, files={"file": call.file}, timeout=60
        )
    headers["Content-Type"] = "application/json"
    content = None if call.body is None else json.dumps(call.body(world))
    params = {name: str(value) for name, value in (call.params or {}).items()}
    return httpx.request(
        call.method, url, headers=headers, content=content, params=params, timeout=60
    )


def send_node(world: World, call: Call) -> httpx.Response:
    """As the Node.js library: no content type without a body, lists as repeated parameters, small
    letters for true and false, and a Blob of no particular type.
    """
    headers = {"Authorization": f"Bearer {KEY}", "User-Agent": "dify-client-node"}
    url = f"{world.url}/v1{call.path.format_map(world)}"
    if call.file is not None:
        parts: list[tuple[str, Any]] = []
        if call.data is not None:
            parts.append(("data", (None, json.dumps(call.data(world)))))
        parts.append(("file", (*call.file, "application/octet-stream")))
        return httpx.request(call.method, url, headers=headers, files=parts, timeout=60)
    content = None
    if call.body is not None:
        headers["Content-Type"] = "application/json"
        content = json.dumps(call.body(world), ensure_ascii=False, separators=(",", ":")).encode()
    params = [
        (name, str(value).lower() if isinstance(value, bool) else str(value))
        for name, values in (call.params or {}).items()
        for value in (values if isinstance(values, list) else [values])
    ]
    return httpx.request(
        call.method, url, headers=headers, content=content, params=params, timeout=60
    )


def assignment(world: World) -> Any:
    """A value of a metadata field for a document."""
    value = {"id": world["field"], "name": "field", "value": "Ann"}
    return {"operation_data": [{"document_id": world["document"], "metadata_list": [value]}]}


def run_node(_: World) -> Any:
    """What runs one data source of a pipeline."""
    return {"inputs": {}, "datasource_type": "local_file", "is_published": True}


def run_pipeline(_: World) -> Any:
    """What runs a pipeline."""
    return {
        "inputs": {},
        "datasource_type": "local_file",
        "datasource_info_list": [],
        "start_node_id": "node",
        "is_published": True,
        "response_mode": "blocking",
    }
