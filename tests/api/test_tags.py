"""Routes of tags: their shapes, what they tolerate, what follows a deletion."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import Any

import pytest
from sqlalchemy import func, select
from starlette.testclient import TestClient

from kb.db import reading, transaction
from kb.models import ApiKey, TagBinding
from tests.kb.api import NOWHERE, add_dataset, api, fresh_name, refused, resources_of

TAGS = "/v1/datasets/tags"


@pytest.fixture(scope="module")
def client(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """One process without workers for all tests of this module."""
    with api(tmp_path_factory.mktemp("tags"), working=False) as opened:
        yield opened


def make(client: TestClient, name: str | None = None) -> dict[str, Any]:
    answer = client.post(TAGS, json={"name": name or fresh_name("tag")})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def dataset(client: TestClient, *tags: dict[str, Any], name: str | None = None) -> str:
    """A dataset that carries these tags."""
    made = add_dataset(client, name or fresh_name(), indexing_technique="economy")
    if tags:
        bind(client, made, *tags)
    return made


def bind(client: TestClient, target: str, *tags: dict[str, Any]) -> None:
    body = {"tag_ids": [tag["id"] for tag in tags], "target_id": target}
    answer = client.post(f"{TAGS}/binding", json=body)
    assert (answer.status_code, answer.content) == (204, b"")


def carried(client: TestClient, target: str) -> list[str]:
    body = client.get(f"/v1/datasets/{target}/tags").json()
    assert body["total"] == len(body["data"])
    return [tag["name"] for tag in body["data"]]


def counts(client: TestClient) -> dict[str, str]:
    return {tag["id"]: tag["binding_count"] for tag in client.get(TAGS).json()}


def test_a_tag_is_made_with_a_count_that_is_a_text(client: TestClient) -> None:
    name = fresh_name("tag")
    tag = make(client, name)
    assert set(tag) == {"id", "name", "type", "binding_count"}
    assert (tag["name"], tag["type"], tag["binding_count"]) == (name, "knowledge", "0")


def test_tags_are_listed_newest_first_as_a_bare_array(client: TestClient) -> None:
    made = []
    for _ in range(3):
        made.append(make(client))
        time.sleep(0.002)
    dataset(client, made[0], made[1])
    dataset(client, made[0])
    listed = client.get(TAGS).json()
    assert isinstance(listed, list)
    assert [tag["id"] for tag in listed[:3]] == [tag["id"] for tag in reversed(made)]
    assert [tag["binding_count"] for tag in listed[:3]] == ["0", "1", "2"]


def test_a_renamed_tag_keeps_its_datasets_and_tells_their_count(client: TestClient) -> None:
    tag = make(client)
    target = dataset(client, tag)
    name = fresh_name("tag")
    answer = client.patch(TAGS, json={"tag_id": tag["id"], "name": name})
    assert answer.status_code == 200
    assert answer.json() == tag | {"name": name, "binding_count": "1"}
    assert carried(client, target) == [name]
    same = client.patch(TAGS, json={"tag_id": tag["id"], "name": name})
    assert same.status_code == 200, "its own name is not taken"


def test_a_name_is_taken_once(client: TestClient) -> None:
    first, second = make(client), make(client)
    message = refused(client.post(TAGS, json={"name": first["name"]}), 400, "invalid_param")
    assert first["name"] in message
    again = client.patch(TAGS, json={"tag_id": second["id"], "name": first["name"]})
    refused(again, 400, "invalid_param")
    assert second["id"] in counts(client)


def test_of_many_creates_of_one_name_at_once_exactly_one_succeeds(client: TestClient) -> None:
    name = fresh_name("tag")
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: client.post(TAGS, json={"name": name}), range(8)))
    assert sorted(a.status_code for a in answers) == [200] + [400] * 7


@pytest.mark.parametrize(
    ("method", "path", "body", "field"),
    [
        ("POST", TAGS, {}, "name"),
        ("POST", TAGS, {"name": ""}, "name"),
        ("POST", TAGS, {"name": "  "}, "name"),
        ("POST", TAGS, {"name": "x" * 51}, "name"),
        ("PATCH", TAGS, {"name": "x"}, "tag_id"),
        ("PATCH", TAGS, {"tag_id": NOWHERE}, "name"),
        ("DELETE", TAGS, {}, "tag_id"),
        ("POST", f"{TAGS}/binding", {"tag_ids": [], "target_id": NOWHERE}, "tag_ids"),
        ("POST", f"{TAGS}/binding", {"tag_ids": [NOWHERE]}, "target_id"),
        ("POST", f"{TAGS}/unbinding", {"target_id": NOWHERE}, None),
        ("POST", f"{TAGS}/unbinding", {"target_id": NOWHERE, "tag_ids": []}, None),
    ],
)
def test_a_body_that_does_not_validate_is_422(
    client: TestClient, method: str, path: str, body: dict[str, Any], field: str | None
) -> None:
    errors = json.loads(
        refused(client.request(method, path, json=body), 422, "unprocessable_entity")
    )
    if field is not None:
        assert [error["loc"] for error in errors] == [[field]]


@pytest.mark.parametrize("unknown", [NOWHERE, "no-id"])
@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
def test_an_unknown_tag_is_not_found(client: TestClient, method: str, unknown: str) -> None:
    answer = client.request(method, TAGS, json={"tag_id": unknown, "name": "x"})
    assert unknown in refused(answer, 404, "not_found")


@pytest.mark.parametrize("how", ["body", "query"])
def test_a_deleted_tag_is_carried_by_no_dataset(client: TestClient, how: str) -> None:
    gone, kept = make(client), make(client)
    target = dataset(client, gone, kept)
    sent: dict[str, Any] = {"json" if how == "body" else "params": {"tag_id": gone["id"]}}
    headers = {"Content-Type": "application/json"}
    answer = client.request("DELETE", TAGS, headers=headers, **sent)
    assert (answer.status_code, answer.content) == (204, b"")
    assert carried(client, target) == [kept["name"]]
    assert gone["id"] not in counts(client)
    shown = client.get(f"/v1/datasets/{target}").json()["tags"]
    assert shown == [{"id": kept["id"], "name": kept["name"], "type": "knowledge"}]


def test_a_deleted_dataset_lets_go_of_its_tags(client: TestClient) -> None:
    tag = make(client)
    target = dataset(client, tag)
    assert counts(client)[tag["id"]] == "1"
    assert client.delete(f"/v1/datasets/{target}").status_code == 204
    assert counts(client)[tag["id"]] == "0"
    with reading(resources_of(client).sessions) as session:
        left = select(func.count()).where(TagBinding.dataset_id == uuid.UUID(target))
        assert session.scalar(left.select_from(TagBinding)) == 0


def test_binding_twice_is_binding_once(client: TestClient) -> None:
    one, two = make(client), make(client)
    target = dataset(client, one)
    bind(client, target, one, two, two)
    bind(client, target, one, two)
    assert carried(client, target) == sorted([one["name"], two["name"]])
    assert counts(client)[one["id"]] == "1"


def test_a_tag_that_is_unknown_leaves_the_others_unbound(client: TestClient) -> None:
    tag = make(client)
    target = dataset(client)
    body = {"tag_ids": [tag["id"], NOWHERE], "target_id": target}
    assert NOWHERE in refused(client.post(f"{TAGS}/binding", json=body), 404, "not_found")
    assert carried(client, target) == []


@pytest.mark.parametrize("route", ["binding", "unbinding"])
def test_an_unknown_dataset_is_not_found(client: TestClient, route: str) -> None:
    body = {"tag_ids": [make(client)["id"]], "target_id": NOWHERE}
    refused(client.post(f"{TAGS}/{route}", json=body), 404, "not_found")


@pytest.mark.parametrize("legacy", [False, True])
def test_unbinding_takes_a_list_or_one_tag_and_a_missing_pair_is_fine(
    client: TestClient, legacy: bool
) -> None:
    gone, kept = make(client), make(client)
    target = dataset(client, gone, kept)
    named = {"tag_id": gone["id"], "tag_ids": []} if legacy else {"tag_ids": [gone["id"], NOWHERE]}
    for _ in range(2):
        answer = client.post(f"{TAGS}/unbinding", json={**named, "target_id": target})
        assert (answer.status_code, answer.content) == (204, b"")
        assert carried(client, target) == [kept["name"]]


def test_get_and_post_tell_the_tags_of_a_dataset(client: TestClient) -> None:
    tag = make(client)
    target = dataset(client, tag)
    expected = {"data": [{"id": tag["id"], "name": tag["name"]}], "total": 1}
    for method in ("GET", "POST"):
        answer = client.request(method, f"/v1/datasets/{target}/tags")
        assert (answer.status_code, answer.json()) == (200, expected)
        refused(client.request(method, f"/v1/datasets/{NOWHERE}/tags"), 404, "not_found")


def test_the_list_of_datasets_leaves_those_that_carry_all_of_the_tags(client: TestClient) -> None:
    red, green, unused = make(client), make(client), make(client)
    both = dataset(client, red, green)
    one = dataset(client, red)

    def found(*asked: Any) -> set[str]:
        listed = client.get("/v1/datasets", params=[("tag_ids", a) for a in asked]).json()
        assert listed["total"] == len(listed["data"])
        return {row["id"] for row in listed["data"]}

    assert found(red["id"]) == {both, one}
    assert found(red["id"], green["id"]) == {both}
    assert found(red["id"], red["id"]) == {both, one}
    assert found(f"{red['id']},{green['id']}") == {both}
    assert found(unused["id"]) == set()
    assert found(red["id"], NOWHERE) == set()
    assert found("no id") == set()
    assert {both, one} <= found("")
    shown = client.get("/v1/datasets", params={"tag_ids": green["id"]}).json()["data"][0]
    assert [tag["id"] for tag in shown["tags"]] == [
        tag["id"] for tag in sorted((red, green), key=lambda tag: str(tag["name"]))
    ]


def test_a_key_of_one_dataset_binds_there_and_changes_no_tag(client: TestClient) -> None:
    tag = make(client)
    own, other = dataset(client), dataset(client)
    resources = resources_of(client)
    with transaction(resources.sessions) as session:
        session.add(
            ApiKey(
                workspace_id=resources.workspace_id,
                dataset_id=uuid.UUID(own),
                hint="ds-",
                sha256=sha256(b"ds-own").hexdigest(),
            )
        )
    headers = {"Authorization": "Bearer ds-own"}
    for method in ("GET", "POST", "PATCH", "DELETE"):
        answer = client.request(
            method, TAGS, json={"tag_id": tag["id"], "name": "x"}, headers=headers
        )
        refused(answer, 403, "forbidden")
    body = {"tag_ids": [tag["id"]], "target_id": other}
    refused(client.post(f"{TAGS}/binding", json=body, headers=headers), 404, "not_found")
    answer = client.post(f"{TAGS}/binding", json=body | {"target_id": own}, headers=headers)
    assert answer.status_code == 204
    assert client.get(f"/v1/datasets/{own}/tags", headers=headers).json()["total"] == 1


def test_tags_travel_with_an_archive_by_name(client: TestClient) -> None:
    tag = make(client)
    target = dataset(client, tag)
    archive = client.get(f"/v1/datasets/{target}/export").content
    assert client.request("DELETE", TAGS, json={"tag_id": tag["id"]}).status_code == 204
    other = make(client)
    bind(client, target, other)
    both = client.get(f"/v1/datasets/{target}/export").content
    for sent, names in ((archive, [tag["name"]]), (both, [other["name"]])):
        answer = client.post("/v1/datasets/import", params={"name": fresh_name()}, content=sent)
        assert answer.status_code == 201, answer.text
        assert carried(client, answer.json()["id"]) == names
    assert counts(client)[other["id"]] == "2", "the tag of that name is bound, not another one"
