"""Edits of segments and child chunks through the API: the contract, and what queries find."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import update

from kb.db import transaction
from kb.errors import StoreUnavailable
from kb.ingestion.embedding_cache import text_hash
from kb.models import Segment
from kb.segments import SegmentChange, change_segment
from kb.settings import Limits
from pipelines.errors import TransientError
from tests.api.shelf import BIRDS, PARENTS, TREES, Book, book
from tests.kb.api import NOWHERE, keys, refused
from tests.kb.ingesting import Killed, dies, open_lab

SEGMENT_KEYS = keys(
    """id document_id position content sign_content answer word_count tokens keywords index_node_id
    index_node_hash hit_count enabled disabled_at indexing_at completed_at stopped_at disabled_by
    updated_by status created_by created_at updated_at error child_chunks attachments summary
    source"""
)


def test_added_segments_come_last_and_are_found_at_once(database: str, tmp_path: Path) -> None:
    with book(tmp_path) as b:
        words, tokens, _ = b.counts()
        answer = b.add({"content": "delta moles dig", "keywords": ["mole", "mole", ""]}, "echo")
        assert answer["doc_form"] == "text_model"
        assert [set(row) for row in answer["data"]] == [SEGMENT_KEYS] * 2
        row = answer["data"][0]
        assert (row["position"], row["status"], row["keywords"]) == (4, "completed", ["mole"])
        assert (row["word_count"], row["tokens"]) == (15, 3)
        assert b.found("moles") == ["delta moles dig"]
        assert b.texts() == [*BIRDS.split("\n"), "delta moles dig", "echo"]
        assert b.counts() == (words + 19, tokens + 4, 5)
        b.sound()


def test_an_edit_is_in_force_when_its_call_returns(database: str, tmp_path: Path) -> None:
    with book(tmp_path) as b:
        old = b.segment("bravo fish swim")
        answer = b.edit("bravo fish swim", content="bravo whales sing")
        assert (answer["data"]["id"], answer["data"]["position"]) == (old, 2)
        assert answer["data"]["updated_by"] == answer["data"]["created_by"]
        assert b.found("fish swim") == []
        assert b.found("whales") == ["bravo whales sing"]
        assert b.call("GET", f"/{old}")["data"]["content"] == "bravo whales sing"
        b.sound()


def test_a_deleted_segment_is_gone_at_once(database: str, tmp_path: Path) -> None:
    with book(tmp_path) as b:
        words, tokens, _ = b.counts()
        gone = b.segment("bravo fish swim")
        b.delete("bravo fish swim")
        assert b.found("fish") == []
        assert b.counts() == (words - len("bravo fish swim"), tokens - 3, 2)
        b.call("GET", f"/{gone}", 404)
        b.call("DELETE", f"/{gone}", 404)
        b.sound()


def test_a_disabled_segment_is_not_found_and_keeps_its_text(tmp_path: Path) -> None:
    with book(tmp_path) as b:
        row = b.edit("bravo fish swim", enabled=False, content="other", keywords=["k"])["data"]
        assert (row["enabled"], row["content"], row["keywords"]) == (False, "bravo fish swim", [])
        assert row["disabled_at"]
        assert b.found("fish") == []
        refused_body = b.edit("bravo fish swim", 400, content="other")
        assert (refused_body["code"], refused_body["status"]) == ("invalid_param", 400)
        row = b.edit("bravo fish swim", enabled=True)["data"]
        assert (row["enabled"], row["disabled_at"], row["disabled_by"]) == (True, None, None)
        assert b.found("fish") == ["bravo fish swim"]
        b.sound()


@pytest.mark.parametrize("change", [{}, {"content": ""}, {"content": None}, {"content": "  "}])
def test_an_empty_content_keeps_the_text(tmp_path: Path, change: dict[str, Any]) -> None:
    with book(tmp_path) as b:
        b.edit("bravo fish swim", keywords=["a"], **change)
        row = b.edit("bravo fish swim", keywords=[], **change)["data"]
        assert (row["content"], row["keywords"]) == ("bravo fish swim", ["a"])
        assert b.found("fish") == ["bravo fish swim"]


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        {},
        {"segments": []},
        {"segments": "x"},
        {"segments": [{}]},
        {"segments": [{"content": " \n"}]},
        {"segments": [{"content": 7}]},
    ],
)
def test_new_segments_that_are_none_are_refused_in_the_contracts_other_shape(
    tmp_path: Path, body: Any
) -> None:
    with book(tmp_path) as b:
        answer = b.call("POST", "", 400, body)
        assert set(answer) == {"error"}
        assert answer["error"]
        assert len(b.rows()) == 3


def test_a_document_that_waits_or_is_disabled_takes_no_segments(tmp_path: Path) -> None:
    with book(tmp_path) as b:
        b.upload("another text")
        path = f"/v1/datasets/{b.dataset}/documents/{b.id}/segments"
        for sent in ({"segments": [{"content": "x"}]}, {"segments": []}):
            refused(b.lab.client.post(path, json=sent), 404, "not_found")


def test_segments_beyond_the_limit_of_a_call_are_refused(tmp_path: Path) -> None:
    with open_lab(tmp_path / "lab", changes={"limits": Limits(segments=2)}) as lab:
        b = Book(lab)
        assert "KB_LIMITS__SEGMENTS" in b.add("a", "b", "c", status=400)["message"]
        assert len(b.add("a", "b")["data"]) == 2


def test_what_is_not_in_the_document_is_not_found(tmp_path: Path) -> None:
    with book(tmp_path, TREES, **PARENTS) as b:
        segment = b.rows()[0]["id"]
        child = b.rows()[1]["child_chunks"][0]["id"]
        for method, path, body in (
            ("GET", f"/{NOWHERE}", None),
            ("GET", "/seven", None),
            ("POST", f"/{NOWHERE}", {"segment": {"content": "x"}}),
            ("DELETE", f"/{NOWHERE}", None),
            ("GET", f"/{NOWHERE}/child_chunks", None),
            ("POST", f"/{NOWHERE}/child_chunks", {"content": "x"}),
            ("PATCH", f"/{segment}/child_chunks/{child}", {"content": "x"}),
            ("DELETE", f"/{segment}/child_chunks/{child}", None),
        ):
            assert b.call(method, path, 404, body)["code"] == "not_found"


def test_added_parents_are_cut_by_the_documents_rule(tmp_path: Path) -> None:
    with book(tmp_path, TREES, **PARENTS) as b:
        (row,) = b.add("fig is sweet\nfig is small")["data"]
        assert [c["content"] for c in row["child_chunks"]] == ["fig is sweet", "fig is small"]
        assert {c["type"] for c in row["child_chunks"]} == {"automatic"}
        assert b.found("sweet") == ["fig is sweet\nfig is small"]
        b.sound()


def test_children_stay_unless_they_are_to_be_made_anew(database: str, tmp_path: Path) -> None:
    with book(tmp_path, TREES, **PARENTS) as b:
        tree, other = "oak is tall\noak is old", "ash is broad\nash is bare"
        row = b.edit(tree, content=other)["data"]
        assert [c["content"] for c in row["child_chunks"]] == ["oak is tall", "oak is old"]
        assert b.found("tall") == [other]
        assert b.found("broad") == []
        row = b.edit(other, regenerate_child_chunks=True)["data"]
        assert [c["content"] for c in row["child_chunks"]] == ["ash is broad", "ash is bare"]
        assert b.found("tall") == []
        assert b.found("broad") == [other]
        b.sound()


def test_child_chunks_are_added_changed_and_deleted(database: str, tmp_path: Path) -> None:
    with book(tmp_path, TREES, **PARENTS) as b:
        tree = "oak is tall\noak is old"
        path = f"/{b.segment(tree)}/child_chunks"
        child = b.call("POST", path, json={"content": "acorns fall"})["data"]
        assert set(child) == keys(
            "id segment_id content position word_count type created_at updated_at"
        )
        assert (child["position"], child["type"], child["word_count"]) == (3, "customized", 11)
        assert b.found("acorns") == [tree]
        one = f"{path}/{child['id']}"
        assert b.call("PATCH", one, json={"content": "leaves fall"})["data"]["type"] == "customized"
        assert b.found("acorns") == []
        assert b.found("leaves") == [tree]
        b.call("DELETE", one, 204)
        assert b.found("leaves") == []
        listed = b.call("GET", f"{path}?limit=1&page=2&keyword=OAK")
        assert [row["content"] for row in listed["data"]] == ["oak is old"]
        assert {k: listed[k] for k in listed if k != "data"} == {
            "total": 2,
            "total_pages": 2,
            "page": 2,
            "limit": 1,
        }
        assert b.call("GET", f"{path}?limit=500")["limit"] == 100
        for body in ({}, {"content": " "}, {"content": 3}):
            assert b.call("POST", path, 400, body)["code"] == "invalid_param"
        b.sound()


def test_a_segment_without_children_is_found_by_its_own_text(database: str, tmp_path: Path) -> None:
    with book(tmp_path, TREES, **PARENTS) as b:
        tree = "oak is tall\noak is old"
        for child in b.children(tree).values():
            b.call("DELETE", f"/{b.segment(tree)}/child_chunks/{child}", 204)
        assert b.found("tall") == [tree]
        b.sound()
        b.call("POST", f"/{b.segment(tree)}/child_chunks", json={"content": "acorns fall"})
        assert b.found("tall") == []
        assert b.found("acorns") == [tree]
        b.sound()


def test_a_retrieved_parent_has_only_the_children_that_matched(tmp_path: Path) -> None:
    with book(tmp_path, TREES, **PARENTS) as b:
        b.call("POST", f"/{b.rows()[0]['id']}/child_chunks", json={"content": "tall tall oak"})
        (hit,) = b.hits("tall")
        scores = [child["score"] for child in hit["child_chunks"]]
        assert {c["content"] for c in hit["child_chunks"]} == {"oak is tall", "tall tall oak"}
        assert scores == sorted(scores, reverse=True)
        assert hit["score"] == scores[0]


def test_a_flat_document_takes_no_child_chunks(tmp_path: Path) -> None:
    with book(tmp_path) as b:
        path = f"/{b.rows()[0]['id']}/child_chunks"
        assert "text_model" in b.call("POST", path, 400, {"content": "x"})["message"]
        assert b.call("GET", path)["data"] == []


def test_an_economy_segment_is_edited_without_a_model(tmp_path: Path) -> None:
    with book(tmp_path, technique="economy") as b:
        b.lab.embedder.before = dies
        row = b.edit("bravo fish swim", content="bravo whales sing")["data"]
        assert row["tokens"] == 0
        assert b.found("whales") == ["bravo whales sing"]
        b.sound()


# -- what fails in between


def test_a_model_that_is_away_changes_nothing(tmp_path: Path) -> None:
    def away(_: object) -> None:
        raise TransientError("no model answers at nowhere")

    with book(tmp_path) as b:
        b.lab.embedder.before = away
        answer = b.edit("bravo fish swim", 503, content="bravo whales sing")
        assert "no model answers" in answer["message"]
        b.add("delta", status=503)
        assert b.texts() == BIRDS.split("\n")
        assert b.found("fish") == ["bravo fish swim"]
        assert b.lab.waiting_jobs() == []


def test_an_index_that_fails_right_after_the_change_gets_it_later(
    database: str, tmp_path: Path
) -> None:
    def away(_: object) -> None:
        raise StoreUnavailable("index", "upsert")

    with book(tmp_path) as b:
        b.lab.index.before_upsert = away
        assert "is stored" in b.edit("bravo fish swim", 503, content="whales sing")["message"]
        assert b.add("delta", status=503)
        assert b.found("fish") == []
        assert b.texts() == ["alpha owls hunt", "whales sing", "charlie cats sleep"]
        b.lab.index.before_upsert = lambda points: None
        b.lab.jobs()
        assert b.found("whales") == ["whales sing"]
        b.sound()


@pytest.mark.parametrize("moment", ["before_upsert", "after_upsert"])
def test_an_edit_whose_process_dies_is_finished_by_the_next_one(
    database: str, tmp_path: Path, moment: str
) -> None:
    with book(tmp_path) as b:
        setattr(b.lab.index, moment, dies)
        segment = UUID(b.segment("bravo fish swim"))
        with pytest.raises(Killed):
            change_segment(b.place(), segment, SegmentChange(content="bravo whales sing"))
        setattr(b.lab.index, moment, lambda points: None)
        assert b.found("fish") == []
        b.lab.restart()
        assert b.lab.jobs() == 1
        assert b.found("whales") == ["bravo whales sing"]
        b.sound()


def test_of_two_edits_at_once_the_later_one_is_in_force_in_both_stores(
    database: str, tmp_path: Path
) -> None:
    with book(tmp_path) as b:
        path = f"/{b.segment('bravo fish swim')}"

        def overtaken(_: object) -> None:
            b.lab.index.before_upsert = lambda points: None
            b.call("POST", path, json={"segment": {"content": "bravo seals rest"}})

        b.lab.index.before_upsert = overtaken
        b.call("POST", path, json={"segment": {"content": "bravo whales sing"}})
        assert b.texts()[1] == "bravo seals rest"
        assert b.found("whales fish") == []
        assert b.found("seals") == ["bravo seals rest"]
        b.sound()


def test_an_edit_beside_a_new_version_of_the_document_stays(database: str, tmp_path: Path) -> None:
    with book(tmp_path) as b:
        b.upload(BIRDS + "\ndelta moles dig")
        claim = b.lab.claim()

        def edits(_: object) -> None:
            b.lab.index.before_upsert = lambda points: None
            b.edit("bravo fish swim", content="bravo whales sing")
            b.delete("charlie cats sleep")

        b.lab.index.before_upsert = edits
        b.lab.ingest(claim)
        assert b.texts() == ["alpha owls hunt", "bravo whales sing", "delta moles dig"]
        assert b.found("whales") == ["bravo whales sing"]
        assert b.found("fish cats") == []
        b.sound()


def test_a_point_of_another_text_than_its_rows_is_not_returned(tmp_path: Path) -> None:
    with book(tmp_path) as b:
        with transaction(b.lab.resources.sessions) as session:
            session.execute(
                update(Segment)
                .where(Segment.content == "bravo fish swim")
                .values(content="bravo", text_hash=text_hash("bravo"))
            )
        assert b.found("fish") == []
        others = {"alpha owls hunt", "charlie cats sleep"}
        assert set(b.lab.found(b.dataset, "fish swim")) == others
