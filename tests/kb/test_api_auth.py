"""Who may call, the order in which a call is checked, and the errors of the router itself."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from hashlib import sha256

import pytest
from fastapi.routing import APIRoute
from pydantic import SecretStr
from sqlalchemy import update
from starlette.testclient import TestClient

from kb.api.app import ROUTERS, create_app
from kb.db import transaction
from kb.models import ApiKey, Dataset
from kb.wiring import open_resources
from tests.kb.api import (
    NOWHERE,
    add_dataset,
    add_text,
    api,
    fresh_name,
    refused,
    resources_of,
    test_settings,
)

ROUTES = [
    (method, route.path)
    for router in ROUTERS
    for route in router.routes
    if isinstance(route, APIRoute)
    for method in sorted(route.methods or ())
]
KEYED = [(m, p) for m, p in ROUTES if p.startswith("/v1/") and p != "/v1/retrieval"]
OF_A_DATASET = [(m, p) for m, p in KEYED if "{dataset_id}" in p]
ANY_BODY = {
    "name": "a",
    "text": "Some text.",
    "process_rule": {"mode": "automatic"},
    "segment_id": "00000000-0000-4000-8000-000000000000",
}
"""A body that every route about one document takes, but for those that want a file."""
BODILESS = ("pause", "resume", "retry", "cancel")
WITH_BODY = [
    (m, p)
    for m, p in OF_A_DATASET
    if m in ("POST", "PATCH") and p.rpartition("/")[2] not in BODILESS
]


@pytest.fixture(scope="module")
def client(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """No document is worked on: keys and bodies are all that matters here."""
    with api(tmp_path_factory.mktemp("auth"), working=False) as opened:
        yield opened


@pytest.fixture
def anonymous(client: TestClient) -> TestClient:
    """The same API, called without a key."""
    return TestClient(client.app)


def fill(path: str, dataset_id: str = NOWHERE) -> str:
    """A route's path with ids in it."""
    path = path.replace("{dataset_id}", dataset_id)
    return re.sub(r"\{\w+\}", NOWHERE, path)


def bound_key(client: TestClient, dataset_id: str) -> TestClient:
    """A client whose key opens only this dataset."""
    resources, key = resources_of(client), f"ds-{uuid.uuid4().hex}"
    with transaction(resources.sessions) as session:
        session.add(
            ApiKey(
                workspace_id=resources.workspace_id,
                dataset_id=uuid.UUID(dataset_id),
                hint=key[:8],
                sha256=sha256(key.encode()).hexdigest(),
            )
        )
    return TestClient(client.app, headers={"Authorization": f"Bearer {key}"})


# --- the key -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "dataset-key-of-the-tests",
        "Basic dataset-key-of-the-tests",
        "Bearer wrong",
        "Bearer app-0123456789abcdefghijklmn",
        "Bearer dataset-key-of-the-tests-and-more",
        "Bearer \u00e9\u00e8",
    ],
)
def test_a_call_without_a_valid_key_is_answered_401_and_told_how_to_send_one(
    anonymous: TestClient, header: str | None
) -> None:
    headers = {} if header is None else {b"Authorization": header.encode("latin-1")}
    answer = anonymous.get("/v1/datasets", headers=headers)
    assert re.search("Bearer <key>|kb serve", refused(answer, 401, "unauthorized"))
    assert answer.headers["www-authenticate"] == 'Bearer realm="api"'


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Bearer  ", "bearer\t"])
def test_the_scheme_is_read_in_any_case_and_ends_at_white_space(
    anonymous: TestClient, scheme: str
) -> None:
    headers = {"Authorization": f"{scheme} dataset-key-of-the-tests"}
    assert anonymous.get("/v1/datasets", headers=headers).status_code == 200


