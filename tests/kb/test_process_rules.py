"""Process rules: what a request may say, what is stored, and the segments that come of it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from pydantic import ValidationError
from starlette.testclient import TestClient

from kb.errors import InvalidParam
from kb.models import DocForm, IndexingTechnique
from kb.process_rules import AUTOMATIC_RULES, ProcessRuleIn, graph_for, validate
from pipelines.definitions import definition
from pipelines.errors import NodeError
from pipelines.graph import Graph
from tests.kb.api import (
    add_dataset,
    api,
    contents,
    document,
    failed_text,
    fresh_name,
    indexed_text,
    segments,
)


@pytest.fixture(scope="module")
def client(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """One process with workers for all tests of this module."""
    with api(tmp_path_factory.mktemp("rules")) as opened:
        yield opened


def cut(separator: str = "\n", max_tokens: int = 500, chunk_overlap: int = 0) -> dict[str, Any]:
    return {"separator": separator, "max_tokens": max_tokens, "chunk_overlap": chunk_overlap}


def custom(*cleaning: str, **segmentation: Any) -> dict[str, Any]:
    """A custom rule with these cleaning steps on."""
    steps = [{"id": step, "enabled": True} for step in cleaning]
    return {
        "mode": "custom",
        "rules": {"pre_processing_rules": steps, "segmentation": cut(**segmentation)},
    }


def hierarchical(parent: Any, child: Any, mode: str | None = "paragraph") -> dict[str, Any]:
    """A hierarchical rule without cleaning."""
    rules = {"pre_processing_rules": [], "parent_mode": mode, "segmentation": parent}
    return {"mode": "hierarchical", "rules": rules | {"subchunk_segmentation": child}}


# --- what a request may say ----------------------------------------------------------------------


def rule_without(*path: str, rule: dict[str, Any]) -> dict[str, Any]:
    """The rule with one key of `rules` left out."""
    rules = {k: v for k, v in rule["rules"].items() if k not in path}
    return rule | {"rules": rules}


@pytest.mark.parametrize(
    ("rule", "named"),
    [
        ({"mode": "custom"}, "process_rule.rules is missing"),
        ({"mode": "hierarchical", "rules": None}, "process_rule.rules is missing"),
        (rule_without("segmentation", rule=custom()), "segmentation is missing"),
        (rule_without("pre_processing_rules", rule=custom()), "pre_processing_rules is missing"),
        (custom(separator=""), "separator is empty"),
        (custom(max_tokens=0), "max_tokens is 0; choose at least 50"),
        (custom(max_tokens=-7), "max_tokens is -7"),
        (hierarchical(None, cut()), "segmentation is missing"),
        (hierarchical(cut(max_tokens=0), cut()), "max_tokens is 0"),
        (hierarchical(cut(separator=""), cut(), "full-doc"), "separator is empty"),
    ],
)
def test_a_rule_that_could_never_work_is_refused_with_the_remedy(
    rule: dict[str, Any], named: str
) -> None:
    with pytest.raises(InvalidParam) as refusal:
        validate(ProcessRuleIn.model_validate(rule))
    assert named in refusal.value.message
    assert "; " in refusal.value.message


@pytest.mark.parametrize(
    "rule",
    [
        {"mode": "automatic"},
        {"mode": "automatic", "rules": None},
        {"mode": "automatic", "rules": {}},
        {"mode": "automatic", "rules": {"segmentation": {}, "pre_processing_rules": "x"}},
        {"mode": "automatic", "rules": "ignored", "unknown": 1},
        custom(max_tokens=1),  # fails the document, not the request
        custom(chunk_overlap=900),
        hierarchical(cut(), None),
        hierarchical(None, cut(), "full-doc"),
        hierarchical(cut(max_tokens=0), cut(), "full-doc"),
        hierarchical(cut(), cut(), None),
        {"mode": "custom", "rules": {"qa": {}}},
        {"mode": "custom", "rules": {"qa": {"question_column": 0, "header": False}}},
    ],
)
def test_a_rule_that_may_work_is_accepted(rule: dict[str, Any]) -> None:
    validate(ProcessRuleIn.model_validate(rule))


@pytest.mark.parametrize(
    "rule",
    [
        {},
        {"mode": None},
        {"mode": "Automatic"},
        {"mode": "custom", "rules": []},
        {"mode": "custom", "rules": {"qa": {"source": "guess"}}},
        {"mode": "custom", "rules": {"qa": {"question_column": ["a"]}}},
        {"mode": "custom", "rules": {"segmentation": {"separator": "x"}}},
        {"mode": "custom", "rules": {"segmentation": cut() | {"max_tokens": 1.5}}},
        {"mode": "custom", "rules": {"segmentation": cut() | {"max_tokens": "many"}}},
        {"mode": "custom", "rules": {"pre_processing_rules": [{"id": "x"}]}},
        {"mode": "hierarchical", "rules": {"parent_mode": "sentence"}},
    ],
)
def test_a_rule_of_the_wrong_shape_is_refused(rule: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ProcessRuleIn.model_validate(rule)


# --- what is stored ------------------------------------------------------------------------------


def test_automatic_is_stored_as_the_contract_s_constant() -> None:
    sent = {"mode": "automatic", "rules": {"segmentation": cut("x", 50)}}
    assert ProcessRuleIn.model_validate(sent).stored() == AUTOMATIC_RULES
    assert AUTOMATIC_RULES["segmentation"] == {
        "delimiter": "\n",
        "max_tokens": 500,
        "chunk_overlap": 50,
    }


def test_of_several_entries_of_one_cleaning_step_the_last_is_kept() -> None:
    steps = [
        {"id": "remove_extra_spaces", "enabled": True},
        {"id": "something_new", "enabled": True},
        {"id": "remove_extra_spaces", "enabled": False},
    ]
    sent = {"mode": "custom", "rules": {"pre_processing_rules": steps, "segmentation": cut()}}
    stored = ProcessRuleIn.model_validate(sent).stored()
    assert stored is not None
    assert stored["pre_processing_rules"] == [
        {"id": "remove_extra_spaces", "enabled": False},
        {"id": "something_new", "enabled": True},
    ]


def test_a_rule_comes_back_as_it_was_sent(client: TestClient) -> None:
    dataset = add_dataset(client, fresh_name())
    rule = hierarchical(cut("\n\n", 1000), cut("。", 200, 20))
    rule["rules"]["pre_processing_rules"] = [{"id": "remove_extra_spaces", "enabled": True}]
    document_id = indexed_text(
        client, dataset, "a", "Some text.", process_rule=rule, doc_form="hierarchical_model"
    )
    row = document(client, dataset, document_id)
    assert row["dataset_process_rule"] == rule
    shown = row["document_process_rule"]
    assert {"mode": shown["mode"], "rules": shown["rules"]} == rule


@pytest.mark.parametrize("key", ["separator", "delimiter"])
def test_a_segmentation_may_be_sent_as_it_is_shown_for_automatic(key: str) -> None:
    """Clients read `delimiter` from an automatic rule and send it back in a custom one."""
    sent = custom()
    sent["rules"]["segmentation"] = {key: "###", "max_tokens": 60}
    rules = ProcessRuleIn.model_validate(sent).rules
    assert rules is not None
    assert rules.segmentation is not None
    assert rules.segmentation.separator == "###"


# --- the graph -----------------------------------------------------------------------------------

RULES = {
    "automatic": {"mode": "automatic", "rules": None},
    "custom": custom("remove_urls_emails", separator="。", max_tokens=60, chunk_overlap=10),
    "paragraph": hierarchical(cut("\n\n"), cut()),
    "full-doc": hierarchical(None, cut(), "full-doc"),
}


@pytest.mark.parametrize("form", [DocForm.TEXT, DocForm.HIERARCHICAL])
@pytest.mark.parametrize("technique", list(IndexingTechnique))
@pytest.mark.parametrize("name", list(RULES))
def test_every_rule_that_fits_makes_a_graph_that_runs(
    form: DocForm, technique: IndexingTechnique, name: str
) -> None:
    rule = RULES[name]
    needs_children = form is DocForm.HIERARCHICAL and name == "custom"
    needs_segmentation = form is DocForm.TEXT and name == "full-doc"
    if needs_children or needs_segmentation:
        with pytest.raises(NodeError, match="is missing; upload the document again"):
            graph_for(form, technique, rule["mode"], rule["rules"], max_chunk_chars=4000)
        return
    choice = graph_for(form, technique, rule["mode"], rule["rules"], max_chunk_chars=4000)
    graph = Graph.from_yaml(definition(choice.definition), choice.parameters)
    assert "chunk" in {graph.role(node) for node in graph.order}


@pytest.mark.parametrize(
    ("rule", "named"),
    [
        (custom(max_tokens=49), "process_rule.segmentation: the maximum chunk length is 49"),
        (custom(max_tokens=4001), "from 50 to 4000"),
        (custom(max_tokens=60, chunk_overlap=61), "process_rule.segmentation: the chunk overlap"),
        (custom(max_tokens=60, chunk_overlap=-1), "the chunk overlap is -1"),
        (hierarchical(cut(), cut(max_tokens=49)), "process_rule.subchunk_segmentation"),
        (hierarchical(cut(max_tokens=49), cut()), "process_rule.segmentation"),
        (hierarchical(cut(), None), "subchunk_segmentation is missing"),
        (hierarchical(None, None, "full-doc"), "subchunk_segmentation is missing"),
    ],
)
def test_lengths_out_of_bounds_fail_the_document_with_a_code(
    client: TestClient, rule: dict[str, Any], named: str
) -> None:
    form = "hierarchical_model" if rule["mode"] == "hierarchical" else "text_model"
    dataset = add_dataset(client, fresh_name())
    row = failed_text(client, dataset, "Some text.", process_rule=rule, doc_form=form)
    assert row["error_code"] == "invalid_process_rule"
    assert named in row["error"]
    assert row["display_status"] == "error"
    assert row["attempts"] <= 1, "bad input is not tried again"


@pytest.mark.parametrize("size", [50, 4000])
def test_the_bounds_themselves_are_allowed(client: TestClient, size: int) -> None:
    dataset = add_dataset(client, fresh_name())
    rule = custom(max_tokens=size, chunk_overlap=size)
    indexed_text(client, dataset, "a", "word " * 30, process_rule=rule)


# --- the segments that come of it ----------------------------------------------------------------


def cut_into(client: TestClient, text: str, rule: dict[str, Any]) -> list[str]:
    dataset = add_dataset(client, fresh_name())
    return contents(client, dataset, indexed_text(client, dataset, "a", text, process_rule=rule))


def test_automatic_merges_small_paragraphs_and_keeps_to_500_characters(client: TestClient) -> None:
    automatic = {"mode": "automatic"}
    assert cut_into(client, "One.\n\nTwo.\n\nThree.", automatic) == ["One.\n\nTwo.\n\nThree."]
    paragraphs = [f"Paragraph {n} {'word ' * 50}end." for n in range(4)]  # some 270 characters
    assert cut_into(client, "\n\n".join(paragraphs), automatic) == paragraphs


def test_automatic_cleans_extra_spaces_and_leaves_addresses(client: TestClient) -> None:
    text = "One    two.\n\n\n\n\nMail a@example.org."
    assert cut_into(client, text, {"mode": "automatic"}) == ["One two.\n\nMail a@example.org."]


@pytest.mark.parametrize(
    ("text", "rule", "expected"),
    [
        ("One.\nTwo.\n\n\nThree.", custom(), ["One.", "Two.", "Three."]),
        ("One.\nTwo.", custom(separator="\\n"), ["One.", "Two."]),
        ("一。二。三", custom(separator="。"), ["一", "二", "三"]),
        ("a###b\n###c", custom(separator="###"), ["a", "b", "c"]),
        ("a.+b.+c", custom(separator=".+"), ["a", "b", "c"]),
        ("no separator here", custom(separator="###"), ["no separator here"]),
        ("- first\n* second\n> third", custom(), ["- first", "second", "third"]),
        ("One    two\tthree.", custom(), ["One    two\tthree."]),
        ("One    two.", custom("remove_extra_spaces"), ["One two."]),
        ("<|im_start|>x", custom(), ["im_start>x"]),
        ("Mail a@b.org or http://b.org/x now", custom("remove_urls_emails"), ["Mail  or  now"]),
    ],
)
def test_custom_cuts_at_the_separator_and_cleans_as_asked(
    client: TestClient, text: str, rule: dict[str, Any], expected: list[str]
) -> None:
    assert cut_into(client, text, rule) == expected


def test_custom_cuts_long_pieces_with_overlap(client: TestClient) -> None:
    text = " ".join(f"word{n:02}" for n in range(30))  # 30 words of 6 characters
    found = cut_into(client, text, custom(max_tokens=55, chunk_overlap=15))
    assert all(len(chunk) <= 55 for chunk in found)
    assert found[0] == " ".join(f"word{n:02}" for n in range(7))
    for before, after in pairwise(found):
        assert after.split()[0] in before
    assert {word for chunk in found for word in chunk.split()} == set(text.split())


def test_paragraph_parents_have_their_lines_as_children(client: TestClient) -> None:
    dataset = add_dataset(client, fresh_name())
    text = "Owls hunt.\nOwls sleep.\n\n. Fish swim.\n。Fish eat."
    document_id = indexed_text(
        client,
        dataset,
        "a",
        text,
        process_rule=hierarchical(cut("\n\n"), cut("\n")),
        doc_form="hierarchical_model",
    )
    rows = segments(client, dataset, document_id)
    assert [(r["content"], [c["content"] for c in r["child_chunks"]]) for r in rows] == [
        ("Owls hunt.\nOwls sleep.", ["Owls hunt.", "Owls sleep."]),
        ("Fish swim.\n。Fish eat.", ["Fish swim.", "Fish eat."]),
    ]
    for row in rows:
        assert text[row["source"]["start"] : row["source"]["end"]] == row["content"]


def test_a_full_document_parent_is_the_text_as_it_was_extracted(client: TestClient) -> None:
    dataset = add_dataset(client, fresh_name())
    rule = hierarchical(None, cut("\n"), "full-doc")
    rule["rules"]["pre_processing_rules"] = [{"id": "remove_extra_spaces", "enabled": True}]
    text = "Owls    hunt.\n\n\n\nFish swim."
    document_id = indexed_text(
        client, dataset, "a", text, process_rule=rule, doc_form="hierarchical_model"
    )
    (row,) = segments(client, dataset, document_id)
    assert row["content"] == text
    assert row["child_chunks"] == []  # the contract lists them for paragraph parents only
    body = {"query": "fish", "retrieval_model": {"search_method": "full_text_search"}}
    answer = client.post(f"/v1/datasets/{dataset}/retrieve", json=body).json()
    (record,) = answer["records"]
    assert record["segment"]["content"] == text
    assert [child["content"] for child in record["child_chunks"]] == ["Fish swim."]


def test_a_hierarchical_document_may_come_with_an_automatic_rule(client: TestClient) -> None:
    dataset = add_dataset(client, fresh_name())
    document_id = indexed_text(
        client,
        dataset,
        "a",
        "Owls hunt.\nOwls sleep.\n\nFish swim.",
        process_rule={"mode": "automatic"},
        doc_form="hierarchical_model",
    )
    rows = segments(client, dataset, document_id)
    assert [row["content"] for row in rows] == ["Owls hunt.\nOwls sleep.", "Fish swim."]
    assert [len(row["child_chunks"]) for row in rows] == [2, 1]


# --- questions and answers -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("qa", "is_table", "definition_name"),
    [
        ({}, True, "qa"),
        ({}, False, "qa_text"),
        ({"source": "table"}, False, "qa"),
        ({"source": "written"}, True, "qa_text"),
        ({"source": "marked"}, True, "qa_text"),
    ],
)
def test_the_file_and_the_rule_choose_how_pairs_are_had(
    qa: dict[str, Any], is_table: bool, definition_name: str
) -> None:
    choice = graph_for(
        DocForm.QA,
        IndexingTechnique.HIGH_QUALITY,
        "custom",
        {"qa": qa},
        max_chunk_chars=4000,
        is_table=is_table,
    )
    assert choice.definition == definition_name
    Graph.from_yaml(definition(choice.definition), choice.parameters)


def test_pieces_that_a_model_writes_about_are_cut_as_the_rule_says() -> None:
    def parameters(mode: str, rules: dict[str, Any] | None) -> dict[str, object]:
        choice = graph_for(
            DocForm.QA,
            IndexingTechnique.HIGH_QUALITY,
            mode,
            rules,
            max_chunk_chars=4000,
            language="Chinese",
        )
        Graph.from_yaml(definition(choice.definition), choice.parameters)
        return choice.parameters

    automatic = parameters("automatic", AUTOMATIC_RULES)
    assert (automatic["mode"], automatic["language"]) == ("automatic", "Chinese")
    assert automatic["remove_extra_spaces"] is True
    assert parameters("custom", {"qa": {"source": "auto"}}) == automatic
    cut_so = parameters("custom", custom("remove_urls_emails", max_tokens=90)["rules"])
    assert (cut_so["mode"], cut_so["max_chars"]) == ("custom", 90)
    assert (cut_so["remove_extra_spaces"], cut_so["remove_urls_emails"]) == (False, True)
