"""The doctor: does the index hold exactly what SQL says, and are the files there?"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from kb.db import reading
from kb.errors import ProviderNotInitialized
from kb.ingestion.points import indexed_leaves, remove, unknown_ids
from kb.maintenance import pending_jobs, write_points
from kb.models import Dataset, Document, DocumentVersion, Job, JobKind, UploadFile, text_key
from kb.ports import PointHead, Space
from kb.resources import FULL_TEXT_SPACE, Resources, space_of
from pipelines.errors import TransientError

_ROWS = 500
_UPLOAD_S = 3600.0
"""Longer than any upload takes from its file to its commit."""
_PAUSE_S = 1.0
"""Between two looks at what differs: a worker that lost its document takes back what it wrote."""


@dataclass
class Report:
    """What was compared and what was found; ids as text.

    Attributes:
        missing: points that SQL expects and the index lacks.
        stale: points whose text is not the one in SQL.
        extra: points that nothing in SQL stands for.
        lost_files: documents whose uploaded file or extracted text is gone.
        orphan_files: files that nothing in SQL stands for.
    """

    datasets: int = 0
    points: int = 0
    missing: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    lost_files: list[str] = field(default_factory=list)
    orphan_files: list[str] = field(default_factory=list)
    pending_jobs: int = 0
    repaired: bool = False

    def healthy(self) -> bool:
        """Nothing was found."""
        return not (
            self.missing or self.stale or self.extra or self.lost_files or self.orphan_files
        )

    def shape(self) -> dict[str, Any]:
        """As JSON."""
        return {"healthy": self.healthy(), **self.__dict__}


def examine(resources: Resources, *, repair: bool) -> Report:
    """Compare both sides; with `repair`, write missing and stale points anew and drop the rest.

    Points are restored from SQL and the embedding cache; only texts that are not in the cache
    go to the model. Safe while documents are ingested, replaced and deleted: what differs is
    looked at a second time, and what a job will see to is no finding.
    """
    report = Report(pending_jobs=pending_jobs(resources), repaired=repair)
    with reading(resources.sessions) as session:
        datasets = {d.id: space for d in session.scalars(select(Dataset)) if (space := space_of(d))}
        report.datasets = session.scalar(select(func.count()).select_from(Dataset)) or 0
    spaces = {FULL_TEXT_SPACE, *_default_space(resources), *datasets.values()}
    for space in spaces:
        resources.index.ensure_space(space)
    looks = {i: _look(resources, i, space) for i, space in datasets.items()}
    strange = {space: _strangers(resources, space) for space in spaces}
    report.points = sum(look.points for look in looks.values())
    if any(look.differs() for look in looks.values()) or any(strange.values()):
        time.sleep(_PAUSE_S)
    for dataset_id, look in looks.items():
        if look.differs():
            _examine_dataset(resources, dataset_id, datasets[dataset_id], look, report)
    for space, ids in strange.items():
        if ids:
            _examine_strangers(resources, space, ids, report)
    _examine_files(resources, report)
    return report


def _default_space(resources: Resources) -> set[Space]:
    """The default model's; none while its server does not say how long its vectors are."""
    embedder = resources.default_embedder
    try:
        return {Space(embedder.id, embedder.dim)}
    except (TransientError, ProviderNotInitialized):
        return set()


@dataclass(frozen=True)
class _Look:
    """Where the index differs from SQL: ids, and extra points with what is known of them."""

    points: int
    missing: frozenset[uuid.UUID]
    stale: frozenset[uuid.UUID]
    extra: dict[uuid.UUID, PointHead]

    def differs(self) -> bool:
        return bool(self.missing or self.stale or self.extra)


def _examine_dataset(
    resources: Resources, dataset_id: uuid.UUID, space: Space, first: _Look, report: Report
) -> None:
    # What was replaced or deleted between the two halves of a look is not there in the second.
    again = _look(resources, dataset_id, space)
    missing = sorted(first.missing & again.missing)
    stale = sorted(first.stale & again.stale)
    extra = {i: head for i, head in again.extra.items() if first.extra.get(i) == head}
    report.missing += map(str, missing)
    report.stale += map(str, stale)
    report.extra += map(str, sorted(extra))
    if not report.repaired:
        return
    for at in range(0, len(missing) + len(stale), _ROWS):
        write_points(resources, dataset_id, [*missing, *stale][at : at + _ROWS])
    # Up to the version that was seen: a text that comes back in this moment has a higher one.
    remove(resources.index, space, {i: head.version for i, head in extra.items()})
    resources.index.flush(space)


