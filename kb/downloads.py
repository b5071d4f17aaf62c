"""Files as they were received: signed links to one, and several in a zip."""

from __future__ import annotations

import hmac
import secrets
import time
import uuid
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import PurePosixPath

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from kb.db import Sessions, reading, transaction
from kb.errors import Forbidden, InvalidParam, NotFound
from kb.models import Document, UploadFile, Workspace
from kb.ports import BlobStore
from kb.zip_stream import open_zip

_SECRET_BYTES = 32
_PACKED_ALREADY = frozenset({"pdf", "docx", "xlsx"})


@dataclass(frozen=True)
class Stored:
    """A file that was received, and where its bytes are."""

    id: uuid.UUID
    name: str
    extension: str
    media_type: str | None
    is_text: bool
    blob_key: str

    @staticmethod
    def of(row: UploadFile) -> Stored:
        """As the row has it."""
        return Stored(row.id, row.name, row.extension, row.media_type, row.is_text, row.blob_key)


# --- links ---------------------------------------------------------------------------------------


def link_query(sessions: Sessions, file: UploadFile, *, valid_s: int) -> str:
    """The query string under which the file is given to whoever has it, until `valid_s` from now.

    The signature does not depend on the process: any one of an installation takes it.
    """
    expires = int(time.time()) + valid_s
    signature = _sign(_secret(sessions, file.workspace_id), file.id, expires)
    return f"expires={expires}&signature={signature}"


def open_link(sessions: Sessions, file_id: uuid.UUID, expires: str, signature: str) -> Stored:
    """The file that a link is for.

    Raises:
        NotFound: it is gone.
        Forbidden: the link has expired, or was not made here.
    """
    with reading(sessions) as session:
        row = session.get(UploadFile, file_id)
        if row is None:
            raise NotFound("file", file_id)
        secret = session.scalar(
            select(Workspace.link_secret).where(Workspace.id == row.workspace_id)
        )
        stored = Stored.of(row)
    if not expires.isdecimal() or len(expires) > 12 or secret is None:
        raise Forbidden("the link is not complete; ask the document's download route for a new one")
    known = _sign(secret, file_id, int(expires))
    if not hmac.compare_digest(known.encode(), signature.encode("utf-8", "replace")):
        raise Forbidden("the link was changed; ask the document's download route for a new one")
    if int(expires) < time.time():
        raise Forbidden("the link has expired; ask the document's download route for a new one")
    return stored


def _sign(secret: str, file_id: uuid.UUID, expires: int) -> str:
    return hmac.new(secret.encode(), f"{file_id}.{expires}".encode(), sha256).hexdigest()


def _secret(sessions: Sessions, workspace_id: uuid.UUID) -> str:
    """What links of a workspace are signed with; made when the first one is."""
    mine = Workspace.id == workspace_id
    with reading(sessions) as session:
        known = session.scalar(select(Workspace.link_secret).where(mine))
    if known is not None:
        return known
    with transaction(sessions) as session:  # of two that make one, the second takes the first's
        fresh = secrets.token_hex(_SECRET_BYTES)
        unset = mine & Workspace.link_secret.is_(None)
        session.execute(update(Workspace).where(unset).values(link_secret=fresh))
        return session.scalars(select(Workspace.link_secret).where(mine)).one() or fresh


# --- several files -------------------------------------------------------------------------------


def find_files(
    session: Session, dataset_id: uuid.UUID, document_ids: Sequence[uuid.UUID], blobs: BlobStore
) -> list[Stored]:
    """The files of documents, in the order given, each once.

    Raises:
        NotFound: a document is not in this dataset, or its file is gone.
    """
    rows = session.execute(
        select(Document.id, UploadFile)
        .join(UploadFile, UploadFile.id == Document.upload_file_id)
        .where(Document.dataset_id == dataset_id, Document.id.in_(document_ids))
    )
    found = {row[0]: Stored.of(row[1]) for row in rows}
    for document_id in document_ids:
        if document_id not in found:
            raise NotFound("document", document_id)
        if not blobs.exists(found[document_id].blob_key):
            raise NotFound("file", found[document_id].name)
    return [found[document_id] for document_id in dict.fromkeys(document_ids)]


def zip_files(files: Sequence[Stored], blobs: BlobStore) -> Iterator[bytes]:
    """A zip of the files, made while it is sent: one of them is held in memory at a time."""
    zipped, outlet = open_zip()
    for name, file in zip(unique_names([file.name for file in files]), files, strict=True):
        packed = file.extension in _PACKED_ALREADY
        info = zipfile.ZipInfo(name, time.localtime()[:6])
        info.external_attr = 0o644 << 16
        info.compress_type = zipfile.ZIP_STORED if packed else zipfile.ZIP_DEFLATED
        zipped.writestr(info, blobs.get(file.blob_key))
        yield from outlet.take()
    zipped.close()
    yield from outlet.take()


def unique_names(names: Sequence[str]) -> list[str]:
    """The names, with ` (1)`, ` (2)` ... before the extension where one comes again.

    Case does not tell names apart: some file systems do not look at it.
    """
    used: set[str] = set()
    unique: list[str] = []
    for name in names:
        path = PurePosixPath(name)
        candidate, number = name, 0
        while candidate.lower() in used:
            number += 1
            candidate = f"{path.stem} ({number}){path.suffix}"
        used.add(candidate.lower())
        unique.append(candidate)
    return unique


def checked_count(document_ids: Sequence[object], *, most: int) -> None:
    """Raises: InvalidParam: none, or more than `most`."""
    if not 1 <= len(document_ids) <= most:
        raise InvalidParam(
            f"document_ids has {len(document_ids)} entries; send 1 to {most} ids of documents"
        )
