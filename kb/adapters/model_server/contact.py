"""Contact: how a model's server is reached, and what its options are called where they are set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

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
