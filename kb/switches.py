"""Switches: a dataset with documents gets another embedding model or indexing technique.

Started here and cancelled here; `kb.switching` does the work.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, or_, select, update
from sqlalchemy.orm import Session

from kb.db import after_commit, moment
from kb.errors import Conflict, InvalidParam, NotFound
from kb.jobs import enqueue
from kb.models import (
    ChildChunk,
    Dataset,
    DatasetSwitch,
    DocForm,
    IndexingTechnique,
    Job,
    JobKind,
    Segment,
    SwitchPoint,
    SwitchStatus,
)
from kb.resources import Resources, space_of


@dataclass(frozen=True)
class Wanted:
    """How a dataset shall be indexed; names as in `kb.models.Dataset`."""

    technique: IndexingTechnique
    model: str | None
    provider: str | None
    space_name: str
    space_dim: int | None

    @staticmethod
    def of(dataset: Dataset) -> Wanted:
        """As a dataset says that it is."""
        space, technique = space_of(dataset), dataset.indexing_technique
        assert space is not None
        assert technique is not None
        return Wanted(
            technique,
            dataset.embedding_model,
            dataset.embedding_model_provider,
            space.name,
            space.dim,
        )

    def __str__(self) -> str:
        named = f" with {self.model!r} of {self.provider!r}" if self.model else ""
        return f"{self.technique.value!r}{named}"


def check_target(dataset: Dataset, running: DatasetSwitch, wanted: Wanted) -> None:
    """Refuse a change while a switch to something else is under way.

    Raises:
        Conflict: it is.
    """
    under_way = wanted_by(running)
    if (under_way.technique, under_way.space_name) == (wanted.technique, wanted.space_name):
        return
    raise Conflict(
        f"dataset {dataset.name!r} is being switched to {under_way} already; let it end (GET "
        f"/v1/datasets/{dataset.id}/switch), or cancel it (DELETE there), then ask for {wanted}"
    )


def wanted_by(switch: DatasetSwitch) -> Wanted:
    """What a switch leads to."""
    return Wanted(
        IndexingTechnique(switch.technique),
        switch.embedding_model,
        switch.embedding_model_provider,
        switch.space_name,
        switch.space_dim,
    )


def start_switch(
    session: Session, dataset: Dataset, wanted: Wanted, resources: Resources
) -> DatasetSwitch:
    """Begin to copy the dataset's texts into another space; it answers as before until the end.

    Args:
        dataset: locked; no other switch of it is under way.
    Raises:
        InvalidParam: its documents cannot be indexed so.
    """
    if dataset.doc_form is DocForm.HIERARCHICAL and wanted.technique is IndexingTechnique.ECONOMY:
        raise InvalidParam(
            f"dataset {dataset.name!r} holds documents of doc_form 'hierarchical_model', which "
            "need indexing_technique 'high_quality'; leave the technique, or create another dataset"
        )
    before = Wanted.of(dataset)
    at: Any = moment()
    switch = DatasetSwitch(
        id=uuid.uuid4(),
        dataset_id=dataset.id,
        technique=wanted.technique,
        embedding_model=wanted.model,
        embedding_model_provider=wanted.provider,
        space_name=wanted.space_name,
        space_dim=wanted.space_dim,
        from_technique=before.technique,
        from_model=before.model,
        from_provider=before.provider,
        from_space_name=before.space_name,
        from_space_dim=before.space_dim,
        created_by=resources.owner_id,
        progress_at=at,  # on the database's clock, as all that is compared with it
    )
    session.add(switch)
    session.flush()
    enqueue(session, JobKind.SWITCH_DATASET, switch_id=str(switch.id), dataset_id=str(dataset.id))
    after_commit(session, resources.jobs.run_jobs)
    return switch


def newest_switch(session: Session, dataset: Dataset) -> DatasetSwitch:
    """The dataset's switch that was started last.

    Raises:
        NotFound: it was never switched.
    """
    switch = session.scalar(
        select(DatasetSwitch)
        .where(DatasetSwitch.dataset_id == dataset.id)
        .order_by(DatasetSwitch.created_at.desc(), DatasetSwitch.id)
        .limit(1)
    )
    if switch is None:
        raise NotFound("switch of dataset", dataset.name)
    return switch


def list_switches(
    session: Session,
    workspace_id: uuid.UUID,
    *,
    page: int,
    limit: int,
    status: SwitchStatus | None = None,
    only: uuid.UUID | None = None,
) -> tuple[Sequence[DatasetSwitch], int]:
    """A page of the workspace's switches, newest first, and how many there are in all.

    Args:
        only: those of this dataset.
    """
    where = [Dataset.workspace_id == workspace_id]
    if status is not None:
        where.append(DatasetSwitch.status == status)
    if only is not None:
        where.append(Dataset.id == only)
    mine = select(DatasetSwitch).join(Dataset, Dataset.id == DatasetSwitch.dataset_id).where(*where)
    total = session.scalar(select(func.count()).select_from(mine.subquery())) or 0
    ordered = mine.order_by(DatasetSwitch.created_at.desc(), DatasetSwitch.id)
    return session.scalars(ordered.offset((page - 1) * limit).limit(limit)).all(), total


def cancel_switch(session: Session, dataset: Dataset, resources: Resources) -> DatasetSwitch:
    """End the running switch; the dataset stays as it is, and what was copied is removed.

    One that was cancelled before is no error.

    Args:
        dataset: locked.
    Raises:
        NotFound: the dataset was never switched.
        Conflict: it has ended already.
    """
    switch = newest_switch(session, dataset)
    session.refresh(switch, with_for_update=True)
    if switch.status is SwitchStatus.CANCELLED:
        return switch
    if switch.status is not SwitchStatus.RUNNING:
        raise Conflict(
            f"the switch of dataset {dataset.name!r} to {wanted_by(switch)} is "
            f"{switch.status.value!r} already; to change it again, send PATCH /v1/datasets/"
            f"{dataset.id}"
        )
    end_switch(session, switch, SwitchStatus.CANCELLED)
    # It may wait for its next try; what it copied is removed now.
    for job in session.scalars(select(Job).where(Job.kind == JobKind.SWITCH_DATASET)):
        if job.payload["switch_id"] == str(switch.id):
            session.execute(update(Job).where(Job.id == job.id).values(not_before=moment()))
    after_commit(session, resources.jobs.run_jobs)
    return switch


def end_switch(session: Session, switch: DatasetSwitch, status: SwitchStatus) -> None:
    """Write down how a switch ended, and how far it had got."""
    progress = progress_of(session, switch)
    session.execute(
        update(DatasetSwitch)
        .where(DatasetSwitch.id == switch.id)
        .values(
            status=status,
            finished_at=moment(),
            retry_at=None,
            done=progress.done,
            total=progress.total,
        )
        .execution_options(synchronize_session=False)
    )
    session.refresh(switch)


@dataclass(frozen=True)
class SwitchProgress:
    """Texts in the new space, and texts that belong there."""

    done: int
    total: int


def progress_of(session: Session, switch: DatasetSwitch) -> SwitchProgress:
    """How far a switch is, or had got at its end."""
    if switch.total is not None:
        return SwitchProgress(switch.done or 0, switch.total)
    copied = session.scalar(select(func.count()).where(SwitchPoint.switch_id == switch.id)) or 0
    total = _count_indexed(session, switch.dataset_id)
    return SwitchProgress(min(copied, total), total)


def _count_indexed(session: Session, dataset_id: uuid.UUID) -> int:
    """Texts that the index has acknowledged: segments without children, and child chunks."""
    flat = select(func.count()).where(
        Segment.dataset_id == dataset_id,
        Segment.has_children.is_(False),
        or_(Segment.live, Segment.indexed_at.is_not(None)),
    )
    children = select(func.count()).where(
        ChildChunk.dataset_id == dataset_id,
        or_(ChildChunk.live, ChildChunk.indexed_at.is_not(None)),
    )
    return (session.scalar(flat) or 0) + (session.scalar(children) or 0)
