"""Datasets with waiting documents: the rows that claims look at, and no others."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.orm import Session

from kb.db import Sessions, now, transaction
from kb.ingestion.claims import Claim, claim_next
from kb.models import Dataset, Document, DocumentVersion, IndexingStatus, UploadFile, Workspace
from kb.ports import Queue
from kb.resources import Resources

LEASE_S = 60.0
_COMPLETED = {
    "indexing_status": IndexingStatus.COMPLETED,
    "pending_version": None,
    "version": 1,
    "lease_owner": None,
    "lease_expires_at": None,
    "attempts": 0,
}


class Shelf:
    """Datasets with waiting documents; the rows that claims look at and no others."""

    def __init__(self, resources: Resources) -> None:
        self.sessions: Sessions = resources.sessions
        self._workspace = resources.workspace_id
        self._owner = resources.owner_id
        self._at = now() - timedelta(hours=1)
        self.names: dict[uuid.UUID, str] = {}

    def workspace(self, name: str) -> uuid.UUID:
        with transaction(self.sessions) as session:
            row = Workspace(name=name)
            session.add(row)
        return row.id

    def add(
        self,
        name: str,
        documents: int,
        *,
        queue: Queue = Queue.BULK,
        workspace: uuid.UUID | None = None,
        **row: Any,
    ) -> uuid.UUID:
        """A dataset with so many waiting documents, queued after all that there are."""
        with transaction(self.sessions) as session:
            return self._add(session, name, documents, queue, workspace or self._workspace, row)

    def add_many(self, datasets: int, documents: int) -> None:
        """So many datasets with so many waiting documents each."""
        with transaction(self.sessions) as session:
            for _ in range(datasets):
                self._add(
                    session, f"d{len(self.names)}", documents, Queue.BULK, self._workspace, {}
                )

    def _add(
        self,
        session: Session,
        name: str,
        documents: int,
        queue: Queue,
        workspace: uuid.UUID,
        row: dict[str, Any],
    ) -> uuid.UUID:
        dataset_id, file_id = uuid.uuid4(), uuid.uuid4()
        self.names[dataset_id] = name
        rows = [
            {
                "id": uuid.uuid4(),
                "dataset_id": dataset_id,
                "position": number,
                "name": f"{name} {number}",
                "batch": "1",
                "upload_file_id": file_id,
                "created_by": self._owner,
                "pending_version": 1,
                "indexing_status": IndexingStatus.WAITING,
                "queue": queue,
                "queued_at": self._later(),
                **row,
            }
            for number in range(1, documents + 1)
        ]
        session.add(
            Dataset(id=dataset_id, workspace_id=workspace, name=name, created_by=self._owner)
        )
        session.add(
            UploadFile(
                id=file_id,
                workspace_id=workspace,
                name="f",
                size_bytes=1,
                extension="txt",
                sha256="0" * 64,
                blob_key=f"uploads/{file_id}",
                created_by=self._owner,
            )
        )
        session.flush()
        session.execute(insert(Document), rows)
        session.execute(
            insert(DocumentVersion),
            [{"document_id": r["id"], "number": 1, "upload_file_id": file_id} for r in rows],
        )
        return dataset_id

    def _later(self) -> Any:
        self._at += timedelta(milliseconds=1)
        return self._at

    def claim(self, owner: str = "w", queues: Sequence[Queue] = (Queue.BULK,)) -> Claim | None:
        return claim_next(self.sessions, owner, lease_s=LEASE_S, queues=queues)

    def finish(self, claim: Claim) -> None:
        with transaction(self.sessions) as session:
            session.execute(
                update(Document).where(Document.id == claim.document_id).values(_COMPLETED)
            )

    def finish_all_but(self, documents: int) -> None:
        """Complete what waits, but for the newest so many documents of each dataset."""
        for dataset_id in self.names:
            with transaction(self.sessions) as session:
                waiting = (
                    select(Document.id)
                    .where(Document.dataset_id == dataset_id, Document.version == 0)
                    .order_by(Document.position.desc())
                )
                kept = session.scalars(waiting.limit(documents)).all()
                session.execute(
                    update(Document)
                    .where(Document.dataset_id == dataset_id, Document.id.not_in(kept))
                    .values(_COMPLETED)
                    .execution_options(synchronize_session=False)
                )

    def served(self, count: int, owner: str = "w") -> str:
        """The names of the datasets that one worker serves, in order."""
        names = []
        for _ in range(count):
            claim = self.claim(owner)
            if claim is None:
                break
            names.append(self.names[claim.dataset_id])
            self.finish(claim)
        return "".join(names)
