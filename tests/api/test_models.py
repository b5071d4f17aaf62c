"""Routes of models: the contract's list, and adding, trying out, changing, removing."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from starlette.testclient import TestClient

from kb.configured_models import delete_model, get_model
from kb.datasets import add_dataset as add_row
from kb.db import reading, transaction
from kb.models import ApiKey, ConfiguredModel
from kb.schemas import DatasetCreate
from kb.secrets import is_sealed
from kb.settings import Limits
from tests import embedding_provider as bad
from tests.embedding_provider import DIM, MODEL, Provider
from tests.judging import JUDGE, TALKER, Judge
from tests.kb.api import (
    NOWHERE,
    add_dataset,
    api,
    contents,
    fresh_name,
    indexed_text,
    keys,
    refused,
    resources_of,
)
from tests.kb.ingesting import open_lab
from tests.kb.server import LINES, search

MODELS = "/v1/models"
OF_TYPE = "/v1/workspaces/current/models/model-types"
KEY = "sk-the-key-of-the-tests-4711"


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with Provider(api_key=KEY) as opened:
        yield opened


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with Judge(api_key=KEY) as opened:
        yield opened


@pytest.fixture(scope="module")
def client(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """One process for all tests of this module."""
    with api(tmp_path_factory.mktemp("models")) as opened:
        yield opened


def body(server: Provider, /, **changes: Any) -> dict[str, Any]:
    """An embedding model of the test's server, under a provider name that no other test uses."""
    return {
        "type": "text-embedding",
        "provider": fresh_name("vendor/x/provider"),
        "model": MODEL,
        "kind": "openai",
        "url": server.url,
        "api_key": KEY,
        "options": {"retries": 0, "retry_base_s": 0.01},
        **changes,
    }


def add(client: TestClient, asked: dict[str, Any]) -> dict[str, Any]:
    answer = client.post(MODELS, json=asked)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def try_out(client: TestClient, model: dict[str, Any]) -> dict[str, Any]:
    answer = client.post(f"{MODELS}/{model['id']}/test")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


# --- the contract --------------------------------------------------------------------------------


def test_the_contracts_route_lists_models_that_datasets_take(
    client: TestClient, provider: Provider
) -> None:
    made = add(client, body(provider))
    answer = client.get(f"{OF_TYPE}/text-embedding")
    assert answer.status_code == 200
    assert set(answer.json()) == {"data"}
    groups = {group["provider"]: group for group in answer.json()["data"]}
    assert next(iter(groups)) == "local", "that of the settings comes first"
    group = groups[made["provider"]]
    assert set(group) == keys("tenant_id provider label icon_small icon_large status models")
    assert group["status"] == "active"
    assert group["label"] == {"zh_Hans": made["provider"], "en_US": made["provider"]}
    (model,) = group["models"]
    assert set(model) == keys(
        "model label model_type features fetch_from model_properties deprecated status "
        "load_balancing_enabled"
    )
    assert model["model"] == MODEL
    assert model["model_type"] == "text-embedding"
    assert model["fetch_from"] == "customizable-model"
    assert model["status"] == "active"
    assert model["model_properties"] == {"context_size": 8192, "max_chunks": 64}
    assert groups["local"]["models"][0]["fetch_from"] == "predefined-model"
    for provider_name, listed in groups.items():
        created = client.post(
            "/v1/datasets",
            json={
                "name": fresh_name(),
                "indexing_technique": "high_quality",
                "embedding_model": listed["models"][0]["model"],
                "embedding_model_provider": provider_name,
            },
        )
        assert created.status_code == 200, created.text
        assert created.json()["embedding_model_provider"] == provider_name


@pytest.mark.parametrize("type_", ["rerank", "llm", "tts", "speech2text", "moderation"])
def test_a_type_without_models_is_an_empty_list(tmp_path: Path, type_: str) -> None:
    with api(tmp_path, working=False) as client:
        assert client.get(f"{OF_TYPE}/{type_}").json() == {"data": []}


def test_a_type_that_is_none_is_refused_with_those_that_are(client: TestClient) -> None:
    for path in (f"{OF_TYPE}/embeddings", f"{MODELS}?type=embeddings"):
        message = refused(client.get(path), 400, "invalid_param")
        assert "'embeddings'; choose from text-embedding, rerank, llm" in message


