"""What an answer or a broken connection means: whose fault it is, and whether to try again."""

from __future__ import annotations

import contextlib
import json
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx2 as httpx

from kb.adapters.model_server.contact import Contact
from kb.errors import ProviderNotInitialized

_AGAIN = frozenset({408, 409, 424, 425, 429})  # and what is 500 or more
_NEVER = frozenset({501, 505, 511})
_TOO_LARGE = re.compile(
    r"too (?:long|large|many)|exceed|maximum|max_|context length|longer|batch size|tokens?\b",
    re.IGNORECASE,
)
_LONGEST_WAIT_S = 86_400.0
_MESSAGE_CHARS = 300


class Refused(ProviderNotInitialized):
    """The server does not take this request, whenever it is sent.

    Attributes:
        too_large: fewer or shorter texts may pass.
        answered: the status of HTTP.
    """

    def __init__(self, message: str, *, answered: int, too_large: bool = False) -> None:
        super().__init__(message)
        self.answered, self.too_large = answered, too_large


class Fault(Exception):
    """A failed attempt; the same request may succeed later.

    Attributes:
        later: the server is well and says so: come later.
        wait_s: how long it asks to wait, in [0, 86400], when it does.
    """

    def __init__(self, reason: str, *, later: bool = False, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.later, self.wait_s = reason, later, wait_s


class BadAnswer(Exception):
    """The server answered with something else than it was asked for."""


def fault_of(answer: httpx.Response, contact: Contact) -> Fault | Refused:
    """What an answer means whose status is no success."""
    status, said = answer.status_code, _message(answer)
    reason = f"status {status}: {said}" if said else f"status {status}"
    if status in _AGAIN or (status >= 500 and status not in _NEVER):
        wait_s = retry_after_s(answer.headers)
        return Fault(reason, later=status == 429 or wait_s is not None, wait_s=wait_s)
    return Refused(
        f"{reason}; {_remedy(status, contact, answer)}",
        answered=status,
        too_large=status == 413 or (status in (400, 422) and bool(_TOO_LARGE.search(said))),
    )


def _remedy(status: int, contact: Contact, answer: httpx.Response) -> str:
    where = contact.where
    if status in (401, 403, 407):
        return f"set {where('api_key')} to a key that may use this model"
    if status == 402:
        return f"the account behind {where('api_key')} has no credit"
    if status in (404, 405, 501):
        return (
            f"check {where('url')}, and that the server has the model {contact.model!r} "
            f"({where('model')})"
        )
    if 300 <= status < 400:
        return f"set {where('url')} to {answer.headers.get('location', 'where it leads')}"
    if status == 413:
        return f"lower {where('request_texts')} or {where('request_chars')}"
    checks = [
        where(name) + (f" ({contact.model!r})" if name == "model" else "")
        for name in contact.checks
    ]
    return "check " + " and ".join(filter(None, [", ".join(checks[:-1]), checks[-1]]))


def _message(answer: httpx.Response) -> str:
    """What the server says, from the places where OpenAI's and TEI's kinds say it."""
    try:
        body = answer.json()
    except ValueError:
        return " ".join(answer.text.split())[:_MESSAGE_CHARS]
    if isinstance(body, dict):
        error = body.get("error") or body.get("message") or body.get("detail") or body
        body = error.get("message", error) if isinstance(error, dict) else error
    text = body if isinstance(body, str) else json.dumps(body)
    return " ".join(text.split())[:_MESSAGE_CHARS]


def retry_after_s(headers: httpx.Headers) -> float | None:
    """Seconds that the server asks to wait, in [0, 86400]; None: it does not say.

    `Retry-After` as a number or a date (RFC 9110, 10.2.3), and OpenAI's `retry-after-ms`. A date is
    read by the server's own clock if it tells its time.
    """
    with contextlib.suppress(KeyError, ValueError):
        return _within(float(_number(headers["retry-after-ms"])) / 1000)
    given = headers.get("retry-after", "").strip()
    with contextlib.suppress(ValueError):
        return _within(float(_number(given)))
    at = _moment(given)
    if at is None:
        return None
    present = _moment(headers.get("date", "")) or datetime.now(UTC)
    return _within((at - present).total_seconds())


def _number(text: str) -> str:
    if not re.fullmatch(r"\d{1,12}(\.\d{1,6})?", text.strip(), re.ASCII):
        raise ValueError(text)
    return text


def _moment(text: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError):
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def _within(seconds: float) -> float:
    return min(max(seconds, 0.0), _LONGEST_WAIT_S)
