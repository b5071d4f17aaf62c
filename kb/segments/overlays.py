"""Overlays: what was edited by hand, written down beside the rows; listed, applied, dismissed."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from kb.db import now
from kb.errors import NotFound
from kb.ingestion.staging import identity_of
from kb.models import ChildChunk, Document, OverlayKind, OverlayState, Segment, SegmentOverlay
from kb.retrieval.analysis import analyse
from kb.segments.place import Edit

_LIKE = 0.3
"""A segment that holds less of a text's terms is not suggested for it."""


# -- writing down


@dataclass(frozen=True)
class Before:
    """A segment before it was edited: what tells it from others, and its text."""

    identity: str
    before: str | None
    after: str | None
    original: str


def find_overlay(edit: Edit, kind: OverlayKind, target_id: uuid.UUID) -> SegmentOverlay | None:
    """The hand edit of this kind, if there is one."""
    return edit.session.scalar(
        select(SegmentOverlay).where(
            SegmentOverlay.document_id == edit.document.id,
            SegmentOverlay.kind == kind,
            SegmentOverlay.target_id == target_id,
        )
    )


def is_added(edit: Edit, segment_id: uuid.UUID) -> bool:
    """Whether the segment was added by hand: then its row says all, and needs no other overlay."""
    return find_overlay(edit, OverlayKind.ADDED, segment_id) is not None


def seen_before(edit: Edit, row: Segment) -> Before:
    """To be asked before the row is changed."""
    known = _identified(edit, row.id)
    if known is not None:
        edited = find_overlay(edit, OverlayKind.EDITED, row.id)
        text = edited.original if edited is not None and edited.original else row.content
        return Before(known.identity or "", known.before, known.after, text)
    return Before(
        identity_of(row.content, row.answer),
        _neighbour(edit, row, Segment.position < row.position, Segment.position.desc()),
        _neighbour(edit, row, Segment.position > row.position, Segment.position),
        row.content,
    )


def _identified(edit: Edit, segment_id: uuid.UUID) -> SegmentOverlay | None:
    return edit.session.scalar(
        select(SegmentOverlay)
        .where(
            SegmentOverlay.document_id == edit.document.id,
            SegmentOverlay.segment_id == segment_id,
            SegmentOverlay.identity.is_not(None),
        )
        .order_by(SegmentOverlay.created_at)
        .limit(1)
    )


def _neighbour(edit: Edit, row: Segment, side: Any, order: Any) -> str | None:
    """The identity of the next segment that is the pipeline's."""
    added = select(SegmentOverlay.target_id).where(
        SegmentOverlay.document_id == edit.document.id,
        SegmentOverlay.kind == OverlayKind.ADDED,
    )
    found = edit.session.execute(
        select(Segment.id, Segment.content, Segment.answer)
        .where(Segment.document_id == row.document_id, Segment.live, side)
        .where(Segment.id.not_in(added))
        .order_by(order)
        .limit(1)
    ).one_or_none()
    if found is None:
        return None
    known = _identified(edit, found[0])
    return known.identity if known is not None else identity_of(found[1], found[2])


def note(
    edit: Edit,
    kind: OverlayKind,
    row: Segment,
    seen: Before,
    *,
    target_id: uuid.UUID | None = None,
    original: str | None = None,
    patch: dict[str, Any] | None = None,
) -> None:
    """Write a hand edit down, over an earlier one of its kind.

    Args:
        row: the segment that it is about, or the parent of the child chunk.
        seen: as it was before.
        target_id: of the child chunk.
        original: the child chunk's text.
    """
    target = target_id or row.id
    overlay = find_overlay(edit, kind, target)
    if overlay is None:
        overlay = SegmentOverlay(
            dataset_id=edit.dataset.id,
            document_id=edit.document.id,
            kind=kind,
            target_id=target,
            segment_id=row.id,
            identity=seen.identity,
            before=seen.before,
            after=seen.after,
            original=original if target_id else seen.original,
            created_by=edit.actor,
        )
        edit.session.add(overlay)
    overlay.patch = patch
    overlay.state = OverlayState.ACTIVE
    overlay.matched_version = row.staged_version or edit.document.version
    overlay.updated_at = now()
    edit.session.flush()


def added_overlay(edit: Edit, segment_id: uuid.UUID) -> dict[str, Any]:
    """The row that says that a segment was added by hand."""
    return {
        "dataset_id": edit.dataset.id,
        "document_id": edit.document.id,
        "kind": OverlayKind.ADDED,
        "target_id": segment_id,
        "segment_id": segment_id,
        "matched_version": edit.document.version,
        "created_by": edit.actor,
    }


def forget(edit: Edit, kind: OverlayKind, target_id: uuid.UUID) -> bool:
    """Whether there was one."""
    overlay = find_overlay(edit, kind, target_id)
    if overlay is not None:
        edit.session.delete(overlay)
        edit.session.flush()
    return overlay is not None


def forget_all(
    edit: Edit, segment_id: uuid.UUID, kinds: Sequence[OverlayKind] = tuple(OverlayKind)
) -> None:
    """Those of a segment and its child chunks."""
    edit.session.execute(
        delete(SegmentOverlay).where(
            SegmentOverlay.document_id == edit.document.id,
            SegmentOverlay.segment_id == segment_id,
            SegmentOverlay.kind.in_(kinds),
        )
    )