def test_several_models_of_a_provider_stand_together(client: TestClient, judge: Judge) -> None:
    name = fresh_name("together")
    asked = {"type": "llm", "provider": name, "kind": "openai", "url": judge.url}
    for model in ("a", "b"):
        add(client, {**asked, "model": model, "options": {"context_tokens": 1000}})
    groups = client.get(f"{OF_TYPE}/llm").json()["data"]
    (group,) = [g for g in groups if g["provider"] == name]
    assert [m["model"] for m in group["models"]] == ["a", "b"]
    assert group["models"][0]["model_properties"] == {"context_size": 1000, "mode": "chat"}


# --- adding --------------------------------------------------------------------------------------


def test_an_added_model_shows_all_but_its_key(client: TestClient, provider: Provider) -> None:
    before = int(time.time())
    asked = body(provider, options={"timeout_s": 20})
    made = add(client, asked)
    assert set(made) == keys(
        "id source type provider model kind url path api_key_hint options dimension used_by "
        "last_test created_at updated_at"
    )
    assert made["api_key_hint"] == "…4711"
    assert (made["source"], made["kind"], made["url"]) == ("api", "openai", provider.url)
    assert made["options"] == {"timeout_s": 20}
    assert (made["used_by"], made["last_test"], made["dimension"]) == ([], None, None)
    assert before <= made["created_at"] <= time.time()
    path = f"{MODELS}/{made['id']}"
    assert client.get(path).json() == made
    assert made in client.get(MODELS).json()["data"]
    assert made in client.get(f"{MODELS}?type=text-embedding").json()["data"]
    assert made not in client.get(f"{MODELS}?type=rerank").json()["data"]
    for route in (path, MODELS, f"{OF_TYPE}/text-embedding"):
        assert KEY not in client.get(route).text
    resources = resources_of(client)
    with reading(resources.sessions) as session:
        row = session.get_one(ConfiguredModel, uuid.UUID(made["id"]))
        assert row.api_key is not None
        assert is_sealed(row.api_key)
        assert resources.keyring.open(row.api_key) == KEY
        stored = session.execute(select(ConfiguredModel.__table__)).all()
    assert KEY not in str(stored)


def test_the_model_of_the_settings_is_listed_first_and_stays(client: TestClient) -> None:
    first = client.get(MODELS).json()["data"][0]
    assert (first["id"], first["source"], first["dimension"]) == ("settings", "settings", 384)
    assert client.get(f"{MODELS}/settings").json() == first
    for answer in (
        client.delete(f"{MODELS}/settings"),
        client.patch(f"{MODELS}/settings", json={}),
    ):
        assert "KB_EMBEDDING__" in refused(answer, 409, "conflict")
    outcome = client.post(f"{MODELS}/settings/test").json()
    assert (outcome["ok"], outcome["dimension"], outcome["max_tokens"]) == (True, 384, 256)


def test_the_same_names_twice_are_refused_for_one_type_only(
    client: TestClient, provider: Provider
) -> None:
    asked = body(provider)
    add(client, asked)
    assert "already" in refused(client.post(MODELS, json=asked), 409, "model_exists")
    add(client, {**asked, "type": "llm"})
    first = client.get(MODELS).json()["data"][0]
    taken = {**asked, "provider": first["provider"], "model": first["model"]}
    refused(client.post(MODELS, json=taken), 409, "model_exists")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"type": "embedding"}, "type: .*'text-embedding', 'rerank' or 'llm'"),
        ({"kind": "grpc"}, "kind: .*'local', 'openai'"),
        ({"kind": "cohere"}, "kind is 'cohere'; a model of type 'text-embedding' is local, openai"),
        ({"type": "llm", "kind": "tei"}, "kind is 'tei'; a model of type 'llm' is openai"),
        ({"provider": "  "}, "provider: .*at least 1 character"),
        ({"model": "a\tb"}, "model: has characters that cannot be shown"),
        ({"model": None}, "model: Input should be a valid string"),
        ({"url": "ftp://x"}, "url: String should match"),
        ({"url": "http://user:pw@host"}, "'url' of the model .* holds a user or password"),
        ({"kind": "tei", "url": None}, "kind 'tei' needs a server; send url"),
        ({"kind": "local", "url": None}, "kind 'local' needs the path"),
        ({"kind": "local", "path": "/m"}, "kind 'local' has no url; send path"),
        ({"path": "/models/x"}, "kind 'openai' has no path; send url"),
        ({"api_key": "ключ"}, "'api_key' of the model .* no HTTP header holds"),
        ({"options": {"timeout": 3}}, "no option 'timeout'; known: path, url, .*timeout_s"),
        ({"options": {"timeout_s": 0}}, "timeout_s: Input should be greater than 0"),
        ({"options": {"send_dimensions": True}}, "send_dimensions needs a number"),
        ({"options": [1]}, "options: Input should be a valid dictionary"),
        ({"options": {"raw_scores": True}}, "no option 'raw_scores'"),
    ],
)
def test_what_cannot_work_is_refused_with_the_remedy(
    client: TestClient, provider: Provider, changes: dict[str, Any], said: str
) -> None:
    message = refused(client.post(MODELS, json=body(provider, **changes)), 400, "invalid_param")
    assert re.search(said, message), message
    assert KEY not in message


