"""Segments, child chunks and hand edits of a document."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kb.client.documents import Documents
from kb.client.wire import LONG_S, Json


class Segments(Documents):
    """Calls about segments."""

    def _segments(self, dataset: str, document: str) -> str:
        path = self._path(dataset)
        return f"{path}/documents/{self._document_id(path, document)}/segments"

    def segments(self, dataset: str, document: str, keyword: str = "") -> list[Json]:
        """Every segment of a document in order; `keyword` is a part of the content."""
        return list(self._pages(self._segments(dataset, document), {"keyword": keyword}))

    def segment(self, dataset: str, document: str, segment_id: str) -> Json:
        """One segment."""
        answer = self._json("GET", f"{self._segments(dataset, document)}/{segment_id}")
        return dict(answer["data"])

    def add_segments(self, dataset: str, document: str, segments: list[Json]) -> list[Json]:
        """Append segments (`content`, `answer`, `keywords`), all or none; found at once."""
        path = self._segments(dataset, document)
        body = {"segments": segments}
        return list(self._json("POST", path, json=body, timeout=LONG_S)["data"])

    def update_segment(self, dataset: str, document: str, segment_id: str, **change: Any) -> Json:
        """Change a segment: `content`, `answer`, `keywords`, `enabled`, ...; found so at once."""
        path = f"{self._segments(dataset, document)}/{segment_id}"
        return dict(self._json("POST", path, json={"segment": change})["data"])

    def delete_segment(self, dataset: str, document: str, segment_id: str) -> None:
        """Delete a segment with its child chunks."""
        self._send("DELETE", f"{self._segments(dataset, document)}/{segment_id}")

    def import_segments(self, dataset: str, document: str, file: str | Path) -> Json:
        """Append the rows of a CSV, TSV, XLSX or XLS file; ask `segment_import` about large ones.

        Raises:
            OSError: this process cannot read it.
        """
        path = Path(file)
        return self._json(
            "POST",
            f"{self._segments(dataset, document)}/import",
            files={"file": (path.name, path.read_bytes())},
            timeout=LONG_S,
        )

    def segment_import(self, dataset: str, document: str, import_id: str) -> Json:
        """How far an import of segments has got."""
        return self._json("GET", f"{self._segments(dataset, document)}/import/{import_id}")

    def child_chunks(
        self, dataset: str, document: str, segment_id: str, keyword: str = ""
    ) -> list[Json]:
        """Every child chunk of a segment, in order; `keyword` is a part of the content."""
        path = f"{self._segments(dataset, document)}/{segment_id}/child_chunks"
        return list(self._pages(path, {"keyword": keyword}))

    def add_child_chunk(self, dataset: str, document: str, segment_id: str, content: str) -> Json:
        """Add a child chunk; it is found at once."""
        path = f"{self._segments(dataset, document)}/{segment_id}/child_chunks"
        return dict(self._json("POST", path, json={"content": content})["data"])

    def update_child_chunk(
        self, dataset: str, document: str, segment_id: str, child_id: str, content: str
    ) -> Json:
        """Give a child chunk another text; the old one is not found any more."""
        path = f"{self._segments(dataset, document)}/{segment_id}/child_chunks/{child_id}"
        return dict(self._json("PATCH", path, json={"content": content})["data"])

    def delete_child_chunk(
        self, dataset: str, document: str, segment_id: str, child_id: str
    ) -> None:
        """Delete a child chunk."""
        path = f"{self._segments(dataset, document)}/{segment_id}/child_chunks/{child_id}"
        self._send("DELETE", path)

    def hand_edits(self, dataset: str, document: str, state: str = "") -> list[Json]:
        """What was edited by hand, oldest first; `state`: active, dormant or conflict."""
        return list(self._pages(f"{self._document(dataset, document)}/overlays", {"state": state}))

    def apply_hand_edit(
        self,
        dataset: str,
        document: str,
        edit_id: str,
        segment_id: str,
        child_chunk_id: str | None = None,
    ) -> Json | None:
        """Do to a segment what a hand edit says that fits no more; None: that deleted it."""
        path = f"{self._document(dataset, document)}/overlays/{edit_id}/apply"
        body = {"segment_id": segment_id, "child_chunk_id": child_chunk_id}
        segment: Json | None = self._json("POST", path, json=body)["data"]
        return segment

    def dismiss_hand_edit(self, dataset: str, document: str, edit_id: str) -> None:
        """Give up a hand edit."""
        self._send("DELETE", f"{self._document(dataset, document)}/overlays/{edit_id}")
