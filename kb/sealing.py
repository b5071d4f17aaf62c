"""Sealed columns, whatever table they are in: sealed at the start, opened for older versions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Table, and_, select

import kb.models  # noqa: F401 - fills Base.metadata
from kb.db import Base, Sealed, Sessions, reading, transaction
from kb.errors import SecretUnreadable
from kb.secrets import Keyring

log = logging.getLogger("kb.secrets")

Row = dict[str, Any]


def sealed_columns(table: Table) -> list[str]:
    """Names of a table's columns that hold sealed texts."""
    return [column.name for column in table.columns if isinstance(column.type, Sealed)]


def seal_all(sessions: Sessions, keyring: Keyring) -> int:
    """Seal what is in clear, or sealed with a key that is not the first; how many texts.

    So an older version's secrets are sealed by the first start of this one, and after a rotation
    and a restart the old key is not needed any more. Safe while others read and change.
    """

    def sealed(stored: str) -> str:
        return stored if keyring.is_current(stored) else keyring.seal(keyring.open(stored))

    if not keyring.usable:
        if any(_stored(sessions)):
            log.warning("stored secrets are neither sealed nor read: %s", keyring.missing)
        return 0
    return _change(sessions, sealed)


def open_all(sessions: Sessions, keyring: Keyring) -> int:
    """Store every secret in clear, as versions before this one read them; how many texts.

    Raises:
        SecretUnreadable: none of the keys sealed one of them; nothing is changed then.
    """
    check_readable(sessions, keyring)
    return _change(sessions, keyring.open)


def check_readable(sessions: Sessions, keyring: Keyring) -> int:
    """How many secrets there are.

    Raises:
        SecretUnreadable: one of them cannot be opened.
    """
    count = 0
    for secret in _stored(sessions):
        keyring.open(secret.text)
        count += 1
    return count


def unreadable(sessions: Sessions, keyring: Keyring) -> list[str]:
    """Where the secrets stand that cannot be opened, and why not."""
    found = []
    for secret in _stored(sessions):
        try:
            keyring.open(secret.text)
        except SecretUnreadable as exc:
            found.append(f"{secret.place} ({exc.message})")
    return found


def resealed(old: Keyring, new: Keyring) -> Callable[[Table, Row], Row]:
    """What makes of a row of one installation that of another: sealed with the other's key."""

    def reseal(table: Table, row: Row) -> Row:
        changed = {name: row[name] for name in sealed_columns(table) if row[name] is not None}
        return row | {name: new.seal(old.open(stored)) for name, stored in changed.items()}

    return reseal


def opened(keyring: Keyring) -> Callable[[Table, Row], Row]:
    """What makes rows of two installations comparable: their secrets in clear."""

    def open_row(table: Table, row: Row) -> Row:
        sealed = {name: row[name] for name in sealed_columns(table) if row[name] is not None}
        return row | {name: keyring.open(stored) for name, stored in sealed.items()}

    return open_row


class _Secret(NamedTuple):
    """A stored secret: its table, a condition for its row, its column, what is stored."""

    table: Table
    of_row: ColumnElement[bool]
    column: str
    text: str
    place: str


def _change(sessions: Sessions, make: Callable[[str], str]) -> int:
    changed = 0
    for secret in list(_stored(sessions)):
        try:
            wanted = make(secret.text)
        except SecretUnreadable as exc:
            log.error("%s: %s", secret.place, exc.message)
            continue
        if wanted != secret.text:
            column = secret.table.c[secret.column]
            same = and_(secret.of_row, column == secret.text)  # unless it was changed meanwhile
            with transaction(sessions) as session:
                session.execute(secret.table.update().where(same).values({secret.column: wanted}))
            changed += 1
    return changed


def _stored(sessions: Sessions) -> Iterator[_Secret]:
    """Every secret there is."""
    for table in Base.metadata.sorted_tables:
        for name in sealed_columns(table):
            keys = list(table.primary_key.columns)
            with reading(sessions) as session:
                rows = session.execute(
                    select(*keys, table.c[name]).where(table.c[name].is_not(None))
                ).all()
            for row in rows:
                of_row = [column == value for column, value in zip(keys, row[:-1], strict=True)]
                place = f"{table.name}.{name} of {', '.join(map(str, row[:-1]))}"
                yield _Secret(table, and_(*of_row), name, row[-1], place)
