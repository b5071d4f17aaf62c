"""Edits by hand: add, change and delete segments and child chunks. Each is in force on return."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import delete, func, insert, select
from sqlalchemy.orm import Session

from kb.db import now
from kb.errors import InvalidParam, NotFound, Unavailable
from kb.ingestion.staging import counted
from kb.models import (
    ChildChunk,
    DocForm,
    Document,
    IndexingStatus,
    OverlayKind,
    ProcessRule,
    Segment,
    SegmentOverlay,
    SegmentStatus,
)
from kb.process_rules import AUTOMATIC_RULES, children_of
from kb.segments.listing import get_child, get_segment
from kb.segments.overlays import (
    added_overlay,
    forget,
    is_added,
    note,
    note_change,
    note_child,
    note_deletion,
    seen_before,
)
from kb.segments.place import Edit, Place
from pipelines.errors import NodeError

Split = Callable[[str], list[str]]
"""The child chunks of a parent's text; empty in a document without any."""

AUTOMATIC, CUSTOMIZED = "automatic", "customized"
_BATCH = 256
"""Texts that are embedded, and rows that are inserted, at a time."""


@dataclass(frozen=True)
class NewSegment:
    """A segment to be added; `answer` counts in documents of questions and answers only."""

    content: str
    answer: str | None = None
    keywords: tuple[str, ...] = ()


@dataclass(frozen=True)
class SegmentChange:
    """What is to be changed of a segment; None (and no keywords): as it is.

    Attributes:
        sets_answer: `answer` counts, None too; in documents of questions and answers only.
        enabled: False on an enabled segment disables it, and nothing else is changed.
        regenerate: make the child chunks anew from the content.
        children: what they then are; None: what the document's rule makes of the content.
    """

    content: str | None = None
    answer: str | None = None
    sets_answer: bool = False
    keywords: tuple[str, ...] = ()
    enabled: bool | None = None
    regenerate: bool = False
    children: tuple[str, ...] | None = None


# -- segments


def add_segments(
    place: Place,
    items: Sequence[NewSegment],
    *,
    also: Callable[[Edit], None] | None = None,
    progress: Callable[[int], None] | None = None,
    keep: bool = False,
) -> list[uuid.UUID]:
    """Append segments to a completed document; all of them or none. Their ids, in order.

    Args:
        also: what belongs into the same transaction.
        progress: told how many of them are embedded.
        keep: should the index fail right after they were stored, leave them to the job that
            writes their points; otherwise they are taken back.
    Raises:
        NotFound: the document is not completed, or is disabled.
        InvalidParam: an answer is missing in a document of questions and answers.
        TransientError, StoreUnavailable, ProviderNotInitialized: nothing was added.
    """
    with place.reading() as session:
        _, document = place.find(session)
        check_open(document)
        if document.doc_form is DocForm.QA:
            _check_answers(items)
        split = _splitter(session, document, place)
    children = [split(item.content) for item in items]
    tokens: dict[str, int] = {}
    for at in range(0, len(items), _BATCH):
        part = items[at : at + _BATCH]
        of_part = zip(part, children[at : at + _BATCH], strict=True)
        texts = [text for item, own in of_part for text in own or [item.content]]
        tokens |= place.prepare(texts, [item.content for item in part])
        if progress is not None:
            progress(at + len(part))
    added = _New(items, children)

    def work(edit: Edit) -> None:
        added.insert(edit)
        if also is not None:
            also(edit)

    try:
        place.change(tokens, work)
    except Unavailable:
        if not keep:
            _take_back(place, added.ids)
        raise
    return added.ids


