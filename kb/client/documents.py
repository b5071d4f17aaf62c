"""Documents of a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kb.client.datasets import Datasets
from kb.client.errors import Missing
from kb.client.wire import LONG_S, Json, is_id


class Documents(Datasets):
    """Calls about documents."""

    def documents(self, dataset: str, keyword: str = "") -> list[Json]:
        """Every document of a dataset, newest first; `keyword` is a part of the name."""
        return list(self._pages(f"{self._path(dataset)}/documents", {"keyword": keyword}))

    def document(self, dataset: str, name: str) -> Json:
        """One document with its outcome, its timings and its segment count.

        Raises:
            Missing: the message names documents with similar names.
        """
        path = self._path(dataset)
        return self._json("GET", f"{path}/documents/{self._document_id(path, name)}")

    def delete_document(self, dataset: str, name: str) -> None:
        """Delete a document with its segments."""
        path = self._path(dataset)
        self._send("DELETE", f"{path}/documents/{self._document_id(path, name)}")

    def retry_document(self, dataset: str, name: str) -> Json:
        """Queue a failed document again; it goes on after its last checkpoint."""
        path = self._path(dataset)
        return self._json("POST", f"{path}/documents/{self._document_id(path, name)}/retry")

    def rename_document(self, dataset: str, name: str, to: str) -> Json:
        """Give a document another name; nothing is indexed anew."""
        path = self._path(dataset)
        path = f"{path}/documents/{self._document_id(path, name)}/rename"
        return self._json("POST", path, json={"name": to})

    def document_report(self, dataset: str, name: str, version: int | None = None) -> Json:
        """What became of a document's file: pages, rows, chunks, times, errors."""
        path = self._path(dataset)
        path = f"{path}/documents/{self._document_id(path, name)}/report"
        return self._json("GET", path, params={"version": version} if version else {})

    def _document_id(self, path: str, name: str) -> str:
        if is_id(name):
            return name
        found = list(self._pages(f"{path}/documents", {"keyword": name}))
        for document in found:
            if document["name"] == name:
                return str(document["id"])
        found = found or list(self._pages(f"{path}/documents", {}))
        names = sorted(d["name"] for d in found)
        if not names:
            raise Missing(f"no document {name!r}; the dataset is empty")
        shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if names[20:] else "")
        raise Missing(f"no document {name!r}; there is: {shown}")

    def document_text(self, dataset: str, name: str) -> str:
        """The extracted text that the offsets of segments point into."""
        return self._send("GET", f"{self._document(dataset, name)}/text").text

    def document_file(self, dataset: str, name: str) -> Json:
        """The file as it was received; `download_url` saves it without a key for some minutes."""
        return self._json("GET", f"{self._document(dataset, name)}/upload-file")

    def download_url(self, dataset: str, name: str) -> str:
        """A link that saves the file of a document; it needs no key and expires."""
        return str(self._json("GET", f"{self._document(dataset, name)}/download")["url"])

    def download_zip(self, dataset: str, document_ids: Sequence[str], file: str | Path) -> None:
        """Write the files of 1 to 100 documents to a zip.

        Raises:
            OSError: it cannot be written.
        """
        path = f"{self._path(dataset)}/documents/download-zip"
        body = {"document_ids": list(document_ids)}
        Path(file).write_bytes(self._send("POST", path, json=body, timeout=LONG_S).content)

    def _document(self, dataset: str, name: str) -> str:
        path = self._path(dataset)
        return f"{path}/documents/{self._document_id(path, name)}"
