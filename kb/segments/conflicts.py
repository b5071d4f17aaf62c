"""Conflicts: hand edits that fit the newest text no more; somebody says where they go, or not."""

from __future__ import annotations

import uuid
from dataclasses import replace

from kb.errors import InvalidParam
from kb.models import OverlayKind, OverlayState, SegmentOverlay
from kb.segments.editing import (
    SegmentChange,
    add_child,
    change_child,
    change_segment,
    delete_child,
    delete_segment,
)
from kb.segments.overlays import get_overlay
from kb.segments.place import Place


def apply_overlay(
    place: Place, overlay_id: uuid.UUID, segment_id: uuid.UUID, child_id: uuid.UUID | None
) -> None:
    """Do to this segment or child chunk what the overlay says; the conflict is gone with it.

    Raises:
        NotFound: the overlay, the segment or the child chunk is not in this document.
        InvalidParam: the overlay is in force as it is, or it needs a child chunk.
        TransientError, StoreUnavailable, ProviderNotInitialized: nothing was changed.
    """
    with place.reading() as session:
        overlay = get_overlay(session, place.find(session)[1], overlay_id)
    if overlay.state is OverlayState.ACTIVE:
        raise InvalidParam(
            f"overlay {str(overlay_id)!r} is in force already; change its segment instead"
        )
    place = replace(place, resolves=overlay_id)
    patch = overlay.patch or {}
    match overlay.kind:
        case OverlayKind.EDITED:
            change_segment(place, segment_id, _change_of(overlay))
        case OverlayKind.DISABLED:
            change_segment(place, segment_id, SegmentChange(enabled=False))
        case OverlayKind.DELETED:
            delete_segment(place, segment_id)
        case OverlayKind.CHILD_DELETED if child_id is not None:
            delete_child(place, segment_id, child_id)
        case OverlayKind.CHILD_EDITED if child_id is not None:
            change_child(place, segment_id, child_id, patch["content"])
        case OverlayKind.CHILD_EDITED | OverlayKind.CHILD_ADDED:
            add_child(place, segment_id, patch["content"])
        case _:
            raise InvalidParam(
                f"overlay {str(overlay_id)!r} is {overlay.kind.value!r}; send the child_chunk_id "
                "that it shall go to"
            )


def _change_of(overlay: SegmentOverlay) -> SegmentChange:
    patch = overlay.patch or {}
    children = patch.get("children")
    return SegmentChange(
        content=patch["content"],
        answer=patch.get("answer"),
        sets_answer=patch.get("answer") is not None,
        keywords=tuple(patch.get("keywords") or ()),
        enabled=True,
        regenerate=children is not None,
        children=None if children is None else tuple(children),
    )


def dismiss_overlay(place: Place, overlay_id: uuid.UUID) -> None:
    """Give a hand edit up.

    Of a deletion that is in force, the text comes back when the document is processed anew.

    Raises:
        NotFound: it is not in this document.
        InvalidParam: it is in force; then the segment itself is to be changed.
    """
    with place.reading() as session:
        overlay = get_overlay(session, place.find(session)[1], overlay_id)
    deleted = overlay.kind in (OverlayKind.DELETED, OverlayKind.CHILD_DELETED)
    if overlay.state is OverlayState.ACTIVE and not deleted:
        raise InvalidParam(
            f"overlay {str(overlay_id)!r} is in force; change or delete its segment instead"
        )
    replace(place, resolves=overlay_id).change({}, lambda edit: None)
