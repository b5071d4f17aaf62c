"""What jobs that are written down will see to: it is no finding."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from kb.doctor.texts import Text
from kb.models import DatasetSwitch, Job, JobKind, SwitchStatus
from kb.ports import PointHead, Space


@dataclass(frozen=True)
class Due:
    """What will be removed (points, documents, datasets, blob keys), weighed anew (datasets), or
    made what SQL says (`unsettled`: points, `labelled`: documents, or datasets whole)."""

    points: frozenset[str]
    documents: frozenset[str]
    datasets: frozenset[str]
    keys: frozenset[str]
    weights: frozenset[str]
    unsettled: frozenset[str]
    labelled: frozenset[str]
    moving: frozenset[tuple[str, str]]
    """Space and dataset: a switch copies there, or will remove what it has copied."""

    def removes(self, head: PointHead) -> bool:
        """Whether a job will remove the point."""
        return (
            str(head.id) in self.points
            or str(head.document_id) in self.documents
            or str(head.dataset_id) in self.datasets
        )

    def moves(self, space: Space, head: PointHead) -> bool:
        """Whether a switch answers for the dataset's points in this space."""
        return (space.name, str(head.dataset_id)) in self.moving

    def weighs(self, dataset_id: uuid.UUID) -> bool:
        """Whether a job looks at the dataset's average length, and may write all its points."""
        return str(dataset_id) in self.weights

    def labels(self, text: Text) -> bool:
        """Whether a job will give the text's point the metadata of its document."""
        return not self.labelled.isdisjoint((str(text.dataset_id), str(text.document_id)))


def due_work(session: Session) -> Due:
    """What the outbox holds at this moment."""
    jobs = session.execute(select(Job.kind, Job.payload)).all()
    of_kind = {kind: [row[1] for row in jobs if row[0] is kind] for kind in JobKind}
    imports = of_kind[JobKind.ABANDON_IMPORT]
    switches = session.execute(
        select(DatasetSwitch.space_name, DatasetSwitch.dataset_id).where(
            DatasetSwitch.cleaned.is_(False), DatasetSwitch.status != SwitchStatus.COMPLETED
        )
    )
    weighing = of_kind[JobKind.CHECK_DRIFT] + of_kind[JobKind.REBUILD_DATASET] + imports
    return Due(
        points=frozenset(i for p in of_kind[JobKind.DELETE_POINTS] for i in p["ids"]),
        documents=frozenset(p["document_id"] for p in of_kind[JobKind.DELETE_DOCUMENT]),
        datasets=frozenset(p["dataset_id"] for p in of_kind[JobKind.DELETE_DATASET] + imports),
        keys=frozenset(key for p in of_kind[JobKind.DELETE_BLOBS] + imports for key in p["keys"]),
        weights=frozenset(p["dataset_id"] for p in weighing),
        labelled=frozenset(
            i for p in of_kind[JobKind.LABEL_DOCUMENTS] for i in p["documents"] or [p["dataset_id"]]
        ),
        unsettled=frozenset(i for p in of_kind[JobKind.SETTLE_POINTS] for i in p["ids"]),
        moving=frozenset((row[0], str(row[1])) for row in switches),
    )
