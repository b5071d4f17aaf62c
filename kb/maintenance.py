"""What the outbox's jobs do: remove points and blobs, watch drift, rebuild a dataset's points."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from sqlalchemy import func, select, update

from kb.datasets import delete_dataset
from kb.db import exclusive, reading, transaction
from kb.ingestion.embedding_cache import embed_cached
from kb.ingestion.points import Embed, find_leaves, indexed_leaves, restore, unknown_ids
from kb.jobs import ComeAgain, claim_job, enqueue, finish_job, postpone_job, retry_wait_s
from kb.metadata.labels import do_job as label_documents
from kb.metrics import JOBS
from kb.models import IMPORTS_ID, ChildChunk, Dataset, Job, JobKind, Segment
from kb.ports import Space
from kb.resources import Resources, space_of
from kb.spaces import find_space, holds_dataset, spaces_of
from kb.switching import forget_copies, lacking_points, switch_dataset
from kb.webhooks import deliver

log = logging.getLogger("kb.maintenance")

_ANY_VERSION = 2**31 - 1
DRIFT = 1.5
"""A rebuild is due when the true average length is this many times the stored one, or 1/this."""


def run_next_job(
    resources: Resources,
    owner: str,
    kinds: Collection[JobKind] = tuple(JobKind),
    *,
    in_work: set[uuid.UUID] | None = None,
) -> bool:
    """Do one job of these kinds that is due; False: there is none. A failed one comes again.

    Args:
        in_work: holds the job's id while it is done, for whoever renews its lease.
    """
    lease_s = resources.settings.ingestion.lease_s
    job = claim_job(resources.sessions, owner, lease_s=lease_s, kinds=kinds)
    if job is None:
        return False
    under_way = set() if in_work is None else in_work
    under_way.add(job.id)
    try:
        _do(resources, job)
    finally:
        # Also when its end could not be recorded: its lease runs out, and it is done again.
        under_way.discard(job.id)
    return True


def _do(resources: Resources, job: Job) -> None:
    try:
        _DO[job.kind](resources, job.payload)
    except ComeAgain as exc:
        postpone_job(resources.sessions, job, str(exc), until=exc.at, progressed=exc.progressed)
        JOBS.labels(job.kind, "postponed").inc()
    except Exception as exc:  # noqa: BLE001 - a job that fails is kept, with its reason
        log.warning(
            "job %s failed and is tried again in %.0f s: %s",
            job.kind,
            retry_wait_s(job.attempts),
            exc,
        )
        postpone_job(resources.sessions, job, f"{type(exc).__name__}: {exc}")
        JOBS.labels(job.kind, "failed").inc()
    else:
        finish_job(resources.sessions, job.id)
        JOBS.labels(job.kind, "done").inc()


def does(kind: JobKind, work: Callable[[Resources, dict[str, Any]], None]) -> None:
    """Have jobs of a kind done by a module above this one."""
    _DO[kind] = work


def pending_jobs(resources: Resources) -> int:
    """Jobs not done yet."""
    with reading(resources.sessions) as session:
        return session.scalar(select(func.count()).select_from(Job)) or 0


def rebuild_dataset(resources: Resources, dataset_id: uuid.UUID) -> int:
    """Write every point of a dataset anew from SQL and the embedding cache; returns how many.

    The average length becomes the true one. Queries go on meanwhile.
    """
    average = true_average(resources, dataset_id)
    with transaction(resources.sessions) as session:
        # Whoever marks points as written shares this: they are either found below or written anew.
        exclusive(session, f"weights of {dataset_id}", wait_for_ever=True)
        session.execute(
            update(Dataset).where(Dataset.id == dataset_id).values(average_length=average)
        )
        forget_copies(session, dataset_id)
    return write_points(resources, dataset_id, None)


def write_points(resources: Resources, dataset_id: uuid.UUID, ids: list[uuid.UUID] | None) -> int:
    """Write these points of a dataset (None: all) from SQL and the cache; returns how many.

    Only texts that the index has acknowledged before: the others are on their way. Safe while
    documents are ingested, replaced and deleted.
    """
    with reading(resources.sessions) as session:
        dataset = session.get(Dataset, dataset_id)
        space = space_of(dataset) if dataset else None
    if space is None:
        return 0
    resources.index.ensure_space(space)
    embed: Embed | None = None
    if space.dim is not None:
        embedder = resources.embedders(space.name)
        embed = partial(embed_cached, embedder, sessions=resources.sessions)
    pages = indexed_leaves(
        resources.sessions,
        dataset_id=dataset_id,
        ids=ids,
        batch=resources.settings.ingestion.batch_segments,
    )
    written = sum(
        restore(resources.index, resources.sessions, space, dataset_id, leaves, embed)
        for leaves in pages
    )
    with transaction(resources.sessions) as session:
        if find_space(session, dataset_id) == space:
            return written
        # It was switched meanwhile, so all this went to where nobody looks.
        enqueue(
            session,
            JobKind.DELETE_DATASET,
            space=space.name,
            dim=space.dim,
            dataset_id=str(dataset_id),
        )
    return write_points(resources, dataset_id, ids)


def settle_points(resources: Resources, dataset_id: uuid.UUID, ids: list[uuid.UUID]) -> None:
    """Make the index say of these segments and child chunks what SQL says; repeats safely.

    A live text gets its point; what has none (a row that is gone, a parent) loses it. Any number
    of processes may do it for the same ids: whoever writes or deletes looks again afterwards, so
    the last one leaves what SQL says.
    """
    left = ids
    while left:
        write_points(resources, dataset_id, left)
        with reading(resources.sessions) as session:
            gone = sorted(set(left) - find_leaves(session, left).keys())
        if not gone:
            return
        _remove_everywhere(resources, dataset_id, gone, up_to_version=_ANY_VERSION)
        with reading(resources.sessions) as session:
            left = sorted(find_leaves(session, gone))


def true_average(resources: Resources, dataset_id: uuid.UUID) -> float | None:
    """Terms per text of a dataset, at least 1; None: it has no texts."""
    with reading(resources.sessions) as session:
        flat = session.execute(
            select(func.count(), func.sum(Segment.term_count)).where(
                Segment.dataset_id == dataset_id, Segment.has_children.is_(False)
            )
        ).one()
        children = session.execute(
            select(func.count(), func.sum(ChildChunk.term_count)).where(
                ChildChunk.dataset_id == dataset_id
            )
        ).one()
    texts = flat[0] + children[0]
    return max(1.0, ((flat[1] or 0) + (children[1] or 0)) / texts) if texts else None


def _check_drift(resources: Resources, payload: dict[str, Any]) -> None:
    dataset_id = uuid.UUID(payload["dataset_id"])
    average = true_average(resources, dataset_id)
    with transaction(resources.sessions) as session:
        dataset = session.get(Dataset, dataset_id)
        if dataset is None or not dataset.average_length or not average:
            return
        ratio = average / dataset.average_length
        if not 1 / DRIFT <= ratio <= DRIFT:
            enqueue(session, JobKind.REBUILD_DATASET, dataset_id=str(dataset_id))


def _space(payload: dict[str, Any]) -> Space:
    return Space(payload["space"], payload["dim"])


def _spaces(resources: Resources, dataset_id: uuid.UUID | None, *named: Space) -> list[Space]:
    """Those that are named, and those that the dataset lives in or moves to at this moment."""
    spaces = set(named)
    with reading(resources.sessions) as session:
        dataset = session.get(Dataset, dataset_id) if dataset_id else None
        if dataset is not None:
            spaces.update(spaces_of(session, dataset))
    for space in spaces:
        resources.index.ensure_space(space)
    return sorted(spaces, key=lambda space: space.name)


def _remove_everywhere(
    resources: Resources,
    dataset_id: uuid.UUID | None,
    ids: list[uuid.UUID],
    *named: Space,
    up_to_version: int,
) -> None:
    """Delete points wherever the dataset has them; a switch copies again what comes back."""
    spaces = _spaces(resources, dataset_id, *named)
    for space in spaces:
        resources.index.delete(space, ids, up_to_version=up_to_version)
        resources.index.flush(space)
    if dataset_id is not None and len(spaces) > 1:
        with transaction(resources.sessions) as session:
            forget_copies(session, dataset_id, ids)


def _delete_points(resources: Resources, payload: dict[str, Any]) -> None:
    """Remove points whose text is gone. A text that came back keeps its point: the rows say so
    now, and the version does if it comes back in between.

    `owner` is their dataset. A payload with a `dataset_id` was written by a worker that had lost
    its lease: the points of texts that are there are written again, as the rows have them.
    """
    ids = [uuid.UUID(i) for i in payload["ids"]]
    owner = payload.get("owner") or payload.get("dataset_id")
    with reading(resources.sessions) as session:
        gone = unknown_ids(session, ids)
    _remove_everywhere(
        resources,
        uuid.UUID(owner) if owner else None,
        sorted(gone),
        _space(payload),
        up_to_version=payload["up_to_version"],
    )
    if "dataset_id" in payload:
        kept = [i for i in ids if i not in gone]
        write_points(resources, uuid.UUID(payload["dataset_id"]), kept)


def _delete_document(resources: Resources, payload: dict[str, Any]) -> None:
    dataset_id, document_id = uuid.UUID(payload["dataset_id"]), uuid.UUID(payload["document_id"])
    for space in _spaces(resources, dataset_id, _space(payload)):
        resources.index.delete_document(space, dataset_id, document_id)
        resources.index.flush(space)


def _delete_dataset(resources: Resources, payload: dict[str, Any]) -> None:
    """Remove a dataset's points from a space in which it does not live, and moves to neither."""
    space, dataset_id = _space(payload), uuid.UUID(payload["dataset_id"])
    with reading(resources.sessions) as session:
        if holds_dataset(session, space, dataset_id):
            return
    resources.index.ensure_space(space)
    resources.index.delete_dataset(space, dataset_id)
    resources.index.flush(space)


