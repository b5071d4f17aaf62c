"""Does the index hold exactly what SQL says? Both are read once, side by side, ascending by id."""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from kb.db import reading
from kb.doctor.counters import repair_texts
from kb.doctor.due import Due, due_work
from kb.doctor.report import Kind, Report
from kb.doctor.texts import PAGE, Home, Text, find_texts, homes, pages
from kb.ingestion.embedding_cache import find_vectors
from kb.ingestion.points import remove
from kb.maintenance import write_points
from kb.metadata.labels import label_documents
from kb.ports import Point, PointHead, Space, Terms
from kb.resources import Resources
from kb.retrieval.bm25 import terms_of_document
from pipelines.types import Vector

_PAUSE_S = 1.0
"""Between two looks at what differs: a worker that lost its document takes back what it wrote."""
_SUSPECTS = 20_000
"""Differences that are held before they are looked at again."""
_VECTOR_ERROR = 2e-6
"""Of one value of a unit vector: two steps of float32."""
_WEIGHT_ERROR = 1e-5
_METADATA = "metadata"


@dataclass(frozen=True)
class Verdict:
    """What is wrong with a point; `why` names the parts of a wrong one."""

    kind: Kind
    why: str = ""
    head: PointHead | None = None


def examine_points(resources: Resources, spaces: Sequence[Space], report: Report) -> None:
    """Compare every point of these spaces with its text; with `report.repaired`, heal."""
    scans = {space: _Scan(resources, space, whole=report.deep) for space in spaces}
    suspects: dict[Space, dict[uuid.UUID, Verdict]] = {space: {} for space in spaces}
    with reading(resources.sessions) as session:
        moving = due_work(session)
    for texts, places, upto in pages(resources.sessions, deep=report.deep):
        _examine_rows(resources, texts, report)
        for space, scan in scans.items():
            mine = {t.id: t for t in texts if places[t.dataset_id].space == space}
            arrived = partial(_arrived, space, moving, report)
            parts = map(arrived, scan.until(upto))
            for found in _compare(resources, space, mine, places, parts, report):
                suspects[space].update(found)
                if len(suspects[space]) >= _SUSPECTS:
                    _settle(resources, space, suspects[space], report)
    for space, rest in suspects.items():
        _settle(resources, space, rest, report)


def _arrived(
    space: Space, moving: Due, report: Report, part: list[Point | PointHead]
) -> list[Point | PointHead]:
    """The points without those that a switch answers for: it compares them itself."""
    heads = [(point, point.head if isinstance(point, Point) else point) for point in part]
    left = [point for point, head in heads if not moving.moves(space, head)]
    report.switching += len(part) - len(left)
    report.points += len(part) - len(left)
    return left


class _Scan:
    """The points of a space, ascending by id, handed out up to a given id."""

    def __init__(self, resources: Resources, space: Space, *, whole: bool) -> None:
        index = resources.index
        self._points: Iterator[Point | PointHead] = iter(
            index.scan_points(space) if whole else index.scan(space)
        )
        self._held: Point | PointHead | None = None

    def until(self, upto: uuid.UUID | None) -> Iterator[list[Point | PointHead]]:
        """The next points with ids up to `upto` (None: all that are left), in parts; one at least.

        The last part may be empty.
        """
        part: list[Point | PointHead] = []
        while (point := self._held or next(self._points, None)) is not None:
            self._held = point
            if upto is not None and point.id > upto:
                break
            self._held = None
            part.append(point)
            if len(part) == PAGE:
                yield part
                part = []
        yield part


def _examine_rows(resources: Resources, texts: Sequence[Text], report: Report) -> None:
    """Rows whose text says other things than they do; they are healed before their points are."""
    bad = [(text, mistakes) for text in texts if (mistakes := text.mistakes())]
    for text, mistakes in bad:
        noun = "segment" if text.of_segment else "child chunk"
        report.add(Kind.COUNTERS, f"{text.id} ({noun}: {', '.join(mistakes)})")
    if report.repaired and bad:
        repair_texts(resources.sessions, [text for text, _ in bad])


def _compare(
    resources: Resources,
    space: Space,
    texts: dict[uuid.UUID, Text],
    places: Mapping[uuid.UUID, Home],
    parts: Iterator[list[Point | PointHead]],
    report: Report,
) -> Iterator[dict[uuid.UUID, Verdict]]:
    """What seems to be wrong in one page of ids."""
    for part in parts:
        report.points += len(part)
        pairs = [(texts.pop(point.id, None), point) for point in part]
        vectors = _cached(resources, space, [text for text, _ in pairs if text], report.deep)
        if report.deep and space.dim is not None:
            known = sum(1 for text, _ in pairs if text and text.expected)
            report.unchecked_vectors += known - sum(
                1 for text, _ in pairs if text and text.expected and text.true_hash in vectors
            )
        yield {
            point.id: verdict
            for text, point in pairs
            if (verdict := judge(text, point, places, vectors)) is not None
        }
    yield {
        text.id: verdict
        for text in texts.values()
        if (verdict := judge(text, None, places, {})) is not None
    }


