"""Tags of datasets."""

from __future__ import annotations

from collections.abc import Sequence

from kb.client.datasets import Datasets
from kb.client.wire import Json


class Tags(Datasets):
    """Calls about tags."""

    def tags(self) -> list[Json]:
        """Every tag of the workspace, newest first; `binding_count` is a text."""
        return list(self._send("GET", "/v1/datasets/tags").json())

    def add_tag(self, name: str) -> Json:
        """Create a tag."""
        return self._json("POST", "/v1/datasets/tags", json={"name": name})

    def rename_tag(self, tag_id: str, name: str) -> Json:
        """Give a tag another name."""
        return self._json("PATCH", "/v1/datasets/tags", json={"tag_id": tag_id, "name": name})

    def delete_tag(self, tag_id: str) -> None:
        """Delete a tag; no dataset carries it then."""
        self._send("DELETE", "/v1/datasets/tags", params={"tag_id": tag_id})

    def bind_tags(self, dataset: str, tag_ids: Sequence[str]) -> None:
        """Have a dataset carry tags."""
        self._bind("binding", dataset, tag_ids)

    def unbind_tags(self, dataset: str, tag_ids: Sequence[str]) -> None:
        """Have a dataset carry tags no more."""
        self._bind("unbinding", dataset, tag_ids)

    def _bind(self, what: str, dataset: str, tag_ids: Sequence[str]) -> None:
        body = {"tag_ids": list(tag_ids), "target_id": self.dataset(dataset)["id"]}
        self._send("POST", f"/v1/datasets/tags/{what}", json=body)

    def dataset_tags(self, dataset: str) -> list[Json]:
        """The tags that a dataset carries, by name."""
        return list(self._json("GET", f"{self._path(dataset)}/tags")["data"])
