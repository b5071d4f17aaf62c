"""Datasets of a server."""

from __future__ import annotations

from typing import Any

from kb.client.connection import Connection
from kb.client.errors import ApiError, Missing
from kb.client.wire import Json, is_id


class Datasets(Connection):
    """Calls about datasets."""

    def datasets(self, keyword: str = "") -> list[Json]:
        """Every dataset, newest first; `keyword` is a part of the name."""
        return list(self._pages("/v1/datasets", {"keyword": keyword, "include_all": "true"}))

    def find_dataset(self, name: str) -> Json | None:
        """The dataset of this name or id, or None."""
        if is_id(name):
            try:
                return self._json("GET", f"/v1/datasets/{name}")
            except ApiError as exc:
                if exc.status != 404:
                    raise
        return next((d for d in self.datasets(name) if d["name"] == name), None)

    def dataset(self, name: str) -> Json:
        """The dataset of this name or id.

        Raises:
            Missing: the message names the datasets that exist.
        """
        found = self.find_dataset(name)
        if found is not None:
            return found
        names = sorted(d["name"] for d in self.datasets())
        if not names:
            raise Missing(
                f"no dataset {name!r}, and no other; create one: kb datasets create NAME, or "
                "kb ingest PATH --dataset NAME"
            )
        shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if names[20:] else "")
        raise Missing(f"no dataset {name!r}; there is: {shown}")

    def create_dataset(self, name: str, **settings: Any) -> Json:
        """Create a dataset; `settings` are other keys of the request's body."""
        return self._json("POST", "/v1/datasets", json={"name": name, **settings})

    def update_dataset(self, name: str, /, **settings: Any) -> Json:
        """Change a dataset; `settings` are keys of the request's body.

        Another embedding model or technique begins a switch, see `switch`.
        """
        return self._json("PATCH", self._path(name), json=settings)

    def delete_dataset(self, name: str) -> None:
        """Delete a dataset with its documents."""
        self._send("DELETE", f"/v1/datasets/{self.dataset(name)['id']}")

    def switch(self, name: str) -> Json:
        """The dataset's switch to another model or technique that was started last."""
        return self._json("GET", f"{self._path(name)}/switch")

    def cancel_switch(self, name: str) -> Json:
        """Cancel the dataset's running switch; the dataset stays as it is."""
        return self._json("DELETE", f"{self._path(name)}/switch")

    def switches(self, status: str = "") -> list[Json]:
        """The switches of all datasets, newest first; `status` leaves those of one state."""
        return list(self._pages("/v1/switches", {"status": status}))

    def unfinished(self, dataset: str) -> int:
        """How many documents of a dataset wait or are in work."""
        path = f"{self._path(dataset)}/documents"
        return sum(
            int(self._json("GET", path, params={"status": status, "limit": 1})["total"])
            for status in ("queuing", "indexing")
        )

    def _path(self, dataset: str) -> str:
        found = dataset if is_id(dataset) else self.dataset(dataset)["id"]
        return f"/v1/datasets/{found}"