def test_the_configured_key_is_a_key_of_the_workspace(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    settings = test_settings(tmp_path_factory.mktemp("key"), api_key=SecretStr("from-settings"))
    with open_resources(settings) as resources:
        client = TestClient(create_app(resources))
        headers = {"Authorization": "Bearer from-settings"}
        assert client.get("/v1/datasets", headers=headers).status_code == 200
        assert client.get("/v1/datasets").status_code == 401


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/openapi.json", "/docs"])
def test_health_and_documentation_need_no_key(anonymous: TestClient, path: str) -> None:
    assert anonymous.get(path).status_code == 200


# --- the order of checks -------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path"), KEYED)
def test_every_route_asks_for_the_key_before_anything_else(
    anonymous: TestClient, method: str, path: str
) -> None:
    answer = anonymous.request(method, fill(path), content=b"{broken")
    refused(answer, 401, "unauthorized")


@pytest.mark.parametrize(("method", "path"), OF_A_DATASET)
@pytest.mark.parametrize("dataset_id", [NOWHERE, "not-a-uuid", "{" + NOWHERE + "}", "1" * 32])
def test_an_unknown_dataset_is_404_before_the_body_is_looked_at(
    client: TestClient, method: str, path: str, dataset_id: str
) -> None:
    answer = client.request(method, fill(path, dataset_id), content=b"{broken")
    assert "dataset" in refused(answer, 404, "not_found")


@pytest.mark.parametrize(("method", "path"), WITH_BODY)
def test_a_closed_dataset_is_403_before_the_body_is_looked_at(
    client: TestClient, method: str, path: str
) -> None:
    name = fresh_name()
    dataset = add_dataset(client, name)
    with transaction(resources_of(client).sessions) as session:
        closed = update(Dataset).where(Dataset.id == uuid.UUID(dataset)).values(enable_api=False)
        session.execute(closed)
    answer = client.request(method, fill(path, dataset), content=b"{broken")
    assert name in refused(answer, 403, "forbidden")


@pytest.mark.parametrize(
    ("method", "path"),
    [(m, p) for m, p in OF_A_DATASET if "{document_id}" in p and not p.endswith("/import")],
)
@pytest.mark.parametrize("document_id", [NOWHERE, "not-a-uuid"])
def test_an_unknown_document_is_404(
    client: TestClient, method: str, path: str, document_id: str
) -> None:
    dataset = add_dataset(client, fresh_name())
    filled = fill(path.replace("{document_id}", document_id), dataset)
    answer = client.request(method, filled, json=ANY_BODY)
    assert "document" in refused(answer, 404, "not_found")


def test_a_document_of_another_dataset_is_not_found(client: TestClient) -> None:
    one, other = add_dataset(client, fresh_name()), add_dataset(client, fresh_name())
    created = add_text(client, one, "a", "Some text.")
    path = f"/v1/datasets/{other}/documents/{created['document']['id']}"
    refused(client.get(path), 404, "not_found")
    refused(client.delete(path), 404, "not_found")
    status = f"/v1/datasets/{other}/documents/{created['batch']}/indexing-status"
    refused(client.get(status), 404, "not_found")


# --- keys of one dataset -------------------------------------------------------------------------


def test_a_key_of_one_dataset_opens_that_dataset_only(client: TestClient) -> None:
    mine, other = add_dataset(client, fresh_name()), add_dataset(client, fresh_name())
    bound = bound_key(client, mine)
    assert bound.get(f"/v1/datasets/{mine}").status_code == 200
    assert add_text(bound, mine, "a", "Some text.")["document"]["name"] == "a"
    for method, path in OF_A_DATASET:
        refused(bound.request(method, fill(path, other), json={"query": "x"}), 404, "not_found")


def test_a_key_of_one_dataset_lists_that_dataset_on_the_first_page(client: TestClient) -> None:
    mine = add_dataset(client, fresh_name())
    for _ in range(3):
        add_dataset(client, fresh_name())  # newer ones, which would fill the page
    listing = bound_key(client, mine).get("/v1/datasets?limit=1").json()
    assert [row["id"] for row in listing["data"]] == [mine]
    assert (listing["total"], listing["has_more"]) == (1, False)


@pytest.mark.parametrize("path", ["/v1/datasets", "/v1/doctor"])
def test_a_key_of_one_dataset_does_nothing_to_the_workspace(client: TestClient, path: str) -> None:
    bound = bound_key(client, add_dataset(client, fresh_name()))
    message = refused(bound.post(path, json={"name": fresh_name()}), 403, "forbidden")
    assert "key of the workspace" in message


def test_a_key_dies_with_its_dataset(client: TestClient) -> None:
    dataset = add_dataset(client, fresh_name())
    bound = bound_key(client, dataset)
    assert bound.delete(f"/v1/datasets/{dataset}").status_code == 204
    refused(bound.get("/v1/datasets"), 401, "unauthorized")


# --- the router ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/nothing", "/v1/datasets/", "/v2/datasets"])
def test_an_unknown_route_is_404_in_the_standard_shape(client: TestClient, path: str) -> None:
    message = refused(client.get(path, follow_redirects=False), 404, "not_found")
    assert path in message
    assert "/docs" in message


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/v1/datasets", "GET, POST"),
        ("PUT", f"/v1/datasets/{NOWHERE}", "DELETE, GET, PATCH"),
        ("GET", f"/v1/datasets/{NOWHERE}/retrieve", "POST"),
        ("GET", "/retrieval", "POST"),
        ("POST", f"/v1/datasets/{NOWHERE}/documents/{NOWHERE}", "DELETE, GET, PATCH"),
    ],
)
def test_a_method_that_a_route_lacks_is_405_and_names_those_it_has(
    client: TestClient, method: str, path: str, allowed: str
) -> None:
    answer = client.request(method, path)
    assert allowed in refused(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == allowed
