"""Contact: how a model's server is reached, and what its options are called where they are set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kb.model_options import ServerOptions

Where = Callable[[str], str]
"""Name of an option -> where a person sets it, as a message names it."""


def in_settings(name: str) -> str:
    """Where the options of the embedding model of the settings are set."""
    return f"KB_EMBEDDING__{name.upper()}"


@dataclass(frozen=True)
class Contact:
    """How one server is reached and how patient we are with it; nothing is checked yet.

    Attributes:
        what: as messages call it, such as `embedding server`.
        model: the name it is asked for.
        where: tells where each option is set.
        checks: options to look at when it refuses for no better reason.
        query_timeout_s: for a call that somebody waits for, all attempts together.
        max_requests: at once, of calls that nobody waits for.
        retries: attempts after the first one of such a call.
    """

    what: str
    url: str
    model: str
    where: Where
    api_key: str | None = field(default=None, repr=False)
    api_key_header: str = "Authorization"
    checks: tuple[str, ...] = ("model",)
    connect_timeout_s: float = 5.0
    timeout_s: float = 60.0
    query_timeout_s: float = 10.0
    max_requests: int = 4
    retries: int = 5
    retry_base_s: float = 0.5
    retry_max_s: float = 10.0


def contact_of(
    options: ServerOptions,
    *,
    what: str,
    url: str,
    model: str,
    api_key: str | None,
    where: Where,
    **more: Any,
) -> Contact:
    """The contact of a configured model, with what its type adds."""
    return Contact(
        what=what,
        url=url,
        model=model,
        where=where,
        api_key=api_key,
        api_key_header=options.api_key_header,
        connect_timeout_s=options.connect_timeout_s,
        timeout_s=options.timeout_s,
        retries=options.retries,
        retry_base_s=options.retry_base_s,
        retry_max_s=options.retry_max_s,
        **more,
    )


def sendable(text: str) -> str:
    """The text as UTF-8 can carry it: lone surrogates as question marks."""
    return text if text.isascii() else text.encode(errors="replace").decode()
