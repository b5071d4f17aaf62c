"""A model's server as we call it: retried when it falters, left alone when it asks for a pause."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx2 as httpx

from kb.adapters.model_server.contact import Contact
from kb.adapters.model_server.faults import BadAnswer, Fault, Refused, fault_of
from kb.errors import Misconfigured, ProviderNotInitialized
from pipelines.errors import RateLimited, TransientError

T = TypeVar("T")

log = logging.getLogger("kb.embedding")  # the name that operators know it by

_QUERY_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent, JSON in its body."""

    method: str
    url: str
    body: Any = None


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a call goes on.

    Attributes:
        attempts: requests at most, > 0.
        timeout_s: longest silence within one of them.
        total_s: all of them and the waits in between; None: as long as it takes.
        at_gate: whether to keep the pauses that the server asked for.
    """

    attempts: int
    timeout_s: float
    total_s: float | None
    at_gate: bool


class Gate:
    """Closed while the server asks for a pause: until then no thread sends it documents."""

    def __init__(self) -> None:
        self._opens_at = 0.0
        self._lock = threading.Lock()

    def close_for(self, seconds: float) -> None:
        """Stay closed for so long at least."""
        with self._lock:
            self._opens_at = max(self._opens_at, time.monotonic() + seconds)

    @property
    def closed_s(self) -> float:
        """How long it stays closed, 0 if it is open."""
        return max(0.0, self._opens_at - time.monotonic())


class Endpoint:
    """Requests to one server; every method is thread-safe.

    The API key is in no message, log line or repr: an answer that repeats it is cleaned.

    Raises:
        Misconfigured: the URL or the API key cannot be sent.
    """

    def __init__(self, contact: Contact) -> None:
        self.url = _checked_url(contact)
        self._contact = contact
        self._server = f"the {contact.what} {contact.url}"
        self._key = _key(contact)
        self._gate = Gate()
        self._closing = threading.Event()
        self._http = httpx.Client(
            headers=self._headers(),
            timeout=httpx.Timeout(contact.timeout_s, connect=contact.connect_timeout_s),
            # Queries never wait for a connection behind documents, whose number the threads bound.
            limits=httpx.Limits(
                max_connections=None, max_keepalive_connections=contact.max_requests + 4
            ),
        )
        self._threads = ThreadPoolExecutor(contact.max_requests, "kb-model")
        self.for_documents = Patience(contact.retries + 1, contact.timeout_s, None, at_gate=True)
        self.for_queries = Patience(
            _QUERY_ATTEMPTS, contact.query_timeout_s, contact.query_timeout_s, at_gate=False
        )

    def ask(self, request: Request, read: Callable[[Any], T], patience: Patience) -> T:
        """What `read` makes of the answer's JSON; BadAnswer from it counts as a failed attempt.

        Raises:
            RateLimited: the server asks to come later than this call can wait.
            TransientError: it failed at every attempt, or the model was closed.
            ProviderNotInitialized: it refuses; trying again would change nothing.
        """
        started, attempt = time.monotonic(), 0
        while True:
            if patience.at_gate:
                self._pass_gate()
            attempt += 1
            left_s = _left_s(patience, started)
            try:
                return read(self._send(request, min(patience.timeout_s, left_s)))
            except BadAnswer as exc:
                fault = Fault(f"it answered with {exc}")
            except Fault as exc:
                fault = exc
            self._refuse_when_closed()
            delay_s = self._delay_s(fault, attempt)
            if fault.later:
                self._gate.close_for(delay_s)
            if (
                attempt >= patience.attempts
                or delay_s > self._contact.retry_max_s
                or delay_s >= _left_s(patience, started)
            ):
                raise self._given_up(fault, attempt)
            log.warning(
                "%s %s: %s; trying again in %.1f s",
                self._contact.what,
                self.url,
                fault.reason,
                delay_s,
            )
            if not (fault.later and patience.at_gate):
                self._closing.wait(delay_s)

    def together(
        self, calls: Sequence[Callable[[], T]]
    ) -> tuple[dict[int, T], BaseException | None]:
        """What the calls return, by position, and the first error; made on the threads.

        After an error no further call begins; those under way are waited for.
        """
        try:
            futures: list[Future[T]] = [self._threads.submit(call) for call in calls]
        except RuntimeError:
            return {}, self._closed()
        wait_for(futures, return_when=FIRST_EXCEPTION)
        for future in futures:
            future.cancel()
        results: dict[int, T] = {}
        error: BaseException | None = None
        for at, future in enumerate(futures):
            if future.cancelled():
                failed: BaseException | None = self._closed() if self._closing.is_set() else None
            elif (failed := future.exception()) is None:
                results[at] = future.result()
            error = error or failed
        return results, error

    def close(self) -> None:
        """End waits and connections; waiting calls get TransientError. Repeats safely."""
        self._closing.set()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._http.close()

    def __repr__(self) -> str:
        return f"Endpoint({self.url!r})"

    # -- one attempt

    def _send(self, request: Request, timeout_s: float) -> Any:
        """The answer's JSON.

        Raises:
            Fault, BadAnswer: worth another attempt.
            ProviderNotInitialized: not.
        """
        self._refuse_when_closed()
        try:
            answer = self._http.request(
                request.method,
                request.url,
                json=request.body,
                timeout=httpx.Timeout(
                    timeout_s, connect=min(timeout_s, self._contact.connect_timeout_s)
                ),
            )
        except (httpx.UnsupportedProtocol, httpx.LocalProtocolError, httpx.InvalidURL) as exc:
            raise ProviderNotInitialized(
                f"{self._server} cannot be asked: {self._clean(str(exc))}; set "
                f"{self._contact.where('url')}"
            ) from None
        except httpx.TimeoutException as exc:
            raise Fault(f"no answer within {timeout_s:g} s ({type(exc).__name__})") from exc
        except (httpx.RequestError, RuntimeError) as exc:  # RuntimeError: closed under our hands
            self._refuse_when_closed()
            raise Fault(self._clean(f"{type(exc).__name__}: {exc}")) from exc
        if not answer.is_success:
            raise self._named(fault_of(answer, self._contact))
        try:
            return answer.json()
        except ValueError:
            raise BadAnswer(f"no JSON: {self._clean(answer.text[:100])!r}") from None

    def _named(self, fault: Fault | Refused) -> Fault | Refused:
        if isinstance(fault, Fault):
            return Fault(self._clean(fault.reason), later=fault.later, wait_s=fault.wait_s)
        return Refused(
            self._clean(f"{self._server} refuses: {fault.message}"),
            answered=fault.answered,
            too_large=fault.too_large,
        )

    def _headers(self) -> dict[str, str]:
        if self._key is None:
            return {}
        name = self._contact.api_key_header
        bearer = name.lower() == "authorization" and " " not in self._key
        return {name: f"Bearer {self._key}" if bearer else self._key}

    def _clean(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text

    # -- between attempts

    def _pass_gate(self) -> None:
        """Return when the gate is open.

        Raises:
            RateLimited: it stays closed for longer than a call can wait.
        """
        closed_s = self._gate.closed_s
        if not closed_s:
            return
        ends = time.monotonic() + self._contact.retry_max_s
        while closed_s and (left_s := ends - time.monotonic()) > 0:
            # Chance: not all threads of all processes come back in the same moment.
            self._closing.wait(min(left_s, closed_s * random.uniform(1.0, 1.1) + 0.001))
            self._refuse_when_closed()
            closed_s = self._gate.closed_s
        if closed_s:
            raise RateLimited(
                f"{self._server} asked for a pause, {closed_s:.1f} s are left",
                retry_after_s=closed_s,
            )

    def _delay_s(self, fault: Fault, attempt: int) -> float:
        if fault.wait_s is not None:
            return fault.wait_s
        contact = self._contact
        doubled = contact.retry_base_s * 2.0 ** (attempt - 1) * random.uniform(0.5, 1.5)
        return min(doubled, contact.retry_max_s)

    def _given_up(self, fault: Fault, attempts: int) -> TransientError:
        kind = RateLimited if fault.later else TransientError
        tried = f" ({attempts} attempts)" if attempts > 1 else ""
        return kind(
            f"{self._server} did not answer: {fault.reason}{tried}",
            retry_after_s=fault.wait_s,
        )

    def _refuse_when_closed(self) -> None:
        if self._closing.is_set():
            raise self._closed()

    def _closed(self) -> TransientError:
        return TransientError(f"{self._server} is not asked any more: the model is closed")


def _left_s(patience: Patience, started: float) -> float:
    if patience.total_s is None:
        return float("inf")
    return max(0.001, started + patience.total_s - time.monotonic())


def _checked_url(contact: Contact) -> str:
    where = contact.where
    try:
        parsed = httpx.URL(contact.url)
    except httpx.InvalidURL as exc:
        raise Misconfigured(f"{where('url')}: {contact.url!r} is not a URL: {exc}") from exc
    if parsed.userinfo:
        raise Misconfigured(
            f"{where('url')} holds a user or password; put the key into {where('api_key')} "
            f"(when {where('api_key_header')} is Authorization, `Basic ...` is sent as it is)"
        )
    return contact.url


def _key(contact: Contact) -> str | None:
    key = (contact.api_key or "").strip()
    if not (key.isascii() and (key.isprintable() or not key)):
        raise Misconfigured(
            f"{contact.where('api_key')} has characters that no HTTP header holds; copy it again"
        )
    return key or None
