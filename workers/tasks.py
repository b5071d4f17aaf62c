"""The tasks: a name and one call each. They get ids, and may run twice or not at all."""

from __future__ import annotations

import time

from celery import Task

from kb import sweeper
from kb.adapters.celery_queue import CLEAN_UP, INDEX_DOCUMENT, RUN_JOBS, SWEEP
from kb.ports import Queue
from kb.tracing import announced
from workers.app import app, crew, resources

_TURN_S = 5.0


@app.task(name=INDEX_DOCUMENT, bind=True, ignore_result=True)
def index_document(task: Task, document_id: str) -> None:
    """Work on the document whose turn it is in this message's queue; the id is for people."""
    queue = (task.request.delivery_info or {}).get("routing_key")
    # Celery has what the sender put into the headers in either place, depending on its protocol.
    headers = {**(task.request.headers or {}), **vars(task.request)}
    with announced(headers, document_id):
        crew().ingest_next((Queue(queue),) if queue in list(Queue) else tuple(Queue))


@app.task(name=RUN_JOBS)
def run_jobs() -> int:
    """Do the outbox's jobs that are due, for a while; how many there were."""
    done, ends = 0, time.monotonic() + _TURN_S
    while crew().run_next_job():
        done += 1
        if time.monotonic() >= ends:
            resources().jobs.run_jobs()  # after what others have announced meanwhile
            break
    return done


@app.task(name=SWEEP)
def sweep() -> int:
    """Announce work whose announcement was lost; how much there was."""
    return sweeper.sweep(resources())


@app.task(name=CLEAN_UP)
def clean_up() -> int:
    """Remove old records, and let the index do its upkeep; how many records there were."""
    while resources().index.optimize(budget_s=1.0) and not crew().stopping:
        pass
    return sweeper.clean_up(resources())