def _look(resources: Resources, dataset_id: uuid.UUID, space: Space) -> _Look:
    # Expected first, present second: a point that is written in between cannot seem missing.
    expected: dict[uuid.UUID, str] = {}
    for leaves in indexed_leaves(resources.sessions, dataset_id=dataset_id):
        expected.update({leaf.id: leaf.text_hash for leaf in leaves})
    present = {head.id: head for head in resources.index.scan(space, dataset_id)}
    missing = [i for i in expected if i not in present]
    stale = [i for i, digest in expected.items() if i in present and present[i].text_hash != digest]
    extra = {i: head for i, head in present.items() if i not in expected}
    with reading(resources.sessions) as session:
        gone = unknown_ids(session, [*missing, *stale, *extra])
        due = _due_deletes(session)
    return _Look(
        len(present),
        frozenset(i for i in missing if i not in gone),
        frozenset(i for i in stale if i not in gone),
        {i: head for i, head in extra.items() if i in gone and not due.covers(head)},
    )


@dataclass(frozen=True)
class _Due:
    """What jobs that are written down will remove."""

    points: frozenset[str]
    documents: frozenset[str]
    datasets: frozenset[str]
    keys: frozenset[str]

    def covers(self, head: PointHead) -> bool:
        return (
            str(head.id) in self.points
            or str(head.document_id) in self.documents
            or str(head.dataset_id) in self.datasets
        )


def _due_deletes(session: Session) -> _Due:
    jobs = session.execute(select(Job.kind, Job.payload)).all()
    of_kind = {kind: [row[1] for row in jobs if row[0] is kind] for kind in JobKind}
    return _Due(
        frozenset(i for p in of_kind[JobKind.DELETE_POINTS] for i in p["ids"]),
        frozenset(p["document_id"] for p in of_kind[JobKind.DELETE_DOCUMENT]),
        frozenset(p["dataset_id"] for p in of_kind[JobKind.DELETE_DATASET]),
        frozenset(key for p in of_kind[JobKind.DELETE_BLOBS] for key in p["keys"]),
    )


def _strangers(resources: Resources, space: Space) -> set[uuid.UUID]:
    """Datasets that are gone, whose points are there and that no job will see to."""
    found = {head.dataset_id for head in resources.index.scan(space)}
    with reading(resources.sessions) as session:  # after the scan: a dataset is before its points
        found -= set(session.scalars(select(Dataset.id)))
        found -= {uuid.UUID(i) for i in _due_deletes(session).datasets}
    return found


def _examine_strangers(
    resources: Resources, space: Space, first: set[uuid.UUID], report: Report
) -> None:
    # A worker whose dataset is deleted under it takes back what it wrote last, with a job.
    with reading(resources.sessions) as session:
        due = _due_deletes(session)
    for dataset_id in sorted(first & _strangers(resources, space)):
        heads = list(resources.index.scan(space, dataset_id))
        report.extra += [str(head.id) for head in heads if not due.covers(head)]
        if report.repaired:  # ids are random: a dataset that is gone never comes back
            resources.index.delete_dataset(space, dataset_id)
            resources.index.flush(space)


def _examine_files(resources: Resources, report: Report) -> None:
    # A file is stored before the row that speaks of it: only one that is old enough to have had
    # its row committed counts as an orphan.
    old = set(resources.blobs.keys(older_than_s=_UPLOAD_S))
    with reading(resources.sessions) as session:
        needed = {**_uploads(session), **_texts(session)}
        known = set(session.scalars(select(UploadFile.blob_key)))
        known |= {key for key in session.scalars(select(DocumentVersion.text_key)) if key}
        known |= {
            # Put by a worker, or by one that died, and put again, before its row is written.
            text_key(document_id, version)
            for document_id, version in session.execute(
                select(Document.id, Document.pending_version)
            )
            if version is not None
        }
        known |= _due_deletes(session).keys
    lost = [key for key in needed if not resources.blobs.exists(key)]
    if lost:
        with reading(resources.sessions) as session:  # deleted since is not lost
            needed = {**_uploads(session), **_texts(session)}
    report.lost_files += [f"{needed[key]} ({key})" for key in sorted(lost) if key in needed]
    report.orphan_files += sorted(key for key in old - known if resources.blobs.exists(key))
    if report.repaired:
        for key in report.orphan_files:
            resources.blobs.delete(key)


def _uploads(session: Session) -> dict[str, str]:
    """Blob key of every document's present file -> the document's name."""
    rows = select(UploadFile.blob_key, Document.name).join(
        Document, Document.upload_file_id == UploadFile.id
    )
    return {row[0]: row[1] for row in session.execute(rows)}


def _texts(session: Session) -> dict[str, str]:
    """Blob key of every extracted text that answers now -> the document's name."""
    rows = (
        select(DocumentVersion.text_key, Document.name)
        .join(Document, Document.id == DocumentVersion.document_id)
        .where(DocumentVersion.number == Document.version, DocumentVersion.text_key.is_not(None))
    )
    return {row[0]: row[1] for row in session.execute(rows) if row[0]}
