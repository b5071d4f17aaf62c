"""What a move has done so far, written down in the target; gone when the move is complete."""

from __future__ import annotations

import uuid
from typing import Any

from sqlalchemy import JSON, Boolean, Column, MetaData, String, Table, inspect, select
from sqlalchemy.orm import Session

from kb.db import Base, Sessions, exclusive, reading, transaction
from kb.errors import InvalidParam
from kb.models import Workspace

_STEPS = Table(
    "kb_moving",
    MetaData(),
    Column("step", String(200), primary_key=True),
    Column("done", Boolean, nullable=False),
    Column("cursor", JSON),
)
_SOURCE = "source"
_FIRST_START = frozenset({"workspaces", "members"})
"""What the first start of an installation makes; without anything else, it may be replaced."""


class Ledger:
    """Steps of a move, with how far each has got."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def goes_on(self, source: Sessions) -> bool:
        """Whether this target has begun to take in this source.

        Raises:
            InvalidParam: it has begun to take in another one.
        """
        if not inspect(self._sessions.engine).has_table(_STEPS.name):
            return False
        known = self.cursor(_SOURCE)
        if known is None:
            return False
        if known != _identity(source):
            raise InvalidParam(
                "the target has begun to take in another installation; finish that move, or use "
                "an empty database"
            )
        return True

    def begin(self, source: Sessions) -> None:
        """Make sure that the target is empty, and write down what it takes in.

        Raises:
            InvalidParam: it holds data.
        """
        with transaction(self._sessions) as session:
            exclusive(session, "moving house")
            held = [
                table.name
                for table in Base.metadata.sorted_tables
                if session.execute(select(table).limit(1)).first() is not None
            ]
            if set(held) - _FIRST_START:
                raise InvalidParam(
                    f"the target holds data already (in {', '.join(sorted(held))}); a move needs "
                    "an empty database"
                )
            for table in reversed(Base.metadata.sorted_tables):
                if table.name in held:
                    session.execute(table.delete())
            _STEPS.create(session.connection(), checkfirst=True)
            session.execute(
                _STEPS.insert().values(step=_SOURCE, done=False, cursor=_identity(source))
            )

    def cursor(self, step: str) -> Any:
        """Up to where a step has got; None: it has not begun."""
        with reading(self._sessions) as session:
            return session.scalar(select(_STEPS.c.cursor).where(_STEPS.c.step == step))

    def is_done(self, step: str) -> bool:
        """Whether a step is complete."""
        with reading(self._sessions) as session:
            return bool(session.scalar(select(_STEPS.c.done).where(_STEPS.c.step == step)))

    def note(self, session: Session, step: str, cursor: Any, *, done: bool = False) -> None:
        """Write down how far a step has got, in the transaction that brought it there."""
        session.execute(_STEPS.delete().where(_STEPS.c.step == step))
        session.execute(_STEPS.insert().values(step=step, done=done, cursor=cursor))

    def advance(self, step: str, cursor: Any) -> None:
        """A step that writes elsewhere has got so far."""
        with transaction(self._sessions) as session:
            self.note(session, step, cursor)

    def finish(self, step: str, result: Any = None) -> None:
        """The step is complete; `cursor` gives its result."""
        with transaction(self._sessions) as session:
            self.note(session, step, result, done=True)

    def drop(self) -> None:
        """The move is complete."""
        with transaction(self._sessions) as session:
            _STEPS.drop(session.connection(), checkfirst=True)


def _identity(source: Sessions) -> str:
    with reading(source) as session:
        first: uuid.UUID | None = session.scalar(
            select(Workspace.id).order_by(Workspace.created_at, Workspace.id).limit(1)
        )
    if first is None:
        raise InvalidParam("the source holds nothing: it was never started")
    return str(first)