# -- what happens to segments


def note_change(edit: Edit, row: Segment, seen: Before, *, regenerated: bool) -> None:
    """The segment's text, answer, keywords or children were changed by hand."""
    before = find_overlay(edit, OverlayKind.EDITED, row.id)
    patch: dict[str, Any] = {
        "content": row.content,
        "answer": row.answer,
        "keywords": row.keywords,
        "tokens": row.tokens,
    }
    if regenerated or (before is not None and "children" in (before.patch or {})):
        patch["children"] = _child_texts(edit, row)
    if regenerated:
        forget_all(edit, row.id, _OF_CHILDREN)
    plain = "children" not in patch and row.answer is None and not row.keywords
    if plain and row.content == seen.original:  # as the pipeline made it
        forget(edit, OverlayKind.EDITED, row.id)
        return
    note(edit, OverlayKind.EDITED, row, seen, patch=patch)


def _child_texts(edit: Edit, row: Segment) -> list[str]:
    return list(
        edit.session.scalars(
            select(ChildChunk.content)
            .where(ChildChunk.segment_id == row.id, ChildChunk.live)
            .order_by(ChildChunk.position)
        )
    )


def note_deletion(edit: Edit, row: Segment) -> None:
    """The segment is about to be deleted: whatever else was done to it counts no more."""
    if is_added(edit, row.id):
        forget_all(edit, row.id)
        return
    seen = seen_before(edit, row)
    forget_all(edit, row.id)
    note(edit, OverlayKind.DELETED, row, seen)


# -- what happens to child chunks

_OF_CHILDREN = (OverlayKind.CHILD_ADDED, OverlayKind.CHILD_EDITED, OverlayKind.CHILD_DELETED)


def note_child(
    edit: Edit, row: Segment, kind: OverlayKind, child_id: uuid.UUID, before: str, after: str
) -> None:
    """A child chunk was added, edited or deleted; to be called after that.

    Of a segment whose children are all made by hand, they are written down together.

    Args:
        before, after: its text.
    """
    if is_added(edit, row.id):
        return
    edited = find_overlay(edit, OverlayKind.EDITED, row.id)
    if edited is not None and "children" in (edited.patch or {}):
        edited.patch = {**(edited.patch or {}), "children": _child_texts(edit, row)}
        return
    if kind is OverlayKind.CHILD_EDITED and find_overlay(edit, OverlayKind.CHILD_ADDED, child_id):
        kind = OverlayKind.CHILD_ADDED
    if kind is OverlayKind.CHILD_DELETED:
        if forget(edit, OverlayKind.CHILD_ADDED, child_id):
            return
        earlier = find_overlay(edit, OverlayKind.CHILD_EDITED, child_id)
        before = earlier.original or before if earlier is not None else before
        forget(edit, OverlayKind.CHILD_EDITED, child_id)
    patch = None if kind is OverlayKind.CHILD_DELETED else {"content": after}
    original = None if kind is OverlayKind.CHILD_ADDED else before
    seen = seen_before(edit, row)
    note(edit, kind, row, seen, target_id=child_id, original=original, patch=patch)


# -- looking at them


def get_overlay(session: Session, document: Document, overlay_id: uuid.UUID) -> SegmentOverlay:
    """The hand edit, if it is one of this document's.

    Raises:
        NotFound: it is not.
    """
    row = session.get(SegmentOverlay, overlay_id)
    if row is None or row.document_id != document.id:
        raise NotFound("overlay", overlay_id)
    return row


def list_overlays(
    session: Session,
    document: Document,
    *,
    page: int,
    limit: int,
    state: OverlayState | None = None,
) -> tuple[Sequence[SegmentOverlay], int]:
    """A page of a document's hand edits, oldest first, and how many match in all."""
    where = [SegmentOverlay.document_id == document.id]
    if state is not None:
        where.append(SegmentOverlay.state == state)
    total = session.scalar(select(func.count()).select_from(SegmentOverlay).where(*where)) or 0
    rows = session.scalars(
        select(SegmentOverlay)
        .where(*where)
        .order_by(SegmentOverlay.created_at, SegmentOverlay.id)
        .offset((page - 1) * limit)
        .limit(limit)
    ).all()
    return rows, total


def suggestions(
    session: Session, document: Document, overlays: Sequence[SegmentOverlay]
) -> dict[uuid.UUID, uuid.UUID]:
    """For conflicts: the segment that holds most of the text that the edit was made on."""
    wanted = {
        o.id: set(analyse(o.original or (o.patch or {}).get("content", "")))
        for o in overlays
        if o.state is OverlayState.CONFLICT
    }
    if not wanted:
        return {}
    rows = session.execute(
        select(Segment.id, Segment.content)
        .where(Segment.document_id == document.id, Segment.live)
        .order_by(Segment.position)
    ).all()
    terms = [(row[0], set(analyse(row[1]))) for row in rows]
    found: dict[uuid.UUID, uuid.UUID] = {}
    for overlay_id, mine in wanted.items():
        if not mine or not terms:
            continue
        best, theirs = max(terms, key=lambda item: (len(mine & item[1]), -len(item[1])))
        if len(mine & theirs) >= _LIKE * len(mine):
            found[overlay_id] = best
    return found