class _New:
    """Segments that are to be added, with all that can be told before the transaction."""

    def __init__(self, items: Sequence[NewSegment], children: Sequence[list[str]]) -> None:
        self.ids = [uuid.uuid4() for _ in items]
        self._items, self._children = items, children
        self._counted = [counted(item.content) for item in items]
        self._of_children = [[counted(text) for text in texts] for texts in children]

    def insert(self, edit: Edit) -> None:
        """Some statements for all of them, however many they are."""
        check_open(edit.document)
        last = edit.session.scalar(
            select(func.max(Segment.position)).where(
                Segment.document_id == edit.document.id, Segment.live
            )
        )
        segments: list[dict[str, Any]] = []
        children: list[dict[str, Any]] = []
        for at, (segment_id, item) in enumerate(zip(self.ids, self._items, strict=True)):
            answer = item.answer if edit.document.doc_form is DocForm.QA else None
            row = _common(edit) | self._counted[at]
            row["word_count"] += len(answer or "")
            segments.append(
                row
                | {
                    "id": segment_id,
                    "position": (last or 0) + 1 + at,
                    "content": item.content,
                    "answer": answer,
                    "tokens": edit.tokens.get(item.content, 0),
                    "keywords": list(item.keywords) or None,
                    "has_children": bool(self._children[at]),
                    "status": SegmentStatus.COMPLETED,
                    "indexing_at": row["indexed_at"],
                }
            )
            edit.unsettled.append(segment_id)
            of_parent = zip(self._children[at], self._of_children[at], strict=True)
            for position, (text, known) in enumerate(of_parent, start=1):
                child_id = uuid.uuid4()
                children.append(
                    _common(edit)
                    | known
                    | {
                        "id": child_id,
                        "segment_id": segment_id,
                        "position": position,
                        "content": text,
                        "type": AUTOMATIC,
                    }
                )
                edit.unsettled.append(child_id)
        for table, rows in (
            (Segment, segments),
            (ChildChunk, children),
            (SegmentOverlay, [added_overlay(edit, i) for i in self.ids]),
        ):
            for start in range(0, len(rows), _BATCH):
                edit.session.execute(insert(table), rows[start : start + _BATCH])


def _take_back(place: Place, added: Sequence[uuid.UUID]) -> None:
    """Remove what could not be indexed, so that the call may be made again."""

    def remove(edit: Edit) -> None:
        for segment_id in added:
            row = edit.session.get(Segment, segment_id)
            if row is not None:
                _remove_segment(edit, row)

    place.change({}, remove)


def change_segment(place: Place, segment_id: uuid.UUID, asked: SegmentChange) -> None:
    """Change a segment; see `SegmentChange`.

    Raises:
        NotFound: it is not in this document.
        InvalidParam: it is being indexed, or disabled.
        TransientError, StoreUnavailable, ProviderNotInitialized: nothing was changed.
    """
    with place.reading() as session:
        _, document = place.find(session)
        row = get_segment(session, document, segment_id)
        _check_changeable(row, asked)
        split = _splitter(session, document, place)
        new = _new_content(row, asked)
        content = row.content if new is None else new
        was_parent = row.has_children
    if asked.enabled is False and row.enabled:
        place.change({}, partial(_disable, segment_id))
        return
    texts: Sequence[str] = []
    if asked.regenerate:
        texts = split(content) if asked.children is None else asked.children
    indexed = texts or ([content] if asked.regenerate or not was_parent else [])
    tokens = place.prepare(indexed, [content])
    place.change(tokens, partial(_change, segment_id, asked, split))


def _check_changeable(row: Segment, asked: SegmentChange) -> None:
    if not row.live:
        raise InvalidParam(
            f"segment {str(row.id)!r} is being indexed; change it when its document is completed"
        )
    if not row.enabled and asked.enabled is not True:
        raise InvalidParam(
            f"segment {str(row.id)!r} is disabled; send enabled: true with the change"
        )


def _new_content(row: Segment, asked: SegmentChange) -> str | None:
    if asked.content is None or not asked.content.strip() or asked.content == row.content:
        return None
    return asked.content


def _disable(segment_id: uuid.UUID, edit: Edit) -> None:
    row = get_segment(edit.session, edit.document, segment_id)
    if not is_added(edit, row.id):
        note(edit, OverlayKind.DISABLED, row, seen_before(edit, row))
    row.enabled, row.disabled_at, row.disabled_by = False, now(), edit.actor


def _change(segment_id: uuid.UUID, asked: SegmentChange, split: Split, edit: Edit) -> None:
    row = get_segment(edit.session, edit.document, segment_id)
    _check_changeable(row, asked)
    content = _new_content(row, asked)
    seen = seen_before(edit, row)
    if asked.enabled or content is not None:
        row.enabled, row.disabled_at, row.disabled_by = True, None, None
        forget(edit, OverlayKind.DISABLED, row.id)
    answer = row.answer
    if asked.sets_answer and edit.document.doc_form is DocForm.QA:
        answer = asked.answer
    changed = content is not None or answer != row.answer
    if changed:
        edit.unsettled.append(row.id)
        _set_text(edit, row, row.content if content is None else content, answer)
    if asked.keywords and list(asked.keywords) != row.keywords:
        row.keywords, changed = list(asked.keywords), True
    row.updated_at, row.updated_by = now(), edit.actor
    anew = asked.regenerate and edit.document.doc_form is DocForm.HIERARCHICAL
    if anew:
        _remove_children(edit, row)
        texts = split(row.content) if asked.children is None else asked.children
        _add_children(edit, row, texts, AUTOMATIC)
        _refresh_parent(edit, row)
    if (changed or anew) and not is_added(edit, row.id):
        edit.session.flush()
        note_change(edit, row, seen, regenerated=anew)


