"""Rules of metadata fields: create, rename, delete, switch the built-in ones, assign values."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from kb.errors import InvalidParam, NotFound
from kb.metadata.fields import BUILT_IN_NAMES, FIRST_FREE_SLOT, Field, list_fields, of_row
from kb.metadata.labels import Owed, owe
from kb.metadata.values import Value, quoted, typed
from kb.models import Dataset, Document, FieldType, MetadataField
from kb.settings import Limits

_ROWS = 500  # ids per IN
_NAME_CHARS = 255
_BUILT_IN_ID = "built-in"


def add_field(
    session: Session,
    dataset: Dataset,
    name: str,
    type: FieldType,
    *,
    most: int,
    actor: uuid.UUID,
) -> MetadataField:
    """Make a field; the dataset is locked.

    Args:
        most: fields that a dataset may have.
    Raises:
        InvalidParam: the name is taken, a built-in field's, blank or too long, or there are
            `most` fields.
    """
    _check_name(name)
    there = list_fields(session, [dataset.id])
    if len(there) >= most:
        raise InvalidParam(
            f"dataset {dataset.name!r} has {len(there)} metadata fields, the limit is {most}; "
            "delete one, or raise KB_LIMITS__METADATA_FIELDS"
        )
    slot = None
    if type is not FieldType.STRING:
        used = {row.slot for row in there}
        slot = next(n for n in range(FIRST_FREE_SLOT, FIRST_FREE_SLOT + most) if n not in used)
    row = MetadataField(dataset_id=dataset.id, name=name, type=type, slot=slot, created_by=actor)
    _named(session, row, name)
    dataset.metadata_revision += 1
    return row


def rename_field(
    session: Session, dataset: Dataset, field_id: uuid.UUID, name: str
) -> MetadataField:
    """Give a field another name; values stay where they are. The dataset is locked.

    Raises:
        NotFound: the dataset has no such field.
        InvalidParam: as with `add_field`.
    """
    row = get_field(session, dataset, field_id)
    if row.name != name:
        _check_name(name)
        _named(session, row, name)
        dataset.metadata_revision += 1
    return row


def _check_name(name: str) -> None:
    if not name.strip():
        raise InvalidParam(f"name is {quoted(name)}; give the metadata field a name")
    if len(name) > _NAME_CHARS:
        raise InvalidParam(f"name has {len(name)} characters; a field's has at most {_NAME_CHARS}")
    if name in BUILT_IN_NAMES:
        raise InvalidParam(f"{name!r} is the name of a built-in field; choose another name")


def _named(session: Session, row: MetadataField, name: str) -> None:
    try:
        with session.begin_nested():
            row.name = name
            session.add(row)
    except IntegrityError as exc:
        raise InvalidParam(
            f"the dataset has a metadata field {name!r} already; choose another name"
        ) from exc


def get_field(session: Session, dataset: Dataset, field_id: uuid.UUID) -> MetadataField:
    """A field of the dataset.

    Raises:
        NotFound: the dataset has no such field.
    """
    row = session.get(MetadataField, field_id)
    if row is None or row.dataset_id != dataset.id:
        raise NotFound("metadata field", field_id)
    return row


def delete_field(session: Session, dataset: Dataset, field_id: uuid.UUID) -> None:
    """Remove a field and its values from every document. The dataset is locked.

    Values stay in the rows under an id that means nothing any more, until a document's metadata is
    set again; so a deletion takes as long for a million documents as for one. Nor does a filter ask
    the index for it any more: a job clears the points.

    Raises:
        NotFound: the dataset has no such field.
    """
    session.delete(get_field(session, dataset, field_id))
    session.flush()
    dataset.metadata_revision += 1
    owe(session, dataset.id, patience_s=0)


def switch_built_in(session: Session, dataset: Dataset, *, on: bool) -> Owed | None:
    """Give all documents the built-in fields, or take them away; None: they are so already."""
    if dataset.built_in_field_enabled is on:
        return None
    dataset.built_in_field_enabled = on
    dataset.metadata_revision += 1
    return owe(session, dataset.id)


@dataclass(frozen=True, slots=True)
class Assignment:
    """Values for one document, by field id as the caller sent it.

    Attributes:
        merge: keep values that are not given; otherwise these take the place of all.
    """

    document_id: uuid.UUID
    values: Sequence[tuple[str, Value | None]]
    merge: bool


def assign(
    session: Session, dataset: Dataset, assignments: Sequence[Assignment], limits: Limits
) -> Owed:
    """Set the values of many documents, in order; all of them or none. The dataset is locked.

    Entries of built-in fields are passed over: answers show them among the others, and callers
    send back what they were shown.

    Raises:
        NotFound: a document or field is not the dataset's.
        InvalidParam: a value is not of its field's type, a text is too long, or there are more
            assignments than one call may hold.
    """
    _check_size(assignments, limits)
    fields = {str(row.id): of_row(row) for row in list_fields(session, [dataset.id])}
    before = _stored(session, dataset.id, {given.document_id for given in assignments})
    after = dict(before)
    for given in assignments:
        if given.document_id not in before:
            raise NotFound("document", given.document_id)
        values = {field_id: value for field_id, value in given.values if field_id != _BUILT_IN_ID}
        checked = _checked(values, fields, limits)
        kept = after[given.document_id] if given.merge else {}
        after[given.document_id] = {i: v for i, v in kept.items() if i in fields} | checked
    changed = sorted(id for id, values in after.items() if values != before[id])
    if changed:
        session.execute(
            update(Document), [{"id": id, "doc_metadata": after[id] or None} for id in changed]
        )
        dataset.metadata_revision += 1
    return owe(session, dataset.id, changed)


def _check_size(assignments: Sequence[Assignment], limits: Limits) -> None:
    values = sum(len(given.values) for given in assignments)
    size = max(values, len(assignments))
    if size > limits.metadata_assignments:
        raise InvalidParam(
            f"the call sets {values:,} values of {len(assignments):,} documents, the limit is "
            f"{limits.metadata_assignments:,}; make several calls, or raise "
            "KB_LIMITS__METADATA_ASSIGNMENTS"
        )


def _checked(
    values: Mapping[str, Value | None], fields: Mapping[str, Field], limits: Limits
) -> dict[str, Value | None]:
    found: dict[str, Value | None] = {}
    for field_id, value in values.items():
        field = fields.get(field_id)
        if field is None:
            raise NotFound("metadata field", field_id[:100])
        found[field_id] = None if value is None else typed(value, field)
        if isinstance(value, str) and len(value) > limits.metadata_value_chars:
            raise InvalidParam(
                f"the value of metadata field {field.name!r} has {len(value):,} characters, the "
                f"limit is {limits.metadata_value_chars:,}; shorten it, or raise "
                "KB_LIMITS__METADATA_VALUE_CHARS"
            )
    return found


def _stored(
    session: Session, dataset_id: uuid.UUID, document_ids: Iterable[uuid.UUID]
) -> dict[uuid.UUID, dict[str, Any]]:
    ids = sorted(document_ids)
    found: dict[uuid.UUID, dict[str, Any]] = {}
    for at in range(0, len(ids), _ROWS):
        rows = session.execute(
            select(Document.id, Document.doc_metadata).where(
                Document.id.in_(ids[at : at + _ROWS]), Document.dataset_id == dataset_id
            )
        )
        found.update((row[0], row[1] or {}) for row in rows)
    return found
