"""The work of a switch: copy a dataset's texts into its new space, then answer from there.

A job drives it, a few batches at a time; what is done stands in SQL, so any process may go on at
any moment. See `docs/adr/0013-a-dataset-switches-its-space.md` for the states.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Sequence
from functools import partial
from typing import Any

from sqlalchemy import delete, exists, select, update
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.orm import Session

from kb.db import exclusive, moment, reading, shared, transaction
from kb.errors import KBError, Unavailable
from kb.ingestion.claims import hold_dataset
from kb.ingestion.embedding_cache import embed_cached
from kb.ingestion.points import (
    Embed,
    Leaf,
    find_average,
    find_leaves,
    indexed_leaves,
    missing_leaves,
    remove,
    unknown_ids,
    write_leaves,
)
from kb.jobs import LATE_S, ComeAgain, enqueue, may_be_written
from kb.models import (
    Dataset,
    DatasetSwitch,
    Document,
    IndexingTechnique,
    Job,
    JobKind,
    SwitchPoint,
    SwitchStatus,
)
from kb.ports import PointHead, Space
from kb.resources import Resources
from kb.spaces import find_running, holds_dataset, origin_of, target_of
from kb.switches import end_switch
from pipelines.errors import PipelineError, TransientError

log = logging.getLogger("kb.switching")

_SLICE_S = 2.0
"""A job works so long, then other jobs have their turn."""
_WAIT_S = 0.2
_ROWS = 500


class _Ended(Exception):
    """The switch was cancelled, or its dataset deleted, while a batch was in work."""


def switch_dataset(resources: Resources, payload: dict[str, Any]) -> None:
    """Bring a switch further, or clean up after one that has ended.

    Raises:
        ComeAgain: there is more to do.
    """
    switch_id = uuid.UUID(payload["switch_id"])
    switch = _find(resources, switch_id)
    if switch is not None and switch.status is SwitchStatus.RUNNING:
        try:
            _run(resources, switch)
        except _Ended:
            log.info("switch %s was ended", switch_id)
        except (ComeAgain, OperationalError, InterfaceError):  # the database is away, too
            raise
        except Exception as exc:  # noqa: BLE001 - the one place that records any failure
            _failed(resources, switch, exc)
    switch = _find(resources, switch_id)
    if switch is not None:
        _clean(resources, switch)


def _find(resources: Resources, switch_id: uuid.UUID) -> DatasetSwitch | None:
    with reading(resources.sessions) as session:
        return session.get(DatasetSwitch, switch_id)


# --- copying -------------------------------------------------------------------------------------


def _run(resources: Resources, switch: DatasetSwitch) -> None:
    """Work for a while; the switch is completed when this returns.

    Raises:
        ComeAgain: there is more to do.
        _Ended: somebody ended it.
    """
    target = target_of(switch)
    _wait_for_leftovers(resources, switch, target)
    resources.index.ensure_space(target)
    embed = _embed(resources, target)
    cursor, ends = switch.cursor, time.monotonic() + _SLICE_S
    verified = switch.verified
    while True:
        with reading(resources.sessions) as session:
            leaves = missing_leaves(
                session,
                switch.id,
                switch.dataset_id,
                after=cursor,
                limit=resources.settings.ingestion.batch_segments,
            )
        if leaves:
            _copy(resources, switch, target, leaves, embed)
            cursor = leaves[-1].id
        elif cursor is not None:
            cursor = None  # once more, for what changed behind it
            _note(resources, switch, cursor=None)
        elif not verified:
            _verify(resources, switch, target)
            verified = True
            _note(resources, switch, verified=True)
        elif _finish(resources, switch):
            return
        if time.monotonic() >= ends:
            raise ComeAgain(moment(), "more is to be copied", progressed=True)


def _embed(resources: Resources, space: Space) -> Embed | None:
    if space.dim is None:
        return None
    embedder = resources.embedders(space.name)
    return partial(embed_cached, embedder, sessions=resources.sessions)


def _wait_for_leftovers(resources: Resources, switch: DatasetSwitch, target: Space) -> None:
    """What is still to be removed from the target of an earlier time is removed first.

    Raises:
        ComeAgain: it is not yet.
    """
    with reading(resources.sessions) as session:
        other = exists().where(
            DatasetSwitch.dataset_id == switch.dataset_id,
            DatasetSwitch.id != switch.id,
            DatasetSwitch.cleaned.is_(False),
        )
        deletes = session.scalars(
            select(Job.payload).where(Job.kind == JobKind.DELETE_DATASET)
        ).all()
        waits = session.scalar(select(other)) or any(
            (p["space"], p["dataset_id"]) == (target.name, str(switch.dataset_id)) for p in deletes
        )
    if waits:
        raise ComeAgain(moment(_WAIT_S), "points of an earlier switch are to be removed first")


def _copy(
    resources: Resources,
    switch: DatasetSwitch,
    target: Space,
    leaves: Sequence[Leaf],
    embed: Embed | None,
) -> None:
    """Write a batch into the new space, and note those texts that are still as they were read.

    Raises:
        _Ended: the switch has ended; what was written here is taken back.
    """
    with reading(resources.sessions) as session:
        average = find_average(session, switch.dataset_id)
    if average is None:
        raise _Ended
    write_leaves(resources.index, target, switch.dataset_id, leaves, embed, average_length=average)
    with transaction(resources.sessions) as session:
        # A rebuild of the weights begins after this, and has all copied anew, or was seen here.
        shared(session, f"weights of {switch.dataset_id}")
        running = _is_running(session, switch.id)
        known = find_leaves(session, [leaf.id for leaf in leaves])
        if running and find_average(session, switch.dataset_id) == average:
            same = [leaf for leaf in leaves if known.get(leaf.id) == leaf]
            _acknowledge(session, switch.id, same)
        if running:
            _progress(session, switch.id, cursor=leaves[-1].id)
    gone = {leaf.id: leaf.version for leaf in leaves if leaf.id not in known}
    if running:
        remove(resources.index, target, gone)
        return
    _take_back(resources, switch, target, leaves)
    raise _Ended


def _is_running(session: Session, switch_id: uuid.UUID) -> bool:
    status = session.scalar(select(DatasetSwitch.status).where(DatasetSwitch.id == switch_id))
    return status is SwitchStatus.RUNNING


def _acknowledge(session: Session, switch_id: uuid.UUID, leaves: Sequence[Leaf]) -> None:
    ids = [leaf.id for leaf in leaves]
    for at in range(0, len(ids), _ROWS):
        session.execute(
            delete(SwitchPoint).where(
                SwitchPoint.switch_id == switch_id, SwitchPoint.point_id.in_(ids[at : at + _ROWS])
            )
        )
    session.add_all(
        SwitchPoint(
            switch_id=switch_id, point_id=leaf.id, version=leaf.version, text_hash=leaf.text_hash
        )
        for leaf in leaves
    )


def _take_back(
    resources: Resources, switch: DatasetSwitch, target: Space, leaves: Sequence[Leaf]
) -> None:
    """Remove what was written after the switch had ended.

    Where the dataset lives in that space by now, or moves there again, its points are settled.
    """
    with transaction(resources.sessions) as session:
        if holds_dataset(session, target, switch.dataset_id):
            enqueue(session, JobKind.SETTLE_DATASET, dataset_id=str(switch.dataset_id))
            return
    remove(resources.index, target, {leaf.id: leaf.version for leaf in leaves})


def _note(resources: Resources, switch: DatasetSwitch, **values: Any) -> None:
    with transaction(resources.sessions) as session:
        _progress(session, switch.id, **values)


def _progress(session: Session, switch_id: uuid.UUID, **values: Any) -> None:
    session.execute(
        update(DatasetSwitch)
        .where(DatasetSwitch.id == switch_id, DatasetSwitch.status == SwitchStatus.RUNNING)
        .values(
            progress_at=moment(),
            failures=0,
            retry_at=None,
            error=None,
            error_code=None,
            **values,
        )
        .execution_options(synchronize_session=False)
    )


# --- comparing -----------------------------------------------------------------------------------


def _verify(resources: Resources, switch: DatasetSwitch, target: Space) -> None:
    """Have copied anew what the new space lacks, and remove what nothing stands for.

    A process may have died between a write and its note, or have written late.
    """
    _remove_extra(resources, target, switch.dataset_id)
    for lacking in _lacking(resources, target, switch.dataset_id):
        with transaction(resources.sessions) as session:
            session.execute(
                delete(SwitchPoint).where(
                    SwitchPoint.switch_id == switch.id, SwitchPoint.point_id.in_(lacking)
                )
            )


def _remove_extra(resources: Resources, space: Space, dataset_id: uuid.UUID) -> None:
    page: list[PointHead] = []

    def settle() -> None:
        with reading(resources.sessions) as session:
            gone = unknown_ids(session, [head.id for head in page])
        remove(resources.index, space, {h.id: h.version for h in page if h.id in gone})
        page.clear()

    for head in resources.index.scan(space, dataset_id):
        page.append(head)
        if len(page) == _ROWS:
            settle()
    settle()


def _lacking(resources: Resources, space: Space, dataset_id: uuid.UUID) -> Any:
    """Acknowledged texts whose point in the space is not there, or is made of something else."""
    for leaves in indexed_leaves(resources.sessions, dataset_id=dataset_id, batch=_ROWS):
        points = resources.index.read(space, [leaf.id for leaf in leaves])
        lacking = [
            leaf.id
            for leaf in leaves
            if (point := points.get(leaf.id)) is None
            or (point.text_hash, point.facts) != (leaf.text_hash, leaf.facts)
        ]
        if lacking:
            yield lacking


# --- the end -------------------------------------------------------------------------------------


def _finish(resources: Resources, switch: DatasetSwitch) -> bool:
    """Switch the dataset in one transaction, if all its texts are in the new space.

    Raises:
        _Ended: somebody else ended the switch.
    """
    dataset_id = switch.dataset_id
    with transaction(resources.sessions) as session:
        # Whoever marks points as written shares this: what is marked is seen here, or is marked
        # after this, and then in the new space.
        exclusive(session, f"weights of {dataset_id}", wait_for_ever=True)
        hold_dataset(session, dataset_id, to_change=True)
        if not _is_running(session, switch.id):
            raise _Ended
        if missing_leaves(session, switch.id, dataset_id, limit=1):
            return False
        before = origin_of(switch)
        row = session.get_one(DatasetSwitch, switch.id)
        end_switch(session, row, SwitchStatus.COMPLETED)
        session.execute(
            update(Dataset)
            .where(Dataset.id == dataset_id)
            .values(
                indexing_technique=IndexingTechnique(switch.technique),
                embedding_model=switch.embedding_model,
                embedding_model_provider=switch.embedding_model_provider,
                space_name=switch.space_name,
                space_dim=switch.space_dim,
                updated_at=moment(),
                updated_by=switch.created_by,
            )
            .execution_options(synchronize_session=False)
        )
        _remove_later(session, resources, before, dataset_id)
    log.info("dataset %s answers from %r now", dataset_id, switch.space_name)
    return True


def _remove_later(
    session: Session, resources: Resources, before: Space, dataset_id: uuid.UUID
) -> None:
    """The old points go when the queries that began before have ended, and once more when a worker
    may still write there; what was written while nobody looked is settled.
    """
    keep_s = resources.settings.ingestion.keep_replaced_s
    waits = [keep_s]
    if may_be_written(session, select(Document.id).where(Document.dataset_id == dataset_id)):
        waits.append(keep_s + LATE_S)
    for wait_s in waits:
        enqueue(
            session,
            JobKind.DELETE_DATASET,
            wait_s=wait_s,
            space=before.name,
            dim=before.dim,
            dataset_id=str(dataset_id),
        )
    enqueue(session, JobKind.SETTLE_DATASET, wait_s=LATE_S, dataset_id=str(dataset_id))


def _failed(resources: Resources, switch: DatasetSwitch, exc: Exception) -> None:
    """Try again later, or give the switch up; the dataset stays as it is.

    Raises:
        ComeAgain: it is tried again.
    """
    settings = resources.settings.ingestion
    message = str(exc) or type(exc).__name__
    known = isinstance(exc, PipelineError | KBError)
    error = message if known else f"unexpected {type(exc).__name__}: {message}"
    wait_s = min(settings.retry_max_s, settings.retry_base_s * 2.0 ** min(switch.failures, 30))
    wait_s = max(wait_s, getattr(exc, "retry_after_s", None) or 0.0)
    log.warning("switch of dataset %s: %s", switch.dataset_id, error, exc_info=not known)
    values: dict[str, Any] = {
        "error": error,
        "error_code": str(getattr(exc, "code", "unexpected_error")),
    }
    transient = isinstance(exc, TransientError | Unavailable) or not known
    with transaction(resources.sessions) as session:
        row = session.get(DatasetSwitch, switch.id, with_for_update=True)
        if row is None or row.status is not SwitchStatus.RUNNING:
            return
        patient = session.scalar(
            select(DatasetSwitch.progress_at > moment(-settings.switch_patience_s)).where(
                DatasetSwitch.id == switch.id
            )
        )
        again = transient and bool(patient)
        if again:
            values |= {"failures": row.failures + 1, "retry_at": moment(wait_s)}
        else:
            end_switch(session, row, SwitchStatus.FAILED)
        session.execute(
            update(DatasetSwitch)
            .where(DatasetSwitch.id == switch.id)
            .values(**values)
            .execution_options(synchronize_session=False)
        )
    if again:
        raise ComeAgain(moment(wait_s), error)


def _clean(resources: Resources, switch: DatasetSwitch) -> None:
    """Remove what an ended switch leaves: its notes, and the copies that nobody needs."""
    target = target_of(switch)
    with reading(resources.sessions) as session:
        needed = holds_dataset(session, target, switch.dataset_id)
    if not needed:
        resources.index.ensure_space(target)
        resources.index.delete_dataset(target, switch.dataset_id)
        resources.index.flush(target)
    while True:
        with transaction(resources.sessions) as session:
            mine = SwitchPoint.switch_id == switch.id
            ids = session.scalars(select(SwitchPoint.point_id).where(mine).limit(_ROWS)).all()
            if not ids:
                session.execute(
                    update(DatasetSwitch).where(DatasetSwitch.id == switch.id).values(cleaned=True)
                )
                return
            session.execute(delete(SwitchPoint).where(mine, SwitchPoint.point_id.in_(ids)))


def forget_copies(
    session: Session, dataset_id: uuid.UUID, ids: Sequence[uuid.UUID] | None = None
) -> None:
    """Have a running switch copy texts once more.

    Args:
        ids: these; None: all, as their weights are others.
    """
    running = find_running(session, dataset_id)
    if running is None:
        return
    copies = SwitchPoint.switch_id == running.id
    if ids is None:
        session.execute(delete(SwitchPoint).where(copies))
        return
    for at in range(0, len(ids), _ROWS):
        part = ids[at : at + _ROWS]
        session.execute(delete(SwitchPoint).where(copies, SwitchPoint.point_id.in_(part)))


def lacking_points(resources: Resources, space: Space, dataset_id: uuid.UUID) -> list[uuid.UUID]:
    """Remove the points of a dataset that nothing stands for; texts whose point is not right."""
    _remove_extra(resources, space, dataset_id)
    return [point_id for part in _lacking(resources, space, dataset_id) for point_id in part]
