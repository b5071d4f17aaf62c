"""The state of a server."""

from __future__ import annotations

from kb.client.connection import Connection
from kb.client.wire import LONG_S, Json


class Upkeep(Connection):
    """Calls about the installation."""

    def status(self) -> Json:
        """Queues, errors, workers, jobs, throughput, the slowest stage, and the time to finish."""
        return self._json("GET", "/v1/status")

    def doctor(self, *, repair: bool = False, deep: bool = False) -> Json:
        """Compare database, index and files; with `repair` heal what differs. May take minutes.

        Args:
            deep: also compare vectors, terms, texts and the bytes of files.
        """
        asked = {"repair": repair, "deep": deep}
        return self._json(
            "POST",
            "/v1/doctor",
            params={name: "true" for name, on in asked.items() if on} or None,
            timeout=LONG_S,
        )
