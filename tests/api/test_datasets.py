"""Datasets over HTTP: who may be seen, who is listed, keys, the contract's checklist."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from kb.resources import FULL_TEXT_SPACE
from tests.kb.api import NOWHERE, add_text, api, fresh_name, refused, resources_of, wait
from tests.kb.server import search

SOMEBODY = "5b1c4f2e-0d6a-4a53-9d0e-1a2b3c4d5e6f"
SOMEBODY_ELSE = "0f9e8d7c-6b5a-4c3d-8e2f-1a0b9c8d7e6f"


@pytest.fixture(scope="module")
def client(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """One process for all tests of this module."""
    with api(tmp_path_factory.mktemp("datasets")) as opened:
        yield opened


def create(client: TestClient, **body: Any) -> dict[str, Any]:
    answer = client.post("/v1/datasets", json={"name": fresh_name(), **body})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def change(client: TestClient, dataset: str, **body: Any) -> dict[str, Any]:
    answer = client.patch(f"/v1/datasets/{dataset}", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def listed(client: TestClient, **params: Any) -> set[str]:
    answer = client.get("/v1/datasets", params={"limit": 100, **params})
    return {row["id"] for row in answer.json()["data"]}


# --- permissions ---------------------------------------------------------------------------------


def test_members_are_kept_in_order_and_shown(client: TestClient) -> None:
    dataset = create(client)["id"]
    members = [{"user_id": SOMEBODY}, {"user_id": SOMEBODY_ELSE}, {"user_id": SOMEBODY}]
    changed = change(client, dataset, permission="partial_members", partial_member_list=members)
    assert changed["permission"] == "partial_members"
    assert changed["partial_member_list"] == [SOMEBODY, SOMEBODY_ELSE]
    shown = client.get(f"/v1/datasets/{dataset}").json()
    assert shown["partial_member_list"] == [SOMEBODY, SOMEBODY_ELSE]


def test_a_list_replaces_the_one_before_and_other_changes_leave_it(client: TestClient) -> None:
    dataset = create(client, permission="partial_members")["id"]
    change(client, dataset, partial_member_list=[SOMEBODY])
    assert change(client, dataset, description="x")["partial_member_list"] == [SOMEBODY]
    changed = change(client, dataset, partial_member_list=[{"user_id": SOMEBODY_ELSE}])
    assert changed["partial_member_list"] == [SOMEBODY_ELSE]
    assert change(client, dataset, partial_member_list=[])["partial_member_list"] == []


@pytest.mark.parametrize("permission", ["only_me", "all_team_members"])
def test_another_permission_clears_the_list(client: TestClient, permission: str) -> None:
    dataset = create(client)["id"]
    change(client, dataset, permission="partial_members", partial_member_list=[SOMEBODY])
    changed = change(client, dataset, permission=permission, partial_member_list=[SOMEBODY])
    assert (changed["permission"], changed["partial_member_list"]) == (permission, [])
    assert "partial_member_list" not in client.get(f"/v1/datasets/{dataset}").json()
    assert change(client, dataset, permission="partial_members")["partial_member_list"] == []


@pytest.mark.parametrize("members", [["nobody"], [{}], [{"user_id": 7}], "all", [None]])
def test_a_list_of_something_else_is_refused_and_changes_nothing(
    client: TestClient, members: Any
) -> None:
    dataset = create(client, permission="partial_members")["id"]
    change(client, dataset, partial_member_list=[SOMEBODY])
    answer = client.patch(f"/v1/datasets/{dataset}", json={"partial_member_list": members})
    assert "partial_member_list" in refused(answer, 422, "unprocessable_entity")
    shown = client.get(f"/v1/datasets/{dataset}").json()
    assert shown["partial_member_list"] == [SOMEBODY]


def test_the_list_hides_what_does_not_name_the_owner_unless_all_is_asked_for(
    client: TestClient,
) -> None:
    owner = create(client)["created_by"]
    by_permission = {
        permission: create(client, permission=permission)["id"]
        for permission in ("only_me", "all_team_members", "partial_members")
    }
    named = create(client, permission="partial_members")["id"]
    change(client, named, partial_member_list=[SOMEBODY, owner])
    hidden = by_permission["partial_members"]
    everything = {*by_permission.values(), named}
    assert listed(client) & everything == everything - {hidden}
    for yes in ("true", "True", "1"):
        assert listed(client, include_all=yes) >= everything
    assert hidden not in listed(client, include_all="false")
    assert client.get(f"/v1/datasets/{hidden}").status_code == 200


def test_members_travel_with_an_archive(client: TestClient) -> None:
    dataset = create(client, indexing_technique="economy", permission="partial_members")["id"]
    change(client, dataset, partial_member_list=[SOMEBODY, SOMEBODY_ELSE])
    archive = client.get(f"/v1/datasets/{dataset}/export").content
    made = client.post("/v1/datasets/import", params={"name": fresh_name()}, content=archive)
    shown = client.get(f"/v1/datasets/{made.json()['id']}").json()
    assert shown["partial_member_list"] == [SOMEBODY, SOMEBODY_ELSE]


# --- the contract's checklist --------------------------------------------------------------------

BY_DATASET = [
    ("GET", ""),
    ("PATCH", ""),
    ("DELETE", ""),
    ("GET", "/tags"),
    ("POST", "/tags"),
    ("POST", "/document/create-by-text"),
    ("POST", "/document/create_by_file"),
    ("GET", "/documents"),
    ("POST", "/retrieve"),
    ("POST", "/hit-testing"),
]


@pytest.mark.parametrize("header", [None, "Basic x", "Bearer", "Bearer app-123", "dataset-1"])
def test_a_wrong_scheme_no_header_or_another_key_is_401_with_a_challenge(
    client: TestClient, header: str | None
) -> None:
    headers = {"Authorization": header or ""}
    for method, path in (("GET", "/v1/datasets"), ("GET", "/v1/datasets/tags")):
        answer = client.request(method, path, headers=headers)
        refused(answer, 401, "unauthorized")
        assert answer.headers["WWW-Authenticate"] == 'Bearer realm="api"'


@pytest.mark.parametrize("dataset", [NOWHERE, "not-a-uuid", NOWHERE[:-1]])
@pytest.mark.parametrize(("method", "path"), BY_DATASET)
def test_an_unknown_or_malformed_dataset_id_is_404_on_every_route(
    client: TestClient, method: str, path: str, dataset: str
) -> None:
    body: dict[str, Any] = {"json": {}} if method in ("POST", "PATCH") else {}
    answer = client.request(method, f"/v1/datasets/{dataset}{path}", **body)
    refused(answer, 404, "not_found")


def test_a_dataset_of_a_name_alone_has_no_technique_yet_and_shows_top_k_2(
    client: TestClient,
) -> None:
    body = create(client)
    assert body["indexing_technique"] is None
    assert body["embedding_available"] is None
    assert body["retrieval_model_dict"]["top_k"] == 2
    assert (body["description"], body["tags"]) == ("", [])


def test_a_taken_name_is_409_for_a_new_dataset_and_400_for_a_renamed_one(
    client: TestClient,
) -> None:
    first, second = create(client), create(client)
    again = client.post("/v1/datasets", json={"name": first["name"]})
    refused(again, 409, "dataset_name_duplicate")
    renamed = client.patch(f"/v1/datasets/{second['id']}", json={"name": first["name"]})
    refused(renamed, 400, "invalid_param")


def test_a_limit_of_500_is_echoed_as_100(client: TestClient) -> None:
    assert client.get("/v1/datasets", params={"limit": 500}).json()["limit"] == 100


def test_embedding_fields_of_an_economy_dataset_are_dropped(client: TestClient) -> None:
    sent = {"embedding_model": "all-MiniLM-L6-v2", "embedding_model_provider": "local"}
    for technique in ("economy", None):
        body = create(client, indexing_technique=technique, **sent)
        assert (body["embedding_model"], body["embedding_model_provider"]) == (None, None)


def test_an_economy_dataset_answers_by_words_whatever_is_asked(client: TestClient) -> None:
    dataset = create(client, indexing_technique="economy")["id"]
    for name, text in (("a", "a red fox and a red hen"), ("b", "a red car"), ("c", "blue sky")):
        created = add_text(client, dataset, name, text)
        assert wait(client, dataset, created) == "completed"
    orders = [
        [hit["segment"]["document"]["name"] for hit in search(client, dataset, "red fox", **model)]
        for model in (
            {"search_method": "keyword_search"},
            {"search_method": "semantic_search"},
            {"search_method": "hybrid_search"},
        )
    ]
    assert orders == [["a", "b"]] * 3
    assert resources_of(client).index.count(FULL_TEXT_SPACE) >= 3
