"""Alembic's environment: runs on the connection that `kb.migrations` hands over."""

from __future__ import annotations

import os
from typing import Any, Literal

from alembic import context
from sqlalchemy import Connection, create_engine

import kb.models  # noqa: F401 - fills Base.metadata
from kb.db import Base, UtcDateTime


def _render(kind: str, item: Any, _context: Any) -> str | Literal[False]:
    """Revisions name plain types only, so that they outlive ours."""
    if kind == "type" and isinstance(item, UtcDateTime):
        return "sa.DateTime(timezone=True)"
    return False


def run(connection: Connection) -> None:
    """Run the revisions inside the transaction of whoever asked for it."""
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=connection.dialect.name == "sqlite",
        compare_type=True,
        render_item=_render,
    )
    with context.begin_transaction():
        context.run_migrations()


handed_over = context.config.attributes.get("connection")
if handed_over is not None:
    run(handed_over)
else:  # `alembic -x ...` by a developer who writes a revision
    engine = create_engine(os.environ["KB_DATABASE_URL"])
    with engine.connect() as connection:
        run(connection)
        connection.commit()