def delete_segment(place: Place, segment_id: uuid.UUID) -> None:
    """Delete a segment with its child chunks.

    Raises:
        NotFound: it is not in this document.
        InvalidParam: it is being indexed.
    """

    def remove(edit: Edit) -> None:
        row = get_segment(edit.session, edit.document, segment_id)
        if not row.live:
            raise InvalidParam(
                f"segment {str(row.id)!r} is being indexed; delete it when its document is "
                "completed"
            )
        _remove_segment(edit, row)

    place.change({}, remove)


def _remove_segment(edit: Edit, row: Segment) -> None:
    note_deletion(edit, row)
    _remove_children(edit, row)
    edit.removed.append(row.id)
    edit.session.delete(row)
    edit.session.flush()


# -- child chunks


def add_child(place: Place, segment_id: uuid.UUID, content: str) -> uuid.UUID:
    """Append a child chunk to a segment of a hierarchical document; its id.

    Raises:
        NotFound: there is no such segment.
        InvalidParam: the document has no child chunks, or the segment is being indexed.
        TransientError, StoreUnavailable, ProviderNotInitialized: nothing was changed.
    """
    with place.reading() as session:
        _, document = place.find(session)
        get_segment(session, document, segment_id)
        _check_hierarchical(document)
    place.prepare([content], [])

    def add(edit: Edit) -> uuid.UUID:
        row = _live_segment(edit, segment_id)
        (child,) = _add_children(edit, row, [content], CUSTOMIZED)
        _refresh_parent(edit, row)
        note_child(edit, row, OverlayKind.CHILD_ADDED, child, "", content)
        return child

    return place.change({}, add)


def change_child(place: Place, segment_id: uuid.UUID, child_id: uuid.UUID, content: str) -> None:
    """Give a child chunk another text.

    Raises:
        NotFound: there is no such child chunk.
        InvalidParam: it is being indexed.
        TransientError, StoreUnavailable, ProviderNotInitialized: nothing was changed.
    """
    with place.reading() as session:
        _, document = place.find(session)
        get_child(session, document, get_segment(session, document, segment_id), child_id)
    place.prepare([content], [])

    def change(edit: Edit) -> None:
        row = _live_segment(edit, segment_id)
        child = get_child(edit.session, edit.document, row, child_id)
        before, child.content = child.content, content
        _set_counted(child, content)
        child.type, child.updated_at = CUSTOMIZED, now()
        edit.unsettled.append(child.id)
        edit.session.flush()
        note_child(edit, row, OverlayKind.CHILD_EDITED, child.id, before, content)

    place.change({}, change)


def delete_child(place: Place, segment_id: uuid.UUID, child_id: uuid.UUID) -> None:
    """Delete a child chunk; a segment without any is found by its own text.

    Raises:
        NotFound: there is no such child chunk.
        InvalidParam: it is being indexed.
        TransientError, StoreUnavailable, ProviderNotInitialized: nothing was changed.
    """
    with place.reading() as session:
        _, document = place.find(session)
        segment = get_segment(session, document, segment_id)
        get_child(session, document, segment, child_id)
        left = session.scalar(
            select(func.count()).where(ChildChunk.segment_id == segment_id, ChildChunk.live)
        )
    if left == 1:
        place.prepare([segment.content], [])

    def remove(edit: Edit) -> None:
        row = _live_segment(edit, segment_id)
        child = get_child(edit.session, edit.document, row, child_id)
        edit.removed.append(child.id)
        before = child.content
        edit.session.delete(child)
        _refresh_parent(edit, row)
        note_child(edit, row, OverlayKind.CHILD_DELETED, child_id, before, "")

    place.change({}, remove)


# -- rows


