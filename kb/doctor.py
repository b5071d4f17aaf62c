"""The doctor: does the index hold exactly what SQL says, and are the files there?"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select

from kb.db import reading
from kb.ingestion.points import indexed_leaves
from kb.maintenance import pending_jobs, write_points
from kb.models import ChildChunk, Dataset, Document, DocumentVersion, Segment, UploadFile
from kb.ports import PointHead, Space
from kb.resources import FULL_TEXT_SPACE, Resources, space_of

_ROWS = 500
_ANY_VERSION = 2**31 - 1
_UPLOAD_S = 3600.0
"""Longer than any upload takes from its file to its commit."""


@dataclass
class Report:
    """What was compared and what was found; ids as text.

    Attributes:
        missing: points that SQL expects and the index lacks.
        stale: points whose text is not the one in SQL.
        extra: points that nothing in SQL stands for.
        lost_files: documents whose uploaded file is gone.
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
    go to the model. Safe while documents are ingested: what is on its way counts as neither
    missing nor extra.
    """
    report = Report(pending_jobs=pending_jobs(resources), repaired=repair)
    with reading(resources.sessions) as session:
        datasets = list(session.scalars(select(Dataset)))
    spaces: set[Space] = {FULL_TEXT_SPACE}
    known: set[uuid.UUID] = set()
    for dataset in datasets:
        space = space_of(dataset)
        known.add(dataset.id)
        report.datasets += 1
        if space is not None:
            spaces.add(space)
            _examine_dataset(resources, dataset.id, space, report, repair=repair)
    embedder = resources.default_embedder
    spaces.add(Space(embedder.id, embedder.dim))
    for space in spaces:
        resources.index.ensure_space(space)
        gone = {h.dataset_id for h in resources.index.scan(space) if h.dataset_id not in known}
        for dataset_id in gone:
            report.extra += [str(h.id) for h in resources.index.scan(space, dataset_id)]
            if repair:
                resources.index.delete_dataset(space, dataset_id)
    _examine_files(resources, report, repair=repair)
    return report


def _examine_dataset(
    resources: Resources, dataset_id: uuid.UUID, space: Space, report: Report, *, repair: bool
) -> None:
    resources.index.ensure_space(space)
    # Expected first, present second: a point that is written in between cannot seem missing.
    expected: dict[uuid.UUID, str] = {}
    with reading(resources.sessions) as session:
        for leaves in indexed_leaves(session, dataset_id=dataset_id):
            expected.update({leaf.id: leaf.text_hash for leaf in leaves})
    present = {head.id: head for head in resources.index.scan(space, dataset_id)}
    report.points += len(present)
    missing = [i for i in expected if i not in present]
    stale = [i for i, digest in expected.items() if i in present and present[i].text_hash != digest]
    extra = _unknown(resources, [head for i, head in present.items() if i not in expected])
    gone = _unknown_ids(resources, [*missing, *stale])  # deleted since
    missing = [i for i in missing if i not in gone]
    stale = [i for i in stale if i not in gone]
    report.missing += map(str, missing)
    report.stale += map(str, stale)
    report.extra += map(str, extra)
    if not repair:
        return
    for at in range(0, len(missing) + len(stale), _ROWS):
        write_points(resources, dataset_id, [*missing, *stale][at : at + _ROWS])
    for at in range(0, len(extra), _ROWS):
        resources.index.delete(space, extra[at : at + _ROWS], up_to_version=_ANY_VERSION)
    resources.index.flush(space)


def _unknown(resources: Resources, heads: list[PointHead]) -> list[uuid.UUID]:
    """Points that no row stands for; a row is always there before its point."""
    gone = _unknown_ids(resources, [head.id for head in heads])
    return [head.id for head in heads if head.id in gone]


def _unknown_ids(resources: Resources, ids: list[uuid.UUID]) -> set[uuid.UUID]:
    unknown = set(ids)
    with reading(resources.sessions) as session:
        for at in range(0, len(ids), _ROWS):
            part = ids[at : at + _ROWS]
            for table in (Segment, ChildChunk):
                unknown -= set(session.scalars(select(table.id).where(table.id.in_(part))))
    return unknown


def _examine_files(resources: Resources, report: Report, *, repair: bool) -> None:
    # A file is stored before the row that speaks of it: only one that is old enough to have had
    # its row committed counts as an orphan.
    old = set(resources.blobs.keys(older_than_s=_UPLOAD_S))
    with reading(resources.sessions) as session:
        uploads = session.execute(
            select(UploadFile.blob_key, Document.name).join(
                Document, Document.upload_file_id == UploadFile.id
            )
        ).all()
        every = set(session.scalars(select(UploadFile.blob_key)))
        every |= {k for k in session.scalars(select(DocumentVersion.text_key)) if k}
    report.lost_files += [
        f"{name} ({key})"
        for key, name in uploads
        if not resources.blobs.exists(key)
    ]
    report.orphan_files += sorted(old - every)
    if repair:
        for key in report.orphan_files:
            resources.blobs.delete(key)
