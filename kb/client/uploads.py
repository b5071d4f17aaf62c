"""Uploads, and waiting for what becomes of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kb.client.documents import Documents
from kb.client.errors import ClientError, IngestionFailed
from kb.client.wire import FINISHED, Json


class Uploads(Documents):
    """Calls that send files and texts."""

    def upload(
        self, dataset: str, name: str, data: bytes, settings: Json | None = None
    ) -> tuple[Json, str]:
        """Send one file; it is indexed in the background, in place of one of the same name.

        Args:
            name: the document's name, with the extension that tells the format.
            settings: `indexing_technique` (needed by the first document of a dataset that was
                created without), `doc_form`, `process_rule` and others.
        Returns:
            The document, and the batch to ask `indexing_status` with.
        """
        answer = self._json(
            "POST",
            f"{self._path(dataset)}/document/create-by-file",
            data={"data": json.dumps(settings or {})},
            files={"file": (name, data)},
        )
        return answer["document"], answer["batch"]

    def indexing_status(self, dataset: str, batch: str) -> Json:
        """How far the document of an upload has got."""
        answer = self._json("GET", f"{self._path(dataset)}/documents/{batch}/indexing-status")
        status: Json = answer["data"][0]
        return status

    def wait(
        self,
        dataset: str,
        batch: str,
        *,
        poll_s: float = 0.2,
        timeout_s: float | None = None,
        progress: Callable[[Json], None] = lambda status: None,
    ) -> Json:
        """Wait until the document of an upload is completed, failed or paused.

        Args:
            timeout_s: give up after this long; None: never.
            progress: called with each look at it: `indexing_status`, `completed_segments`,
                `total_segments` and more.
        Returns:
            The last look.
        Raises:
            ClientError: the time is over; the server goes on.
        """
        ends = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            status = self.indexing_status(dataset, batch)
            progress(status)
            if status["indexing_status"] in FINISHED:
                return status
            if ends is not None and time.monotonic() >= ends:
                raise ClientError(
                    f"batch {batch} is still {status['indexing_status']} after {timeout_s} s; "
                    "the server goes on, ask indexing_status later"
                )
            time.sleep(poll_s)

    def ingest(
        self,
        dataset: str,
        file: str | Path,
        *,
        poll_s: float = 0.2,
        timeout_s: float | None = None,
        progress: Callable[[Json], None] = lambda status: None,
    ) -> Json:
        """Send one file, creating the dataset if it is missing, and wait until it is searchable.

        Args:
            timeout_s: give up after this long; None: never.
            progress: called with each look at the document's progress.
        Raises:
            IngestionFailed: the server cannot read it.
            OSError: this process cannot.
        """
        path = Path(file)
        data = path.read_bytes()
        found = self.find_dataset(dataset) or self.create_dataset(
            dataset, indexing_technique="high_quality"
        )
        technique = found["indexing_technique"] or "high_quality"
        document, batch = self.upload(
            found["id"], path.name, data, {"indexing_technique": technique}
        )
        self.wait(found["id"], batch, poll_s=poll_s, timeout_s=timeout_s, progress=progress)
        document = self.document(found["id"], document["id"])
        if document["indexing_status"] == "error":
            raise IngestionFailed(f"{document['error_code']}: {document['error']}", document)
        return document

    def add_text(self, dataset: str, name: str, text: str, **settings: Any) -> tuple[Json, str]:
        """Send one text; as `upload`."""
        path = f"{self._path(dataset)}/document/create-by-text"
        answer = self._json("POST", path, json={"name": name, "text": text, **settings})
        return answer["document"], answer["batch"]

    def update_text(
        self,
        dataset: str,
        document: str,
        text: str | None = None,
        *,
        name: str | None = None,
        **settings: Any,
    ) -> tuple[Json, str]:
        """Replace a document's text (with its `name`), or cut it anew by a `process_rule`."""
        body = {"text": text, "name": name, **settings}
        path = f"{self._document(dataset, document)}/update-by-text"
        answer = self._json("POST", path, json={k: v for k, v in body.items() if v is not None})
        return answer["document"], answer["batch"]

    def update_file(
        self, dataset: str, document: str, name: str, data: bytes, settings: Json | None = None
    ) -> tuple[Json, str]:
        """Replace a document's file; the old version answers until the new one is complete."""
        answer = self._json(
            "PATCH",
            self._document(dataset, document),
            data={"data": json.dumps(settings or {})},
            files={"file": (name, data)},
        )
        return answer["document"], answer["batch"]

    def upload_pipeline_file(self, name: str, data: bytes, media_type: str) -> Json:
        """Keep a file for a pipeline run."""
        files = {"file": (name, data, media_type)}
        return self._json("POST", "/v1/datasets/pipeline/file-upload", files=files)
