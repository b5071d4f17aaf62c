"""Metadata of documents."""

from __future__ import annotations

from collections.abc import Mapping

from kb.client.documents import Documents
from kb.client.wire import Json


class Metadata(Documents):
    """Calls about metadata."""

    def metadata(self, dataset: str) -> Json:
        """`doc_metadata`, the fields with their counts; and `built_in_field_enabled`."""
        return self._json("GET", f"{self._path(dataset)}/metadata")

    def add_metadata_field(self, dataset: str, name: str, type: str) -> Json:
        """Make a field of type `string`, `number` or `time`."""
        body = {"name": name, "type": type}
        return self._json("POST", f"{self._path(dataset)}/metadata", json=body)

    def rename_metadata_field(self, dataset: str, field_id: str, name: str) -> Json:
        """Give a field another name."""
        path = f"{self._path(dataset)}/metadata/{field_id}"
        return self._json("PATCH", path, json={"name": name})

    def delete_metadata_field(self, dataset: str, field_id: str) -> None:
        """Delete a field, with its value in every document."""
        self._send("DELETE", f"{self._path(dataset)}/metadata/{field_id}")

    def set_metadata(
        self, dataset: str, document: str, values: Mapping[str, str | float | None]
    ) -> None:
        """Set values of a document, by field id; its other values stay.

        Args:
            document: name or id.
        """
        path = self._path(dataset)
        operation = {
            "document_id": self._document_id(path, document),
            "metadata_list": [{"id": i, "name": "", "value": v} for i, v in values.items()],
            "partial_update": True,
        }
        self._send("POST", f"{path}/documents/metadata", json={"operation_data": [operation]})

    def built_in_fields(self) -> list[Json]:
        """The built-in fields."""
        return list(self._json("GET", "/v1/datasets/metadata/built-in")["fields"])

    def switch_built_in_fields(self, dataset: str, *, on: bool) -> None:
        """Switch the built-in fields on or off for all documents of a dataset."""
        action = "enable" if on else "disable"
        self._send("POST", f"{self._path(dataset)}/metadata/built-in/{action}")
