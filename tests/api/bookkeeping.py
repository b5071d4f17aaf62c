"""What must be true after calls of the API, kept in memory: datasets, documents, segments, tags."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Seg:
    """A segment: its text, whether it may answer."""

    content: str
    enabled: bool = True


@dataclass
class Doc:
    """A document.

    Attributes:
        segments: id -> segment, in order.
        values: id of a metadata field -> value.
        edited: by hand; it is not replaced in these tests, as edits outlive that.
    """

    name: str
    segments: dict[str, Seg] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    enabled: bool = True
    archived: bool = False
    edited: bool = False

    @property
    def status(self) -> str:
        """As lists display it."""
        if self.archived:
            return "archived"
        return "available" if self.enabled else "disabled"

    def live(self) -> set[str]:
        """Texts that queries find."""
        if self.status != "available":
            return set()
        return {segment.content for segment in self.segments.values() if segment.enabled}


@dataclass
class Shelf:
    """A dataset."""

    name: str
    technique: str
    documents: dict[str, Doc] = field(default_factory=dict)
    fields: dict[str, str] = field(default_factory=dict)
    """Id of a metadata field -> name."""
    tags: set[str] = field(default_factory=set)
    built_in: bool = False

    def live(self) -> set[str]:
        """Texts that queries find."""
        return set().union(*(doc.live() for doc in self.documents.values()))


@dataclass
class Books:
    """A workspace."""

    shelves: dict[str, Shelf] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    """Id -> name."""
