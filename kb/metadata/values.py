"""Values of fields: what may be one, and how one is brought into its field's type."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from math import isfinite

from kb.errors import InvalidParam
from kb.metadata.fields import Field
from kb.models import FieldType

Value = str | int | float

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_WHOLE = re.compile(r"[+-]?\d{1,300}", re.ASCII)
_WANTED = {
    FieldType.STRING: "send a text",
    FieldType.NUMBER: "send a number, such as 2024 or 1.5",
    FieldType.TIME: "send Unix seconds, such as 1767225600, or ISO 8601, such as 2026-01-01",
}


def typed(value: Value, field: Field) -> Value:
    """The value as its field's type has it.

    A text field takes a number as it is written, a number or time field a text that is one; a time
    also ISO 8601 (UTC unless it says otherwise), as Unix seconds. Numbers are compared as float64.

    Raises:
        InvalidParam: it is none; the message names the field, its type and the value.
    """
    if field.type is FieldType.STRING:
        return str(value)
    found = _number(value) if not isinstance(value, str) else _number_in(value)
    if found is None and field.type is FieldType.TIME and isinstance(value, str):
        found = _moment_in(value)
    if found is None:
        raise InvalidParam(
            f"metadata field {field.name!r} is of type {field.type.value}, and "
            f"{quoted(value)} is none; {_WANTED[field.type]}"
        )
    return found


def quoted(value: object) -> str:
    """A value as messages show it."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def comparable(value: Value) -> str | float:
    """A typed value as the index and filters compare it."""
    return value if isinstance(value, str) else float(value) + 0.0  # -0.0 becomes 0.0


def _number(value: float) -> int | float | None:
    try:
        return value if isfinite(float(value)) else None
    except OverflowError:
        return None


def _number_in(text: str) -> int | float | None:
    text = text.strip()
    if _WHOLE.fullmatch(text):
        return int(text)
    return _number(float(text)) if _NUMBER.fullmatch(text) else None


def _moment_in(text: str) -> float | None:
    try:
        moment = datetime.fromisoformat(text.strip())
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
