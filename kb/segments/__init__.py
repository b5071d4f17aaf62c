"""Segments: list them, and edit them and their child chunks by hand."""

from kb.segments.conflicts import apply_overlay, dismiss_overlay
from kb.segments.editing import (
    NewSegment,
    SegmentChange,
    add_child,
    add_segments,
    change_child,
    change_segment,
    check_open,
    delete_child,
    delete_segment,
)
from kb.segments.importing import get_import, import_segments
from kb.segments.listing import (
    children_of,
    get_child,
    get_segment,
    list_children,
    list_segments,
)
from kb.segments.overlays import list_overlays, suggestions
from kb.segments.place import Place

__all__ = [
    "NewSegment",
    "Place",
    "SegmentChange",
    "add_child",
    "add_segments",
    "apply_overlay",
    "change_child",
    "change_segment",
    "check_open",
    "children_of",
    "delete_child",
    "delete_segment",
    "dismiss_overlay",
    "get_child",
    "get_import",
    "get_segment",
    "import_segments",
    "list_children",
    "list_overlays",
    "list_segments",
    "suggestions",
]
