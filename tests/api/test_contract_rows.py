"""Quirks that the contract honours and no other test pins down; and which test stands for each line
of its list of differences and of its acceptance checklist.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from kb.api.app import ROUTERS
from tests.api.wire import CHILD, DATASET, DOCUMENT, SEGMENT, mismatch
from tests.kb.api import (
    NOWHERE,
    add_dataset,
    api,
    contents,
    document,
    fresh_name,
    indexed_text,
    refused,
    segments,
)
from tests.kb.server import LINES, add_text

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def client(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with api(tmp_path_factory.mktemp("rows")) as opened:
        yield opened


@pytest.fixture(scope="module")
def dataset(client: TestClient) -> str:
    return add_dataset(client, fresh_name(), indexing_technique="economy")


@pytest.fixture(scope="module")
def book(client: TestClient, dataset: str) -> str:
    return indexed_text(
        client, dataset, "book", "Owls hunt.\nFish swim.\nCats sleep.", process_rule=LINES
    )


def test_the_switch_of_built_in_fields_is_a_post(client: TestClient, dataset: str) -> None:
    path = f"/v1/datasets/{dataset}/metadata/built-in/enable"
    refused(client.delete(path), 405, "method_not_allowed")
    assert client.post(path).json() == {"result": "success"}
    assert client.post(path).json() == {"result": "success"}, "again is fine"
    client.post(f"/v1/datasets/{dataset}/metadata/built-in/disable")


def test_built_in_fields_are_switched_on_in_a_dataset_that_never_had_a_document(
    tmp_path: Path,
) -> None:
    with api(tmp_path, working=False) as fresh:
        path = f"/v1/datasets/{add_dataset(fresh)}/metadata/built-in/enable"
        assert fresh.post(path).json() == {"result": "success"}


def test_tags_of_a_list_may_be_repeated_or_joined(client: TestClient, dataset: str) -> None:
    tags = [
        client.post("/v1/datasets/tags", json={"name": fresh_name("tag")}).json()["id"]
        for _ in range(2)
    ]
    body = {"tag_ids": tags, "target_id": dataset}
    assert client.post("/v1/datasets/tags/binding", json=body).status_code == 204
    for query in (f"tag_ids={tags[0]}&tag_ids={tags[1]}", f"tag_ids={tags[0]},{tags[1]}"):
        listed = client.get(f"/v1/datasets?{query}").json()["data"]
        assert [row["id"] for row in listed] == [dataset]


def test_the_technique_is_inherited_by_later_documents(client: TestClient, dataset: str) -> None:
    assert client.get(f"/v1/datasets/{dataset}").json()["indexing_technique"] == "economy"
    accepted = add_text(client, dataset, fresh_name("book"), "Bees fly.")
    assert accepted["document"]["indexing_status"] == "waiting"


def test_a_changed_segment_comes_back_as_one_object(
    client: TestClient, dataset: str, book: str
) -> None:
    row = segments(client, dataset, book)[2]
    path = f"/v1/datasets/{dataset}/documents/{book}/segments/{row['id']}"
    answer = client.post(path, json={"segment": {"content": "Cats purr.", "keyword": ["x"]}})
    assert mismatch(answer.json(), {"data": SEGMENT, "doc_form": str}) is None
    assert answer.json()["data"]["content"] == "Cats purr."


def test_a_child_chunk_has_eight_keys(client: TestClient) -> None:
    family = add_dataset(client, fresh_name())
    rule = {
        "mode": "hierarchical",
        "rules": {
            "pre_processing_rules": [],
            "parent_mode": "paragraph",
            "segmentation": {"separator": "\\n\\n", "max_tokens": 500},
            "subchunk_segmentation": {"separator": "\\n", "max_tokens": 100},
        },
    }
    body = {"doc_form": "hierarchical_model", "process_rule": rule}
    parents = indexed_text(client, family, "trees", "Oaks grow.\nOaks age.\n\nElms.", **body)
    first = segments(client, family, parents)[0]
    assert [child["content"] for child in first["child_chunks"]] == ["Oaks grow.", "Oaks age."]
    assert all(set(child) == set(CHILD) for child in first["child_chunks"])


def test_a_page_is_said_to_be_followed_as_the_formula_has_it(
    client: TestClient, dataset: str, book: str
) -> None:
    path = f"/v1/datasets/{dataset}/documents/{book}/segments"
    full = client.get(path, params={"limit": 3}).json()
    assert (len(full["data"]), full["has_more"], full["total"]) == (3, True, 3)
    beyond = client.get(path, params={"limit": 500}).json()
    assert (beyond["limit"], beyond["has_more"]) == (500, False)
    empty = client.get(path, params={"page": 9}).json()
    assert (empty["data"], empty["page"], empty["total"]) == ([], 9, 3)


def test_a_separator_is_literal_and_lengths_are_characters(client: TestClient) -> None:
    rule = json.loads(json.dumps(LINES))
    rule["rules"]["segmentation"] = {"separator": ".", "max_tokens": 50, "chunk_overlap": 0}
    shelf = add_dataset(client, fresh_name(), indexing_technique="economy")
    text = "abc.déf." + "ö" * 50 + "." + "x" * 51
    made = contents(client, shelf, indexed_text(client, shelf, "dots", text, process_rule=rule))
    assert made[:3] == ["abc", "déf", "ö" * 50]
    assert all(len(part) <= 50 for part in made)
    assert "".join(made[3:]) == "x" * 51


def test_a_separator_that_is_not_ascii_is_used_as_it_is(client: TestClient) -> None:
    rule = json.loads(json.dumps(LINES))
    rule["rules"]["segmentation"]["separator"] = "。"
    shelf = add_dataset(client, fresh_name(), indexing_technique="economy")
    text = "猫が眠る。犬が走る。"
    made = contents(client, shelf, indexed_text(client, shelf, "dots", text, process_rule=rule))
    assert made == ["猫が眠る", "犬が走る"]


def test_the_same_name_is_one_document_with_another_batch(client: TestClient) -> None:
    shelf = add_dataset(client, fresh_name(), indexing_technique="economy")
    first = add_text(client, shelf, "book", "Owls hunt.")
    second = add_text(client, shelf, "book", "Owls sleep.")
    assert first["document"]["id"] == second["document"]["id"]
    assert first["batch"] != second["batch"]
    assert client.get(f"/v1/datasets/{shelf}/documents").json()["total"] == 1


def test_a_dataset_without_a_description_shows_an_empty_one(client: TestClient) -> None:
    answer = client.post("/v1/datasets", json={"name": fresh_name(), "whatever": 1}).json()
    assert answer["description"] == ""
    assert mismatch(answer, DATASET) is None


def test_metadata_that_is_empty_has_three_shapes(client: TestClient) -> None:
    shelf = add_dataset(client, fresh_name(), indexing_technique="economy")
    bare = indexed_text(client, shelf, "book", "Owls hunt.")
    (row,) = client.get(f"/v1/datasets/{shelf}/documents").json()["data"]
    assert mismatch(row, DOCUMENT) is None
    assert row["doc_metadata"] == []
    assert document(client, shelf, bare)["doc_metadata"] is None
    (hit,) = client.post(f"/v1/datasets/{shelf}/retrieve", json={"query": "owls"}).json()["records"]
    assert hit["segment"]["document"]["doc_metadata"] in (None, {})


def test_an_archived_document_is_only_kept_from_deletion_by_its_own_code(
    client: TestClient,
) -> None:
    shelf = add_dataset(client, fresh_name(), indexing_technique="economy")
    old = indexed_text(client, shelf, "book", "Owls hunt.")
    status = f"/v1/datasets/{shelf}/documents/status"
    client.patch(f"{status}/archive", json={"document_ids": [old]})
    path = f"/v1/datasets/{shelf}/documents/{old}"
    refused(client.delete(path), 403, "archived_document_immutable")
    edit = client.post(f"{path}/update-by-text", json={"name": "book", "text": "Owls sleep."})
    assert edit.json().get("code") != "archived_document_immutable"
    client.patch(f"{status}/un_archive", json={"document_ids": [old]})
    assert client.delete(path).status_code == 204


def test_wherever_a_dataset_is_named_an_unknown_or_malformed_id_is_404(client: TestClient) -> None:
    seen = 0
    for route in (route for router in ROUTERS for route in router.routes):
        if "{dataset_id}" not in route.path or not route.path.startswith("/v1/"):
            continue
        for wrong in (NOWHERE, "no-uuid"):
            path = re.sub(r"\{\w+\}", NOWHERE, route.path.replace("{dataset_id}", wrong))
            for method in route.methods:
                answer = client.request(method, path)
                assert answer.status_code == 404, f"{method} {route.path}: {answer.text}"
                assert answer.json()["code"] == "not_found"
                seen += 1
    assert seen > 80


def test_a_trailing_slash_is_404_and_no_redirect(client: TestClient) -> None:
    for path in ("/v1/datasets/", "/v1/datasets/tags/"):
        for method in ("GET", "POST"):
            answer = client.request(method, path, follow_redirects=False)
            assert answer.status_code == 404, f"{method} {path}"


@pytest.mark.parametrize("query", ["page=0", "page=x", "limit=-1", "limit=1.5"])
def test_every_list_refuses_a_page_that_is_none(
    client: TestClient, query: str, dataset: str
) -> None:
    lists = ["/v1/datasets", f"/v1/datasets/{dataset}/documents", "/v1/queries"]
    lists += [f"/v1/datasets/{dataset}/queries", "/v1/datasets/external-knowledge-api"]
    for path in lists:
        assert query.split("=")[0] in refused(client.get(f"{path}?{query}"), 400, "invalid_param")


# --- which test stands for which line -------------------------------------------------------------

_CLIENTS = "the_python_library_gets_what_it_reads the_node_library_gets_what_it_reads"
DIFFERENCES: dict[int, str] = {
    1: _CLIENTS,
    2: _CLIENTS,
    3: _CLIENTS,
    4: _CLIENTS,
    5: "the_switch_of_built_in_fields_is_a_post",
    6: _CLIENTS,
    7: "tags_of_a_list_may_be_repeated_or_joined",
    8: "a_taken_name_is_409_for_a_new_dataset_and_400_for_a_renamed_one",
    9: "a_file_beyond_the_limit_is_413 "
    "a_type_that_no_extractor_reads_is_415_and_the_others_are_listed",
    10: "the_technique_is_inherited_by_later_documents",
    12: "a_changed_segment_comes_back_as_one_object",
    13: "a_child_chunk_has_eight_keys",
    14: "a_page_is_said_to_be_followed_as_the_formula_has_it",
    15: "the_threshold_applies_to_the_final_score a_threshold_counts_only_when_it_is_enabled",
    16: "a_dataset_shows_a_top_k_of_2_and_is_searched_with_4",
    17: "weights_count_without_reranking_and_their_type_does_not",
    18: "hybrid_search_without_a_reranker_is_cut_to_top_k_and_its_head_is_stable",
    19: "a_separator_is_literal_and_lengths_are_characters",
    20: "a_separator_is_literal_and_lengths_are_characters",
    22: "a_provider_s_condition_filters_by_one_name_or_any_of_several",
    23: "full_text_finds_texts_with_any_word_of_the_query",
    24: "a_document_of_another_form_keeps_it_when_the_update_does_not_say",
    25: "the_same_name_is_one_document_with_another_batch",
    26: "a_text_is_replaced_in_place_and_its_batch_stays",
    27: "a_changed_segment_comes_back_as_one_object",
    28: "a_null_means_what_an_absent_key_means_and_unknown_keys_are_ignored",
    29: "a_dataset_without_a_description_shows_an_empty_one",
    30: "a_name_is_cut_to_200_characters_and_gets_no_suffix",
    31: _CLIENTS,
    32: "metadata_that_is_empty_has_three_shapes",
    33: "the_list_hides_what_does_not_name_the_owner_unless_all_is_asked_for",
    34: "an_economy_dataset_is_searched_by_words_whatever_is_asked",
    35: "an_archived_document_is_only_kept_from_deletion_by_its_own_code",
    36: "a_document_that_waits_or_is_disabled_takes_no_segments",
    37: "a_disabled_segment_is_not_found_and_keeps_its_text",
    38: "embedding_fields_of_an_economy_dataset_are_dropped",
    39: "an_unbound_external_dataset_says_how_to_bind_it",
    40: "weights_count_without_reranking_and_their_type_does_not",
}
"""Rows of the list of differences. 11 (a rate limit) and 21 (a limit on whole-document parents) ask
for nothing."""
CHECKLIST: dict[int, str] = {
    1: "a_wrong_scheme_no_header_or_another_key_is_401_with_a_challenge",
    2: "wherever_a_dataset_is_named_an_unknown_or_malformed_id_is_404",
    3: "a_dataset_of_a_name_alone_has_no_technique_yet_and_shows_top_k_2",
    4: "a_taken_name_is_409_for_a_new_dataset_and_400_for_a_renamed_one",
    5: "a_limit_of_500_is_echoed_as_100",
    6: "the_python_client_goes_from_dataset_to_answer_and_cleans_up",
    7: "the_python_client_s_economy_flow_finds_words",
    8: "the_same_name_is_one_document_with_another_batch",
    9: "a_text_is_replaced_in_place_and_its_batch_stays",
    10: "the_traps_of_a_multipart_body_are_400_with_their_codes",
    11: "metadata_says_which_part_of_a_document_is_shown another_value_of_metadata_is_400",
    12: "an_archived_document_is_not_deleted a_document_in_work_is_not_deleted",
    13: "an_unknown_action_is_400 nothing_to_do_is_a_success",
    14: "a_document_that_waits_or_is_disabled_takes_no_segments "
    "new_segments_that_are_none_are_refused_in_the_contracts_other_shape",
    15: "a_disabled_segment_is_not_found_and_keeps_its_text",
    16: "a_parent_comes_with_the_children_that_matched_best_first",
    17: "children_stay_unless_they_are_to_be_made_anew",
    18: "fields_are_made_listed_renamed_and_deleted values_replace_all_or_are_merged",
    19: "every_operator_on_texts every_operator_on_numbers every_operator_on_times",
    20: "a_filter_without_a_match_gives_no_records",
    21: "the_contract_s_worked_example_of_a_weighted_sum_comes_out_to_four_decimals",
    22: "hybrid_search_without_a_reranker_is_cut_to_top_k_and_its_head_is_stable",
    23: "the_threshold_is_on_the_models_scores_and_the_cut_comes_last",
    24: "a_query_has_250_characters_at_most",
    25: "tags_are_listed_newest_first_as_a_bare_array "
    "unbinding_takes_a_list_or_one_tag_and_a_missing_pair_is_fine",
    26: "the_contracts_route_lists_models_that_datasets_take",
    27: "a_probe_is_answered_with_no_records the_path_may_have_a_double_slash_or_the_prefix "
    "an_absent_null_or_empty_condition_changes_nothing",
    28: "every_item_has_the_node_s_shape_and_its_place",
    29: "a_content_type_without_a_body_and_unknown_parameters_are_passed_over",
    30: "a_partial_retrieval_model_is_filled_with_defaults",
}


@pytest.mark.parametrize("lines", [DIFFERENCES, CHECKLIST], ids=["differences", "checklist"])
def test_every_line_of_the_contract_has_a_test_that_is_there(lines: dict[int, str]) -> None:
    there: set[str] = set()
    for file in TESTS.rglob("test_*.py"):
        there |= set(re.findall(r"^def test_(\w+)\(", file.read_text("utf-8"), re.MULTILINE))
    named: dict[int, Any] = {line: names.split() for line, names in lines.items()}
    missing = {n: name for n, names in named.items() for name in names if name not in there}
    assert missing == {}
    left_out = {11, 21} if lines is DIFFERENCES else set()
    assert set(lines) | left_out == set(range(1, 41 if lines is DIFFERENCES else 31))
