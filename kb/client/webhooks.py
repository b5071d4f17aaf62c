"""Webhooks of a workspace."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kb.client.connection import Connection
from kb.client.wire import Json


class Webhooks(Connection):
    """Calls about webhooks."""

    def webhooks(self) -> list[Json]:
        """Every webhook of the workspace, oldest first."""
        return list(self._json("GET", "/v1/webhooks")["data"])

    def webhook(self, webhook_id: str) -> Json:
        """One webhook, and whether it fails."""
        return self._json("GET", f"/v1/webhooks/{webhook_id}")

    def add_webhook(self, url: str, **settings: Any) -> Json:
        """Have messages sent to `url`; the answer holds the `secret` that they are signed with."""
        return self._json("POST", "/v1/webhooks", json={"url": url, **settings})

    def update_webhook(self, webhook_id: str, **changes: Any) -> Json:
        """Change `url`, `events` or `enabled`."""
        return self._json("PATCH", f"/v1/webhooks/{webhook_id}", json=changes)

    def test_webhook(self, webhook_id: str) -> Json:
        """Have a message sent to try it out; the delivery."""
        return self._json("POST", f"/v1/webhooks/{webhook_id}/test")

    def deliveries(self, webhook_id: str, status: str = "") -> Iterator[Json]:
        """Messages to a webhook, newest first; `status`: pending, delivered or failed."""
        params = {"status": status} if status else {}
        return self._pages(f"/v1/webhooks/{webhook_id}/deliveries", params)

    def delete_webhook(self, webhook_id: str) -> None:
        """Delete a webhook; messages that were not delivered are dropped."""
        self._send("DELETE", f"/v1/webhooks/{webhook_id}")
