"""External knowledge, as client: services are kept, tried out, bound to datasets, and asked."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import select
from starlette.testclient import TestClient

from kb.db import reading
from kb.models import ExternalApi
from kb.settings import External
from tests.kb.api import (
    NOWHERE,
    add_dataset,
    api,
    fresh_name,
    indexed_text,
    keys,
    refused,
    resources_of,
)
from tests.kb.server import LINES
from tests.librarian import Librarian, Says, librarian, record

APIS = "/v1/datasets/external-knowledge-api"
CONSOLE = "/console/api/datasets"
HIDDEN = "[__HIDDEN__]"
TEMPLATE = keys("id tenant_id name description settings dataset_bindings created_by created_at")
OPTIONS = External(
    allow_private=True, timeout_s=1.5, retries=2, retry_base_s=0.01, answer_bytes=20_000, most=12
)


@pytest.fixture(scope="module")
def client(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """One process with workers for all tests of this module."""
    with api(tmp_path_factory.mktemp("client"), external=OPTIONS) as opened:
        yield opened


@pytest.fixture
def service() -> Iterator[Librarian]:
    with librarian() as opened:
        opened.records = [
            record("The walrus sleeps.", 0.91, "walrus.txt", document_id="D7", path="s3://a"),
            record("An otter swims.", 0.4, "otter.txt"),
        ]
        yield opened


@pytest.fixture
def kept(client: TestClient, service: Librarian) -> Iterator[dict[str, Any]]:
    """The service as a template; forgotten afterwards, with its datasets."""
    made = template(client, service)
    yield made
    for bound in client.get(f"{APIS}/{made['id']}").json().get("dataset_bindings", []):
        client.delete(f"/v1/datasets/{bound['id']}")
    client.delete(f"{APIS}/{made['id']}")


@pytest.fixture
def dataset(client: TestClient, kept: dict[str, Any]) -> str:
    return str(bound(client, kept)["id"])


def template(client: TestClient, service: Librarian, **body: Any) -> dict[str, Any]:
    asked = {"name": fresh_name("api"), "settings": settings_of(service), **body}
    answer = client.post(APIS, json=asked)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def settings_of(service: Librarian, **changes: Any) -> dict[str, Any]:
    return {"endpoint": service.endpoint, "api_key": "s3cret-key", **changes}


def bound(client: TestClient, kept: dict[str, Any], **body: Any) -> dict[str, Any]:
    asked = {
        "name": fresh_name("external"),
        "external_knowledge_api_id": kept["id"],
        "external_knowledge_id": "KB-42",
        **body,
    }
    answer = client.post("/v1/datasets/external", json=asked)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def hit_test(client: TestClient, dataset: str, query: str = "walrus", **body: Any) -> Any:
    return client.post(
        f"/v1/datasets/{dataset}/external-hit-testing", json={"query": query, **body}
    )


def records(answer: Any) -> list[Any]:
    assert answer.status_code == 200, answer.text
    return list(answer.json()["records"])


# --- services ------------------------------------------------------------------------------------


def test_a_service_is_tried_out_and_kept_without_showing_its_key(
    client: TestClient, service: Librarian, kept: dict[str, Any]
) -> None:
    (probe,) = service.asked
    assert probe.path == "/base/retrieval"
    assert probe.headers["authorization"] == "Bearer s3cret-key"
    assert probe.body == {
        "knowledge_id": "",
        "query": "",
        "retrieval_setting": {"top_k": 1, "score_threshold": 0.0},
    }
    assert set(kept) == TEMPLATE
    assert kept["settings"] == {"endpoint": service.endpoint, "api_key": HIDDEN}
    assert kept["dataset_bindings"] == []
    assert "T" in kept["created_at"]
    assert client.get(f"{APIS}/{kept['id']}").json() == kept
    with reading(resources_of(client).sessions) as session:
        stored = session.scalars(select(ExternalApi.api_key)).all()
    assert stored
    assert not [key for key in stored if "s3cret" in key]


def test_services_are_listed_newest_first_by_a_part_of_the_name(
    client: TestClient, service: Librarian
) -> None:
    names = ["Quokka one", "Quokka two", "Numbat"]
    made = [template(client, service, name=name) for name in names]
    answer = client.get(APIS, params={"keyword": "quokka", "limit": 1}).json()
    assert [row["name"] for row in answer["data"]] == ["Quokka two"]
    assert (answer["total"], answer["has_more"], answer["limit"], answer["page"]) == (2, True, 1, 1)
    for row in made:
        assert client.delete(f"{APIS}/{row['id']}").status_code == 204
    assert client.get(APIS, params={"keyword": "quokka"}).json()["total"] == 0


def test_a_service_is_changed_without_a_trial_and_the_stand_in_keeps_the_key(
    client: TestClient, service: Librarian, kept: dict[str, Any], dataset: str
) -> None:
    body = {"name": "renamed", "settings": settings_of(service, api_key=HIDDEN)}
    body["settings"]["endpoint"] += "/v2"
    tried = len(service.asked)
    changed = client.patch(f"{APIS}/{kept['id']}", json=body).json()
    assert (changed["name"], changed["settings"]["api_key"]) == ("renamed", HIDDEN)
    assert len(service.asked) == tried
    records(hit_test(client, dataset))
    assert service.asked[-1].path == "/base/v2/retrieval"
    assert service.asked[-1].headers["authorization"] == "Bearer s3cret-key"
    body["settings"]["api_key"] = "another"
    client.patch(f"{APIS}/{kept['id']}", json=body)
    records(hit_test(client, dataset))
    assert service.asked[-1].headers["authorization"] == "Bearer another"


def test_a_service_in_use_cannot_be_deleted(
    client: TestClient, kept: dict[str, Any], dataset: str
) -> None:
    use = f"{APIS}/{kept['id']}/use-check"
    assert client.get(use).json() == {"is_using": True, "count": 1}
    said = refused(client.delete(f"{APIS}/{kept['id']}"), 409, "external_knowledge_api_in_use")
    assert kept["name"] in said
    assert client.get(f"{APIS}/{kept['id']}").json()["dataset_bindings"][0]["id"] == dataset
    client.delete(f"/v1/datasets/{dataset}")
    assert client.get(use).json() == {"is_using": False, "count": 0}
    assert client.delete(f"{APIS}/{kept['id']}").status_code == 204
    refused(client.get(f"{APIS}/{kept['id']}"), 404, "not_found")


@pytest.mark.parametrize("status", [403, 404, 502])
def test_a_trial_that_is_refused_keeps_nothing(
    client: TestClient, service: Librarian, status: int
) -> None:
    service.then = [Says(status=status)] * 3
    before = client.get(APIS).json()["total"]
    answer = client.post(APIS, json={"name": "x", "settings": settings_of(service)})
    assert str(status) in refused(answer, 400, "invalid_param")
    assert client.get(APIS).json()["total"] == before


@pytest.mark.parametrize("status", [200, 400, 401, 422, 500])
def test_a_trial_with_any_other_status_passes(
    client: TestClient, service: Librarian, status: int
) -> None:
    service.then = [Says(status=status)] * 3
    made = template(client, service)
    service.then = [Says(status=status)] * 3
    probed = client.post(f"{APIS}/{made['id']}/probe")
    assert probed.json() == {"result": "success", "status": status}
    client.delete(f"{APIS}/{made['id']}")


def test_a_trial_that_nobody_answers_keeps_nothing(client: TestClient) -> None:
    body = {"name": "x", "settings": {"endpoint": "http://127.0.0.1:1", "api_key": "k"}}
    assert "no answer" in refused(client.post(APIS, json=body), 400, "invalid_param")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "name"),
        ({"name": "x"}, "settings"),
        ({"name": "x", "settings": {}}, "endpoint"),
        ({"name": "x", "settings": {"endpoint": "http://a.org"}}, "api_key"),
        ({"name": "x", "settings": {"endpoint": "http://a.org", "api_key": ""}}, "api_key"),
        ({"name": "x", "settings": {"endpoint": "http://a.org", "api_key": "ü"}}, "api_key"),
        ({"name": "x", "settings": {"endpoint": "ftp://a.org", "api_key": "k"}}, "endpoint"),
        ({"name": "x", "settings": {"endpoint": "http://a.org/?q", "api_key": "k"}}, "endpoint"),
        ({"name": "x" * 41, "settings": {"endpoint": "http://a.org", "api_key": "k"}}, "name"),
        ({"name": "x", "settings": {"endpoint": "http://a.org", "api_key": HIDDEN}}, "api_key"),
    ],
)
def test_a_service_that_cannot_be_kept_is_refused(
    client: TestClient, service: Librarian, body: dict[str, Any], said: str
) -> None:
    if body.get("settings", {}).get("api_key") == HIDDEN:
        body["settings"]["endpoint"] = service.endpoint
    assert said in refused(client.post(APIS, json=body), 400, "invalid_param")
    assert service.asked == []


def test_an_address_that_is_not_public_is_refused_unless_that_is_allowed(
    database: str, tmp_path: Any, service: Librarian
) -> None:
    with api(tmp_path, working=False) as strict:
        body = {"name": "x", "settings": settings_of(service)}
        said = refused(strict.post(APIS, json=body), 400, "invalid_param")
        assert "KB_EXTERNAL__ALLOW_PRIVATE" in said
        body["settings"]["endpoint"] = f"http://localhost:{service.port}"
        refused(strict.post(APIS, json=body), 400, "invalid_param")
    assert service.asked == []


def test_the_number_of_services_is_limited(client: TestClient, service: Librarian) -> None:
    left = OPTIONS.most - client.get(APIS).json()["total"]
    made = [template(client, service) for _ in range(left)]
    answer = client.post(APIS, json={"name": "x", "settings": settings_of(service)})
    assert "KB_EXTERNAL__MOST" in refused(answer, 400, "invalid_param")
    for row in made:
        client.delete(f"{APIS}/{row['id']}")


def test_the_console_s_paths_do_the_same(client: TestClient, service: Librarian) -> None:
    path = f"{CONSOLE}/external-knowledge-api"
    made = client.post(path, json={"name": "console", "settings": settings_of(service)})
    assert made.status_code == 201
    one = f"{path}/{made.json()['id']}"
    assert client.get(one).json()["name"] == "console"
    assert client.get(path).json()["total"] >= 1
    assert client.get(f"{one}/use-check").json()["is_using"] is False
    created = client.post(
        f"{CONSOLE}/external",
        json={
            "name": fresh_name("console"),
            "external_knowledge_api_id": made.json()["id"],
            "external_knowledge_id": "KB-1",
        },
    )
    assert created.status_code == 201
    asked = f"{CONSOLE}/{created.json()['id']}/external-hit-testing"
    assert len(client.post(asked, json={"query": "walrus"}).json()["records"]) == 2
    client.delete(f"/v1/datasets/{created.json()['id']}")
    renamed = {"name": "changed", "settings": settings_of(service)}
    assert client.patch(one, json=renamed).json()["name"] == "changed"
    assert client.delete(one).status_code == 204
    assert TestClient(client.app).get(path).status_code == 401


# --- datasets ------------------------------------------------------------------------------------


def test_an_external_dataset_shows_where_its_knowledge_is(
    client: TestClient, service: Librarian, kept: dict[str, Any]
) -> None:
    model = {"top_k": 3, "score_threshold": 0.5, "score_threshold_enabled": True}
    made = bound(client, kept, external_retrieval_model=model, description="Old things")
    assert made["provider"] == "external"
    assert made["external_retrieval_model"] == model
    assert made["external_knowledge_info"] == {
        "external_knowledge_id": "KB-42",
        "external_knowledge_api_id": kept["id"],
        "external_knowledge_api_name": kept["name"],
        "external_knowledge_api_endpoint": service.endpoint,
    }
    shown = client.get(f"/v1/datasets/{made['id']}").json()
    assert shown["external_knowledge_info"] == made["external_knowledge_info"]
    listed = client.get("/v1/datasets", params={"keyword": made["name"]}).json()["data"]
    assert listed[0]["external_knowledge_info"] == made["external_knowledge_info"]


def test_an_external_dataset_is_made_by_the_common_route_too(
    client: TestClient, service: Librarian, kept: dict[str, Any]
) -> None:
    body = {
        "name": fresh_name("common"),
        "provider": "external",
        "external_knowledge_api_id": kept["id"],
        "external_knowledge_id": "KB-9",
    }
    made = client.post("/v1/datasets", json=body)
    assert made.status_code == 200, made.text
    assert made.json()["external_knowledge_info"]["external_knowledge_id"] == "KB-9"
    refused(client.post("/v1/datasets", json=body), 409, "dataset_name_duplicate")
    body |= {"name": fresh_name(), "external_knowledge_api_id": NOWHERE}
    assert NOWHERE in refused(client.post("/v1/datasets", json=body), 400, "invalid_param")
    body |= {"external_knowledge_api_id": kept["id"], "external_knowledge_id": None}
    said = refused(client.post("/v1/datasets", json=body), 400, "invalid_param")
    assert "external_knowledge_id" in said


def test_an_unbound_external_dataset_says_how_to_bind_it(
    client: TestClient, service: Librarian, kept: dict[str, Any]
) -> None:
    made = client.post("/v1/datasets", json={"name": fresh_name(), "provider": "external"}).json()
    assert made["external_knowledge_info"] is None
    said = refused(hit_test(client, made["id"]), 400, "invalid_param")
    assert "external_knowledge_api_id" in said
    path = f"/v1/datasets/{made['id']}"
    refused(client.patch(path, json={"external_knowledge_id": "K"}), 400, "invalid_param")
    body = {"external_knowledge_id": "KB-7", "external_knowledge_api_id": kept["id"]}
    assert client.patch(path, json=body).status_code == 200
    assert len(records(hit_test(client, made["id"]))) == 2
    assert service.asked[-1].body["knowledge_id"] == "KB-7"
    changed = client.patch(path, json={"external_knowledge_id": "KB-8"}).json()
    assert changed["external_knowledge_info"]["external_knowledge_id"] == "KB-8"
    assert changed["external_knowledge_info"]["external_knowledge_api_id"] == kept["id"]
    client.patch(path, json={"external_retrieval_model": {"top_k": 1}})
    assert len(records(hit_test(client, made["id"]))) == 1


def test_an_external_dataset_takes_no_documents(client: TestClient, dataset: str) -> None:
    body = {"name": "a", "text": "b", "indexing_technique": "high_quality"}
    answer = client.post(f"/v1/datasets/{dataset}/document/create-by-text", json=body)
    assert "takes no documents" in refused(answer, 400, "invalid_param")
    answer = client.patch(f"/v1/datasets/{dataset}", json={"indexing_technique": "economy"})
    refused(answer, 400, "invalid_param")


# --- questions -----------------------------------------------------------------------------------


def test_a_question_is_sent_as_the_contract_has_it(
    client: TestClient, service: Librarian, dataset: str
) -> None:
    found = records(hit_test(client, dataset, 'a "walrus"'))
    asked = service.questions[-1]
    assert asked.headers["content-type"] == "application/json"
    assert asked.body == {
        "retrieval_setting": {"top_k": 4, "score_threshold": 0.0},
        "query": 'a "walrus"',
        "knowledge_id": "KB-42",
        "metadata_condition": None,
    }
    assert found == service.records
    condition = {
        "logical_operator": "and",
        "conditions": [{"name": "year", "comparison_operator": "≥", "value": 2020}],
    }
    model = {"top_k": 1, "score_threshold": 0.5, "score_threshold_enabled": True}
    found = records(
        hit_test(
            client,
            dataset,
            external_retrieval_model=model,
            metadata_filtering_conditions=condition,
        )
    )
    body = service.questions[-1].body
    assert body["retrieval_setting"] == {"top_k": 1, "score_threshold": 0.5}
    assert body["metadata_condition"] == condition
    assert [r["score"] for r in found] == [0.91]


def test_a_service_that_ignores_top_k_and_threshold_is_cut(
    client: TestClient, service: Librarian, dataset: str
) -> None:
    service.records = [record(f"r{n}", n / 100) for n in range(50)]
    model = {"top_k": 3, "score_threshold": 0.48, "score_threshold_enabled": True}
    found = records(hit_test(client, dataset, external_retrieval_model=model))
    assert [r["content"] for r in found] == ["r49", "r48"]
    found = records(hit_test(client, dataset, external_retrieval_model={"top_k": 3}))
    assert [r["content"] for r in found] == ["r49", "r48", "r47"]


def test_retrieve_gives_records_of_the_common_shape(client: TestClient, dataset: str) -> None:
    ours = add_dataset(client, fresh_name("ours"))
    indexed_text(client, ours, "a.txt", "The walrus sleeps.", process_rule=LINES)
    body = {"query": "walrus"}
    (expected, *_) = client.post(f"/v1/datasets/{ours}/retrieve", json=body).json()["records"]
    found = records(client.post(f"/v1/datasets/{dataset}/retrieve", json=body))
    assert [r["score"] for r in found] == [0.91, 0.4]
    assert set(found[0]) == set(expected)
    assert set(found[0]["segment"]) == set(expected["segment"])
    assert set(found[0]["segment"]["document"]) == set(expected["segment"]["document"])
    assert found[0]["segment"]["document"]["name"] == "walrus.txt"
    assert found[0]["segment"]["document"]["id"] == "D7"
    again = records(client.post(f"/v1/datasets/{dataset}/hit-testing", json=body))
    assert [r["segment"]["id"] for r in again] == [r["segment"]["id"] for r in found]
    model = {"retrieval_model": {"top_k": 1}}
    assert len(records(client.post(f"/v1/datasets/{dataset}/retrieve", json=body | model))) == 1


def test_an_external_dataset_is_passed_on_by_the_external_contract(
    client: TestClient, service: Librarian, dataset: str
) -> None:
    body = {"knowledge_id": dataset, "query": "walrus", "retrieval_setting": {"top_k": 1}}
    assert records(client.post("/retrieval", json=body)) == service.records[:1]
    service.then = [Says(status=500)] * 3
    answer = client.post("/retrieval", json=body)
    assert (answer.status_code, answer.json()["error_code"]) == (502, 502)


def test_a_title_or_metadata_may_be_missing_or_null(
    client: TestClient, service: Librarian, dataset: str
) -> None:
    service.records = [
        {"content": "a", "score": 1},
        {"content": "b", "score": None, "title": None, "metadata": None},
    ]
    assert records(hit_test(client, dataset)) == [
        {"content": "a", "score": 1.0, "title": "", "metadata": {}},
        {"content": "b", "score": 0.0, "title": "", "metadata": {}},
    ]


@pytest.mark.parametrize("body", [{}, {"records": None}, {"records": []}])
def test_an_answer_without_records_is_empty(
    client: TestClient, service: Librarian, dataset: str, body: Any
) -> None:
    service.then = [Says(body)]
    assert records(hit_test(client, dataset)) == []


@pytest.mark.parametrize(
    ("says", "said"),
    [
        (Says(b"<html>", 200), "no JSON"),
        (Says(b'{"records": [{"content": "a", "score": NaN}]}'), "no JSON"),
        (Says(b"[" * 10_000), "no JSON"),
        (Says([1]), "no JSON object"),
        (Says({"records": {"a": 1}}), "no list"),
        (Says({"records": [record("a", 1), "b"]}), "records[1]"),
        (Says({"records": [record("a", 1), {"score": 1}]}), "records[1].content"),
        (Says({"records": [record("a", "high")]}), "records[0].score"),
        (Says({"records": [record("a", True)]}), "records[0].score"),
        (Says({"records": [record("a", 1, title=7)]}), "records[0].title"),
        (Says({"records": [{"content": "a", "metadata": [1]}]}), "records[0].metadata"),
        (Says({"error_code": 2001, "error_msg": "no such base"}, 404), "no such base"),
        (Says({"echo": "Bearer s3cret-key"}, 401), "status 401"),
        (Says({"records": [record("a" * 30_000, 1)]}), "KB_EXTERNAL__ANSWER_BYTES"),
    ],
)
def test_an_answer_that_is_none_is_reported_with_what_is_wrong(
    client: TestClient, service: Librarian, dataset: str, says: Says, said: str
) -> None:
    service.then = [says]
    message = refused(hit_test(client, dataset), 502, "external_knowledge_failed")
    assert said in message
    assert service.endpoint in message
    assert "s3cret" not in message
    assert len(service.questions) == 1, "such an answer is not asked for again"


@pytest.mark.parametrize(
    "first", [Says(status=429), Says(status=500), Says(status=503), Says(dies=True)]
)
def test_a_service_that_falters_is_asked_again(
    client: TestClient, service: Librarian, dataset: str, first: Says
) -> None:
    service.then = [first, first]
    assert len(records(hit_test(client, dataset))) == 2
    assert len(service.questions) == 3
    service.then = [first] * 3
    refused(hit_test(client, dataset), 502, "external_knowledge_failed")
    assert len(service.questions) == 6


def test_a_service_is_not_asked_sooner_than_it_says_and_not_later_than_the_limit(
    client: TestClient, service: Librarian, dataset: str
) -> None:
    service.then = [Says(status=429, headers={"Retry-After": "1"})]
    started = time.monotonic()
    assert len(records(hit_test(client, dataset))) == 2
    assert 1.0 <= time.monotonic() - started < 1.5
    service.then = [Says({"error": "slow down"}, 429, {"Retry-After": "60"})]
    started = time.monotonic()
    said = refused(hit_test(client, dataset), 502, "external_knowledge_failed")
    assert "slow down" in said
    assert time.monotonic() - started < 1.0


def test_a_service_that_does_not_answer_in_time_is_given_up(
    client: TestClient, service: Librarian, dataset: str
) -> None:
    service.then = [Says({"records": []}, after_s=2.5)]
    started = time.monotonic()
    said = refused(hit_test(client, dataset), 502, "external_knowledge_failed")
    assert "no answer within" in said
    assert time.monotonic() - started < 2.0


def test_redirects_are_followed_and_the_key_stays_with_its_host(
    client: TestClient, service: Librarian, dataset: str
) -> None:
    service.then = [Says(status=307, headers={"Location": "/moved/retrieval"})]
    assert len(records(hit_test(client, dataset))) == 2
    assert service.asked[-1].path == "/moved/retrieval"
    assert service.asked[-1].headers["authorization"] == "Bearer s3cret-key"
    with librarian() as other:
        service.then = [Says(status=302, headers={"Location": f"{other.endpoint}/retrieval"})]
        assert records(hit_test(client, dataset)) == []
        assert other.asked[0].body["query"] == "walrus"
        assert "authorization" not in other.asked[0].headers
    service.then = [Says(status=307, headers={"Location": "/again"})] * 20
    refused(hit_test(client, dataset), 502, "external_knowledge_failed")


def test_a_question_to_a_service_is_in_the_history_and_can_be_replayed(
    client: TestClient, service: Librarian, dataset: str
) -> None:
    model = {"top_k": 2, "score_threshold": 0.3, "score_threshold_enabled": True}
    records(hit_test(client, dataset, external_retrieval_model=model))
    (row,) = client.get(f"/v1/datasets/{dataset}/queries").json()["data"]
    assert [hit["score"] for hit in row["hits"]] == [0.91, 0.4]
    again = client.post(f"/v1/queries/{row['id']}/replay").json()
    assert again["identical"] is True
    assert service.questions[-1].body["retrieval_setting"] == {"top_k": 2, "score_threshold": 0.3}
    service.records = service.records[1:]
    again = client.post(f"/v1/queries/{row['id']}/replay").json()
    first = again["differences"][0]
    assert (first["before"], first["now"]) == ({"rank": 1, "score": 0.91}, None)
    service.records = [record("New.", 0.95)]
    again = client.post(f"/v1/queries/{row['id']}/replay").json()
    assert {d["reason"] for d in again["differences"]} == {"others"}
    assert len(again["differences"]) == 3


def test_only_external_datasets_are_asked_by_external_hit_testing(client: TestClient) -> None:
    ours = add_dataset(client, fresh_name())
    assert "/retrieve" in refused(hit_test(client, ours), 400, "invalid_param")
    refused(hit_test(client, NOWHERE), 404, "not_found")


# --- beside datasets of ours ---------------------------------------------------------------------


def node(client: TestClient, ids: list[str], **multiple: Any) -> Any:
    config = {"top_k": 10, "reranking_enable": False, **multiple}
    body = {"query": "walrus", "dataset_ids": ids, "multiple_retrieval_config": config}
    return client.post("/v1/knowledge-retrieval", json=body)


def test_a_service_s_records_stand_among_those_of_our_datasets(
    client: TestClient, service: Librarian, dataset: str
) -> None:
    ours = add_dataset(client, fresh_name("ours"))
    indexed_text(client, ours, "a.txt", "The walrus sleeps.\nOwls hunt.", process_rule=LINES)
    answer = node(client, [dataset, ours]).json()
    assert answer["partial"] is False
    result = answer["result"]
    scores = [item["metadata"]["score"] for item in result]
    assert scores == sorted(scores, reverse=True)
    assert [item["metadata"]["position"] for item in result] == [1, 2, 3, 4]
    foreign = [i for i in result if i["metadata"]["data_source_type"] == "external"]
    native = [i for i in result if i not in foreign]
    assert len(foreign) == len(native) == 2
    assert set(foreign[0]) == set(native[0])
    assert set(foreign[0]["metadata"]) == set(native[0]["metadata"])
    first = foreign[0]
    name = first["metadata"]["dataset_name"]
    assert first["title"] == first["metadata"]["document_name"] == "walrus.txt"
    assert first["metadata"]["segment_id"] is None
    assert first["metadata"]["document_id"] == "D7"
    assert foreign[1]["metadata"]["document_id"] == "otter.txt"
    assert first["metadata"]["doc_metadata"] == {
        "document_id": "D7",
        "path": "s3://a",
        "score": 0.91,
        "title": "walrus.txt",
        "dataset_id": dataset,
        "dataset_name": name,
    }
    assert node(client, [dataset, ours], top_k=2).json()["result"] == result[:2]
    kept = node(client, [dataset, ours], score_threshold=0.9).json()["result"]
    assert all(item["metadata"]["score"] >= 0.9 for item in kept)
    assert "walrus.txt" in [item["title"] for item in kept]
    (row,) = client.get(f"/v1/datasets/{dataset}/queries", params={"limit": 1}).json()["data"]
    assert client.post(f"/v1/queries/{row['id']}/replay").json()["identical"] is True


def test_services_are_asked_with_the_dataset_s_own_settings_and_the_node_s_conditions(
    client: TestClient, service: Librarian, kept: dict[str, Any]
) -> None:
    model = {"top_k": 7, "score_threshold": 0.2, "score_threshold_enabled": True}
    made = bound(client, kept, external_retrieval_model=model)
    conditions = {"conditions": [{"name": "y", "comparison_operator": "is", "value": "{{year}}"}]}
    body = {
        "query": "walrus",
        "dataset_ids": [made["id"]],
        "metadata_filtering_mode": "manual",
        "metadata_filtering_conditions": conditions,
        "inputs": {"year": "2024"},
    }
    assert client.post("/v1/knowledge-retrieval", json=body).status_code == 200
    asked = service.questions[-1].body
    assert asked["retrieval_setting"] == {"top_k": 7, "score_threshold": 0.2}
    assert asked["metadata_condition"]["conditions"][0]["value"] == "2024"


def test_services_are_asked_at_the_same_time(client: TestClient, kept: dict[str, Any]) -> None:
    with librarian() as slow:
        slow.records = [record("late", 0.5)]
        other = template(client, slow)
        made = [bound(client, other)["id"] for _ in range(4)]
        slow.then = [Says({"records": slow.records}, after_s=0.5) for _ in made]
        started = time.monotonic()
        assert len(node(client, made).json()["result"]) == 4
        assert time.monotonic() - started < 1.4, "one after the other takes 2 s"
        for dataset in made:
            client.delete(f"/v1/datasets/{dataset}")
        client.delete(f"{APIS}/{other['id']}")


def test_a_service_that_fails_is_reported_and_the_others_answer(
    client: TestClient, service: Librarian, dataset: str
) -> None:
    ours = add_dataset(client, fresh_name("ours"))
    indexed_text(client, ours, "a.txt", "The walrus sleeps.", process_rule=LINES)
    service.then = [Says(b"nonsense")]
    answer = node(client, [dataset, ours]).json()
    assert answer["partial"] is True
    assert [item["title"] for item in answer["result"]] == ["a.txt"]
    (error,) = answer["errors"]
    assert (error["dataset_id"], error["code"]) == (dataset, "external_knowledge_failed")
    assert "nonsense" in error["message"]
    service.then = [Says(b"nonsense")]
    refused(node(client, [dataset]), 502, "external_knowledge_failed")


def test_what_is_odd_in_an_answer_is_passed_on_as_valid_json(
    client: TestClient, service: Librarian, dataset: str
) -> None:
    service.then = [Says(b'{"records": [{"content": "a\\ud800b", "score": 1, '
                         b'"metadata": {"deep": {"k\\udfff": ["\\ud800"]}}}]}')]  # fmt: skip
    answer = hit_test(client, dataset)
    assert answer.status_code == 200
    (found,) = json.loads(answer.content.decode())["records"]
    assert found["content"] == "a?b"
    assert list(found["metadata"]["deep"].values()) == [["?"]]


def test_an_external_dataset_has_nothing_to_export(client: TestClient, dataset: str) -> None:
    answer = client.get(f"/v1/datasets/{dataset}/export")
    assert "another service" in refused(answer, 400, "invalid_param")


def test_a_question_that_was_passed_on_is_not_passed_on_again(
    client: TestClient, service: Librarian, dataset: str
) -> None:
    records(hit_test(client, dataset))
    mark = "x-kb-passed-on"
    assert mark in service.asked[-1].headers
    body = {"knowledge_id": dataset, "query": "walrus"}
    answer = client.post("/retrieval", json=body, headers={mark: "1"})
    assert (answer.status_code, answer.json()["error_code"]) == (400, 400)
    assert "passed on already" in answer.json()["error_msg"]
    ours = add_dataset(client, fresh_name())
    body["knowledge_id"] = ours
    assert records(client.post("/retrieval", json=body, headers={mark: "1"})) == []
