"""Hand edits when a document is processed anew: laid over its new text, or listed as conflicts.

The rules are those of ADR 14, "Hand edits outlive the text that they were made on".
"""

from __future__ import annotations

import re
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from typing import Any

from sqlalchemy import exists, select, update
from sqlalchemy.orm import Session

from kb.db import now
from kb.ingestion.claims import Claim
from kb.ingestion.staging import Row, Rows, counted
from kb.models import (
    ChildChunk,
    DocumentVersion,
    OverlayKind,
    OverlayState,
    Segment,
    SegmentOverlay,
)
from kb.reports import note_conflicts

_ROWS = 500  # ids per IN
_PIECE_CHARS = 12
"""A shorter piece of a text is no sign that the text is still there."""
_CUTS = re.compile(r"\n+|(?<=[.!?。！？])\s*")
_SPACE = re.compile(r"\s+")


# -- identity


@dataclass(frozen=True)
class Anchor:
    """Which of several equal texts hand edits were made on: its neighbours' identities."""

    target_id: uuid.UUID
    identity: str
    before: str | None
    after: str | None


def find_anchors(session: Session, document_id: uuid.UUID) -> list[Anchor]:
    """Of every segment of a document that was edited by hand."""
    rows: Any = session.execute(
        select(
            SegmentOverlay.segment_id,
            SegmentOverlay.identity,
            SegmentOverlay.before,
            SegmentOverlay.after,
        )
        .where(SegmentOverlay.document_id == document_id, SegmentOverlay.identity.is_not(None))
        .order_by(SegmentOverlay.created_at.desc())
    )
    return list({row[0]: Anchor(*row) for row in rows}.values())


def place_ids(
    document_id: uuid.UUID, identities: Sequence[str], anchors: Sequence[Anchor]
) -> list[uuid.UUID]:
    """An id for each chunk, the same in every version and run as long as its text is the same.

    The n-th of equal texts has the n-th id; those that were edited by hand are told by their
    neighbours first, so that an edit stays with its text when an equal one comes or goes.
    """
    places: dict[str, list[int]] = defaultdict(list)
    for at, identity in enumerate(identities):
        places[identity].append(at)
    wanted: dict[str, list[Anchor]] = defaultdict(list)
    for anchor in anchors:
        wanted[anchor.identity].append(anchor)
    ids: dict[int, uuid.UUID] = {}
    for identity, here in places.items():
        known = wanted.get(identity, [])
        chosen = _matched(document_id, identities, here, known) if known else {}
        taken = {anchor.target_id for anchor in known}
        free = (i for n in count(1) if (i := nth_id(document_id, identity, n)) not in taken)
        for at in here:
            ids[at] = chosen[at] if at in chosen else next(free)
    return [ids[at] for at in range(len(identities))]


def nth_id(parent: uuid.UUID, identity: str, number: int) -> uuid.UUID:
    """Of the n-th chunk with this text under `parent`, n >= 1."""
    return uuid.uuid5(parent, f"{identity}:{number}")


def _matched(
    document_id: uuid.UUID,
    identities: Sequence[str],
    here: Sequence[int],
    anchors: Sequence[Anchor],
) -> dict[int, uuid.UUID]:
    """Where the edited ones among equal texts are now."""
    pairs = []
    for number, at in enumerate(here, start=1):
        before = identities[at - 1] if at else None
        after = identities[at + 1] if at + 1 < len(identities) else None
        for anchor in anchors:
            same = nth_id(document_id, anchor.identity, number) == anchor.target_id
            likeness = (before == anchor.before) + (after == anchor.after)
            if same or likeness:
                pairs.append((-likeness, not same, number, at, anchor.target_id))
    chosen: dict[int, uuid.UUID] = {}
    for _, _, _, at, target_id in sorted(pairs):
        if at not in chosen and target_id not in chosen.values():
            chosen[at] = target_id
    return chosen


# -- staging


@dataclass
class Laid:
    """A version's rows with the hand edits in them, and live rows that it takes over."""

    rows: Rows
    segments: dict[uuid.UUID, Row] = field(default_factory=dict)
    children: dict[uuid.UUID, Row | None] = field(default_factory=dict)
    """id -> where it will stand; None: where it does."""

    def keep(self, session: Session, version: int) -> None:
        """Make the live rows part of the version in preparation."""
        for table, kept in ((Segment, self.segments), (ChildChunk, self.children)):
            rows = [
                {"id": id, "staged_version": version, "staged": place} for id, place in kept.items()
            ]
            if rows:
                session.execute(update(table), rows)


def lay_over(session: Session, claim: Claim, rows: Rows, make_child: Callable[..., Row]) -> Laid:
    """What a version holds once the document's hand edits are in it.

    Args:
        rows: as the pipeline made them; they are not changed.
        make_child: a row of (id, segment id, position, text).
    """
    found = session.scalars(
        select(SegmentOverlay).where(SegmentOverlay.document_id == claim.document_id)
    ).all()
    if not found:
        return Laid(rows)
    return _Layer(session, claim, found, make_child).laid(rows)


