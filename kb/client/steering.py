"""Work on documents: pause, resume, retry, cancel, re-chunk, switch off and on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kb.client.documents import Documents
from kb.client.wire import LONG_S, Json


class Steering(Documents):
    """Calls that steer the work on documents."""

    def steer_document(self, dataset: str, name: str, action: str, **body: Any) -> Json:
        """`pause`, `resume`, `retry`, `cancel` or `rechunk` (with `process_rule`) a document."""
        path = self._path(dataset)
        path = f"{path}/documents/{self._document_id(path, name)}/{action}"
        return self._json("POST", path, json=body)

    def steer_documents(self, action: str, matching: Json, **body: Any) -> Json:
        """The same with all documents that match: `dataset_id`, `status`, `error_code`, `tag` ...

        Returns:
            `matched` and `affected` (how many), `document_ids` and `documents` (those affected).
        """
        return self._json(
            "POST", f"/v1/documents/{action}", json={"filter": matching, **body}, timeout=LONG_S
        )

    def set_availability(self, dataset: str, document_ids: Sequence[str], action: str) -> None:
        """`enable`, `disable`, `archive` or `un_archive` documents; in force when it returns."""
        path = f"{self._path(dataset)}/documents/status/{action}"
        self._send("PATCH", path, json={"document_ids": list(document_ids)})
