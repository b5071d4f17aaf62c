"""What beat rings for, and how often."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

from celery.schedules import schedule

from kb.adapters.celery_queue import CLEAN_UP, MAINTENANCE, SWEEP
from kb.settings import Ingestion

_VOID_S = 86_400.0
"""A message that no worker took for so long is void, so that they do not pile up for ever. A worker
compares this with its own clock: one that is wrong by hours must not throw every message away."""

_STARTED = datetime.now(UTC), time.monotonic()


def steady_now() -> datetime:
    """The time since this process started, on a clock that nobody sets."""
    at, was = _STARTED
    return at + timedelta(seconds=time.monotonic() - was)


def beat_schedule(ingestion: Ingestion) -> dict[str, dict[str, Any]]:
    """Several beats at once do no harm: what they ring for may be done twice.

    Retries and expired leases need no entry: the sweep finds whatever waits without a message.
    """
    return {
        "sweep": _every(ingestion.sweep_s, SWEEP),
        "clean up": _every(ingestion.clean_up_s, CLEAN_UP),
    }


def _every(seconds: float, task: str) -> dict[str, Any]:
    return {
        "task": task,
        # On the machine's clock, beat would fall silent for as long as that is set back.
        "schedule": schedule(timedelta(seconds=seconds), nowfun=steady_now),
        "options": {"queue": MAINTENANCE, "expires": _VOID_S},
    }