def judge(
    text: Text | None,
    point: Point | PointHead | None,
    places: Mapping[uuid.UUID, Home],
    vectors: Mapping[str, Vector],
) -> Verdict | None:
    """What is wrong with the point of a text; None: nothing.

    Args:
        text: the text of that id in this space, or None.
        point: the point of that id, whole when vectors and terms are to be compared, or None.
        vectors: by text hash; a vector that is not among them is not compared.
    """
    if point is None:
        return Verdict(Kind.MISSING) if text is not None and text.expected else None
    head = point.head if isinstance(point, Point) else point
    if text is None or not text.leaf:
        return Verdict(Kind.EXTRA, head=head)
    if not text.expected:
        return None  # written, and not acknowledged yet
    if head.text_hash != text.true_hash:
        return Verdict(Kind.STALE)
    why = [
        name
        for name, same in {
            "dataset": head.dataset_id == text.dataset_id,
            "document": head.document_id == text.document_id,
            "segment": head.segment_id == text.segment_id,
            "version": 1 <= head.version <= text.newest,
            _METADATA: head.facts == text.facts,
        }.items()
        if not same
    ]
    if isinstance(point, Point):
        why += _inside(text, point, places[text.dataset_id], vectors.get(text.true_hash))
    return Verdict(Kind.WRONG, ", ".join(why)) if why else None


def _inside(text: Text, point: Point, home: Home, vector: Vector | None) -> list[str]:
    wrong = []
    if vector is not None and not _same_direction(vector, point.dense):
        wrong.append("vector")
    if home.average_length:
        terms = terms_of_document(text.terms, average_length=home.average_length)
        if not _same_terms(terms, point.terms):
            wrong.append("terms")
    return wrong


def _same_terms(a: Terms, b: Terms) -> bool:
    if not np.array_equal(a.ids, b.ids):
        return False
    return bool((np.abs(a.weights - b.weights) <= _WEIGHT_ERROR * a.weights).all())


def _same_direction(cached: Vector, stored: Vector | None) -> bool:
    """Whether the stored one is the cached one at unit length."""
    if stored is None or stored.shape != cached.shape:
        return False
    length = float(np.linalg.norm(cached.astype(np.float64))) or 1.0
    return bool(np.abs(cached / length - stored).max(initial=0.0) <= _VECTOR_ERROR)


def _cached(
    resources: Resources, space: Space, texts: Sequence[Text], deep: bool
) -> dict[str, Vector]:
    if not deep or space.dim is None or not texts:
        return {}
    with reading(resources.sessions) as session:
        return find_vectors(session, space.name, list({text.true_hash for text in texts}))


def _settle(
    resources: Resources, space: Space, suspects: dict[uuid.UUID, Verdict], report: Report
) -> None:
    """Look a second time at what differed, report what still does, and heal it."""
    if not suspects:
        return
    time.sleep(_PAUSE_S)
    ordered = sorted(suspects)
    for at in range(0, len(ordered), PAGE):
        ids = ordered[at : at + PAGE]
        found, texts = _second_look(resources, space, ids, suspects, report.deep)
        for point_id, verdict in found.items():
            report.add(verdict.kind, f"{point_id} ({verdict.why})" if verdict.why else point_id)
        if report.repaired and found:
            _heal(resources, space, found, texts)
    suspects.clear()


def _second_look(
    resources: Resources,
    space: Space,
    ids: Sequence[uuid.UUID],
    first: Mapping[uuid.UUID, Verdict],
    deep: bool,
) -> tuple[dict[uuid.UUID, Verdict], dict[uuid.UUID, Text]]:
    """What is wrong still, and the texts.

    SQL is read before and after the index: only what it says both times is held against a point.
    """
    before, _, _ = _texts(resources, space, ids, deep)
    points = resources.index.read(space, ids)
    texts, places, due = _texts(resources, space, ids, deep)
    vectors = _cached(resources, space, list(texts.values()), deep)
    found: dict[uuid.UUID, Verdict] = {}
    for point_id in ids:
        text, point = texts.get(point_id), points.get(point_id)
        if before.get(point_id) != text or str(point_id) in due.unsettled:
            continue
        seen = point if deep or point is None else point.head
        verdict = judge(text, seen, places, vectors)
        if verdict is None or verdict.kind is not first[point_id].kind:
            continue
        head = verdict.head
        if head != first[point_id].head:
            continue
        if head is not None and (due.removes(head) or due.moves(space, head)):
            continue
        if verdict.why == "terms" and text is not None and due.weighs(text.dataset_id):
            continue
        if verdict.why == _METADATA and text is not None and due.labels(text):
            continue
        found[point_id] = verdict
    return found, texts


def _texts(
    resources: Resources, space: Space, ids: Sequence[uuid.UUID], deep: bool
) -> tuple[dict[uuid.UUID, Text], dict[uuid.UUID, Home], Due]:
    """The texts of this space among these ids."""
    with reading(resources.sessions) as session:
        texts = find_texts(session, ids, deep=deep)
        places = homes(session, {text.dataset_id for text in texts.values()})
        due = due_work(session)
    mine = {i: text for i, text in texts.items() if places[text.dataset_id].space == space}
    return mine, places, due


def _heal(
    resources: Resources,
    space: Space,
    found: Mapping[uuid.UUID, Verdict],
    texts: Mapping[uuid.UUID, Text],
) -> None:
    # Up to the version that was seen: a text that comes back in this moment has a higher one.
    extra = {i: v.head.version for i, v in found.items() if v.kind is Kind.EXTRA and v.head}
    remove(resources.index, space, extra)
    again: dict[uuid.UUID, list[uuid.UUID]] = defaultdict(list)
    labels: dict[uuid.UUID, set[uuid.UUID]] = defaultdict(set)
    for point_id in found.keys() - extra.keys():
        text = texts[point_id]
        if found[point_id].why == _METADATA:
            labels[text.dataset_id].add(text.document_id)
        else:
            again[text.dataset_id].append(point_id)
    for dataset_id, ids in again.items():
        write_points(resources, dataset_id, ids)
    for dataset_id, documents in labels.items():
        label_documents(resources, dataset_id, sorted(documents))
    resources.index.flush(space)
