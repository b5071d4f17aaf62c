"""Files that were uploaded for pipeline runs: removed when no document came to use them."""

from __future__ import annotations

from sqlalchemy import exists, select

from kb.db import moment, transaction
from kb.jobs import enqueue
from kb.models import DocumentVersion, JobKind, UploadFile
from kb.resources import Resources

FOLDER = "pipeline"
"""First part of the keys of these files' blobs."""

_HOUR_S = 3600.0
_ROWS = 1000  # per transaction


def remove_unused(resources: Resources) -> int:
    """Remove files older than KB_LIMITS__PIPELINE_FILE_HOURS that no document's version has.

    Their bytes follow by a job. Returns how many files.
    """
    removed = 0
    while found := _remove_some(resources):
        removed += found
    return removed


def _remove_some(resources: Resources) -> int:
    before = moment(-_HOUR_S * resources.settings.limits.pipeline_file_hours)
    used = exists().where(DocumentVersion.upload_file_id == UploadFile.id)
    unused = (
        select(UploadFile)
        .where(UploadFile.blob_key.startswith(f"{FOLDER}/"), UploadFile.created_at < before, ~used)
        .limit(_ROWS)
    )
    with transaction(resources.sessions) as session:
        rows = session.scalars(unused).all()
        for row in rows:
            session.delete(row)
        if rows:
            enqueue(session, JobKind.DELETE_BLOBS, keys=[row.blob_key for row in rows])
    return len(rows)
