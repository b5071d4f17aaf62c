"""Tags: words that datasets of a workspace are found by; make, rename, delete, bind, unbind."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence

from sqlalchemy import delete, func, insert, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from kb.db import new_id, now
from kb.errors import InvalidParam, NotFound
from kb.models import Dataset, Tag, TagBinding
from kb.resources import Resources

_ROWS = 500  # ids per statement


def list_tags(session: Session, workspace_id: uuid.UUID) -> list[tuple[Tag, int]]:
    """The workspace's tags, newest first, and how many datasets carry each."""
    rows = session.execute(
        select(Tag, func.count(TagBinding.dataset_id))
        .outerjoin(TagBinding, TagBinding.tag_id == Tag.id)
        .where(Tag.workspace_id == workspace_id)
        .group_by(Tag.id)
        .order_by(Tag.created_at.desc(), Tag.id)
    )
    return [(row[0], row[1]) for row in rows]


def count_bindings(session: Session, tag: Tag) -> int:
    """How many datasets carry the tag."""
    counted = select(func.count()).where(TagBinding.tag_id == tag.id)
    return session.scalar(counted) or 0


def add_tag(session: Session, name: str, resources: Resources) -> Tag:
    """Make a tag; its name is unique in the workspace.

    Raises:
        InvalidParam: the name is taken.
    """
    tag = Tag(workspace_id=resources.workspace_id, name=name, created_by=resources.owner_id)
    try:
        with session.begin_nested():
            session.add(tag)
    except IntegrityError as exc:
        raise _taken(name) from exc
    return tag


def get_tag(session: Session, workspace_id: uuid.UUID, tag_id: uuid.UUID) -> Tag:
    """The tag, if it is this workspace's.

    Raises:
        NotFound: it is not there.
    """
    tag = session.get(Tag, tag_id)
    if tag is None or tag.workspace_id != workspace_id:
        raise NotFound("tag", tag_id)
    return tag


def rename_tag(session: Session, tag: Tag, name: str) -> None:
    """Give the tag another name; its datasets keep it.

    Raises:
        InvalidParam: the name is taken.
    """
    try:
        with session.begin_nested():
            tag.name = name
    except IntegrityError as exc:
        raise _taken(name) from exc


def _taken(name: str) -> InvalidParam:
    return InvalidParam(f"a tag named {name!r} exists already; bind that one, or choose another")


def bind_tags(session: Session, dataset: Dataset, tag_ids: Collection[uuid.UUID]) -> None:
    """Have the dataset carry these tags; those that it carries already stay.

    Args:
        dataset: locked.
    Raises:
        NotFound: one of the tags is not this workspace's; then none is bound.
    """
    known: set[uuid.UUID] = set()
    carried: set[uuid.UUID] = set()
    for part in _parts(tag_ids):
        # Held, so that nobody deletes a tag between this look and the commit.
        tags = select(Tag.id).where(Tag.id.in_(part), Tag.workspace_id == dataset.workspace_id)
        known.update(session.scalars(tags.with_for_update(read=True, key_share=True)))
        carried.update(
            session.scalars(
                select(TagBinding.tag_id).where(
                    TagBinding.dataset_id == dataset.id, TagBinding.tag_id.in_(part)
                )
            )
        )
    for tag_id in tag_ids:
        if tag_id not in known:
            raise NotFound("tag", tag_id)
    fresh = [{"tag_id": i, "dataset_id": dataset.id} for i in sorted(known - carried)]
    if fresh:
        session.execute(insert(TagBinding), fresh)


def bind_names(
    session: Session, dataset_id: uuid.UUID, names: Collection[str], resources: Resources
) -> None:
    """Have a new dataset carry tags of these names; those that are missing are made."""
    if not names:
        return
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    made = [
        {
            "id": new_id(),
            "workspace_id": resources.workspace_id,
            "name": name,
            "created_by": resources.owner_id,
            "created_at": now(),
        }
        for name in sorted(set(names))
    ]
    session.execute(dialect.insert(Tag).on_conflict_do_nothing(), made)
    ids = session.scalars(
        select(Tag.id)
        .where(Tag.workspace_id == resources.workspace_id, Tag.name.in_(names))
        .with_for_update(read=True, key_share=True)
    ).all()
    session.execute(insert(TagBinding), [{"tag_id": i, "dataset_id": dataset_id} for i in ids])


def unbind_tags(session: Session, dataset: Dataset, tag_ids: Collection[uuid.UUID]) -> None:
    """Have the dataset carry these tags no more; one that it does not carry is no error."""
    for part in _parts(tag_ids):
        session.execute(
            delete(TagBinding).where(
                TagBinding.dataset_id == dataset.id, TagBinding.tag_id.in_(part)
            )
        )


def tags_of(session: Session, dataset_ids: Collection[uuid.UUID]) -> dict[uuid.UUID, list[Tag]]:
    """The tags of each dataset, by name; all in one statement."""
    found: dict[uuid.UUID, list[Tag]] = {dataset_id: [] for dataset_id in dataset_ids}
    rows = session.execute(
        select(TagBinding.dataset_id, Tag)
        .join(Tag, Tag.id == TagBinding.tag_id)
        .where(TagBinding.dataset_id.in_(dataset_ids))
        .order_by(Tag.name, Tag.id)
    )
    for dataset_id, tag in rows:
        found[dataset_id].append(tag)
    return found


def _parts(ids: Collection[uuid.UUID]) -> list[Sequence[uuid.UUID]]:
    ordered = sorted(set(ids))
    return [ordered[at : at + _ROWS] for at in range(0, len(ordered), _ROWS)]
