"""Listings of documents: a page of them, however large the dataset is."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, Integer, Select, bindparam, func, select, text
from sqlalchemy.orm import Session, aliased

from kb.document_status import DisplayStatus, displayed_as
from kb.models import HAS_HITS_SQL, Document, Segment, UploadFile

_MEANS = {"active": DisplayStatus.AVAILABLE, "enabled": DisplayStatus.AVAILABLE}


@dataclass(frozen=True)
class Listed:
    """A document of a page.

    Attributes:
        hits: of its live segments, together.
    """

    document: Document
    upload: UploadFile | None
    hits: int


def list_documents(
    session: Session,
    dataset_id: uuid.UUID,
    *,
    page: int,
    limit: int,
    keyword: str | None = None,
    status: str | None = None,
) -> tuple[list[Listed], int]:
    """A page of documents, newest first, and how many match in all.

    Args:
        keyword: part of the name.
        status: a display status (`active` and `enabled` mean `available`); others are ignored.
    """
    asked = {"dataset_id": dataset_id, "pattern": _pattern(keyword or "")}
    count, read = _statements(_display_status(status), bool(keyword))
    total = session.scalar(count, asked) or 0
    skipped = (page - 1) * limit
    if skipped >= total:
        return [], total
    rows = session.execute(read, asked | {"rows": limit, "skipped": skipped})
    return [Listed(*row) for row in rows], total


def _display_status(asked: str | None) -> DisplayStatus | None:
    if asked in _MEANS:
        return _MEANS[asked]
    return DisplayStatus(asked) if asked in set(DisplayStatus) else None


def _pattern(keyword: str) -> str:
    """For LIKE, in which no character of the keyword has a meaning."""
    for special in ("/", "%", "_"):
        keyword = keyword.replace(special, f"/{special}")
    return f"%{keyword}%"


@cache
def _statements(status: DisplayStatus | None, by_name: bool) -> tuple[Select[Any], Select[Any]]:
    """What counts the documents, and what reads a page of them.

    Built once: building them takes longer than the database needs for them. Their parameters are
    `dataset_id`, `pattern` if `by_name`, `rows` and `skipped`.
    """
    where: list[ColumnElement[bool]] = [Document.dataset_id == bindparam("dataset_id")]
    if by_name:
        where.append(Document.name.like(bindparam("pattern"), escape="/"))
    if status is not None:
        where.append(displayed_as(status))
    # Which ones is read off an index; only their own rows are looked at then.
    ids = (
        select(Document.id)
        .where(*where)
        .order_by(Document.created_at.desc(), Document.position.desc())
        .offset(bindparam("skipped", type_=Integer))
        .limit(bindparam("rows", type_=Integer))
        .subquery()
    )
    listed = aliased(Document)
    hits = (
        select(func.coalesce(func.sum(Segment.hit_count), 0))
        .where(Segment.document_id == listed.id, Segment.live, text(HAS_HITS_SQL))
        .scalar_subquery()
    )
    read = (
        select(listed, UploadFile, hits)
        .join(ids, ids.c.id == listed.id)
        .outerjoin(UploadFile, UploadFile.id == listed.upload_file_id)
        .order_by(listed.created_at.desc(), listed.position.desc())
    )
    return select(func.count()).select_from(Document).where(*where), read
