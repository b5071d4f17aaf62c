"""What documents hold: values by field, as the index's facts, and as answers show them."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from kb.metadata.fields import BUILT_IN, Field, Fields, fields_of, shows_built_in
from kb.metadata.values import comparable
from kb.models import Document, FieldType, Member
from kb.ports import Facts

_ROWS = 500  # ids per IN
_LONG = 200
"""Characters of a text from which on its tag holds a hash of it instead: tags are compared for
equality alone."""

SOURCES = {
    "upload_file": "file_upload",
    "website_crawl": "website",
    "notion_import": "notion",
}

Held = Mapping[str, str | float]
"""Field key -> comparable value; fields without a value are left out."""


@dataclass(frozen=True, slots=True)
class Holder:
    """What of a document its values come from."""

    id: uuid.UUID
    dataset_id: uuid.UUID
    doc_metadata: dict[str, Any] | None
    name: str
    uploader: str | None
    created_at: datetime
    updated_at: datetime
    data_source_type: str

    def built_in(self) -> dict[str, str | float]:
        """Of every built-in field, by its key."""
        return {
            "name": self.name,
            "uploader": self.uploader or "owner",
            "uploaded": self.created_at.timestamp(),
            "updated": self.updated_at.timestamp(),
            "source": SOURCES.get(self.data_source_type, self.data_source_type),
        }


def holders(session: Session, document_ids: Collection[uuid.UUID]) -> Iterator[Holder]:
    """Those of these documents that are there."""
    ids = list(document_ids)
    for at in range(0, len(ids), _ROWS):
        rows = session.execute(
            select(
                Document.id,
                Document.dataset_id,
                Document.doc_metadata,
                Document.name,
                Member.name,
                Document.created_at,
                Document.updated_at,
                Document.data_source_type,
            )
            .outerjoin(Member, Member.id == Document.created_by)
            .where(Document.id.in_(ids[at : at + _ROWS]))
        )
        for row in rows:
            yield Holder(*row)


def held(holder: Holder, fields: Fields) -> Held:
    """What a document can be filtered by."""
    values = {
        known.key: comparable(value)
        for field_id, value in (holder.doc_metadata or {}).items()
        if value is not None and (known := fields.by_id.get(field_id)) is not None
    }
    return values | holder.built_in() if fields.with_built_in else values


def tag(field: Field, text: str) -> str:
    """Of a point whose document holds this text."""
    if len(text) > _LONG:
        return f"{field.key}#{sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()}"
    return f"{field.key}={text}"


def facts(values: Held, fields: Fields) -> Facts:
    """What the index holds of a document: a tag for each field that it has a value of, one for
    each text, and numbers.
    """
    tags: list[str] = []
    numbers: list[tuple[int, float]] = []
    for known in fields:
        value = values.get(known.key)
        if value is None:
            continue
        tags.append(known.key)
        if isinstance(value, str):
            tags.append(tag(known, value))
        elif known.slot is not None:
            numbers.append((known.slot, value))
    return Facts(tuple(sorted(tags)), tuple(sorted(numbers)))


def facts_of(session: Session, document_ids: Collection[uuid.UUID]) -> dict[uuid.UUID, Facts]:
    """What the index should hold of these documents; those that are gone are left out."""
    found = list(holders(session, document_ids))
    known = fields_of(session, {holder.dataset_id for holder in found})
    return {
        holder.id: facts(held(holder, known[holder.dataset_id]), known[holder.dataset_id])
        for holder in found
        if holder.dataset_id in known
    }


def shown(session: Session, documents: Sequence[Document]) -> dict[uuid.UUID, list[dict[str, Any]]]:
    """`doc_metadata` as answers about these documents show it: own fields that a document has,
    with or without a value, then the built-in ones while they are on.
    """
    known = fields_of(session, {row.dataset_id for row in documents})
    people = holders(session, [row.id for row in documents if known[row.dataset_id].with_built_in])
    built_in = {holder.id: holder.built_in() for holder in people}
    return {
        row.id: [*_own(row, known[row.dataset_id]), *_built_in(built_in.get(row.id))]
        for row in documents
    }


def _own(document: Document, fields: Fields) -> Iterator[dict[str, Any]]:
    values = document.doc_metadata or {}
    for own in fields.own:
        if str(own.id) in values:
            yield item(own, values[str(own.id)])


def _built_in(values: Held | None) -> Iterator[dict[str, Any]]:
    for known in BUILT_IN if values else ():
        value = (values or {})[known.key]
        # The contract has times of built-in fields as texts.
        yield item(known, str(value) if known.type is FieldType.TIME else value)


def item(field: Field, value: Any) -> dict[str, Any]:
    """One entry of `doc_metadata`."""
    field_id = "built-in" if field.id is None else str(field.id)
    return {"id": field_id, "name": field.name, "type": field.type.value, "value": value}


def maps_of(
    session: Session, documents: Iterable[tuple[uuid.UUID, uuid.UUID, Any]]
) -> dict[uuid.UUID, dict[str, Any] | None]:
    """Name -> value of every field that a document has, as retrieval shows it; None: none.

    Args:
        documents: id, dataset id and `doc_metadata` of each.
    """
    rows = list(documents)
    datasets = {dataset_id for _, dataset_id, values in rows if values}
    datasets |= {dataset_id for _, dataset_id, _ in rows if shows_built_in(session, dataset_id)}
    known = fields_of(session, datasets)
    on = [
        id for id, dataset_id, _ in rows if dataset_id in known and known[dataset_id].with_built_in
    ]
    built_in = {holder.id: holder.built_in() for holder in holders(session, on)}
    return {
        id: _named(values or {}, known[dataset_id], built_in.get(id))
        if dataset_id in known
        else None
        for id, dataset_id, values in rows
    }


def _named(
    values: Mapping[str, Any], fields: Fields, built_in: Held | None
) -> dict[str, Any] | None:
    own = {f.name: values[str(f.id)] for f in fields.own if str(f.id) in values}
    if built_in:
        own |= {f.name: built_in[f.key] for f in BUILT_IN}
    return own or None