def check_open(document: Document) -> None:
    """Only a document that answers and is not being worked on takes new segments.

    Raises:
        NotFound: it is another one.
    """
    if document.indexing_status is not IndexingStatus.COMPLETED or not document.enabled:
        state = document.indexing_status.value if document.enabled else "disabled"
        raise NotFound("completed and enabled document", f"{document.name} ({state})")


def _check_answers(items: Sequence[NewSegment]) -> None:
    for number, item in enumerate(items):
        if not (item.answer or "").strip():
            raise InvalidParam(
                f"segments.{number}.answer is missing; segments of a document of questions and "
                "answers (qa_model) have both content and answer"
            )


def _check_hierarchical(document: Document) -> None:
    if document.doc_form is not DocForm.HIERARCHICAL:
        raise InvalidParam(
            f"document {document.name!r} is {document.doc_form.value!r}; only the segments of a "
            "'hierarchical_model' document have child chunks"
        )


def _live_segment(edit: Edit, segment_id: uuid.UUID) -> Segment:
    row = get_segment(edit.session, edit.document, segment_id)
    if not row.live:
        raise InvalidParam(
            f"segment {str(row.id)!r} is being indexed; change it when its document is completed"
        )
    return row


def _splitter(session: Session, document: Document, place: Place) -> Split:
    """How a parent's text is cut by the document's rule."""
    if document.doc_form is not DocForm.HIERARCHICAL:
        return lambda text: []
    rule = session.get(ProcessRule, document.process_rule_id) if document.process_rule_id else None
    mode, rules = (rule.mode, rule.rules) if rule else ("automatic", AUTOMATIC_RULES)
    most = place.resources.settings.limits.chunk_chars

    def split(text: str) -> list[str]:
        try:
            return children_of(text, mode, rules, max_chunk_chars=most)
        except NodeError as exc:
            raise InvalidParam(f"the document's process rule cannot be used: {exc}") from exc

    return split


def _common(edit: Edit) -> dict[str, Any]:
    return {
        "dataset_id": edit.dataset.id,
        "document_id": edit.document.id,
        "live": True,
        "indexed_at": now(),
        "start_offset": 0,
        "end_offset": 0,
        "created_by": edit.actor,
    }


def _set_counted(row: Segment | ChildChunk, content: str, answer: str | None = None) -> None:
    for name, value in counted(content, answer).items():
        setattr(row, name, value)


def _set_text(edit: Edit, row: Segment, content: str, answer: str | None) -> None:
    row.content = content
    row.answer = answer if edit.document.doc_form is DocForm.QA else None
    row.tokens = edit.tokens.get(content, row.tokens or 0)
    _set_counted(row, content, row.answer)


def _add_children(edit: Edit, parent: Segment, texts: Sequence[str], made: str) -> list[uuid.UUID]:
    last = edit.session.scalar(
        select(func.max(ChildChunk.position)).where(
            ChildChunk.segment_id == parent.id, ChildChunk.live
        )
    )
    added = []
    for position, text in enumerate(texts, (last or 0) + 1):
        row = ChildChunk(
            id=uuid.uuid4(),
            segment_id=parent.id,
            position=position,
            content=text,
            type=made,
            # It stays with its parent when a version in preparation goes live.
            staged_version=parent.staged_version,
            **_common(edit),
        )
        _set_counted(row, text)
        edit.session.add(row)
        added.append(row.id)
    edit.unsettled += added
    return added


def _remove_children(edit: Edit, parent: Segment) -> None:
    """All of them, those of a version in preparation too."""
    ids = edit.session.scalars(
        select(ChildChunk.id).where(ChildChunk.segment_id == parent.id)
    ).all()
    edit.session.execute(delete(ChildChunk).where(ChildChunk.segment_id == parent.id))
    edit.removed += ids


def _refresh_parent(edit: Edit, parent: Segment) -> None:
    """A segment has a point exactly when it has no child chunk."""
    edit.session.flush()
    rows = edit.session.execute(
        select(ChildChunk.live, ChildChunk.staged_version).where(ChildChunk.segment_id == parent.id)
    ).all()
    has_children = any(row.live for row in rows)
    if has_children != parent.has_children:
        parent.has_children = has_children
        edit.unsettled.append(parent.id)
    if parent.staged is not None:
        staged = any(row.staged_version == parent.staged_version for row in rows)
        parent.staged = {**parent.staged, "has_children": staged}
