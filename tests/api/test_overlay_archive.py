"""An archive carries hand edits: they outlive the next version where they arrive, too."""

from __future__ import annotations

import uuid
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.api.shelf import PARENTS, TREES, Book
from tests.kb.ingesting import Lab, open_lab
from tests.kb.test_archive import exported, imported

OAK, ELM = "oak is tall\noak is old", "elm is green\nelm is wet"


def arrived(lab: Lab, archive: bytes, name: str | None) -> Book:
    """The imported document."""
    book = Book.__new__(Book)
    book.lab, book.body = lab, PARENTS
    book.dataset = imported(lab, archive, name)["id"]
    lab.settle()
    listed = lab.client.get(f"/v1/datasets/{book.dataset}/documents").json()["data"]
    book.id = uuid.UUID(listed[0]["id"])
    return book


@pytest.mark.parametrize("elsewhere", [True, False])
def test_hand_edits_arrive_and_outlive_the_next_version(
    database: str, tmp_path: Path, elsewhere: bool
) -> None:
    """Elsewhere ids are kept; in the same installation they are made anew."""
    with ExitStack() as stack:
        lab = stack.enter_context(open_lab(tmp_path / "source"))
        b = Book(lab, TREES + "\n\nyew is slow", **PARENTS)
        oak, children = b.segment(OAK), b.children(OAK)
        b.call("PATCH", f"/{oak}/child_chunks/{children['oak is old']}", json={"content": "oak is"})
        b.call("DELETE", f"/{oak}/child_chunks/{children['oak is tall']}", 204)
        b.call("POST", f"/{oak}/child_chunks", json={"content": "acorns fall"})
        b.edit(ELM, content="elms are green", keywords=["elm"])
        b.delete("yew is slow")
        b.add("fig is sweet")
        b.upload(TREES.replace("elm", "Elm") + "\n\nyew is slow", settle=True)
        assert len(b.overlay_rows("conflict")) == 1
        target = stack.enter_context(open_lab(tmp_path / "target")) if elsewhere else lab
        there = arrived(target, exported(lab, b.dataset, vectors=True), "copy")
        assert there.texts() == b.texts()
        assert sorted(there.overlays()) == sorted(b.overlays())
        there.upload("fir is sharp\n\n" + TREES + "\n\nyew is slow", settle=True)
        assert there.texts() == ["fir is sharp", OAK, "elms are green", "fig is sweet"]
        assert list(there.children(OAK)) == ["oak is", "acorns fall"]
        assert {state for _, state in there.overlays()} == {"active"}
        assert there.rows()[2]["keywords"] == ["elm"]
        there.sound()
