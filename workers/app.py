"""The Celery app: `celery --app workers.app ...` and `kb worker` run it.

A worker process opens the adapters once: with the pool `prefork` in each of its child processes,
with `threads` once for all threads. So N child processes hold N models, N threads share one.
"""

from __future__ import annotations

import logging
import mmap
import threading
import warnings
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from celery import Celery
from celery.exceptions import CPendingDeprecationWarning
from celery.signals import (
    setup_logging,
    worker_init,
    worker_process_init,
    worker_process_shutdown,
    worker_shutdown,
    worker_shutting_down,
)

from kb.adapters.celery_queue import celery_config
from kb.crew import Crew
from kb.errors import Misconfigured
from kb.logs import formatter, secrets_of
from kb.resources import Resources
from kb.settings import Settings
from kb.wiring import check_service, open_resources
from workers.metrics import forget_counts, serve_metrics
from workers.schedule import beat_schedule

log = logging.getLogger("kb.worker")

# Celery says at every lost connection that the default of a setting will change; ours is set.
warnings.filterwarnings("ignore", category=CPendingDeprecationWarning)

_START_S = 120.0
"""A child process may take this long to open its adapters; Celery's own limit is 4 s."""


def make_app(settings: Settings) -> Celery:
    """Raises: Misconfigured: no broker, or settings that do not go with it."""
    if settings.redis_url is None:
        raise Misconfigured(
            "KB_REDIS_URL is not set, so there is nothing for workers to do: `kb serve` works on "
            "documents itself; set it to redis://:PASSWORD@HOST:6379/0 to have workers"
        )
    check_service(settings)
    made = Celery("kb", include=["workers.tasks"])
    made.conf.update(celery_config(settings.redis_url.get_secret_value(), settings.redis))
    made.conf.update(
        beat_schedule=beat_schedule(settings.ingestion),
        worker_consumer="workers.consumer:Consumer",
        # Nothing but intervals: a clock that starts anew rings everything once.
        beat_scheduler="celery.beat:Scheduler",
        worker_proc_alive_timeout=_START_S,
        worker_hijack_root_logger=False,
    )
    return made


@dataclass
class _Process:
    """What a worker process opens once."""

    opened: AbstractContextManager[Resources]
    resources: Resources
    crew: Crew


_settings = Settings()
app = make_app(_settings)
_lock = threading.Lock()
_process: _Process | None = None
# One byte that the children of `prefork` share with their parent: only the parent gets the signal.
_stopping = mmap.mmap(-1, 1)


def resources() -> Resources:
    """The adapters of this process."""
    return _opened().resources


def crew() -> Crew:
    """The workers of this process."""
    return _opened().crew


def _opened() -> _Process:
    global _process
    with _lock:
        if _process is None:
            opened = open_resources(_settings)
            entered = opened.__enter__()
            workers = Crew(entered, stopped=lambda: _stopping[0] != 0)
            workers.start()
            _process = _Process(opened, entered, workers)
        return _process


@worker_init.connect
def _start(sender: Any, **_: Any) -> None:
    """Open the adapters in this very process, unless it only leads others that will."""
    _stopping[0] = 0
    prefork = "prefork" in sender.pool_cls.__module__
    serve_metrics(_settings.metrics, several=prefork)
    if not prefork:
        _opened()


@worker_process_init.connect
def _start_child(**_: Any) -> None:
    _opened()


@worker_shutting_down.connect
def _ask_to_stop(**_: Any) -> None:
    """What is in work is handed back after its batch; the pool waits for that."""
    _stopping[0] = 1


@worker_process_shutdown.connect
@worker_shutdown.connect
def _stop(**_: Any) -> None:
    global _process
    with _lock:
        if _process is not None:
            _process.crew.stop()
            _process.opened.__exit__(None, None, None)
            _process = None


@worker_shutdown.connect
def _forget_counts(**_: Any) -> None:
    forget_counts()


@setup_logging.connect
def configure_logging(**_: Any) -> None:
    """One line per record, to stderr, as `kb serve` writes it."""
    handler = logging.StreamHandler()
    handler.setFormatter(formatter(_settings.log_format, secrets=secrets_of(_settings)))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.captureWarnings(True)
    for name in ("kb", "celery.worker", "celery.beat"):
        logging.getLogger(name).setLevel(_settings.log_level.upper())