def test_a_directory_without_a_model_is_refused(client: TestClient, tmp_path: Path) -> None:
    for type_, what in (("text-embedding", "sentence-transformers model"), ("rerank", "no cross-")):
        asked = {"type": type_, "provider": "p", "model": "m", "kind": "local"}
        answer = client.post(MODELS, json={**asked, "path": str(tmp_path)})
        assert what in refused(answer, 400, "provider_not_initialize")


def test_a_workspace_has_a_limit_of_models(tmp_path: Path, provider: Provider) -> None:
    with api(tmp_path, working=False, limits=Limits(models=1)) as client:
        add(client, body(provider))
        message = refused(client.post(MODELS, json=body(provider)), 400, "invalid_param")
        assert "KB_LIMITS__MODELS" in message


def test_a_key_of_one_dataset_reads_the_contracts_list_and_changes_nothing(
    client: TestClient, provider: Provider
) -> None:
    dataset = add_dataset(client, fresh_name(), indexing_technique="economy")
    made = add(client, body(provider))
    resources = resources_of(client)
    with transaction(resources.sessions) as session:
        session.add(
            ApiKey(
                workspace_id=resources.workspace_id,
                dataset_id=uuid.UUID(dataset),
                hint="ds-",
                sha256=sha256(f"ds-of-{made['id']}".encode()).hexdigest(),
            )
        )
    headers = {"Authorization": f"Bearer ds-of-{made['id']}"}
    assert client.get(f"{OF_TYPE}/rerank", headers=headers).status_code == 200
    for method, path in (
        ("GET", MODELS),
        ("POST", MODELS),
        ("GET", f"{MODELS}/{made['id']}"),
        ("PATCH", f"{MODELS}/{made['id']}"),
        ("DELETE", f"{MODELS}/{made['id']}"),
        ("POST", f"{MODELS}/{made['id']}/test"),
    ):
        sent = body(provider) if method == "POST" else {}
        refused(client.request(method, path, headers=headers, json=sent), 403, "forbidden")


def test_a_model_that_is_not_there_is_a_404(client: TestClient) -> None:
    for method, path in (
        ("GET", f"{MODELS}/{NOWHERE}"),
        ("PATCH", f"{MODELS}/{NOWHERE}"),
        ("DELETE", f"{MODELS}/{NOWHERE}"),
        ("POST", f"{MODELS}/{NOWHERE}/test"),
        ("GET", f"{MODELS}/no-id"),
    ):
        message = refused(client.request(method, path, json={}), 404, "not_found")
        assert "GET /v1/models" in message


# --- trying out ----------------------------------------------------------------------------------


def test_trying_out_calls_the_model_and_keeps_the_report(
    client: TestClient, provider: Provider
) -> None:
    made = add(client, body(provider))
    provider.forget()
    outcome = try_out(client, made)
    assert len(provider.calls) == 1
    assert provider.calls[0].headers["authorization"] == f"Bearer {KEY}"
    assert outcome["ok"] is True
    assert outcome["dimension"] == DIM
    assert outcome["latency_ms"] > 0
    shown = client.get(f"{MODELS}/{made['id']}").json()
    assert shown["last_test"] == outcome
    assert shown["dimension"] == DIM


def test_trying_out_a_rerank_and_a_chat_model_shows_what_they_gave(
    client: TestClient, judge: Judge
) -> None:
    asked = {"provider": fresh_name("judge"), "url": judge.url, "api_key": KEY}
    rerank = add(client, {**asked, "type": "rerank", "kind": "tei", "model": JUDGE})
    outcome = try_out(client, rerank)
    assert outcome["ok"] is True
    good, other = outcome["scores"]
    assert 1 >= good > other >= 0
    chat = add(client, {**asked, "type": "llm", "kind": "openai", "model": TALKER})
    judge.says.append("ready")
    outcome = try_out(client, chat)
    assert (outcome["ok"], outcome["reply"]) == (True, "ready")
    assert outcome["usage"]["prompt_tokens"] > 0
    assert outcome["usage"]["completion_tokens"] == 1


