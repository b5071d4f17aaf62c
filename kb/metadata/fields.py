"""Fields as filters and answers know them: those of a dataset, and the built-in ones."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import select
from sqlalchemy.orm import Session

from kb.models import Dataset, FieldType, MetadataField


@dataclass(frozen=True, slots=True)
class Field:
    """A typed field.

    Attributes:
        id: None for a built-in one.
        key: begins the field's tags in the index; no other field of the dataset ever has it.
        slot: its number in the index; None for texts.
    """

    id: uuid.UUID | None
    name: str
    type: FieldType
    key: str
    slot: int | None = None


BUILT_IN = (
    Field(None, "document_name", FieldType.STRING, "name"),
    Field(None, "uploader", FieldType.STRING, "uploader"),
    Field(None, "upload_date", FieldType.TIME, "uploaded", 0),
    Field(None, "last_update_date", FieldType.TIME, "updated", 1),
    Field(None, "source", FieldType.STRING, "source"),
)
"""In the order of the contract; documents have them while the dataset's switch is on."""

BUILT_IN_NAMES = frozenset(built_in.name for built_in in BUILT_IN)

FIRST_FREE_SLOT = 2


@dataclass(frozen=True)
class Fields:
    """The fields of a dataset, those of its own in the order in which they were made."""

    own: tuple[Field, ...]
    with_built_in: bool
    by_id: Mapping[str, Field] = field(init=False, repr=False, compare=False)
    by_name: Mapping[str, Field] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_id", {str(own.id): own for own in self.own})
        object.__setattr__(self, "by_name", {known.name: known for known in self})

    def __iter__(self) -> Iterator[Field]:
        """All that documents have at present."""
        yield from self.own
        if self.with_built_in:
            yield from BUILT_IN


def fields_of(session: Session, dataset_ids: Collection[uuid.UUID]) -> dict[uuid.UUID, Fields]:
    """The fields of those of these datasets that are there."""
    own: dict[uuid.UUID, list[Field]] = {dataset_id: [] for dataset_id in dataset_ids}
    for row in list_fields(session, dataset_ids) if own else ():
        own[row.dataset_id].append(of_row(row))
    return {
        dataset_id: Fields(tuple(fields), with_built_in)
        for dataset_id, fields in own.items()
        if (with_built_in := shows_built_in(session, dataset_id)) is not None
    }


def shows_built_in(session: Session, dataset_id: uuid.UUID) -> bool | None:
    """Whether the dataset's documents have the built-in fields; None: it is gone."""
    dataset = session.get(Dataset, dataset_id)  # no statement where a query has loaded it before
    return None if dataset is None else dataset.built_in_field_enabled


def list_fields(session: Session, dataset_ids: Collection[uuid.UUID]) -> Sequence[MetadataField]:
    """The rows of these datasets' own fields, oldest first."""
    return session.scalars(
        select(MetadataField)
        .where(MetadataField.dataset_id.in_(dataset_ids))
        .order_by(MetadataField.created_at, MetadataField.id)
    ).all()


def of_row(row: MetadataField) -> Field:
    """A field of its row."""
    key = base64.urlsafe_b64encode(row.id.bytes).decode().rstrip("=")
    return Field(row.id, row.name, row.type, key, row.slot)
