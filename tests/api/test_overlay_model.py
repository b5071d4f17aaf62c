"""Random edits and versions against a model in memory: each edit is in force or is listed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.api.shelf import Book
from tests.kb.ingesting import Lab, open_lab

CHUNKS = [f"chunk {name} speaks of {name}{name}" for name in ("ab", "cd", "ef", "gh", "ij", "kl")]

_sources = st.lists(st.sampled_from(CHUNKS), min_size=1, max_size=6, unique=True)
_edits = st.tuples(
    st.sampled_from(["edit", "delete", "disable", "enable", "keywords"]), st.integers(0, 9)
)
_steps = st.one_of(
    _edits,
    st.tuples(st.just("add"), st.just(0)),
    st.tuples(st.just("update"), _sources),
    st.tuples(st.just("update"), st.tuples(_sources, _edits)),
)


@dataclass
class Hand:
    """What was done to one chunk."""

    content: str | None = None
    keywords: list[str] = field(default_factory=list)
    disabled: bool = False
    deleted: bool = False

    def kinds(self) -> set[str]:
        if self.deleted:
            return {"deleted"}
        edited = {"edited"} if self.content or self.keywords else set()
        return edited | ({"disabled"} if self.disabled else set())


@dataclass
class Shown:
    """A row as the API should show it."""

    key: str
    content: str
    keywords: list[str]
    enabled: bool


class Model:
    """Chunks of the source with what was done to each, and what was added."""

    def __init__(self, source: list[str]) -> None:
        self.source = source
        self.hands: dict[str, Hand] = {}
        self.added: dict[str, Shown] = {}

    def rows(self) -> list[Shown]:
        rows = []
        for chunk in self.source:
            hand = self.hands.get(chunk, Hand())
            if not hand.deleted:
                text = hand.content or chunk
                rows.append(Shown(chunk, text, hand.keywords, not hand.disabled))
        return rows + list(self.added.values())

    def overlays(self) -> set[tuple[str, str]]:
        """(kind, active or not) of every edit, with its chunk's text."""
        return {
            (f"{kind} {chunk}", "active" if chunk in self.source else "else")
            for chunk, hand in self.hands.items()
            for kind in hand.kinds()
        }


class Machine:
    """Does each step to the API and to the model, and compares them."""

    def __init__(self, lab: Lab, number: int) -> None:
        self.numbers = itertools.count(1)
        self.model = Model(CHUNKS[:3])
        self.book = Book.__new__(Book)
        self.book.lab, self.book.body = lab, {}
        self.book.dataset = lab.dataset(f"dataset {number}")
        self.book.id = self.book.upload("\n".join(CHUNKS[:3]), settle=True)

    def do(self, step: Any) -> None:
        kind, what = step
        if kind == "update":
            self.update(*(what if isinstance(what, tuple) else (what, None)))
        elif kind == "add":
            text = f"added {next(self.numbers)}"
            self.book.add(text)
            self.model.added[text] = Shown(text, text, [], True)
        else:
            self.edit(kind, what)
        self.compare()

    def update(self, source: list[str], meanwhile: Any) -> None:
        index = self.book.lab.index
        waiting = [meanwhile] if meanwhile else []

        def now(_: object) -> None:
            if waiting:
                self.edit(*waiting.pop())

        self.book.upload("\n".join(source))
        index.before_upsert = now
        self.book.lab.settle()
        index.before_upsert = lambda points: None
        self.model.source = source

    def edit(self, kind: str, place: int) -> None:
        rows = self.model.rows()
        if not rows:
            return
        row = rows[place % len(rows)]
        path = f"/{self.book.segment(row.content)}"
        if kind == "delete":
            self.book.call("DELETE", path, 204)
            if self.model.added.pop(row.key, None) is None:
                self.model.hands[row.key] = Hand(deleted=True)
            return
        change: dict[str, Any] = {"enabled": True}
        if kind == "disable":
            change = {"enabled": False} if row.enabled else {"enabled": True}
        if kind == "edit":
            change["content"] = f"edited {next(self.numbers)}"
        if kind == "keywords":
            change["keywords"] = [f"word{next(self.numbers)}"]
        self.book.call("POST", path, json={"segment": change})
        self.note(row, change)

    def note(self, row: Shown, change: dict[str, Any]) -> None:
        if row.key in self.model.added:
            row.enabled = change["enabled"]
            row.content = change.get("content", row.content)
            row.keywords = change.get("keywords", row.keywords)
            return
        hand = self.model.hands.setdefault(row.key, Hand())
        hand.disabled = not change["enabled"]
        hand.content = change.get("content", hand.content)
        hand.keywords = change.get("keywords", hand.keywords)

    def compare(self) -> None:
        wanted = [(row.content, row.keywords, row.enabled) for row in self.model.rows()]
        assert [(r["content"], r["keywords"], r["enabled"]) for r in self.book.rows()] == wanted
        listed = self.book.overlay_rows()
        found = {
            (f"{o['kind']} {o['original']}", "active" if o["state"] == "active" else "else")
            for o in listed
            if o["kind"] != "added"
        }
        assert found == self.model.overlays()
        # Nothing that was written is lost: what is not in force is a conflict, with all of it.
        for overlay in listed:
            if overlay["kind"] == "edited" and overlay["state"] != "active":
                hand = self.model.hands[overlay["original"]]
                said = (overlay["content"], overlay["keywords"])
                assert said == (hand.content or overlay["original"], hand.keywords)
                assert overlay["state"] == "conflict"

    def end(self) -> None:
        for row in self.model.rows():
            assert (row.content in self.book.found(row.content)) is row.enabled
        self.book.lab.settle()
        self.book.lab.assert_index_is_what_sql_says(self.book.dataset)


@pytest.fixture(scope="module")
def lab(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One lab for all examples; each has a dataset of its own."""
    with open_lab(Path(tmp_path_factory.mktemp("model")) / "lab") as opened:
        yield opened


_examples = itertools.count(1)


@given(st.lists(_steps, min_size=4, max_size=10))
@settings(max_examples=12)
def test_every_edit_is_in_force_or_listed(lab: Lab, steps: list[Any]) -> None:
    machine = Machine(lab, next(_examples))
    for step in steps:
        machine.do(step)
    machine.end()
