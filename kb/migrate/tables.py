"""Every table, row by row as the primary key has them, and checksums to compare them by."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from hashlib import sha256
from typing import Any

from sqlalchemy import Table, and_, func, or_, select

from kb.db import Base, Sessions, moment, reading, transaction
from kb.ingestion.claims import IN_WORK
from kb.migrate.ledger import Ledger
from kb.models import Document, IndexingStatus, Job

_ROWS = 500

Row = dict[str, Any]


def in_use(sessions: Sessions) -> str | None:
    """Who holds a lease at this moment; None: nobody."""
    with reading(sessions) as session:
        for table in (Document, Job):
            owner: str | None = session.scalar(
                select(table.lease_owner)
                .where(table.lease_owner.is_not(None), table.lease_expires_at > moment())
                .limit(1)
            )
            if owner is not None:
                return owner
    return None


def copy_tables(
    source: Sessions,
    target: Sessions,
    ledger: Ledger,
    progress: Callable[[str, int, int], None],
    *,
    reseal: Callable[[Table, Row], Row],
) -> None:
    """Copy what is not there yet; documents in work become waiting ones, leases are left out.

    Args:
        reseal: a row of the source as the target can read it.
    """
    for table in Base.metadata.sorted_tables:
        step = f"table {table.name}"
        if ledger.is_done(step):
            continue
        with reading(source) as session:
            total = session.scalar(select(func.count()).select_from(table)) or 0
        with reading(target) as session:
            copied = session.scalar(select(func.count()).select_from(table)) or 0
        for rows in _pages(source, table, _key(table, ledger.cursor(step))):
            with transaction(target) as session:
                session.execute(table.insert(), [reseal(table, row) for row in rows])
                ledger.note(session, step, [_plain(v) for v in _key_of(table, rows[-1])])
            copied += len(rows)
            progress(step, copied, total)
        ledger.finish(step)


@dataclass
class Sums:
    """How many rows, and the sum of their hashes: the same in whatever order they come."""

    rows: int = 0
    total: int = 0

    def add(self, row: Row) -> None:
        """One row more."""
        text = json.dumps({n: _plain(v) for n, v in row.items()}, sort_keys=True)
        digest = sha256(text.encode("utf-8", "surrogatepass")).digest()
        self.rows += 1
        self.total = (self.total + int.from_bytes(digest)) % 2**256

    def short(self) -> str:
        """As messages show it."""
        return f"{self.total:064x}"[:12]


def sums(
    sessions: Sessions,
    progress: Callable[[str, int, int], None],
    *,
    opened: Callable[[Table, Row], Row],
) -> dict[str, Sums]:
    """Of every table; leases count as given back, secrets as what they are in clear (`opened`)."""
    found: dict[str, Sums] = {}
    for table in Base.metadata.sorted_tables:
        found[table.name] = Sums()
        for rows in _pages(sessions, table, None):
            for row in rows:
                found[table.name].add(opened(table, row))
            progress("compare", found[table.name].rows, 0)
    return found


def _pages(sessions: Sessions, table: Table, after: Sequence[Any] | None) -> Iterator[list[Row]]:
    """The rows, ascending by primary key, with leases given back."""
    keys = list(table.primary_key.columns)
    while True:
        statement = select(table).order_by(*keys).limit(_ROWS)
        if after is not None:
            statement = statement.where(
                or_(
                    *[
                        and_(
                            *[keys[n] == after[n] for n in range(at)],
                            keys[at] > after[at],
                        )
                        for at in range(len(keys))
                    ]
                )
            )
        with reading(sessions) as session:
            rows = [_free(table, dict(row)) for row in session.execute(statement).mappings()]
        if not rows:
            return
        yield rows
        after = _key_of(table, rows[-1])


def _free(table: Table, row: Row) -> Row:
    """The row as a process leaves it that hands its work back."""
    if table.name in (Document.__tablename__, Job.__tablename__):
        row |= {"lease_owner": None, "lease_expires_at": None}
    if row.get("indexing_status") in IN_WORK:
        row["indexing_status"] = IndexingStatus.WAITING
    return row


def _key_of(table: Table, row: Row) -> list[Any]:
    return [row[column.name] for column in table.primary_key.columns]


def _key(table: Table, stored: list[str] | None) -> list[Any] | None:
    if stored is None:
        return None
    return [
        uuid.UUID(text) if column.type.python_type is uuid.UUID else text
        for column, text in zip(table.primary_key.columns, stored, strict=True)
    ]


def _plain(value: Any) -> Any:
    """A value as JSON has it, the same from both databases."""
    if isinstance(value, uuid.UUID):
        return value.hex
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, bytes | memoryview):
        return bytes(value).hex()
    return value
