"""Edits in a document of questions and answers, and edits while a dataset changes its model."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.api.shelf import BIRDS, Book
from tests.kb.ingesting import Lab, open_lab
from tests.kb.server import add_file
from tests.kb.test_switching import OTHERS, TO_OTHER, open_switch_lab

FAQ = "question,answer\nHow long?,Two years.\nWhere?,Below the lid.\n"
LONG, WHERE = "How long?", "Where?"


def faq(lab: Lab) -> Book:
    """A document of two pairs."""
    book = Book.__new__(Book)
    book.lab, book.body = lab, {}
    book.dataset = lab.dataset("faq")
    book.id = send(book, FAQ)
    return book


def send(book: Book, table: str) -> uuid.UUID:
    """Replace the pairs; the document's id."""
    created = add_file(
        book.lab.client, book.dataset, "faq.csv", table.encode(), doc_form="qa_model"
    )
    book.lab.settle()
    return uuid.UUID(created["document"]["id"])


def pairs(book: Book) -> list[tuple[str, str | None]]:
    return [(row["content"], row["answer"]) for row in book.rows()]


def test_a_pair_needs_an_answer_and_its_words_count(database: str, tmp_path: Path) -> None:
    with open_lab(tmp_path / "lab") as lab:
        b = faq(lab)
        for item in ({"content": "Who?"}, {"content": "Who?", "answer": " "}):
            assert "answer is missing" in b.add(item, status=400)["message"]
        (row,) = b.add({"content": "Who?", "answer": "The dealer."})["data"]
        assert (row["answer"], row["word_count"]) == ("The dealer.", 15)
        assert b.found("who") == ["Who?"]
        assert b.edit("Who?", content="Who pays?")["data"]["answer"] == "The dealer."
        assert b.edit("Who pays?", answer="Nobody.")["data"]["word_count"] == 16
        assert b.edit("Who pays?", answer=None)["data"]["answer"] is None
        assert b.counts()[0] == sum(row["word_count"] for row in b.rows())
        b.sound()


def test_edits_of_pairs_outlive_the_next_table(database: str, tmp_path: Path) -> None:
    with open_lab(tmp_path / "lab") as lab:
        b = faq(lab)
        b.edit(LONG, answer="Three years.")
        b.edit(WHERE, content="Where is it?")
        send(b, FAQ + "Why?,Because.\n")
        assert pairs(b) == [
            (LONG, "Three years."),
            ("Where is it?", "Below the lid."),
            ("Why?", "Because."),
        ]
        assert b.overlays() == [("edited", "active"), ("edited", "active")]
        # The answer is a part of what a pair is: when the source changes it, somebody must decide.
        send(b, FAQ.replace("Two years.", "Four years."))
        assert pairs(b) == [(LONG, "Four years."), ("Where is it?", "Below the lid.")]
        conflict = b.overlay_rows("conflict")[0]
        assert (conflict["original"], conflict["answer"]) == (LONG, "Three years.")
        b.settle_conflict(conflict["id"], segment_id=conflict["suggested_segment_id"])
        assert pairs(b)[0] == (LONG, "Three years.")
        b.sound()


def test_rows_of_a_file_need_an_answer_each(tmp_path: Path) -> None:
    with open_lab(tmp_path / "lab") as lab:
        b = faq(lab)
        path = f"/v1/datasets/{b.dataset}/documents/{b.id}/segments/import"
        refused = lab.client.post(path, files={"file": ("a.csv", "question,answer\nWho?,\n")})
        assert "row 2: answer is blank" in refused.json()["message"]
        rows = "答案,问题\nThe dealer.,Who?\n"
        assert lab.client.post(path, files={"file": ("a.csv", rows)}).json()["added"] == 1
        assert pairs(b)[2] == ("Who?", "The dealer.")


def test_edits_while_a_dataset_changes_its_model_are_in_force_in_both_spaces(
    database: str, tmp_path: Path
) -> None:
    with open_switch_lab(tmp_path / "lab") as lab:
        b = Book(lab, BIRDS)
        lab.change(b.dataset, **TO_OTHER)
        steps: list[Callable[[], Any]] = [
            lambda: b.edit("alpha owls hunt", content="alpha hawks hunt"),
            lambda: b.delete("bravo fish swim"),
            lambda: b.add("delta moles dig"),
            lambda: b.edit("delta moles dig", content="delta seals rest"),
        ]

        def next_step(points: Sequence[Any]) -> None:
            if points[0].dense.shape == (OTHERS.dim,) and steps:
                steps.pop(0)()
                assert b.found("owls") == []

        lab.index.after_upsert = next_step
        while steps:
            before = len(steps)
            lab.jobs()
            if len(steps) == before:
                steps.pop(0)()
        lab.index.after_upsert = lambda points: None
        lab.settle()
        assert lab.switch(b.dataset)["status"] == "completed"
        assert b.texts() == ["alpha hawks hunt", "charlie cats sleep", "delta seals rest"]
        assert b.found("hawks") == ["alpha hawks hunt"]
        assert b.found("seals") == ["delta seals rest"]
        assert b.found("fish moles") == []
        lab.later()
        lab.settle()
        lab.assert_index_is_what_sql_says(b.dataset)
        assert lab.healthy()
