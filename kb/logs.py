"""Log lines, as text or as JSON, with the ids of the work at hand and without secrets."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, SecretStr

LogFormat = Literal["text", "json"]

_ids: ContextVar[Mapping[str, str]] = ContextVar("kb_log_ids", default=MappingProxyType({}))
_PLAIN = re.compile(r"[^\s\"=]+")
# What may never be read in a log, whoever put it into a message: keys and passwords of URLs.
_SECRET = re.compile(
    r"(?P<bearer>\b[Bb]earer\s+)\S+|(?P<key>\bdataset-)[A-Za-z0-9]{16,}"
    r"|(?P<url>\w://[^\s/:@]*:)[^\s@/]+(?=@)"
)
_SHORTEST_SECRET = 6
"""A shorter one would be found in many innocent words."""


@contextmanager
def log_ids(**ids: object) -> Iterator[None]:
    """Every line that is written inside, in this thread or task, holds these ids."""
    token = _ids.set({**_ids.get(), **{name: str(value) for name, value in ids.items()}})
    try:
        yield
    finally:
        _ids.reset(token)


def current_ids() -> Mapping[str, str]:
    """The ids of the work at hand."""
    return _ids.get()


def fields(**values: object) -> dict[str, Any]:
    """`extra` of a logging call: values that stand beside the message, under their own names."""
    return {"kb_fields": values}


def formatter(kind: LogFormat, *, secrets: frozenset[str] = frozenset()) -> logging.Formatter:
    """How lines are written.

    Args:
        secrets: never written, wherever they turn up.
    """
    return (_Json if kind == "json" else _Text)(secrets)


def secrets_of(settings: BaseModel) -> frozenset[str]:
    """Every secret of the settings, and the passwords in their URLs."""
    found: set[str] = set()
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            found |= secrets_of(value)
        elif isinstance(value, SecretStr):
            found |= _with_password(value.get_secret_value())
        elif isinstance(value, str) and "://" in value:
            found |= _with_password(value) - {value}
    return frozenset(secret for secret in found if len(secret) >= _SHORTEST_SECRET)


def _with_password(text: str) -> set[str]:
    if "://" not in text:
        return {text}
    try:
        password = urlsplit(text).password
    except ValueError:
        password = None
    return {text} | ({password, unquote(password)} if password else set())


class _Line(logging.Formatter):
    def __init__(self, secrets: frozenset[str]) -> None:
        super().__init__()
        self._secrets = sorted(secrets, key=len, reverse=True)

    def format(self, record: logging.LogRecord) -> str:
        line = _SECRET.sub(_hide, self._line(record))
        for secret in self._secrets:
            if secret in line:
                line = line.replace(secret, "***")
        return line

    def _line(self, record: logging.LogRecord) -> str:
        raise NotImplementedError

    def _values(self, record: logging.LogRecord) -> dict[str, Any]:
        at = datetime.fromtimestamp(record.created, UTC)
        return {
            "time": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            **_ids.get(),
            **getattr(record, "kb_fields", {}),
        }

    def _trace(self, record: logging.LogRecord) -> str:
        parts = [self.formatException(record.exc_info)] if record.exc_info else []
        return "\n".join([*parts, *([record.stack_info] if record.stack_info else [])])


class _Text(_Line):
    def _line(self, record: logging.LogRecord) -> str:
        pairs = [f"{name}={_quoted(value)}" for name, value in self._values(record).items()]
        line = " ".join([*pairs, record.getMessage()])
        trace = self._trace(record)
        return f"{line}\n{trace}" if trace else line


class _Json(_Line):
    def _line(self, record: logging.LogRecord) -> str:
        values = self._values(record) | {"message": record.getMessage()}
        trace = self._trace(record)
        if trace:
            values["exception"] = trace
        return json.dumps(values, ensure_ascii=False, default=str)


def _hide(match: re.Match[str]) -> str:
    return next(part for part in match.groups() if part is not None) + "***"


def _quoted(value: object) -> str:
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)
