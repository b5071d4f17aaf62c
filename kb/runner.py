"""The in-process task runner: worker threads fed from the database, and their heartbeat."""

from __future__ import annotations

import logging
import os
import threading
import uuid

from kb.ingestion.claims import claim_next, release_all, renew
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
        self._name = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start the threads. The process must be the only one that works on this database."""
        freed = release_all(self._resources.sessions)
        release_jobs(self._resources.sessions)
        if freed:
            log.info("%d documents were in work when the last process ended; going on", freed)
        for number in range(self._ingestion.workers):
            self._spawn(f"kb-ingest-{number}", self._ingest_loop)
        self._spawn("kb-upkeep", self._upkeep_loop)
        self._spawn("kb-heartbeat", self._heartbeat_loop)

    def wake(self) -> None:
        """Tell idle workers that there is something to do."""
        with self._work:
            self._announced += 1
            self._work.notify_all()

    def stop(self, *, timeout_s: float) -> bool:
        """Let every worker finish its batch and hand its document back; True: all ended."""
        self._stop.set()
        self.wake()
        for thread in self._threads:
            thread.join(timeout_s)
        return not any(thread.is_alive() for thread in self._threads)

    def _spawn(self, name: str, loop: object) -> None:
        thread = threading.Thread(target=loop, name=name, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _owner(self) -> str:
        return f"{self._name}/{threading.current_thread().name}"

    def _owners(self) -> list[str]:
        return [f"{self._name}/{thread.name}" for thread in self._threads]

    def _ingest_loop(self) -> None:
        lower_priority(self._resources.settings.embedding.niceness)
        while not self._stop.is_set():
            with self._work:
                seen = self._announced
            try:
                claim = claim_next(
                    self._resources.sessions, self._owner(), lease_s=self._ingestion.lease_s
                )
                if claim is not None:
                    ingest(claim, self._resources, stopped=self._stop.is_set)
                    continue
            except Exception:
                log.exception("worker could not claim or record; trying again")
            self._wait(seen)

    def _upkeep_loop(self) -> None:
        lower_priority(self._resources.settings.embedding.niceness)
        while not self._stop.is_set():
            with self._work:
                seen = self._announced
            try:
                if run_next_job(self._resources, self._owner()):
                    continue
                if self._resources.index.optimize(budget_s=0.2):
                    continue
            except Exception:
                log.exception("upkeep failed; trying again")
            self._wait(seen)

    def _heartbeat_loop(self) -> None:
        while not self._stop.wait(self._ingestion.lease_s / 4):
            try:
                renew(self._resources.sessions, self._owners(), lease_s=self._ingestion.lease_s)
            except Exception:
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
