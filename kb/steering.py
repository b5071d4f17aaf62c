"""Steering: a person pauses, resumes, retries, cancels or re-chunks documents, one or many."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from functools import partial
from itertools import groupby
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, false, or_, select
from sqlalchemy.orm import Session

from kb.datasets import get_dataset
from kb.db import after_commit, moment, now, reading, retried, transaction
from kb.document_status import DisplayStatus, displayed_as, lock_documents
from kb.documents import update_document
from kb.errors import DocumentFinished, InvalidAction, InvalidParam, NotFound
from kb.ingestion.staging import drop_other_stagings
from kb.jobs import LATE_S, enqueue
from kb.models import (
    UNFINISHED,
    Dataset,
    Document,
    DocumentVersion,
    IndexingStatus,
    JobKind,
    Tag,
    TagBinding,
    WebhookEvent,
)
from kb.process_rules import ProcessRuleIn, validate
from kb.resources import Resources, space_of
from kb.schemas import DocumentUpdate
from kb.versions import drop_overtaken_text, let_go, to_queue
from kb.webhooks import announce

CANCELLED = "cancelled"
"""The error code of a document whose first version a person cancelled."""
_UUID = re.compile("[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_ROWS = 500  # documents per transaction, ids per job


class Action(StrEnum):
    """What a person can do to the work on a document."""

    PAUSE = "pause"
    RESUME = "resume"
    RETRY = "retry"
    CANCEL = "cancel"
    RECHUNK = "rechunk"


_UNFINISHED = Document.indexing_status.in_(UNFINISHED)
_FAILED = Document.indexing_status == IndexingStatus.ERROR
_APPLIES: dict[Action, ColumnElement[bool]] = {
    Action.PAUSE: and_(_UNFINISHED, Document.is_paused.is_(False)),
    Action.RESUME: and_(_UNFINISHED, Document.is_paused),
    Action.RETRY: _FAILED,
    # Of a document that answers, an update that failed can be given up, too.
    Action.CANCEL: or_(_UNFINISHED, and_(_FAILED, Document.version > 0)),
    Action.RECHUNK: and_(Document.enabled, Document.archived.is_(False)),
}
"""Documents that an action changes; others are passed over."""
_NEEDED = {
    Action.PAUSE: "only documents that wait or are in work can be paused",
    Action.RESUME: "only paused documents can be resumed",
    Action.RETRY: "only documents in status 'error' can be retried",
    Action.CANCEL: "only what waits or is in work can be cancelled, or an update that failed",
    Action.RECHUNK: "enable or un_archive it first",
}


@dataclass(frozen=True)
class Filter:
    """Which documents; every part that is given must hold.

    Attributes:
        dataset_id: of this dataset.
        document_ids: these.
        statuses: displayed as one of these.
        error_codes: their newest version failed with one of these.
        tags: their dataset carries one of these tags, by name or id.
        created_from, created_to: half-open: from the first moment to before the second.
    """

    dataset_id: uuid.UUID | None = None
    document_ids: tuple[uuid.UUID, ...] | None = None
    statuses: tuple[DisplayStatus, ...] | None = None
    error_codes: tuple[str, ...] | None = None
    tags: tuple[str, ...] | None = None
    created_from: datetime | None = None
    created_to: datetime | None = None

    def within(self, dataset_id: uuid.UUID, *, nothing: bool = False) -> Filter:
        """The same in one dataset; or one that matches nothing."""
        ids: tuple[uuid.UUID, ...] | None = () if nothing else self.document_ids
        return replace(self, dataset_id=dataset_id, document_ids=ids)

    def conditions(self) -> list[ColumnElement[bool]]:
        """As SQL, but for `document_ids`, which may be more than a statement takes."""
        parts: list[ColumnElement[bool]] = []
        if self.dataset_id is not None:
            parts.append(Document.dataset_id == self.dataset_id)
        if self.statuses is not None:
            parts.append(or_(false(), *(displayed_as(status) for status in self.statuses)))
        if self.error_codes is not None:
            parts.append(Document.error_code.in_(self.error_codes))
        if self.tags is not None:
            parts.append(Document.dataset_id.in_(_tagged(self.tags)))
        if self.created_from is not None:
            parts.append(Document.created_at >= self.created_from)
        if self.created_to is not None:
            parts.append(Document.created_at < self.created_to)
        return parts


@dataclass(frozen=True)
class Changed:
    """A document to which it was done."""

    id: uuid.UUID
    dataset_id: uuid.UUID
    name: str
    batch: str


@dataclass(frozen=True)
class Steered:
    """What came of it: how many documents matched, and those of them that were changed."""

    matched: int
    changed: list[Changed]


def _tagged(tags: Sequence[str]) -> Select[Any]:
    """Datasets that carry one of these tags."""
    ids = [uuid.UUID(tag) for tag in tags if _UUID.fullmatch(tag)]
    named = or_(Tag.name.in_(tags), Tag.id.in_(ids))
    return select(TagBinding.dataset_id).join(Tag, Tag.id == TagBinding.tag_id).where(named)


def known_action(name: str) -> Action:
    """Raises: InvalidAction: there is no such action."""
    if name not in set(Action):
        raise InvalidAction(f"action {name[:50]!r} is not known; use one of {', '.join(Action)}")
    return Action(name)


# --- one document, many documents ----------------------------------------------------------------


def steer(
    session: Session,
    dataset: Dataset,
    document: Document,
    action: Action,
    resources: Resources,
    rule: ProcessRuleIn | None = None,
) -> None:
    """Do it to one document.

    Args:
        dataset, document: locked.
        rule: of `rechunk`; None: the dataset's latest.
    Raises:
        InvalidAction, InvalidParam: the document is not in a state for it; the message says in
            which it is. DocumentFinished: it is completed.
    """
    if not lock_documents(session, dataset.id, [document.id], _APPLIES[action]):
        raise _not_applicable(document, action)
    _DO[action](session, dataset, document, resources, rule)


def steer_all(
    resources: Resources,
    workspace_id: uuid.UUID,
    asked: Filter,
    action: Action,
    rule: ProcessRuleIn | None = None,
) -> Steered:
    """Do it to every document that matches and is in a state for it.

    Some hundred documents at a time are changed in one transaction, each as it is at that moment.
    When it breaks off in between, those before are changed; the same call does the rest.
    """
    if rule is not None:
        validate(rule)
    matching = _matching(resources, workspace_id, asked)
    changed: list[Changed] = []
    for dataset_id, ids in _parts(matching):
        work = partial(_steer_part, resources, workspace_id, dataset_id, ids, asked, action, rule)
        changed += retried(work)
    return Steered(len(matching), changed)


def _matching(
    resources: Resources, workspace_id: uuid.UUID, asked: Filter
) -> list[tuple[uuid.UUID, uuid.UUID]]:
    """(dataset, document) of those that match, by dataset."""
    statement = (
        select(Document.dataset_id, Document.id)
        .join(Dataset, Dataset.id == Document.dataset_id)
        .where(Dataset.workspace_id == workspace_id, Dataset.enable_api, *asked.conditions())
        .order_by(Document.dataset_id, Document.position, Document.id)
    )
    with reading(resources.sessions) as session:
        if asked.document_ids is None:
            return [(row[0], row[1]) for row in session.execute(statement)]
        ids = sorted(set(asked.document_ids))
        rows = [
            (row[0], row[1])
            for at in range(0, len(ids), _ROWS)
            for row in session.execute(statement.where(Document.id.in_(ids[at : at + _ROWS])))
        ]
    return sorted(rows, key=lambda row: row[0])


def _parts(
    rows: Sequence[tuple[uuid.UUID, uuid.UUID]],
) -> Iterator[tuple[uuid.UUID, list[uuid.UUID]]]:
    for dataset_id, of_dataset in groupby(rows, key=lambda row: row[0]):
        ids = [row[1] for row in of_dataset]
        for at in range(0, len(ids), _ROWS):
            yield dataset_id, ids[at : at + _ROWS]


def _steer_part(
    resources: Resources,
    workspace_id: uuid.UUID,
    dataset_id: uuid.UUID,
    ids: Sequence[uuid.UUID],
    asked: Filter,
    action: Action,
    rule: ProcessRuleIn | None,
) -> list[Changed]:
    with transaction(resources.sessions) as session:
        try:
            dataset = get_dataset(session, workspace_id, dataset_id, lock=True)
        except NotFound:  # deleted meanwhile
            return []
        where = [*asked.conditions(), _APPLIES[action]]
        documents = lock_documents(session, dataset_id, ids, *where)
        for document in documents:
            _DO[action](session, dataset, document, resources, rule)
            rule = None  # the first one's is the dataset's latest now, which the others get
        return [Changed(d.id, d.dataset_id, d.name, d.batch) for d in documents]


def _not_applicable(document: Document, action: Action) -> InvalidParam:
    status = "paused" if document.is_paused else document.indexing_status.value
    message = f"document {document.name!r} is {status!r}; {_NEEDED[action]}"
    if action is Action.RETRY:
        return InvalidParam(message)
    if action is not Action.RECHUNK and document.indexing_status is IndexingStatus.COMPLETED:
        return DocumentFinished(message)
    return InvalidAction(message)


# --- the actions ---------------------------------------------------------------------------------
# The document's row is locked: whoever works on it passes its next checkpoint before or after.


def _pause(
    _session: Session,
    _dataset: Dataset,
    document: Document,
    _resources: Resources,
    _rule: ProcessRuleIn | None,
) -> None:
    """Nobody takes it; whoever works on it finishes the batch in hand and gives it back."""
    at: Any = moment()
    document.is_paused, document.paused_at, document.updated_at = True, at, now()


def _resume(
    session: Session,
    _dataset: Dataset,
    document: Document,
    resources: Resources,
    _rule: ProcessRuleIn | None,
) -> None:
    """It goes on after its last checkpoint, in its old place in the queue."""
    document.is_paused, document.paused_at, document.updated_at = False, None, now()
    _announce(session, document, resources)


def _retry(
    session: Session,
    _dataset: Dataset,
    document: Document,
    resources: Resources,
    _rule: ProcessRuleIn | None,
) -> None:
    """It goes on after its last checkpoint."""
    to_queue(document)
    _announce(session, document, resources)


def _cancel(
    session: Session,
    dataset: Dataset,
    document: Document,
    resources: Resources,
    _rule: ProcessRuleIn | None,
) -> None:
    """Whoever works on it loses it with the next write. What was never complete ends as an error,
    which a retry undoes; a version that answers becomes the document again.
    """
    stage = document.indexing_status.value
    let_go(document)
    document.is_paused, document.paused_at = False, None
    document.attempts, document.updated_at = 0, now()
    if document.version > 0:
        _back_to_live(session, dataset, document)
        after_commit(session, resources.jobs.run_jobs)
        return
    at: Any = moment()
    document.indexing_status, document.stopped_at = IndexingStatus.ERROR, at
    document.error_code, document.error_stage = CANCELLED, stage
    document.error = "cancelled before it was complete; retry it to index it after all"
    session.flush()
    announce(session, WebhookEvent.FAILED, dataset.id, document.id, resources.jobs)


def _back_to_live(session: Session, dataset: Dataset, document: Document) -> None:
    """Give up the version in preparation, with what is staged of it."""
    given_up = document.pending_version or 0
    drop_overtaken_text(session, document)
    live = session.scalars(
        select(DocumentVersion).where(
            DocumentVersion.document_id == document.id,
            DocumentVersion.number == document.version,
        )
    ).one()
    document.upload_file_id, document.process_rule_id = live.upload_file_id, live.process_rule_id
    document.pending_version, document.indexing_status = None, IndexingStatus.COMPLETED
    document.error = document.error_code = document.error_stage = document.stopped_at = None
    document.completed_at = live.live_at
    session.flush()
    removed = drop_other_stagings(session, document.id, None)
    space = space_of(dataset)
    if space is None:
        return
    for at in range(0, len(removed), _ROWS):
        for wait_s in (0.0, LATE_S):  # again later: a worker may be writing one of them right now
            enqueue(
                session,
                JobKind.DELETE_POINTS,
                wait_s=wait_s,
                space=space.name,
                dim=space.dim,
                ids=[str(i) for i in removed[at : at + _ROWS]],
                up_to_version=given_up,
                owner=str(dataset.id),
            )


def _rechunk(
    session: Session,
    dataset: Dataset,
    document: Document,
    resources: Resources,
    rule: ProcessRuleIn | None,
) -> None:
    """A new version of the same file; the old chunks answer until it is complete."""
    body = DocumentUpdate(process_rule=rule)
    update_document(session, dataset, document, None, None, body, resources)
    _announce(session, document, resources)


def _announce(session: Session, document: Document, resources: Resources) -> None:
    document_id, queue = document.id, document.queue
    after_commit(session, lambda: resources.jobs.index_document(document_id, queue))


_Do = Callable[[Session, Dataset, Document, Resources, ProcessRuleIn | None], None]
_DO: dict[Action, _Do] = {
    Action.PAUSE: _pause,
    Action.RESUME: _resume,
    Action.RETRY: _retry,
    Action.CANCEL: _cancel,
    Action.RECHUNK: _rechunk,
}
