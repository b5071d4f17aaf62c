"""ExternalKnowledge over HTTP: asked again when it falters, within one time limit."""

from __future__ import annotations

import logging
import random
import time
from urllib.parse import urljoin, urlsplit

from kb.adapters.pinned_http import Answer, NoAnswer, PinnedHttp
from kb.errors import ExternalKnowledgeFailed
from kb.external.apis import ALLOW_PRIVATE, PASSED_ON
from kb.ports import RawAnswer
from kb.settings import External

log = logging.getLogger("kb.external")

_REDIRECTS = frozenset({301, 302, 307, 308})
_LEAST_S = 0.001


class HttpKnowledge:
    """Asks services; see `pinned_http` for the addresses that it refuses. Safe for threads."""

    def __init__(self, options: External) -> None:
        self._options = options
        self._http = PinnedHttp(allow_private=options.allow_private, setting=ALLOW_PRIVATE)

    def post(self, endpoint: str, api_key: str, body: bytes) -> RawAnswer:
        """See `kb.ports.ExternalKnowledge`."""
        ends = time.monotonic() + self._options.timeout_s
        attempt = 0
        while True:
            attempt += 1
            said, answer = self._attempt(endpoint, api_key, body, ends)
            if answer is not None and not _falters(answer.status):
                return RawAnswer(answer.status, answer.body)
            wait_s = self._wait_s(answer, attempt)
            if attempt > self._options.retries or time.monotonic() + wait_s >= ends:
                if answer is not None:
                    return RawAnswer(answer.status, answer.body)
                tried = f" ({attempt} attempts)" if attempt > 1 else ""
                raise ExternalKnowledgeFailed(
                    f"the external knowledge API {endpoint} gave {said}{tried}"
                )
            log.warning("%s: %s; trying again in %.1f s", endpoint, said, wait_s)
            time.sleep(wait_s)

    def _attempt(
        self, endpoint: str, api_key: str, body: bytes, ends: float
    ) -> tuple[str, Answer | None]:
        """What came of it in words, and the answer, redirects followed."""
        try:
            answer = self._follow(f"{endpoint}/retrieval", api_key, body, ends)
        except NoAnswer as exc:
            return str(exc), None
        most = self._options.answer_bytes
        if len(answer.body) > most:
            raise ExternalKnowledgeFailed(
                f"the external knowledge API {endpoint} answered with more than {most:,} bytes; "
                "ask for fewer records, or raise KB_EXTERNAL__ANSWER_BYTES"
            )
        return f"status {answer.status}", answer

    def _follow(self, url: str, api_key: str, body: bytes, ends: float) -> Answer:
        first = urlsplit(url)
        headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "User-Agent": "kb",
            PASSED_ON: "1",
            "Authorization": f"Bearer {api_key}",
        }
        for _ in range(self._options.redirects + 1):
            left_s = max(_LEAST_S, ends - time.monotonic())
            answer = self._http.post(
                url, body, headers, timeout_s=left_s, read_bytes=self._options.answer_bytes
            )
            location = answer.headers.get("Location")
            if answer.status not in _REDIRECTS or not location:
                return answer
            url = urljoin(url, location)
            to = urlsplit(url)
            if to.scheme not in ("http", "https") or not to.hostname:
                raise NoAnswer(f"a redirect to {url[:100]!r}, which is no address of HTTP")
            if (to.hostname, to.port, to.scheme) != (first.hostname, first.port, first.scheme):
                headers.pop("Authorization", None)
        raise NoAnswer(f"more than {self._options.redirects} redirects")

    def _wait_s(self, answer: Answer | None, attempt: int) -> float:
        asked = answer.retry_after_s if answer is not None else None
        if asked is not None:
            return asked
        return self._options.retry_base_s * 2.0 ** (attempt - 1) * random.uniform(0.5, 1.5)


def _falters(status: int) -> bool:
    return status == 429 or status >= 500
