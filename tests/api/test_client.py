"""The Python client: its documentation is true, it retries what may be retried, and it has a method
for every route.
"""

from __future__ import annotations

import inspect
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from kb.api.app import routed_app
from kb.client import ApiError, Client, ClientError, Unreachable
from tests.api.world import World, open_world
from tests.kb.api import KEY, NOWHERE

MANUAL = Path(__file__).parents[2] / "docs" / "client.md"
NOT_FOR_CLIENTS = {
    "/files/{}",
    "/health/live",
    "/health/ready",
    "/metrics",
    "/v1/datasets/{}/pipeline/datasource-plugins",
    "/v1/datasets/{}/pipeline/datasource/nodes/{}/run",
    "/v1/datasets/{}/pipeline/run",
    "/v1/datasets/{}/metadata/built-in",
}
"""For browsers and watchers, without an answer yet, or twice there."""
BY_NAME = {"pause", "resume", "retry", "cancel", "binding", "unbinding"}
"""Ends of paths that are an argument in the client."""


@pytest.fixture(scope="module")
def world(database: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    with open_world(tmp_path_factory.mktemp("world")) as opened:
        yield opened


@pytest.mark.sqlite_only
def test_the_examples_of_the_manual_run(world: World, tmp_path: Path) -> None:
    file = tmp_path / "warranty.md"
    file.write_text("# Warranty\n\nThe warranty lasts two years.")
    names: dict[str, Any] = {"URL": world.url, "KEY": KEY, "FILE": file}
    blocks = re.findall(r"```python\n(.*?)```", MANUAL.read_text("utf-8"), re.DOTALL)
    assert len(blocks) >= 7
    for block in blocks:
        exec(compile(block, str(MANUAL), "exec"), names)
    with Client(world.url, KEY) as kb:
        (found,) = [d for d in kb.datasets() if d["name"] == "handbook"]
        assert found["document_count"] == 2


@pytest.mark.sqlite_only
def test_what_the_manual_leaves_out_works_too(world: World, tmp_path: Path) -> None:
    with Client(world.url, KEY) as kb:
        family, parents, parent = world["family"], world["parents"], world["parent"]
        child = kb.add_child_chunk(family, parents, parent, "The oak has roots.")
        kb.update_child_chunk(family, parents, parent, child["id"], "The oak has deep roots.")
        contents = [c["content"] for c in kb.child_chunks(family, parents, parent)]
        assert "The oak has deep roots." in contents
        kb.delete_child_chunk(family, parents, parent, child["id"])
        assert kb.built_in_fields()[0]["name"] == "document_name"
        kb.switch_built_in_fields(family, on=True)
        hook = kb.add_webhook("https://example.org/hook", events=["document.completed"])
        assert hook["secret"]
        assert kb.update_webhook(hook["id"], enabled=False)["enabled"] is False
        assert [w["id"] for w in kb.webhooks()] == [hook["id"]]
        assert list(kb.deliveries(hook["id"])) == []
        kb.delete_webhook(hook["id"])
        assert kb.available_models("text-embedding")[0]["models"]
        assert kb.model("settings")["type"] == "text-embedding"
        kept = kb.upload_pipeline_file("a.txt", b"x", "text/plain")
        assert kept["size"] == 1
        zipped = tmp_path / "files.zip"
        kb.download_zip(family, [parents], zipped)
        assert zipped.read_bytes()[:2] == b"PK"
        assert httpx.get(kb.download_url(family, parents)).status_code == 200
        assert kb.retrieve_as_service(family, "oak")[0]["title"]
        assert kb.knowledge_retrieval("oak", [family])[0]["metadata"]["_source"] == "knowledge"


def answering(answers: list[Callable[[httpx.Request], httpx.Response]]) -> Client:
    """A client whose server gives these answers, one after the other."""
    left = iter(answers)
    transport = httpx.MockTransport(lambda request: next(left)(request))
    return Client("http://kb.test", "key", transport=transport)


def busy(_: httpx.Request) -> httpx.Response:
    body = {"code": "service_unavailable", "message": "busy", "status": 503}
    return httpx.Response(503, json=body, headers={"Retry-After": "0"})


def fine(_: httpx.Request) -> httpx.Response:
    return httpx.Response(200, json={"id": "x"})


def broken(request: httpx.Request) -> httpx.Response:
    raise httpx.ReadError("broke", request=request)


def test_what_the_server_could_not_do_now_is_asked_again() -> None:
    assert answering([busy, busy, fine]).create_dataset("x") == {"id": "x"}
    with pytest.raises(ApiError, match="busy"):
        answering([busy, busy, busy, fine]).create_dataset("x")


def test_a_broken_connection_is_tried_again_only_by_what_reads() -> None:
    assert answering([broken, fine]).query("x") == {"id": "x"}
    with pytest.raises(Unreachable):
        answering([broken, fine]).create_dataset("x")


def test_waiting_ends_when_its_time_is_over() -> None:
    status = {"indexing_status": "indexing"}
    seen: list[Any] = []
    client = answering([lambda _: httpx.Response(200, json={"data": [status], "id": "x"})] * 99)
    started = time.monotonic()
    with pytest.raises(ClientError, match="still indexing"):
        client.wait(NOWHERE, "batch", poll_s=0.01, timeout_s=0.05, progress=seen.append)
    assert time.monotonic() - started < 5
    assert seen[0] == status


def test_every_route_has_a_method() -> None:
    """By the paths that stand in the client's source, with their variable parts left out."""
    source = "\n".join(
        inspect.getsource(inspect.getmodule(part) or part)
        for part in Client.__mro__
        if part.__module__.startswith("kb.client")
    )
    paths = re.findall(r'f?"([^"\n]*/[^"\n]*)"', re.sub(r"\{[^}]*\}", "{}", source))
    said = {tuple(path.split("/")[-2:]) for path in paths}
    missing = []
    for path in routed_app().openapi()["paths"]:
        bare = re.sub(r"\{\w+\}", "{}", path)
        before, last = bare.split("/")[-2:]
        known = any(one[-1] == last or one == (before, "{}") for one in said) or last in BY_NAME
        if bare not in NOT_FOR_CLIENTS and not known:
            missing.append(path)
    assert missing == []
