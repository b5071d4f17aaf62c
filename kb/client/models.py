"""Models of a server."""

from __future__ import annotations

from kb.client.connection import Connection
from kb.client.wire import LONG_S, Json


class Models(Connection):
    """Calls about models."""

    def models(self, type: str | None = None) -> list[Json]:
        """The models that are configured: `text-embedding`, `rerank` or `llm`; None: all."""
        answer = self._json("GET", "/v1/models", params={"type": type} if type else None)
        return list(answer["data"])

    def add_model(self, model: Json) -> Json:
        """Configure a model: `type`, `provider`, `model`, `kind`, and where it is."""
        return self._json("POST", "/v1/models", json=model)

    def update_model(self, model_id: str, changes: Json) -> Json:
        """Change where a model is, its API key or its options."""
        return self._json("PATCH", f"/v1/models/{model_id}", json=changes)

    def test_model(self, model_id: str) -> Json:
        """Call a model for real; `ok` says whether it answered."""
        return self._json("POST", f"/v1/models/{model_id}/test", timeout=LONG_S)

    def delete_model(self, model_id: str) -> None:
        """Remove a model that no dataset needs."""
        self._send("DELETE", f"/v1/models/{model_id}")

    def model(self, model_id: str) -> Json:
        """One model; `settings` is the embedding model of the settings."""
        return self._json("GET", f"/v1/models/{model_id}")

    def available_models(self, type: str) -> list[Json]:
        """Models that datasets take, by provider; `type`: text-embedding, rerank or llm."""
        path = f"/v1/workspaces/current/models/model-types/{type}"
        return list(self._json("GET", path)["data"])
