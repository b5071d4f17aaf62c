"""Types of columns, said once."""

from __future__ import annotations

import uuid
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

from sqlalchemy import Enum, ForeignKey, String
from sqlalchemy.orm import mapped_column

from kb.db import new_id, now


def enum_of(cls: type[StrEnum]) -> Enum:
    """A column of one of these values, stored as its text."""
    # The check is ours and not the table's: a new value then needs no migration.
    return Enum(
        cls,
        native_enum=False,
        length=32,
        values_callable=lambda e: [m.value for m in e],
        validate_strings=True,
    )


Id = Annotated[uuid.UUID, mapped_column(primary_key=True, default=new_id)]
Name = Annotated[str, mapped_column(String(255))]
CreatedAt = Annotated[datetime, mapped_column(default=now)]
WorkspaceId = Annotated[
    uuid.UUID, mapped_column(ForeignKey("workspaces.id", ondelete="CASCADE"), index=True)
]
DatasetId = Annotated[
    uuid.UUID, mapped_column(ForeignKey("datasets.id", ondelete="CASCADE"), index=True)
]
DocumentId = Annotated[
    uuid.UUID, mapped_column(ForeignKey("documents.id", ondelete="CASCADE"), index=True)
]
Json = dict[str, Any]