class _Layer:
    """The hand edits of one document, on their way into one version."""

    def __init__(
        self,
        session: Session,
        claim: Claim,
        overlays: Sequence[SegmentOverlay],
        make_child: Callable[..., Row],
    ) -> None:
        self._session, self._claim, self._make_child = session, claim, make_child
        self._of = {(o.kind, o.target_id): o for o in overlays}

    def laid(self, rows: Rows) -> Laid:
        segments = [row for given in rows.segments if (row := self._segment(given)) is not None]
        kept = {row["id"] for row in segments}
        own = {
            o.target_id: o
            for o in self._all(OverlayKind.EDITED)
            if o.target_id in kept and "children" in (o.patch or {})
        }
        live = self._live_children()
        children = [
            row
            for given in rows.children
            if given["segment_id"] in kept - own.keys() and (row := self._child(given)) is not None
        ]
        laid = Laid(Rows(segments, children))
        self._keep_added_segments(laid, live)
        for segment_id, overlay in own.items():
            if segment_id in live:
                laid.children |= dict.fromkeys(live[segment_id])
            else:  # the text is back that was gone
                texts = enumerate((overlay.patch or {})["children"], start=1)
                children += [self._make_child(uuid.uuid4(), segment_id, n, t) for n, t in texts]
        self._keep_added_children(laid, kept - own.keys(), live)
        parents = {row["segment_id"] for row in children} | {
            segment_id for segment_id, ids in live.items() if any(id in laid.children for id in ids)
        }
        for row in segments:
            row["has_children"] = row["id"] in parents
        return laid

    def _all(self, kind: OverlayKind) -> Iterator[SegmentOverlay]:
        return (o for (of_kind, _), o in self._of.items() if of_kind is kind)

    def _match(self, kind: OverlayKind, target_id: uuid.UUID) -> SegmentOverlay | None:
        overlay = self._of.get((kind, target_id))
        if overlay is not None:
            overlay.matched_version = self._claim.version
        return overlay

    def _segment(self, row: Row) -> Row | None:
        """The row with its edits; None: it was deleted."""
        if self._match(OverlayKind.DELETED, row["id"]):
            return None
        row = dict(row)
        if edited := self._match(OverlayKind.EDITED, row["id"]):
            patch: Mapping[str, Any] = edited.patch or {}
            row |= {name: patch[name] for name in ("content", "answer", "keywords", "tokens")}
            row |= counted(row["content"], row["answer"])
        if self._match(OverlayKind.DISABLED, row["id"]):
            row |= {"enabled": False, "disabled_at": now()}
        return row

    def _child(self, row: Row) -> Row | None:
        if self._match(OverlayKind.CHILD_DELETED, row["id"]):
            return None
        row = dict(row)
        if edited := self._match(OverlayKind.CHILD_EDITED, row["id"]):
            text = (edited.patch or {})["content"]
            row |= {"content": text, "type": "customized", **counted(text)}
        return row

    def _live_children(self) -> dict[uuid.UUID, list[uuid.UUID]]:
        """Live child chunks by segment, in order."""
        live: dict[uuid.UUID, list[uuid.UUID]] = defaultdict(list)
        rows = self._session.execute(
            select(ChildChunk.segment_id, ChildChunk.id)
            .where(ChildChunk.document_id == self._claim.document_id, ChildChunk.live)
            .order_by(ChildChunk.position)
        )
        for segment_id, child_id in rows:
            live[segment_id].append(child_id)
        return live

    def _keep_added_segments(self, laid: Laid, live: Mapping[uuid.UUID, list[uuid.UUID]]) -> None:
        """Segments that were added by hand come after the document's own."""
        added = [o.target_id for o in self._all(OverlayKind.ADDED)]
        last = max((row["position"] for row in laid.rows.segments), default=0)
        rows = [
            row
            for at in range(0, len(added), _ROWS)
            for row in self._session.execute(
                select(Segment.id, Segment.position, Segment.has_children).where(
                    Segment.id.in_(added[at : at + _ROWS]), Segment.live
                )
            )
        ]
        for position, row in enumerate(sorted(rows, key=lambda r: (r[1], r[0])), start=last + 1):
            laid.segments[row[0]] = {"position": position, "has_children": row[2]}
            laid.children |= dict.fromkeys(live.get(row[0], []))

    def _keep_added_children(
        self,
        laid: Laid,
        parents: set[uuid.UUID],
        live: Mapping[uuid.UUID, list[uuid.UUID]],
    ) -> None:
        """Child chunks that were added by hand come after those that the rule makes."""
        last: dict[uuid.UUID, int] = defaultdict(int)
        for row in laid.rows.children:
            last[row["segment_id"]] = max(last[row["segment_id"]], row["position"])
        for overlay in sorted(self._all(OverlayKind.CHILD_ADDED), key=lambda o: o.created_at):
            parent = overlay.segment_id
            if parent not in parents:
                continue
            last[parent] += 1
            if overlay.target_id in live.get(parent, []):
                laid.children[overlay.target_id] = {"position": last[parent]}
            else:
                text = (overlay.patch or {})["content"]
                row = self._make_child(overlay.target_id, parent, last[parent], text)
                laid.rows.children.append(row | {"type": "customized"})