def test_a_model_that_refuses_or_is_away_is_a_report_that_names_what_to_change(
    client: TestClient, provider: Provider
) -> None:
    made = add(client, body(provider, api_key="sk-wrong-key-of-somebody"))
    outcome = try_out(client, made)
    assert outcome["ok"] is False
    assert outcome["error"]["code"] == "provider_not_initialize"
    assert (
        f"'api_key' of the model {MODEL!r} (PATCH /v1/models/{made['id']})"
        in (outcome["error"]["message"])
    )
    assert "sk-wrong" not in str(outcome)
    assert client.get(f"{MODELS}/{made['id']}").json()["last_test"] == outcome
    away = add(client, body(provider, url="http://127.0.0.1:9", options={"query_timeout_s": 1}))
    assert try_out(client, away)["error"]["code"] == "temporarily_unavailable"


# --- changing ------------------------------------------------------------------------------------


def test_a_change_is_in_force_when_its_call_returns(client: TestClient, provider: Provider) -> None:
    made = add(client, body(provider, api_key="sk-wrong-key-of-somebody"))
    path = f"{MODELS}/{made['id']}"
    assert not try_out(client, made)["ok"]
    changed = client.patch(path, json={"api_key": KEY, "options": {"timeout_s": 9}}).json()
    assert changed["api_key_hint"] == "…4711"
    assert changed["options"] == {"retries": 0, "retry_base_s": 0.01, "timeout_s": 9}
    assert try_out(client, made)["ok"]
    changed = client.patch(path, json={"options": {"timeout_s": None, "retries": 1}}).json()
    assert changed["options"] == {"retries": 1, "retry_base_s": 0.01}
    assert changed["api_key_hint"] == "…4711", "what is not sent stays"
    assert client.patch(path, json={"api_key": None}).json()["api_key_hint"] is None
    assert not try_out(client, made)["ok"]
    assert "'http'" not in refused(client.patch(path, json={"url": "x"}), 400, "invalid_param")
    message = refused(client.patch(path, json={"options": {"bogus": 1}}), 400, "invalid_param")
    assert "no option 'bogus'" in message
    refused(client.patch(path, json=[]), 400, "invalid_param")


def test_a_model_is_removed_and_no_longer_offered(client: TestClient, provider: Provider) -> None:
    made = add(client, body(provider))
    assert client.delete(f"{MODELS}/{made['id']}").status_code == 204
    refused(client.get(f"{MODELS}/{made['id']}"), 404, "not_found")
    asked = {
        "name": fresh_name(),
        "indexing_technique": "high_quality",
        "embedding_model": MODEL,
        "embedding_model_provider": made["provider"],
    }
    message = refused(client.post("/v1/datasets", json=asked), 400, "invalid_param")
    assert made["provider"] in message
    assert "configured: 'all-MiniLM-L6-v2' of provider 'local'" in message


# --- in use --------------------------------------------------------------------------------------


def test_a_dataset_is_indexed_and_searched_with_the_model_it_names(
    client: TestClient, provider: Provider
) -> None:
    """Checklist: `data[].models[].model` is usable in create."""
    made = add(client, body(provider))
    dataset = add_dataset(
        client,
        fresh_name(),
        embedding_model=MODEL,
        embedding_model_provider=made["provider"],
    )
    own = add_dataset(client, fresh_name())
    provider.forget()
    text = "green apples grow\nblue whales sing\nred foxes run"
    for target in (dataset, own):
        document = indexed_text(client, target, "d", text, process_rule=LINES)
        assert len(contents(client, target, document)) == 3
    assert provider.embedded["blue whales sing"] == 1
    records = search(client, dataset, "whales that sing", search_method="semantic_search")
    assert records[0]["segment"]["content"] == "blue whales sing"
    assert provider.calls[-1].texts == ["whales that sing"]
    shown = client.get(f"/v1/datasets/{dataset}").json()
    assert shown["embedding_available"] is True
    assert shown["embedding_model"] == MODEL
    path = f"{MODELS}/{made['id']}"
    assert client.get(path).json()["used_by"] == [shown["name"]]
    message = refused(client.delete(path), 409, "model_in_use")
    assert f"1 datasets need it ('{shown['name']}')" in message
    message = refused(
        client.patch(path, json={"options": {"document_prefix": "passage: "}}), 409, "model_in_use"
    )
    assert "another document_prefix" in message
    assert client.patch(path, json={"url": f"{provider.url}/v1"}).status_code == 200
    assert search(client, dataset, "foxes", search_method="semantic_search")
    assert client.delete(f"/v1/datasets/{dataset}").status_code == 204
    assert client.delete(path).status_code == 204


