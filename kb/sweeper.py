"""The sweeper: announces work whose announcement was lost, and removes old records."""

from __future__ import annotations

import logging
from typing import Any

from sqlalchemy import CursorResult, delete, func, select

from kb.db import moment, reading, transaction
from kb.ingestion.claims import waiting_documents
from kb.jobs import due_jobs
from kb.models import DatasetQuery, DeliveryStatus, PipelineRun, SegmentImport, WebhookDelivery
from kb.ports import Queue
from kb.resources import Resources
from kb.unused_files import remove_unused

log = logging.getLogger("kb.sweeper")

_MESSAGES = 1000
"""Announcements per sweep and queue: enough for any number of workers until the next."""
_DAY_S = 86_400.0
_ROWS = 1000  # rows per DELETE, so that nobody waits long for a lock


def sweep(resources: Resources) -> int:
    """Announce documents that may be worked on but have no message waiting; returns how many.

    Those are new ones whose message was lost, ones to be tried again, and ones whose worker
    died. Messages are interchangeable, so it is their number that counts.
    """
    announced = 0
    for queue in Queue:
        with reading(resources.sessions) as session:
            documents = waiting_documents(session, queue, _MESSAGES)
        messages = resources.jobs.waiting(queue) if documents else 0
        if messages is None:
            continue
        for document_id in documents[messages:]:
            resources.jobs.index_document(document_id, queue)
            announced += 1
    with reading(resources.sessions) as session:
        jobs = due_jobs(session)
    if jobs:
        resources.jobs.run_jobs()
    if announced or jobs:
        log.info("announced again: %d documents, %d jobs", announced, jobs)
    return announced


def clean_up(resources: Resources) -> int:
    """Remove records that are older than they are kept; returns how many."""
    keep = resources.settings.ingestion
    runs = moment(-_DAY_S * keep.keep_runs_days)
    queries = moment(-_DAY_S * keep.keep_queries_days)
    deliveries = moment(-_DAY_S * resources.settings.webhooks.keep_deliveries_days)
    ended = (WebhookDelivery.created_at < deliveries) & (
        WebhookDelivery.status != DeliveryStatus.PENDING
    )
    return (
        _remove(resources, PipelineRun, PipelineRun.finished_at < runs)
        + _remove(resources, DatasetQuery, DatasetQuery.created_at < queries)
        + _remove_surplus_queries(resources, keep.keep_queries)
        + _remove(resources, WebhookDelivery, ended)
        + _remove(resources, SegmentImport, SegmentImport.finished_at < runs)
        + remove_unused(resources)
    )


def _remove_surplus_queries(resources: Resources, keep: int) -> int:
    """Those of each dataset beyond its newest `keep`."""
    with reading(resources.sessions) as session:
        crowded = session.scalars(
            select(DatasetQuery.dataset_id)
            .group_by(DatasetQuery.dataset_id)
            .having(func.count() > keep)
        ).all()
        newest_to_go = {
            dataset_id: session.scalar(
                select(DatasetQuery.created_at)
                .where(DatasetQuery.dataset_id == dataset_id)
                .order_by(DatasetQuery.created_at.desc())
                .offset(keep)
                .limit(1)
            )
            for dataset_id in crowded
        }
    return sum(
        _remove(
            resources,
            DatasetQuery,
            (DatasetQuery.dataset_id == dataset_id) & (DatasetQuery.created_at <= at),
        )
        for dataset_id, at in newest_to_go.items()
    )


def _remove(resources: Resources, table: Any, old: Any) -> int:
    removed = 0
    while True:
        with transaction(resources.sessions) as session:
            ids = session.scalars(select(table.id).where(old).order_by(table.id).limit(_ROWS)).all()
            done = session.execute(delete(table).where(table.id.in_(ids)))
            assert isinstance(done, CursorResult)
        removed += len(ids)
        if len(ids) < _ROWS:
            return removed
