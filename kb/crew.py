"""Crew: the workers of one process, which share its leases, its stop and its end."""

from __future__ import annotations

import logging
import os
import socket
import threading
import uuid
from collections.abc import Callable, Collection, Sequence

from kb.db import transaction
from kb.ingestion.claims import Claim, claim_next, release, renew
from kb.ingestion.run import ingest
from kb.jobs import renew_jobs
from kb.maintenance import run_next_job
from kb.models import JobKind
from kb.ports import Queue
from kb.resources import Resources
from kb.segments import importing as _importing  # noqa: F401 - a job of its own

log = logging.getLogger("kb.crew")

_HOST_CHARS = 20


class Crew:
    """Works on documents and jobs, one at a time in each thread that calls it.

    Leases of what is in work are renewed from `start` to `stop`. A lease names host, process and
    thread, so that a person can see who works on what.

    Args:
        stopped: asked at every batch, besides `stop`: whether to hand work back.
    """

    def __init__(
        self, resources: Resources, *, stopped: Callable[[], bool] = lambda: False
    ) -> None:
        self._resources = resources
        self._ingestion = resources.settings.ingestion
        self._asked = stopped
        self._stop = threading.Event()
        self._ended = threading.Event()
        host = socket.gethostname()[:_HOST_CHARS]
        self._name = f"{host}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._owners: dict[int, str] = {}
        self._in_work: dict[str, Claim] = {}
        self._jobs: set[uuid.UUID] = set()
        self._claiming = threading.Lock()
        self._heartbeat: threading.Thread | None = None

    def start(self) -> None:
        """Begin to renew leases."""
        self._heartbeat = threading.Thread(target=self._renew, name="kb-heartbeat", daemon=True)
        self._heartbeat.start()

    @property
    def stopping(self) -> bool:
        """Whether what is in work is to be handed back."""
        return self._stop.is_set() or self._asked()

    def ask_to_stop(self) -> None:
        """From now on documents are handed back after the batch that is in work."""
        self._stop.set()

    def stop(self) -> None:
        """End; hand back what is still in work over the head of whoever works on it.

        That the process ends now is not the document's doing.
        """
        self._stop.set()
        self._ended.set()
        if self._heartbeat is not None:
            self._heartbeat.join()
        for claim in list(self._in_work.values()):
            with transaction(self._resources.sessions) as session:
                release(session, claim)

    def ingest_next(self, queues: Sequence[Queue] = tuple(Queue)) -> bool:
        """Work on the document of these queues whose turn it is; False: there is none.

        Whatever comes of it is recorded on the document. What is handed back because of a stop is
        announced again.
        """
        if self.stopping:
            return False
        owner = self._owner()
        with self._claiming:  # one after the other, so that a suspect is seen by the next
            claim = claim_next(
                self._resources.sessions,
                owner,
                lease_s=self._ingestion.lease_s,
                colleagues=list(self._owners.values()),
                queues=queues,
            )
            if claim is None:
                return False
            self._in_work[owner] = claim
        try:
            ingest(claim, self._resources, stopped=lambda: self.stopping)
        finally:
            # Whatever happened: a lease that nobody works under is not renewed.
            del self._in_work[owner]
            if self.stopping:
                self._resources.jobs.index_document(claim.document_id, claim.queue)
        return True

    def run_next_job(self, kinds: Collection[JobKind] = tuple(JobKind)) -> bool:
        """Do the outbox's next job of these kinds; False: none is due."""
        return not self.stopping and run_next_job(
            self._resources, self._owner(), kinds, in_work=self._jobs
        )

    def _owner(self) -> str:
        thread = threading.get_ident()
        with self._claiming:
            return self._owners.setdefault(thread, f"{self._name}/{len(self._owners)}")

    def _renew(self) -> None:
        lease_s = self._ingestion.lease_s
        while not self._ended.wait(lease_s / 4):
            try:
                renew(self._resources.sessions, list(self._in_work.values()), lease_s=lease_s)
                renew_jobs(self._resources.sessions, list(self._jobs), lease_s=lease_s)
            except BaseException:  # a panic of a native library is no Exception
                log.exception("leases could not be renewed; trying again")