def test_a_model_whose_server_is_away_refuses_a_new_dataset_for_now(
    client: TestClient, provider: Provider
) -> None:
    made = add(client, body(provider))
    provider.next(bad.status(500), bad.status(500), bad.status(500))
    asked = {
        "name": fresh_name(),
        "indexing_technique": "high_quality",
        "embedding_model_provider": made["provider"],
    }
    refused(client.post("/v1/datasets", json=asked), 503, "service_unavailable")
    created = client.post("/v1/datasets", json=asked)
    assert created.status_code == 200, created.text
    assert created.json()["embedding_model"] == MODEL


def test_an_archive_comes_back_to_the_model_that_made_its_vectors(
    client: TestClient, provider: Provider
) -> None:
    made = add(client, body(provider))
    dataset = add_dataset(
        client, fresh_name(), embedding_model=MODEL, embedding_model_provider=made["provider"]
    )
    indexed_text(client, dataset, "d", "grey owls\nbrown bears", process_rule=LINES)
    archive = client.get(f"/v1/datasets/{dataset}/export?vectors=true").content
    provider.forget()
    answer = client.post(f"/v1/datasets/import?name={fresh_name()}", content=archive)
    assert answer.status_code == 201, answer.text
    copy = answer.json()
    assert copy["embedding_model_provider"] == made["provider"]
    assert copy["imported"]["indexed"] == 1
    assert provider.calls == [], "no text is embedded again"
    records = search(client, copy["id"], "bears", search_method="semantic_search")
    assert records[0]["segment"]["content"] == "brown bears"
    assert len(client.get(f"{MODELS}/{made['id']}").json()["used_by"]) == 2


def test_a_model_that_a_dataset_is_on_its_way_to_is_in_use(
    tmp_path: Path, provider: Provider
) -> None:
    with open_lab(tmp_path) as lab:
        made = add(lab.client, body(provider))
        dataset = lab.dataset()
        lab.add(dataset, "d", "grey owls")
        lab.settle()
        path = f"{MODELS}/{made['id']}"
        wanted = {"embedding_model": MODEL, "embedding_model_provider": made["provider"]}
        changed = lab.client.patch(f"/v1/datasets/{dataset}", json=wanted)
        assert changed.status_code == 200, changed.text
        assert changed.json()["embedding_model"] != MODEL, "it answers from the old space"
        assert lab.client.get(path).json()["used_by"] == ["books"]
        refused(lab.client.delete(path), 409, "model_in_use")
        unknown = {"embedding_model": "none", "embedding_model_provider": made["provider"]}
        answer = lab.client.patch(f"/v1/datasets/{dataset}", json=unknown)
        assert f"configured: 'all-MiniLM-L6-v2' of provider 'local', {MODEL!r} of" in refused(
            answer, 400, "invalid_param"
        )


def test_of_a_removal_and_a_dataset_that_wants_the_model_at_once_one_is_refused(
    client: TestClient, provider: Provider
) -> None:
    resources = resources_of(client)
    made = add(client, body(provider))
    asked = {
        "name": fresh_name(),
        "indexing_technique": "high_quality",
        "embedding_model": MODEL,
        "embedding_model_provider": made["provider"],
    }
    with ThreadPoolExecutor() as threads:
        with transaction(resources.sessions) as session:
            add_row(session, DatasetCreate(**asked), resources)
            removed = threads.submit(client.delete, f"{MODELS}/{made['id']}")
            assert wait_for([removed], timeout=0.5).not_done, "it waits for the dataset"
        refused(removed.result(), 409, "model_in_use")

        other = add(client, body(provider))
        asked |= {"name": fresh_name(), "embedding_model_provider": other["provider"]}
        with transaction(resources.sessions) as session:
            row = get_model(session, resources.workspace_id, uuid.UUID(other["id"]), lock=True)
            delete_model(session, row, resources)
            created = threads.submit(client.post, "/v1/datasets", json=asked)
            assert wait_for([created], timeout=0.5).not_done, "it waits for the removal"
        assert other["provider"] in refused(created.result(), 400, "invalid_param")