def _delete_blobs(resources: Resources, payload: dict[str, Any]) -> None:
    for key in payload["keys"]:
        resources.blobs.delete(key)


def abandon_import(resources: Resources, payload: dict[str, Any]) -> None:
    """Remove what an import left that ended before its dataset was shown."""
    with transaction(resources.sessions) as session:
        dataset = session.get(Dataset, uuid.UUID(payload["dataset_id"]))
        if dataset is not None and dataset.workspace_id == IMPORTS_ID:
            delete_dataset(session, dataset)
        if payload["keys"]:
            enqueue(session, JobKind.DELETE_BLOBS, keys=payload["keys"])
        if payload["space"] is not None:  # its last points may be without a row
            enqueue(
                session,
                JobKind.DELETE_DATASET,
                space=payload["space"],
                dim=payload["dim"],
                dataset_id=payload["dataset_id"],
            )


def _settle(resources: Resources, payload: dict[str, Any]) -> None:
    ids = [uuid.UUID(i) for i in payload["ids"]]
    settle_points(resources, uuid.UUID(payload["dataset_id"]), ids)


def settle_dataset(resources: Resources, payload: dict[str, Any]) -> None:
    """Make the index say of a whole dataset what SQL says: after a switch, workers that knew its
    old space only may have written or removed there alone.
    """
    dataset_id = uuid.UUID(payload["dataset_id"])
    with reading(resources.sessions) as session:
        space = find_space(session, dataset_id)
    if space is None:
        return
    resources.index.ensure_space(space)
    ids = lacking_points(resources, space, dataset_id)
    if ids:
        log.warning("dataset %s: %d points are written again", dataset_id, len(ids))
        write_points(resources, dataset_id, ids)


def _rebuild(resources: Resources, payload: dict[str, Any]) -> None:
    rebuild_dataset(resources, uuid.UUID(payload["dataset_id"]))


_DO: dict[JobKind, Callable[[Resources, dict[str, Any]], None]] = {
    JobKind.DELETE_POINTS: _delete_points,
    JobKind.DELETE_DOCUMENT: _delete_document,
    JobKind.DELETE_DATASET: _delete_dataset,
    JobKind.DELETE_BLOBS: _delete_blobs,
    JobKind.CHECK_DRIFT: _check_drift,
    JobKind.REBUILD_DATASET: _rebuild,
    JobKind.DELIVER_WEBHOOK: deliver,
    JobKind.ABANDON_IMPORT: abandon_import,
    JobKind.SETTLE_POINTS: _settle,
    JobKind.LABEL_DOCUMENTS: label_documents,
    JobKind.SWITCH_DATASET: switch_dataset,
    JobKind.SETTLE_DATASET: settle_dataset,
}
