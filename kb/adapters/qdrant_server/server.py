"""The server as we call it: connected once, known to be new enough, tried again when it falters."""

from __future__ import annotations

import logging
import random
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from qdrant_client import QdrantClient
from qdrant_client.http.exceptions import UnexpectedResponse
from qdrant_client.http.models import UpdateResult, UpdateStatus

from kb.adapters.qdrant_server.faults import CLIENT_ERRORS, Fault, Unfinished, fault_of
from kb.errors import StoreUnavailable
from kb.settings import Qdrant

T = TypeVar("T")
Version = tuple[int, int]

STORE = "qdrant server"

FEATURES: dict[str, Version] = {
    "sparse vectors with IDF, and the query route": (1, 10),
    "tenant payload indexes": (1, 11),
    "collection metadata": (1, 16),
    "payload indexes without graph links": (1, 17),
    "BM25 statistics limited to a dataset": (1, 19),
}
"""What we use, and the server version that brought it."""

MINIMUM_VERSION = max(FEATURES.values())

_CLOSE_WAIT_S = 5.0  # for calls under way, so that they end with their answer

log = logging.getLogger("kb.qdrant")


class NotThere(StoreUnavailable):
    """The collection does not exist."""


class AlreadyThere(StoreUnavailable):
    """The collection exists."""


class Server:
    """Calls with bounded retries; every method is thread-safe.

    All our calls may be repeated: points are written whole under their own id, and deletes name
    what they delete. So a call whose answer was lost is simply made again.

    The connection is made at the first call, in the process that makes it: gRPC channels do not
    survive a fork.
    """

    def __init__(self, options: Qdrant) -> None:
        if options.url is None:
            raise ValueError("the Qdrant server has no URL; set KB_QDRANT__URL")
        self._url = options.url
        self._options = options
        self._client: QdrantClient | None = None
        self._connecting = threading.Lock()
        self._closing = threading.Event()
        self._sending = 0
        self._sent = threading.Condition()
        self.speaks_grpc = False
        """Known after the first call."""

    def call(self, operation: str, send: Callable[[QdrantClient], T]) -> T:
        """What `send` returns, at the latest after the configured retries.

        Raises:
            StoreUnavailable: it does not answer, answers with an error, or is too old; as NotThere
                or AlreadyThere when it says so of the collection.
        """
        attempt = 0
        while True:
            attempt += 1
            try:
                with self._under_way(operation):
                    return send(self._connected())
            except CLIENT_ERRORS as exc:
                self.refuse_when_closed(operation, exc)
                fault = fault_of(exc)
                if not fault.again or attempt > self._options.retries:
                    tried = f" ({attempt} attempts)" if attempt > 1 else ""
                    kind = _kind_of(fault)
                    raise kind(STORE, operation, f"{self._url}: {fault.reason}{tried}") from exc
            except ValueError as exc:
                # A gRPC channel that was closed, or an answer that is no JSON.
                self.refuse_when_closed(operation, exc)
                raise StoreUnavailable(STORE, operation, f"{self._url}: {exc}") from exc
            delay_s = self._delay_s(fault, attempt)
            log.warning("%s: %s; trying again in %.1f s", operation, fault.reason, delay_s)
            self._closing.wait(delay_s)

    def write(self, operation: str, send: Callable[[QdrantClient], UpdateResult]) -> None:
        """A call that returns when the write is applied, so that the next read sees it."""

        def send_and_look(client: QdrantClient) -> None:
            result = send(client)
            if result.status is not UpdateStatus.COMPLETED:
                raise Unfinished(result.status)

        self.call(operation, send_and_look)

    def close(self) -> None:
        """Let go of the connection; repeats safely. Everything after it is refused."""
        with self._sent:
            self._closing.set()
            self._sent.wait_for(lambda: not self._sending, _CLOSE_WAIT_S)
        with self._connecting:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def refuse_when_closed(self, operation: str, cause: Exception | None = None) -> None:
        """Raise StoreUnavailable after `close`."""
        if self._closing.is_set():
            raise StoreUnavailable(STORE, operation, "the index is closed") from cause

    @contextmanager
    def _under_way(self, operation: str) -> Iterator[None]:
        with self._sent:
            self.refuse_when_closed(operation)
            self._sending += 1
        try:
            yield
        finally:
            with self._sent:
                self._sending -= 1
                self._sent.notify_all()

    def _delay_s(self, fault: Fault, attempt: int) -> float:
        options = self._options
        if fault.wait_s is not None:
            return min(fault.wait_s, options.retry_max_s)
        # Chance keeps many workers from coming back all at once.
        doubled = options.retry_base_s * 2.0 ** (attempt - 1) * random.uniform(0.5, 1.5)
        return min(doubled, options.retry_max_s)

    # -- connecting

    def _connected(self) -> QdrantClient:
        client = self._client
        if client is not None:
            return client
        with self._connecting:
            self.refuse_when_closed("open")
            if self._client is None:
                self._client = self._connect()
            return self._client

    def _connect(self) -> QdrantClient:
        """One attempt; raises what the client raises."""
        if not self._options.prefer_grpc:
            return self._opened(grpc=False)
        try:
            return self._opened(grpc=True)
        except CLIENT_ERRORS as exc:
            client = self._opened(grpc=False)
            log.warning(
                "%s answers over REST, but not over gRPC at port %d (%s); using REST. "
                "KB_QDRANT__GRPC_PORT sets the port, KB_QDRANT__PREFER_GRPC=false ends this",
                self._url,
                self._options.grpc_port,
                fault_of(exc).reason,
            )
            return client

    def _opened(self, *, grpc: bool) -> QdrantClient:
        options = self._options
        key = options.api_key.get_secret_value() if options.api_key else None
        client = QdrantClient(
            url=self._url,
            grpc_port=options.grpc_port,
            prefer_grpc=grpc,
            timeout=options.timeout_s,
            # As a header: the client's own argument warns in every process about plain HTTP,
            # which is common inside a private network.
            headers={"api-key": key} if key else None,
            check_compatibility=False,  # done below, with a reason and a remedy
        )
        try:
            refuse_when_too_old(self._version(client), self._url)
            if grpc:
                # The client makes these at first use, unguarded against two threads at once.
                _ = client.grpc_points, client.grpc_collections
        except BaseException:
            client.close()
            raise
        self.speaks_grpc = grpc
        return client

    def _version(self, client: QdrantClient) -> str:
        try:
            return client.info().version
        except UnexpectedResponse as exc:
            if exc.status_code != 404:
                raise
            # Not to be taken for a collection that is not there.
            reason = f"{self._url} has nothing at its root; is it a Qdrant server?"
            raise StoreUnavailable(STORE, "open", reason) from exc


def _kind_of(fault: Fault) -> type[StoreUnavailable]:
    if fault.missing:
        return NotThere
    return AlreadyThere if fault.exists else StoreUnavailable


def refuse_when_too_old(version: str, url: str) -> None:
    """Raise StoreUnavailable for a server that lacks something of FEATURES."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    least = ".".join(map(str, MINIMUM_VERSION))
    if numbers is None:
        reason = f"{url} says version {version!r}; {least}.0 or newer is needed"
        raise StoreUnavailable(STORE, "open", reason)
    found = int(numbers[1]), int(numbers[2])
    lacking = [f"{name} ({a}.{b})" for name, (a, b) in FEATURES.items() if found < (a, b)]
    if lacking:
        reason = (
            f"{url} is version {version}, which lacks: {', '.join(lacking)}; "
            f"upgrade it to {least}.0 or newer"
        )
        raise StoreUnavailable(STORE, "open", reason)
