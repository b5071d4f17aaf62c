"""POST /v1/knowledge-retrieval with models: a chosen dataset, proposed conditions, a rerank."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from kb.settings import External
from tests.embedding_provider import status
from tests.judging import JUDGE, TALKER, Judge, share_of_words
from tests.kb.api import add_dataset, api, fresh_name, indexed_text, refused
from tests.kb.server import LINES
from tests.librarian import Says, librarian, record

SEA = "The walrus sleeps on ice.\nAn otter floats on its back."
LAND = "Owls hunt at night.\nA fox sleeps in its den."


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with Judge() as opened:
        yield opened


@pytest.fixture(scope="module")
def client(
    database: str, tmp_path_factory: pytest.TempPathFactory, judge: Judge
) -> Iterator[TestClient]:
    """One process with a chat model and a rerank model."""
    external = External(allow_private=True, retries=0)
    with api(tmp_path_factory.mktemp("talking"), external=external) as opened:
        for kind, type, model in (("openai", "llm", TALKER), ("jina", "rerank", JUDGE)):
            body = {
                "type": type,
                "provider": "of-the-tests",
                "model": model,
                "kind": kind,
                "url": judge.url,
                "options": {"retries": 0},
            }
            answer = opened.post("/v1/models", json=body)
            assert answer.status_code == 201, answer.text
        yield opened


@pytest.fixture(scope="module")
def shelf(client: TestClient) -> dict[str, str]:
    """Two datasets by name, whose documents have the field `year` (and `place`, of sea alone)."""
    made = {}
    for name, text, year in (("sea", SEA, 2020), ("land", LAND, 2024)):
        made[name] = add_dataset(
            client, fresh_name(name), description=f"About animals of the {name}."
        )
        document = indexed_text(client, made[name], f"{name}.txt", text, process_rule=LINES)
        fields = [("year", "number", year)] + ([("place", "string", "ice")] * (name == "sea"))
        values = []
        for field, type, value in fields:
            path = f"/v1/datasets/{made[name]}/metadata"
            row = client.post(path, json={"type": type, "name": field}).json()
            values.append({"id": row["id"], "name": field, "value": value})
        body = {"operation_data": [{"document_id": document, "metadata_list": values}]}
        path = f"/v1/datasets/{made[name]}/documents/metadata"
        assert client.post(path, json=body).status_code == 200
    return made


def call(client: TestClient, ids: list[str], query: str = "who sleeps", **body: Any) -> Any:
    node = {"dataset_ids": ids, "query": query, **body}
    node.setdefault("multiple_retrieval_config", {"top_k": 4, "reranking_enable": False})
    return client.post("/v1/knowledge-retrieval", json=node)


def answered(answer: Any) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def titles(answer: dict[str, Any]) -> list[str]:
    return [item["title"] for item in answer["result"]]


TALK = {"provider": "of-the-tests", "name": TALKER, "mode": "chat"}

# --- single --------------------------------------------------------------------------------------


def single(client: TestClient, shelf: dict[str, str], **params: Any) -> Any:
    config = {"model": {**TALK, "completion_params": params}}
    return call(
        client, list(shelf.values()), retrieval_mode="single", single_retrieval_config=config
    )


def test_the_dataset_that_the_chat_model_names_is_searched_alone(
    client: TestClient, shelf: dict[str, str], judge: Judge
) -> None:
    for number, name in ((1, "sea"), (2, "land")):
        judge.says = [json.dumps({"number": number})]
        answer = answered(single(client, shelf, temperature=0.2, max_tokens=50, top_p=1))
        assert answer["chosen_dataset_id"] == shelf[name]
        assert set(titles(answer)) == {f"{name}.txt"}
        assert answer["partial"] is False
    body = judge.asked[-1].body
    assert (body["temperature"], body["max_tokens"]) == (0.2, 50)
    prompt = body["messages"][-1]["content"]
    assert "About animals of the sea." in prompt
    assert "who sleeps" in prompt


def test_the_chosen_dataset_is_searched_as_it_says_itself(
    client: TestClient, shelf: dict[str, str], judge: Judge
) -> None:
    model = {"search_method": "full_text_search", "top_k": 1}
    client.patch(f"/v1/datasets/{shelf['sea']}", json={"retrieval_model": model})
    judge.says = ['{"number": 1}']
    (item,) = answered(single(client, shelf))["result"]
    assert (item["content"], item["metadata"]["score"]) == ("The walrus sleeps on ice.", 1.0)
    model = {"search_method": "semantic_search", "top_k": 4}
    client.patch(f"/v1/datasets/{shelf['sea']}", json={"retrieval_model": model})


@pytest.mark.parametrize("said", ['{"number": null}', '{"number": 3}', '{"number": 0}', "{}"])
def test_no_choice_or_an_unknown_one_gives_nothing(
    client: TestClient, shelf: dict[str, str], judge: Judge, said: str
) -> None:
    judge.says = [said]
    answer = answered(single(client, shelf))
    assert (answer["result"], answer["chosen_dataset_id"]) == ([], None)


def test_a_chat_model_that_is_not_configured_or_away_is_said(
    client: TestClient, shelf: dict[str, str], judge: Judge
) -> None:
    answer = call(
        client,
        list(shelf.values()),
        retrieval_mode="single",
        single_retrieval_config={"model": {"provider": "nobody", "name": "nothing"}},
    )
    assert "nothing" in refused(answer, 400, "provider_not_initialize")
    judge.next(*[status(500)] * 5)
    refused(single(client, shelf), 503, "service_unavailable")
    judge._planned.clear()


# --- automatic conditions ------------------------------------------------------------------------


def automatic(client: TestClient, shelf: dict[str, str], **body: Any) -> Any:
    return call(
        client,
        list(shelf.values()),
        metadata_filtering_mode="automatic",
        metadata_model_config=TALK,
        **body,
    )


def proposal(name: str, operator: str, value: Any) -> dict[str, Any]:
    return {
        "metadata_field_name": name,
        "comparison_operator": operator,
        "metadata_field_value": value,
    }


def test_conditions_that_the_chat_model_finds_restrict_the_answer(
    client: TestClient, shelf: dict[str, str], judge: Judge
) -> None:
    judge.says = [json.dumps({"metadata_map": [proposal("year", "≥", 2022)]})]
    answer = answered(automatic(client, shelf))
    assert set(titles(answer)) == {"land.txt"}
    found = answer["metadata_filter"]
    assert (found["ignored"], found["error"]) == ([], None)
    assert found["conditions"]["logical_operator"] == "or"
    (condition,) = found["conditions"]["conditions"]
    assert (condition["name"], condition["value"]) == ("year", 2022)
    prompt = judge.asked[-1].body["messages"][-1]["content"]
    assert '"year"' in prompt
    assert '"place"' not in prompt, "only sea has it"


def test_conditions_are_combined_as_the_node_says(
    client: TestClient, shelf: dict[str, str], judge: Judge
) -> None:
    both = [proposal("year", "=", 2020), proposal("year", "=", 2024)]
    for operator, expected in (("and", set()), ("or", {"sea.txt", "land.txt"})):
        judge.says = [json.dumps({"metadata_map": both})]
        answer = automatic(
            client, shelf, metadata_filtering_conditions={"logical_operator": operator}
        )
        assert set(titles(answered(answer))) == expected


def test_bad_proposals_are_ignored_and_reported(
    client: TestClient, shelf: dict[str, str], judge: Judge
) -> None:
    bad = [
        proposal("place", "is", "ice"),
        proposal("nowhere", "is", "x"),
        proposal("year", "contains", "20"),
        proposal("year", "=", "2020"),
        proposal("year", "=", True),
        {"metadata_field_name": ["year"]},
        "year is 2020",
        None,
    ]
    judge.says = [json.dumps({"metadata_map": [*bad, proposal("year", "=", 2020)]})]
    answer = answered(automatic(client, shelf))
    assert set(titles(answer)) == {"sea.txt"}
    ignored = answer["metadata_filter"]["ignored"]
    assert [one["proposal"] for one in ignored] == bad
    assert all(one["reason"] for one in ignored)
    judge.says = [json.dumps({"metadata_map": bad})]
    answer = answered(automatic(client, shelf))
    assert set(titles(answer)) == {"sea.txt", "land.txt"}
    assert answer["metadata_filter"]["conditions"] is None


def test_without_an_answer_of_the_chat_model_nothing_is_filtered_and_that_is_said(
    client: TestClient, shelf: dict[str, str], judge: Judge
) -> None:
    judge.always(status(500))
    try:
        answer = answered(automatic(client, shelf))
    finally:
        judge.always(lambda answer: answer)
    assert set(titles(answer)) == {"sea.txt", "land.txt"}
    assert "proposed nothing" in answer["metadata_filter"]["error"]


# --- rerank --------------------------------------------------------------------------------------


def test_the_rerank_model_s_scores_are_the_scale_of_ours_and_of_other_services(
    client: TestClient, shelf: dict[str, str], judge: Judge
) -> None:
    with librarian() as service:
        service.records = [record("a fox digs", 0.99), record("the fox sleeps", 0.01)]
        settings = {"endpoint": service.endpoint, "api_key": "k"}
        path = "/v1/datasets/external-knowledge-api"
        kept = client.post(path, json={"name": "s", "settings": settings}).json()
        body = {
            "name": fresh_name(),
            "external_knowledge_api_id": kept["id"],
            "external_knowledge_id": "1",
        }
        foreign = client.post("/v1/datasets/external", json=body).json()["id"]
        rerank = {"provider": "of-the-tests", "model": JUDGE}
        config = {"top_k": 3, "reranking_enable": True, "reranking_model": rerank}
        ids = [*shelf.values(), foreign]
        query = "the fox sleeps"
        answer = answered(call(client, ids, query, multiple_retrieval_config=config))
        got = [(i["content"], i["metadata"]["score"]) for i in answer["result"]]
        texts = [*SEA.split("\n"), *LAND.split("\n"), "a fox digs", "the fox sleeps"]
        best = sorted((share_of_words(query, text) for text in texts), reverse=True)[:3]
        assert got == [
            (content, pytest.approx(share_of_words(query, content))) for content, _ in got
        ]
        assert [score for _, score in got] == pytest.approx(best)
        assert got[0] == ("the fox sleeps", 1.0)
        assert answer["rerank"]["judged"] == 6
        with_threshold = {**config, "score_threshold": 0.9}
        answer = answered(call(client, ids, query, multiple_retrieval_config=with_threshold))
        assert [i["content"] for i in answer["result"]] == ["the fox sleeps"]
        service.then = [Says(status=500)]
        answer = answered(call(client, ids, query, multiple_retrieval_config=config))
        assert answer["partial"] is True
        assert [error["dataset_id"] for error in answer["errors"]] == [foreign]
        assert len(answer["result"]) == 3
