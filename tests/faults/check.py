"""What must be true after a round, whatever happened in it."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from kb.db import reading
from kb.doctor import examine
from kb.ingestion.staging import stable_id
from kb.models import (
    Dataset,
    Document,
    DocumentVersion,
    IndexingStatus,
    PipelineRun,
    Segment,
    UploadFile,
)
from kb.ports import PointHead
from kb.resources import Resources, space_of
from pipelines.types import Vector
from tests.faults.load import CONTENTS, Expected, Load

Row = tuple[int, str, str, int, int, int, int]
"""A segment: position, text hash, text, start, end, words, terms."""


@dataclass(frozen=True)
class Reference:
    """What an undisturbed run makes of each content."""

    rows: dict[str, list[Row]]
    vectors: dict[str, Vector] = field(default_factory=dict)
    """By text hash; empty without a model."""


@dataclass
class Findings:
    """What is wrong after a round."""

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.lost or self.doubled or self.other)

    def __str__(self) -> str:
        parts = {"lost": self.lost, "doubled": self.doubled, "other": self.other}
        return "\n".join(f"{kind}: {text}" for kind, texts in parts.items() for text in texts)


def read_reference(resources: Resources, load: Load) -> Reference:
    """The rows, and with a model the vectors, of documents that nothing happened to."""
    with reading(resources.sessions) as session:
        by_id = {uuid.UUID(d.id): d.contents[-1] for d in load.documents.values() if d.id}
        segments = _segments(session, uuid.UUID(load.dataset))
        space = space_of(session.get_one(Dataset, uuid.UUID(load.dataset)))
    assert space is not None
    rows: dict[str, list[Row]] = {}
    for segment in segments:
        rows.setdefault(by_id[segment.document_id], []).append(_row(segment))
    assert {key: len(found) for key, found in rows.items()} == {
        key: CONTENTS[key].lines for key in rows
    }, "every line is a segment"
    vectors = {}
    if space.dim is not None:
        found = resources.index.vectors(space, [segment.id for segment in segments])
        vectors = {s.text_hash: found[s.id][0] for s in segments}
    return Reference(rows, {key: vector for key, vector in vectors.items() if vector is not None})


def findings(
    resources: Resources, load: Load, reference: Reference, *, ended: Sequence[str] = ()
) -> Findings:
    """Compare a settled dataset, the index and the files with what must be there.

    Args:
        ended: how runs may have ended besides `succeeded`.
    """
    found = Findings()
    dataset_id = uuid.UUID(load.dataset)
    with reading(resources.sessions) as session:
        documents = {d.name: d for d in session.scalars(_of(Document, dataset_id))}
        segments = _segments(session, dataset_id)
        space = space_of(session.get_one(Dataset, dataset_id))
        ids = [d.id for d in documents.values()]
        versions = session.scalars(
            select(DocumentVersion).where(DocumentVersion.document_id.in_(ids))
        ).all()
        runs = session.scalars(select(PipelineRun).where(PipelineRun.document_id.in_(ids))).all()
    present = _whole_or_absent(load, documents, found)
    for expected in present:
        row = documents[expected.name]
        own = [s for s in segments if s.document_id == row.id]
        _check_document(expected, row, own, reference, found)
        _check_history(
            expected,
            row,
            [v for v in versions if v.document_id == row.id],
            [r for r in runs if r.document_id == row.id],
            {"succeeded", *ended},
            found,
        )
    if space is not None:
        heads = list(resources.index.scan(space, dataset_id))
        _check_points(segments, heads, documents.values(), found)
        if reference.vectors and space.dim is not None:
            _check_vectors(resources.index.vectors(space, [h.id for h in heads]), heads, reference)
    _check_whole(resources, found)
    return found


def _whole_or_absent(load: Load, documents: dict[str, Document], found: Findings) -> list[Expected]:
    wanted = {d.name for d in load.remaining()}
    maybe = {d.name for d in load.documents.values() if not d.answered}
    found.lost += [f"document {name} is gone" for name in sorted(wanted - documents.keys())]
    found.other += [
        f"document {name} is there" for name in sorted(documents.keys() - wanted - maybe)
    ]
    return [
        d for d in load.documents.values() if d.name in documents and d.name in (wanted | maybe)
    ]


def _check_document(
    expected: Expected,
    row: Document,
    segments: list[Segment],
    reference: Reference,
    found: Findings,
) -> None:
    name = f"document {row.name} {row.id}"
    if row.indexing_status is not IndexingStatus.COMPLETED:
        found.lost.append(f"{name} is {row.indexing_status.value}: {row.error}")
        return
    left = (row.pending_version, row.lease_owner, row.error, row.attempts)
    if left != (None, None, None, 0):
        found.other.append(f"{name} is completed, but has {left}")
    wanted = reference.rows[expected.contents[-1]]
    here = [_row(segment) for segment in segments]
    if here != wanted:
        missing, extra = Counter(wanted) - Counter(here), Counter(here) - Counter(wanted)
        found.lost += [f"{name} lacks {text}" for text in missing]
        found.doubled += [f"{name} has too much: {text}" for text in extra]
    seen: Counter[str] = Counter()
    derived = [stable_id(row.id, text_hash, seen) for _, text_hash, *_ in wanted]
    if sorted(s.id for s in segments) != sorted(derived):
        found.other.append(f"{name} has segments whose ids are not those of its texts")
    for segment in segments:
        if not segment.live or segment.staged_version is not None or segment.indexed_at is None:
            found.other.append(f"{name} segment {segment.position} is not live and indexed")


def _check_history(
    expected: Expected,
    row: Document,
    versions: list[DocumentVersion],
    runs: list[PipelineRun],
    ended: set[str],
    found: Findings,
) -> None:
    name = f"document {row.name} {row.id}"
    numbers = sorted(version.number for version in versions)
    if numbers != list(range(1, len(numbers) + 1)) or row.version != len(numbers):
        found.other.append(f"{name} answers with version {row.version} of {numbers}")
    if expected.answered and len(numbers) != len(expected.contents):
        found.other.append(f"{name} has versions {numbers} for {len(expected.contents)} uploads")
    succeeded = Counter(run.version for run in runs if run.status == "succeeded")
    if succeeded[row.version] != 1:
        count = succeeded[row.version]
        kind = found.doubled if count > 1 else found.other
        kind.append(f"{name} version {row.version} succeeded {count} times")
    found.doubled += [
        f"{name} version {number} succeeded {count} times"
        for number, count in succeeded.items()
        if count > 1 and number != row.version
    ]
    if len(numbers) > 1:  # its next version was claimed before the worker of this one had noticed
        ended = ended | {"lost"}
    strange = {run.status for run in runs} - ended
    if strange:
        why = sorted({f"{run.status}: {run.error}" for run in runs if run.status in strange})
        found.other.append(f"{name} has runs that ended {why}")


def _check_points(
    segments: Sequence[Segment],
    heads: list[PointHead],
    documents: Iterable[Document],
    found: Findings,
) -> None:
    newest = {document.id: document.version for document in documents}
    wanted = {segment.id: (segment.document_id, segment.text_hash) for segment in segments}
    here = {head.id: (head.document_id, head.text_hash) for head in heads}
    if len(here) != len(heads):
        found.doubled.append(f"{len(heads) - len(here)} points are there twice")
    found.lost += [f"no point for segment {i}" for i in wanted.keys() - here.keys()]
    found.doubled += [f"point {i} has no segment" for i in here.keys() - wanted.keys()]
    for i in here.keys() & wanted.keys():
        if here[i] != wanted[i]:
            found.other.append(f"point {i} is of {here[i]}, not of {wanted[i]}")
    for head in heads:
        if head.id in wanted and not 1 <= head.version <= newest.get(head.document_id, 0):
            found.other.append(f"point {head.id} has version {head.version}")


def _check_vectors(
    vectors: dict[uuid.UUID, tuple[Vector | None, object]],
    heads: list[PointHead],
    reference: Reference,
) -> None:
    for head in heads:
        dense, _ = vectors[head.id]
        assert dense is not None
        assert np.allclose(dense, reference.vectors[head.text_hash], atol=1e-4), head


def _check_whole(resources: Resources, found: Findings) -> None:
    """The doctor, and files against rows."""
    report = examine(resources, repair=False)
    if not report.healthy() or report.pending_jobs:
        found.other.append(f"the doctor finds {report.shape()}")
    with reading(resources.sessions) as session:
        known = set(session.scalars(select(UploadFile.blob_key)))
        known |= {key for key in session.scalars(select(DocumentVersion.text_key)) if key}
        unused = session.scalar(
            select(func.count())
            .select_from(UploadFile)
            .where(UploadFile.id.not_in(select(DocumentVersion.upload_file_id)))
        )
    here = set(resources.blobs.keys())
    found.lost += [f"file {key} is gone" for key in known - here]
    found.other += [f"file {key} has no row" for key in here - known]
    if unused:
        found.other.append(f"{unused} rows of files without a document")


def _segments(session: Session, dataset_id: uuid.UUID) -> Sequence[Segment]:
    return session.scalars(
        _of(Segment, dataset_id).order_by(Segment.document_id, Segment.position)
    ).all()


def _of(table: type[Document] | type[Segment], dataset_id: uuid.UUID):
    return select(table).where(table.dataset_id == dataset_id)


def _row(s: Segment) -> Row:
    return (
        s.position,
        s.text_hash,
        s.content,
        s.start_offset,
        s.end_offset,
        s.word_count,
        s.term_count,
    )
