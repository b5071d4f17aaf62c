"""Steering: a person pauses, resumes, retries or cancels the work on documents."""

from __future__ import annotations

from kb.errors import InvalidParam
from kb.models import Document, IndexingStatus
from kb.versions import to_queue


def retry(document: Document) -> None:
    """Put a failed document back into the queue; it goes on after its last checkpoint.

    Raises:
        InvalidParam: it has not failed.
    """
    if document.indexing_status is not IndexingStatus.ERROR:
        raise InvalidParam(
            f"document {document.name!r} is {document.indexing_status.value!r}; only documents "
            "in status 'error' can be retried"
        )
    to_queue(document)
