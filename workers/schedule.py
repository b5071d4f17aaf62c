"""What beat rings for, and how often."""

from __future__ import annotations

from typing import Any

from kb.adapters.celery_queue import CLEAN_UP, MAINTENANCE, SWEEP
from kb.settings import Ingestion


def beat_schedule(ingestion: Ingestion) -> dict[str, dict[str, Any]]:
    """Several beats at once do no harm: what they ring for may be done twice.

    Retries and expired leases need no entry: the sweep finds whatever waits without a message.
    """
    return {
        "sweep": _every(ingestion.sweep_s, SWEEP),
        "clean up": _every(ingestion.clean_up_s, CLEAN_UP),
    }


def _every(seconds: float, task: str) -> dict[str, Any]:
    # A message that nobody took until the next one is void: they must not pile up.
    return {
        "task": task,
        "schedule": seconds,
        "options": {"queue": MAINTENANCE, "expires": max(seconds, 1.0)},
    }
