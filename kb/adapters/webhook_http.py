"""WebhookSender over HTTP: one attempt; nothing of the answer's body is read."""

from __future__ import annotations

import ssl
from collections.abc import Mapping

from kb.adapters.pinned_http import NoAnswer, PinnedHttp
from kb.ports import NotDelivered, Receipt
from kb.webhooks import ALLOW_PRIVATE


class HttpSender:
    """Posts a message; see `pinned_http` for what it refuses.

    Args:
        timeout_s: for the whole attempt, from the connection to the status of the answer.
        allow_private: also speak to addresses that are not public.
        trusted: certificates; None: those of this machine.
    """

    def __init__(
        self, *, timeout_s: float, allow_private: bool, trusted: ssl.SSLContext | None = None
    ) -> None:
        self._timeout_s = timeout_s
        self._http = PinnedHttp(allow_private=allow_private, setting=ALLOW_PRIVATE, trusted=trusted)

    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Receipt:
        """See `kb.ports.WebhookSender`."""
        try:
            answer = self._http.post(url, body, headers, timeout_s=self._timeout_s)
        except NoAnswer as exc:
            raise NotDelivered(str(exc)) from exc
        return Receipt(answer.status, answer.retry_after_s)
