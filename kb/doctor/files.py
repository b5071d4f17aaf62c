"""Are the files there that rows speak of, and no others?"""

from __future__ import annotations

import uuid
from array import array
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b, sha256
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select
from sqlalchemy.orm import Session

from kb.db import reading
from kb.doctor.due import due_work
from kb.doctor.report import Kind, Report
from kb.errors import NotFound
from kb.models import Document, DocumentVersion, UploadFile, text_key
from kb.resources import Resources

_ROWS = 500
_UPLOAD_S = 3600.0
"""Longer than any upload takes from its file to its commit."""


def examine_files(resources: Resources, report: Report) -> None:
    """Find files that are lost, damaged (deep) or nobody's; with `report.repaired`, remove those.

    The store is listed instead of asked for every file: eight bytes of memory per file.
    """
    there = _Keys(resources.blobs.keys())
    for rows in _needed(resources):
        lost = [key for key in rows if key not in there and not resources.blobs.exists(key)]
        damaged = _damaged(resources, rows, lost) if report.deep else []
        for kind, keys in ((Kind.LOST_FILES, lost), (Kind.DAMAGED_FILES, damaged)):
            for key in _still_needed(resources, keys):
                report.add(kind, f"{rows[key][0]} ({key})")
    # A file is stored before the row that speaks of it: only one that is old enough to have had
    # its row committed counts as an orphan.
    for keys in _parts(resources.blobs.keys(older_than_s=_UPLOAD_S)):
        for key in _orphans(resources, keys):
            report.add(Kind.ORPHAN_FILES, key)
            if report.repaired:
                resources.blobs.delete(key)


class _Keys:
    """A set of keys that takes 8 bytes for each; sure when it says no."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._sorted: NDArray[np.uint64] = np.sort(
            np.frombuffer(array("Q", map(_number, keys)), dtype=np.uint64)
        )

    def __contains__(self, key: str) -> bool:
        number = np.uint64(_number(key))
        at = int(np.searchsorted(self._sorted, number))
        return at < len(self._sorted) and bool(self._sorted[at] == number)


def _number(key: str) -> int:
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest())


def _needed(resources: Resources) -> Iterator[dict[str, tuple[str, str | None]]]:
    """Blob key of every present file and every text that answers now -> the document's name, and
    the SHA-256 of a file; some documents at a time."""
    after = uuid.UUID(int=0)
    while True:
        with reading(resources.sessions) as session:
            rows = session.execute(
                select(Document.id, Document.name, UploadFile.blob_key, UploadFile.sha256)
                .join(UploadFile, UploadFile.id == Document.upload_file_id)
                .where(Document.id > after)
                .order_by(Document.id)
                .limit(_ROWS)
            ).all()
            found: dict[str, tuple[str, str | None]] = {r[2]: (r[1], r[3]) for r in rows}
            texts = session.execute(_live_texts().where(Document.id.in_([r[0] for r in rows])))
            found.update({row[0]: (row[1], None) for row in texts})
        if not rows:
            return
        yield found
        after = rows[-1][0]


def _live_texts() -> Any:
    return (
        select(DocumentVersion.text_key, Document.name)
        .join(Document, Document.id == DocumentVersion.document_id)
        .where(DocumentVersion.number == Document.version, DocumentVersion.text_key.is_not(None))
    )


def _damaged(
    resources: Resources, rows: dict[str, tuple[str, str | None]], lost: Sequence[str]
) -> list[str]:
    damaged = []
    for key, (_, digest) in rows.items():
        if digest is None or key in lost:
            continue
        try:
            data = resources.blobs.get(key)
        except NotFound:  # deleted since
            continue
        if sha256(data).hexdigest() != digest:
            damaged.append(key)
    return damaged


def _still_needed(resources: Resources, keys: Sequence[str]) -> list[str]:
    """Those of these keys that a row speaks of still: what was deleted since is not lost."""
    if not keys:
        return []
    with reading(resources.sessions) as session:
        known = set(
            session.scalars(
                select(UploadFile.blob_key)
                .join(Document, Document.upload_file_id == UploadFile.id)
                .where(UploadFile.blob_key.in_(keys))
            )
        )
        known.update(
            row[0]
            for row in session.execute(_live_texts().where(DocumentVersion.text_key.in_(keys)))
        )
    return [key for key in sorted(keys) if key in known]


def _orphans(resources: Resources, keys: Sequence[str]) -> list[str]:
    """Those of these keys that no row and no job speaks of."""
    with reading(resources.sessions) as session:
        known = set(
            session.scalars(select(UploadFile.blob_key).where(UploadFile.blob_key.in_(keys)))
        )
        known.update(
            key
            for key in session.scalars(
                select(DocumentVersion.text_key).where(DocumentVersion.text_key.in_(keys))
            )
            if key
        )
        known |= _in_preparation(session, [key for key in keys if key not in known])
        if not known.issuperset(keys):
            known |= due_work(session).keys
    return [key for key in keys if key not in known and resources.blobs.exists(key)]


def _in_preparation(session: Session, keys: Sequence[str]) -> set[str]:
    """Texts put by a worker, or by one that died, and put again, before their row is written."""
    documents = {key.split("/")[1]: key for key in keys if key.startswith("texts/")}
    ids = [found for text in documents if (found := _uuid(text)) is not None]
    if not ids:
        return set()
    return {
        text_key(document_id, version)
        for document_id, version in session.execute(
            select(Document.id, Document.pending_version).where(Document.id.in_(ids))
        )
        if version is not None
    }


def _parts(keys: Iterator[str]) -> Iterator[list[str]]:
    while part := list(islice(keys, _ROWS)):
        yield part


def _uuid(text: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(text)
    except ValueError:
        return None
