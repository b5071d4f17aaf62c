"""Labels: the index's copy of documents' facts, brought up to date after a commit.

A change writes down a job in its own transaction, and is carried into the index before its call
returns; then the job is struck out. Whatever ends the call in between, the job does it later.
Whoever writes points at the same time looks at SQL again afterwards (`kb.ingestion.points`), so
neither of them leaves old facts behind.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, event, inspect, select
from sqlalchemy.orm import Session

from kb.db import Sessions, reading, transaction
from kb.jobs import enqueue
from kb.metadata.facts import facts_of
from kb.metadata.fields import shows_built_in
from kb.models import Dataset, Document, Job, JobKind
from kb.ports import Space
from kb.resources import Resources
from kb.spaces import spaces_of

_DOCUMENTS = 5000
"""Labelled between two looks at SQL, and named in one job."""
PATIENCE_S = 30.0
"""For so long a job leaves the work to the call that wrote it down."""


_SHOWN_BY_BUILT_IN = ("name", "updated_at")


@dataclass(frozen=True)
class Owed:
    """Documents whose facts in the index are out of date once the transaction commits.

    Attributes:
        documents: None: all of the dataset.
        jobs: written down for them.
    """

    dataset_id: uuid.UUID
    documents: tuple[uuid.UUID, ...] | None
    jobs: tuple[uuid.UUID, ...]


def owe(
    session: Session,
    dataset_id: uuid.UUID,
    documents: Sequence[uuid.UUID] | None = None,
    *,
    patience_s: float = PATIENCE_S,
) -> Owed:
    """Write down that these documents (None: all) are to be labelled; `settle` it after the commit.

    Call it in the transaction that changes what their facts are made of.

    Args:
        patience_s: how long the job leaves the work to the call; 0 when the call does none.
    """
    parts: list[list[str] | None] = [None]
    if documents is not None:
        ids = [str(document_id) for document_id in documents]
        parts = [ids[at : at + _DOCUMENTS] for at in range(0, len(ids), _DOCUMENTS)]
    jobs = tuple(
        enqueue(
            session,
            JobKind.LABEL_DOCUMENTS,
            wait_s=patience_s,
            dataset_id=str(dataset_id),
            documents=part,
        )
        for part in parts
    )
    return Owed(dataset_id, None if documents is None else tuple(documents), jobs)


def touch(session: Session, dataset_id: uuid.UUID, documents: Sequence[uuid.UUID]) -> None:
    """Have a job label documents whose name or time of change is another now.

    Only the built-in fields hold these, so nothing is to be done while they are switched off.
    """
    if shows_built_in(session, dataset_id):
        owe(session, dataset_id, documents, patience_s=0)


@event.listens_for(Session, "before_flush")
def _touch_changed(session: Session, *_: object) -> None:
    """Whatever part of the program changes a document's name or its time of change."""
    touched: set[uuid.UUID] = session.info.setdefault("touched_documents", set())
    for row in [row for row in session.dirty if isinstance(row, Document)]:
        changed = any(inspect(row).attrs[name].history.added for name in _SHOWN_BY_BUILT_IN)
        if changed and row.id not in touched:
            touched.add(row.id)
            touch(session, row.dataset_id, [row.id])


def settle(resources: Resources, owed: Owed) -> None:
    """Label what is owed, after the commit; then filters know it.

    Raises:
        StoreUnavailable: the index did not answer; a job goes on trying.
    """
    if not owed.jobs:
        return
    label_documents(resources, owed.dataset_id, owed.documents)
    with transaction(resources.sessions) as session:
        session.execute(delete(Job).where(Job.id.in_(owed.jobs), Job.lease_owner.is_(None)))


def label_documents(
    resources: Resources, dataset_id: uuid.UUID, documents: Sequence[uuid.UUID] | None = None
) -> None:
    """Give the points of these documents (None: all of the dataset) the facts that SQL has.

    What changes meanwhile is labelled again, so of two calls at once neither leaves old facts.
    """
    with reading(resources.sessions) as session:
        spaces = _spaces(session, dataset_id)
    labelled: list[Space] = []  # a dataset without documents may have a space that is not there yet
    for part in _parts(resources.sessions, dataset_id, documents):
        with reading(resources.sessions) as session:
            stamp, facts = _stamp(session, dataset_id), facts_of(session, part)
        while facts:
            for space in spaces:
                resources.index.ensure_space(space)
                resources.index.label(space, dataset_id, facts)
                labelled += [space] * (space not in labelled)
            with reading(resources.sessions) as session:
                spaces = _spaces(session, dataset_id)
                if stamp is not None and stamp == _stamp(session, dataset_id):
                    break
                now = facts_of(session, list(facts))
            facts, stamp = {id: new for id, new in now.items() if new != facts[id]}, None
    for space in labelled:
        resources.index.flush(space)


def _stamp(session: Session, dataset_id: uuid.UUID) -> int | None:
    """As long as it stays, so do all facts of the dataset; None: built-in fields are among them."""
    dataset = session.get(Dataset, dataset_id)
    if dataset is None or dataset.built_in_field_enabled:
        return None
    return dataset.metadata_revision


def _spaces(session: Session, dataset_id: uuid.UUID) -> list[Space]:
    dataset = session.get(Dataset, dataset_id)
    return spaces_of(session, dataset) if dataset is not None else []


def _parts(
    sessions: Sessions, dataset_id: uuid.UUID, documents: Sequence[uuid.UUID] | None
) -> Iterator[Sequence[uuid.UUID]]:
    if documents is not None:
        for at in range(0, len(documents), _DOCUMENTS):
            yield documents[at : at + _DOCUMENTS]
        return
    page = select(Document.id).where(Document.dataset_id == dataset_id).order_by(Document.id)
    after: uuid.UUID | None = None
    while True:
        wanted = page if after is None else page.where(Document.id > after)
        with reading(sessions) as session:
            ids = session.scalars(wanted.limit(_DOCUMENTS)).all()
        if not ids:
            return
        yield ids
        after = ids[-1]


def do_job(resources: Resources, payload: dict[str, Any]) -> None:
    """What a call owed and could not do."""
    ids = payload["documents"]
    documents = None if ids is None else [uuid.UUID(text) for text in ids]
    label_documents(resources, uuid.UUID(payload["dataset_id"]), documents)
