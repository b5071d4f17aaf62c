"""The route that says how the work stands."""

from __future__ import annotations

import uuid
from typing import Any

from fastapi import APIRouter

from kb.api.deps import AccessDep
from kb.api.shapes import epoch, text
from kb.status import Lease, Stage, Status, Throughput, read_status

router = APIRouter(tags=["system"])


@router.get("/v1/status")
def get_status(access: AccessDep) -> dict[str, Any]:
    """Show queues, errors, workers, jobs, throughput, the slowest stage and the time to finish.

    Figures are those of the whole installation; what a worker does is told of the key's own
    workspace only.
    """
    access.caller.needs_whole_workspace("the status of the installation")
    with access.reading() as session:
        found = read_status(session)
    return shape(found, access.caller.workspace_id)


def shape(found: Status, workspace_id: uuid.UUID) -> dict[str, Any]:
    """As JSON."""
    return {
        "at": epoch(found.at),
        "queues": {
            name: {
                **queue.counts,
                "oldest_waiting_s": _age(found, queue.oldest),
            }
            for name, queue in found.queues.items()
        },
        "errors": dict(found.errors),
        "jobs": {
            "by_kind": {kind: dict(states) for kind, states in found.jobs.items()},
            "pending": sum(sum(states.values()) for states in found.jobs.values()),
            "oldest_due_s": _age(found, found.oldest_job),
        },
        "workers": [_worker(found, lease, workspace_id) for lease in found.leases],
        "throughput": _throughput(found.throughput),
        "stages": [_stage(stage) for stage in found.stages],
        "slowest_stage": found.stages[0].kind if found.stages else None,
        "documents_left": found.left,
        "seconds_left": None if found.eta_s is None else round(found.eta_s, 1),
    }


def _age(found: Status, since: Any) -> float | None:
    return None if since is None else round(max(0.0, (found.at - since).total_seconds()), 3)


def _worker(found: Status, lease: Lease, workspace_id: uuid.UUID) -> dict[str, Any]:
    host, process, thread = owner_parts(lease.owner)
    own = lease.workspace_id == workspace_id
    return {
        "owner": lease.owner,
        "host": host,
        "process": process,
        "thread": thread,
        "since": epoch(lease.since),
        "working_s": _age(found, lease.since),
        "lease_left_s": round((lease.expires_at - found.at).total_seconds(), 3),
        "attempt": lease.attempt,
        "job": lease.kind,
        "stage": lease.stage,
        "document_id": text(lease.document_id) if own else None,
        "document": lease.document if own else None,
        "dataset_id": text(lease.dataset_id) if own else None,
        "dataset": lease.dataset if own else None,
    }


def owner_parts(owner: str) -> tuple[str, int | None, int | None]:
    """Host, process id and thread number of a lease's owner; a stranger is all host."""
    name, _, thread = owner.rpartition("/")
    parts = name.rsplit("-", 2)
    if len(parts) != 3 or not parts[1].isdecimal() or not thread.isdecimal():
        return owner, None, None
    return parts[0], int(parts[1]), int(thread)


def _throughput(found: Throughput) -> dict[str, Any]:
    return {
        "seconds": round(found.seconds, 1),
        "documents": found.documents,
        "segments": found.segments,
        "failed_attempts": found.failed,
        "documents_per_minute": round(found.per_minute(found.documents), 2),
        "segments_per_minute": round(found.per_minute(found.segments), 2),
    }


def _stage(stage: Stage) -> dict[str, Any]:
    return {
        "kind": stage.kind,
        "runs": stage.runs,
        "mean_s": round(stage.seconds / stage.runs, 6),
        "total_s": round(stage.seconds, 3),
    }
