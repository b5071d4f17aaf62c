"""The in-process task runner: worker threads fed from the database, and their heartbeat."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from kb.adapters.in_process_queue import InProcessQueue
from kb.crew import Crew
from kb.ingestion.claims import release_all
from kb.jobs import release_jobs
from kb.models import JobKind
from kb.ports import Queue
from kb.resources import Resources
from kb.sweeper import clean_up

log = logging.getLogger("kb.runner")

_APART = (JobKind.DELIVER_WEBHOOK, JobKind.SWITCH_DATASET)
"""Jobs with a thread of their own: they are slow, and hold up nothing else."""
_UPKEEP = tuple(kind for kind in JobKind if kind not in _APART)


class Runner:
    """Ingests documents and does the outbox's jobs until it is stopped.

    `wake` tells idle workers that something was queued; without it they look every `poll_s`.
    """

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._ingestion = resources.settings.ingestion
        self._crew = Crew(resources)
        self._stop = threading.Event()
        self._work = threading.Condition()
        self._announced = 0
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start the threads. The process must be the only one that works on this database."""
        freed = release_all(self._resources.sessions)
        release_jobs(self._resources.sessions)
        if freed:
            log.info("%d documents were in work when the last process ended; going on", freed)
        self._crew.start()
        for number in range(self._ingestion.workers):
            self._spawn(f"kb-ingest-{number}", partial(self._ingest_loop, _preference(number)))
        self._spawn("kb-upkeep", self._upkeep_loop)
        for kind in _APART:
            self._spawn(f"kb-{kind.value}", partial(self._job_loop, kind))
        if isinstance(self._resources.jobs, InProcessQueue):
            self._resources.jobs.listen(self.wake)

    def wake(self) -> None:
        """Tell idle workers that there is something to do."""
        with self._work:
            self._announced += 1
            self._work.notify_all()

    def stop(self, *, timeout_s: float) -> bool:
        """Let every worker finish its batch and hand its document back; True: all ended.

        A document whose worker does not end in time is handed back over its head.
        """
        self._stop.set()
        self._crew.ask_to_stop()
        self.wake()
        ends = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, ends - time.monotonic()))
        self._crew.stop()
        return not any(thread.is_alive() for thread in self._threads)

    def _spawn(self, name: str, loop: Callable[[], None]) -> None:
        thread = threading.Thread(target=loop, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _ingest_loop(self, queues: Sequence[Queue]) -> None:
        lower_priority(self._resources.settings.embedding.niceness)
        while not self._stop.is_set():
            with self._work:
                seen = self._announced
            try:
                if self._crew.ingest_next(queues):
                    continue
            except BaseException:  # a panic of a native library is no Exception
                log.exception("a worker could not claim or record; trying again")
            self._wait(seen)

    def _upkeep_loop(self) -> None:
        lower_priority(self._resources.settings.embedding.niceness)
        clean_at = time.monotonic()
        while not self._stop.is_set():
            with self._work:
                seen = self._announced
            try:
                if self._crew.run_next_job(_UPKEEP):
                    continue
                if self._resources.index.optimize(budget_s=0.2):
                    continue
                if time.monotonic() >= clean_at:
                    clean_at = time.monotonic() + self._ingestion.clean_up_s
                    clean_up(self._resources)
            except BaseException:
                log.exception("upkeep failed; trying again")
            self._wait(seen)

    def _job_loop(self, kind: JobKind) -> None:
        lower_priority(self._resources.settings.embedding.niceness)
        while not self._stop.is_set():
            with self._work:
                seen = self._announced
            try:
                if self._crew.run_next_job((kind,)):
                    continue
            except BaseException:
                log.exception("%s failed; trying again", kind.value)
            self._wait(seen)

    def _wait(self, seen: int) -> None:
        with self._work:
            if self._announced == seen and not self._stop.is_set():
                self._work.wait(self._ingestion.poll_s)


def runner_for(resources: Resources) -> Runner | None:
    """The runner of this process; None when `kb worker` does its work elsewhere."""
    return Runner(resources) if resources.settings.redis_url is None else None


def _preference(number: int) -> tuple[Queue, ...]:
    """Small files first, but every second worker looks for large ones first: neither starves."""
    return tuple(Queue) if number % 2 == 0 else tuple(reversed(Queue))


def lower_priority(niceness: int) -> None:
    """Make the calling thread yield to those that answer queries, where the system can."""
    if hasattr(os, "setpriority"):
        try:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
        except OSError as exc:
            log.debug("priority of this thread cannot be lowered: %s", exc)
