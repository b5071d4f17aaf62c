"""Filters on metadata, through the routes that take them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.api.test_metadata import field, put, url
from tests.kb.api import (
    KEY,
    add_dataset,
    add_text,
    api,
    fresh_name,
    indexed_text,
    refused,
    wait,
)

BODIES: dict[str, dict[str, Any]] = {
    "ann": {"author": "Ann", "year": 2019, "at": 1_600_000_000},
    "Ann-Bo": {"author": "Ann, Bo", "year": 2024, "at": 1_767_225_600},
    "bo": {"author": "bo", "year": 2024.5, "at": "2026-01-01T00:00:01+00:00"},
    "blank": {"author": "", "year": 0},
    "null": {"author": None, "year": None, "at": None},
    "none": {},
    "percent": {"author": "100%_\\"},
    "asia": {"author": "北京 Ünï"},
}
EVERYBODY = frozenset(BODIES)
WITH_AUTHOR = EVERYBODY - {"null", "none"}
WITH_YEAR = frozenset({"ann", "Ann-Bo", "bo", "blank"})
WITH_TIME = frozenset({"ann", "Ann-Bo", "bo"})


@dataclass(frozen=True)
class Shelf:
    """A dataset whose documents are named by the keys of BODIES."""

    client: TestClient
    dataset: str
    fields: dict[str, str]
    documents: dict[str, str]

    def retrieve(self, **conditions: Any) -> Any:
        """The answer to a question that every document answers."""
        model = {
            "search_method": "keyword_search",
            "top_k": 50,
            "metadata_filtering_conditions": conditions,
        }
        body = {"query": "walrus", "retrieval_model": model}
        return self.client.post(f"/v1/datasets/{self.dataset}/retrieve", json=body)

    def found(self, *conditions: Any, **more: Any) -> set[str]:
        """Names of the documents that a filter leaves."""
        answer = self.retrieve(conditions=list(conditions), **more)
        assert answer.status_code == 200, answer.text
        return {r["segment"]["document"]["name"] for r in answer.json()["records"]}


@pytest.fixture(scope="module")
def shelf(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    """One process for all tests of this module."""
    limits = {"filter_conditions": 5, "filter_depth": 4, "filter_values": 8}
    with api(tmp_path_factory.mktemp("filters"), limits=limits) as client:
        dataset = add_dataset(client, fresh_name(), indexing_technique="economy")
        made = {name: add_text(client, dataset, name, f"walrus {name}") for name in BODIES}
        fields = {
            "author": field(client, dataset, "author"),
            "year": field(client, dataset, "year", "number"),
            "at": field(client, dataset, "at", "time"),
        }
        for name, values in BODIES.items():
            assert wait(client, dataset, made[name]) == "completed"
            given = {fields[of]: value for of, value in values.items()}
            assert put(client, dataset, made[name]["document"]["id"], given).status_code == 200
        ids = {name: one["document"]["id"] for name, one in made.items()}
        yield Shelf(client, dataset, fields, ids)


def where(name: Any, operator: str, value: Any = None, **more: Any) -> dict[str, Any]:
    return {"name": name, "comparison_operator": operator, "value": value, **more}


@pytest.mark.parametrize(
    ("operator", "value", "wanted"),
    [
        ("contains", "nn", {"ann", "Ann-Bo"}),
        ("contains", "B", {"Ann-Bo"}),
        ("contains", "", WITH_AUTHOR),
        ("contains", "%_", {"percent"}),
        ("contains", "ü", set()),
        ("not contains", "nn", WITH_AUTHOR - {"ann", "Ann-Bo"}),
        ("start with", "A", {"ann", "Ann-Bo"}),
        ("start with", "北", {"asia"}),
        ("end with", "o", {"Ann-Bo", "bo"}),
        ("is", "Ann", {"ann"}),
        ("is", "ann", set()),
        ("is", "", {"blank"}),
        ("=", "bo", {"bo"}),
        ("is not", "Ann", WITH_AUTHOR - {"ann"}),
        ("≠", "bo", WITH_AUTHOR - {"bo"}),
        ("empty", None, {"null", "none"}),
        ("not empty", None, WITH_AUTHOR),
        ("in", "Ann, bo", {"ann", "bo"}),
        ("in", ["Ann, Bo", "bo"], {"Ann-Bo", "bo"}),
        ("in", [], set()),
        ("in", " , ", set()),
        ("not in", "Ann, bo", WITH_AUTHOR - {"ann", "bo"}),
        ("not in", [], EVERYBODY),
    ],
)
def test_every_operator_on_texts(shelf: Shelf, operator: str, value: Any, wanted: set[str]) -> None:
    assert shelf.found(where("author", operator, value)) == wanted


@pytest.mark.parametrize(
    ("operator", "value", "wanted"),
    [
        ("contains", "NN", {"ann", "Ann-Bo"}),
        ("not contains", "NN", WITH_AUTHOR - {"ann", "Ann-Bo"}),
        ("start with", "a", {"ann", "Ann-Bo"}),
        ("end with", "ÜNÏ", {"asia"}),
        ("is", "BO", {"bo"}),
        ("is not", "BO", WITH_AUTHOR - {"bo"}),
        ("in", "ANN,BO", {"ann", "bo"}),
        ("not in", "ANN,BO", WITH_AUTHOR - {"ann", "bo"}),
    ],
)
def test_case_is_ignored_on_request(
    shelf: Shelf, operator: str, value: Any, wanted: set[str]
) -> None:
    assert shelf.found(where("author", operator, value, ignore_case=True)) == wanted


@pytest.mark.parametrize(
    ("operator", "value", "wanted"),
    [
        ("=", 2024, {"Ann-Bo"}),
        ("is", "2024", {"Ann-Bo"}),
        ("=", 0, {"blank"}),
        ("=", -0.0, {"blank"}),
        ("≠", 2024, WITH_YEAR - {"Ann-Bo"}),
        ("is not", 3, WITH_YEAR),
        (">", 2024, {"bo"}),
        ("after", 2024, {"bo"}),
        ("≥", 2024, {"Ann-Bo", "bo"}),
        (">=", "2024", {"Ann-Bo", "bo"}),
        ("<", 2019, {"blank"}),
        ("before", 2019, {"blank"}),
        ("≤", 2019, {"ann", "blank"}),
        ("<=", 2019.0, {"ann", "blank"}),
        ("in", [2019, 0, 7], {"ann", "blank"}),
        ("in", "2019,2024.5", {"ann", "bo"}),
        ("not in", [2019], WITH_YEAR - {"ann"}),
        ("empty", None, EVERYBODY - WITH_YEAR),
        ("not empty", None, WITH_YEAR),
    ],
)
def test_every_operator_on_numbers(
    shelf: Shelf, operator: str, value: Any, wanted: set[str]
) -> None:
    assert shelf.found(where("year", operator, value)) == wanted


@pytest.mark.parametrize(
    ("operator", "value", "wanted"),
    [
        ("is", 1_767_225_600, {"Ann-Bo"}),
        ("is", "2026-01-01", {"Ann-Bo"}),
        ("is not", 1_767_225_600, {"ann", "bo"}),
        ("before", 1_767_225_600, {"ann"}),
        ("before", "2026-01-01T00:00:00Z", {"ann"}),
        ("after", 1_767_225_600, {"bo"}),
        ("after", "1600000000", {"Ann-Bo", "bo"}),
        ("≥", 1_767_225_600, {"Ann-Bo", "bo"}),
        ("≤", 1_600_000_000, {"ann"}),
        ("empty", None, EVERYBODY - WITH_TIME),
        ("not empty", None, WITH_TIME),
    ],
)
def test_every_operator_on_times(shelf: Shelf, operator: str, value: Any, wanted: set[str]) -> None:
    assert shelf.found(where("at", operator, value)) == wanted


@pytest.mark.parametrize(
    ("name", "type", "operator", "value"),
    [
        ("year", "number", "=", "tall"),
        ("year", "number", "in", "2019,tall"),
        ("year", "number", "contains", "20"),
        ("year", "number", "start with", 20),
        ("author", "string", ">", "Ann"),
        ("author", "string", "before", 3),
        ("at", "time", "is", "yesterday"),
        ("at", "time", "end with", "0"),
    ],
)
def test_a_type_mismatch_names_field_type_and_value(
    shelf: Shelf, name: str, type: str, operator: str, value: Any
) -> None:
    said = refused(shelf.retrieve(conditions=[where(name, operator, value)]), 400, "invalid_param")
    assert f"'{name}'" in said
    assert f"type {type}" in said
    assert str(value).removeprefix("2019,") in said


def test_conditions_are_joined_by_and_or_and_null(shelf: Shelf) -> None:
    ann, late = where("author", "contains", "Ann"), where("year", ">", 2020)
    assert shelf.found(ann, late) == {"Ann-Bo"}
    assert shelf.found(ann, late, logical_operator="and") == {"Ann-Bo"}
    assert shelf.found(ann, late, logical_operator="or") == {"ann", "Ann-Bo", "bo"}
    assert shelf.found(ann, late, logical_operator=None) == {"ann", "Ann-Bo", "bo"}


def test_conditions_without_effect_are_passed_over(shelf: Shelf) -> None:
    late = where("year", ">", 2020)
    assert shelf.found(late, where("author", "is", None)) == {"Ann-Bo", "bo"}
    assert shelf.found(late, where("author", "is", ["Ann"])) == {"Ann-Bo", "bo"}
    assert shelf.found(where("author", "contains", None)) == EVERYBODY
    assert shelf.found() == EVERYBODY


def test_groups_and_negations_nest(shelf: Shelf) -> None:
    ann, late = where("author", "is", "Ann"), where("year", ">", 2020)
    assert shelf.found({"not": ann}) == EVERYBODY - {"ann"}
    assert shelf.found({"not": {"not": ann}}) == {"ann"}
    either = {"logical_operator": "or", "conditions": [ann, late]}
    assert shelf.found(either, {"not": where("at", "after", 1_767_225_600)}) == {"ann", "Ann-Bo"}
    assert shelf.found({"not": either}) == EVERYBODY - {"ann", "Ann-Bo", "bo"}


def test_a_filter_without_a_match_gives_no_records(shelf: Shelf) -> None:
    answer = shelf.retrieve(conditions=[where("author", "is", "nobody")])
    assert (answer.status_code, answer.json()["records"]) == (200, [])


def test_a_field_that_no_dataset_has_is_empty_everywhere(shelf: Shelf) -> None:
    assert shelf.found(where("colour", "is", "red")) == set()
    assert shelf.found(where("colour", "is not", "red")) == set()
    assert shelf.found(where("colour", "not empty")) == set()
    assert shelf.found(where("colour", "empty")) == EVERYBODY
    assert shelf.found({"not": where("colour", "is", "red")}) == EVERYBODY


@pytest.mark.parametrize(
    ("conditions", "setting"),
    [
        ([where("author", "empty")] * 6, "KB_LIMITS__FILTER_CONDITIONS"),
        ([where("author", "in", list("abcdefghi"))], "KB_LIMITS__FILTER_VALUES"),
        ([{"not": {"not": {"not": {"not": {"not": where("author", "empty")}}}}}], "FILTER_DEPTH"),
    ],
)
def test_the_size_of_a_filter_is_bounded_by_settings(
    shelf: Shelf, conditions: list[Any], setting: str
) -> None:
    assert setting in refused(shelf.retrieve(conditions=conditions), 400, "invalid_param")


def test_an_unknown_operator_is_refused_with_those_that_are_known(shelf: Shelf) -> None:
    said = refused(shelf.retrieve(conditions=[where("author", "like", "A")]), 400, "invalid_param")
    assert "'like'" in said
    assert "start with" in said


def test_hits_show_names_and_values(shelf: Shelf) -> None:
    answer = shelf.retrieve(conditions=[where("author", "is", "Ann")])
    (record,) = answer.json()["records"]
    shown = record["segment"]["document"]["doc_metadata"]
    assert shown == {"author": "Ann", "year": 2019, "at": 1_600_000_000}
    answer = shelf.retrieve(conditions=[where("year", "empty"), where("author", "empty")])
    shown = {
        r["segment"]["document"]["name"]: r["segment"]["document"]["doc_metadata"]
        for r in answer.json()["records"]
    }
    assert shown == {"none": None, "null": {"author": None, "year": None, "at": None}}


@pytest.mark.parametrize("name", ["author", ["author"], ["colour", "author"]])
def test_an_external_question_takes_the_same_conditions(shelf: Shelf, name: Any) -> None:
    body = {
        "knowledge_id": shelf.dataset,
        "query": "walrus",
        "retrieval_setting": {"top_k": 50, "score_threshold": 0.0},
        "metadata_condition": {"conditions": [where(name, "start with", "Ann")]},
    }
    answer = shelf.client.post("/retrieval", json=body)
    assert answer.status_code == 200, answer.text
    assert {record["title"] for record in answer.json()["records"]} == {"ann", "Ann-Bo"}
    assert answer.json()["records"][0]["metadata"]["author"].startswith("Ann")


def test_an_external_question_says_which_value_is_of_another_type(shelf: Shelf) -> None:
    body = {
        "knowledge_id": shelf.dataset,
        "query": "walrus",
        "metadata_condition": {"conditions": [where("year", "=", "tall")]},
    }
    answer = shelf.client.post("/retrieval", json=body)
    assert answer.status_code == 400
    assert answer.json()["error_code"] == 400
    assert "'year' is of type number" in answer.json()["error_msg"]


def test_several_datasets_are_filtered_by_their_own_fields(shelf: Shelf) -> None:
    client = shelf.client
    other = add_dataset(client, fresh_name(), indexing_technique="economy")
    by_text, by_nothing = field(client, other, "year"), field(client, other, "author")
    doc = indexed_text(client, other, "other", "walrus in other words")
    put(client, other, doc, {by_text: "tall", by_nothing: "Ann"})

    def ask(*conditions: Any) -> Any:
        body = {
            "query": "walrus",
            "dataset_ids": [shelf.dataset, other],
            "retrieval_mode": "multiple",
            "multiple_retrieval_config": {"top_k": 50, "reranking_enable": False},
            "metadata_filtering_mode": "manual",
            "metadata_filtering_conditions": {"conditions": list(conditions)},
        }
        answer = client.post("/v1/knowledge-retrieval", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    both = ask(where("author", "is", "Ann"))
    assert {one["title"] for one in both["result"]} == {"ann", "other"}
    partly = ask(where("year", ">", 2020))
    assert {one["title"] for one in partly["result"]} == {"Ann-Bo", "bo"}
    assert [one["dataset_id"] for one in partly["errors"]] == [other]
    assert "'year' is of type string" in partly["errors"][0]["message"]


def test_built_in_fields_are_filtered_while_they_are_on(shelf: Shelf) -> None:
    names = where("document_name", "start with", "a")
    assert shelf.found(names) == set()
    assert shelf.client.post(url(shelf.dataset, "built-in", "enable")).status_code == 200
    try:
        assert shelf.found(names) == {"ann", "asia"}
        assert shelf.found(where("uploader", "is", "owner")) == EVERYBODY
        assert shelf.found(where("source", "contains", "file")) == EVERYBODY
        assert shelf.found(where("upload_date", "after", 1_600_000_000)) == EVERYBODY
        assert shelf.found(where("last_update_date", "before", 1_600_000_000)) == set()
    finally:
        assert shelf.client.post(url(shelf.dataset, "built-in", "disable")).status_code == 200
    assert shelf.found(names) == set()


def test_a_change_reaches_filters_when_its_call_returns(shelf: Shelf) -> None:
    author, doc = shelf.fields["author"], shelf.documents["none"]
    for name in ("Cy", "Di"):
        put(shelf.client, shelf.dataset, doc, {author: name})
        assert shelf.found(where("author", "is", name)) == {"none"}
        assert shelf.found(where("author", "contains", name)) == {"none"}
    assert shelf.found(where("author", "is", "Cy")) == set()
    put(shelf.client, shelf.dataset, doc, {})
    assert shelf.found(where("author", "empty")) == {"null", "none"}


def test_a_rename_and_a_deletion_reach_filters_when_their_calls_return(shelf: Shelf) -> None:
    client, dataset, doc = shelf.client, shelf.dataset, shelf.documents["none"]
    colour = field(client, dataset, "shade", "number")
    put(client, dataset, doc, {colour: 7})
    client.patch(url(dataset, colour), json={"name": "hue"})
    assert shelf.found(where("hue", "=", 7)) == {"none"}
    assert shelf.found(where("shade", "=", 7)) == set()
    client.delete(url(dataset, colour))
    assert shelf.found(where("hue", "=", 7)) == set()
    again = field(client, dataset, "hue", "number")
    assert shelf.found(where("hue", "=", 7)) == set()
    assert shelf.found({"not": where("hue", "=", 7)}) == EVERYBODY
    client.delete(url(dataset, again))


def test_a_filter_never_changes_the_order_or_the_raw_scores(shelf: Shelf) -> None:
    body = {"query": "walrus", "retrieval_model": {"search_method": "keyword_search", "top_k": 50}}
    path = f"/v1/datasets/{shelf.dataset}/retrieve?explain=true"
    everything = shelf.client.post(path, json=body).json()["records"]
    body["retrieval_model"]["metadata_filtering_conditions"] = {  # type: ignore[index]
        "conditions": [where("author", "not empty")]
    }
    filtered = shelf.client.post(path, json=body).json()["records"]
    raw = {r["segment"]["id"]: r["explain"]["full_text"]["raw_score"] for r in everything}
    assert filtered
    for record in filtered:
        assert record["explain"]["full_text"]["raw_score"] == raw[record["segment"]["id"]]
    ids = [record["segment"]["id"] for record in filtered]
    assert ids == [r["segment"]["id"] for r in everything if r["segment"]["id"] in set(ids)]


def test_a_question_is_asked_again_with_its_filter(shelf: Shelf) -> None:
    ann, bo = where("author", "is", "ANN", ignore_case=True), where("author", "is", "bo")
    either = {"logical_operator": None, "conditions": [{"not": {"not": ann}}, bo]}
    assert shelf.found(either) == {"ann", "bo"}
    path = f"/v1/datasets/{shelf.dataset}/queries"
    ends = time.monotonic() + 30
    while time.monotonic() < ends:  # it is written behind the answer
        newest = shelf.client.get(path, params={"limit": 1}).json()["data"][0]
        if "not" in str(newest["settings"]) or "part" in str(newest["settings"]):
            break
        time.sleep(0.02)
    answer = shelf.client.post(f"/v1/queries/{newest['id']}/replay")
    assert answer.status_code == 200, answer.text
    assert (answer.json()["identical"], len(answer.json()["hits"])) == (True, 2)


def test_a_key_is_needed(shelf: Shelf) -> None:
    answer = shelf.client.get(url(shelf.dataset), headers={"Authorization": f"Bearer {KEY}x"})
    refused(answer, 401, "unauthorized")
