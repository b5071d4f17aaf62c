"""What the doctor found: kinds, counts, and the first ids of each."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

KEPT = 100
"""Items of each kind that a report names; the others are only counted."""


class Kind(StrEnum):
    """What can be wrong."""

    MISSING = "missing"
    """A text whose point the index lacks."""
    STALE = "stale"
    """A point that was made of another text."""
    WRONG = "wrong"
    """A point with another vector, other terms or metadata, ids of something else or an impossible
    version."""
    EXTRA = "extra"
    """A point that nothing in SQL stands for."""
    COUNTERS = "counters"
    """A row with a count, flag, position or hash that its contents contradict."""
    STUCK_DOCUMENTS = "stuck_documents"
    """A document that waits for a worker which will never take it."""
    STUCK_JOBS = "stuck_jobs"
    """A job that waits longer than any job waits."""
    LOST_FILES = "lost_files"
    """A document whose uploaded file or extracted text is gone."""
    DAMAGED_FILES = "damaged_files"
    """A document whose uploaded file has other bytes than were received."""
    ORPHAN_FILES = "orphan_files"
    """A file that nothing in SQL stands for."""
    UNREADABLE_SECRETS = "unreadable_secrets"
    """An API key or signing key that was sealed with a key that this process lacks."""


BEYOND_REPAIR = (Kind.LOST_FILES, Kind.DAMAGED_FILES, Kind.UNREADABLE_SECRETS)
"""Only a person who has the file, or the key, can help."""


@dataclass
class Finding:
    """How many of a kind, and the first of them as text: an id, then what is wrong with it."""

    count: int = 0
    first: list[str] = field(default_factory=list)


@dataclass
class Report:
    """What was compared and what was found.

    Attributes:
        deep: vectors, terms, texts and bytes were compared, too.
        repaired: what can be was healed.
        points: that the index holds.
        switching: points in spaces that datasets are on their way to; counted, and judged when they
            have arrived.
        unchecked_vectors: their texts are not in the embedding cache (deep only).
    """

    deep: bool
    repaired: bool
    datasets: int = 0
    points: int = 0
    unchecked_vectors: int = 0
    switching: int = 0
    pending_jobs: int = 0
    findings: dict[Kind, Finding] = field(default_factory=dict)

    def add(self, kind: Kind, item: object) -> None:
        """Note one thing that is wrong."""
        finding = self.findings.setdefault(kind, Finding())
        finding.count += 1
        if len(finding.first) < KEPT:
            finding.first.append(str(item))

    def count(self, kind: Kind) -> int:
        """How many of this kind were found."""
        return self.findings[kind].count if kind in self.findings else 0

    def first(self, kind: Kind) -> list[str]:
        """The first of this kind."""
        return self.findings[kind].first if kind in self.findings else []

    def healthy(self) -> bool:
        """Nothing was found."""
        return not self.findings

    def shape(self) -> dict[str, Any]:
        """As JSON; `findings` has the kinds that were found, in the order of `Kind`."""
        found = {kind.value: asdict(self.findings[kind]) for kind in Kind if kind in self.findings}
        return {"healthy": self.healthy(), **asdict(self), "findings": found}
