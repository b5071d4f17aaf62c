"""Knowledge that other services hold."""

from __future__ import annotations

from typing import Any

from kb.client.datasets import Datasets
from kb.client.wire import Json

_EXTERNAL_APIS = "/v1/datasets/external-knowledge-api"


class External(Datasets):
    """Calls about external knowledge services."""

    def external_apis(self) -> list[Json]:
        """The services that are kept, newest first."""
        return list(self._pages(_EXTERNAL_APIS, {}))

    def add_external_api(
        self, name: str, endpoint: str, api_key: str, *, description: str = ""
    ) -> Json:
        """Try out a service and keep it."""
        settings = {"endpoint": endpoint, "api_key": api_key}
        body = {"name": name, "description": description, "settings": settings}
        return self._json("POST", _EXTERNAL_APIS, json=body)

    def probe_external_api(self, api_id: str) -> Json:
        """Try out a service that is kept; `status` is that of its answer."""
        return self._json("POST", f"{_EXTERNAL_APIS}/{api_id}/probe")

    def delete_external_api(self, api_id: str) -> None:
        """Forget a service that no dataset is bound to."""
        self._send("DELETE", f"{_EXTERNAL_APIS}/{api_id}")

    def add_external_dataset(self, name: str, api_id: str, knowledge_id: str) -> Json:
        """Create a dataset whose knowledge a service holds."""
        body = {
            "name": name,
            "external_knowledge_api_id": api_id,
            "external_knowledge_id": knowledge_id,
        }
        return self._json("POST", "/v1/datasets/external", json=body)

    def external_api(self, api_id: str) -> Json:
        """One service; its key is not shown."""
        return self._json("GET", f"{_EXTERNAL_APIS}/{api_id}")

    def update_external_api(self, api_id: str, body: Json) -> Json:
        """Replace a service's `name`, `description` and `settings`."""
        return self._json("PATCH", f"{_EXTERNAL_APIS}/{api_id}", json=body)

    def external_api_use(self, api_id: str) -> int:
        """How many datasets are bound to a service."""
        return int(self._json("GET", f"{_EXTERNAL_APIS}/{api_id}/use-check")["count"])

    def ask_external(self, dataset: str, query: str, **settings: Any) -> list[Json]:
        """What the service behind a dataset answers, as it gives it."""
        path = f"{self._path(dataset)}/external-hit-testing"
        return list(self._json("POST", path, json={"query": query, **settings})["records"])
