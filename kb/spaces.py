"""Spaces of a dataset: the one that answers, and the one that a running switch fills."""

from __future__ import annotations

import uuid

from sqlalchemy import select
from sqlalchemy.orm import Session

from kb.models import Dataset, DatasetSwitch, SwitchStatus
from kb.ports import Space
from kb.resources import space_of


def target_of(switch: DatasetSwitch) -> Space:
    """The space that a switch fills."""
    return Space(switch.space_name, switch.space_dim)


def origin_of(switch: DatasetSwitch) -> Space:
    """The space that answered when a switch began."""
    return Space(switch.from_space_name, switch.from_space_dim)


def find_space(session: Session, dataset_id: uuid.UUID) -> Space | None:
    """The space that a dataset answers from at this moment; None: it is gone, or has none yet."""
    row = session.execute(
        select(Dataset.indexing_technique, Dataset.space_name, Dataset.space_dim).where(
            Dataset.id == dataset_id
        )
    ).one_or_none()
    if row is None or row.indexing_technique is None or row.space_name is None:
        return None
    return Space(row.space_name, row.space_dim)


def find_running(session: Session, dataset_id: uuid.UUID) -> DatasetSwitch | None:
    """The switch that is under way, or None."""
    return session.scalar(
        select(DatasetSwitch).where(
            DatasetSwitch.dataset_id == dataset_id, DatasetSwitch.status == SwitchStatus.RUNNING
        )
    )


def spaces_of(session: Session, dataset: Dataset) -> list[Space]:
    """Every space that a point of the dataset may have to be removed from: first its own."""
    own, switch = space_of(dataset), find_running(session, dataset.id)
    spaces = [own] if own is not None else []
    return [*spaces, target_of(switch)] if switch is not None else spaces


def all_spaces_of(session: Session, dataset: Dataset) -> list[Space]:
    """Also those that an ended switch has not cleaned up yet."""
    own = space_of(dataset)
    left = session.scalars(
        select(DatasetSwitch).where(
            DatasetSwitch.dataset_id == dataset.id, DatasetSwitch.cleaned.is_(False)
        )
    )
    spaces = {target_of(switch) for switch in left} | ({own} if own is not None else set())
    return sorted(spaces, key=lambda space: space.name)


def holds_dataset(session: Session, space: Space, dataset_id: uuid.UUID) -> bool:
    """Whether points of the dataset belong into the space, now or soon."""
    dataset = session.get(Dataset, dataset_id)
    return dataset is not None and space in spaces_of(session, dataset)