# -- switch


def has_overlays(session: Session, document_id: uuid.UUID) -> bool:
    """Whether anything of a document was edited by hand."""
    asked = exists().where(SegmentOverlay.document_id == document_id)
    return bool(session.scalar(select(asked)))


def flipped_parents(session: Session, claim: Claim) -> list[uuid.UUID]:
    """Live segments that get their first child chunks with the version, or lose their last."""
    rows = session.execute(
        select(Segment.id, Segment.staged, Segment.has_children).where(
            Segment.document_id == claim.document_id,
            Segment.staged_version == claim.version,
            Segment.live,
        )
    )
    return [id for id, staged, had in rows if (staged or {}).get("has_children", had) != had]


def classify(session: Session, claim: Claim) -> None:
    """Say of each hand edit whether it is in the version that has just become live.

    Conflicts are counted in the version's warnings.
    """
    overlays = session.scalars(
        select(SegmentOverlay)
        .where(SegmentOverlay.document_id == claim.document_id)
        .execution_options(populate_existing=True)
    ).all()
    texts = _Texts(session, claim.document_id)
    for overlay in overlays:
        overlay.state = _state(overlay, claim.version, texts)
    conflicts = [o for o in overlays if o.state is OverlayState.CONFLICT]
    if conflicts:
        _warn(session, claim, len(conflicts))
        said = [_said(overlay) for overlay in conflicts]
        note_conflicts(session, claim.document_id, claim.version, said)


def _said(overlay: SegmentOverlay) -> Row:
    """As reports show it."""
    return {
        "overlay_id": str(overlay.id),
        "kind": overlay.kind.value,
        "segment_id": str(overlay.segment_id),
        "original": overlay.original,
        "content": (overlay.patch or {}).get("content"),
    }


def _state(overlay: SegmentOverlay, version: int, texts: _Texts) -> OverlayState:
    of_child = overlay.kind in (
        OverlayKind.CHILD_EDITED,
        OverlayKind.CHILD_DELETED,
        OverlayKind.CHILD_ADDED,
    )
    part = texts.children if of_child else texts.segments
    if overlay.kind in (OverlayKind.DELETED, OverlayKind.CHILD_DELETED):
        if overlay.matched_version == version:
            return OverlayState.ACTIVE
    elif overlay.target_id in part:
        overlay.matched_version = version
        return OverlayState.ACTIVE
    patch = overlay.patch or {}
    if overlay.kind is OverlayKind.EDITED:
        done = "children" not in patch and _as_edited(patch, texts.rows)
    elif "content" in patch:
        done = patch["content"] in part.values()
    else:
        done = not still_there(overlay.original or "", part.values())
    return OverlayState.DORMANT if done else OverlayState.CONFLICT


def _as_edited(patch: Mapping[str, Any], rows: Iterable[_Said]) -> bool:
    """Whether a segment says by itself all that the edit says."""
    wanted = _Said(patch["content"], patch.get("answer"), patch.get("keywords") or [])
    return any(row == wanted for row in rows)


@dataclass(frozen=True)
class _Said:
    content: str
    answer: str | None
    keywords: list[Any]


@dataclass
class _Texts:
    """What a document holds, by id; read when it is asked for."""

    session: Session
    document_id: uuid.UUID

    @cached_property
    def segments(self) -> dict[uuid.UUID, str]:
        return self._read(Segment)

    @cached_property
    def rows(self) -> list[_Said]:
        found = self.session.execute(
            select(Segment.content, Segment.answer, Segment.keywords).where(
                Segment.document_id == self.document_id, Segment.live
            )
        )
        return [_Said(content, answer, keywords or []) for content, answer, keywords in found]

    @cached_property
    def children(self) -> dict[uuid.UUID, str]:
        return self._read(ChildChunk)

    def _read(self, table: type[Segment] | type[ChildChunk]) -> dict[uuid.UUID, str]:
        rows = self.session.execute(
            select(table.id, table.content).where(table.document_id == self.document_id, table.live)
        )
        return {row[0]: row[1] for row in rows}


def still_there(text: str, texts: Iterable[str]) -> bool:
    """Whether a line or sentence of a text stands in any of these texts, however it is cut there.

    White space does not count.
    """
    whole = _flat(text)
    pieces = [_flat(piece) for piece in _CUTS.split(text)]
    wanted = [piece for piece in pieces if len(piece) >= _PIECE_CHARS] or [whole]
    return any(piece in flat for flat in map(_flat, texts) for piece in wanted)


def _flat(text: str) -> str:
    return _SPACE.sub(" ", text).strip()


def _warn(session: Session, claim: Claim, conflicts: int) -> None:
    version = session.scalar(
        select(DocumentVersion).where(
            DocumentVersion.document_id == claim.document_id,
            DocumentVersion.number == claim.version,
        )
    )
    if version is not None:
        one = conflicts == 1
        warning = (
            f"{conflicts} {'edit' if one else 'edits'} by hand {'does' if one else 'do'} not fit "
            "this version; list them at .../overlays?state=conflict"
        )
        version.warnings = [*(version.warnings or []), warning]
        session.flush()
