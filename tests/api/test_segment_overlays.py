"""Hand edits when a document is processed anew: in force again, or listed as conflicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.api.shelf import BIRDS, PARENTS, TREES, book
from tests.kb.api import NOWHERE

OAK, ELM = "oak is tall\noak is old", "elm is green\nelm is wet"
WHOLE: dict[str, Any] = {
    "process_rule": {
        "mode": "custom",
        "rules": {
            "pre_processing_rules": [],
            "segmentation": {"separator": "\n\n", "max_tokens": 500, "chunk_overlap": 0},
        },
    }
}
"""One segment of all lines."""


def test_edits_of_text_that_stays_are_in_force_in_the_next_version(
    database: str, tmp_path: Path
) -> None:
    with book(tmp_path) as b:
        b.edit("alpha owls hunt", content="alpha hawks hunt", keywords=["hawk"])
        b.edit("charlie cats sleep", enabled=False)
        b.delete("bravo fish swim")
        b.add("delta moles dig")
        b.upload("zulu is first\n" + BIRDS + "\nyankee is last", settle=True)
        rows = b.rows()
        assert [(r["content"], r["position"], r["enabled"]) for r in rows] == [
            ("zulu is first", 1, True),
            ("alpha hawks hunt", 2, True),
            ("charlie cats sleep", 4, False),
            ("yankee is last", 5, True),
            ("delta moles dig", 6, True),
        ]
        assert rows[1]["keywords"] == ["hawk"]
        assert b.found("owls fish cats") == []
        assert set(b.found("hawks moles")) == {"alpha hawks hunt", "delta moles dig"}
        assert {state for _, state in b.overlays()} == {"active"}
        b.sound()


def test_edits_of_text_that_is_gone_are_listed_and_said(database: str, tmp_path: Path) -> None:
    with book(tmp_path) as b:
        b.edit("alpha owls hunt", content="alpha hawks hunt")
        b.edit("charlie cats sleep", enabled=False)
        b.delete("bravo fish swim")
        b.upload("alpha owls hunt at night\nbravo fish swim and charlie cats sleep", settle=True)
        assert sorted(b.overlays()) == [
            ("deleted", "conflict"),
            ("disabled", "conflict"),
            ("edited", "conflict"),
        ]
        assert any("3 edits by hand" in text for text in b.document()["warnings"])
        path = f"/v1/datasets/{b.dataset}/documents/{b.id}/report"
        told = b.lab.client.get(path).json()["conflicts"]
        assert {(c["kind"], c["original"]) for c in told} == {
            ("edited", "alpha owls hunt"),
            ("disabled", "charlie cats sleep"),
            ("deleted", "bravo fish swim"),
        }
        edit = next(row for row in b.overlay_rows("conflict") if row["kind"] == "edited")
        assert (edit["original"], edit["content"]) == ("alpha owls hunt", "alpha hawks hunt")
        assert edit["suggested_segment_id"] == b.segment("alpha owls hunt at night")
        b.sound()


def test_an_edit_is_in_force_again_when_its_text_comes_back(database: str, tmp_path: Path) -> None:
    with book(tmp_path) as b:
        b.edit("alpha owls hunt", content="alpha hawks hunt")
        b.edit("charlie cats sleep", enabled=False)
        b.delete("bravo fish swim")
        b.upload("something else", settle=True)
        assert dict(b.overlays()) == {
            "edited": "conflict",
            "disabled": "dormant",
            "deleted": "dormant",
        }
        b.upload(BIRDS, settle=True)
        assert {state for _, state in b.overlays()} == {"active"}
        rows = [(row["content"], row["enabled"]) for row in b.rows()]
        assert rows == [("alpha hawks hunt", True), ("charlie cats sleep", False)]
        assert b.found("hawks") == ["alpha hawks hunt"]
        b.sound()


def test_an_edit_that_the_source_took_over_is_no_conflict(tmp_path: Path) -> None:
    with book(tmp_path) as b:
        b.edit("alpha owls hunt", content="alpha hawks hunt")
        b.upload(BIRDS.replace("owls", "hawks"), settle=True)
        assert b.overlays() == [("edited", "dormant")]
        assert b.texts() == BIRDS.replace("owls", "hawks").split("\n")


def test_a_text_that_is_cut_differently_brings_no_deleted_text_back_silently(
    tmp_path: Path,
) -> None:
    with book(tmp_path) as b:
        b.delete("bravo fish swim")
        b.edit("alpha owls hunt", content="alpha hawks hunt")
        path = f"/v1/datasets/{b.dataset}/documents/{b.id}/rechunk"
        answer = b.lab.client.post(path, json=WHOLE)
        assert answer.status_code == 200, answer.text
        b.lab.settle()
        assert b.texts() == [BIRDS]
        assert b.overlays() == [("deleted", "conflict"), ("edited", "conflict")]
        b.upload(BIRDS, settle=True)
        assert b.texts() == ["alpha hawks hunt", "charlie cats sleep"]


def test_an_edit_stays_with_its_text_among_equal_ones(tmp_path: Path) -> None:
    with book(tmp_path, "a one\nsame\nb two\nsame\nc three") as b:
        second = b.rows()[3]["id"]
        b.call("POST", f"/{second}", json={"segment": {"content": "the second"}})
        b.upload("same\na one\nsame\nb two\nsame\nc three", settle=True)
        assert b.texts() == ["same", "a one", "same", "b two", "the second", "c three"]
        b.upload("a one\nb two\nsame\nc three", settle=True)
        assert b.texts() == ["a one", "b two", "the second", "c three"]
        b.upload("a one\nsame\nb two\nc three", settle=True)
        assert b.texts() == ["a one", "same", "b two", "c three"]
        assert b.overlays() == [("edited", "conflict")]
        b.sound()


def test_children_that_were_edited_added_or_deleted_stay_so(database: str, tmp_path: Path) -> None:
    with book(tmp_path, TREES, **PARENTS) as b:
        oak, children = b.segment(OAK), b.children(OAK)
        b.call(
            "PATCH",
            f"/{oak}/child_chunks/{children['oak is tall']}",
            json={"content": "oak is big"},
        )
        b.call("DELETE", f"/{oak}/child_chunks/{children['oak is old']}", 204)
        b.call("POST", f"/{oak}/child_chunks", json={"content": "acorns fall"})
        b.upload("fir is sharp\n\n" + TREES, settle=True)
        assert list(b.children(OAK)) == ["oak is big", "acorns fall"]
        assert list(b.children(ELM)) == ["elm is green", "elm is wet"]
        assert (b.found("tall"), b.found("old")) == ([], [])
        assert (b.found("big"), b.found("acorns")) == ([OAK], [OAK])
        assert {state for _, state in b.overlays()} == {"active"}
        b.sound()
        b.upload("elm is green\nelm is wet", settle=True)
        assert sorted(b.overlays()) == [
            ("child_added", "conflict"),
            ("child_deleted", "dormant"),
            ("child_edited", "conflict"),
        ]
        b.upload(TREES, settle=True)
        assert list(b.children(OAK)) == ["oak is big", "acorns fall"]
        assert {state for _, state in b.overlays()} == {"active"}
        b.sound()


def test_children_made_anew_stay_and_come_back(database: str, tmp_path: Path) -> None:
    with book(tmp_path, TREES, **PARENTS) as b:
        b.edit(OAK, content="ash is broad\nash is bare", regenerate_child_chunks=True)
        ash = "ash is broad\nash is bare"
        b.call("POST", f"/{b.segment(ash)}/child_chunks", json={"content": "keys fly"})
        b.upload(TREES + "\n\nfir is sharp", settle=True)
        assert list(b.children(ash)) == ["ash is broad", "ash is bare", "keys fly"]
        assert (b.found("tall"), b.found("keys")) == ([], [ash])
        b.sound()
        b.upload("fir is sharp", settle=True)
        assert b.overlays() == [("edited", "conflict")]
        assert b.overlay_rows()[0]["child_chunks"] == ["ash is broad", "ash is bare", "keys fly"]
        b.upload(TREES, settle=True)
        assert list(b.children(ash)) == ["ash is broad", "ash is bare", "keys fly"]
        assert b.found("keys") == [ash]
        b.sound()


def test_an_added_parent_keeps_its_children_and_its_edits(database: str, tmp_path: Path) -> None:
    with book(tmp_path, TREES, **PARENTS) as b:
        b.add("fig is sweet\nfig is small")
        fig = "fig is sweet\nfig is small"
        b.call("POST", f"/{b.segment(fig)}/child_chunks", json={"content": "figs fall"})
        b.edit(fig, content="figs of all kinds")
        b.upload("elm is green\nelm is wet", settle=True)
        assert b.texts() == [ELM, "figs of all kinds"]
        assert list(b.children("figs of all kinds")) == [
            "fig is sweet",
            "fig is small",
            "figs fall",
        ]
        assert b.found("sweet") == ["figs of all kinds"]
        assert b.overlays() == [("added", "active")]
        b.sound()


def test_another_rule_for_children_leaves_edited_ones_in_force_or_listed(tmp_path: Path) -> None:
    with book(tmp_path, TREES, **PARENTS) as b:
        oak, children = b.segment(OAK), b.children(OAK)
        for child in children.values():
            b.call("DELETE", f"/{oak}/child_chunks/{child}", 204)
        rule = PARENTS["process_rule"]
        rules = {**rule["rules"], "subchunk_segmentation": {"separator": "is", "max_tokens": 100}}
        b.upload(TREES, settle=True, process_rule={**rule, "rules": rules})
        assert len(b.children(OAK)) == 3
        b.lab.jobs()
        b.sound()


def test_edits_between_staging_and_switch_are_in_force_or_listed(
    database: str, tmp_path: Path
) -> None:
    with book(tmp_path, TREES, **PARENTS) as b:
        b.upload("fir is sharp\n\n" + OAK)
        claim = b.lab.claim()

        def edits(_: object) -> None:
            b.lab.index.before_upsert = lambda points: None
            oak, children = b.segment(OAK), b.children(OAK)
            b.call("POST", f"/{oak}/child_chunks", json={"content": "acorns fall"})
            b.call("DELETE", f"/{oak}/child_chunks/{children['oak is old']}", 204)
            b.edit(ELM, content="elm is gone")
            b.call("POST", f"/{b.segment('elm is gone')}/child_chunks", json={"content": "wood"})

        b.lab.index.before_upsert = edits
        b.lab.ingest(claim)
        assert b.texts() == ["fir is sharp", OAK]
        assert list(b.children(OAK)) == ["oak is tall", "acorns fall"]
        assert sorted(b.overlays()) == [
            ("child_added", "active"),
            ("child_added", "conflict"),
            ("child_deleted", "active"),
            ("edited", "conflict"),
        ]
        b.sound()


def test_a_deleted_segment_needs_no_more_than_its_deletion(tmp_path: Path) -> None:
    with book(tmp_path) as b:
        b.edit("bravo fish swim", content="x")
        b.edit("x", enabled=False)
        b.delete("x")
        assert b.overlays() == [("deleted", "active")]
        assert b.overlay_rows()[0]["original"] == "bravo fish swim"
        b.add("new")
        b.edit("new", content="newer")
        b.delete("newer")
        assert b.overlays() == [("deleted", "active")]


def test_a_text_that_is_put_back_is_no_edit(tmp_path: Path) -> None:
    with book(tmp_path) as b:
        b.edit("bravo fish swim", content="x")
        b.edit("x", content="bravo fish swim")
        b.edit("bravo fish swim", enabled=False)
        b.edit("bravo fish swim", enabled=True)
        assert b.overlays() == []


def test_a_conflict_is_applied_to_a_segment_or_dismissed(database: str, tmp_path: Path) -> None:
    with book(tmp_path) as b:
        b.edit("alpha owls hunt", content="alpha hawks hunt")
        b.delete("bravo fish swim")
        b.upload("alpha owls hunt at night\nthe bravo fish swim", settle=True)
        of = {row["kind"]: row for row in b.overlay_rows("conflict")}
        target = of["edited"]["suggested_segment_id"]
        b.settle_conflict(of["edited"]["id"], 404, segment_id=NOWHERE)
        answer = b.settle_conflict(of["edited"]["id"], segment_id=target)
        assert answer["data"]["content"] == "alpha hawks hunt"
        assert (b.found("owls"), b.found("hawks")) == ([], ["alpha hawks hunt"])
        assert sorted(b.overlays()) == [("deleted", "conflict"), ("edited", "active")]
        active = next(row for row in b.overlay_rows("active"))
        assert "in force" in b.settle_conflict(active["id"], 400)["message"]
        b.settle_conflict(of["edited"]["id"], 404, segment_id=target)
        b.settle_conflict(of["deleted"]["id"], 204)
        assert b.overlays() == [("edited", "active")]
        b.upload("alpha owls hunt at night\nthe bravo fish swim", settle=True)
        assert b.texts() == ["alpha hawks hunt", "the bravo fish swim"]
        b.sound()


def test_a_conflict_of_a_child_goes_to_another_parent(tmp_path: Path) -> None:
    with book(tmp_path, TREES, **PARENTS) as b:
        oak = b.segment(OAK)
        b.call("POST", f"/{oak}/child_chunks", json={"content": "acorns fall"})
        b.call("DELETE", f"/{oak}/child_chunks/{b.children(OAK)['oak is old']}", 204)
        b.upload(ELM + "\noak is old and so on", settle=True)
        (parent,) = b.texts()
        of = {row["kind"]: row["id"] for row in b.overlay_rows("conflict")}
        assert of.keys() == {"child_added", "child_deleted"}
        b.settle_conflict(of["child_added"], segment_id=b.segment(parent))
        answer = b.settle_conflict(of["child_deleted"], 400, segment_id=b.segment(parent))
        assert "child_chunk_id" in answer["message"]
        child = b.children(parent)["oak is old and so on"]
        b.settle_conflict(of["child_deleted"], segment_id=b.segment(parent), child_chunk_id=child)
        assert list(b.children(parent)) == ["elm is green", "elm is wet", "acorns fall"]
        assert {state for _, state in b.overlays()} == {"active"}
        b.sound()


def test_a_state_that_is_none_is_refused(tmp_path: Path) -> None:
    with book(tmp_path) as b:
        path = f"/v1/datasets/{b.dataset}/documents/{b.id}/overlays?state=lost"
        answer = b.lab.client.get(path)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_param")
