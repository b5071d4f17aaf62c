"""The in-process task runner: worker threads fed from the database, and their heartbeat."""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections.abc import Callable
from functools import partial

from kb.db import transaction
from kb.ingestion.claims import Claim, claim_next, release, release_all, renew
from kb.ingestion.run import ingest
from kb.jobs import release_jobs
from kb.maintenance import run_next_job
from kb.resources import Resources

log = logging.getLogger("kb.runner")


class Runner:
    """Ingests documents and does the outbox's jobs until it is stopped.

    `wake` tells idle workers that something was queued; without it they look every `poll_s`.
    """

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._ingestion = resources.settings.ingestion
        self._stop = threading.Event()
        self._work = threading.Condition()
        self._announced = 0
        name = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._owners = [f"{name}/{n}" for n in range(self._ingestion.workers)]
        self._upkeep = f"{name}/upkeep"
        self._in_work: dict[str, Claim] = {}
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start the threads. The process must be the only one that works on this database."""
        freed = release_all(self._resources.sessions)
        release_jobs(self._resources.sessions)
        if freed:
            log.info("%d documents were in work when the last process ended; going on", freed)
        for number, owner in enumerate(self._owners):
            self._spawn(f"kb-ingest-{number}", partial(self._ingest_loop, owner))
        self._spawn("kb-upkeep", self._upkeep_loop)
        self._spawn("kb-heartbeat", self._heartbeat_loop)

    def wake(self) -> None:
        """Tell idle workers that there is something to do."""
        with self._work:
            self._announced += 1
            self._work.notify_all()

    def stop(self, *, timeout_s: float) -> bool:
        """Let every worker finish its batch and hand its document back; True: all ended.

        A document whose worker does not end in time is handed back over its head: that the
        process ends now is not the document's doing.
        """
        self._stop.set()
        self.wake()
        ends = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, ends - time.monotonic()))
        with transaction(self._resources.sessions) as session:
            for claim in list(self._in_work.values()):
                release(session, claim)
        return not any(thread.is_alive() for thread in self._threads)

    def _spawn(self, name: str, loop: Callable[[], None]) -> None:
        thread = threading.Thread(target=loop, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _ingest_loop(self, owner: str) -> None:
        lower_priority(self._resources.settings.embedding.niceness)
        while not self._stop.is_set():
            with self._work:
                seen = self._announced
            try:
                if self._ingest_next(owner):
                    continue
            except BaseException:  # a panic of a native library is no Exception
                log.exception("a worker could not claim or record; trying again")
            self._wait(seen)

    def _ingest_next(self, owner: str) -> bool:
        claim = claim_next(
            self._resources.sessions,
            owner,
            lease_s=self._ingestion.lease_s,
            colleagues=self._owners,
        )
        if claim is None:
            return False
        self._in_work[owner] = claim
        try:
            ingest(claim, self._resources, stopped=self._stop.is_set)
        finally:
            # Whatever happened: a lease that nobody works under is not renewed.
            del self._in_work[owner]
        return True

    def _upkeep_loop(self) -> None:
        lower_priority(self._resources.settings.embedding.niceness)
        while not self._stop.is_set():
            with self._work:
                seen = self._announced
            try:
                if run_next_job(self._resources, self._upkeep):
                    continue
                if self._resources.index.optimize(budget_s=0.2):
                    continue
            except BaseException:
                log.exception("upkeep failed; trying again")
            self._wait(seen)

    def _heartbeat_loop(self) -> None:
        lease_s = self._ingestion.lease_s
        while not self._stop.wait(lease_s / 4):
            try:
                renew(self._resources.sessions, list(self._in_work.values()), lease_s=lease_s)
            except BaseException:
                log.exception("leases could not be renewed; trying again")

    def _wait(self, seen: int) -> None:
        with self._work:
            if self._announced == seen and not self._stop.is_set():
                self._work.wait(self._ingestion.poll_s)


def lower_priority(niceness: int) -> None:
    """Make the calling thread yield to those that answer queries, where the system can."""
    if hasattr(os, "setpriority"):
        try:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
        except OSError as exc:
            log.debug("priority of this thread cannot be lowered: %s", exc)
