"""Text of requests: made storable, and quoted in messages."""

from __future__ import annotations

import re
import reprlib

_NOT_STORABLE = re.compile("[\x00\ud800-\udfff]")


def storable(text: str) -> str:
    """The text with U+FFFD for NUL and for lone surrogates.

    PostgreSQL stores no NUL, and UTF-8 has no lone surrogates.
    """
    return _NOT_STORABLE.sub("\ufffd", text)


_brief = reprlib.Repr()
_brief.maxlevel, _brief.maxstring, _brief.maxother = 3, 100, 100


def short(value: object) -> str:
    """A value as messages quote it, whatever its size."""
    text = _brief.repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."
