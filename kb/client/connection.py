"""The connection to a server: requests, retries, pages, refusals."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import httpx2 as httpx

from kb.client.errors import ApiError, ClientError, Unreachable
from kb.client.wire import Json

PAGE_ROWS = 100


class Connection:
    """A server over HTTP."""

    def __init__(
        self,
        url: str,
        api_key: str,
        *,
        timeout_s: float = 120.0,
        retries: int = 2,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as exc:
            raise ClientError(f"{url!r} is not a URL: {exc}") from exc
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ClientError(f"{url!r} is not a URL of a server, such as http://127.0.0.1:8000")
        self.url = url.rstrip("/")
        self._retries = retries
        self._http = httpx.Client(
            base_url=self.url,
            # As bytes: a key that is not ASCII is the server's to refuse.
            headers={b"Authorization": f"Bearer {api_key.strip()}".encode()},
            timeout=timeout_s,
            transport=transport,
        )

    def close(self) -> None:
        """Let go of the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _pages(self, path: str, params: Json) -> Iterator[Json]:
        page = 1
        while True:
            body = self._json("GET", path, params={**params, "page": page, "limit": PAGE_ROWS})
            yield from body["data"]
            if page * PAGE_ROWS >= body["total"] or not body["data"]:
                return
            page += 1

    def _json(self, method: str, path: str, **request: Any) -> Json:
        response = self._send(method, path, **request)
        try:
            body = response.json()
        except ValueError as exc:
            raise self._stranger(response) from exc
        if not isinstance(body, dict):
            raise self._stranger(response)
        return body

    def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        """The answer, a success.

        A stream of content cannot be sent twice, so it is not tried again.
        """
        tries = 1 if "content" in request else 1 + self._retries
        for left in reversed(range(tries)):
            try:
                with self._reached():
                    response = self._http.request(method, path, **request)
            except Unreachable as exc:
                if not left or method != "GET" or not isinstance(exc.__cause__, _BROKEN):
                    raise
                time.sleep(_PAUSE_S)
                continue
            if response.is_success:
                return response
            if response.status_code != 503 or not left:
                break
            time.sleep(_pause_s(response))
        raise self._refusal(response)

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Raises: Unreachable: no server, or none that answers in time."""
        try:
            yield
        except httpx.TimeoutException as exc:
            raise Unreachable(
                f"{self.url} did not answer in time; look at the server's log, and try again"
            ) from exc
        except httpx.TransportError as exc:
            reason = re.sub(r"^\[Errno -?\d+\] ", "", str(exc)) or type(exc).__name__
            raise Unreachable(
                f"cannot reach {self.url}: {reason}; is `kb serve` running there?"
            ) from exc

    def _refusal(self, response: httpx.Response) -> ClientError:
        try:
            body = response.json()
            code, message = str(body["code"]), str(body["message"])
        except (ValueError, KeyError, TypeError):
            return self._stranger(response)
        return ApiError(_readable(code, message), status=response.status_code, code=code)

    def _stranger(self, response: httpx.Response) -> ClientError:
        return ClientError(
            f"{self.url} answered {response.status_code} {response.reason_phrase} to "
            f"{response.request.method} {response.request.url.path}, not as a kb server does; "
            "check the URL"
        )


_BROKEN = (httpx.ReadError, httpx.RemoteProtocolError)
_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0


def _pause_s(response: httpx.Response) -> float:
    """As long as the server says, within reason."""
    asked = response.headers.get("retry-after", "")
    return min(float(asked), _LONGEST_PAUSE_S) if asked.isdecimal() else _PAUSE_S


def _readable(code: str, message: str) -> str:
    """The message; of a body that did not validate it is a JSON list of errors."""
    if code != "unprocessable_entity":
        return message
    try:
        return "; ".join(error["msg"] for error in json.loads(message))
    except (ValueError, KeyError, TypeError):
        return message
